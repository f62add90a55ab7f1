// Registration with PyTorch's dispatcher, through its stable ABI: this library links neither Python nor the C++
// classes of libtorch, so that one build serves every Python and every torch from 2.11 on.
#include <string>
#include <tuple>

#include "call.h"
#include "cpu/kernel_table.h"

namespace msda {
namespace {

using Sizes = std::vector<int64_t>;
using MaybeTensor = std::optional<Tensor>;

Tensor allocate(const Tensor& like, const Sizes& size, ScalarType type) {
  return torch::stable::new_empty(like, {size.data(), size.size()}, type);
}

Sizes size_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

Tensor run_forward(Inputs inputs) {
  Call call(std::move(inputs), false);
  Tensor output = allocate(call.inputs.value, call.output_size(), call.inputs.value.scalar_type());
  call.problem.output = output.mutable_data_ptr();
  if (!cpu_kernels().forward(call.problem)) fail("no CPU kernel for these element types");
  return output;
}

struct Gradients {
  Tensor value, xy, attention, reference;
};

Gradients run_backward(const Tensor& grad_output, Inputs inputs, bool want_reference) {
  Call call(std::move(inputs), false);
  const Tensor grad = call.take_grad_output(grad_output);
  Problem& p = call.problem;
  const Tensor &value = call.inputs.value, &xy = call.inputs.xy, &attention = call.inputs.attention;
  Gradients g;
  g.value = allocate(value, size_of(value), value.scalar_type());
  g.xy = allocate(xy, size_of(xy), xy.scalar_type());
  g.attention = allocate(attention, size_of(attention), attention.scalar_type());
  p.grad_value = g.value.mutable_data_ptr();
  p.grad_xy = g.xy.mutable_data_ptr();
  p.grad_attention = g.attention.mutable_data_ptr();
  if (p.source == PointSource::kOffsets) {
    const ScalarType type = value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    const Sizes size = want_reference ? Sizes{p.batch, p.heads, p.queries, p.levels, p.ref_width} : Sizes{0};
    g.reference = allocate(value, size, type);
    if (want_reference) p.grad_reference = g.reference.mutable_data_ptr();
  }
  if (!cpu_kernels().backward(p)) fail("no CPU kernel for these element types");
  return g;
}

Tensor forward(const Tensor& value, Sizes sizes, MaybeTensor shapes, MaybeTensor start, const Tensor& locations,
               const Tensor& weights) {
  return run_forward({value, {std::move(sizes), shapes, start}, std::nullopt, locations, weights});
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& value, Sizes sizes,
                                            MaybeTensor shapes, MaybeTensor start, const Tensor& locations,
                                            const Tensor& weights, bool /*deterministic: always*/) {
  Gradients g =
      run_backward(grad_output, {value, {std::move(sizes), shapes, start}, std::nullopt, locations, weights}, false);
  return {g.value, g.xy, g.attention};
}

Tensor fused_forward(const Tensor& value, Sizes sizes, MaybeTensor shapes, MaybeTensor start, const Tensor& reference,
                     const Tensor& offsets, const Tensor& logits) {
  return run_forward({value, {std::move(sizes), shapes, start}, reference, offsets, logits});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward(const Tensor& grad_output, const Tensor& value, Sizes sizes,
                                                          MaybeTensor shapes, MaybeTensor start,
                                                          const Tensor& reference, const Tensor& offsets,
                                                          const Tensor& logits, bool want_reference,
                                                          bool /*deterministic: always*/) {
  Gradients g =
      run_backward(grad_output, {value, {std::move(sizes), shapes, start}, reference, offsets, logits}, want_reference);
  return {g.value, g.reference, g.xy, g.attention};
}

std::string cpu_isa() { return cpu_kernels().name; }

}  // namespace
}  // namespace msda

// "spatial_shapes" holds h0, w0, h1, w1, ...; it is empty when "shapes_tensor" is given instead. The fused
// backward returns the gradient of the reference points per head, (N, M, Q, L, R), or nothing when unwanted.
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

STABLE_TORCH_LIBRARY_IMPL(ms_deform_attn, CPU, m) {
  m.impl("forward", TORCH_BOX(&msda::forward));
  m.impl("backward", TORCH_BOX(&msda::backward));
  m.impl("fused_forward", TORCH_BOX(&msda::fused_forward));
  m.impl("fused_backward", TORCH_BOX(&msda::fused_backward));
}

STABLE_TORCH_LIBRARY_IMPL(ms_deform_attn, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&msda::cpu_isa));
}
