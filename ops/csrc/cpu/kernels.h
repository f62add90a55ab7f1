// Drivers of the CPU kernels: how a call is divided into tasks. Included once per instruction set.
//
// Many queries: one task per (batch, head), which copies the head's slice of value into scratch.
// Few queries: the tensor is read in place; forward tasks are runs of queries, backward tasks (batch, head).
// Every output element is computed by one task in an order that depends on shapes alone, so the result is the
// same to the last bit for any number of threads.
#pragma once

#include <type_traits>

#include "gather.h"
#include "kernel_table.h"
#include "runtime.h"

namespace msda {
namespace {

struct Layout {  // of one head's slice, in rows
  int32_t base[kMaxLevels], stride[kMaxLevels], outside[kMaxLevels];
  int64_t rows;
};

// Bordered levels. One column serves as right border of a line and left border of the next; two lines of zeros
// below the level take the points that contribute nothing, one is the bottom border.
inline Layout padded_layout(const Problem& p) {
  Layout layout;
  int64_t at = 0;
  for (int32_t l = 0; l < p.levels; ++l) {
    const int64_t stride = p.width[l] + 1;
    layout.base[l] = int32_t(at + stride + 1);
    layout.stride[l] = int32_t(stride);
    layout.outside[l] = int32_t(at + (p.height[l] + 1) * stride);
    at += (p.height[l] + 3) * stride;
  }
  layout.rows = at;
  return layout;
}

inline Layout direct_layout(const Problem& p) {
  Layout layout;
  for (int32_t l = 0; l < p.levels; ++l) {
    layout.base[l] = int32_t(p.start[l]);
    layout.stride[l] = int32_t(p.width[l]);
    layout.outside[l] = 0;
  }
  layout.rows = p.rows;
  return layout;
}

template <typename A>
int64_t vectors_of(const Problem& p) {
  return (p.channels + Vec<A>::kWidth - 1) / Vec<A>::kWidth;
}

// Copying pays when the rows gathered are many times the rows copied.
inline bool worth_copying(const Problem& p) {
  const Layout layout = padded_layout(p);
  return layout.rows < (int64_t(1) << 31) && p.queries * p.levels * p.points * 2 > layout.rows;
}

template <typename T, typename S>
inline void copy_row(const T* from, int64_t channels, int64_t padded, S* to) {
  for (int64_t i = 0; i < channels; ++i) from_acc(to_acc(from[i]), to[i]);
  for (int64_t i = channels; i < padded; ++i) from_acc(Acc<S>(0), to[i]);
}
template <typename T>
inline void copy_row(const T* from, int64_t channels, int64_t padded, T* to) {
  for (int64_t i = 0; i < channels; ++i) to[i] = from[i];
  for (int64_t i = channels; i < padded; ++i) to[i] = T();
}

// Fills scratch rows of `row_size` elements, of which the first `padded` take the value and the rest are zero.
template <typename T, typename S>
void fill_slice(const Problem& p, const Layout& layout, const T* slice, int64_t padded, int64_t row_size, S* rows) {
  for (int32_t l = 0; l < p.levels; ++l) {
    const int64_t stride = layout.stride[l];
    const int64_t height = p.height[l], width = p.width[l];
    S* out = rows + (layout.base[l] - stride - 1) * row_size;
    std::memset(static_cast<void*>(out), 0, size_t(stride * row_size) * sizeof(S));
    out += stride * row_size;
    const T* in = slice + p.start[l] * p.value_stride_s;
    for (int64_t y = 0; y < height; ++y) {
      std::memset(static_cast<void*>(out), 0, size_t(row_size) * sizeof(S));
      out += row_size;
      for (int64_t x = 0; x < width; ++x) {
        prefetch(in + 16 * p.value_stride_s, p.channels * int64_t(sizeof(T)));
        copy_row(in, p.channels, padded, out);
        if (row_size > padded) {
          std::memset(static_cast<void*>(out + padded), 0, size_t(row_size - padded) * sizeof(S));
        }
        in += p.value_stride_s;
        out += row_size;
      }
    }
    std::memset(static_cast<void*>(out), 0, size_t(2 * stride * row_size) * sizeof(S));
  }
}

template <typename T>
T* output_row(const Problem& p, void* base, int64_t n, int64_t q, int64_t m) {
  return static_cast<T*>(base) + ((n * p.queries + q) * p.heads + m) * p.channels;
}

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
    for (int v = 0; v < registers; ++v) {
      const int64_t channel = (first + v) * kWidth;
      store_some(Vec<A>::load(sum + v * kWidth), out + channel, p.channels - channel);
    }
  }

