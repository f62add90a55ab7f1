// Work per sampling point, as opposed to per channel: level sizes, softmax, locations, corner rows and weights.
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

struct Item {
  int64_t n, q, index;  // index in the order of memory: (n * Q + q) * M + m
  int32_t m;
};

// Item at the given position in the order of the plan.
MSDA_DEVICE Item item_of(const Args& a, int64_t position) {
  Item item;
  const int64_t outer = a.queries_inner ? a.queries : a.heads;
  const int64_t middle = a.queries_inner ? a.heads : a.queries;
  int64_t i, j;
  if (a.items <= 0xffffffffll) {  // 64-bit division is much slower
    const uint32_t rest = uint32_t(position) / uint32_t(outer);
    i = uint32_t(position) % uint32_t(outer);
    j = rest % uint32_t(middle);
    item.n = rest / uint32_t(middle);
  } else {
    i = position % outer;
    j = position / outer % middle;
    item.n = position / outer / middle;
  }
  item.q = a.queries_inner ? i : j;
  item.m = int32_t(a.queries_inner ? j : i);
  item.index = (item.n * a.queries + item.q) * a.heads + item.m;
  return item;
}

// The threads that process one item, kLanes of them (0: any number), and reductions over them. The functions must be
// called by all 32 threads of a warp together.
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
  // Index of the record of the group's j-th lane.
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
  // Sums four numbers over the group with fewer shuffles than four sums: every step halves the numbers per lane. Lane
  // i < 4 stores the sum of number i (of two lanes, lane i stores 2i and 2i + 1).
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
  MSDA_DEVICE PointReader(const Args& args, const Level<A>* table, const Item& item, const Group& group)
      : a(args), levels(table) {
    xy = static_cast<const P*>(a.xy) + 2 * item.index * a.count;
    attention = static_cast<const P*>(a.attention) + item.index * a.count;
    if constexpr (kFused) {
      reference = static_cast<const P*>(a.reference) + (item.n * a.queries + item.q) * a.levels * a.ref_width;
      largest = A(attention[0]);
      for (int32_t i = group.lane; i < a.count; i += group.lanes) {
        const A x = A(attention[i]);
        largest = x > largest ? x : largest;
      }
      largest = group.largest(largest);
      sum = 0;
      for (int32_t i = group.lane; i < a.count; i += group.lanes) sum += std::exp(A(attention[i]) - largest);
      sum = group.sum(sum);
    }
  }

  MSDA_DEVICE A weight(int32_t i) const {
    const A x = A(attention[i]);
    if constexpr (kFused) return std::exp(x - largest) / sum;
    return x;
  }

  MSDA_DEVICE Point<A> read(int32_t i) const {
    Point<A> point = {A(xy[2 * i]), A(xy[2 * i + 1]), weight(i), i / a.points};
    if constexpr (kFused) {
      point.x = add_rounded(A(center(point.level)[0]), scaled(point.x, point.level, 0));
      point.y = add_rounded(A(center(point.level)[1]), scaled(point.y, point.level, 1));
    }
    return point;
  }

  MSDA_DEVICE const P* center(int32_t level) const { return reference + level * a.ref_width; }

  // Offset in x (axis 0) or y (axis 1) in units of locations; also the chain rule, see scale_offset().
  MSDA_DEVICE A scaled(A offset, int32_t level, int axis) const {
    const bool box = a.ref_width == 4;
    const A extent = box ? A(center(level)[2 + axis]) : axis ? levels[level].height : levels[level].width;
    return scale_offset(offset, extent, box, A(a.points));
  }
};

// Weights and rows of a point's four corners. A row is given as its number times `step`, or -1 for a corner outside.
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

}  // namespace msda
