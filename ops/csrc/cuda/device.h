// The GPU as a device for launches.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launches.h"

namespace msda {

class Gpu {
 public:
  // allocate: returns memory from PyTorch's allocator, which stays valid until the caller has finished its launches.
  Gpu(cudaStream_t stream, void* (*allocate)(void* context, int64_t bytes), void* context)
      : stream_(stream), allocate_(allocate), context_(context) {}

  void* allocate(int64_t bytes) { return allocate_(context_, bytes); }
  void zero(void* memory, int64_t bytes);

  template <typename Kernel>
  void launch(const Args& args, int64_t blocks, int32_t block, int64_t shared);

 private:
  void check(const char* kernel, const Args& args, int64_t blocks, int32_t block, int64_t shared);

  cudaStream_t stream_;
  void* (*allocate_)(void*, int64_t);
  void* context_;
};

// Defined in kernels_*.cu, one file per type so that they compile in parallel.
void run_f32(const Problem& p, const Options& options, bool backward, Gpu& gpu);
void run_f64(const Problem& p, const Options& options, bool backward, Gpu& gpu);
void run_f16(const Problem& p, const Options& options, bool backward, Gpu& gpu);
void run_bf16(const Problem& p, const Options& options, bool backward, Gpu& gpu);

#if defined(__CUDACC__)

template <typename Kernel>
__global__ void __launch_bounds__(256, Kernel::kBlocksPerSm) entry(const __grid_constant__ Args args) {
  extern __shared__ __align__(32) char memory[];
  Kernel::run(args, GpuThread{memory});
}

template <typename Kernel>
void Gpu::launch(const Args& args, int64_t blocks, int32_t block, int64_t shared) {
  entry<Kernel><<<unsigned(blocks), unsigned(block), size_t(shared), stream_>>>(args);
  check(Kernel::kName, args, blocks, block, shared);
}

#endif

}  // namespace msda
