// What comes before and after the sampling of an item's points, once per point and not once per channel: level sizes,
// softmax, locations, corner rows and weights; and the chain rule back.
#pragma once

#include "../sampling.h"
#include "plan.h"
#include "platform.h"

namespace msda {

template <typename A>
struct Level {
  A width, height;
  int32_t stride, start;  // rows of value: from one image line to the next, and of the first pixel
};

// Fills the block's table of levels, from the arguments or from device memory.
template <typename A, typename Thread>
MSDA_DEVICE void build_levels(const Args& a, const Thread& thread, Level<A>* levels) {
  for (int32_t l = thread.index(); l < a.levels; l += thread.block_size()) {
    int64_t start = 0, height = 0, width = 0;
    bool good = true;
    for (int32_t i = 0; i <= l; ++i) {
      start += height * width;
      height = a.shapes ? a.shapes[2 * i] : a.height[i];
      width = a.shapes ? a.shapes[2 * i + 1] : a.width[i];
      good = good && height >= 1 && width >= 1 && height <= a.rows && width <= a.rows;
      if (!good) break;
    }
    const int64_t end = start + height * width;
    thread.check_shapes(good && end <= a.rows && (l + 1 < a.levels || end == a.rows));
    levels[l] = {A(width), A(height), int32_t(width), int32_t(start)};
  }
  thread.sync_block();
}

struct Place {
  int64_t n, q, item;  // item in the order of memory: (n * Q + q) * M + m
  int32_t m;
};

// Place of the given item in the order of the plan.
MSDA_DEVICE Place place_of(const Args& a, int64_t item) {
  Place place;
  const int64_t outer = a.queries_inner ? a.queries : a.heads;
  const int64_t middle = a.queries_inner ? a.heads : a.queries;
  int64_t i, j;
  if (a.items <= 0xffffffffll) {  // 64-bit division is many times slower
    const uint32_t rest = uint32_t(item) / uint32_t(outer);
    i = uint32_t(item) % uint32_t(outer);
    j = rest % uint32_t(middle);
    place.n = rest / uint32_t(middle);
  } else {
    i = item % outer;
    j = item / outer % middle;
    place.n = item / outer / middle;
  }
  place.q = a.queries_inner ? i : j;
  place.m = int32_t(a.queries_inner ? j : i);
  place.item = (place.n * a.queries + place.q) * a.heads + place.m;
  return place;
}

// The threads that serve one item, kLanes of them (0: any number), and how they add up. All 32 threads of a warp call
// these together.
template <typename Thread, int kLanes>
struct Group {
  const Thread& thread;
  const int32_t lanes;
  int32_t lane, number, slot;

  MSDA_DEVICE Group(const Args& a, const Thread& t) : thread(t), lanes(kLanes ? kLanes : 1 << a.lanes_log2) {
    lane = t.index() & (lanes - 1);
    number = t.index() / lanes;
    // Per-thread records of a warp are interleaved by group, so that its groups read different banks.
    slot = (t.index() & ~31) + (t.index() & 31) / lanes;
  }
  // Where the group keeps the record of its j-th lane.
  MSDA_DEVICE int32_t record(int32_t j) const { return slot + j * (32 / lanes); }

  template <typename A>
  MSDA_DEVICE A sum(A x) const {
    for (int32_t step = lanes / 2; step > 0; step /= 2) x += thread.shuffle_xor(x, step);
    return x;
  }
  template <typename A>
  MSDA_DEVICE A largest(A x) const {
    for (int32_t step = lanes / 2; step > 0; step /= 2) {
      const A other = thread.shuffle_xor(x, step);
      x = other > x ? other : x;
    }
    return x;
  }
  // Sums of four numbers over the group, for one or a few shuffles each less: every step halves what a lane holds.
  // Lane i < 4 ends with the sum of number i (of two lanes, lane i with 2i and 2i + 1), stored at out[...].
  template <typename A>
  MSDA_DEVICE void sum_four(const A (&x)[4], A* out, bool accumulate) const {
    if (lanes == 1) {
      for (int i = 0; i < 4; ++i) out[i] = accumulate ? out[i] + x[i] : x[i];
      return;
    }
    const bool odd = lane & 1;
    const A first = (odd ? x[2] : x[0]) + thread.shuffle_xor(odd ? x[0] : x[2], 1);
    const A second = (odd ? x[3] : x[1]) + thread.shuffle_xor(odd ? x[1] : x[3], 1);
    if (lanes == 2) {
      A* pair = out + 2 * lane;
      pair[0] = accumulate ? pair[0] + first : first;
      pair[1] = accumulate ? pair[1] + second : second;
      return;
    }
    const bool high = lane & 2;
    A total = (high ? second : first) + thread.shuffle_xor(high ? first : second, 2);
    for (int32_t step = 4; step < lanes; step *= 2) total += thread.shuffle_xor(total, step);
    A* one = out + 2 * (lane & 1) + (lane >> 1);
    if (lane < 4) *one = accumulate ? *one + total : total;
  }
};

template <typename A>
struct Point {
  A x, y, attention;
  int32_t level;
};

// Reads the points of one item; kFused computes them from reference point, offset and logit.
template <typename P, typename A, bool kFused>
struct PointReader {
  const Args& a;
  const Level<A>* levels;
  const P *xy, *attention, *reference;
  A largest, sum;  // of the softmax

