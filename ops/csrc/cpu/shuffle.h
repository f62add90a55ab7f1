// Movements of elements between registers: sums of registers, and conversion between pairs side by side in memory
// and one register per member.
#pragma once

#include "vec.h"

namespace msda {
namespace {

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

// Pairs (x0, y0, x1, y1, ...) in two registers to all x and all y, and back.
#if defined(__AVX512F__)
inline void split_pairs(Vec<float> a, Vec<float> b, Vec<float>& x, Vec<float>& y) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  x.v = _mm512_permutex2var_ps(a.v, even, b.v);
  y.v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b.v);
}
inline void join_pairs(Vec<float> x, Vec<float> y, Vec<float>& a, Vec<float>& b) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  a.v = _mm512_permutex2var_ps(x.v, low, y.v);
  b.v = _mm512_permutex2var_ps(x.v, _mm512_add_epi32(low, _mm512_set1_epi32(8)), y.v);
}
#elif defined(__AVX2__)
inline __m256 swap_middle(__m256 x) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8)); }
inline void split_pairs(Vec<float> a, Vec<float> b, Vec<float>& x, Vec<float>& y) {
  x.v = swap_middle(_mm256_shuffle_ps(a.v, b.v, 0x88));
  y.v = swap_middle(_mm256_shuffle_ps(a.v, b.v, 0xdd));
}
inline void join_pairs(Vec<float> x, Vec<float> y, Vec<float>& a, Vec<float>& b) {
  const __m256 low = _mm256_unpacklo_ps(x.v, y.v), high = _mm256_unpackhi_ps(x.v, y.v);
  a.v = _mm256_permute2f128_ps(low, high, 0x20);
  b.v = _mm256_permute2f128_ps(low, high, 0x31);
}
#else
inline void split_pairs(Vec<float> a, Vec<float> b, Vec<float>& x, Vec<float>& y) {
  x.v = Vec<float>::Raw{a.v[0], a.v[2], b.v[0], b.v[2]};
  y.v = Vec<float>::Raw{a.v[1], a.v[3], b.v[1], b.v[3]};
}
inline void join_pairs(Vec<float> x, Vec<float> y, Vec<float>& a, Vec<float>& b) {
  a.v = Vec<float>::Raw{x.v[0], y.v[0], x.v[1], y.v[1]};
  b.v = Vec<float>::Raw{x.v[2], y.v[2], x.v[3], y.v[3]};
}
#endif

// Element index[i] of a table of kWidth floats, for every element of the register.
inline Vec<float> look_up(Vec<float> table, const int32_t* index) {
#if defined(__AVX512F__)
  return {_mm512_permutexvar_ps(_mm512_loadu_si512(index), table.v)};
#elif defined(__AVX2__)
  return {_mm256_permutevar8x32_ps(table.v, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)))};
#else
  return {Vec<float>::Raw{table.v[index[0]], table.v[index[1]], table.v[index[2]], table.v[index[3]]}};
#endif
}

template <typename F>
inline float combine_all(Vec<float> x, F f) {
  float part[Vec<float>::kWidth];
  x.store(part);
  for (int half = Vec<float>::kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] = f(part[i], part[i + half]);
  }
  return part[0];
}
#if defined(__AVX512F__)
inline float sum_all(Vec<float> x) { return _mm512_reduce_add_ps(x.v); }
inline float largest_of(Vec<float> x) { return _mm512_reduce_max_ps(x.v); }
#else
inline float sum_all(Vec<float> x) {
  return combine_all(x, [](float a, float b) { return a + b; });
}
inline float largest_of(Vec<float> x) {
  return combine_all(x, [](float a, float b) { return a > b ? a : b; });
}
#endif

}  // namespace
}  // namespace msda
