// Inner loops of the backward: dot products with rows, and updates of the rows' gradients.
#pragma once

#include "finish.h"
#include "layout.h"

namespace msda {
namespace {

// One corner: returns <grad, row> over the run and adds weight * grad to the row's gradient.
template <int kN, typename A>
inline Vec<A> update_row(const A* row, A* grad_row, const Vec<A> (&grad)[kN], A weight) {
  constexpr int kWidth = Vec<A>::kWidth;
  const Vec<A> w = Vec<A>::broadcast(weight);
  Vec<A> dot = Vec<A>::zero();
  for (int v = 0; v < kN; ++v) {
    dot = fma(Vec<A>::load(row + v * kWidth), grad[v], dot);
    fma(w, grad[v], Vec<A>::load(grad_row + v * kWidth)).store(grad_row + v * kWidth);
  }
  return dot;
}

// Padded layout; the gradient of a row lies `to_grad` elements after its value. `grads` is [items][grad_size] with
// the run's channels at its start. kPoints as in sum_padded().
template <int kN, int kPoints, typename A>
void update_padded(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t items, A* rows, int64_t row_size,
                   int64_t to_grad, const A* grads, int64_t grad_size, bool first_run) {
  constexpr int kWidth = Vec<A>::kWidth;
  const int32_t points = kPoints ? kPoints : p.points;
  for (int32_t level = 0; level < p.levels; ++level) {
    const int32_t first = level * points;
    const int64_t down = lanes.stride[first] * row_size;
    for (int64_t item = 0; item < items; ++item) {
      Vec<A> grad[kN];
      for (int v = 0; v < kN; ++v) grad[v] = Vec<A>::load(grads + item * grad_size + v * kWidth);
      A* dots = b.dots + 4 * item * lanes.padded;
      const A* weights = b.weights + 4 * item * lanes.padded;
      const int32_t* row = b.row + item * lanes.padded + first;
      for (int32_t k = 0; k < points; ++k) {
        const A* w = weights + (kPoints ? weight_at(first) + k : weight_at(first + k));
        A* r00 = rows + row[k] * row_size;
        A* r10 = r00 + down;
        const Vec<A> d00 = update_row(r00, r00 + to_grad, grad, w[0]);
        const Vec<A> d01 = update_row(r00 + row_size, r00 + row_size + to_grad, grad, w[kGroup]);
        const Vec<A> d10 = update_row(r10, r10 + to_grad, grad, w[2 * kGroup]);
        const Vec<A> d11 = update_row(r10 + row_size, r10 + row_size + to_grad, grad, w[3 * kGroup]);
        sum_four(d00, d01, d10, d11, !first_run, dots + dot_slot<A>(first + k));
      }
    }
  }
}

// Direct layout: value and its gradient are the tensors themselves. `zero` and `sink` stand in for corners outside.
template <int kN, typename A>
void update_direct(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t item, const A* base,
                   A* grad_base, int64_t grad_stride, const A* zero, A* sink, const A* grads, bool first_run) {
  constexpr int kWidth = Vec<A>::kWidth;
  Vec<A> grad[kN];
  for (int v = 0; v < kN; ++v) grad[v] = Vec<A>::load(grads + v * kWidth);
  for (int32_t i = 0; i < lanes.count; ++i) {
    const int64_t at = item * lanes.padded + i;
    const A* w = b.weights + 4 * item * lanes.padded + weight_at(i);
    const Corners<const A> c = corners_of(base, b.row[at], lanes.stride[i], p.value_stride_s, b.mask[at], zero);
    const Corners<A> g = corners_of(grad_base, b.row[at], lanes.stride[i], grad_stride, b.mask[at], sink);
    const Vec<A> d00 = update_row(c.r00, g.r00, grad, w[0]);
    const Vec<A> d01 = update_row(c.r01, g.r01, grad, w[kGroup]);
    const Vec<A> d10 = update_row(c.r10, g.r10, grad, w[2 * kGroup]);
    const Vec<A> d11 = update_row(c.r11, g.r11, grad, w[3 * kGroup]);
    sum_four(d00, d01, d10, d11, !first_run, b.dots + 4 * item * lanes.padded + dot_slot<A>(i));
  }
}

}  // namespace
}  // namespace msda
