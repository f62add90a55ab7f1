// Forward on the CPU. Every output row is computed by one task, in an order that depends on shapes alone, so that the
// result is bitwise identical for any number of threads.
//
// Many queries: the head's slice of value is copied into scratch memory; a task is a run of one head's queries.
// Few queries: the tensor is read in place; a task is one (query, head).
#pragma once

#include "value_rows.h"

namespace msda {
namespace {

// Independent chains of multiply-adds, to hide their latency: two per multiplier and cycle of latency, limited by the
// number of registers. kN vectors of channels have this many sets of accumulators.
constexpr int sets_for(int vectors) { return vectors <= 2 ? 4 : vectors <= 4 ? 2 : 1; }

// Weighted sum of rows, over kN vectors of channels.
template <int kN, typename A>
struct RowSum {
  using V = Vec<A>;
  static constexpr int kSets = sets_for(kN);
  V set[kSets][kN] = {};

  template <typename T>
  static inline void add_row(V (&sum)[kN], const T* row, A weight) {
    const V w = broadcast(weight);
    for (int v = 0; v + 1 < kN; v += 2) {
      V a, b;
      load_two(row + v * kWidth<A>, a, b);
      sum[v] = fma(w, a, sum[v]);
      sum[v + 1] = fma(w, b, sum[v + 1]);
    }
    if (kN % 2) sum[kN - 1] = fma(w, load(row + (kN - 1) * kWidth<A>), sum[kN - 1]);
  }
  // Adds the four corners of a point; weight_slot() defines the layout of the weights.
  template <typename T>
  void add_point(const T* r00, const T* r01, const T* r10, const T* r11, const A* weights) {
    add_row(set[0], r00, weights[0]);
    add_row(set[1 % kSets], r01, weights[kGroup]);
    add_row(set[2 % kSets], r10, weights[2 * kGroup]);
    add_row(set[3 % kSets], r11, weights[3 * kGroup]);
  }
  void store_to(A* out, bool add) const {
    for (int v = 0; v < kN; ++v) {
      V sum = set[0][v];
      if (kSets == 4) sum = (sum + set[1 % kSets][v]) + (set[2 % kSets][v] + set[3 % kSets][v]);
      if (kSets == 2) sum = sum + set[1 % kSets][v];
      if (add) sum = sum + load(out + v * kWidth<A>);
      store(sum, out + v * kWidth<A>);
    }
  }
};

// Padded layout: sums of `items` items over a run of kN vectors of channels. `rows` points at the run's first channel,
// `sums` is [items][kN vectors]. kPoints is the number of points if known at compile time (it must divide kGroup),
// else 0; kWhole: rows have kN vectors.
template <int kN, int kPoints, bool kWhole, typename T, typename A>
void sum_padded(const Problem& p, const PointTable<A>& table, const PointBlock<A>& b, int64_t items, const T* rows,
                int64_t row_vectors, A* sums) {
  const int32_t points = kPoints ? kPoints : p.points;
  const int64_t row_size = (kWhole ? kN : row_vectors) * kWidth<A>;
  for (int32_t level = 0; level < p.levels; ++level) {
    const int32_t first = level * points;
    const int64_t down = table.stride[first] * row_size;
    for (int64_t item = 0; item < items; ++item) {
      const A* weights = b.weights + 4 * item * table.padded;
      const int32_t* row = b.row + item * table.padded + first;
      if (kPoints) weights += weight_slot(first);
      RowSum<kN, A> sum;
      for (int32_t k = 0; k < points; ++k) {
        const T* r = rows + row[k] * row_size;
        sum.add_point(r, r + row_size, r + down, r + down + row_size, weights + (kPoints ? k : weight_slot(first + k)));
      }
      sum.store_to(sums + item * kN * kWidth<A>, level > 0);
    }
  }
}

// In place: sum of one item over a run of kN vectors of channels.
template <int kN, typename T, typename A>
void sum_in_place(const Problem& p, const PointTable<A>& table, const PointBlock<A>& b, int64_t item, const T* base,
                  const T* zero, A* out) {
  const A* weights = b.weights + 4 * item * table.padded;
  const int64_t at = item * table.padded;
  RowSum<kN, A> sum;
  for (int32_t i = 0; i < table.count; ++i) {
    const Corners<const T> c = corners_of(base, b.row[at + i], table.stride[i], p.value_stride_s, b.mask[at + i], zero);
    sum.add_point(c.r00, c.r01, c.r10, c.r11, weights + weight_slot(i));
  }
  sum.store_to(out, false);
}

// In place: the last `count` channels, fewer than a vector.
template <typename T, typename A>
void sum_in_place_tail(const Problem& p, const PointTable<A>& table, const PointBlock<A>& b, int64_t item,
                       const T* base, const T* zero, int64_t count, A* out) {
  using V = Vec<A>;
  V sum = {};
  for (int32_t i = 0; i < table.count; ++i) {
    const int64_t at = item * table.padded + i;
    const A* weights = b.weights + 4 * item * table.padded + weight_slot(i);
    const Corners<const T> c = corners_of(base, b.row[at], table.stride[i], p.value_stride_s, b.mask[at], zero);
    sum = fma(broadcast(weights[0]), load_some(c.r00, count), sum);
    sum = fma(broadcast(weights[kGroup]), load_some(c.r01, count), sum);
    sum = fma(broadcast(weights[2 * kGroup]), load_some(c.r10, count), sum);
    sum = fma(broadcast(weights[3 * kGroup]), load_some(c.r11, count), sum);
  }
  store(sum, out);
}

// T: element type of value and output; P: of the points.
template <typename T, typename P>
class Forward {
 public:
  explicit Forward(const Problem& problem) : p(problem), copies_(is_worth_copying(problem)) {
    layout_ = copies_ ? padded_layout(p) : in_place_layout(p);
    const int64_t row = p.channels * int64_t(sizeof(T));
    streams_ = is_worth_streaming(p.output, row, p.batch * p.queries * p.heads * row);
  }