  template <typename Group>
  MSDA_DEVICE PointReader(const Args& args, const Level<A>* table, const Place& at, const Group& group)
      : a(args), levels(table) {
    xy = static_cast<const P*>(a.xy) + 2 * at.item * a.count;
    attention = static_cast<const P*>(a.attention) + at.item * a.count;
    if constexpr (kFused) {
      reference = static_cast<const P*>(a.reference) + (at.n * a.queries + at.q) * a.levels * a.ref_width;
      largest = to_acc(attention[0]);
      for (int32_t i = group.lane; i < a.count; i += group.lanes) {
        const A x = to_acc(attention[i]);
        largest = x > largest ? x : largest;
      }
      largest = group.largest(largest);
      sum = 0;
      for (int32_t i = group.lane; i < a.count; i += group.lanes) sum += exp_of(to_acc(attention[i]) - largest);
      sum = group.sum(sum);
    }
  }

  MSDA_DEVICE A weight(int32_t i) const {
    const A x = to_acc(attention[i]);
    if constexpr (kFused) return exp_of(x - largest) / sum;
    return x;
  }

  MSDA_DEVICE Point<A> read(int32_t i) const {
    Point<A> point = {to_acc(xy[2 * i]), to_acc(xy[2 * i + 1]), weight(i), i / a.points};
    if constexpr (kFused) {
      const P* ref = reference + point.level * a.ref_width;
      if (a.ref_width == 2) {
        point.x = to_acc(ref[0]) + point.x / levels[point.level].width;
        point.y = to_acc(ref[1]) + point.y / levels[point.level].height;
      } else {
        // As location_from_box(), but rounded before the addition: a fused one would move points across pixel centres.
        point.x = add_rounded(to_acc(ref[0]), point.x / A(a.points) * to_acc(ref[2]) * A(0.5));
        point.y = add_rounded(to_acc(ref[1]), point.y / A(a.points) * to_acc(ref[3]) * A(0.5));
      }
    }
    return point;
  }
};

// A point as the gathering threads want it: the four corners' weights, and where their rows are: row number times
// `step`, -1 for a corner outside.
template <typename A>
struct Corners {
  Pack<A, 4> weight;
  Pack<int32_t, 4> row;
};

template <typename A>
MSDA_DEVICE Corners<A> corners_of(const Sample<A>& s, A attention, const Level<A>& level, int32_t step) {
  Corners<A> c;
  corner_weights(s, attention, c.weight.at[0], c.weight.at[1], c.weight.at[2], c.weight.at[3]);
  const int32_t row = (level.start + s.y0 * level.stride + s.x0) * step;
  const int32_t line = level.stride * step;
  c.row.at[0] = s.mask & kCorner00 ? row : -1;
  c.row.at[1] = s.mask & kCorner01 ? row + step : -1;
  c.row.at[2] = s.mask & kCorner10 ? row + line : -1;
  c.row.at[3] = s.mask & kCorner11 ? row + line + step : -1;
  return c;
}

template <typename A>
MSDA_DEVICE Corners<A> no_corners() {
  return {{{0, 0, 0, 0}}, {{-1, -1, -1, -1}}};
}

// d location / d offset, for x (axis 0) or y (axis 1).
template <typename P, typename A>
MSDA_DEVICE A through_offset(const Args& a, A grad, const P* ref, const Level<A>& level, int axis) {
  if (a.ref_width == 2) return grad / (axis ? level.height : level.width);
  return grad / A(a.points) * to_acc(ref[2 + axis]) * A(0.5);
}

}  // namespace msda
