// First and last stage of the CPU kernels: from the tensors that describe the sampling points to row indices and
// corner weights of a block of items, and back from dot products to the gradients of those tensors.
// An item is one (query, head); its L * K points lie side by side, padded to `lanes`, so that loops vectorise.
#pragma once

#include "../problem.h"
#include "../sampling.h"
#include "arena.h"
#include "vec.h"

namespace msda {
namespace {

constexpr int kBlock = 16;  // items prepared at a time: enough to run ahead of the gathers, small enough for L1

// Where the rows of each level are, for every point of an item.
template <typename A>
struct Lanes {
  int32_t count;   // L * K
  int32_t padded;  // rounded up to a full vector
  A* width;
  A* height;
  int32_t* level;
  int32_t* base;     // row index of pixel (0, 0)
  int32_t* stride;   // rows from one image line to the next
  int32_t* outside;  // row index for a point that contributes nothing
};

template <typename A>
struct Block {
  A *x, *y, *attention;      // [kBlock][padded]; after prepare() x and y hold the fractions fx and fy
  A *w00, *w01, *w10, *w11;  // [kBlock][padded]
  // Backward only: [kBlock][padded][4], a point's four dot products at dot_slot(point) of its item.
  A* dots;
  // Backward only, [kBlock][padded]: gradients, in the memory of weights that are no longer needed.
  A *grad_x, *grad_y, *grad_attention;
  int32_t *row, *mask;  // [kBlock][padded]
};

template <typename A>
Lanes<A> make_lanes(const Problem& p, Arena& arena) {
  Lanes<A> lanes;
  lanes.count = p.levels * p.points;
  const int32_t w = 64 / int32_t(sizeof(A));
  lanes.padded = (lanes.count + w - 1) / w * w;
  lanes.width = arena.take<A>(lanes.padded);
  lanes.height = arena.take<A>(lanes.padded);
  lanes.level = arena.take<int32_t>(lanes.padded);
  lanes.base = arena.take<int32_t>(lanes.padded);
  lanes.stride = arena.take<int32_t>(lanes.padded);
  lanes.outside = arena.take<int32_t>(lanes.padded);
  return lanes;
}

template <typename A>
void fill_lanes(const Problem& p, Lanes<A>& lanes, const int32_t* base, const int32_t* stride, const int32_t* outside) {
  for (int32_t i = 0; i < lanes.padded; ++i) {
    const int32_t level = i < lanes.count ? i / p.points : p.levels - 1;
    lanes.level[i] = level;
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
  A** const arrays[] = {&b.x, &b.y, &b.attention, &b.w00, &b.w01, &b.w10, &b.w11};
  for (A** array : arrays) *array = arena.take<A>(n);
  if (backward) b.dots = arena.take<A>(4 * n);
  b.grad_x = b.w00;
  b.grad_y = b.w01;
  b.grad_attention = b.w10;
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

// Offset of one item's points in sampling_locations / 2 and attention_weights.
inline int64_t item_offset(const Problem& p, int64_t n, int64_t q, int64_t m) {
  return ((n * p.queries + q) * p.heads + m) * (int64_t(p.levels) * p.points);
}

template <typename P, typename A>
void load_pairs(const P* in, int32_t count, A* x, A* y) {
  for (int32_t i = 0; i < count; ++i) {
    x[i] = to_acc(in[2 * i]);
    y[i] = to_acc(in[2 * i + 1]);
  }
}

// exp(x) for x <= 0 to about one unit in the last place, in plain arithmetic so that the loop vectorises.
inline float exp_nonpositive(float x) {
  const float clamped = x > -104.0f ? x : -104.0f;
  const float n = floorf(clamped * 1.44269504f + 0.5f);
  float r = clamped - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  float e = 1.98412698e-4f;
  e = e * r + 1.38888889e-3f;
  e = e * r + 8.33333333e-3f;
  e = e * r + 4.16666667e-2f;
  e = e * r + 1.66666667e-1f;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  // 2^n in two factors: the result may be denormal.
  const int32_t half = int32_t(n) / 2;
  const int32_t rest = int32_t(n) - half;
  const float result = e * bits_to_float(uint32_t(half + 127) << 23) * bits_to_float(uint32_t(rest + 127) << 23);
  return x != x ? x : result;
}
inline double exp_nonpositive(double x) { return std::exp(x); }

template <typename P, typename A>
void softmax(const P* logits, int32_t count, A* out) {
  A largest = to_acc(logits[0]);
  for (int32_t i = 0; i < count; ++i) {
    out[i] = to_acc(logits[i]);
    largest = out[i] > largest ? out[i] : largest;
  }
  A sum = 0;
  for (int32_t i = 0; i < count; ++i) out[i] = exp_nonpositive(out[i] - largest);
  for (int32_t i = 0; i < count; ++i) sum += out[i];
  for (int32_t i = 0; i < count; ++i) out[i] /= sum;
}

// x, y <- locations of one item's points from reference points and offsets.
template <typename P, typename A>
void locate(const Problem& p, const Lanes<A>& lanes, const P* reference, A* x, A* y) {
  const A points = A(p.points);
  if (p.ref_width == 2) {
    for (int32_t i = 0; i < lanes.count; ++i) {
      const P* ref = reference + 2 * lanes.level[i];
      x[i] = to_acc(ref[0]) + x[i] / lanes.width[i];
      y[i] = to_acc(ref[1]) + y[i] / lanes.height[i];
    }
  } else {
    for (int32_t i = 0; i < lanes.count; ++i) {
      const P* ref = reference + 4 * lanes.level[i];
      x[i] = location_from_box(to_acc(ref[0]), x[i], to_acc(ref[2]), points);
      y[i] = location_from_box(to_acc(ref[1]), y[i], to_acc(ref[3]), points);
    }
  }
}

// Reads the points of item (n, q, m) into slot `slot` of the block as locations and attention weights.
template <typename P, typename A>
void load_item(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t slot, int64_t n, int64_t q,
               int64_t m) {
  const int64_t offset = item_offset(p, n, q, m);
  const int64_t at = slot * lanes.padded;
  const P* attention = static_cast<const P*>(p.attention) + offset;
  load_pairs(static_cast<const P*>(p.xy) + 2 * offset, lanes.count, b.x + at, b.y + at);
  if (p.source == PointSource::kLocations) {
    for (int32_t i = 0; i < lanes.count; ++i) b.attention[at + i] = to_acc(attention[i]);
  } else {
    softmax(attention, lanes.count, b.attention + at);
    const int64_t ref = (n * p.queries + q) * p.levels * p.ref_width;
    locate(p, lanes, static_cast<const P*>(p.reference) + ref, b.x + at, b.y + at);
  }
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
  const int64_t padded = lanes.padded;
  for (int64_t slot = 0; slot < items; ++slot) {
    for (int64_t i = 0; i < padded; i += kStep) {
      const int64_t at = slot * padded + i;
      const V width = read<V>(lanes.width + i), height = read<V>(lanes.height + i);
      const Sample<V> s = sample_at(read<V>(b.x + at), read<V>(b.y + at), width, height);
      V w00, w01, w10, w11;
      corner_weights(s, read<V>(b.attention + at), w00, w01, w10, w11);
      write(w00, b.w00 + at);
      write(w01, b.w01 + at);
      write(w10, b.w10 + at);
      write(w11, b.w11 + at);
      write(s.fx, b.x + at);
      write(s.fy, b.y + at);
      write(s.mask, b.mask + at);
      const I inside = read<I>(lanes.base + i) + s.y0 * read<I>(lanes.stride + i) + s.x0;
      write(choose(any_bit(s.mask), inside, read<I>(lanes.outside + i)), b.row + at);
    }
  }
}

// Dot products of one slot -> gradients of x, y and attention.
template <typename A>
void finish(const Lanes<A>& lanes, const Block<A>& b, int64_t slot) {
  using V = typename Batch<A>::type;
  using I = typename Integer<V>::type;
  constexpr int64_t kStep = sizeof(V) / sizeof(A);
  for (int64_t i = 0; i < lanes.padded; i += kStep) {
    const int64_t at = slot * lanes.padded + i;
    A d00[kStep], d01[kStep], d10[kStep], d11[kStep];
    transpose_four(b.dots + 4 * at, d00, d01, d10, d11);
    V gx, gy, ga;
    point_gradients(read<V>(b.x + at), read<V>(b.y + at), read<I>(b.mask + at), read<V>(b.attention + at),
                    read<V>(lanes.width + i), read<V>(lanes.height + i), read<V>(d00), read<V>(d01), read<V>(d10),
                    read<V>(d11), gx, gy, ga);
    write(gx, b.grad_x + at);
    write(gy, b.grad_y + at);
    write(ga, b.grad_attention + at);
  }
}

// Chain rule through softmax and location arithmetic, in place; also writes the reference points' gradient.
template <typename P, typename A>
void through_offsets(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t slot, int64_t n, int64_t q,
                     int64_t m) {
  const int64_t at = slot * lanes.padded;
  A *gx = b.grad_x + at, *gy = b.grad_y + at, *ga = b.grad_attention + at;
  const A* attention = b.attention + at;
  const P* reference = static_cast<const P*>(p.reference) + (n * p.queries + q) * p.levels * p.ref_width;
  const P* offsets = static_cast<const P*>(p.xy) + 2 * item_offset(p, n, q, m);
  A* grad_reference = nullptr;
  if (p.grad_reference != nullptr) {
    grad_reference = static_cast<A*>(p.grad_reference) + ((n * p.heads + m) * p.queries + q) * p.levels * p.ref_width;
    for (int32_t i = 0; i < p.levels * p.ref_width; ++i) grad_reference[i] = 0;
  }
  A mean = 0;
  for (int32_t i = 0; i < lanes.count; ++i) mean += attention[i] * ga[i];
  const A points = A(p.points);
  for (int32_t i = 0; i < lanes.count; ++i) {
    ga[i] = attention[i] * (ga[i] - mean);
    const P* ref = reference + p.ref_width * lanes.level[i];
    if (grad_reference != nullptr) {
      A* out = grad_reference + p.ref_width * lanes.level[i];
      out[0] += gx[i];
      out[1] += gy[i];
      if (p.ref_width == 4) {
        out[2] += gx[i] * (to_acc(offsets[2 * i]) / points * A(0.5));
        out[3] += gy[i] * (to_acc(offsets[2 * i + 1]) / points * A(0.5));
      }
    }
    if (p.ref_width == 2) {
      gx[i] = gx[i] / lanes.width[i];
      gy[i] = gy[i] / lanes.height[i];
    } else {
      gx[i] = gx[i] / points * to_acc(ref[2]) * A(0.5);
      gy[i] = gy[i] / points * to_acc(ref[3]) * A(0.5);
    }
  }
}

// Writes the gradients of item (n, q, m) for the points of levels [first, last).
template <typename P, typename A>
void store_item(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t slot, int64_t n, int64_t q,
                int64_t m) {
  finish(lanes, b, slot);
  if (p.source == PointSource::kOffsets) through_offsets<P>(p, lanes, b, slot, n, q, m);
  const int64_t at = slot * lanes.padded;
  const int64_t offset = item_offset(p, n, q, m);
  P* grad_xy = static_cast<P*>(p.grad_xy) + 2 * offset;
  P* grad_attention = static_cast<P*>(p.grad_attention) + offset;
  for (int32_t i = 0; i < lanes.count; ++i) {
    from_acc(b.grad_x[at + i], grad_xy[2 * i]);
    from_acc(b.grad_y[at + i], grad_xy[2 * i + 1]);
    from_acc(b.grad_attention[at + i], grad_attention[i]);
  }
}

}  // namespace
}  // namespace msda
