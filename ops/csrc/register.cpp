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
}

STABLE_TORCH_LIBRARY_IMPL(ms_deform_attn, CPU, m) { msda::Operators<msda::CpuBackend>::implement(m); }

STABLE_TORCH_LIBRARY_IMPL(ms_deform_attn, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&msda::cpu_isa));
}
