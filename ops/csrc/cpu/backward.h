// Backward on the CPU. No two tasks write the same memory, and sums are formed in an order that depends on shapes
// alone, so that the result is bitwise identical for any number of threads.
//
// Many queries: a task is one (batch, head), or a part of its queries if there are few of them; it works on a copy of
// the head's slice, interleaved with the gradient. The gradients of parts are summed at the end, in order.
// Few queries: value is read in place; a task is one (batch, head). Its gradient is summed in scratch memory and
// streamed if it is large, or summed in place.
#pragma once

#include <memory>

#include "point_gradients.h"
#include "value_rows.h"

namespace msda {
namespace {

// Processes one corner: returns <grad, row> over the run and adds weight * grad to the row's gradient.
template <int kN, typename V, typename T, typename A>
inline V update_row(const T* row, A* grad_row, const V (&grad)[kN], A weight) {
  const V w = broadcast(weight);
  V dot = {};
  for (int v = 0; v < kN; ++v) {
    dot = fma(load(row + v * kWidth<A>), grad[v], dot);
    store(fma(w, grad[v], load(grad_row + v * kWidth<A>)), grad_row + v * kWidth<A>);
  }
  return dot;
}

// Padded layout; each row of value is followed by its gradient. `grads` is [items][row_vectors] with the run's channels
// at its start. kPoints and kWhole as in sum_padded().
template <int kN, int kPoints, bool kWhole, typename A>
void update_padded(const Problem& p, const PointTable<A>& table, const PointBlock<A>& b, int64_t items, A* rows,
                   int64_t row_vectors, const A* grads, bool first_run) {
  using V = Vec<A>;
  const int64_t to_grad = (kWhole ? kN : row_vectors) * kWidth<A>, row_size = 2 * to_grad;
  const int32_t points = kPoints ? kPoints : p.points;
  for (int32_t level = 0; level < p.levels; ++level) {
    const int32_t first = level * points;
    const int64_t down = table.stride[first] * row_size;
    for (int64_t item = 0; item < items; ++item) {
      V grad[kN];
      for (int v = 0; v < kN; ++v) grad[v] = load(grads + item * to_grad + v * kWidth<A>);
      A* dots = b.dots + 4 * item * table.padded;
      const A* weights = b.weights + 4 * item * table.padded;
      const int32_t* row = b.row + item * table.padded + first;
      for (int32_t k = 0; k < points; ++k) {
        const A* w = weights + (kPoints ? weight_slot(first) + k : weight_slot(first + k));
        A* r00 = rows + row[k] * row_size;
        A* r10 = r00 + down;
        const V d00 = update_row(r00, r00 + to_grad, grad, w[0]);
        const V d01 = update_row(r00 + row_size, r00 + row_size + to_grad, grad, w[kGroup]);
        const V d10 = update_row(r10, r10 + to_grad, grad, w[2 * kGroup]);
        const V d11 = update_row(r10 + row_size, r10 + row_size + to_grad, grad, w[3 * kGroup]);
        sum_four(d00, d01, d10, d11, !first_run, dots + transpose_slot<A>(first + k));
      }
    }
  }
}

// In place: `base` is the tensor. `zero` and `sink` replace corners outside the level.
template <int kN, typename T, typename A>
void update_in_place(const Problem& p, const PointTable<A>& table, const PointBlock<A>& b, int64_t item, const T* base,
                     A* grad_base, int64_t grad_stride, const T* zero, A* sink, const A* grads, bool first_run) {
  using V = Vec<A>;
  V grad[kN];
  for (int v = 0; v < kN; ++v) grad[v] = load(grads + v * kWidth<A>);
  for (int32_t i = 0; i < table.count; ++i) {
    const int64_t at = item * table.padded + i;
    const A* w = b.weights + 4 * item * table.padded + weight_slot(i);
    const Corners<const T> c = corners_of(base, b.row[at], table.stride[i], p.value_stride_s, b.mask[at], zero);
    const Corners<A> g = corners_of(grad_base, b.row[at], table.stride[i], grad_stride, b.mask[at], sink);
    const V d00 = update_row(c.r00, g.r00, grad, w[0]);
    const V d01 = update_row(c.r01, g.r01, grad, w[kGroup]);
    const V d10 = update_row(c.r10, g.r10, grad, w[2 * kGroup]);
    const V d11 = update_row(c.r11, g.r11, grad, w[3 * kGroup]);
    sum_four(d00, d01, d10, d11, !first_run, b.dots + 4 * item * table.padded + transpose_slot<A>(i));
  }
}

// T: element type of value and output; P: of the points.
template <typename T, typename P>
class Backward {
 public:
  explicit Backward(const Problem& problem) : p(problem), channels_(vectors_of<A>(p) * kWidth<A>) {
    const int64_t row = p.channels * int64_t(sizeof(T));
    streams_value_ = is_worth_streaming(p.grad_value, row, p.batch * p.rows * p.heads * row);
    // In place, rows must be whole vectors, and gradients that are not streamed must have the accumulation type.
    in_place_ = p.channels % kWidth<A> == 0 && (streams_value_ || std::is_same<T, A>::value) && !is_worth_copying(p);
    layout_ = in_place_ ? in_place_layout(p) : padded_layout(p);
    parts_ = in_place_ ? 1 : count_parts();
    streams_value_ = streams_value_ && parts_ == 1;
    const int64_t item = int64_t(p.levels) * p.points * int64_t(sizeof(P));
    streams_points_ = is_worth_streaming(p.grad_xy, 2 * item, 2 * p.batch * p.queries * p.heads * item) &&
                      is_worth_streaming(p.grad_attention, item, p.batch * p.queries * p.heads * item);
  }

