// Arithmetic of one sampling point (arXiv 2010.04159, eq. 2 and 3 and appendix A.4), shared by CPU and CUDA.
//
// A location (x, y) in [0, 1] has the pixel coordinates x * W - 0.5 and y * H - 0.5 in its level; the value there is
// interpolated bilinearly from four corners, and corners outside the level count as zero. A location that is NaN,
// infinite, or a pixel or more outside its level contributes nothing.
//
// The functions are templates over A = float or double, one point at a time, or a SIMD vector of floats (cpu/simd.h).
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MSDA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MSDA_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace msda {
namespace {  // internal linkage: each instruction set needs its own copy of these functions

// Integer type with one element per point in A; specialized for vectors.
template <typename A>
struct IntOf {
  using type = int32_t;
};
template <typename A>
using Int = typename IntOf<A>::type;

// Returns floor(x) as an integer and stores it as floating point in `floored`; specialized for vectors.
template <typename A>
MSDA_HOST_DEVICE Int<A> floor_to_int(A x, A& floored) {
  floored = std::floor(x);
  return static_cast<int32_t>(floored);
}

// Sum and product are rounded separately, even where nvcc would fuse them: a fused multiply-add moves points that lie
// exactly on a pixel center to its other side, where the gradient differs.
#if defined(__CUDA_ARCH__)
MSDA_HOST_DEVICE float add_rounded(float a, float b) { return __fadd_rn(a, b); }
MSDA_HOST_DEVICE double add_rounded(double a, double b) { return __dadd_rn(a, b); }
MSDA_HOST_DEVICE float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }
MSDA_HOST_DEVICE double multiply_rounded(double a, double b) { return __dmul_rn(a, b); }
#else
template <typename A>
MSDA_HOST_DEVICE A add_rounded(A a, A b) {
  return a + b;
}
template <typename A>
MSDA_HOST_DEVICE A multiply_rounded(A a, A b) {
  return a * b;
}
#endif

// Bits of Sample::mask.
constexpr int32_t kCorner00 = 1, kCorner01 = 2, kCorner10 = 4, kCorner11 = 8;

template <typename A>
struct Sample {
  A fx, fy;       // fractions of a pixel to the right of and below corner 00, in [0, 1)
  Int<A> x0, y0;  // corner 00: -1 <= x0 <= W - 1, -1 <= y0 <= H - 1 for a point inside
  Int<A> mask;    // corners inside the level; 0 for a point outside
};

template <typename A>
MSDA_HOST_DEVICE Sample<A> sample_at(A loc_x, A loc_y, A width, A height) {
  using I = Int<A>;
  const A x = add_rounded(multiply_rounded(loc_x, width), A{} - 0.5f);
  const A y = add_rounded(multiply_rounded(loc_y, height), A{} - 0.5f);
  const auto inside = (x > -1.0f) & (x < width) & (y > -1.0f) & (y < height);  // false for NaN
  const A xs = inside ? x : A{};
  const A ys = inside ? y : A{};
  Sample<A> s;
  A x_floor, y_floor;
  s.x0 = floor_to_int(xs, x_floor);
  s.y0 = floor_to_int(ys, y_floor);
  s.fx = xs - x_floor;
  s.fy = ys - y_floor;
  const I left = x_floor > -1.0f ? I{} + (kCorner00 | kCorner10) : I{};
  const I right = x_floor + 1.0f < width ? I{} + (kCorner01 | kCorner11) : I{};
  const I top = y_floor > -1.0f ? I{} + (kCorner00 | kCorner01) : I{};
  const I bottom = y_floor + 1.0f < height ? I{} + (kCorner10 | kCorner11) : I{};
  s.mask = inside ? (left | right) & (top | bottom) : I{};
  return s;
}

// Weights of the four corners, attention included; zero for a corner outside.
template <typename A>
MSDA_HOST_DEVICE void corner_weights(const Sample<A>& s, A attention, A& w00, A& w01, A& w10, A& w11) {
  const A top = attention * (1.0f - s.fy);
  const A bottom = attention * s.fy;
  const A gx = 1.0f - s.fx;
  w00 = (s.mask & kCorner00) != 0 ? top * gx : A{};
  w01 = (s.mask & kCorner01) != 0 ? top * s.fx : A{};
  w10 = (s.mask & kCorner10) != 0 ? bottom * gx : A{};
  w11 = (s.mask & kCorner11) != 0 ? bottom * s.fx : A{};
}

// Gradients of one point from dot_c = <grad_output, value at corner c>.
template <typename A>
MSDA_HOST_DEVICE void point_gradients(A fx, A fy, Int<A> mask, A attention, A width, A height, A dot00, A dot01,
                                      A dot10, A dot11, A& grad_x, A& grad_y, A& grad_attention) {
  const A d00 = (mask & kCorner00) != 0 ? dot00 : A{};
  const A d01 = (mask & kCorner01) != 0 ? dot01 : A{};
  const A d10 = (mask & kCorner10) != 0 ? dot10 : A{};
  const A d11 = (mask & kCorner11) != 0 ? dot11 : A{};
  const A gx = 1.0f - fx;
  const A gy = 1.0f - fy;
  const A scale = mask != 0 ? attention : A{};
  grad_attention = gy * (gx * d00 + fx * d01) + fy * (gx * d10 + fx * d11);
  grad_x = scale * width * (gy * (d01 - d00) + fy * (d11 - d10));
  grad_y = scale * height * (gx * (d10 - d00) + fx * (d11 - d01));
}

// Offsets of the module: location = center + scale_offset(offset). With two-value reference points (x, y) offsets are
// in pixels of the level (`extent` is its width or height); with four-value ones (cx, cy, w, h) in units of half the
// box size divided by the number of points (`extent` is w or h). The scaling is linear, so it is also the chain rule:
// applied to the gradient of a location it returns the gradient of the offset.
template <typename A, typename S>
MSDA_HOST_DEVICE A scale_offset(A offset, A extent, bool box, S points) {
  return box ? offset / points * extent * 0.5f : offset / extent;
}
// Derivative of a location with respect to the extent of its box.
template <typename A, typename S>
MSDA_HOST_DEVICE A extent_factor(A offset, S points) {
  return offset / points * 0.5f;
}

}  // namespace
}  // namespace msda
