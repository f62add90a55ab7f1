// Inner loops of the forward: weighted sums of rows.
#pragma once

#include "layout.h"

namespace msda {
namespace {

// Chains of multiply-adds that run side by side, so that their latency is hidden: two per multiplier and cycle of
// latency, in as many registers as there are. kN registers of channels take kSets sets of accumulators.
constexpr int sets_for(int registers) { return registers <= 2 ? 4 : registers <= 4 ? 2 : 1; }

template <int kN, typename T, typename A>
inline void add_row(Vec<A> (&sum)[kN], const T* row, A weight) {
  constexpr int kWidth = Vec<A>::kWidth;
  const Vec<A> w = Vec<A>::broadcast(weight);
  for (int v = 0; v + 1 < kN; v += 2) {
    Vec<A> a, b;
    load_two(row + v * kWidth, a, b);
    sum[v] = fma(w, a, sum[v]);
    sum[v + 1] = fma(w, b, sum[v + 1]);
  }
  if (kN % 2) sum[kN - 1] = fma(w, Vec<A>::load(row + (kN - 1) * kWidth), sum[kN - 1]);
}

template <int kN, typename A>
struct Sums {
  static constexpr int kSets = sets_for(kN);
  Vec<A> set[kSets][kN];

  void clear() {
    for (auto& s : set) {
      for (Vec<A>& v : s) v = Vec<A>::zero();
    }
  }
  template <typename T>
  void add_point(const T* r00, const T* r01, const T* r10, const T* r11, const A* weights) {
    add_row(set[0], r00, weights[0]);
    add_row(set[1 % kSets], r01, weights[kGroup]);
    add_row(set[2 % kSets], r10, weights[2 * kGroup]);
    add_row(set[3 % kSets], r11, weights[3 * kGroup]);
  }
  void store(bool add, A* out) const {
    constexpr int kWidth = Vec<A>::kWidth;
    for (int v = 0; v < kN; ++v) {
      Vec<A> sum = set[0][v];
      if (kSets == 4) sum = (sum + set[1 % kSets][v]) + (set[2 % kSets][v] + set[3 % kSets][v]);
      if (kSets == 2) sum = sum + set[1 % kSets][v];
      if (add) sum = sum + Vec<A>::load(out + v * kWidth);
      sum.store(out + v * kWidth);
    }
  }
};

// Padded layout. `rows` points at the first channel of the run, `sums` is [items][kN * width]. kPoints is the number
// of points if it is known at compile time (and divides kGroup), else 0.
template <int kN, int kPoints, typename T, typename A>
void sum_padded(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t items, const T* rows,
                int64_t row_size, A* sums) {
  const int32_t points = kPoints ? kPoints : p.points;
  for (int32_t level = 0; level < p.levels; ++level) {
    const int32_t first = level * points;
    const int64_t down = lanes.stride[first] * row_size;
    for (int64_t item = 0; item < items; ++item) {
      const A* weights = b.weights + 4 * item * lanes.padded;
      const int32_t* row = b.row + item * lanes.padded + first;
      if (kPoints) weights += weight_at(first);
      Sums<kN, A> s;
      s.clear();
      for (int32_t k = 0; k < points; ++k) {
        const T* r = rows + row[k] * row_size;
        s.add_point(r, r + row_size, r + down, r + down + row_size, weights + (kPoints ? k : weight_at(first + k)));
      }
      s.store(level > 0, sums + item * kN * Vec<A>::kWidth);
    }
  }
}

// Direct layout, whole vectors only.
template <int kN, typename T, typename A>
void sum_direct(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t item, const T* base, const T* zero,
                A* sum) {
  const A* weights = b.weights + 4 * item * lanes.padded;
  const int64_t at = item * lanes.padded;
  Sums<kN, A> s;
  s.clear();
  for (int32_t i = 0; i < lanes.count; ++i) {
    const Corners<const T> c = corners_of(base, b.row[at + i], lanes.stride[i], p.value_stride_s, b.mask[at + i], zero);
    s.add_point(c.r00, c.r01, c.r10, c.r11, weights + weight_at(i));
  }
  s.store(false, sum);
}

// The last channels of a direct row, fewer than a vector.
template <typename T, typename A>
void sum_direct_tail(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t item, const T* base,
                     const T* zero, int64_t count, A* sum) {
  Vec<A> acc = Vec<A>::zero();
  for (int32_t i = 0; i < lanes.count; ++i) {
    const int64_t at = item * lanes.padded + i;
    const A* weights = b.weights + 4 * item * lanes.padded + weight_at(i);
    const Corners<const T> c = corners_of(base, b.row[at], lanes.stride[i], p.value_stride_s, b.mask[at], zero);
    acc = fma(Vec<A>::broadcast(weights[0]), load_some<T, A>(c.r00, count), acc);
    acc = fma(Vec<A>::broadcast(weights[kGroup]), load_some<T, A>(c.r01, count), acc);
    acc = fma(Vec<A>::broadcast(weights[2 * kGroup]), load_some<T, A>(c.r10, count), acc);
    acc = fma(Vec<A>::broadcast(weights[3 * kGroup]), load_some<T, A>(c.r11, count), acc);
  }
  acc.store(sum);
}

}  // namespace
}  // namespace msda