  void run() {
    touch_pages(p.grad_value, p.batch * p.rows * p.heads * p.channels * int64_t(sizeof(T)));
    const int64_t points = points_offset(p, {p.batch, 0, 0}) * int64_t(sizeof(P));
    touch_pages(p.grad_xy, 2 * points);
    touch_pages(p.grad_attention, points);
    const int64_t heads = p.batch * p.heads;
    if (in_place_) {
      if (!streams_value_) {
        parallel_for(p.batch * p.rows, p.heads * p.channels, [&](int64_t begin, int64_t end) { clear(begin, end); });
      }
      parallel_for(heads, 2 * p.queries * item_work(p) + (streams_value_ ? p.rows * p.channels : 0),
                   [&](int64_t begin, int64_t end) { run_in_place(begin, end); });
      return;
    }
    if (parts_ > 1) partial_.reset(new A[size_t(heads * parts_ * p.rows * p.channels)]);
    parallel_for(heads * parts_, (2 * p.queries / parts_) * item_work(p) + layout_.rows * p.channels,
                 [&](int64_t begin, int64_t end) { run_padded(begin, end); });
    if (parts_ > 1) {
      parallel_for(p.batch * p.rows, parts_ * p.heads * p.channels,
                   [&](int64_t begin, int64_t end) { add_parts(begin, end); });
    }
  }

 private:
  using A = Acc<T>;

  // Scratch memory of one thread.
  struct Scratch {
    Arena arena;
    PointTable<A> table;
    PointBlock<A> block;
    A* grads;  // [kBlock][padded channels]: grad_output of the block
    T* zero;
    A* sink;
    A* rows;  // of `row_size` elements: value and gradient side by side, or gradient alone

    Scratch(const Problem& p, int64_t count, int64_t row_size, void* memory)
        : arena{static_cast<char*>(memory)}, table(p, arena), block(table.padded, true, arena) {
      const int64_t channels = vectors_of<A>(p) * kWidth<A>;
      grads = arena.take<A>(kBlock * channels);
      zero = arena.take<T>(channels);
      sink = arena.take<A>(channels);
      rows = arena.take<A>(count * row_size);
    }
  };

  // Number of parts of a head's queries. Few heads are divided until there are kTasks tasks, unless parts become so
  // small that copying the slice and its gradient costs more than the work.
  int64_t count_parts() const {
    constexpr int64_t kTasks = 8;
    const int64_t heads = p.batch * p.heads;
    if (heads == 0 || heads >= kTasks) return 1;
    const int64_t wanted = (kTasks + heads - 1) / heads;
    const int64_t most = p.queries * p.levels * p.points / (4 * layout_.rows);
    return most < 1 ? 1 : most < wanted ? most : wanted;
  }

