// Forward kernel. A chunk of `lanes` points at a time: every thread of the group prepares one point, then all of them
// gather all points, each for its own channels.
#pragma once

#include "points.h"

namespace msda {

template <typename T, typename P, int kVector, int kChannels, bool kFused>
struct ForwardKernel {
  using A = Acc<T>;
  // Leaves 64 or 80 registers per thread, enough to have several rows in flight.
  static constexpr int kBlocksPerSm = kVector > 4 ? 3 : 4;
  static constexpr const char* kName = kFused ? "fused forward" : "forward";

  // Adds the weighted rows of the corners to `sum`. `value` points at this thread's channels of row 0.
  static MSDA_DEVICE void gather(const Corners<A>& c, const Pack<T, kVector>* value, A (&sum)[kVector]) {
    Pack<T, kVector> row[4] = {};
    MSDA_UNROLL()
    for (int i = 0; i < 4; ++i) {
      if (c.row.at[i] >= 0) row[i] = load_pack<kVector, T>(value + uint32_t(c.row.at[i]));
    }
    MSDA_UNROLL()
    for (int i = 0; i < 4; ++i) {
      MSDA_UNROLL()
      for (int v = 0; v < kVector; ++v) sum[v] += c.weight.at[i] * A(row[i].at[v]);
    }
  }

  template <typename Thread>
  static MSDA_DEVICE void run(const Args& a, const Thread& thread) {
    Level<A>* levels = reinterpret_cast<Level<A>*>(thread.shared());
    char* const after = thread.shared() + a.level_bytes;
    Pack<A, 4>* weights = reinterpret_cast<Pack<A, 4>*>(after);
    Pack<int32_t, 4>* rows = reinterpret_cast<Pack<int32_t, 4>*>(weights + thread.block_size());
    build_levels(a, thread, levels);
    const Group<Thread, kChannels / kVector> group(a, thread);
    const int32_t per_block = thread.block_size() / group.lanes;
    for (int64_t first = thread.block() * per_block; first < a.items; first += thread.blocks() * per_block) {
      // A group beyond the last item repeats that item and stores nothing, so that its warp does not diverge.
      const bool active = first + group.number < a.items;
      const Item at = item_of(a, active ? first + group.number : a.items - 1);
      const PointReader<P, A, kFused> points(a, levels, at, group);
      const char* slice = a.value + at.n * a.value_stride_n + at.m * a.value_stride_m;
      const int32_t channels = kChannels ? kChannels : a.channels;
      T* out = static_cast<T*>(a.output) + at.index * channels;
      for (int32_t base = 0; base < channels; base += group.lanes * kVector) {
        const int32_t channel = base + group.lane * kVector;
        const bool inside = kChannels > 0 || channel < channels;
        const auto* value = reinterpret_cast<const Pack<T, kVector>*>(slice + int64_t(channel) * sizeof(T));
        A sum[kVector] = {};
        sum_points(a, group, points, levels, weights, rows, inside, opaque(value), sum);
        if (!active || !inside) continue;
        Pack<T, kVector> pack;
        MSDA_UNROLL()
        for (int v = 0; v < kVector; ++v) pack.at[v] = T(sum[v]);
        store_pack(pack, out + channel);
      }
    }
  }

  template <typename Thread>
  static MSDA_DEVICE void sum_points(const Args& a, const Group<Thread, kChannels / kVector>& group,
                                     const PointReader<P, A, kFused>& points, const Level<A>* levels,
                                     Pack<A, 4>* weights, Pack<int32_t, 4>* rows, bool inside,
                                     const Pack<T, kVector>* value, A (&sum)[kVector]) {
    Point<A> next = {};
    if (group.lane < a.count) next = points.read(group.lane);
    for (int32_t chunk = 0; chunk < a.count; chunk += group.lanes) {
      const int32_t index = chunk + group.lane;
      Corners<A> c = no_corners<A>();
      if (index < a.count) {
        const Level<A> level = levels[next.level];
        c = corners_of(sample_at(next.x, next.y, level.width, level.height), next.attention, level, a.value_step);
      }
      group.thread.sync_warp();  // the last chunk has been read
      weights[group.record(group.lane)] = c.weight;
      rows[group.record(group.lane)] = c.row;
      group.thread.sync_warp();
      // Loads the next chunk's points while this one is gathered.
      if (index + group.lanes < a.count) next = points.read(index + group.lanes);
      if (!inside) continue;
      const int32_t here = a.count - chunk < group.lanes ? a.count - chunk : group.lanes;
      MSDA_UNROLL((kVector > 4 ? 2 : 4))
      for (int32_t j = 0; j < here; ++j) {
        gather({weights[group.record(j)], rows[group.record(j)]}, value, sum);
      }
    }
  }
};

}  // namespace msda
