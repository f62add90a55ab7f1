// Backward kernel: gradients of the points, and of value by atomic addition if Args::grad_rows is not null (otherwise
// the deterministic kernel computes them). Chunks of points as in the forward kernel.
#pragma once

#include "points.h"

namespace msda {

template <typename T, typename P, int kVector, int kChannels, bool kFused>
struct BackwardKernel {
  using A = Acc<T>;
  static constexpr int kBlocksPerSm = 3;
  static constexpr const char* kName = kFused ? "fused backward" : "backward";

  // The point that a thread has prepared.
  struct OwnPoint {
    Sample<A> sample;
    A attention;
    int32_t level, index;
  };
  struct Shared {
    Level<A>* levels;
    Pack<A, 4>*weights, *dots;
    Pack<int32_t, 4>* rows;
    A* stash;
  };

  template <typename Thread>
  static MSDA_DEVICE Shared carve(const Args& a, const Thread& thread) {
    Shared s;
    s.levels = reinterpret_cast<Level<A>*>(thread.shared());
    s.weights = reinterpret_cast<Pack<A, 4>*>(thread.shared() + a.level_bytes);
    s.dots = s.weights + thread.block_size();
    s.rows = reinterpret_cast<Pack<int32_t, 4>*>(s.dots + thread.block_size());
    s.stash = reinterpret_cast<A*>(s.rows + thread.block_size());
    return s;
  }

  // Dot products of grad_output with the four corners, over this thread's channels; scatters the gradient of value.
  template <typename Thread>
  static MSDA_DEVICE void process_corners(const Thread& thread, const Corners<A>& c, const Pack<T, kVector>* value,
                                          Pack<A, kVector>* grad_rows, const A (&grad)[kVector], A (&dots)[4]) {
    Pack<T, kVector> row[4] = {};
    MSDA_UNROLL()
    for (int i = 0; i < 4; ++i) {
      if (c.row.at[i] >= 0) row[i] = load_pack<kVector, T>(value + uint32_t(c.row.at[i]));
    }
    MSDA_UNROLL()
    for (int i = 0; i < 4; ++i) {
      dots[i] = 0;
      MSDA_UNROLL()
      for (int v = 0; v < kVector; ++v) dots[i] += grad[v] * A(row[i].at[v]);
    }
    if (grad_rows == nullptr) return;
    MSDA_UNROLL()
    for (int i = 0; i < 4; ++i) {
      if (c.row.at[i] >= 0) {
        thread.add(grad_rows[uint32_t(c.row.at[i])], c.weight.at[i], grad);
      }
    }
  }

  static MSDA_DEVICE void load_grad(const T* address, A (&grad)[kVector]) {
    const Pack<T, kVector> pack = load_pack<kVector, T>(address);
    MSDA_UNROLL()
    for (int v = 0; v < kVector; ++v) grad[v] = A(pack.at[v]);
  }

  template <typename Thread>
  static MSDA_DEVICE void run(const Args& a, const Thread& thread) {
    const Shared s = carve(a, thread);
    build_levels(a, thread, s.levels);
    const Group<Thread, kChannels / kVector> group(a, thread);
    const int32_t per_block = thread.block_size() / group.lanes;
    for (int64_t first = thread.block() * per_block; first < a.items; first += thread.blocks() * per_block) {
      const bool active = first + group.number < a.items;
      const Item at = item_of(a, active ? first + group.number : a.items - 1);
      const PointReader<P, A, kFused> points(a, s.levels, at, group);
      A* stash = nullptr;
      if constexpr (kFused) {
        stash =
            a.stash ? static_cast<A*>(a.stash) + 3 * at.index * a.count : s.stash + 3 * int64_t(group.number) * a.count;
      }
      run_item(a, group, s, points, at, active, stash);
    }
  }

  template <typename Thread>
  static MSDA_DEVICE void run_item(const Args& a, const Group<Thread, kChannels / kVector>& group, const Shared& s,
                                   const PointReader<P, A, kFused>& points, const Item& at, bool active, A* stash) {
    A mean = 0;  // this thread's share of the attention-weighted mean of the weights' gradients
    Point<A> next = {};
    if (group.lane < a.count) next = points.read(group.lane);
    for (int32_t chunk = 0; chunk < a.count; chunk += group.lanes) {
      const int32_t index = chunk + group.lane;
      const bool has_point = active && index < a.count;
      OwnPoint own = {{}, next.attention, next.level, index};
      Corners<A> c = no_corners<A>();
      if (has_point) {
        const Level<A> level = s.levels[next.level];
        own.sample = sample_at(next.x, next.y, level.width, level.height);
        c = corners_of(own.sample, next.attention, level, a.value_step);
        if constexpr (kFused) save_point(a, at, next, index);
      }
      group.thread.sync_warp();
      s.weights[group.record(group.lane)] = c.weight;
      s.rows[group.record(group.lane)] = c.row;
      group.thread.sync_warp();
      if (index + group.lanes < a.count) next = points.read(index + group.lanes);
      gather_chunk(a, group, s, at, a.count - chunk < group.lanes ? a.count - chunk : group.lanes);
      group.thread.sync_warp();
      if (has_point) mean += finish_point(a, s, at, own, s.dots[group.record(group.lane)], stash);
    }
    if constexpr (kFused) {
      mean = group.sum(mean);
      group.thread.sync_warp();  // the stash has been written
      if (active) finish_fused(a, group, points, at, mean, stash);
      group.thread.sync_warp();  // the stash has been read
    }
  }

