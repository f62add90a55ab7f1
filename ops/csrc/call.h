// From tensors to a checked Problem. Used by the CPU and the CUDA entry points alike.
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

// Level sizes arrive as integers (h0, w0, h1, w1, ...) or, with an empty list, as an (L, 2) int64 tensor.
struct Levels {
  std::vector<int64_t> sizes;
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

template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream message;
  message << "ms_deform_attn: ";
  (message << ... << args);
  throw std::runtime_error(message.str());
}

// A call whose tensors are checked and laid out as Problem wants them; owns the copies this needed.
struct Call {
  Problem problem = {};
  Inputs inputs;
  bool shapes_on_device = false;  // problem.height, width and start are not filled in

  Call(Inputs arguments, bool cuda);
  std::vector<int64_t> output_size() const;
  // Takes a gradient with respect to the output; checks it and returns the laid-out tensor.
  Tensor take_grad_output(const Tensor& grad_output);
};

}  // namespace msda
