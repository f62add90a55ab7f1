// SIMD vectors: the compiler's own vector types, as wide as a register of this translation unit's instruction
// set. Arithmetic, comparisons and `condition ? a : b` are built into them. This header adds loads and
// stores, which convert 16-bit elements to and from float, fused multiply-add, and permutations of elements.
#pragma once

#if defined(__AVX2__)
// GCC 12 reports registers in its own AVX-512 intrinsics as uninitialized (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <cstring>
#include <utility>

#include "../problem.h"
#include "../sampling.h"

namespace msda {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else  // SSE2, NEON, or whatever the platform guarantees
constexpr int kVectorBytes = 16;
#endif
typedef float FloatVec __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVec __attribute__((vector_size(kVectorBytes)));
typedef int32_t IntVec __attribute__((vector_size(kVectorBytes)));
typedef uint32_t BitVec __attribute__((vector_size(kVectorBytes)));
typedef uint16_t ShortVec __attribute__((vector_size(kVectorBytes / 2)));

// Elements of type A in a vector.
template <typename A>
constexpr int kWidth = kVectorBytes / int(sizeof(A));

// Vector of accumulators of type A.
template <typename A>
struct VecOf {
  using type = FloatVec;
};
template <>
struct VecOf<double> {
  using type = DoubleVec;
};
template <typename A>
using Vec = typename VecOf<A>::type;

// The type in which sampling points are computed: vectors of floats, but double one by one.
template <typename A>
struct PointVecOf {
  using type = A;
};
template <>
struct PointVecOf<float> {
  using type = FloatVec;
};
template <typename A>
using PointVec = typename PointVecOf<A>::type;

template <>
struct IntOf<FloatVec> {
  using type = IntVec;
};

// Loads a vector, or a single number, of type V; no alignment needed.
template <typename V, typename T>
MSDA_HOST_DEVICE V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <typename V, typename U>
MSDA_HOST_DEVICE V bit_cast(U u) {
  static_assert(sizeof(V) == sizeof(U), "");
  return load_as<V>(&u);
}

// x - 0 is x, also for a negative zero, and compiles to a broadcast.
inline FloatVec broadcast(float x) { return x - FloatVec{}; }
inline DoubleVec broadcast(double x) { return x - DoubleVec{}; }

inline FloatVec load(const float* p) { return load_as<FloatVec>(p); }
inline DoubleVec load(const double* p) { return load_as<DoubleVec>(p); }
inline FloatVec load(const BFloat16* p) {  // a bfloat16 is the upper half of a float
  return bit_cast<FloatVec>(__builtin_convertvector(load_as<ShortVec>(p), BitVec) << 16);
}
inline FloatVec load(const Half* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load_as<__m256i>(p));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(load_as<__m128i>(p));
#else
  return FloatVec{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
#endif
}

// Bits of x rounded to bfloat16 (nearest, ties to even) in the upper half of each element.
inline BitVec round_to_bfloat16(FloatVec x) {
  const BitVec bits = bit_cast<BitVec>(x);
  const BitVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  const BitVec nan = BitVec((bits & 0x7fffffffu) > 0x7f800000u);
  return (rounded & ~nan) | (nan & 0x7fc00000u);
}

template <typename V, typename T>
MSDA_HOST_DEVICE void store(V v, T* p) {
  static_assert(sizeof(T) >= 4, "16-bit elements are converted by the overloads");
  std::memcpy(static_cast<void*>(p), &v, sizeof(V));
}
inline void store(float x, float* p) { *p = x; }
inline void store(double x, double* p) { *p = x; }
inline void store(FloatVec v, BFloat16* p) {
  const ShortVec halves = __builtin_convertvector(round_to_bfloat16(v) >> 16, ShortVec);
  std::memcpy(static_cast<void*>(p), &halves, sizeof(halves));
}
inline void store(FloatVec v, Half* p) {
#if defined(__AVX512F__)
  const __m256i halves = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(static_cast<void*>(p), &halves, sizeof(halves));
#elif defined(__AVX2__)
  const __m128i halves = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(static_cast<void*>(p), &halves, sizeof(halves));
#else
  for (int i = 0; i < kWidth<float>; ++i) p[i] = Half(v[i]);
#endif
}

// Two vectors of adjacent channels, in the order that is cheapest for the element type; store_two() undoes the order.
template <typename T, typename V>
inline void load_two(const T* p, V& a, V& b) {
  a = load(p);
  b = load(p + kWidth<Acc<T>>);
}
template <typename T, typename V>
inline void store_two(V a, V b, T* p) {
  store(a, p);
  store(b, p + kWidth<Acc<T>>);
}
// In a register of bfloat16 pairs a shift leaves the even channels and a mask the odd ones. Unpacking them in order
// would take a shuffle and two conversions for every row.
template <>
inline void load_two(const BFloat16* p, FloatVec& even, FloatVec& odd) {
  const BitVec pairs = load_as<BitVec>(p);
  even = bit_cast<FloatVec>(pairs << 16);
  odd = bit_cast<FloatVec>(pairs & 0xffff0000u);
}
template <>
inline void store_two(FloatVec even, FloatVec odd, BFloat16* p) {
  const BitVec pairs = (round_to_bfloat16(even) >> 16) | round_to_bfloat16(odd);
  std::memcpy(static_cast<void*>(p), &pairs, sizeof(pairs));
}

// Copies a cache line to an aligned address, past the caches if the instruction set allows it: the line is not read
// first and does not evict others. finish_streams() orders these stores before all later ones.
constexpr int kLine = 64;
inline void stream_line(const char* from, char* to) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), load_as<__m512i>(from));
#elif defined(__AVX2__)
  for (int i = 0; i < kLine; i += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), load_as<__m256i>(from + i));
