// Backward: how a call is divided into tasks. No two tasks write the same memory, and sums are formed in an order that
// depends on shapes alone, so the result is the same to the last bit for any number of threads.
//
// Many queries: a task is one (batch, head), or where those are few a part of its queries; it works on a copy of the
// head's slice, interleaved with the gradient. The gradients of parts are added up at the end, in order.
// Few queries: the tensors are used in place; a task is one (batch, head).
#pragma once

#include <memory>
#include <type_traits>

#include "forward.h"
#include "update.h"

namespace msda {
namespace {

// Few heads are divided into parts until there are this many tasks.
constexpr int64_t kBackwardTasks = 8;

template <typename T, typename P>
struct Backward {
  using A = Acc<T>;
  static constexpr int kWidth = Vec<A>::kWidth;

  struct Context {
    const Problem& problem;
    Layout layout;
    int64_t parts;
    A* partial;  // [batch * heads][parts][rows][channels]: gradients of value, if parts > 1
  };

  struct Scratch {
    Lanes<A> lanes;
    Block<A> block;
    A* grads;  // [kBlock][padded channels]: grad_output of the block
    A *zero, *sink;
    A* rows;  // value and gradient interleaved
    size_t bytes;
  };
  static Scratch carve(const Problem& p, int64_t rows, void* memory) {
    Arena arena{static_cast<char*>(memory)};
    Scratch s;
    const int64_t channels = vectors_of<A>(p) * kWidth;
    s.lanes = make_lanes<A>(p, arena);
    s.block = make_block(s.lanes, true, arena);
    s.grads = arena.take<A>(kBlock * channels);
    s.zero = arena.take<A>(channels);
    s.sink = arena.take<A>(channels);
    s.rows = arena.take<A>(rows * 2 * channels);
    s.bytes = arena.used + 64;
    return s;
  }
  static Scratch acquire(const Context& c, int64_t rows) {
    const Problem& p = c.problem;
    Scratch s = carve(p, rows, acquire_scratch(carve(p, rows, nullptr).bytes));
    fill_lanes(p, s.lanes, c.layout.base, c.layout.stride, c.layout.outside);
    return s;
  }

  static void load_block(const Problem& p, Scratch& s, int64_t items, int64_t n, int64_t q, int64_t m) {
    const int64_t channels = vectors_of<A>(p) * kWidth;
    for (int64_t i = 0; i < items; ++i) {
      prefetch_points<P>(p, n, q + i + kBlock, m);
      load_item<P>(p, s.lanes, s.block, i, n, q + i, m);
      const T* grad = output_row<const T>(p, const_cast<void*>(p.grad_output), n, q + i, m);
      if (q + i + kBlock < p.queries) {
        prefetch(grad + kBlock * p.heads * p.channels, p.channels * int64_t(sizeof(T)));
      }
      copy_row(grad, p.channels, s.grads + i * channels);
    }
    prepare(s.lanes, s.block, items);
  }

  // Calls f(pixel of the level-flattened slice, its gradient) for every pixel.
  template <typename F>
  static void for_each_gradient(const Problem& p, const Layout& layout, const Scratch& s, F f) {
    const int64_t channels = vectors_of<A>(p) * kWidth;
    for (int32_t l = 0; l < p.levels; ++l) {
      for (int64_t y = 0; y < p.height[l]; ++y) {
        const A* in = s.rows + (layout.base[l] + y * layout.stride[l]) * 2 * channels + channels;
        for (int64_t x = 0; x < p.width[l]; ++x) f(p.start[l] + y * p.width[l] + x, in + x * 2 * channels);
      }
    }
  }
  template <typename To>
  static void write_row(const A* in, int64_t channels, To* out) {
    int64_t c = 0;
    for (; c + kWidth <= channels; c += kWidth) store_as(Vec<A>::load(in + c), out + c);
    if (c < channels) store_some(Vec<A>::load(in + c), out + c, channels - c);
  }

  static void padded_task(const Context& c, Scratch& s, int64_t head, int64_t part) {
    const Problem& p = c.problem;
    const int64_t n = head / p.heads, m = head % p.heads;
    const int64_t vectors = vectors_of<A>(p), channels = vectors * kWidth;
    const T* slice = static_cast<const T*>(p.value) + n * p.value_stride_n + m * p.value_stride_m;
    fill_slice(p, c.layout, slice, 2 * vectors, s.rows);
    const int64_t last = p.queries * (part + 1) / c.parts;
    for (int64_t q = p.queries * part / c.parts; q < last; q += kBlock) {
      const int64_t items = q + kBlock < last ? kBlock : last - q;
      load_block(p, s, items, n, q, m);
      for_each_run<4>(vectors, [&](int64_t first, auto run) {
        constexpr int kN = decltype(run)::value;
        const auto update = p.points == 4 ? update_padded<kN, 4, A> : update_padded<kN, 0, A>;
        update(p, s.lanes, s.block, items, s.rows + first * kWidth, 2 * channels, channels, s.grads + first * kWidth,
               channels, first == 0);
      });
      for (int64_t i = 0; i < items; ++i) store_item<P>(p, s.lanes, s.block, i, n, q + i, m);
    }
    if (c.parts > 1) {
      A* out = c.partial + (head * c.parts + part) * p.rows * p.channels;
      for_each_gradient(p, c.layout, s,
                        [&](int64_t pixel, const A* in) { write_row(in, p.channels, out + pixel * p.channels); });
    } else {
      T* out = static_cast<T*>(p.grad_value) + (n * p.rows * p.heads + m) * p.channels;
      for_each_gradient(p, c.layout, s, [&](int64_t pixel, const A* in) {
        write_row(in, p.channels, out + pixel * p.heads * p.channels);
      });
    }
  }