  // Saves locations and weights for the deterministic kernel, which then reads them like those of the plain operator.
  static MSDA_DEVICE void save_point(const Args& a, const Item& at, const Point<A>& point, int32_t index) {
    if (a.saved_xy == nullptr) return;
    const int64_t i = at.index * a.count + index;
    static_cast<A*>(a.saved_xy)[2 * i] = point.x;
    static_cast<A*>(a.saved_xy)[2 * i + 1] = point.y;
    static_cast<A*>(a.saved_attention)[i] = point.attention;
  }

  // All points of the chunk, for all channels; leaves the dot products in shared memory.
  template <typename Thread>
  static MSDA_DEVICE void gather_chunk(const Args& a, const Group<Thread, kChannels / kVector>& group, const Shared& s,
                                       const Item& at, int32_t num_points) {
    const int32_t channels = kChannels ? kChannels : a.channels;
    for (int32_t base = 0; base < channels; base += group.lanes * kVector) {
      const int32_t channel = base + group.lane * kVector;
      const bool inside = kChannels > 0 || channel < channels;
      A grad[kVector] = {};
      if (inside) load_grad(static_cast<const T*>(a.grad_output) + at.index * channels + channel, grad);
      const char* slice = a.value + at.n * a.value_stride_n + at.m * a.value_stride_m;
      const auto* value = reinterpret_cast<const Pack<T, kVector>*>(slice + int64_t(channel) * sizeof(T));
      A* sums = static_cast<A*>(a.grad_rows);
      if (sums) sums += (at.n * a.rows * a.heads + at.m) * channels + channel;
      auto* grad_rows = opaque(reinterpret_cast<Pack<A, kVector>*>(sums));
      value = opaque(value);
      MSDA_UNROLL(2)
      for (int32_t j = 0; j < num_points; ++j) {
        A dots[4] = {};
        if (inside)
          process_corners(group.thread, {s.weights[group.record(j)], s.rows[group.record(j)]}, value, grad_rows, grad,
                          dots);
        group.sum_four(dots, s.dots[group.record(j)].at, base > 0);
      }
    }
  }

  // Gradients of the thread's own point. Returns its share of the mean in the gradient of the softmax.
  static MSDA_DEVICE A finish_point(const Args& a, const Shared& s, const Item& at, const OwnPoint& own,
                                    const Pack<A, 4>& dots, A* stash) {
    const Level<A> level = s.levels[own.level];
    A grad_x, grad_y, grad_attention;
    point_gradients(own.sample.fx, own.sample.fy, own.sample.mask, own.attention, level.width, level.height, dots.at[0],
                    dots.at[1], dots.at[2], dots.at[3], grad_x, grad_y, grad_attention);
    if constexpr (kFused) {
      A* grads = stash + 3 * int64_t(own.index);
      grads[0] = grad_x;
      grads[1] = grad_y;
      grads[2] = grad_attention;
    } else {
      const int64_t i = at.index * a.count + own.index;
      P* grad_xy = static_cast<P*>(a.grad_xy) + 2 * i;
      grad_xy[0] = P(grad_x);
      grad_xy[1] = P(grad_y);
      static_cast<P*>(a.grad_attention)[i] = P(grad_attention);
    }
    return own.attention * grad_attention;
  }

  // Chain rule through softmax and offsets, from the gradients in the stash.
  template <typename Thread>
  static MSDA_DEVICE void finish_fused(const Args& a, const Group<Thread, kChannels / kVector>& group,
                                       const PointReader<P, A, kFused>& points, const Item& at, A mean,
                                       const A* stash) {
    const int64_t first = at.index * a.count;
    for (int32_t i = group.lane; i < a.count; i += group.lanes) {
      const int32_t level = i / a.points;
      const A* grad = stash + 3 * int64_t(i);
      P* grad_xy = static_cast<P*>(a.grad_xy) + 2 * (first + i);
      grad_xy[0] = P(points.scaled(grad[0], level, 0));
      grad_xy[1] = P(points.scaled(grad[1], level, 1));
      static_cast<P*>(a.grad_attention)[first + i] = P(points.weight(i) * (grad[2] - mean));
    }
    if (a.grad_reference == nullptr) return;
    A* out = static_cast<A*>(a.grad_reference) + ((at.n * a.heads + at.m) * a.queries + at.q) * a.levels * a.ref_width;
    // One thread per level sums over its points, in their order.
    for (int32_t l = group.lane; l < a.levels; l += group.lanes) {
      A sum[4] = {};
      for (int32_t i = l * a.points; i < (l + 1) * a.points; ++i) {
        const A* grad = stash + 3 * int64_t(i);
        sum[0] += grad[0];
        sum[1] += grad[1];
        if (a.ref_width == 4) {
          sum[2] += grad[0] * extent_factor(A(points.xy[2 * i]), A(a.points));
          sum[3] += grad[1] * extent_factor(A(points.xy[2 * i + 1]), A(a.points));
        }
      }
      MSDA_UNROLL()
      for (int r = 0; r < 4; ++r) {
        if (r < a.ref_width) out[l * a.ref_width + r] = sum[r];
      }
    }
  }
};

}  // namespace msda