#elif defined(__SSE2__)
  for (int i = 0; i < kLine; i += 16) _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), load_as<__m128i>(from + i));
#else
  std::memcpy(to, from, kLine);
#endif
}
template <typename T>
inline void stream(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; i += kLine / int(sizeof(T))) {
    stream_line(reinterpret_cast<const char*>(from + i), reinterpret_cast<char*>(to + i));
  }
}
#if defined(__SSE2__)
constexpr bool kStreams = true;
inline void finish_streams() { _mm_sfence(); }
#else
constexpr bool kStreams = false;
inline void finish_streams() {}
#endif

// Returns whether rows of a result are streamed. Large results do not stay in the cache anyway, and would evict the
// rows that are gathered.
inline bool is_worth_streaming(const void* result, int64_t row_bytes, int64_t bytes) {
  return kStreams && row_bytes % kLine == 0 && reinterpret_cast<uintptr_t>(result) % kLine == 0 &&
         bytes >= int64_t(4) << 20;
}

// a * b + c, fused where the instruction set has it.
#if defined(__AVX512F__)
inline FloatVec fma(FloatVec a, FloatVec b, FloatVec c) { return _mm512_fmadd_ps(a, b, c); }
inline DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__AVX2__)
inline FloatVec fma(FloatVec a, FloatVec b, FloatVec c) { return _mm256_fmadd_ps(a, b, c); }
inline DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) { return _mm256_fmadd_pd(a, b, c); }
#else
#if defined(__ARM_NEON)
inline FloatVec fma(FloatVec a, FloatVec b, FloatVec c) {
  return FloatVec(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
}
#else
inline FloatVec fma(FloatVec a, FloatVec b, FloatVec c) { return a * b + c; }
#endif
inline DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) { return a * b + c; }
#endif

template <>
MSDA_HOST_DEVICE IntVec floor_to_int(FloatVec x, FloatVec& floored) {
  const IntVec toward_zero = __builtin_convertvector(x, IntVec);
  const IntVec down = toward_zero + (x < __builtin_convertvector(toward_zero, FloatVec));  // a comparison gives 0 or -1
  floored = __builtin_convertvector(down, FloatVec);
  return down;
}

// Selects elements of the concatenation of a and b, in the order of `index`.
template <int... index>
inline FloatVec shuffle(FloatVec a, FloatVec b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, index...);
#else
  return __builtin_shuffle(a, b, IntVec{index...});
#endif
}
template <int... i>
using Indices = std::integer_sequence<int, i...>;
constexpr std::make_integer_sequence<int, kWidth<float>> kIndices{};

// Splits pairs (x0, y0, x1, y1, ...) in two vectors into all x and all y, and the reverse.
template <int... i>
inline void split_pairs(FloatVec a, FloatVec b, FloatVec& x, FloatVec& y, Indices<i...>) {
  x = shuffle<(2 * i)...>(a, b);
  y = shuffle<(2 * i + 1)...>(a, b);
}
template <int... i>
inline void join_pairs(FloatVec x, FloatVec y, FloatVec& a, FloatVec& b, Indices<i...>) {
  a = shuffle<(i / 2 + i % 2 * kWidth<float>)...>(x, y);
  b = shuffle<(i / 2 + i % 2 * kWidth<float> + kWidth<float> / 2)...>(x, y);
}

// Reduces all elements with f. The vector is folded in halves, so that the order of a sum depends on its width alone.
template <int distance, int... i>
inline FloatVec swap_halves(FloatVec x, Indices<i...>) {
  return shuffle<(i ^ distance)...>(x, x);
}
template <int distance = kWidth<float> / 2, typename F>
inline float reduce(FloatVec x, F f) {
  if constexpr (distance == 0) {
    return x[0];
  } else {
    return reduce<distance / 2>(f(x, swap_halves<distance>(x, kIndices)), f);
  }
}
inline float sum_of(FloatVec x) {
  return reduce(x, [](FloatVec a, FloatVec b) { return a + b; });
}
inline double sum_of(double x) { return x; }
inline float largest_of(FloatVec x) {
  return reduce(x, [](FloatVec a, FloatVec b) { return a > b ? a : b; });
}

