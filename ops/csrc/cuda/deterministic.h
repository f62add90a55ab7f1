// The gradient of value in a fixed order, without atomics, for torch.use_deterministic_algorithms(True).
//
// A block owns kTileRows rows of one level, for one (batch, head) and up to kTileChannels channels, and keeps their
// sums in shared memory. It reads all Q * K points of the level, a block's width at a time; the points with corners in
// its rows are listed in order, and each row is updated by one thread per channel, in the order of the list. Overhead
// over the atomic kernel: each point is read by every tile of its level, H * W / kTileRows times.
#pragma once

#include "points.h"

namespace msda {

template <typename T, typename P>
struct DeterministicKernel {
  using A = Acc<T>;
  static constexpr int kBlocksPerSm = 1;
  static constexpr const char* kName = "deterministic gradient of value";

  struct Shared {
    Level<A>* levels;
    A* sums;  // [kTileRows][channels of the tile]
    Pack<A, 4>* weights;
    Pack<int32_t, 4>* rows;
    int64_t* queries;
    int32_t* hits;  // per warp
  };
  struct Tile {
    int64_t n, first;  // first row of value
    int32_t m, channel, level, rows;
  };

  static int64_t shared_bytes(int32_t levels) {
    return level_bytes(sizeof(A), levels) + kTileRows * kTileChannels * sizeof(A) +
           kDeterministicBlock * (4 * sizeof(A) + 16 + 8 + 1);
  }

  template <typename Thread>
  static MSDA_DEVICE Shared carve(const Args& a, const Thread& thread) {
    Shared s;
    s.levels = reinterpret_cast<Level<A>*>(thread.shared());
    s.weights = reinterpret_cast<Pack<A, 4>*>(thread.shared() + a.level_bytes);
    s.rows = reinterpret_cast<Pack<int32_t, 4>*>(s.weights + thread.block_size());
    s.sums = reinterpret_cast<A*>(s.rows + thread.block_size());
    s.queries = reinterpret_cast<int64_t*>(s.sums + kTileRows * kTileChannels);
    s.hits = reinterpret_cast<int32_t*>(s.queries + thread.block_size());
    return s;
  }

  // Finds the tile of a task; returns false beyond the last tile of the levels.
  static MSDA_DEVICE bool find_tile(const Args& a, const Level<A>* levels, int64_t task, Tile& tile) {
    int64_t index = task % a.tiles;
    const int64_t slice = task / a.tiles / a.slabs;
    tile.channel = int32_t(task / a.tiles % a.slabs) * kTileChannels;
    tile.n = slice / a.heads;
    tile.m = int32_t(slice % a.heads);
    for (tile.level = 0; tile.level < a.levels; ++tile.level) {
      const Level<A> level = levels[tile.level];
      const int64_t size = int64_t(level.height) * level.stride;
      const int64_t count = (size + kTileRows - 1) / kTileRows;
      if (index < count) {
        tile.first = level.start + index * kTileRows;
        tile.rows = int32_t(size - index * kTileRows < kTileRows ? size - index * kTileRows : kTileRows);
        return true;
      }
      index -= count;
    }
    return false;
  }

  // Corners of the level's i-th point, with rows relative to the tile; returns false if none is in the tile.
  static MSDA_DEVICE bool corners_in_tile(const Args& a, const Level<A>& level, const Tile& tile, int64_t i,
                                          Corners<A>& c, int64_t& query) {
    const bool small = a.queries * a.points <= 0xffffffffll;
    query = small ? uint32_t(i) / uint32_t(a.points) : i / a.points;
    const int64_t item = (tile.n * a.queries + query) * a.heads + tile.m;
    const int64_t at = item * a.count + tile.level * a.points + (i - query * a.points);
    const P* xy = static_cast<const P*>(a.xy) + 2 * at;
    const Sample<A> s = sample_at(A(xy[0]), A(xy[1]), level.width, level.height);
    c = corners_of(s, A(static_cast<const P*>(a.attention)[at]), level, 1);
    bool hit = false;
    MSDA_UNROLL()
    for (int k = 0; k < 4; ++k) {
      const int64_t row = c.row.at[k] - tile.first;
      c.row.at[k] = c.row.at[k] >= 0 && row >= 0 && row < tile.rows ? int32_t(row) : -1;
      hit = hit || c.row.at[k] >= 0;
    }
    return hit;
  }

