// The arithmetic of one sampling point (arXiv 2010.04159, eq. 2 and 3), shared by CPU and CUDA.
//
// A location (x, y) in [0, 1] addresses the pixel coordinates x * W - 0.5 and y * H - 0.5 of its level; the
// value there is the bilinear interpolation of four corners, and corners outside the level count as zero.
// A location that is NaN, infinite or a pixel or more outside its level contributes nothing at all.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MSDA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MSDA_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace msda {
namespace {  // internal linkage: each instruction set must keep its own copy of these functions

// The functions below are written once for A = float or double (one point; CUDA and general code) and for
// A = FloatLanes (a vector of points). What differs: comparisons give 0 or -1 in an integer (or a vector of them).
template <typename A>
struct Integer {
  using type = int32_t;
};
template <typename A>
struct Scalar {
  using type = A;
};

MSDA_HOST_DEVICE int32_t less(float a, float b) { return a < b ? -1 : 0; }
MSDA_HOST_DEVICE int32_t less(double a, double b) { return a < b ? -1 : 0; }
MSDA_HOST_DEVICE float choose(int32_t condition, float a, float b) { return condition ? a : b; }
MSDA_HOST_DEVICE double choose(int32_t condition, double a, double b) { return condition ? a : b; }
MSDA_HOST_DEVICE int32_t choose(int32_t condition, int32_t a, int32_t b) { return condition ? a : b; }
MSDA_HOST_DEVICE int32_t any_bit(int32_t bits) { return bits; }
MSDA_HOST_DEVICE int32_t floor_to_int(float x, float& result) {
  result = floorf(x);
  return static_cast<int32_t>(result);
}
MSDA_HOST_DEVICE int32_t floor_to_int(double x, double& result) {
  result = floor(x);
  return static_cast<int32_t>(result);
}

// Pixel coordinate of a normalised one. Two roundings on every device: a fused multiply-add would move points
// that lie exactly on a pixel centre to its other side, where the gradient is a different one.
MSDA_HOST_DEVICE float pixel_coordinate(float location, float size) {
#if defined(__CUDA_ARCH__)
  return __fsub_rn(__fmul_rn(location, size), 0.5f);
#else
  return location * size - 0.5f;
#endif
}
MSDA_HOST_DEVICE double pixel_coordinate(double location, double size) {
#if defined(__CUDA_ARCH__)
  return __dsub_rn(__dmul_rn(location, size), 0.5);
#else
  return location * size - 0.5;
#endif
}

#if defined(__GNUC__) && !defined(__CUDACC__)
#define MSDA_LANES 1
#if defined(__AVX512F__)
typedef float FloatLanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
#elif defined(__AVX2__)
typedef float FloatLanes __attribute__((vector_size(32)));
typedef int32_t IntLanes __attribute__((vector_size(32)));
#else
typedef float FloatLanes __attribute__((vector_size(16)));
typedef int32_t IntLanes __attribute__((vector_size(16)));
#endif
template <>
struct Integer<FloatLanes> {
  using type = IntLanes;
};
template <>
struct Scalar<FloatLanes> {
  using type = float;
};
MSDA_HOST_DEVICE IntLanes less(FloatLanes a, FloatLanes b) { return a < b; }
MSDA_HOST_DEVICE IntLanes less(float a, FloatLanes b) { return a < b; }
MSDA_HOST_DEVICE FloatLanes choose(IntLanes condition, FloatLanes a, FloatLanes b) { return condition ? a : b; }
MSDA_HOST_DEVICE IntLanes choose(IntLanes condition, IntLanes a, IntLanes b) { return condition ? a : b; }
MSDA_HOST_DEVICE IntLanes any_bit(IntLanes bits) { return bits != 0; }
MSDA_HOST_DEVICE FloatLanes pixel_coordinate(FloatLanes location, FloatLanes size) { return location * size - 0.5f; }
MSDA_HOST_DEVICE IntLanes floor_to_int(FloatLanes x, FloatLanes& result) {
  const IntLanes toward_zero = __builtin_convertvector(x, IntLanes);
  const IntLanes down = toward_zero + (x < __builtin_convertvector(toward_zero, FloatLanes));  // adds -1
  result = __builtin_convertvector(down, FloatLanes);
  return down;
}
#endif

// Bits of Sample::mask.
constexpr int32_t kCorner00 = 1, kCorner01 = 2, kCorner10 = 4, kCorner11 = 8;

template <typename A>
struct Sample {
  using I = typename Integer<A>::type;
  A fx, fy;  // fractions of a pixel to the right of and below corner 00, in [0, 1)
  I x0, y0;  // corner 00: -1 <= x0 <= W - 1, -1 <= y0 <= H - 1 for a point inside
  I mask;    // which corners are inside the level; 0 for a point outside
};

template <typename A>
MSDA_HOST_DEVICE Sample<A> sample_at(A loc_x, A loc_y, A width, A height) {
  using S = typename Scalar<A>::type;
  using I = typename Integer<A>::type;
  const A x = pixel_coordinate(loc_x, width);
  const A y = pixel_coordinate(loc_y, height);
  // Written so that NaN fails.
  const I inside = less(S(-1), x) & less(x, width) & less(S(-1), y) & less(y, height);
  const A xs = choose(inside, x, A{});
  const A ys = choose(inside, y, A{});
  Sample<A> s;
  A x_floor, y_floor;
  s.x0 = floor_to_int(xs, x_floor);
  s.y0 = floor_to_int(ys, y_floor);
  s.fx = xs - x_floor;
  s.fy = ys - y_floor;
  const I left = less(S(-1), x_floor) & (kCorner00 | kCorner10);
  const I right = less(x_floor + S(1), width) & (kCorner01 | kCorner11);
  const I top = less(S(-1), y_floor) & (kCorner00 | kCorner01);
  const I bottom = less(y_floor + S(1), height) & (kCorner10 | kCorner11);
  s.mask = inside & (left | right) & (top | bottom);
  return s;
}

// Weights of the four corners, attention included; zero for a corner outside.
template <typename A>
MSDA_HOST_DEVICE void corner_weights(const Sample<A>& s, A attention, A& w00, A& w01, A& w10, A& w11) {
  using S = typename Scalar<A>::type;
  const A top = attention * (S(1) - s.fy);
  const A bottom = attention * s.fy;
  const A gx = S(1) - s.fx;
  w00 = choose(any_bit(s.mask & kCorner00), top * gx, A{});
  w01 = choose(any_bit(s.mask & kCorner01), top * s.fx, A{});
  w10 = choose(any_bit(s.mask & kCorner10), bottom * gx, A{});
  w11 = choose(any_bit(s.mask & kCorner11), bottom * s.fx, A{});
}

// Gradients of one point from dot_c = <grad_output, value at corner c>.
template <typename A>
MSDA_HOST_DEVICE void point_gradients(A fx, A fy, typename Integer<A>::type mask, A attention, A width, A height,
                                      A dot00, A dot01, A dot10, A dot11, A& grad_x, A& grad_y, A& grad_attention) {
  using S = typename Scalar<A>::type;
  const A d00 = choose(any_bit(mask & kCorner00), dot00, A{});
  const A d01 = choose(any_bit(mask & kCorner01), dot01, A{});
  const A d10 = choose(any_bit(mask & kCorner10), dot10, A{});
  const A d11 = choose(any_bit(mask & kCorner11), dot11, A{});
  const A gx = S(1) - fx;
  const A gy = S(1) - fy;
  const A scale = choose(any_bit(mask), attention, A{});
  grad_attention = gy * (gx * d00 + fx * d01) + fy * (gx * d10 + fx * d11);
  grad_x = scale * width * (gy * (d01 - d00) + fy * (d11 - d10));
  grad_y = scale * height * (gx * (d10 - d00) + fx * (d11 - d01));
}

// Location of a point of the module: reference point plus offset. A two-value reference point (x, y) takes
// offsets in pixels of the level; a four-value one (cx, cy, w, h) takes them in units of half the box over the
// number of points (arXiv 2010.04159, appendix A.4). offset_scale() is d location / d offset.
template <typename A>
MSDA_HOST_DEVICE A location_from_box(A center, A offset, A extent, typename Scalar<A>::type points) {
  return center + offset / points * extent * typename Scalar<A>::type(0.5);
}

}  // namespace
}  // namespace msda
