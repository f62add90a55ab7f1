// Registration of the operators for CUDA tensors: device, stream, buffers and launches.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../operators.h"
#include "device.h"

namespace msda {

void Gpu::check(const char* kernel, const Args& a, int64_t blocks, int32_t block, int64_t shared) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  fail("launching the kernel '", kernel, "' failed: ", cudaGetErrorString(error), " (", blocks, " blocks of ", block,
       " threads, ", shared, " bytes of shared memory; ", a.items, " items, M=", a.heads, ", D=", a.channels,
       ", L=", a.levels, ", K=", a.points, ", Q=", a.queries, ", S=", a.rows,
       "). This may be an error of an earlier kernel; run with CUDA_LAUNCH_BLOCKING=1 to locate it.");
}

void Gpu::zero(void* memory, int64_t bytes) {
  if (bytes == 0) return;
  const cudaError_t error = cudaMemsetAsync(memory, 0, size_t(bytes), stream_);
  if (error != cudaSuccess) fail("clearing ", bytes, " bytes on the GPU failed: ", cudaGetErrorString(error));
}

namespace {

// Temporary buffers of one call. PyTorch's allocator reuses their memory only for work that is queued later on the same
// stream, so they may be freed before the kernels have run.
struct Buffers {
  const Tensor& like;
  std::vector<Tensor> kept = {};

  static void* take(void* self, int64_t bytes) {
    Buffers& b = *static_cast<Buffers*>(self);
    b.kept.push_back(new_tensor(b.like, {bytes}, ScalarType::Byte));
    return b.kept.back().mutable_data_ptr();
  }
};

// Launches a call on the current stream of its device, which is the current device during the lifetime of this object.
struct GpuBackend {
  torch::stable::accelerator::DeviceGuard guard;
  Call call;
  Options options = {};
  Tensor shapes;

  GpuBackend(Inputs inputs, bool deterministic) : guard(device_of(inputs)), call(std::move(inputs)) {
    Problem& p = call.problem;
    options.deterministic = deterministic;
    if (call.shapes_on_device) {
      shapes = torch::stable::contiguous(*call.inputs.levels.tensor);
      options.shapes = static_cast<const int64_t*>(shapes.const_data_ptr());
    }
    if (p.rows > INT32_MAX / 4) fail("value has too many rows (dimension 1): ", p.rows);
    if (p.heads > INT32_MAX || p.channels > INT32_MAX || p.heads * p.channels > INT32_MAX / 16) {
      fail("value has too many channels: M=", p.heads, ", D=", p.channels);
    }
    // The kernels index the elements of an image with 32 bits, and images, heads and queries with 64.
    if (p.rows * p.heads * p.channels > INT32_MAX) {
      fail("value has too many elements per image: S=", p.rows, ", M=", p.heads, ", D=", p.channels);
    }
    if (p.rows * p.value_stride_s > INT32_MAX) make_value_dense();
  }

  // Makes rows of value M * D elements apart, like those of its gradient, as the backward kernels require.
  void make_value_dense() {
    Problem& p = call.problem;
    if (p.value_stride_s == p.heads * p.channels) return;
    Tensor& value = call.inputs.value;
    value = torch::stable::contiguous(value);
    if (value.stride(1) != p.heads * p.channels) {  // contiguous() returns a view with at most one row unchanged
      Tensor copy = new_like(value);
      torch::stable::copy_(copy, value);
      value = copy;
    }
    p.value = value.const_data_ptr();
    p.value_stride_n = value.stride(0);
    p.value_stride_s = value.stride(1);
    p.value_stride_m = value.stride(2);
  }

  static int32_t device_of(const Inputs& inputs) {
    if (!inputs.value.is_cuda()) fail("value must be on the GPU, like other arguments of this call");
    return inputs.value.get_device_index();
  }

  void run(bool backward) {
    if (backward) make_value_dense();
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

}  // namespace
}  // namespace msda

STABLE_TORCH_LIBRARY_IMPL(ms_deform_attn, CUDA, m) { msda::Operators<msda::GpuBackend>::implement(m); }
