// CUDA entry points: the dispatcher's implementations for CUDA tensors.
#include <cuda_runtime.h>

#include <tuple>

#include "../call.h"
#include "kernels.cuh"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

namespace msda {
namespace {

using Sizes = std::vector<int64_t>;
using MaybeTensor = std::optional<Tensor>;

Sizes size_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

Tensor allocate(const Tensor& like, const Sizes& size, ScalarType type) {
  return torch::stable::new_empty(like, {size.data(), size.size()}, type);
}

cudaStream_t stream_of(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

DeviceLevels device_levels(const Call& call, Tensor& keep) {
  DeviceLevels levels = {};
  if (call.shapes_on_device) {
    keep = torch::stable::contiguous(*call.inputs.levels.tensor);
    levels.shapes = static_cast<const int64_t*>(keep.const_data_ptr());
  } else {
    for (int32_t l = 0; l < call.problem.levels; ++l) {
      levels.height[l] = int32_t(call.problem.height[l]);
      levels.width[l] = int32_t(call.problem.width[l]);
    }
  }
  return levels;
}

bool rows_aligned(const Problem& p, int64_t element_size) {
  const int64_t strides[] = {p.value_stride_n, p.value_stride_s, p.value_stride_m};
  for (int64_t stride : strides) {
    if (stride * element_size % 16 != 0) return false;
  }
  return reinterpret_cast<uintptr_t>(p.value) % 16 == 0 && reinterpret_cast<uintptr_t>(p.grad_output) % 16 == 0 &&
         p.channels * element_size % 16 == 0;
}

template <typename T, typename P, int kVector>
void launch_forward(const Problem& p, const DeviceLevels& levels, const Plan& plan, cudaStream_t stream) {
  forward_kernel<T, P, kVector><<<unsigned(plan.blocks), plan.block, 0, stream>>>(p, levels, plan);
}
template <typename T, typename P, int kVector>
void launch_backward(const Problem& p, const DeviceLevels& levels, const Plan& plan, bool scatter,
                     cudaStream_t stream) {
  backward_kernel<T, P, kVector><<<unsigned(plan.blocks), plan.block, 0, stream>>>(p, levels, plan, scatter);
}

template <typename T, typename P>
struct Forward {
  static void run(const Problem& p, const DeviceLevels& levels, bool, cudaStream_t stream) {
    constexpr int kFull = 16 / int(sizeof(T));
    const Plan plan = make_plan(p, sizeof(T), rows_aligned(p, sizeof(T)));
    if (plan.items == 0) return;
    if (plan.vector == kFull) {
      launch_forward<T, P, kFull>(p, levels, plan, stream);
    } else {
      launch_forward<T, P, 1>(p, levels, plan, stream);
    }
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

template <typename T, typename P>
struct Backward {
  static void run(const Problem& p, const DeviceLevels& levels, bool deterministic, cudaStream_t stream) {
    constexpr int kFull = 16 / int(sizeof(T));
    const Plan plan = make_plan(p, sizeof(T), rows_aligned(p, sizeof(T)));
    if (plan.items == 0) return;
    if (plan.vector == kFull) {
      launch_backward<T, P, kFull>(p, levels, plan, !deterministic, stream);
    } else {
      launch_backward<T, P, 1>(p, levels, plan, !deterministic, stream);
    }
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    if (deterministic) {
      const int64_t owners = p.batch * p.heads * p.channels;
      ordered_scatter_kernel<T, P><<<unsigned((owners + 31) / 32), 32, 0, stream>>>(p, levels);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  }
};

template <template <typename, typename> class Pass>
void run_typed(const Problem& p, const DeviceLevels& levels, bool deterministic, cudaStream_t stream) {
  const bool same = p.point_type == p.value_type;
  switch (p.value_type) {
    case DType::kFloat32:
      return Pass<float, float>::run(p, levels, deterministic, stream);
    case DType::kFloat64:
      return Pass<double, double>::run(p, levels, deterministic, stream);
    case DType::kFloat16:
      return same ? Pass<Half, Half>::run(p, levels, deterministic, stream)
                  : Pass<Half, float>::run(p, levels, deterministic, stream);
    case DType::kBFloat16:
      return same ? Pass<BFloat16, BFloat16>::run(p, levels, deterministic, stream)
                  : Pass<BFloat16, float>::run(p, levels, deterministic, stream);
  }
}

Tensor run_forward(Inputs inputs) {
  const torch::stable::accelerator::DeviceGuard guard(inputs.value.get_device_index());
  Call call(std::move(inputs), true);
  Tensor output = allocate(call.inputs.value, call.output_size(), call.inputs.value.scalar_type());
  call.problem.output = output.mutable_data_ptr();
  Tensor keep;
  const DeviceLevels levels = device_levels(call, keep);
  run_typed<Forward>(call.problem, levels, false, stream_of(call.inputs.value));
  return output;
}

struct Gradients {
  Tensor value, xy, attention, reference;
};

Gradients run_backward(const Tensor& grad_output, Inputs inputs, bool want_reference, bool deterministic) {
  const torch::stable::accelerator::DeviceGuard guard(inputs.value.get_device_index());
  Call call(std::move(inputs), true);
  const Tensor grad = call.take_grad_output(grad_output);
  Problem& p = call.problem;
  const Tensor &value = call.inputs.value, &xy = call.inputs.xy, &attention = call.inputs.attention;
  const ScalarType type = value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Gradients g;
  const Sizes value_size = size_of(value);
  g.value = torch::stable::new_zeros(value, {value_size.data(), value_size.size()}, type);
  g.xy = allocate(xy, size_of(xy), xy.scalar_type());
  g.attention = allocate(attention, size_of(attention), attention.scalar_type());
  p.grad_value = g.value.mutable_data_ptr();
  p.grad_xy = g.xy.mutable_data_ptr();
  p.grad_attention = g.attention.mutable_data_ptr();
  if (p.source == PointSource::kOffsets) {
    const Sizes size = want_reference ? Sizes{p.batch, p.heads, p.queries, p.levels, p.ref_width} : Sizes{0};
    g.reference = allocate(value, size, type);
    if (want_reference) p.grad_reference = g.reference.mutable_data_ptr();
  }
  Tensor keep;
  const DeviceLevels levels = device_levels(call, keep);
  run_typed<Backward>(p, levels, deterministic, stream_of(value));
  if (type != value.scalar_type()) g.value = torch::stable::to(g.value, value.scalar_type());
  return g;
}

Tensor forward(const Tensor& value, Sizes sizes, MaybeTensor shapes, MaybeTensor start, const Tensor& locations,
               const Tensor& weights) {
  return run_forward({value, {std::move(sizes), shapes, start}, std::nullopt, locations, weights});
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& value, Sizes sizes,
                                            MaybeTensor shapes, MaybeTensor start, const Tensor& locations,
                                            const Tensor& weights, bool deterministic) {
  Gradients g = run_backward(grad_output, {value, {std::move(sizes), shapes, start}, std::nullopt, locations, weights},
                             false, deterministic);
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
                                                          bool deterministic) {
  Gradients g = run_backward(grad_output, {value, {std::move(sizes), shapes, start}, reference, offsets, logits},
                             want_reference, deterministic);
  return {g.value, g.reference, g.xy, g.attention};
}

}  // namespace
}  // namespace msda

STABLE_TORCH_LIBRARY_IMPL(ms_deform_attn, CUDA, m) {
  m.impl("forward", TORCH_BOX(&msda::forward));
  m.impl("backward", TORCH_BOX(&msda::backward));
  m.impl("fused_forward", TORCH_BOX(&msda::fused_forward));
  m.impl("fused_backward", TORCH_BOX(&msda::fused_backward));
}
