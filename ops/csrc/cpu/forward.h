// Forward: how a call is divided into tasks. Every output row is computed by one task, in an order that depends on
// shapes alone, so the result is the same to the last bit for any number of threads.
//
// Many queries: the head's slice of value is copied into scratch; a task is a run of one head's queries.
// Few queries: the tensor is read in place; a task is one (query, head).
#pragma once

#include "runtime.h"
#include "sum.h"

namespace msda {
namespace {

// Multiply-adds of one item, the unit in which parallel_for() is told about work.
inline int64_t item_work(const Problem& p) { return 4 * int64_t(p.levels) * p.points * p.channels; }

template <typename T, typename P>
struct Forward {
  using A = Acc<T>;
  static constexpr int kWidth = Vec<A>::kWidth;

  // Scratch of one thread.
  struct Scratch {
    Lanes<A> lanes;
    Block<A> block;
    A* sums;
    T* zero;
    T* rows;
    size_t bytes;
  };
  static Scratch carve(const Problem& p, int64_t rows, void* memory) {
    Arena arena{static_cast<char*>(memory)};
    Scratch s;
    s.lanes = make_lanes<A>(p, arena);
    s.block = make_block(s.lanes, false, arena);
    s.sums = arena.take<A>(kBlock * 8 * kWidth);
    s.zero = arena.take<T>(vectors_of<A>(p) * kWidth);
    s.rows = arena.take<T>(rows * vectors_of<A>(p) * kWidth);
    s.bytes = arena.used + 64;
    return s;
  }

  static void store_run(const Problem& p, const A* sum, int64_t first, int registers, T* out) {
    for (int v = 0; v < registers; v += 2) {
      const int64_t channel = (first + v) * kWidth, left = p.channels - channel;
      const Vec<A> a = Vec<A>::load(sum + v * kWidth);
      if (v + 1 < registers) {
        store_two_some(a, Vec<A>::load(sum + (v + 1) * kWidth), out + channel, left);
      } else {
        store_some(a, out + channel, left);
      }
    }
  }

  // Queries of one task: enough to gather several times the rows that a thread copies when its first task begins in
  // the middle of a head.
  static int64_t run_length(const Problem& p, const Layout& layout) {
    const int64_t length = layout.rows / (int64_t(p.levels) * p.points);
    return (length > 256 ? length : 256) / kBlock * kBlock;
  }

  static void padded_block(const Problem& p, Scratch& s, int64_t n, int64_t m, int64_t q, int64_t items) {
    const int64_t vectors = vectors_of<A>(p);
    for (int64_t i = 0; i < items; ++i) {
      prefetch_points<P>(p, n, q + i + kBlock, m);
      load_item<P>(p, s.lanes, s.block, i, n, q + i, m);
    }
    prepare(s.lanes, s.block, items);
    for_each_run<8>(vectors, [&](int64_t first, auto run) {
      constexpr int kN = decltype(run)::value;
      const auto sum = p.points == 4 ? sum_padded<kN, 4, T, A> : sum_padded<kN, 0, T, A>;
      sum(p, s.lanes, s.block, items, s.rows + first * kWidth, vectors * kWidth, s.sums);
      for (int64_t i = 0; i < items; ++i) {
        store_run(p, s.sums + i * kN * kWidth, first, kN, output_row<T>(p, p.output, n, q + i, m));
      }
    });
  }

  static void padded(int64_t begin, int64_t end, void* context) {
    const Problem& p = *static_cast<const Problem*>(context);
    const Layout layout = padded_layout(p);
    Scratch s = carve(p, layout.rows, acquire_scratch(carve(p, layout.rows, nullptr).bytes));
    fill_lanes(p, s.lanes, layout.base, layout.stride, layout.outside);
    const int64_t length = run_length(p, layout), runs = (p.queries + length - 1) / length;
    int64_t filled = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / runs, n = head / p.heads, m = head % p.heads;
      if (head != filled) {
        const T* slice = static_cast<const T*>(p.value) + n * p.value_stride_n + m * p.value_stride_m;
        fill_slice(p, layout, slice, vectors_of<A>(p), s.rows);
        filled = head;
      }
      const int64_t first = task % runs * length, last = first + length < p.queries ? first + length : p.queries;
      for (int64_t q = first; q < last; q += kBlock) {
        padded_block(p, s, n, m, q, q + kBlock < last ? kBlock : last - q);
      }
    }
    release_scratch();
  }

  static void direct_item(const Problem& p, Scratch& s, int64_t slot, const T* slice, T* out) {
    const int64_t whole = p.channels / kWidth;
    for_each_run<8>(whole, [&](int64_t first, auto run) {
      constexpr int kN = decltype(run)::value;
      sum_direct<kN>(p, s.lanes, s.block, slot, slice + first * kWidth, s.zero, s.sums);
      store_run(p, s.sums, first, kN, out);
    });
    const int64_t rest = p.channels - whole * kWidth;
    if (rest > 0) {
      sum_direct_tail(p, s.lanes, s.block, slot, slice + whole * kWidth, s.zero, rest, s.sums);
      store_run(p, s.sums, whole, 1, out);
    }
  }

  // Items [begin, end) of all (n, q, m), in the order of memory.
  static void direct(int64_t begin, int64_t end, void* context) {
    const Problem& p = *static_cast<const Problem*>(context);
    const Layout layout = direct_layout(p);
    Scratch s = carve(p, 0, acquire_scratch(carve(p, 0, nullptr).bytes));
    fill_lanes(p, s.lanes, layout.base, layout.stride, layout.outside);
    clear_row(s.zero, vectors_of<A>(p));
    const T* value = static_cast<const T*>(p.value);
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t items = at + kBlock < end ? kBlock : end - at;
      const T* slices[kBlock];
      for (int64_t i = 0; i < items; ++i) {
        const int64_t m = (at + i) % p.heads, nq = (at + i) / p.heads;
        slices[i] = value + nq / p.queries * p.value_stride_n + m * p.value_stride_m;
        load_item<P>(p, s.lanes, s.block, i, nq / p.queries, nq % p.queries, m);
      }
      prepare(s.lanes, s.block, items);
      prefetch_item(p, s.lanes, s.block, 0, slices[0]);
      for (int64_t i = 0; i < items; ++i) {
        if (i + 1 < items) prefetch_item(p, s.lanes, s.block, i + 1, slices[i + 1]);
        direct_item(p, s, i, slices[i], static_cast<T*>(p.output) + (at + i) * p.channels);
      }
    }
    release_scratch();
  }

  static void run(const Problem& p) {
    void* context = const_cast<Problem*>(&p);
    touch_pages(p.output, p.batch * p.queries * p.heads * p.channels * int64_t(sizeof(T)));
    if (worth_copying(p)) {
      const int64_t length = run_length(p, padded_layout(p)), runs = (p.queries + length - 1) / length;
      parallel_for(p.batch * p.heads * runs, length * item_work(p), padded, context);
    } else {
      parallel_for(p.batch * p.queries * p.heads, item_work(p), direct, context);
    }
  }
};

}  // namespace
}  // namespace msda
