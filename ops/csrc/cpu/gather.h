// The inner loops of the CPU kernels: weighted sums of rows forward; dot products and row updates backward.
//
// Two row layouts. Padded: a copy of one head's slice in scratch, with a border of zero rows, so that no corner
// needs a test and one index addresses all four. Direct: the tensor itself; corners outside read a zero row.
#pragma once

#include "points.h"

namespace msda {
namespace {

template <typename A>
struct Chunk {        // a run of channels handled at once, in registers
  int64_t first;      // channel
  int32_t registers;  // vectors of accumulators
};

// Splits `vectors` registers into runs of 8, 4, 3, 2 or 1 and calls f(first register, integral constant).
template <int kMax, typename F>
inline void for_each_run(int64_t vectors, F f) {
  int64_t at = 0;
  while (at < vectors) {
    const int64_t left = vectors - at;
    if (kMax >= 8 && left >= 8) {
      f(at, std::integral_constant<int, 8>());
      at += 8;
    } else if (left >= 4) {
      f(at, std::integral_constant<int, 4>());
      at += 4;
    } else if (left == 3) {
      f(at, std::integral_constant<int, 3>());
      at += 3;
    } else if (left == 2) {
      f(at, std::integral_constant<int, 2>());
      at += 2;
    } else {
      f(at, std::integral_constant<int, 1>());
      at += 1;
    }
  }
}

// A row that may end in the middle of a vector.
template <typename T, typename A>
inline Vec<A> load_some(const T* p, int64_t count) {
  if (count >= Vec<A>::kWidth) return Vec<A>::load(p);
  T tmp[Vec<A>::kWidth] = {};
  for (int64_t i = 0; i < count; ++i) tmp[i] = p[i];
  return Vec<A>::load(tmp);
}
template <typename T, typename A>
inline void store_some(Vec<A> x, T* p, int64_t count) {
  if (count >= Vec<A>::kWidth) {
    store_as(x, p);
  } else if (count > 0) {
    T tmp[Vec<A>::kWidth];
    store_as(x, tmp);
    for (int64_t i = 0; i < count; ++i) p[i] = tmp[i];
  }
}

template <int kN, typename T, typename A>
inline void add_rows(Vec<A> (&acc)[kN], const T* r00, const T* r01, const T* r10, const T* r11, A w00, A w01, A w10,
                     A w11) {
  constexpr int kWidth = Vec<A>::kWidth;
  const Vec<A> a = Vec<A>::broadcast(w00), b = Vec<A>::broadcast(w01);
  const Vec<A> c = Vec<A>::broadcast(w10), d = Vec<A>::broadcast(w11);
  for (int v = 0; v < kN; ++v) acc[v] = fma(a, Vec<A>::load(r00 + v * kWidth), acc[v]);
  for (int v = 0; v < kN; ++v) acc[v] = fma(b, Vec<A>::load(r01 + v * kWidth), acc[v]);
  for (int v = 0; v < kN; ++v) acc[v] = fma(c, Vec<A>::load(r10 + v * kWidth), acc[v]);
  for (int v = 0; v < kN; ++v) acc[v] = fma(d, Vec<A>::load(r11 + v * kWidth), acc[v]);
}

// Padded layout, forward. `rows` points at the first channel of the run, `sums` is [items][kN * width].
template <int kN, typename T, typename A>
void sum_padded(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t items, const T* rows,
                int64_t row_size, A* sums) {
  constexpr int kWidth = Vec<A>::kWidth;
  for (int32_t level = 0; level < p.levels; ++level) {
    const int32_t first = level * p.points;
    const int64_t down = lanes.stride[first] * row_size;
    for (int64_t item = 0; item < items; ++item) {
      A* sum = sums + item * kN * kWidth;
      Vec<A> acc[kN];
      for (int v = 0; v < kN; ++v) acc[v] = level == 0 ? Vec<A>::zero() : Vec<A>::load(sum + v * kWidth);
      const int64_t at = item * lanes.padded + first;
      for (int32_t k = 0; k < p.points; ++k) {
        const T* r = rows + b.row[at + k] * row_size;
        add_rows(acc, r, r + row_size, r + down, r + down + row_size, b.w00[at + k], b.w01[at + k], b.w10[at + k],
                 b.w11[at + k]);
      }
      for (int v = 0; v < kN; ++v) acc[v].store(sum + v * kWidth);
    }
  }
}

template <typename T>
struct Corners {
  T *r00, *r01, *r10, *r11;
};

// The four rows of a point in the direct layout; `zero` stands in for a corner outside.
template <typename T>
inline Corners<T> corners_of(T* base, int64_t row, int64_t line, int64_t row_stride, int32_t mask, T* zero) {
  T* r = base + row * row_stride;
  return {(mask & kCorner00) ? r : zero, (mask & kCorner01) ? r + row_stride : zero,
          (mask & kCorner10) ? r + line * row_stride : zero, (mask & kCorner11) ? r + (line + 1) * row_stride : zero};
}

inline void prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
}

// Direct layout: asks for the rows of one item ahead of their use.
template <typename T, typename A>
void prefetch_item(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t item, const T* base) {
  const int64_t bytes = p.channels * int64_t(sizeof(T));
  for (int32_t i = 0; i < lanes.count; ++i) {
    const int64_t at = item * lanes.padded + i;
    const Corners<const T> c = corners_of(base, b.row[at], lanes.stride[i], p.value_stride_s, b.mask[at], base);
    prefetch(c.r00, bytes);
    prefetch(c.r01, bytes);
    prefetch(c.r10, bytes);
    prefetch(c.r11, bytes);
  }
}

// Direct layout, forward, whole vectors only.
template <int kN, typename T, typename A>
void sum_direct(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t item, const T* base, T* zero,
                A* sum) {
  constexpr int kWidth = Vec<A>::kWidth;
  Vec<A> acc[kN];
  for (int v = 0; v < kN; ++v) acc[v] = Vec<A>::zero();
  for (int32_t i = 0; i < lanes.count; ++i) {
    const int64_t at = item * lanes.padded + i;
    const Corners<const T> c =
        corners_of(base, b.row[at], lanes.stride[i], p.value_stride_s, b.mask[at], const_cast<const T*>(zero));
    add_rows(acc, c.r00, c.r01, c.r10, c.r11, b.w00[at], b.w01[at], b.w10[at], b.w11[at]);
  }
  for (int v = 0; v < kN; ++v) acc[v].store(sum + v * kWidth);
}

// The last channels of a direct row, fewer than a vector.
template <typename T, typename A>
void sum_direct_tail(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t item, const T* base,
                     const T* zero, int64_t count, A* sum) {
  Vec<A> acc = Vec<A>::zero();
  for (int32_t i = 0; i < lanes.count; ++i) {
    const int64_t at = item * lanes.padded + i;
    const Corners<const T> c = corners_of(base, b.row[at], lanes.stride[i], p.value_stride_s, b.mask[at], zero);
    acc = fma(Vec<A>::broadcast(b.w00[at]), load_some<T, A>(c.r00, count), acc);
    acc = fma(Vec<A>::broadcast(b.w01[at]), load_some<T, A>(c.r01, count), acc);
    acc = fma(Vec<A>::broadcast(b.w10[at]), load_some<T, A>(c.r10, count), acc);
    acc = fma(Vec<A>::broadcast(b.w11[at]), load_some<T, A>(c.r11, count), acc);
  }
  acc.store(sum);
}

// Backward of one corner: returns <grad, row> over the run and adds weight * grad to the row's gradient.
template <int kN, typename A>
inline Vec<A> update_row(const A* row, A* grad_row, const Vec<A> (&grad)[kN], A weight, Vec<A> dot) {
  constexpr int kWidth = Vec<A>::kWidth;
  const Vec<A> w = Vec<A>::broadcast(weight);
  for (int v = 0; v < kN; ++v) {
    dot = fma(Vec<A>::load(row + v * kWidth), grad[v], dot);
    fma(w, grad[v], Vec<A>::load(grad_row + v * kWidth)).store(grad_row + v * kWidth);
  }
  return dot;
}

// Backward, for rows of accumulation type whose gradient lies `to_grad` elements after (padded) the value.
// `grads` is [items][grad_size] with the run's channels at its start.
template <int kN, typename A>
void update_padded(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t items, A* rows, int64_t row_size,
                   int64_t to_grad, const A* grads, int64_t grad_size, bool first_run) {
  constexpr int kWidth = Vec<A>::kWidth;
  const Vec<A> zero = Vec<A>::zero();
  for (int32_t level = 0; level < p.levels; ++level) {
    const int32_t first = level * p.points;
    const int64_t down = lanes.stride[first] * row_size;
    for (int64_t item = 0; item < items; ++item) {
      Vec<A> grad[kN];
      for (int v = 0; v < kN; ++v) grad[v] = Vec<A>::load(grads + item * grad_size + v * kWidth);
      A* dots = b.dots + 4 * item * lanes.padded;
      for (int32_t k = 0; k < p.points; ++k) {
        const int64_t at = item * lanes.padded + first + k;
        A* r00 = rows + b.row[at] * row_size;
        A* r10 = r00 + down;
        const Vec<A> d00 = update_row(r00, r00 + to_grad, grad, b.w00[at], zero);
        const Vec<A> d01 = update_row(r00 + row_size, r00 + row_size + to_grad, grad, b.w01[at], zero);
        const Vec<A> d10 = update_row(r10, r10 + to_grad, grad, b.w10[at], zero);
        const Vec<A> d11 = update_row(r10 + row_size, r10 + row_size + to_grad, grad, b.w11[at], zero);
        sum_four(d00, d01, d10, d11, !first_run, dots + dot_slot<A>(first + k));
      }
    }
  }
}

// Backward in the direct layout: value and its gradient are the tensors themselves. `zero` and `sink` stand in
// for corners outside.
template <int kN, typename A>
void update_direct(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t item, const A* base,
                   A* grad_base, int64_t grad_stride, const A* zero, A* sink, const A* grads, bool first_run) {
  constexpr int kWidth = Vec<A>::kWidth;
  Vec<A> grad[kN];
  for (int v = 0; v < kN; ++v) grad[v] = Vec<A>::load(grads + v * kWidth);
  const Vec<A> none = Vec<A>::zero();
  for (int32_t i = 0; i < lanes.count; ++i) {
    const int64_t at = item * lanes.padded + i;
    const Corners<const A> c = corners_of(base, b.row[at], lanes.stride[i], p.value_stride_s, b.mask[at], zero);
    const Corners<A> g = corners_of(grad_base, b.row[at], lanes.stride[i], grad_stride, b.mask[at], sink);
    const Vec<A> d00 = update_row(c.r00, g.r00, grad, b.w00[at], none);
    const Vec<A> d01 = update_row(c.r01, g.r01, grad, b.w01[at], none);
    const Vec<A> d10 = update_row(c.r10, g.r10, grad, b.w10[at], none);
    const Vec<A> d11 = update_row(c.r11, g.r11, grad, b.w11[at], none);
    sum_four(d00, d01, d10, d11, !first_run, b.dots + 4 * item * lanes.padded + dot_slot<A>(i));
  }
}

}  // namespace
}  // namespace msda