  void run() const {
    touch_pages(p.output, p.batch * p.queries * p.heads * p.channels * int64_t(sizeof(T)));
    if (copies_) {
      const int64_t length = run_length(), runs = (p.queries + length - 1) / length;
      parallel_for(p.batch * p.heads * runs, length * item_work(p),
                   [&](int64_t begin, int64_t end) { run_padded(begin, end, length, runs); });
    } else {
      parallel_for(p.batch * p.queries * p.heads, item_work(p),
                   [&](int64_t begin, int64_t end) { run_in_place(begin, end); });
    }
  }

 private:
  using A = Acc<T>;

  // Scratch memory of one thread.
  struct Scratch {
    Arena arena;
    PointTable<A> table;
    PointBlock<A> block;
    A* sums;
    T* zero;
    T* rows;

    Scratch(const Problem& p, int64_t copied_rows, void* memory)
        : arena{static_cast<char*>(memory)}, table(p, arena), block(table.padded, false, arena) {
      const int64_t channels = vectors_of<A>(p) * kWidth<A>;
      sums = arena.take<A>(kBlock * 8 * kWidth<A>);
      zero = arena.take<T>(channels);
      rows = arena.take<T>(copied_rows * channels);
    }
  };

  // Queries per task: enough to gather several times the rows that a thread copies if its first task starts in the
  // middle of a head.
  int64_t run_length() const {
    const int64_t length = layout_.rows / (int64_t(p.levels) * p.points);
    return (length > 256 ? length : 256) / kBlock * kBlock;
  }

  // Tasks [begin, end) of all (n, m, run of queries).
  void run_padded(int64_t begin, int64_t end, int64_t length, int64_t runs) const {
    const ThreadScratch memory(Scratch(p, layout_.rows, nullptr).arena.used);
    Scratch s(p, layout_.rows, memory.data());
    s.table.fill(p, layout_);
    int64_t filled = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / runs, n = head / p.heads, m = head % p.heads;
      if (head != filled) {
        const T* slice = static_cast<const T*>(p.value) + n * p.value_stride_n + m * p.value_stride_m;
        fill_padded(p, layout_, slice, vectors_of<A>(p), s.rows);
        filled = head;
      }
      const int64_t first = task % runs * length, last = first + length < p.queries ? first + length : p.queries;
      for (int64_t q = first; q < last; q += kBlock) {
        run_block(s, {n, q, m}, q + kBlock < last ? kBlock : last - q);
      }
    }
    finish_streams();
  }

