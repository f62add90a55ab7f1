// The CUDA kernels, and nothing that only CUDA has: tests/ops compiles this file for the host as well, with the thread
// indices counted in a loop, so that what runs on a GPU has been run. The sampling arithmetic is ../sampling.h.
#pragma once

#include "../sampling.h"
#include "device.cuh"
#include "launch.h"

namespace msda {

// Sizes of the levels: by value with the kernel's arguments, or in device memory, so that no call waits for the GPU.
struct DeviceLevels {
  const int64_t* shapes;  // (L, 2) on the device, or null
  int32_t height[kMaxLevels], width[kMaxLevels];
};

struct Level {
  int64_t start;
  int32_t height, width;
};

MSDA_DEVICE Level next_level(const DeviceLevels& levels, int32_t l, const Level& before) {
  Level level;
  level.start = before.start + int64_t(before.height) * before.width;
  level.height = levels.shapes ? int32_t(levels.shapes[2 * l]) : levels.height[l];
  level.width = levels.shapes ? int32_t(levels.shapes[2 * l + 1]) : levels.width[l];
  return level;
}

// One sampling point: location and attention weight of the accumulation type A.
template <typename A>
struct Point {
  A x, y, attention;
};

// Softmax of one item's logits without storing it: largest logit and sum of exponentials.
template <typename A>
struct Softmax {
  A largest, sum;
};

template <typename P, typename A>
MSDA_DEVICE Softmax<A> softmax_of(const P* logits, int32_t count) {
  Softmax<A> s = {to_acc(logits[0]), 0};
  for (int32_t i = 1; i < count; ++i) {
    const A x = to_acc(logits[i]);
    s.largest = x > s.largest ? x : s.largest;
  }
  for (int32_t i = 0; i < count; ++i) s.sum += exp_of(to_acc(logits[i]) - s.largest);
  return s;
}

template <typename P, typename A>
MSDA_DEVICE Point<A> point_at(const Problem& p, const Level& level, const P* xy, const P* attention, const P* reference,
                              const Softmax<A>& softmax, int32_t i) {
  Point<A> point = {to_acc(xy[2 * i]), to_acc(xy[2 * i + 1]), to_acc(attention[i])};
  if (p.source == PointSource::kOffsets) {
    point.attention = exp_of(point.attention - softmax.largest) / softmax.sum;
    if (p.ref_width == 2) {
      point.x = to_acc(reference[0]) + point.x / A(level.width);
      point.y = to_acc(reference[1]) + point.y / A(level.height);
    } else {
      point.x = location_from_box(to_acc(reference[0]), point.x, to_acc(reference[2]), A(p.points));
      point.y = location_from_box(to_acc(reference[1]), point.y, to_acc(reference[3]), A(p.points));
    }
  }
  return point;
}

template <typename T, int kVector, typename A>
MSDA_DEVICE void add_row(const T* row, A weight, A (&acc)[kVector]) {
  T loaded[kVector];
  load_vector<kVector>(row, loaded);
#pragma unroll
  for (int v = 0; v < kVector; ++v) acc[v] += weight * to_acc(loaded[v]);
}

// Forward of the channels [channel, channel + kVector) of one item.
template <typename T, typename P, int kVector>
MSDA_DEVICE void forward_channels(const Problem& p, const DeviceLevels& levels, const Place& at, int64_t channel) {
  using A = typename AccOf<T>::type;
  const int32_t count = p.levels * p.points;
  const P* xy = static_cast<const P*>(p.xy) + 2 * at.item * count;
  const P* attention = static_cast<const P*>(p.attention) + at.item * count;
  const P* reference = static_cast<const P*>(p.reference);
  if (reference) reference += (at.n * p.queries + at.q) * p.levels * p.ref_width;
  const T* value = static_cast<const T*>(p.value) + at.n * p.value_stride_n + at.m * p.value_stride_m + channel;
  Softmax<A> softmax = {};
  if (p.source == PointSource::kOffsets) softmax = softmax_of<P, A>(attention, count);
  A acc[kVector] = {};
  Level level = {};
  for (int32_t l = 0; l < p.levels; ++l) {
    level = next_level(levels, l, level);
    const int64_t line = level.width * p.value_stride_s;
    for (int32_t k = 0; k < p.points; ++k) {
      const Point<A> point = point_at(p, level, xy, attention, reference ? reference + l * p.ref_width : nullptr,
                                      softmax, l * p.points + k);
      const Sample<A> s = sample_at(point.x, point.y, A(level.width), A(level.height));
      A w00, w01, w10, w11;
      corner_weights(s, point.attention, w00, w01, w10, w11);
      const T* row = value + (level.start + int64_t(s.y0) * level.width + s.x0) * p.value_stride_s;
      if (s.mask & kCorner00) add_row<T, kVector>(row, w00, acc);
      if (s.mask & kCorner01) add_row<T, kVector>(row + p.value_stride_s, w01, acc);
      if (s.mask & kCorner10) add_row<T, kVector>(row + line, w10, acc);
      if (s.mask & kCorner11) add_row<T, kVector>(row + line + p.value_stride_s, w11, acc);
    }
  }
  T out[kVector];
#pragma unroll
  for (int v = 0; v < kVector; ++v) from_acc(acc[v], out[v]);
  store_vector<kVector>(out, static_cast<T*>(p.output) + at.item * p.channels + channel);
}

template <typename T, typename P, int kVector>
MSDA_GLOBAL void forward_kernel(MSDA_GRID_CONSTANT const Problem p, MSDA_GRID_CONSTANT const DeviceLevels levels,
                                MSDA_GRID_CONSTANT const Plan plan) {
  for (int64_t round = 0;; ++round) {
    const Place at = place_of(p, plan, block_index(), thread_index(), round);
    if (at.item >= plan.items) return;
    for (int64_t c = int64_t(at.lane) * kVector; c < p.channels; c += int64_t(plan.lanes) * kVector) {
      forward_channels<T, P, kVector>(p, levels, at, c);
    }
  }
}

// <grad, row> of this thread's channels, and atomic update of the row's gradient.
template <typename T, int kVector, typename A>
MSDA_DEVICE A touch_row(const T* row, A* grad_row, A weight, const A (&grad)[kVector], bool scatter) {
  T loaded[kVector];
  load_vector<kVector>(row, loaded);
  A dot = 0;
#pragma unroll
  for (int v = 0; v < kVector; ++v) dot += to_acc(loaded[v]) * grad[v];
  if (scatter) add_vector<kVector>(grad_row, weight, grad);
  return dot;
}

// Everything about one point's gradients that all lanes of an item compute together.
template <typename T, typename P, int kVector>
MSDA_DEVICE void backward_point(const Problem& p, const Level& level, const Place& at, const Plan& plan,
                                const Point<typename AccOf<T>::type>& point, const T* value,
                                typename AccOf<T>::type* grad_value, bool scatter,
                                typename AccOf<T>::type (&result)[3]) {
  using A = typename AccOf<T>::type;
  const Sample<A> s = sample_at(point.x, point.y, A(level.width), A(level.height));
  A w00, w01, w10, w11;
  corner_weights(s, point.attention, w00, w01, w10, w11);
  const int64_t row = level.start + int64_t(s.y0) * level.width + s.x0;
  const int64_t rs = p.value_stride_s, gs = p.heads * p.channels, w = level.width;
  A dots[4] = {};
  for (int64_t c = int64_t(at.lane) * kVector; c < p.channels; c += int64_t(plan.lanes) * kVector) {
    A grad[kVector];
    T loaded[kVector];
    load_vector<kVector>(static_cast<const T*>(p.grad_output) + at.item * p.channels + c, loaded);
#pragma unroll
    for (int v = 0; v < kVector; ++v) grad[v] = to_acc(loaded[v]);
    const T* in = value + row * rs + c;
    A* out = grad_value + row * gs + c;
    if (s.mask & kCorner00) dots[0] += touch_row<T, kVector>(in, out, w00, grad, scatter);
    if (s.mask & kCorner01) dots[1] += touch_row<T, kVector>(in + rs, out + gs, w01, grad, scatter);
    if (s.mask & kCorner10) dots[2] += touch_row<T, kVector>(in + w * rs, out + w * gs, w10, grad, scatter);
    if (s.mask & kCorner11) dots[3] += touch_row<T, kVector>(in + (w + 1) * rs, out + (w + 1) * gs, w11, grad, scatter);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) dots[c] = sum_over_lanes(dots[c], plan.lanes);
  point_gradients(s.fx, s.fy, s.mask, point.attention, A(level.width), A(level.height), dots[0], dots[1], dots[2],
                  dots[3], result[0], result[1], result[2]);
}

// Gradients of offsets, logits and reference points from those of locations and weights, for one point.
template <typename P, typename A>
MSDA_DEVICE void store_offset_gradients(const Problem& p, const Level& level, const P* reference, const P* offset,
                                        const A (&grad)[3], P* grad_xy, A* grad_reference) {
  A gx = grad[0], gy = grad[1];
  const A points = A(p.points);
  if (grad_reference) {
    grad_reference[0] += gx;
    grad_reference[1] += gy;
    if (p.ref_width == 4) {
      grad_reference[2] += gx * (to_acc(offset[0]) / points * A(0.5));
      grad_reference[3] += gy * (to_acc(offset[1]) / points * A(0.5));
    }
  }
  gx = p.ref_width == 2 ? gx / A(level.width) : gx / points * to_acc(reference[2]) * A(0.5);
  gy = p.ref_width == 2 ? gy / A(level.height) : gy / points * to_acc(reference[3]) * A(0.5);
  from_acc(gx, grad_xy[0]);
  from_acc(gy, grad_xy[1]);
}

// Backward of one item. Value gradients go to grad_value, (N, S, M, D) of the accumulation type, by atomic addition;
// with scatter = false they are left out. The logits' gradient needs a sum over all points first: their raw gradients
// wait in grad_attention's place until the second pass, recomputed there rather than rounded in between.
template <typename T, typename P, int kVector>
MSDA_DEVICE void backward_item(const Problem& p, const DeviceLevels& levels, const Plan& plan, const Place& at,
                               bool scatter) {
  using A = typename AccOf<T>::type;
  const int32_t count = p.levels * p.points;
  const bool fused = p.source == PointSource::kOffsets;
  const P* xy = static_cast<const P*>(p.xy) + 2 * at.item * count;
  const P* attention = static_cast<const P*>(p.attention) + at.item * count;
  const P* reference = static_cast<const P*>(p.reference);
  if (reference) reference += (at.n * p.queries + at.q) * p.levels * p.ref_width;
  P* grad_xy = static_cast<P*>(p.grad_xy) + 2 * at.item * count;
  P* grad_attention = static_cast<P*>(p.grad_attention) + at.item * count;
  A* grad_reference = static_cast<A*>(p.grad_reference);
  if (grad_reference) grad_reference += ((at.n * p.heads + at.m) * p.queries + at.q) * p.levels * p.ref_width;
  const T* value = static_cast<const T*>(p.value) + at.n * p.value_stride_n + at.m * p.value_stride_m;
  A* grad_value = static_cast<A*>(p.grad_value) + (at.n * p.rows * p.heads + at.m) * p.channels;
  Softmax<A> softmax = {};
  if (fused) softmax = softmax_of<P, A>(attention, count);
  A mean = 0;
  // Pass 0 of the fused form only finds the mean of the weights' gradients under the softmax.
  for (int pass = fused ? 0 : 1; pass < 2; ++pass) {
    Level level = {};
    for (int32_t l = 0; l < p.levels; ++l) {
      level = next_level(levels, l, level);
      const P* ref = reference ? reference + l * p.ref_width : nullptr;
      A ref_sum[4] = {};
      for (int32_t k = 0; k < p.points; ++k) {
        const int32_t i = l * p.points + k;
        const Point<A> point = point_at(p, level, xy, attention, ref, softmax, i);
        A grad[3];
        backward_point<T, P, kVector>(p, level, at, plan, point, value, grad_value, scatter && pass == 1, grad);
        if (pass == 0) {
          mean += point.attention * grad[2];
        } else if (at.lane == 0 && fused) {
          store_offset_gradients(p, level, ref, xy + 2 * i, grad, grad_xy + 2 * i, grad_reference ? ref_sum : nullptr);
          from_acc(point.attention * (grad[2] - mean), grad_attention[i]);
        } else if (at.lane == 0) {
          from_acc(grad[0], grad_xy[2 * i]);
          from_acc(grad[1], grad_xy[2 * i + 1]);
          from_acc(grad[2], grad_attention[i]);
        }
      }
      if (grad_reference && pass == 1 && at.lane == 0) {
        for (int32_t r = 0; r < p.ref_width; ++r) grad_reference[l * p.ref_width + r] = ref_sum[r];
      }
    }
  }
}

template <typename T, typename P, int kVector>
MSDA_GLOBAL void backward_kernel(MSDA_GRID_CONSTANT const Problem p, MSDA_GRID_CONSTANT const DeviceLevels levels,
                                 MSDA_GRID_CONSTANT const Plan plan, bool scatter) {
  for (int64_t round = 0;; ++round) {
    const Place at = place_of(p, plan, block_index(), thread_index(), round);
    if (at.item >= plan.items) return;  // whole groups leave together: lanes divides the block
    backward_item<T, P, kVector>(p, levels, plan, at, scatter);
  }
}

// Deterministic gradient of value: one thread group owns one (batch, head, channels) and walks the queries in order.
// Parallel over batch, heads and channels only, so slow; it is for torch.use_deterministic_algorithms(True).
template <typename T, typename P>
MSDA_GLOBAL void ordered_scatter_kernel(MSDA_GRID_CONSTANT const Problem p,
                                        MSDA_GRID_CONSTANT const DeviceLevels levels) {
  using A = typename AccOf<T>::type;
  const int64_t owner = block_index() * block_size() + thread_index();
  if (owner >= p.batch * p.heads * p.channels) return;
  const int64_t c = owner % p.channels, m = owner / p.channels % p.heads, n = owner / p.channels / p.heads;
  const int32_t count = p.levels * p.points;
  A* grad_value = static_cast<A*>(p.grad_value) + (n * p.rows * p.heads + m) * p.channels + c;
  const int64_t gs = p.heads * p.channels;
  for (int64_t q = 0; q < p.queries; ++q) {
    const int64_t item = (n * p.queries + q) * p.heads + m;
    const P* xy = static_cast<const P*>(p.xy) + 2 * item * count;
    const P* attention = static_cast<const P*>(p.attention) + item * count;
    const P* reference = static_cast<const P*>(p.reference);
    if (reference) reference += (n * p.queries + q) * p.levels * p.ref_width;
    Softmax<A> softmax = {};
    if (p.source == PointSource::kOffsets) softmax = softmax_of<P, A>(attention, count);
    const A grad = to_acc(static_cast<const T*>(p.grad_output)[item * p.channels + c]);
    Level level = {};
    for (int32_t l = 0; l < p.levels; ++l) {
      level = next_level(levels, l, level);
      for (int32_t k = 0; k < p.points; ++k) {
        const Point<A> point = point_at(p, level, xy, attention, reference ? reference + l * p.ref_width : nullptr,
                                        softmax, l * p.points + k);
        const Sample<A> s = sample_at(point.x, point.y, A(level.width), A(level.height));
        A w00, w01, w10, w11;
        corner_weights(s, point.attention, w00, w01, w10, w11);
        A* row = grad_value + (level.start + int64_t(s.y0) * level.width + s.x0) * gs;
        if (s.mask & kCorner00) row[0] += w00 * grad;
        if (s.mask & kCorner01) row[gs] += w01 * grad;
        if (s.mask & kCorner10) row[level.width * gs] += w10 * grad;
        if (s.mask & kCorner11) row[(level.width + 1) * gs] += w11 * grad;
      }
    }
  }
}

}  // namespace msda
