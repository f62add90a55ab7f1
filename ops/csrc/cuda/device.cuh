// The few operations that differ between a GPU and the host emulation of tests/ops (-DMSDA_EMULATE).
#pragma once

#include "../problem.h"

#if defined(MSDA_EMULATE)
#include <cmath>
#include <cstring>

#include "../cpu/vec.h"

#define MSDA_DEVICE inline
#define MSDA_GLOBAL inline
#define MSDA_GRID_CONSTANT

namespace msda {

// The emulation runs one thread at a time, so it gives every item a single lane.
extern int64_t emulated_block;
extern int32_t emulated_thread, emulated_block_size;
inline int64_t block_index() { return emulated_block; }
inline int32_t thread_index() { return emulated_thread; }
inline int32_t block_size() { return emulated_block_size; }
inline float exp_of(float x) { return std::exp(x); }
inline double exp_of(double x) { return std::exp(x); }
template <typename A>
A sum_over_lanes(A x, int32_t) {
  return x;
}
template <int kVector, typename T>
void load_vector(const T* p, T (&out)[kVector]) {
  std::memcpy(out, p, sizeof(out));
}
template <int kVector, typename T>
void store_vector(const T (&x)[kVector], T* p) {
  std::memcpy(p, x, sizeof(x));
}
template <int kVector, typename A>
void add_vector(A* p, A weight, const A (&x)[kVector]) {
  for (int v = 0; v < kVector; ++v) p[v] += weight * x[v];
}

}  // namespace msda

#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define MSDA_DEVICE __device__ __forceinline__
#define MSDA_GLOBAL __global__
#define MSDA_GRID_CONSTANT __grid_constant__

namespace msda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

MSDA_DEVICE int64_t block_index() { return blockIdx.x; }
MSDA_DEVICE int32_t thread_index() { return int32_t(threadIdx.x); }
MSDA_DEVICE int32_t block_size() { return int32_t(blockDim.x); }
MSDA_DEVICE float exp_of(float x) { return expf(x); }
MSDA_DEVICE double exp_of(double x) { return exp(x); }
MSDA_DEVICE float to_acc(float x) { return x; }
MSDA_DEVICE double to_acc(double x) { return x; }
MSDA_DEVICE float to_acc(Half x) { return __half2float(x); }
MSDA_DEVICE float to_acc(BFloat16 x) { return __bfloat162float(x); }
MSDA_DEVICE void from_acc(float x, float& out) { out = x; }
MSDA_DEVICE void from_acc(double x, double& out) { out = x; }
MSDA_DEVICE void from_acc(float x, Half& out) { out = __float2half_rn(x); }
MSDA_DEVICE void from_acc(float x, BFloat16& out) { out = __float2bfloat16_rn(x); }

// Sum over the `lanes` neighbouring threads of an item, a power of two; all of them get it.
template <typename A>
MSDA_DEVICE A sum_over_lanes(A x, int32_t lanes) {
  // Only the item's own lanes take part: neighbouring items of the warp may have left the loop.
  const unsigned group = lanes == 32 ? 0xffffffffu : ((1u << lanes) - 1u) << (threadIdx.x % 32 / lanes * lanes);
  for (int32_t step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(group, x, step);
  return x;
}

template <int kBytes>
struct alignas(kBytes) Bytes {
  unsigned char data[kBytes];
};
template <int kVector, typename T>
MSDA_DEVICE void load_vector(const T* p, T (&out)[kVector]) {
  using Raw = Bytes<kVector* int(sizeof(T))>;
  *reinterpret_cast<Raw*>(out) = *reinterpret_cast<const Raw*>(p);
}
template <int kVector, typename T>
MSDA_DEVICE void store_vector(const T (&x)[kVector], T* p) {
  using Raw = Bytes<kVector* int(sizeof(T))>;
  *reinterpret_cast<Raw*>(p) = *reinterpret_cast<const Raw*>(x);
}

template <int kVector, typename A>
MSDA_DEVICE void add_vector(A* p, A weight, const A (&x)[kVector]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr int kStep = sizeof(A) == 4 && kVector % 4 == 0 ? 4 : 1;  // one 16-byte reduction instead of four
#else
  constexpr int kStep = 1;
#endif
#pragma unroll
  for (int v = 0; v < kVector; v += kStep) {
    if constexpr (kStep == 4) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      atomicAdd(reinterpret_cast<float4*>(p + v),
                make_float4(weight * x[v], weight * x[v + 1], weight * x[v + 2], weight * x[v + 3]));
#endif
    } else {
      atomicAdd(p + v, weight * x[v]);
    }
  }
}

}  // namespace msda
#endif