  // Loads points and grad_output of the items starting at `first`.
  void load_block(Scratch& s, const Item& first, int64_t items) const {
    const auto [n, q, m] = first;
    for (int64_t i = 0; i < items; ++i) {
      prefetch_points<P>(p, {n, q + i + kBlock, m});
      load_item<P>(p, s.table, s.block, i, {n, q + i, m});
      const T* grad = output_row(p, static_cast<const T*>(p.grad_output), {n, q + i, m});
      if (q + i + kBlock < p.queries) {
        prefetch(grad + kBlock * p.heads * p.channels, p.channels * int64_t(sizeof(T)));
      }
      copy_row(grad, p.channels, s.grads + i * channels_);
    }
    find_corners(s.table, s.block, items);
  }

  // Tasks [begin, end) of all (n, m, part of the queries).
  void run_padded(int64_t begin, int64_t end) const {
    const ThreadScratch memory(Scratch(p, layout_.rows, 2 * channels_, nullptr).arena.used);
    Scratch s(p, layout_.rows, 2 * channels_, memory.data());
    s.table.fill(p, layout_);
    for (int64_t task = begin; task < end; ++task) run_part(s, task / parts_, task % parts_);
    finish_streams();
  }

  void run_part(Scratch& s, int64_t head, int64_t part) const {
    const int64_t n = head / p.heads, m = head % p.heads, vectors = vectors_of<A>(p);
    const T* slice = static_cast<const T*>(p.value) + n * p.value_stride_n + m * p.value_stride_m;
    fill_padded(p, layout_, slice, 2 * vectors, s.rows);
    const int64_t last = p.queries * (part + 1) / parts_;
    for (int64_t q = p.queries * part / parts_; q < last; q += kBlock) {
      const int64_t items = q + kBlock < last ? kBlock : last - q;
      load_block(s, {n, q, m}, items);
      for_each_run<4>(vectors, [&](int64_t first, auto run) {
        constexpr int kN = decltype(run)::value;
        const auto update = p.points != 4   ? update_padded<kN, 0, false, A>
                            : vectors != kN ? update_padded<kN, 4, false, A>
                                            : update_padded<kN, 4, true, A>;
        update(p, s.table, s.block, items, s.rows + first * kWidth<A>, vectors, s.grads + first * kWidth<A>,
               first == 0);
      });
      for (int64_t i = 0; i < items; ++i) {
        store_point_gradients<P>(p, s.table, s.block, i, {n, q + i, m}, streams_points_);
      }
    }
    if (parts_ > 1) {
      A* out = partial_.get() + (head * parts_ + part) * p.rows * p.channels;
      store_padded(s, out, p.channels);
    } else {
      T* out = static_cast<T*>(p.grad_value) + (n * p.rows * p.heads + m) * p.channels;
      store_padded(s, out, p.heads * p.channels);
    }
  }

  // Copies the gradient of a padded slice to rows `row_stride` elements apart.
  template <typename To>
  void store_padded(const Scratch& s, To* out, int64_t row_stride) const {
    for (int32_t l = 0; l < p.levels; ++l) {
      for (int64_t y = 0; y < p.height[l]; ++y) {
        const A* in = s.rows + (layout_.base[l] + y * layout_.stride[l]) * 2 * channels_ + channels_;
        To* row = out + (p.start[l] + y * p.width[l]) * row_stride;
        for (int64_t x = 0; x < p.width[l]; ++x, in += 2 * channels_, row += row_stride) store_row(in, row);
      }
    }
  }
  template <typename To>
  void store_row(const A* in, To* out) const {
    int64_t c = 0;
    if (streams_value_) {
      constexpr int64_t elements = kLine / int(sizeof(To));
      for (; c < p.channels; c += elements) {
        To line[elements];
        for (int64_t i = 0; i < elements; i += kWidth<A>) store(load(in + c + i), line + i);
        stream(line, elements, out + c);
      }
      return;
    }
    for (; c + kWidth<A> <= p.channels; c += kWidth<A>) store(load(in + c), out + c);
    if (c < p.channels) store_some(load(in + c), out + c, p.channels - c);
  }

