// Last stage of the backward: from dot products to the gradients of the tensors that describe the sampling points.
#pragma once

#include "load.h"

namespace msda {
namespace {

// Dot products of one slot -> gradients of x, y and attention.
template <typename A>
void finish(const Lanes<A>& lanes, const Block<A>& b, int64_t slot) {
  using V = typename Batch<A>::type;
  using I = typename Integer<V>::type;
  constexpr int64_t kStep = sizeof(V) / sizeof(A);
  for (int64_t i = 0; i < lanes.count; i += kStep) {
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

// Gradient of one item's reference points, from the gradients of its locations.
template <typename P, typename A>
void store_reference(const Problem& p, const Lanes<A>& lanes, const A* gx, const A* gy, int64_t n, int64_t q,
                     int64_t m) {
  const P* offsets = static_cast<const P*>(p.xy) + 2 * item_offset(p, n, q, m);
  A* grad = static_cast<A*>(p.grad_reference) + ((n * p.heads + m) * p.queries + q) * p.levels * p.ref_width;
  for (int32_t i = 0; i < p.levels * p.ref_width; ++i) grad[i] = 0;
  const A points = A(p.points);
  for (int32_t i = 0; i < lanes.count; ++i) {
    A* out = grad + lanes.reference[i];
    out[0] += gx[i];
    out[1] += gy[i];
    if (p.ref_width == 4) {
      out[2] += gx[i] * (to_acc(offsets[2 * i]) / points * A(0.5));
      out[3] += gy[i] * (to_acc(offsets[2 * i + 1]) / points * A(0.5));
    }
  }
}

inline float sum_lanes(FloatLanes x) { return sum_all(read<Vec<float>>(&x)); }
inline double sum_lanes(double x) { return x; }

// Gradients of attention weights -> of logits, in place.
template <typename A>
void through_softmax(const Lanes<A>& lanes, const A* attention, A* grad) {
  using V = typename Batch<A>::type;
  constexpr int32_t kStep = sizeof(V) / sizeof(A);
  using I = typename Integer<V>::type;
  V products = {};
  for (int32_t i = 0; i < lanes.count; i += kStep) {
    const V product = read<V>(attention + i) * read<V>(grad + i);
    const I valid = read<I>(lanes.valid + i);
    products += choose(valid, product, V{});
  }
  const A mean = sum_lanes(products);
  for (int32_t i = 0; i < lanes.count; i += kStep) {
    write(read<V>(attention + i) * (read<V>(grad + i) - mean), grad + i);
  }
}

// Gradients of locations -> of offsets, in place.
template <typename P, typename A>
void through_locations(const Problem& p, const Lanes<A>& lanes, const P* reference, A* gx, A* gy) {
  const A points = A(p.points);
  for (int32_t i = 0; i < lanes.count; ++i) {
    const P* ref = reference + lanes.reference[i];
    if (p.ref_width == 2) {
      gx[i] = gx[i] / lanes.width[i];
      gy[i] = gy[i] / lanes.height[i];
    } else {
      gx[i] = gx[i] / points * to_acc(ref[2]) * A(0.5);
      gy[i] = gy[i] / points * to_acc(ref[3]) * A(0.5);
    }
  }
}

template <typename P>
void through_locations_whole(const Problem& p, const Lanes<float>& lanes, const P* reference, float* gx, float* gy) {
  const float points = float(p.points);
  for (int32_t i = 0; i < lanes.count; i += Vec<float>::kWidth) {
    const FloatLanes dx = read<FloatLanes>(gx + i), dy = read<FloatLanes>(gy + i);
    if (p.ref_width == 2) {
      write(dx / read<FloatLanes>(lanes.width + i), gx + i);
      write(dy / read<FloatLanes>(lanes.height + i), gy + i);
    } else {
      write(dx / points * reference_lanes(lanes, reference, 2, i) * 0.5f, gx + i);
      write(dy / points * reference_lanes(lanes, reference, 3, i) * 0.5f, gy + i);
    }
  }
}
template <typename P>
void through_locations_whole(const Problem&, const Lanes<double>&, const P*, double*, double*) {}

// Chain rule through softmax and location arithmetic, in place; also writes the reference points' gradient.
template <typename P, typename A>
void through_offsets(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t slot, int64_t n, int64_t q,
                     int64_t m) {
  const int64_t at = slot * lanes.padded, ref = reference_offset(p, n, q);
  A *gx = b.grad_x + at, *gy = b.grad_y + at;
  if (p.grad_reference != nullptr) store_reference<P>(p, lanes, gx, gy, n, q, m);
  through_softmax(lanes, b.attention + at, b.grad_attention + at);
  const P* reference = static_cast<const P*>(p.reference) + ref;
  if (whole_reference(p, lanes, ref)) {
    through_locations_whole(p, lanes, reference, gx, gy);
  } else {
    through_locations(p, lanes, reference, gx, gy);
  }
}

// Points that do not fill a vector are stored one by one: behind them lies another item's memory.
template <typename P>
void store_pairs(const float* x, const float* y, int32_t count, P* out) {
  constexpr int kWidth = Vec<float>::kWidth;
  int32_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    Vec<float> a, b;
    join_pairs(Vec<float>::load(x + i), Vec<float>::load(y + i), a, b);
    store_as(a, out + 2 * i);
    store_as(b, out + 2 * i + kWidth);
  }
  for (; i < count; ++i) {
    from_acc(x[i], out[2 * i]);
    from_acc(y[i], out[2 * i + 1]);
  }
}
inline void store_pairs(const double* x, const double* y, int32_t count, double* out) {
  for (int32_t i = 0; i < count; ++i) {
    out[2 * i] = x[i];
    out[2 * i + 1] = y[i];
  }
}

// Writes the gradients of item (n, q, m).
template <typename P, typename A>
void store_item(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t slot, int64_t n, int64_t q,
                int64_t m) {
  finish(lanes, b, slot);
  if (p.source == PointSource::kOffsets) through_offsets<P>(p, lanes, b, slot, n, q, m);
  const int64_t at = slot * lanes.padded, offset = item_offset(p, n, q, m);
  store_pairs(b.grad_x + at, b.grad_y + at, lanes.count, static_cast<P*>(p.grad_xy) + 2 * offset);
  P* grad_attention = static_cast<P*>(p.grad_attention) + offset;
  int32_t i = 0;
  for (; i + Vec<A>::kWidth <= lanes.count; i += Vec<A>::kWidth) {
    store_as(Vec<A>::load(b.grad_attention + at + i), grad_attention + i);
  }
  for (; i < lanes.count; ++i) from_acc(b.grad_attention[at + i], grad_attention[i]);
}

}  // namespace
}  // namespace msda
