// Sampling points on the CPU: reads them from the tensors, in either form, and computes rows and weights of their
// corners, for a block of items at a time. An item is one (batch, query, head). Its L * K points lie side by side,
// padded to whole groups, so that loops over them vectorize.
#pragma once

#include <type_traits>

#include "runtime.h"
#include "simd.h"

namespace msda {
namespace {

constexpr int kBlock = 16;  // items in a block: enough to run ahead of the gathers, few enough for L1
constexpr int kGroup = 16;  // points in a group

struct Item {
  int64_t n, q, m;
};
// Offset of an item's points in attention_weights, and half of that in sampling_locations.
inline int64_t points_offset(const Problem& p, const Item& item) {
  return ((item.n * p.queries + item.q) * p.heads + item.m) * (int64_t(p.levels) * p.points);
}
inline int64_t reference_offset(const Problem& p, int64_t n, int64_t q) {
  return (n * p.queries + q) * p.levels * p.ref_width;
}

// Rows of the levels in the layout of value that the kernel reads, in units of rows.
struct Layout {
  int32_t base[kMaxLevels];     // pixel (0, 0)
  int32_t stride[kMaxLevels];   // from one image line to the next
  int32_t outside[kMaxLevels];  // row for points that contribute nothing
  int64_t rows;
};

// Properties of an item's points that depend only on the level.
template <typename A>
struct PointTable {
  int32_t count;   // L * K
  int32_t padded;  // rounded up to whole groups
  A *width, *height;
  int32_t* valid;                    // -1 for a point, 0 for padding
  int32_t* reference;                // index of the level's first value in a reference point
  int32_t *base, *stride, *outside;  // as in Layout

  PointTable(const Problem& p, Arena& arena) : count(p.levels * p.points) {
    padded = (count + kGroup - 1) / kGroup * kGroup;
    for (A** array : {&width, &height}) *array = arena.take<A>(padded);
    for (int32_t** array : {&valid, &reference, &base, &stride, &outside}) *array = arena.take<int32_t>(padded);
  }

  void fill(const Problem& p, const Layout& layout) {
    for (int32_t i = 0; i < padded; ++i) {
      const int32_t level = i < count ? i / p.points : p.levels - 1;
      valid[i] = i < count ? -1 : 0;
      reference[i] = level * p.ref_width;
      width[i] = A(p.width[level]);
      height[i] = A(p.height[level]);
      base[i] = layout.base[level];
      stride[i] = layout.stride[level];
      outside[i] = layout.outside[level];
    }
  }
};

// The points of a block of items.
template <typename A>
struct PointBlock {
  A *x, *y, *attention;         // [kBlock][padded]; find_corners() replaces x and y with fx and fy
  A* weights;                   // [kBlock][padded / kGroup][4 corners][kGroup]: one pointer serves a point's weights
  int32_t *row, *mask;          // [kBlock][padded]: row of corner 00, corners inside the level
  A* dots = nullptr;            // backward only, [kBlock][padded][4]: see transpose_slot()
  A *grad_x, *grad_y, *grad_a;  // backward only, [kBlock][padded]: in the memory of weights no longer needed

