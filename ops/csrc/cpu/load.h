// First stage of the CPU kernels: reads the sampling points of an item as locations and attention weights.
#pragma once

#include "block.h"

namespace msda {
namespace {

// Offset of one item's points in sampling_locations / 2 and attention_weights.
inline int64_t item_offset(const Problem& p, int64_t n, int64_t q, int64_t m) {
  return ((n * p.queries + q) * p.heads + m) * (int64_t(p.levels) * p.points);
}
inline int64_t reference_offset(const Problem& p, int64_t n, int64_t q) {
  return (n * p.queries + q) * p.levels * p.ref_width;
}

// Whether whole vectors may be read from an item's points on: what they read too much belongs to the next items, and
// ends in the padding, but the tensor must not end before.
inline bool whole_points(const Problem& p, const Lanes<float>& lanes, int64_t offset) {
  return offset + lanes.padded <= item_offset(p, p.batch, 0, 0);
}
inline bool whole_points(const Problem&, const Lanes<double>&, int64_t) { return false; }

// The same for the table of an item's reference points, which must fit one register at any of four offsets.
inline bool whole_reference(const Problem& p, const Lanes<float>&, int64_t offset) {
  constexpr int kWidth = Vec<float>::kWidth;
  return p.levels * p.ref_width <= kWidth && offset + kWidth + 3 <= reference_offset(p, p.batch, 0);
}
inline bool whole_reference(const Problem&, const Lanes<double>&, int64_t) { return false; }

template <typename P, typename A>
void load_values(const P* in, int32_t count, bool whole, A* out) {
  int32_t i = 0;
  if (whole) {
    for (; i < count; i += Vec<A>::kWidth) Vec<A>::load(in + i).store(out + i);
  }
  for (; i < count; ++i) out[i] = to_acc(in[i]);
}

template <typename P>
void load_pairs(const P* in, int32_t count, bool whole, float* x, float* y) {
  constexpr int kWidth = Vec<float>::kWidth;
  int32_t i = 0;
  if (whole) {
    for (; i < count; i += kWidth) {
      Vec<float> vx, vy;
      split_pairs(Vec<float>::load(in + 2 * i), Vec<float>::load(in + 2 * i + kWidth), vx, vy);
      vx.store(x + i);
      vy.store(y + i);
    }
  }
  for (; i < count; ++i) {
    x[i] = to_acc(in[2 * i]);
    y[i] = to_acc(in[2 * i + 1]);
  }
}
inline void load_pairs(const double* in, int32_t count, bool /*whole*/, double* x, double* y) {
  for (int32_t i = 0; i < count; ++i) {
    x[i] = in[2 * i];
    y[i] = in[2 * i + 1];
  }
}

// exp(x) for x <= 0 to about one unit in the last place.
inline FloatLanes exp_nonpositive(FloatLanes x) {
  const FloatLanes lowest = FloatLanes{} - 104.0f;
  const FloatLanes clamped = choose(lowest < x, x, lowest);
  FloatLanes n;
  const IntLanes whole = floor_to_int(clamped * 1.44269504f + 0.5f, n);
  FloatLanes r = clamped - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  FloatLanes e = 1.98412698e-4f * r + 1.38888889e-3f;
  e = e * r + 8.33333333e-3f;
  e = e * r + 4.16666667e-2f;
  e = e * r + 1.66666667e-1f;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  // 2^n in two factors: the result may be denormal.
  const IntLanes half = whole >> 1;
  const IntLanes first = (half + 127) << 23, second = (whole - half + 127) << 23;
  return choose(x == x, e * read<FloatLanes>(&first) * read<FloatLanes>(&second), x);
}

template <typename P>
void softmax(const P* logits, int32_t count, bool whole, float* out) {
  constexpr int kWidth = Vec<float>::kWidth;
  load_values(logits, count, whole, out);
  for (int32_t i = count; i % kWidth != 0; ++i) out[i] = -INFINITY;
  FloatLanes top = read<FloatLanes>(out);
  for (int32_t i = kWidth; i < count; i += kWidth) {
    const FloatLanes x = read<FloatLanes>(out + i);
    top = choose(top < x, x, top);
  }
  const float largest = largest_of(read<Vec<float>>(&top));
  FloatLanes sums = {};
  for (int32_t i = 0; i < count; i += kWidth) {
    const FloatLanes e = exp_nonpositive(read<FloatLanes>(out + i) - largest);
    write(e, out + i);
    sums += e;
  }
  const float sum = sum_all(read<Vec<float>>(&sums));
  for (int32_t i = 0; i < count; i += kWidth) write(read<FloatLanes>(out + i) / sum, out + i);
}
inline void softmax(const double* logits, int32_t count, bool /*whole*/, double* out) {
  double largest = logits[0], sum = 0;
  for (int32_t i = 1; i < count; ++i) largest = logits[i] > largest ? logits[i] : largest;
  for (int32_t i = 0; i < count; ++i) sum += out[i] = std::exp(logits[i] - largest);
  for (int32_t i = 0; i < count; ++i) out[i] /= sum;
}

// x, y <- locations of one item's points from reference points and offsets.
template <typename P, typename A>
void locate(const Problem& p, const Lanes<A>& lanes, const P* reference, A* x, A* y) {
  const A points = A(p.points);
  for (int32_t i = 0; i < lanes.count; ++i) {
    const P* ref = reference + lanes.reference[i];
    if (p.ref_width == 2) {
      x[i] = to_acc(ref[0]) + x[i] / lanes.width[i];
      y[i] = to_acc(ref[1]) + y[i] / lanes.height[i];
    } else {
      x[i] = location_from_box(to_acc(ref[0]), x[i], to_acc(ref[2]), points);
      y[i] = location_from_box(to_acc(ref[1]), y[i], to_acc(ref[3]), points);
    }
  }
}

// Value `part` (0 to 3) of the reference point of each of a register of points.
template <typename P>
FloatLanes reference_lanes(const Lanes<float>& lanes, const P* reference, int part, int32_t point) {
  const Vec<float> found = look_up(Vec<float>::load(reference + part), lanes.reference + point);
  return read<FloatLanes>(&found.v);
}

template <typename P>
void locate_whole(const Problem& p, const Lanes<float>& lanes, const P* reference, float* x, float* y) {
  const float points = float(p.points);
  for (int32_t i = 0; i < lanes.count; i += Vec<float>::kWidth) {
    const FloatLanes cx = reference_lanes(lanes, reference, 0, i), cy = reference_lanes(lanes, reference, 1, i);
    const FloatLanes dx = read<FloatLanes>(x + i), dy = read<FloatLanes>(y + i);
    if (p.ref_width == 2) {
      write(cx + dx / read<FloatLanes>(lanes.width + i), x + i);
      write(cy + dy / read<FloatLanes>(lanes.height + i), y + i);
    } else {
      write(location_from_box(cx, dx, reference_lanes(lanes, reference, 2, i), points), x + i);
      write(location_from_box(cy, dy, reference_lanes(lanes, reference, 3, i), points), y + i);
    }
  }
}
template <typename P>
void locate_whole(const Problem&, const Lanes<double>&, const P*, double*, double*) {}

// Reads the points of item (n, q, m) into slot `slot` of the block as locations and attention weights.
template <typename P, typename A>
void load_item(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t slot, int64_t n, int64_t q,
               int64_t m) {
  const int64_t offset = item_offset(p, n, q, m), at = slot * lanes.padded;
  const bool whole = whole_points(p, lanes, offset);
  const P* attention = static_cast<const P*>(p.attention) + offset;
  load_pairs(static_cast<const P*>(p.xy) + 2 * offset, lanes.count, whole, b.x + at, b.y + at);
  if (p.source == PointSource::kLocations) {
    load_values(attention, lanes.count, whole, b.attention + at);
    return;
  }
  softmax(attention, lanes.count, whole, b.attention + at);
  const int64_t ref = reference_offset(p, n, q);
  if (whole_reference(p, lanes, ref)) {
    locate_whole(p, lanes, static_cast<const P*>(p.reference) + ref, b.x + at, b.y + at);
  } else {
    locate(p, lanes, static_cast<const P*>(p.reference) + ref, b.x + at, b.y + at);
  }
}

// Always inlined, like its callers: GCC takes a function that only prefetches for one without effect, and drops calls
// of it.
MSDA_HOST_DEVICE void prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
}

// Asks for an item's points ahead of load_item(): one head's items are too far apart for the processor to see the
// pattern.
template <typename P>
MSDA_HOST_DEVICE void prefetch_points(const Problem& p, int64_t n, int64_t q, int64_t m) {
  if (q >= p.queries) return;
  const int64_t offset = item_offset(p, n, q, m), bytes = int64_t(p.levels) * p.points * int64_t(sizeof(P));
  prefetch(static_cast<const P*>(p.xy) + 2 * offset, 2 * bytes);
  prefetch(static_cast<const P*>(p.attention) + offset, bytes);
}

}  // namespace
}  // namespace msda
