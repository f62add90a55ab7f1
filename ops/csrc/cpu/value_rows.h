// Rows of one head of value, in two layouts. Padded: a copy in scratch memory with a border of zero rows, so that no
// corner needs a bounds check and one index addresses all four. In place: the tensor itself; corners outside the level
// read a row of zeros.
#pragma once

#include "points.h"

namespace msda {
namespace {

// Levels with borders. One column is the right border of a line and the left border of the next; two lines of zeros
// below the level are the bottom border and the target of points that contribute nothing.
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

inline Layout in_place_layout(const Problem& p) {
  Layout layout;
  for (int32_t l = 0; l < p.levels; ++l) {
    layout.base[l] = int32_t(p.start[l]);
    layout.stride[l] = int32_t(p.width[l]);
    layout.outside[l] = 0;
  }
  layout.rows = p.rows;
  return layout;
}

// Copying is faster if many times more rows are gathered than copied.
inline bool is_worth_copying(const Problem& p) {
  const Layout layout = padded_layout(p);
  return layout.rows < (int64_t(1) << 31) && p.queries * p.levels * p.points * 2 > layout.rows;
}

// Vectors that hold the channels of one head.
template <typename A>
int64_t vectors_of(const Problem& p) {
  return (p.channels + kWidth<A> - 1) / kWidth<A>;
}

// Splits `vectors` into runs of 8, 4, 3, 2 or 1, at most kMax, and calls f(first vector, integral constant).
template <int kMax, typename F>
inline void for_each_run(int64_t vectors, F f) {
  int64_t at = 0;
  while (at < vectors) {
    const int64_t left = vectors - at;
    if (kMax >= 8 && left >= 8) {
      f(at, std::integral_constant<int, 8>());
      at += 8;
    } else if (left >= 4) {
      f(at, std::integral_constant<int, 4>());
      at += 4;
    } else if (left == 3) {
      f(at, std::integral_constant<int, 3>());
      at += 3;
    } else if (left == 2) {
      f(at, std::integral_constant<int, 2>());
      at += 2;
    } else {
      f(at, std::integral_constant<int, 1>());
      at += 1;
    }
  }
}

// Loads or stores the first `count` elements of a vector, or all if there are more.
template <typename T>
inline Vec<Acc<T>> load_some(const T* p, int64_t count) {
  constexpr int width = kWidth<Acc<T>>;
  if (count >= width) return load(p);
  T tmp[width] = {};
  for (int64_t i = 0; i < count; ++i) tmp[i] = p[i];
  return load(tmp);
}
template <typename V, typename T>
inline void store_some(V x, T* p, int64_t count) {
  constexpr int width = kWidth<Acc<T>>;
  if (count >= width) {
    store(x, p);
  } else if (count > 0) {
    T tmp[width];
    store(x, tmp);
    for (int64_t i = 0; i < count; ++i) p[i] = tmp[i];
  }
}
// The same for two vectors filled by load_two().
template <typename V, typename T>
inline void store_two_some(V a, V b, T* p, int64_t count) {
  constexpr int64_t width = 2 * kWidth<Acc<T>>;
  if (count >= width) {
    store_two(a, b, p);
  } else {
    T tmp[width];
    store_two(a, b, tmp);
    for (int64_t i = 0; i < count; ++i) p[i] = tmp[i];
  }
}

// Copies a row of `channels`, converted to S, and pads it with zeros to whole vectors.
template <typename T, typename S>
inline void copy_row(const T* from, int64_t channels, S* to) {
  constexpr int64_t width = kWidth<Acc<T>>;
  int64_t c = 0;
  for (; c + width <= channels; c += width) {
    if constexpr (std::is_same<T, S>::value) {
      std::memcpy(static_cast<void*>(to + c), from + c, width * sizeof(T));
    } else {
      store(load(from + c), to + c);
    }
  }
  if (c == channels) return;
  T tmp[width] = {};
  for (int64_t i = 0; c + i < channels; ++i) tmp[i] = from[c + i];
  if constexpr (std::is_same<T, S>::value) {
    std::memcpy(static_cast<void*>(to + c), tmp, sizeof(tmp));
  } else {
    store(load(tmp), to + c);
  }
}

template <typename S>
inline void clear_row(S* to, int64_t vectors) {
  constexpr int64_t bytes = kWidth<Acc<S>> * int64_t(sizeof(S));
  for (int64_t v = 0; v < vectors; ++v) std::memset(reinterpret_cast<char*>(to) + v * bytes, 0, bytes);
}

// Copies one head's slice of value into padded rows of `row_vectors` vectors; the rest of each row is zero.
template <typename T, typename S>
void fill_padded(const Problem& p, const Layout& layout, const T* slice, int64_t row_vectors, S* rows) {
  using A = Acc<T>;
  const int64_t vectors = vectors_of<A>(p), row_size = row_vectors * kWidth<A>;
  for (int32_t l = 0; l < p.levels; ++l) {
    const int64_t stride = layout.stride[l], width = p.width[l];
    S* out = rows + (layout.base[l] - stride - 1) * row_size;
    clear_row(out, stride * row_vectors);
    out += stride * row_size;
    const T* in = slice + p.start[l] * p.value_stride_s;
    for (int64_t y = 0; y < p.height[l]; ++y) {
      clear_row(out, row_vectors);
      out += row_size;
      for (int64_t x = 0; x < width; ++x) {
        prefetch(in + 16 * p.value_stride_s, p.channels * int64_t(sizeof(T)));
        copy_row(in, p.channels, out);
        clear_row(out + vectors * kWidth<A>, row_vectors - vectors);
        in += p.value_stride_s;
        out += row_size;
      }
    }
    clear_row(out, 2 * stride * row_vectors);
  }
}

// The four rows of a point in place; `zero` replaces a corner outside.
template <typename T>
struct Corners {
  T *r00, *r01, *r10, *r11;
};
template <typename T>
inline Corners<T> corners_of(T* base, int64_t row, int64_t line, int64_t row_stride, int32_t mask, T* zero) {
  T* r = base + row * row_stride;
  T* below = r + line * row_stride;
  return {(mask & kCorner00) ? r : zero, (mask & kCorner01) ? r + row_stride : zero, (mask & kCorner10) ? below : zero,
          (mask & kCorner11) ? below + row_stride : zero};
}

// Prefetches the rows of one item in place.
template <typename T, typename A>
MSDA_HOST_DEVICE void prefetch_rows(const Problem& p, const PointTable<A>& table, const PointBlock<A>& b, int64_t slot,
                                    const T* base) {
  const int64_t bytes = p.channels * int64_t(sizeof(T));
  for (int32_t i = 0; i < table.count; ++i) {
    const int64_t at = slot * table.padded + i;
    const Corners<const T> c = corners_of(base, b.row[at], table.stride[i], p.value_stride_s, b.mask[at], base);
    prefetch(c.r00, bytes);
    prefetch(c.r01, bytes);
    prefetch(c.r10, bytes);
    prefetch(c.r11, bytes);
  }
}

// Row of an item in a tensor (N, Q, M * D).
template <typename T>
T* output_row(const Problem& p, T* base, const Item& item) {
  return base + ((item.n * p.queries + item.q) * p.heads + item.m) * p.channels;
}

// Multiply-adds of one item, the unit of work of parallel_for().
inline int64_t item_work(const Problem& p) { return 4 * int64_t(p.levels) * p.points * p.channels; }

}  // namespace
}  // namespace msda
