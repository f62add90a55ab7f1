// One register of accumulators, in the instruction set of the translation unit that includes this header.
// Element types: float, double, and the 16-bit storage types Half and BFloat16, which load and store as float.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
// GCC 12 believes that its own AVX-512 intrinsics read uninitialised registers (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
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
  static Vec load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  static Vec load(const BFloat16* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
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

// Sums of four vectors, side by side: out = {sum a, sum b, sum c, sum d}, or added to out.
#if defined(__AVX2__)
inline __m256 fold(Vec<float> x) {
#if defined(__AVX512F__)
  return _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
#else
  return x.v;
#endif
}
inline void sum_four(Vec<float> a, Vec<float> b, Vec<float> c, Vec<float> d, bool add, float* out) {
  const __m256 a8 = fold(a), b8 = fold(b), c8 = fold(c), d8 = fold(d);
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a8, b8), _mm256_unpackhi_ps(a8, b8));  // a b a b | a b a b
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c8, d8), _mm256_unpackhi_ps(c8, d8));
  const __m256 low = _mm256_shuffle_ps(ab, cd, 0x44), high = _mm256_shuffle_ps(ab, cd, 0xee);
  const __m256 abcd = _mm256_add_ps(low, high);  // a b c d | a b c d
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
  if (add) sum = _mm_add_ps(sum, _mm_loadu_ps(out));
  _mm_storeu_ps(out, sum);
}
inline __m256d fold(Vec<double> x) {
#if defined(__AVX512F__)
  return _mm256_add_pd(_mm512_castpd512_pd256(x.v), _mm512_extractf64x4_pd(x.v, 1));
#else
  return x.v;
#endif
}
inline void sum_four(Vec<double> a, Vec<double> b, Vec<double> c, Vec<double> d, bool add, double* out) {
  const __m256d ab = _mm256_hadd_pd(fold(a), fold(b));  // a b | a b
  const __m256d cd = _mm256_hadd_pd(fold(c), fold(d));
  const __m256d low = _mm256_permute2f128_pd(ab, cd, 0x20), high = _mm256_permute2f128_pd(ab, cd, 0x31);
  __m256d sum = _mm256_add_pd(low, high);
  if (add) sum = _mm256_add_pd(sum, _mm256_loadu_pd(out));
  _mm256_storeu_pd(out, sum);
}
#else
template <typename A>
inline void sum_four(Vec<A> a, Vec<A> b, Vec<A> c, Vec<A> d, bool add, A* out) {
  const Vec<A> all[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    A sum = 0;
    for (int j = 0; j < Vec<A>::kWidth; ++j) sum += all[i].v[j];
    out[i] = add ? out[i] + sum : sum;
  }
}
#endif

// Turns four vectors of points, each holding the four values of its points side by side, into one vector per value.
// Position of point p's four values, so that afterwards the points are in order: dot_slot(p).
#if defined(__AVX512F__)
inline void transpose_four(const float* in, float* out0, float* out1, float* out2, float* out3) {
  const __m512 a = _mm512_loadu_ps(in), b = _mm512_loadu_ps(in + 16);
  const __m512 c = _mm512_loadu_ps(in + 32), d = _mm512_loadu_ps(in + 48);
  const __m512 ab_low = _mm512_unpacklo_ps(a, b), ab_high = _mm512_unpackhi_ps(a, b);
  const __m512 cd_low = _mm512_unpacklo_ps(c, d), cd_high = _mm512_unpackhi_ps(c, d);
  _mm512_storeu_ps(out0, _mm512_shuffle_ps(ab_low, cd_low, 0x44));
  _mm512_storeu_ps(out1, _mm512_shuffle_ps(ab_low, cd_low, 0xee));
  _mm512_storeu_ps(out2, _mm512_shuffle_ps(ab_high, cd_high, 0x44));
  _mm512_storeu_ps(out3, _mm512_shuffle_ps(ab_high, cd_high, 0xee));
}
#elif defined(__AVX2__)
inline void transpose_four(const float* in, float* out0, float* out1, float* out2, float* out3) {
  const __m256 a = _mm256_loadu_ps(in), b = _mm256_loadu_ps(in + 8);
  const __m256 c = _mm256_loadu_ps(in + 16), d = _mm256_loadu_ps(in + 24);
  const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  _mm256_storeu_ps(out0, _mm256_shuffle_ps(ab_low, cd_low, 0x44));
  _mm256_storeu_ps(out1, _mm256_shuffle_ps(ab_low, cd_low, 0xee));
  _mm256_storeu_ps(out2, _mm256_shuffle_ps(ab_high, cd_high, 0x44));
  _mm256_storeu_ps(out3, _mm256_shuffle_ps(ab_high, cd_high, 0xee));
}
#else
inline void transpose_four(const float* in, float* out0, float* out1, float* out2, float* out3) {
  for (int i = 0; i < 4; ++i) {
    out0[i] = in[4 * i];
    out1[i] = in[4 * i + 1];
    out2[i] = in[4 * i + 2];
    out3[i] = in[4 * i + 3];
  }
}
#endif
inline void transpose_four(const double* in, double* out0, double* out1, double* out2, double* out3) {
  *out0 = in[0];
  *out1 = in[1];
  *out2 = in[2];
  *out3 = in[3];
}

template <typename A>
inline int64_t dot_slot(int64_t point);
template <>
inline int64_t dot_slot<float>(int64_t point) {
  constexpr int64_t kWidth = Vec<float>::kWidth;
  return point / kWidth * kWidth * 4 + point % 4 * kWidth + point % kWidth / 4 * 4;
}
template <>
inline int64_t dot_slot<double>(int64_t point) {
  return point * 4;
}

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
