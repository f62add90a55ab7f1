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

// Bits of Sample::mask.
constexpr int32_t kCorner00 = 1, kCorner01 = 2, kCorner10 = 4, kCorner11 = 8;

template <typename A>
struct Sample {
  A fx, fy;        // fractions of a pixel to the right of and below corner 00, in [0, 1)
  int32_t x0, y0;  // corner 00: -1 <= x0 <= W - 1, -1 <= y0 <= H - 1 for a point inside
  int32_t mask;    // which corners are inside the level; 0 for a point outside
};

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

MSDA_HOST_DEVICE float floor_of(float x) { return floorf(x); }
MSDA_HOST_DEVICE double floor_of(double x) { return floor(x); }

template <typename A>
MSDA_HOST_DEVICE Sample<A> sample_at(A loc_x, A loc_y, A width, A height) {
  const A x = pixel_coordinate(loc_x, width);
  const A y = pixel_coordinate(loc_y, height);
  // Written so that NaN fails. The bitwise operators keep the expression free of branches.
  const bool inside = bool(int(x > A(-1)) & int(x < width) & int(y > A(-1)) & int(y < height));
  const A xs = inside ? x : A(0);
  const A ys = inside ? y : A(0);
  const A x_floor = floor_of(xs);
  const A y_floor = floor_of(ys);
  Sample<A> s;
  s.fx = xs - x_floor;
  s.fy = ys - y_floor;
  s.x0 = static_cast<int32_t>(x_floor);
  s.y0 = static_cast<int32_t>(y_floor);
  const int32_t left = x_floor >= A(0) ? (kCorner00 | kCorner10) : 0;
  const int32_t right = x_floor + A(1) < width ? (kCorner01 | kCorner11) : 0;
  const int32_t top = y_floor >= A(0) ? (kCorner00 | kCorner01) : 0;
  const int32_t bottom = y_floor + A(1) < height ? (kCorner10 | kCorner11) : 0;
  s.mask = inside ? ((left | right) & (top | bottom)) : 0;
  return s;
}

// Weights of the four corners, attention included; zero for a corner outside.
template <typename A>
MSDA_HOST_DEVICE void corner_weights(const Sample<A>& s, A attention, A& w00, A& w01, A& w10, A& w11) {
  const A top = attention * (A(1) - s.fy);
  const A bottom = attention * s.fy;
  w00 = (s.mask & kCorner00) ? top * (A(1) - s.fx) : A(0);
  w01 = (s.mask & kCorner01) ? top * s.fx : A(0);
  w10 = (s.mask & kCorner10) ? bottom * (A(1) - s.fx) : A(0);
  w11 = (s.mask & kCorner11) ? bottom * s.fx : A(0);
}

// Gradients of one point from dot_c = <grad_output, value at corner c>.
template <typename A>
MSDA_HOST_DEVICE void point_gradients(A fx, A fy, int32_t mask, A attention, A width, A height, A dot00, A dot01,
                                      A dot10, A dot11, A& grad_x, A& grad_y, A& grad_attention) {
  const A d00 = (mask & kCorner00) ? dot00 : A(0);
  const A d01 = (mask & kCorner01) ? dot01 : A(0);
  const A d10 = (mask & kCorner10) ? dot10 : A(0);
  const A d11 = (mask & kCorner11) ? dot11 : A(0);
  const A gx = A(1) - fx;
  const A gy = A(1) - fy;
  const A scale = mask ? attention : A(0);
  grad_attention = gy * (gx * d00 + fx * d01) + fy * (gx * d10 + fx * d11);
  grad_x = scale * width * (gy * (d01 - d00) + fy * (d11 - d10));
  grad_y = scale * height * (gx * (d10 - d00) + fx * (d11 - d01));
}

// Location of a point of the module: reference point plus offset. A two-value reference point (x, y) takes
// offsets in pixels of the level; a four-value one (cx, cy, w, h) takes them in units of half the box over the
// number of points (arXiv 2010.04159, appendix A.4). offset_scale() is d location / d offset.
template <typename A>
MSDA_HOST_DEVICE A location_from_box(A center, A offset, A extent, A points) {
  return center + offset / points * extent * A(0.5);
}

}  // namespace
}  // namespace msda
