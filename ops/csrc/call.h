// Conversion of an operator's tensors to a Problem, for the CPU and CUDA operators.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "problem.h"

namespace msda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream message;
  message << "ms_deform_attn: ";
  (message << ... << args);
  throw std::runtime_error(message.str());
}

inline Sizes sizes_of(const Tensor& t) { return Sizes(t.sizes().begin(), t.sizes().end()); }
inline Tensor new_tensor(const Tensor& like, const Sizes& sizes, ScalarType type) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, type);
}
inline Tensor new_like(const Tensor& t) { return new_tensor(t, sizes_of(t), t.scalar_type()); }

void check_sizes(const Tensor& t, const char* name, const Sizes& wanted);  // -1 accepts any size
void check_type(const Tensor& t, const char* name, ScalarType wanted, const char* wanted_name);
DType type_of(const Tensor& t, const char* name);

// Level sizes are integers (h0, w0, h1, w1, ...) or, with an empty list, an (L, 2) int64 tensor.
struct Levels {
  Sizes sizes;
  std::optional<Tensor> tensor;
  std::optional<Tensor> start;
};

struct Inputs {
  Tensor value;
  Levels levels;
  std::optional<Tensor> reference;  // only with offsets and logits
  Tensor xy;
  Tensor attention;
};

// Validated arguments in the layout that Problem requires. Owns any copies.
//
// Only what the kernels rely on is checked. Detailed messages come from checks.py, which runs when a call fails, and in
// the fake kernels while tracing.
struct Call {
  Problem problem = {};
  Inputs inputs;
  bool shapes_on_device = false;  // problem.height, width and start are unset

  explicit Call(Inputs arguments);
  Sizes output_size() const;
  // Checks the gradient of the output and adds it to the problem. Returns a tensor that must outlive the kernel.
  Tensor add_grad_output(const Tensor& grad_output);

 private:
  int32_t count_levels() const;
  void fill_levels();
};

}  // namespace msda