  PointBlock(int64_t padded, bool backward, Arena& arena) {
    const int64_t n = kBlock * padded;
    for (A** array : {&x, &y, &attention}) *array = arena.take<A>(n);
    weights = arena.take<A>(4 * n);
    if (backward) dots = arena.take<A>(4 * n);
    grad_x = weights;
    grad_y = weights + n;
    grad_a = weights + 2 * n;
    row = arena.take<int32_t>(n);
    mask = arena.take<int32_t>(n);
    if (arena.base == nullptr) return;
    // The padding takes part in the arithmetic without effect, so any initial value is valid.
    for (A* array : {x, y, attention}) std::memset(array, 0, n * sizeof(A));
    if (backward) std::memset(dots, 0, 4 * n * sizeof(A));
  }
};

// Position of a point's first corner weight among those of its item; the others follow at distances of kGroup.
inline int64_t weight_slot(int64_t point) { return point + 3 * (point & -int64_t(kGroup)); }

// Always inlined, like its callers: GCC removes calls to a function that only prefetches.
MSDA_HOST_DEVICE void prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
}

// Prefetches an item's points for load_item(): one head's items are too far apart for the processor to detect the
// pattern.
template <typename P>
MSDA_HOST_DEVICE void prefetch_points(const Problem& p, const Item& item) {
  if (item.q >= p.queries) return;
  const int64_t offset = points_offset(p, item), bytes = int64_t(p.levels) * p.points * int64_t(sizeof(P));
  prefetch(static_cast<const P*>(p.xy) + 2 * offset, 2 * bytes);
  prefetch(static_cast<const P*>(p.attention) + offset, bytes);
}

// Returns whether whole vectors can be read from an item's points without passing the end of the tensor. Excess
// elements belong to the next items and end up in the padding.
template <typename A>
bool reads_whole_points(const Problem& p, const PointTable<A>& table, int64_t offset) {
  return sizeof(A) == 4 && offset + table.padded <= points_offset(p, {p.batch, 0, 0});
}
// The same check for an item's reference points, which must also fit one vector at any of four offsets.
template <typename A>
bool reads_whole_reference(const Problem& p, int64_t offset) {
  constexpr int width = kWidth<float>;
  return sizeof(A) == 4 && p.levels * p.ref_width <= width && offset + width + 3 <= reference_offset(p, p.batch, 0);
}

template <typename P, typename A>
void load_values(const P* in, int32_t count, bool whole, A* out) {
  int32_t i = 0;
  if (whole) {
    for (; i < count; i += kWidth<A>) store(load(in + i), out + i);
  }
  for (; i < count; ++i) out[i] = A(in[i]);
}

template <typename P, typename A>
void load_pairs(const P* in, int32_t count, bool whole, A* x, A* y) {
  int32_t i = 0;
  if constexpr (sizeof(A) == 4) {
    if (whole) {
      for (; i < count; i += kWidth<A>) {
        FloatVec vx, vy;
        split_pairs(load(in + 2 * i), load(in + 2 * i + kWidth<A>), vx, vy, kIndices);
        store(vx, x + i);
        store(vy, y + i);
      }
    }
  }
  for (; i < count; ++i) {
    x[i] = A(in[2 * i]);
    y[i] = A(in[2 * i + 1]);
  }
}

// exp(x) for x <= 0, to about one unit in the last place.
inline FloatVec exp_nonpositive(FloatVec x) {
  const FloatVec lowest = FloatVec{} - 104.0f;
  const FloatVec clamped = lowest < x ? x : lowest;
  FloatVec n;
  const IntVec whole = floor_to_int(clamped * 1.44269504f + 0.5f, n);
  FloatVec r = clamped - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  FloatVec e = 1.98412698e-4f * r + 1.38888889e-3f;
  e = e * r + 8.33333333e-3f;
  e = e * r + 4.16666667e-2f;
  e = e * r + 1.66666667e-1f;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  // 2^n in two factors: the result may be denormal.
  const IntVec half = whole >> 1;
  const IntVec first = (half + 127) << 23, second = (whole - half + 127) << 23;
  return x == x ? e * bit_cast<FloatVec>(first) * bit_cast<FloatVec>(second) : x;
}

template <typename P>
void softmax(const P* logits, int32_t count, bool whole, float* out) {
  constexpr int width = kWidth<float>;
  load_values(logits, count, whole, out);
  for (int32_t i = count; i % width != 0; ++i) out[i] = -INFINITY;
  FloatVec top = load(out);
  for (int32_t i = width; i < count; i += width) {
    const FloatVec x = load(out + i);
    top = top < x ? x : top;
  }
  const float largest = largest_of(top);
  FloatVec sums = {};
  for (int32_t i = 0; i < count; i += width) {
    const FloatVec e = exp_nonpositive(load(out + i) - largest);
    store(e, out + i);
    sums += e;
  }
  const float sum = sum_of(sums);
  for (int32_t i = 0; i < count; i += width) store(load(out + i) / sum, out + i);
}
inline void softmax(const double* logits, int32_t count, bool /*whole*/, double* out) {
  double largest = logits[0], sum = 0;
  for (int32_t i = 1; i < count; ++i) largest = logits[i] > largest ? logits[i] : largest;
  for (int32_t i = 0; i < count; ++i) sum += out[i] = std::exp(logits[i] - largest);
  for (int32_t i = 0; i < count; ++i) out[i] /= sum;
}

// Values at `part` (0 to 3) of the reference points of a vector of points, or of one point.
template <typename V, typename A, typename P>
V reference_values(const PointTable<A>& table, const P* reference, int part, int32_t point) {
  if constexpr (std::is_same<V, FloatVec>::value) {
    return look_up(load(reference + part), table.reference + point);
  } else {
    return V(reference[table.reference[point] + part]);
  }
}

// Scales x and y from units of offsets to those of locations, in place (see scale_offset()), and adds the reference
// points if kAddCenter. Without them this is the chain rule from gradients of locations to gradients of offsets.
template <typename V, bool kAddCenter, bool kBox, typename P, typename A>
void scale_offsets(const PointTable<A>& table, const P* reference, A points, A* x, A* y) {
  for (int32_t i = 0; i < table.count; i += sizeof(V) / sizeof(A)) {
    const V width = kBox ? reference_values<V>(table, reference, 2, i) : load_as<V>(table.width + i);
    const V height = kBox ? reference_values<V>(table, reference, 3, i) : load_as<V>(table.height + i);
    V sx = scale_offset(load_as<V>(x + i), width, kBox, points);
    V sy = scale_offset(load_as<V>(y + i), height, kBox, points);
    if (kAddCenter) {
      sx = add_rounded(reference_values<V>(table, reference, 0, i), sx);
      sy = add_rounded(reference_values<V>(table, reference, 1, i), sy);
    }
    store(sx, x + i);
    store(sy, y + i);
  }
}
template <bool kAddCenter, typename P, typename A>
void scale_offsets(const Problem& p, const PointTable<A>& table, const Item& item, A* x, A* y) {
  const int64_t offset = reference_offset(p, item.n, item.q);
  const P* reference = static_cast<const P*>(p.reference) + offset;
  const auto scale = [&](auto box) {
    constexpr bool kBox = decltype(box)::value;
    if (reads_whole_reference<A>(p, offset)) {
      scale_offsets<PointVec<A>, kAddCenter, kBox>(table, reference, A(p.points), x, y);
    } else {
      scale_offsets<A, kAddCenter, kBox>(table, reference, A(p.points), x, y);
    }
  };
  p.ref_width == 4 ? scale(std::true_type()) : scale(std::false_type());
}

// Reads an item's points into slot `slot` of the block, as locations and attention weights.
template <typename P, typename A>
void load_item(const Problem& p, const PointTable<A>& table, const PointBlock<A>& b, int64_t slot, const Item& item) {
  const int64_t offset = points_offset(p, item), at = slot * table.padded;
  const bool whole = reads_whole_points(p, table, offset);
  const P* attention = static_cast<const P*>(p.attention) + offset;
  load_pairs(static_cast<const P*>(p.xy) + 2 * offset, table.count, whole, b.x + at, b.y + at);
  if (p.source == PointSource::kLocations) {
    load_values(attention, table.count, whole, b.attention + at);
  } else {
    softmax(attention, table.count, whole, b.attention + at);
    scale_offsets<true, P>(p, table, item, b.x + at, b.y + at);
  }
}

// Computes rows, masks and weights of corners, and fractions of a pixel, from the locations of the first `items` slots.
template <typename A>
void find_corners(const PointTable<A>& table, const PointBlock<A>& b, int64_t items) {
  using V = PointVec<A>;
  using I = Int<V>;
  constexpr int64_t step = sizeof(V) / sizeof(A);
  for (int64_t slot = 0; slot < items; ++slot) {
    for (int64_t i = 0; i < table.count; i += step) {
      const int64_t at = slot * table.padded + i;
      const V width = load_as<V>(table.width + i), height = load_as<V>(table.height + i);
      const Sample<V> s = sample_at(load_as<V>(b.x + at), load_as<V>(b.y + at), width, height);
      V w00, w01, w10, w11;
      corner_weights(s, load_as<V>(b.attention + at), w00, w01, w10, w11);
      A* weights = b.weights + 4 * slot * table.padded + weight_slot(i);
      store(w00, weights);
      store(w01, weights + kGroup);
      store(w10, weights + 2 * kGroup);
      store(w11, weights + 3 * kGroup);
      store(s.fx, b.x + at);
      store(s.fy, b.y + at);
      store(s.mask, b.mask + at);
      const I inside = load_as<I>(table.base + i) + s.y0 * load_as<I>(table.stride + i) + s.x0;
      store(s.mask != 0 ? inside : load_as<I>(table.outside + i), b.row + at);
    }
  }
}

}  // namespace
}  // namespace msda
