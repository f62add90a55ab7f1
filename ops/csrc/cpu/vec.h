// One register of accumulators, in the instruction set of the translation unit that includes this header.
// 16-bit element types load and store as float.
#pragma once

#include "scalar.h"

#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace msda {
namespace {

template <typename A>
struct Vec;

#if defined(__AVX512F__)

template <>
struct Vec<float> {
  static constexpr int kWidth = 16;
  __m512 v;
  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  static Vec load(const BFloat16* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(Half* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

template <>
struct Vec<double> {
  static constexpr int kWidth = 8;
  __m512d v;
  static Vec zero() { return {_mm512_setzero_pd()}; }
  static Vec broadcast(double x) { return {_mm512_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
};
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }

#elif defined(__AVX2__)

template <>
struct Vec<float> {
  static constexpr int kWidth = 8;
  __m256 v;
  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const Half* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
  static Vec load(const BFloat16* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16))};
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(Half* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }

template <>
struct Vec<double> {
  static constexpr int kWidth = 4;
  __m256d v;
  static Vec zero() { return {_mm256_setzero_pd()}; }
  static Vec broadcast(double x) { return {_mm256_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
};
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }

#else  // 16-byte vectors of the compiler: SSE2, NEON or whatever the platform guarantees

template <>
struct Vec<float> {
  static constexpr int kWidth = 4;
  typedef float Raw __attribute__((vector_size(16)));
  Raw v;
  static Vec zero() { return {Raw{0, 0, 0, 0}}; }
  static Vec broadcast(float x) { return {Raw{x, x, x, x}}; }
  static Vec load(const float* p) {
    Vec r;
    std::memcpy(&r.v, p, 16);
    return r;
  }
  template <typename H>
  static Vec load(const H* p) {
    return {Raw{to_acc(p[0]), to_acc(p[1]), to_acc(p[2]), to_acc(p[3])}};
  }
  void store(float* p) const { std::memcpy(p, &v, 16); }
  void store(Half* p) const {
    for (int i = 0; i < kWidth; ++i) from_acc(v[i], p[i]);
  }
};
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__ARM_NEON)
  return {Vec<float>::Raw(vfmaq_f32(float32x4_t(c.v), float32x4_t(a.v), float32x4_t(b.v)))};
#else
  return {a.v * b.v + c.v};
#endif
}

template <>
struct Vec<double> {
  static constexpr int kWidth = 2;
  typedef double Raw __attribute__((vector_size(16)));
  Raw v;
  static Vec zero() { return {Raw{0, 0}}; }
  static Vec broadcast(double x) { return {Raw{x, x}}; }
  static Vec load(const double* p) {
    Vec r;
    std::memcpy(&r.v, p, 16);
    return r;
  }
  void store(double* p) const { std::memcpy(p, &v, 16); }
};
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {a.v * b.v + c.v}; }

#endif

template <typename A>
inline Vec<A> operator+(Vec<A> a, Vec<A> b) {
  return {a.v + b.v};
}

inline void store_as(Vec<float> x, BFloat16* out) {
  float tmp[Vec<float>::kWidth];
  x.store(tmp);
  for (int i = 0; i < Vec<float>::kWidth; ++i) from_acc(tmp[i], out[i]);
}
inline void store_as(Vec<float> x, Half* out) { x.store(out); }
inline void store_as(Vec<float> x, float* out) { x.store(out); }
inline void store_as(Vec<double> x, double* out) { x.store(out); }

// Two registers of channels at once, in whatever order suits the element type; store_two() undoes the order.
template <typename T, typename A>
inline void load_two(const T* p, Vec<A>& a, Vec<A>& b) {
  a = Vec<A>::load(p);
  b = Vec<A>::load(p + Vec<A>::kWidth);
}
template <typename T, typename A>
inline void store_two(Vec<A> a, Vec<A> b, T* p) {
  store_as(a, p);
  store_as(b, p + Vec<A>::kWidth);
}

// A bfloat16 is the upper half of a float: of a register of pairs, a shift leaves the even channels and a mask the
// odd ones. Unpacking them in order would take a shuffle and two conversions for every row.
typedef uint32_t Bits __attribute__((vector_size(4 * Vec<float>::kWidth)));
template <>
inline void load_two(const BFloat16* p, Vec<float>& even, Vec<float>& odd) {
  Bits pairs;
  std::memcpy(&pairs, p, sizeof(pairs));
  const Bits low = pairs << 16, high = pairs & 0xffff0000u;
  std::memcpy(&even.v, &low, sizeof(low));
  std::memcpy(&odd.v, &high, sizeof(high));
}
// The bits of x rounded to bfloat16 (nearest, ties to even), in the upper half of each element.
inline Bits round_to_bfloat16(Vec<float> x) {
  Bits bits;
  std::memcpy(&bits, &x.v, sizeof(bits));
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  const Bits nan = Bits((bits & 0x7fffffffu) > 0x7f800000u);
  return (rounded & ~nan) | (nan & 0x7fc00000u);
}
template <>
inline void store_two(Vec<float> even, Vec<float> odd, BFloat16* p) {
  const Bits pairs = (round_to_bfloat16(even) >> 16) | round_to_bfloat16(odd);
  std::memcpy(p, &pairs, sizeof(pairs));
}

}  // namespace
}  // namespace msda