  // Rows [begin, end) of all (n, row): sums the gradients of the parts.
  void add_parts(int64_t begin, int64_t end) const {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t n = at / p.rows, row = at % p.rows;
      for (int64_t m = 0; m < p.heads; ++m) {
        const A* in = partial_.get() + ((n * p.heads + m) * parts_ * p.rows + row) * p.channels;
        T* out = static_cast<T*>(p.grad_value) + (at * p.heads + m) * p.channels;
        for (int64_t c = 0; c < p.channels; ++c) {
          A sum = in[c];
          for (int64_t part = 1; part < parts_; ++part) sum += in[part * p.rows * p.channels + c];
          out[c] = T(sum);
        }
      }
    }
  }

  // Rows [begin, end) of all (n, row).
  void clear(int64_t begin, int64_t end) const {
    const int64_t row = p.heads * p.channels;
    std::memset(static_cast<char*>(p.grad_value) + begin * row * int64_t(sizeof(T)), 0,
                size_t((end - begin) * row) * sizeof(T));
  }

  // Tasks [begin, end) of all (n, m).
  void run_in_place(int64_t begin, int64_t end) const {
    const int64_t rows = streams_value_ ? p.rows : 0;
    const ThreadScratch memory(Scratch(p, rows, channels_, nullptr).arena.used);
    Scratch s(p, rows, channels_, memory.data());
    s.table.fill(p, layout_);
    clear_row(s.zero, vectors_of<A>(p));
    clear_row(s.sink, vectors_of<A>(p));
    clear_row(s.rows, rows * vectors_of<A>(p));
    for (int64_t task = begin; task < end; ++task) run_head(s, task / p.heads, task % p.heads);
    finish_streams();
  }

  // Expects scratch rows of zeros and leaves them so.
  void run_head(Scratch& s, int64_t n, int64_t m) const {
    const T* slice = static_cast<const T*>(p.value) + n * p.value_stride_n + m * p.value_stride_m;
    const int64_t offset = (n * p.rows * p.heads + m) * p.channels, stride = p.heads * p.channels;
    A* grad_slice = streams_value_ ? s.rows : static_cast<A*>(p.grad_value) + offset;
    const int64_t grad_stride = streams_value_ ? channels_ : stride;
    for (int64_t q = 0; q < p.queries; q += kBlock) {
      const int64_t items = q + kBlock < p.queries ? kBlock : p.queries - q;
      load_block(s, {n, q, m}, items);
      prefetch_rows(p, s.table, s.block, 0, slice);
      for (int64_t i = 0; i < items; ++i) {
        if (i + 1 < items) prefetch_rows(p, s.table, s.block, i + 1, slice);
        for_each_run<4>(vectors_of<A>(p), [&](int64_t first, auto run) {
          update_in_place<decltype(run)::value>(p, s.table, s.block, i, slice + first * kWidth<A>,
                                                grad_slice + first * kWidth<A>, grad_stride, s.zero, s.sink,
                                                s.grads + i * channels_ + first * kWidth<A>, first == 0);
        });
      }
      for (int64_t i = 0; i < items; ++i) {
        store_point_gradients<P>(p, s.table, s.block, i, {n, q + i, m}, streams_points_);
      }
    }
    if (!streams_value_) return;
    T* out = static_cast<T*>(p.grad_value) + offset;
    A* in = s.rows;
    for (int64_t row = 0; row < p.rows; ++row, in += channels_, out += stride) {
      store_row(in, out);
      clear_row(in, vectors_of<A>(p));
    }
  }

  const Problem& p;
  int64_t channels_;  // padded to whole vectors
  bool in_place_, streams_value_, streams_points_;
  int64_t parts_;  // a head's queries are divided into
  Layout layout_;
  std::unique_ptr<A[]> partial_;  // [batch * heads][parts][rows][channels]: gradients of value, if parts > 1
};

}  // namespace
}  // namespace msda