  static void padded_task(const Problem& p, const Layout& layout, Scratch& s, int64_t n, int64_t m) {
    const int64_t vectors = vectors_of<A>(p);
    const T* slice = static_cast<const T*>(p.value) + n * p.value_stride_n + m * p.value_stride_m;
    fill_slice(p, layout, slice, vectors * kWidth, vectors * kWidth, s.rows);
    for (int64_t q = 0; q < p.queries; q += kBlock) {
      const int64_t items = q + kBlock < p.queries ? kBlock : p.queries - q;
      for (int64_t i = 0; i < items; ++i) load_item<P>(p, s.lanes, s.block, i, n, q + i, m);
      prepare(s.lanes, s.block, items);
      for_each_run<8>(vectors, [&](int64_t first, auto run) {
        constexpr int kN = decltype(run)::value;
        sum_padded<kN>(p, s.lanes, s.block, items, s.rows + first * kWidth, vectors * kWidth, s.sums);
        for (int64_t i = 0; i < items; ++i) {
          store_run(p, s.sums + i * kN * kWidth, first, kN, output_row<T>(p, p.output, n, q + i, m));
        }
      });
    }
  }

  static void padded(int64_t begin, int64_t end, void* context) {
    const Problem& p = *static_cast<const Problem*>(context);
    const Layout layout = padded_layout(p);
    Scratch s = carve(p, layout.rows, acquire_scratch(carve(p, layout.rows, nullptr).bytes));
    fill_lanes(p, s.lanes, layout.base, layout.stride, layout.outside);
    for (int64_t task = begin; task < end; ++task) padded_task(p, layout, s, task / p.heads, task % p.heads);
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
    std::memset(static_cast<void*>(s.zero), 0, size_t(vectors_of<A>(p) * kWidth) * sizeof(T));
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
    if (worth_copying(p)) {
      parallel_for(p.batch * p.heads, padded, context);
    } else {
      parallel_for(p.batch * p.queries * p.heads, direct, context);
    }
  }
};

template <typename T, typename P>
struct Backward {
  using A = Acc<T>;
  static constexpr int kWidth = Vec<A>::kWidth;

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

  static void load_grads(const Problem& p, Scratch& s, int64_t items, int64_t n, int64_t q, int64_t m) {
    const int64_t channels = vectors_of<A>(p) * kWidth;
    for (int64_t i = 0; i < items; ++i) {
      copy_row(output_row<const T>(p, const_cast<void*>(p.grad_output), n, q + i, m), p.channels, channels,
               s.grads + i * channels);
    }
  }

  static void write_grad_value(const Problem& p, const Layout& layout, const Scratch& s, int64_t n, int64_t m) {
    const int64_t channels = vectors_of<A>(p) * kWidth;
    T* out = static_cast<T*>(p.grad_value) + (n * p.rows * p.heads + m) * p.channels;
    for (int32_t l = 0; l < p.levels; ++l) {
      for (int64_t y = 0; y < p.height[l]; ++y) {
        const A* in = s.rows + (layout.base[l] + y * layout.stride[l]) * 2 * channels + channels;
        T* line = out + (p.start[l] + y * p.width[l]) * p.heads * p.channels;
        for (int64_t x = 0; x < p.width[l]; ++x) {
          for (int64_t c = 0; c < p.channels; ++c) from_acc(in[c], line[c]);
          in += 2 * channels;
          line += p.heads * p.channels;
        }
      }
    }
  }

  static void padded_task(const Problem& p, const Layout& layout, Scratch& s, int64_t n, int64_t m) {
    const int64_t vectors = vectors_of<A>(p), channels = vectors * kWidth;
    const T* slice = static_cast<const T*>(p.value) + n * p.value_stride_n + m * p.value_stride_m;
    fill_slice(p, layout, slice, channels, 2 * channels, s.rows);
    for (int64_t q = 0; q < p.queries; q += kBlock) {
      const int64_t items = q + kBlock < p.queries ? kBlock : p.queries - q;
      for (int64_t i = 0; i < items; ++i) load_item<P>(p, s.lanes, s.block, i, n, q + i, m);
      prepare(s.lanes, s.block, items);
      load_grads(p, s, items, n, q, m);
      for_each_run<4>(vectors, [&](int64_t first, auto run) {
        update_padded<decltype(run)::value>(p, s.lanes, s.block, items, s.rows + first * kWidth, 2 * channels, channels,
                                            s.grads + first * kWidth, channels, first == 0);
      });
      for (int64_t i = 0; i < items; ++i) store_item<P>(p, s.lanes, s.block, i, n, q + i, m);
    }
    write_grad_value(p, layout, s, n, m);
  }