  static void padded(int64_t begin, int64_t end, void* context) {
    const Context& c = *static_cast<const Context*>(context);
    Scratch s = acquire(c, c.layout.rows);
    for (int64_t task = begin; task < end; ++task) padded_task(c, s, task / c.parts, task % c.parts);
    release_scratch();
  }

  // Rows [begin, end) of all (n, row): adds up the parts' gradients.
  static void add_parts(int64_t begin, int64_t end, void* context) {
    const Context& c = *static_cast<const Context*>(context);
    const Problem& p = c.problem;
    for (int64_t at = begin; at < end; ++at) {
      const int64_t n = at / p.rows, row = at % p.rows;
      for (int64_t m = 0; m < p.heads; ++m) {
        const A* in = c.partial + ((n * p.heads + m) * c.parts * p.rows + row) * p.channels;
        T* out = static_cast<T*>(p.grad_value) + (at * p.heads + m) * p.channels;
        for (int64_t ch = 0; ch < p.channels; ++ch) {
          A sum = in[ch];
          for (int64_t part = 1; part < c.parts; ++part) sum += in[part * p.rows * p.channels + ch];
          from_acc(sum, out[ch]);
        }
      }
    }
  }

  static void direct_task(const Problem& p, Scratch& s, int64_t n, int64_t m) {
    const int64_t vectors = vectors_of<A>(p), channels = vectors * kWidth;
    const A* slice = static_cast<const A*>(p.value) + n * p.value_stride_n + m * p.value_stride_m;
    A* grad_slice = static_cast<A*>(p.grad_value) + (n * p.rows * p.heads + m) * p.channels;
    const int64_t grad_stride = p.heads * p.channels;
    for (int64_t q = 0; q < p.queries; q += kBlock) {
      const int64_t items = q + kBlock < p.queries ? kBlock : p.queries - q;
      load_block(p, s, items, n, q, m);
      prefetch_item(p, s.lanes, s.block, 0, slice);
      for (int64_t i = 0; i < items; ++i) {
        if (i + 1 < items) prefetch_item(p, s.lanes, s.block, i + 1, slice);
        for_each_run<4>(vectors, [&](int64_t first, auto run) {
          update_direct<decltype(run)::value>(p, s.lanes, s.block, i, slice + first * kWidth,
                                              grad_slice + first * kWidth, grad_stride, s.zero, s.sink,
                                              s.grads + i * channels + first * kWidth, first == 0);
        });
      }
      for (int64_t i = 0; i < items; ++i) store_item<P>(p, s.lanes, s.block, i, n, q + i, m);
    }
  }

  static void direct(int64_t begin, int64_t end, void* context) {
    const Context& c = *static_cast<const Context*>(context);
    Scratch s = acquire(c, 0);
    clear_row(s.zero, vectors_of<A>(c.problem));
    clear_row(s.sink, vectors_of<A>(c.problem));
    for (int64_t task = begin; task < end; ++task) {
      direct_task(c.problem, s, task / c.problem.heads, task % c.problem.heads);
    }
    release_scratch();
  }

  static void clear(int64_t begin, int64_t end, void* context) {
    const Problem& p = static_cast<const Context*>(context)->problem;
    const int64_t row = p.heads * p.channels;
    std::memset(static_cast<void*>(static_cast<T*>(p.grad_value) + begin * row), 0,
                size_t((end - begin) * row) * sizeof(T));
  }

  // How many parts a head's queries are divided into: none so small that its copy and gradient outweigh its work.
  static int64_t count_parts(const Problem& p, const Layout& layout) {
    const int64_t heads = p.batch * p.heads;
    if (heads == 0 || heads >= kBackwardTasks) return 1;
    const int64_t wanted = (kBackwardTasks + heads - 1) / heads;
    const int64_t most = p.queries * p.levels * p.points / (4 * layout.rows);
    return most < 1 ? 1 : most < wanted ? most : wanted;
  }

  static void run(const Problem& p) {
    touch_pages(p.grad_value, p.batch * p.rows * p.heads * p.channels * int64_t(sizeof(T)));
    const int64_t points = item_offset(p, p.batch, 0, 0) * int64_t(sizeof(P));
    touch_pages(p.grad_xy, 2 * points);
    touch_pages(p.grad_attention, points);
    // In place needs the accumulation type in the tensor and rows of whole vectors.
    const bool in_place = std::is_same<T, A>::value && p.channels % kWidth == 0 && !worth_copying(p);
    if (in_place) {
      Context c{p, direct_layout(p), 1, nullptr};
      parallel_for(p.batch * p.rows, p.heads * p.channels, clear, &c);
      parallel_for(p.batch * p.heads, 2 * p.queries * item_work(p), direct, &c);
      return;
    }
    Context c{p, padded_layout(p), 1, nullptr};
    c.parts = count_parts(p, c.layout);
    std::unique_ptr<A[]> partial;
    if (c.parts > 1) {
      partial.reset(new A[size_t(p.batch * p.heads * c.parts * p.rows * p.channels)]);
      c.partial = partial.get();
    }
    parallel_for(p.batch * p.heads * c.parts, (2 * p.queries / c.parts) * item_work(p) + c.layout.rows * p.channels,
                 padded, &c);
    if (c.parts > 1) parallel_for(p.batch * p.rows, c.parts * p.heads * p.channels, add_parts, &c);
  }
};

}  // namespace
}  // namespace msda
