// The dispatcher's implementations for CUDA tensors: checks, buffers, stream, launches.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "../call.h"
#include "gpu.h"

namespace msda {

void Gpu::check(const char* kernel, const Args& a, int64_t blocks, int32_t block, int64_t shared) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  fail("launching the kernel '", kernel, "' failed: ", cudaGetErrorString(error), " (", blocks, " blocks of ", block,
       " threads, ", shared, " bytes of shared memory; ", a.items, " items, M=", a.heads, ", D=", a.channels,
       ", L=", a.levels, ", K=", a.points, ", Q=", a.queries, ", S=", a.rows,
       "). An error of an earlier kernel may show here: CUDA_LAUNCH_BLOCKING=1 tells.");
}

void Gpu::zero(void* memory, int64_t bytes) {
  if (bytes == 0) return;
  const cudaError_t error = cudaMemsetAsync(memory, 0, size_t(bytes), stream_);
  if (error != cudaSuccess) fail("clearing ", bytes, " bytes on the GPU failed: ", cudaGetErrorString(error));
}

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

// Temporary buffers of one call. PyTorch's allocator hands their memory out again only to work that is queued later on
// the same stream, so they may be dropped before the kernels have run.
struct Buffers {
  const Tensor& like;
  std::vector<Tensor> kept = {};

  static void* take(void* self, int64_t bytes) {
    Buffers& b = *static_cast<Buffers*>(self);
    b.kept.push_back(allocate(b.like, {bytes}, ScalarType::Byte));
    return b.kept.back().mutable_data_ptr();
  }
};

// A call, ready to be launched on the current stream of its device, which is current while this lives.
struct GpuCall {
  torch::stable::accelerator::DeviceGuard guard;
  Call call;
  Options options = {};
  Tensor shapes;

  GpuCall(Inputs inputs, bool deterministic) : guard(device_of(inputs)), call(std::move(inputs), true) {
    Problem& p = call.problem;
    options.deterministic = deterministic;
    if (call.shapes_on_device) {
      if (call.inputs.levels.tensor->get_device_index() != call.inputs.value.get_device_index()) {
        fail("spatial_shapes must be integers, on the CPU, or on the device of value");
      }
      shapes = torch::stable::contiguous(*call.inputs.levels.tensor);
      options.shapes = static_cast<const int64_t*>(shapes.const_data_ptr());
    }
    if (p.rows > INT32_MAX / 4) fail("value has too many rows (dimension 1): ", p.rows);
    if (p.heads > INT32_MAX || p.channels > INT32_MAX || p.heads * p.channels > INT32_MAX / 16) {
      fail("value has too many channels: M=", p.heads, ", D=", p.channels);
    }
    // The kernels count the elements of an image in 32 bits, and images, heads and queries in 64.
    if (p.rows * p.heads * p.channels > INT32_MAX) {
      fail("value has too many elements per image: S=", p.rows, ", M=", p.heads, ", D=", p.channels);
    }
    if (p.rows * p.value_stride_s > INT32_MAX) make_value_dense();
  }

  // Rows M * D elements apart, as those of the gradient: the backward kernels rely on it.
  void make_value_dense() {
    Problem& p = call.problem;
    if (p.value_stride_s == p.heads * p.channels) return;
    Tensor& value = call.inputs.value;
    value = torch::stable::contiguous(value);
    if (value.stride(1) != p.heads * p.channels) {  // a view with one row, or none, may be as it is
      const Tensor copy = allocate(value, size_of(value), value.scalar_type());
      torch::stable::copy_(const_cast<Tensor&>(copy), value);
      value = copy;
    }
    p.value = value.const_data_ptr();
    p.value_stride_n = value.stride(0);
    p.value_stride_s = value.stride(1);
    p.value_stride_m = value.stride(2);
  }

  static int32_t device_of(const Inputs& inputs) {
    if (!inputs.value.is_cuda()) fail("value must be on the GPU, as other arguments of this call are");
    return inputs.value.get_device_index();
  }

  void run(bool backward) {
    const Tensor& value = call.inputs.value;
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(value.get_device_index(), &stream));
    Buffers buffers = {value};
    Gpu gpu(static_cast<cudaStream_t>(stream), Buffers::take, &buffers);
    switch (call.problem.value_type) {
      case DType::kFloat32:
        return run_f32(call.problem, options, backward, gpu);
      case DType::kFloat64:
        return run_f64(call.problem, options, backward, gpu);
      case DType::kFloat16:
        return run_f16(call.problem, options, backward, gpu);
      case DType::kBFloat16:
        return run_bf16(call.problem, options, backward, gpu);
    }
  }
};

Tensor run_forward(Inputs inputs) {
  GpuCall gpu(std::move(inputs), false);
  const Tensor& value = gpu.call.inputs.value;
  Tensor output = allocate(value, gpu.call.output_size(), value.scalar_type());
  gpu.call.problem.output = output.mutable_data_ptr();
  gpu.run(false);
  return output;
}

struct Gradients {
  Tensor value, xy, attention, reference;
};

Gradients run_backward(const Tensor& grad_output, Inputs inputs, bool want_reference, bool deterministic) {
  GpuCall gpu(std::move(inputs), deterministic);
  const Tensor grad = gpu.call.take_grad_output(grad_output);
  gpu.make_value_dense();
  Problem& p = gpu.call.problem;
  const Tensor &value = gpu.call.inputs.value, &xy = gpu.call.inputs.xy, &attention = gpu.call.inputs.attention;
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
  gpu.run(true);
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