  // Lists the hits of the block's threads in the order of the threads; returns their number.
  template <typename Thread>
  static MSDA_DEVICE int32_t list_hits(const Thread& thread, const Shared& s, bool hit, const Corners<A>& c,
                                       int64_t query) {
    const int32_t warp = thread.index() / 32, warps = thread.block_size() / 32;
    const uint32_t ballot = thread.ballot(hit);
    if (thread.index() % 32 == 0) s.hits[warp] = count_bits(ballot);
    thread.sync_block();
    int32_t before = 0, total = 0;
    for (int32_t w = 0; w < warps; ++w) {
      if (w < warp) before += s.hits[w];
      total += s.hits[w];
    }
    if (hit) {
      const int32_t at = before + count_bits(ballot & ((1u << (thread.index() % 32)) - 1u));
      s.weights[at] = c.weight;
      s.rows[at] = c.row;
      s.queries[at] = query;
    }
    thread.sync_block();
    return total;
  }

  static MSDA_DEVICE int32_t count_bits(uint32_t x) {
#if defined(__CUDACC__)
    return __popc(x);
#else
    return __builtin_popcount(x);
#endif
  }

  template <typename Thread>
  static MSDA_DEVICE void run(const Args& a, const Thread& thread) {
    const Shared s = carve(a, thread);
    build_levels(a, thread, s.levels);
    const int64_t tasks = a.items / a.queries * a.slabs * a.tiles;
    for (int64_t task = thread.block(); task < tasks; task += thread.blocks()) {
      Tile tile = {};
      if (find_tile(a, s.levels, task, tile)) run_tile(a, thread, s, tile);
    }
  }

  template <typename Thread>
  static MSDA_DEVICE void run_tile(const Args& a, const Thread& thread, const Shared& s, const Tile& tile) {
    const int32_t width = 1 << a.lanes_log2;  // threads side by side, one per channel
    const int32_t owners = thread.block_size() >> a.lanes_log2;
    const int32_t owner = thread.index() >> a.lanes_log2;
    const int32_t column = thread.index() & (width - 1);
    const int32_t channel = tile.channel + column;
    const Level<A> level = s.levels[tile.level];
    A* const sums = s.sums + column;
    for (int32_t r = owner; r < tile.rows; r += owners) sums[r * width] = 0;
    const int64_t total = a.queries * a.points;
    for (int64_t base = 0; base < total; base += thread.block_size()) {
      Corners<A> c = no_corners<A>();
      int64_t query = 0;
      const int64_t i = base + thread.index();
      const bool hit = i < total && corners_in_tile(a, level, tile, i, c, query);
      const int32_t hits = list_hits(thread, s, hit, c, query);
      for (int32_t h = 0; channel < a.channels && h < hits; ++h) add_hit(a, s, tile, h, owner, owners, channel, sums);
      thread.sync_block();  // the list has been read
    }
    if (channel >= a.channels) return;
    T* out = static_cast<T*>(a.grad_value) + ((tile.n * a.rows + tile.first) * a.heads + tile.m) * a.channels + channel;
    for (int32_t r = owner; r < tile.rows; r += owners) {
      out[int64_t(r) * a.heads * a.channels] = T(sums[r * width]);
    }
  }

  static MSDA_DEVICE void add_hit(const Args& a, const Shared& s, const Tile& tile, int32_t h, int32_t owner,
                                  int32_t owners, int32_t channel, A* sums) {
    const Pack<int32_t, 4> rows = s.rows[h];
    MSDA_UNROLL()
    for (int k = 0; k < 4; ++k) {
      // `owners` is a power of two; -1 (outside) maps to the last owner and is excluded by the second test.
      if ((rows.at[k] & (owners - 1)) != owner || rows.at[k] < 0) continue;
      const int64_t item = (tile.n * a.queries + s.queries[h]) * a.heads + tile.m;
      const A grad = A(static_cast<const T*>(a.grad_output)[item * a.channels + channel]);
      sums[rows.at[k] << a.lanes_log2] += s.weights[h].at[k] * grad;
    }
  }
};

// Rounds the float32 sums of a 16-bit gradient.
template <typename T>
struct RoundKernel {
  static constexpr int kBlocksPerSm = 1;
  static constexpr const char* kName = "rounding of the gradient of value";

  template <typename Thread>
  static MSDA_DEVICE void run(const Args& a, const Thread& thread) {
    const Acc<T>* in = static_cast<const Acc<T>*>(a.grad_rows);
    T* out = static_cast<T*>(a.grad_value);
    const int64_t step = thread.blocks() * thread.block_size();
    for (int64_t i = thread.block() * thread.block_size() + thread.index(); i < a.items; i += step) {
      out[i] = T(in[i]);
    }
  }
};

}  // namespace msda
