// Differences between a GPU and the host: 16-byte accesses, atomic addition, and the `Thread` type, through which
// kernels get their position in the grid, synchronize and exchange values.
//
// Kernels are templates over Thread. The GPU's is here; tests/ops/emulation has one that runs a block's threads as
// coroutines, so that the kernels themselves, shuffles and barriers included, are tested without a GPU.
#pragma once

#include <cmath>
#include <cstring>

#include "../problem.h"

#if defined(__CUDACC__)
#undef NDEBUG  // kernels report errors through assert()
#include <cassert>
#define MSDA_DEVICE __device__ __forceinline__
#define MSDA_UNROLL(n) _Pragma(MSDA_TEXT(unroll n))
#else
#define MSDA_DEVICE inline
#define MSDA_UNROLL(n)
#endif
#define MSDA_TEXT(x) #x

namespace msda {

// kCount elements, read and written in one access.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];
};

#if defined(__CUDACC__)
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};
#endif

template <int kCount, typename T>
MSDA_DEVICE Pack<T, kCount> load_pack(const void* address) {
#if defined(__CUDACC__)
  // Uses the read-only path, which is valid because kernels never write to memory that they read this way.
  using Raw = typename WordOf<sizeof(T) * kCount>::type;
  const Raw raw = __ldg(static_cast<const Raw*>(address));
  Pack<T, kCount> pack;
  memcpy(&pack, &raw, sizeof(pack));
  return pack;
#else
  return *static_cast<const Pack<T, kCount>*>(address);  // the emulation checks alignment here (-fsanitize=alignment)
#endif
}

// Hides the origin of a pointer from the compiler, which would otherwise recompute it from the kernel's arguments at
// every use.
template <typename T>
MSDA_DEVICE T* opaque(T* pointer) {
#if defined(__CUDACC__)
  asm volatile("" : "+l"(pointer));
#endif
  return pointer;
}

template <int kCount, typename T>
MSDA_DEVICE void store_pack(const Pack<T, kCount>& pack, void* address) {
  *static_cast<Pack<T, kCount>*>(address) = pack;
}

#if defined(__CUDACC__)

struct GpuThread {
  char* memory;

  MSDA_DEVICE int64_t block() const { return blockIdx.x; }
  MSDA_DEVICE int64_t blocks() const { return gridDim.x; }
  MSDA_DEVICE int32_t index() const { return int32_t(threadIdx.x); }
  MSDA_DEVICE int32_t block_size() const { return int32_t(blockDim.x); }
  MSDA_DEVICE char* shared() const { return memory; }
  // Must be called by all threads of the warp or block.
  MSDA_DEVICE void sync_warp() const { __syncwarp(); }
  MSDA_DEVICE void sync_block() const { __syncthreads(); }
  template <typename A>
  MSDA_DEVICE A shuffle_xor(A x, int32_t mask) const {
    return __shfl_xor_sync(0xffffffffu, x, mask);
  }
  MSDA_DEVICE uint32_t ballot(bool x) const { return __ballot_sync(0xffffffffu, x); }

  // Adds weight * x to `pack`, atomically per element.
  template <int kCount, typename A>
  MSDA_DEVICE void add(Pack<A, kCount>& pack, A weight, const A (&x)[kCount]) const {
    A* const target = pack.at;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    constexpr bool kWide = sizeof(A) == 4 && kCount % 4 == 0;  // one 16-byte reduction instead of four
#else
    constexpr bool kWide = false;
#endif
    if constexpr (kWide) {
      MSDA_UNROLL()
      for (int i = 0; i < kCount; i += 4) {
        asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target + i), "f"(weight * x[i]),
                     "f"(weight * x[i + 1]), "f"(weight * x[i + 2]), "f"(weight * x[i + 3])
                     : "memory");
      }
    } else {
      MSDA_UNROLL()
      for (int i = 0; i < kCount; ++i) atomicAdd(target + i, weight * x[i]);
    }
  }

  // As in PyTorch's own kernels, an error on the GPU invalidates the context and is reported by a later call.
  MSDA_DEVICE void check_shapes(bool spatial_shapes_are_positive_and_add_up_to_the_rows_of_value) const {
    assert(spatial_shapes_are_positive_and_add_up_to_the_rows_of_value);
  }
};

#endif

}  // namespace msda
