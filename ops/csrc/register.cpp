// Registration with PyTorch's dispatcher through its stable ABI: this library links neither Python nor the C++ classes
// of libtorch, so that one build works with every Python and every torch from 2.11 on.
#include <string>

#include "cpu/kernels.h"
#include "operators.h"

namespace msda {
namespace {

struct CpuBackend {
  Call call;

  CpuBackend(Inputs inputs, bool /*deterministic: always*/) : call(std::move(inputs)) {}

  void run(bool backward) {
    const auto kernel = backward ? cpu_kernels().backward : cpu_kernels().forward;
    if (!kernel(call.problem)) fail("no CPU kernel for these element types");
  }
};

void dropout(const Tensor& x, int64_t threshold, int64_t seed, double scale, Tensor output) {
  check_sizes(output, "output", sizes_of(x));
  check_type(output, "output", x.scalar_type(), "of x");
  if (!x.is_contiguous() || !output.is_contiguous()) fail("x and output must be contiguous");
  if (threshold < 0 || threshold > UINT16_MAX) fail("threshold must be in [0, 65535], got ", threshold);
  const Dropout call = {x.const_data_ptr(), output.mutable_data_ptr(), x.numel(),
                        type_of(x, "x"),    uint16_t(threshold),       uint64_t(seed),
                        float(scale)};
  if (!cpu_kernels().dropout(call)) fail("dropout needs float32, float16 or bfloat16");
}

std::string cpu_isa() { return cpu_kernels().name; }

}  // namespace
}  // namespace msda

// spatial_shapes is h0, w0, h1, w1, ..., or empty if shapes_tensor is given instead. The fused backward returns the
// gradient of the reference points per head, (N, M, Q, L, R), or an empty tensor if it is not requested.
STABLE_TORCH_LIBRARY(ms_deform_attn, m) {
  m.def("cpu_isa() -> str");
  m.def(
      "forward(Tensor value, SymInt[] spatial_shapes, Tensor? shapes_tensor, Tensor? level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  m.def(
      "backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor? shapes_tensor, "
      "Tensor? level_start_index, Tensor sampling_locations, Tensor attention_weights, bool deterministic) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "fused_forward(Tensor value, SymInt[] spatial_shapes, Tensor? shapes_tensor, Tensor? level_start_index, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits) -> Tensor");
  m.def(
      "fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor? shapes_tensor, "
      "Tensor? level_start_index, Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
      "bool want_reference, bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)");
  // CPU only: elements with 16 random bits below the threshold become zero, the others are multiplied by scale.
  m.def("dropout(Tensor x, int threshold, int seed, float scale, Tensor(a!) output) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ms_deform_attn, CPU, m) {
  msda::Operators<msda::CpuBackend>::implement(m);
  m.impl("dropout", TORCH_BOX(&msda::dropout));
}

STABLE_TORCH_LIBRARY_IMPL(ms_deform_attn, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&msda::cpu_isa));
}
