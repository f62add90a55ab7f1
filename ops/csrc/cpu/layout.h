// Two layouts of the rows of value. Padded: a copy of one head's slice in scratch, with a border of zero rows, so that
// no corner needs a test and one index addresses all four. Direct: the tensor itself; corners outside read a zero row.
#pragma once

#include "rows.h"

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

// Copying pays when the rows gathered are many times the rows copied.
inline bool worth_copying(const Problem& p) {
  const Layout layout = padded_layout(p);
  return layout.rows < (int64_t(1) << 31) && p.queries * p.levels * p.points * 2 > layout.rows;
}

// Fills scratch rows of `row_vectors` vectors with value, followed by zeros where a row is longer than that.
template <typename T, typename S>
void fill_slice(const Problem& p, const Layout& layout, const T* slice, int64_t row_vectors, S* rows) {
  using A = Acc<T>;
  const int64_t vectors = vectors_of<A>(p), row_size = row_vectors * Vec<A>::kWidth;
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
        clear_row(out + vectors * Vec<A>::kWidth, row_vectors - vectors);
        in += p.value_stride_s;
        out += row_size;
      }
    }
    clear_row(out, 2 * stride * row_vectors);
  }
}

template <typename T>
struct Corners {
  T *r00, *r01, *r10, *r11;
};

// The four rows of a point in the direct layout; `zero` stands in for a corner outside.
template <typename T>
inline Corners<T> corners_of(T* base, int64_t row, int64_t line, int64_t row_stride, int32_t mask, T* zero) {
  T* r = base + row * row_stride;
  return {(mask & kCorner00) ? r : zero, (mask & kCorner01) ? r + row_stride : zero,
          (mask & kCorner10) ? r + line * row_stride : zero, (mask & kCorner11) ? r + (line + 1) * row_stride : zero};
}

// Direct layout: asks for the rows of one item ahead of their use.
template <typename T, typename A>
MSDA_HOST_DEVICE void prefetch_item(const Problem& p, const Lanes<A>& lanes, const Block<A>& b, int64_t item,
                                    const T* base) {
  const int64_t bytes = p.channels * int64_t(sizeof(T));
  for (int32_t i = 0; i < lanes.count; ++i) {
    const int64_t at = item * lanes.padded + i;
    const Corners<const T> c = corners_of(base, b.row[at], lanes.stride[i], p.value_stride_s, b.mask[at], base);
    prefetch(c.r00, bytes);
    prefetch(c.r01, bytes);
    prefetch(c.r10, bytes);
    prefetch(c.r11, bytes);
  }
}

}  // namespace
}  // namespace msda