  static void padded(int64_t begin, int64_t end, void* context) {
    const Problem& p = *static_cast<const Problem*>(context);
    const Layout layout = padded_layout(p);
    Scratch s = carve(p, layout.rows, acquire_scratch(carve(p, layout.rows, nullptr).bytes));
    fill_lanes(p, s.lanes, layout.base, layout.stride, layout.outside);
    for (int64_t task = begin; task < end; ++task) padded_task(p, layout, s, task / p.heads, task % p.heads);
    release_scratch();
  }

  static void direct_task(const Problem& p, Scratch& s, int64_t n, int64_t m) {
    const int64_t vectors = vectors_of<A>(p), channels = vectors * kWidth;
    const A* slice = static_cast<const A*>(p.value) + n * p.value_stride_n + m * p.value_stride_m;
    A* grad_slice = static_cast<A*>(p.grad_value) + (n * p.rows * p.heads + m) * p.channels;
    const int64_t grad_stride = p.heads * p.channels;
    for (int64_t q = 0; q < p.queries; q += kBlock) {
      const int64_t items = q + kBlock < p.queries ? kBlock : p.queries - q;
      for (int64_t i = 0; i < items; ++i) load_item<P>(p, s.lanes, s.block, i, n, q + i, m);
      prepare(s.lanes, s.block, items);
      load_grads(p, s, items, n, q, m);
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
    const Problem& p = *static_cast<const Problem*>(context);
    const Layout layout = direct_layout(p);
    Scratch s = carve(p, 0, acquire_scratch(carve(p, 0, nullptr).bytes));
    fill_lanes(p, s.lanes, layout.base, layout.stride, layout.outside);
    const size_t bytes = size_t(vectors_of<A>(p) * kWidth) * sizeof(A);
    std::memset(static_cast<void*>(s.zero), 0, bytes);
    std::memset(static_cast<void*>(s.sink), 0, bytes);
    for (int64_t task = begin; task < end; ++task) direct_task(p, s, task / p.heads, task % p.heads);
    release_scratch();
  }

  static void clear(int64_t begin, int64_t end, void* context) {
    const Problem& p = *static_cast<const Problem*>(context);
    const int64_t row = p.heads * p.channels;
    std::memset(static_cast<void*>(static_cast<T*>(p.grad_value) + begin * row), 0,
                size_t((end - begin) * row) * sizeof(T));
  }

  static void run(const Problem& p) {
    void* context = const_cast<Problem*>(&p);
    // In place needs the accumulation type in the tensor and rows of whole vectors.
    const bool in_place = std::is_same<T, A>::value && p.channels % kWidth == 0 && !worth_copying(p);
    if (in_place) {
      parallel_for(p.batch * p.rows, clear, context);
      parallel_for(p.batch * p.heads, direct, context);
    } else {
      parallel_for(p.batch * p.heads, padded, context);
    }
  }
};

template <template <typename, typename> class Pass>
bool run_typed(const Problem& p) {
  const bool same = p.point_type == p.value_type;
  switch (p.value_type) {
    case DType::kFloat32:
      return same && (Pass<float, float>::run(p), true);
    case DType::kFloat64:
      return same && (Pass<double, double>::run(p), true);
    case DType::kFloat16:
      if (same) return Pass<Half, Half>::run(p), true;
      return p.point_type == DType::kFloat32 && (Pass<Half, float>::run(p), true);
    case DType::kBFloat16:
      if (same) return Pass<BFloat16, BFloat16>::run(p), true;
      return p.point_type == DType::kFloat32 && (Pass<BFloat16, float>::run(p), true);
  }
  return false;
}

}  // namespace
}  // namespace msda

#define MSDA_DEFINE_TABLE(isa)                                                       \
  namespace msda {                                                                   \
  extern const KernelTable kernels_##isa;                                            \
  const KernelTable kernels_##isa = {#isa, run_typed<Forward>, run_typed<Backward>}; \
  }
