// Operator entry points, templated on the backend. A backend provides a constructor Backend(Inputs, bool
// deterministic), a member `Call call`, and run(bool backward), which computes the outputs of the call.
#pragma once

#include <tuple>

#include "call.h"

namespace msda {

template <typename Backend>
struct Operators {
  using MaybeTensor = std::optional<Tensor>;

  struct Gradients {
    Tensor value, xy, attention, reference;
  };

  static Tensor run_forward(Inputs inputs) {
    Backend backend(std::move(inputs), false);
    Call& call = backend.call;
    Tensor output = new_tensor(call.inputs.value, call.output_size(), call.inputs.value.scalar_type());
    call.problem.output = output.mutable_data_ptr();
    backend.run(false);
    return output;
  }

  static Gradients run_backward(const Tensor& grad_output, Inputs inputs, bool want_reference, bool deterministic) {
    Backend backend(std::move(inputs), deterministic);
    Call& call = backend.call;
    Problem& p = call.problem;
    const Tensor grad = call.add_grad_output(grad_output);
    Gradients g = {new_like(call.inputs.value), new_like(call.inputs.xy), new_like(call.inputs.attention), {}};
    p.grad_value = g.value.mutable_data_ptr();
    p.grad_xy = g.xy.mutable_data_ptr();
    p.grad_attention = g.attention.mutable_data_ptr();
    if (p.source == PointSource::kOffsets) {
      const ScalarType type = p.value_type == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
      const Sizes sizes = want_reference ? Sizes{p.batch, p.heads, p.queries, p.levels, p.ref_width} : Sizes{0};
      g.reference = new_tensor(call.inputs.value, sizes, type);
      if (want_reference) p.grad_reference = g.reference.mutable_data_ptr();
    }
    backend.run(true);
    return g;
  }

  static Tensor forward(const Tensor& value, Sizes sizes, MaybeTensor shapes, MaybeTensor start,
                        const Tensor& locations, const Tensor& weights) {
    return run_forward({value, {std::move(sizes), shapes, start}, std::nullopt, locations, weights});
  }

  static std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& value, Sizes sizes,
                                                     MaybeTensor shapes, MaybeTensor start, const Tensor& locations,
                                                     const Tensor& weights, bool deterministic) {
    Inputs inputs = {value, {std::move(sizes), shapes, start}, std::nullopt, locations, weights};
    Gradients g = run_backward(grad_output, std::move(inputs), false, deterministic);
    return {g.value, g.xy, g.attention};
  }

  static Tensor fused_forward(const Tensor& value, Sizes sizes, MaybeTensor shapes, MaybeTensor start,
                              const Tensor& reference, const Tensor& offsets, const Tensor& logits) {
    return run_forward({value, {std::move(sizes), shapes, start}, reference, offsets, logits});
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward(const Tensor& grad_output, const Tensor& value,
                                                                   Sizes sizes, MaybeTensor shapes, MaybeTensor start,
                                                                   const Tensor& reference, const Tensor& offsets,
                                                                   const Tensor& logits, bool want_reference,
                                                                   bool deterministic) {
    Inputs inputs = {value, {std::move(sizes), shapes, start}, reference, offsets, logits};
    Gradients g = run_backward(grad_output, std::move(inputs), want_reference, deterministic);
    return {g.value, g.reference, g.xy, g.attention};
  }

  template <typename Library>
  static void implement(Library& m) {
    m.impl("forward", TORCH_BOX(&forward));
    m.impl("backward", TORCH_BOX(&backward));
    m.impl("fused_forward", TORCH_BOX(&fused_forward));
    m.impl("fused_backward", TORCH_BOX(&fused_backward));
  }
};

}  // namespace msda
