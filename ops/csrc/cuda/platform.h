// The few things that differ between a GPU and the host: element types, 16-byte access, atomic addition, and the
// functions of a thread (`Thread`) by which kernels know their place and talk to their neighbours.
//
// Kernels are templates over a Thread type. The GPU's is here; tests/ops/emulation has one that runs a block's threads
// as coroutines, so that the kernels themselves, shuffles and barriers included, are tested without a GPU.
#pragma once

#include "../problem.h"

#if defined(__CUDACC__)
#undef NDEBUG  // assert() is how a kernel reports an error
#include <cassert>
#define MSDA_DEVICE __device__ __forceinline__
#define MSDA_UNROLL(n) _Pragma(MSDA_TEXT(unroll n))
#else
#include <cmath>
#include <cstring>

#include "../cpu/vec.h"
#define MSDA_DEVICE inline
#define MSDA_UNROLL(n)
#endif
#define MSDA_TEXT(x) #x

namespace msda {

#if defined(__CUDACC__)

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <typename T>
using Acc = typename AccOf<T>::type;

MSDA_DEVICE float to_acc(float x) { return x; }
MSDA_DEVICE double to_acc(double x) { return x; }
MSDA_DEVICE float to_acc(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
MSDA_DEVICE float to_acc(Half x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}
MSDA_DEVICE void from_acc(float x, float& out) { out = x; }
MSDA_DEVICE void from_acc(double x, double& out) { out = x; }
MSDA_DEVICE void from_acc(float x, Half& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }
MSDA_DEVICE void from_acc(float x, BFloat16& out) {  // to nearest, ties to even; cvt.rn.bf16 needs sm_80
  const uint32_t bits = __float_as_uint(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = x != x ? uint16_t(0x7fc0u) : uint16_t(rounded);
}
MSDA_DEVICE float add_rounded(float a, float b) { return __fadd_rn(a, b); }
MSDA_DEVICE double add_rounded(double a, double b) { return __dadd_rn(a, b); }
MSDA_DEVICE float exp_of(float x) { return expf(x); }
MSDA_DEVICE double exp_of(double x) { return exp(x); }

#else

inline float add_rounded(float a, float b) { return a + b; }
inline double add_rounded(double a, double b) { return a + b; }
inline float exp_of(float x) { return std::exp(x); }
inline double exp_of(double x) { return std::exp(x); }

#endif

// kCount elements that are read and written in one access.
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
  // Through the read-only path: nothing that a kernel reads this way is written while it runs.
  using Raw = typename WordOf<sizeof(T) * kCount>::type;
  const Raw raw = __ldg(static_cast<const Raw*>(address));
  Pack<T, kCount> pack;
  memcpy(&pack, &raw, sizeof(pack));
  return pack;
#else
  return *static_cast<const Pack<T, kCount>*>(address);  // the emulation checks alignment here (-fsanitize=alignment)
#endif
}
// A pointer that the compiler takes as it is, instead of computing it anew from kernel arguments at every use.
template <typename T>
MSDA_DEVICE T* settled(T* pointer) {
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
  // All threads of the warp, or of the block, must arrive at these together.
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

  // As in PyTorch's own kernels, an error found on the GPU stops the context: the host hears of it later.
  MSDA_DEVICE void check_shapes(bool spatial_shapes_are_positive_and_add_up_to_the_rows_of_value) const {
    assert(spatial_shapes_are_positive_and_add_up_to_the_rows_of_value);
  }
};

#endif

}  // namespace msda
