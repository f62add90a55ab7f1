// The sampling points of a few items, laid out so that loops over them vectorise. An item is one (query, head); its
// L * K points lie side by side, padded to whole groups.
#pragma once

#include "../problem.h"
#include "../sampling.h"
#include "arena.h"
#include "shuffle.h"

namespace msda {
namespace {

constexpr int kBlock = 16;  // items prepared at a time: enough to run ahead of the gathers, small enough for L1
constexpr int kGroup = 16;  // points in a group

// Where the rows of each level are, for every point of an item.
template <typename A>
struct Lanes {
  int32_t count;   // L * K
  int32_t padded;  // rounded up to whole groups
  A* width;
  A* height;
  int32_t* valid;      // -1 for a point, 0 for padding
  int32_t* reference;  // index of the level's first value in a reference point
  int32_t* base;       // row index of pixel (0, 0)
  int32_t* stride;     // rows from one image line to the next
  int32_t* outside;    // row index for a point that contributes nothing
};

template <typename A>
struct Block {
  A *x, *y, *attention;  // [kBlock][padded]; after prepare() x and y hold the fractions fx and fy
  A* weights;            // [kBlock][padded / kGroup][4 corners][kGroup]: one pointer serves the four weights of a point
  int32_t *row, *mask;   // [kBlock][padded]
  // Backward only: [kBlock][padded][4], a point's four dot products at dot_slot(point) of its item.
  A* dots;
  // Backward only, [kBlock][padded]: gradients, in the memory of weights that are no longer needed.
  A *grad_x, *grad_y, *grad_attention;
};

// Position of a point's first corner weight among those of its item; the others follow at distances of kGroup.
inline int64_t weight_at(int64_t point) { return point + 3 * (point & -int64_t(kGroup)); }

template <typename A>
Lanes<A> make_lanes(const Problem& p, Arena& arena) {
  Lanes<A> lanes;
  lanes.count = p.levels * p.points;
  lanes.padded = (lanes.count + kGroup - 1) / kGroup * kGroup;
  lanes.width = arena.take<A>(lanes.padded);
  lanes.height = arena.take<A>(lanes.padded);
  int32_t** const arrays[] = {&lanes.valid, &lanes.reference, &lanes.base, &lanes.stride, &lanes.outside};
  for (int32_t** array : arrays) *array = arena.take<int32_t>(lanes.padded);
  return lanes;
}

template <typename A>
void fill_lanes(const Problem& p, Lanes<A>& lanes, const int32_t* base, const int32_t* stride, const int32_t* outside) {
  for (int32_t i = 0; i < lanes.padded; ++i) {
    const int32_t level = i < lanes.count ? i / p.points : p.levels - 1;
    lanes.valid[i] = i < lanes.count ? -1 : 0;
    lanes.reference[i] = level * p.ref_width;
    lanes.width[i] = A(p.width[level]);
    lanes.height[i] = A(p.height[level]);
    lanes.base[i] = base[level];
    lanes.stride[i] = stride[level];
    lanes.outside[i] = outside[level];
  }
}

template <typename A>
Block<A> make_block(const Lanes<A>& lanes, bool backward, Arena& arena) {
  const int64_t n = int64_t(kBlock) * lanes.padded;
  Block<A> b = {};
  A** const arrays[] = {&b.x, &b.y, &b.attention};
  for (A** array : arrays) *array = arena.take<A>(n);
  b.weights = arena.take<A>(4 * n);
  if (backward) b.dots = arena.take<A>(4 * n);
  b.grad_x = b.weights;
  b.grad_y = b.weights + n;
  b.grad_attention = b.weights + 2 * n;
  b.row = arena.take<int32_t>(n);
  b.mask = arena.take<int32_t>(n);
  if (arena.base != nullptr) {  // the padding is computed with, never used: it must only be initialised
    std::memset(b.x, 0, n * sizeof(A));
    std::memset(b.y, 0, n * sizeof(A));
    std::memset(b.attention, 0, n * sizeof(A));
    if (backward) std::memset(b.dots, 0, 4 * n * sizeof(A));
  }
  return b;
}

// Loops over the points of an item take several at once where the accumulator is float.
template <typename A>
struct Batch {
  using type = A;
};
#if defined(MSDA_LANES)
template <>
struct Batch<float> {
  using type = FloatLanes;
};
#endif

template <typename V, typename T>
MSDA_HOST_DEVICE V read(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <typename V, typename T>
MSDA_HOST_DEVICE void write(V v, T* p) {
  std::memcpy(p, &v, sizeof(V));
}

// Locations of `items` slots -> row indices, masks, corner weights and fractions.
template <typename A>
void prepare(const Lanes<A>& lanes, const Block<A>& b, int64_t items) {
  using V = typename Batch<A>::type;
  using I = typename Integer<V>::type;
  constexpr int64_t kStep = sizeof(V) / sizeof(A);
  for (int64_t slot = 0; slot < items; ++slot) {
    for (int64_t i = 0; i < lanes.count; i += kStep) {
      const int64_t at = slot * lanes.padded + i;
      const V width = read<V>(lanes.width + i), height = read<V>(lanes.height + i);
      const Sample<V> s = sample_at(read<V>(b.x + at), read<V>(b.y + at), width, height);
      V w00, w01, w10, w11;
      corner_weights(s, read<V>(b.attention + at), w00, w01, w10, w11);
      A* weights = b.weights + 4 * slot * lanes.padded + weight_at(i);
      write(w00, weights);
      write(w01, weights + kGroup);
      write(w10, weights + 2 * kGroup);
      write(w11, weights + 3 * kGroup);
      write(s.fx, b.x + at);
      write(s.fy, b.y + at);
      write(s.mask, b.mask + at);
      const I inside = read<I>(lanes.base + i) + s.y0 * read<I>(lanes.stride + i) + s.x0;
      write(choose(any_bit(s.mask), inside, read<I>(lanes.outside + i)), b.row + at);
    }
  }
}

}  // namespace
}  // namespace msda