  void run_block(Scratch& s, const Item& first_item, int64_t items) const {
    const auto [n, q, m] = first_item;
    const int64_t vectors = vectors_of<A>(p);
    for (int64_t i = 0; i < items; ++i) {
      prefetch_points<P>(p, {n, q + i + kBlock, m});
      load_item<P>(p, s.table, s.block, i, {n, q + i, m});
    }
    find_corners(s.table, s.block, items);
    for_each_run<8>(vectors, [&, n = n, q = q, m = m](int64_t first, auto run) {
      constexpr int kN = decltype(run)::value;
      const auto sum = p.points != 4   ? sum_padded<kN, 0, false, T, A>
                       : vectors != kN ? sum_padded<kN, 4, false, T, A>
                                       : sum_padded<kN, 4, true, T, A>;
      sum(p, s.table, s.block, items, s.rows + first * kWidth<A>, vectors, s.sums);
      for (int64_t i = 0; i < items; ++i) {
        T* out = output_row(p, static_cast<T*>(p.output), {n, q + i, m});
        store_run(s.sums + i * kN * kWidth<A>, first, kN, out);
      }
    });
  }

  // Items [begin, end) of all (n, q, m), in the order of memory.
  void run_in_place(int64_t begin, int64_t end) const {
    const ThreadScratch memory(Scratch(p, 0, nullptr).arena.used);
    Scratch s(p, 0, memory.data());
    s.table.fill(p, layout_);
    clear_row(s.zero, vectors_of<A>(p));
    const T* value = static_cast<const T*>(p.value);
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t items = at + kBlock < end ? kBlock : end - at;
      const T* slices[kBlock];
      for (int64_t i = 0; i < items; ++i) {
        const int64_t m = (at + i) % p.heads, nq = (at + i) / p.heads;
        slices[i] = value + nq / p.queries * p.value_stride_n + m * p.value_stride_m;
        load_item<P>(p, s.table, s.block, i, {nq / p.queries, nq % p.queries, m});
      }
      find_corners(s.table, s.block, items);
      prefetch_rows(p, s.table, s.block, 0, slices[0]);
      for (int64_t i = 0; i < items; ++i) {
        if (i + 1 < items) prefetch_rows(p, s.table, s.block, i + 1, slices[i + 1]);
        run_item(s, i, slices[i], static_cast<T*>(p.output) + (at + i) * p.channels);
      }
    }
    finish_streams();
  }

  void run_item(Scratch& s, int64_t slot, const T* slice, T* out) const {
    const int64_t whole = p.channels / kWidth<A>;
    for_each_run<8>(whole, [&](int64_t first, auto run) {
      constexpr int kN = decltype(run)::value;
      sum_in_place<kN>(p, s.table, s.block, slot, slice + first * kWidth<A>, s.zero, s.sums);
      store_run(s.sums, first, kN, out);
    });
    const int64_t rest = p.channels - whole * kWidth<A>;
    if (rest > 0) {
      sum_in_place_tail(p, s.table, s.block, slot, slice + whole * kWidth<A>, s.zero, rest, s.sums);
      store_run(s.sums, whole, 1, out);
    }
  }

  // Stores the sums of a run of vectors; `first` is the index of the first vector. Runs of streamed rows are whole
  // lines.
  void store_run(const A* sum, int64_t first, int vectors, T* out) const {
    const int64_t count = vectors * kWidth<A>, left = p.channels - first * kWidth<A>;
    out += first * kWidth<A>;
    if (!streams_) {
      round_run(sum, vectors, left, out);
    } else if constexpr (std::is_same<T, A>::value) {
      stream(sum, count, out);
    } else {
      T rounded[8 * kWidth<A>] = {};
      round_run(sum, vectors, left, rounded);
      stream(rounded, count, out);
    }
  }
  static void round_run(const A* sum, int vectors, int64_t left, T* out) {
    for (int v = 0; v < vectors; v += 2, left -= 2 * kWidth<A>, out += 2 * kWidth<A>) {
      const Vec<A> a = load(sum + v * kWidth<A>);
      if (v + 1 < vectors) {
        store_two_some(a, load(sum + (v + 1) * kWidth<A>), out, left);
      } else {
        store_some(a, out, left);
      }
    }
  }

  const Problem& p;
  const bool copies_;
  bool streams_;
  Layout layout_;
};

}  // namespace
}  // namespace msda
