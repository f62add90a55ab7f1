// Last stage of the backward: from dot products to the gradients of the tensors that define the sampling points.
#pragma once

#include "points.h"

namespace msda {
namespace {

// Computes the gradients of locations and attention weights from the dot products of one slot.
template <typename A>
void compute_point_gradients(const PointTable<A>& table, const PointBlock<A>& b, int64_t slot) {
  using V = PointVec<A>;
  for (int64_t i = 0; i < table.count; i += sizeof(V) / sizeof(A)) {
    const int64_t at = slot * table.padded + i;
    V dots[4], gx, gy, ga;
    transpose_four(b.dots + 4 * at, dots);
    point_gradients(load_as<V>(b.x + at), load_as<V>(b.y + at), load_as<Int<V>>(b.mask + at),
                    load_as<V>(b.attention + at), load_as<V>(table.width + i), load_as<V>(table.height + i), dots[0],
                    dots[1], dots[2], dots[3], gx, gy, ga);
    store(gx, b.grad_x + at);
    store(gy, b.grad_y + at);
    store(ga, b.grad_a + at);
  }
}

// Gradient of one item's reference points, from the gradients of its locations.
template <typename P, typename A>
void store_reference_gradient(const Problem& p, const PointTable<A>& table, const A* gx, const A* gy,
                              const Item& item) {
  const P* offsets = static_cast<const P*>(p.xy) + 2 * points_offset(p, item);
  const int64_t size = p.levels * p.ref_width;
  A* grad = static_cast<A*>(p.grad_reference) + ((item.n * p.heads + item.m) * p.queries + item.q) * size;
  for (int64_t i = 0; i < size; ++i) grad[i] = 0;
  const A points = A(p.points);
  for (int32_t i = 0; i < table.count; ++i) {
    A* out = grad + table.reference[i];
    out[0] += gx[i];
    out[1] += gy[i];
    if (p.ref_width == 4) {
      out[2] += gx[i] * extent_factor(A(offsets[2 * i]), points);
      out[3] += gy[i] * extent_factor(A(offsets[2 * i + 1]), points);
    }
  }
}

// Converts gradients of attention weights to gradients of logits, in place.
template <typename A>
void softmax_backward(const PointTable<A>& table, const A* attention, A* grad) {
  using V = PointVec<A>;
  constexpr int32_t step = sizeof(V) / sizeof(A);
  V products = {};
  for (int32_t i = 0; i < table.count; i += step) {
    const V product = load_as<V>(attention + i) * load_as<V>(grad + i);
    products += load_as<Int<V>>(table.valid + i) != 0 ? product : V{};
  }
  const A mean = sum_of(products);
  for (int32_t i = 0; i < table.count; i += step) {
    store(load_as<V>(attention + i) * (load_as<V>(grad + i) - mean), grad + i);
  }
}

// Elements that do not fill a vector are stored one by one, because the next item's memory follows.
template <typename P, typename A>
void store_values(const A* in, int32_t count, P* out) {
  int32_t i = 0;
  for (; i + kWidth<A> <= count; i += kWidth<A>) store(load(in + i), out + i);
  for (; i < count; ++i) out[i] = P(in[i]);
}
template <typename P, typename A>
void store_pairs(const A* x, const A* y, int32_t count, P* out) {
  int32_t i = 0;
  if constexpr (sizeof(A) == 4) {
    for (; i + kWidth<A> <= count; i += kWidth<A>) {
      FloatVec a, b;
      join_pairs(load(x + i), load(y + i), a, b, kIndices);
      store(a, out + 2 * i);
      store(b, out + 2 * i + kWidth<A>);
    }
  }
  for (; i < count; ++i) {
    out[2 * i] = P(x[i]);
    out[2 * i + 1] = P(y[i]);
  }
}

// Writes the gradients of the item in slot `slot` of the block. Only items without padding are streamed.
template <typename P, typename A>
void store_point_gradients(const Problem& p, const PointTable<A>& table, const PointBlock<A>& b, int64_t slot,
                           const Item& item, bool streams) {
  const int64_t at = slot * table.padded, offset = points_offset(p, item);
  A *gx = b.grad_x + at, *gy = b.grad_y + at, *ga = b.grad_a + at;
  compute_point_gradients(table, b, slot);
  if (p.source == PointSource::kOffsets) {
    if (p.grad_reference != nullptr) store_reference_gradient<P>(p, table, gx, gy, item);
    softmax_backward(table, b.attention + at, ga);
    scale_offsets<false, P>(p, table, item, gx, gy);
  }
  P *xy = static_cast<P*>(p.grad_xy) + 2 * offset, *attention = static_cast<P*>(p.grad_attention) + offset;
  if (streams) {
    const int32_t count = table.count;
    P* rounded = reinterpret_cast<P*>(b.dots + 4 * at);  // the dot products are no longer needed
    store_pairs(gx, gy, count, rounded);
    store_values(ga, count, rounded + 2 * count);
    stream(rounded, 2 * count, xy);
    stream(rounded + 2 * count, count, attention);
  } else {
    store_pairs(gx, gy, table.count, xy);
    store_values(ga, table.count, attention);
  }
}

}  // namespace
}  // namespace msda
