// One register of accumulators, in the instruction set of the translation unit that includes this header.
// Element types: float, double, and the 16-bit storage types Half and BFloat16, which load and store as float.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace msda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace {

// ---- scalar conversions -------------------------------------------------------------------------------

inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

inline float to_acc(float x) { return x; }
inline double to_acc(double x) { return x; }
inline float to_acc(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
inline float to_acc(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Shift exponent and mantissa into place; a multiplication repairs the exponent bias and denormals.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  const float scaled = bits_to_float(magnitude) * bits_to_float(0x77800000u);  // 2^112
  const uint32_t special = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;   // infinity and NaN
  return bits_to_float((special ? (magnitude | special) : float_to_bits(scaled)) | (uint32_t(x.bits & 0x8000u) << 16));
#endif
}

inline void from_acc(float x, float& out) { out = x; }
inline void from_acc(double x, double& out) { out = x; }
inline void from_acc(float x, BFloat16& out) {  // round to nearest, ties to even
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = x != x ? uint16_t(0x7fc0u) : uint16_t(rounded);
}
inline void from_acc(float x, Half& out) {
#if defined(__F16C__)
  out.bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    result = 0x7c00u;  // rounds to infinity
  } else if (magnitude < 0x38800000u) {
    // Denormal half: adding 0.5 aligns the mantissa and rounds it in hardware.
    result = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = uint16_t(sign | result);
#endif
}

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

// ---- vectors -------------------------------------------------------------------------------------------

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
  static Vec load(const Half* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Vec load(const BFloat16* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  float sum() const { return _mm512_reduce_add_ps(v); }
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
  double sum() const { return _mm512_reduce_add_pd(v); }
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
  float sum() const {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
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
  double sum() const {
    const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
  }
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
  float sum() const { return (v[0] + v[2]) + (v[1] + v[3]); }
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
  double sum() const { return v[0] + v[1]; }
};
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {a.v * b.v + c.v}; }

#endif

template <typename T>
inline void store_as(Vec<float> x, T* out) {  // 16-bit storage types
  float tmp[Vec<float>::kWidth];
  x.store(tmp);
  for (int i = 0; i < Vec<float>::kWidth; ++i) from_acc(tmp[i], out[i]);
}
inline void store_as(Vec<float> x, float* out) { x.store(out); }
inline void store_as(Vec<double> x, double* out) { x.store(out); }

}  // namespace
}  // namespace msda