// Returns table[index[i]] for every element.
inline FloatVec look_up(FloatVec table, const int32_t* index) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(load_as<__m512i>(index), table);
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_ps(table, load_as<__m256i>(index));
#else
  return FloatVec{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
#endif
}

// Stores the sums of four vectors side by side, {sum a, sum b, sum c, sum d}, or adds them to `out`.
#if defined(__AVX512F__)
inline __m256 fold(FloatVec x) { return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); }
inline __m256d fold(DoubleVec x) { return _mm256_add_pd(_mm512_castpd512_pd256(x), _mm512_extractf64x4_pd(x, 1)); }
#elif defined(__AVX2__)
inline __m256 fold(FloatVec x) { return x; }
inline __m256d fold(DoubleVec x) { return x; }
#endif
#if defined(__AVX2__)
inline void sum_four(FloatVec a, FloatVec b, FloatVec c, FloatVec d, bool add, float* out) {
  const __m256 a8 = fold(a), b8 = fold(b), c8 = fold(c), d8 = fold(d);
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a8, b8), _mm256_unpackhi_ps(a8, b8));  // a b a b | a b a b
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c8, d8), _mm256_unpackhi_ps(c8, d8));
  const __m256 low = _mm256_shuffle_ps(ab, cd, 0x44), high = _mm256_shuffle_ps(ab, cd, 0xee);
  const __m256 abcd = _mm256_add_ps(low, high);  // a b c d | a b c d
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
  if (add) sum = _mm_add_ps(sum, _mm_loadu_ps(out));
  _mm_storeu_ps(out, sum);
}
inline void sum_four(DoubleVec a, DoubleVec b, DoubleVec c, DoubleVec d, bool add, double* out) {
  const __m256d ab = _mm256_hadd_pd(fold(a), fold(b));  // a b | a b
  const __m256d cd = _mm256_hadd_pd(fold(c), fold(d));
  const __m256d low = _mm256_permute2f128_pd(ab, cd, 0x20), high = _mm256_permute2f128_pd(ab, cd, 0x31);
  __m256d sum = _mm256_add_pd(low, high);
  if (add) sum = _mm256_add_pd(sum, _mm256_loadu_pd(out));
  _mm256_storeu_pd(out, sum);
}
#else
template <typename V, typename A>
inline void sum_four(V a, V b, V c, V d, bool add, A* out) {
  const V all[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    A sum = 0;
    for (int j = 0; j < kWidth<A>; ++j) sum += all[i][j];
    out[i] = add ? out[i] + sum : sum;
  }
}
#endif

// Transposes four vectors of points, each point with four values side by side, to one vector per value. The values of
// point i must be at transpose_slot(i) for the points to come out in order.
template <typename A>
inline int64_t transpose_slot(int64_t point) {
  constexpr int64_t width = kWidth<float>;
  if (sizeof(A) == 8) return 4 * point;
  return point / width * width * 4 + point % 4 * width + point % width / 4 * 4;
}
template <int... i>
inline void transpose_four(const float* in, FloatVec (&out)[4], Indices<i...>) {
  constexpr int width = kWidth<float>;
  const FloatVec a = load(in), b = load(in + width), c = load(in + 2 * width), d = load(in + 3 * width);
  // Interleaves the first or last two of every four elements of two vectors, then joins such halves.
  const FloatVec ab_low = shuffle<(i / 4 * 4 + i % 4 / 2 + i % 2 * width)...>(a, b);
  const FloatVec cd_low = shuffle<(i / 4 * 4 + i % 4 / 2 + i % 2 * width)...>(c, d);
  const FloatVec ab_high = shuffle<(i / 4 * 4 + i % 4 / 2 + i % 2 * width + 2)...>(a, b);
  const FloatVec cd_high = shuffle<(i / 4 * 4 + i % 4 / 2 + i % 2 * width + 2)...>(c, d);
  out[0] = shuffle<(i / 4 * 4 + i % 2 + i % 4 / 2 * width)...>(ab_low, cd_low);
  out[1] = shuffle<(i / 4 * 4 + i % 2 + i % 4 / 2 * width + 2)...>(ab_low, cd_low);
  out[2] = shuffle<(i / 4 * 4 + i % 2 + i % 4 / 2 * width)...>(ab_high, cd_high);
  out[3] = shuffle<(i / 4 * 4 + i % 2 + i % 4 / 2 * width + 2)...>(ab_high, cd_high);
}
inline void transpose_four(const float* in, FloatVec (&out)[4]) { transpose_four(in, out, kIndices); }
inline void transpose_four(const double* in, double (&out)[4]) {
  for (int i = 0; i < 4; ++i) out[i] = in[i];
}

}  // namespace
}  // namespace msda
