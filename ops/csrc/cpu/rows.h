// Rows of channels: copying, clearing and reading them, whole or ending inside a vector.
#pragma once

#include "load.h"

namespace msda {
namespace {

// Splits `vectors` registers into runs of 8, 4, 3, 2 or 1 and calls f(first register, integral constant).
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

template <typename A>
int64_t vectors_of(const Problem& p) {
  return (p.channels + Vec<A>::kWidth - 1) / Vec<A>::kWidth;
}

template <typename T, typename A>
inline Vec<A> load_some(const T* p, int64_t count) {
  if (count >= Vec<A>::kWidth) return Vec<A>::load(p);
  T tmp[Vec<A>::kWidth] = {};
  for (int64_t i = 0; i < count; ++i) tmp[i] = p[i];
  return Vec<A>::load(tmp);
}
template <typename T, typename A>
inline void store_some(Vec<A> x, T* p, int64_t count) {
  if (count >= Vec<A>::kWidth) {
    store_as(x, p);
  } else if (count > 0) {
    T tmp[Vec<A>::kWidth];
    store_as(x, tmp);
    for (int64_t i = 0; i < count; ++i) p[i] = tmp[i];
  }
}
// The same for two registers filled by load_two().
template <typename T, typename A>
inline void store_two_some(Vec<A> a, Vec<A> b, T* p, int64_t count) {
  constexpr int64_t kTwo = 2 * Vec<A>::kWidth;
  if (count >= kTwo) {
    store_two(a, b, p);
  } else {
    T tmp[kTwo];
    store_two(a, b, tmp);
    for (int64_t i = 0; i < count; ++i) p[i] = tmp[i];
  }
}

// Copies a row of `channels` and fills up with zeros to whole vectors.
template <typename T, typename S>
inline void copy_row(const T* from, int64_t channels, S* to) {
  constexpr int64_t kWidth = Vec<Acc<T>>::kWidth;
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) store_as(Vec<Acc<T>>::load(from + c), to + c);
  if (c < channels) store_as(load_some<T, Acc<T>>(from + c, channels - c), to + c);
}
template <typename T>
inline void copy_row(const T* from, int64_t channels, T* to) {
  constexpr int64_t kWidth = Vec<Acc<T>>::kWidth;
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) std::memcpy(to + c, from + c, kWidth * sizeof(T));
  if (c == channels) return;
  T tmp[kWidth] = {};
  for (int64_t i = 0; c + i < channels; ++i) tmp[i] = from[c + i];
  std::memcpy(to + c, tmp, sizeof(tmp));
}

template <typename S>
inline void clear_row(S* to, int64_t vectors) {
  constexpr size_t kBytes = Vec<Acc<S>>::kWidth * sizeof(S);
  for (int64_t v = 0; v < vectors; ++v) {
    std::memset(static_cast<void*>(reinterpret_cast<char*>(to) + v * int64_t(kBytes)), 0, kBytes);
  }
}

template <typename T>
T* output_row(const Problem& p, void* base, int64_t n, int64_t q, int64_t m) {
  return static_cast<T*>(base) + ((n * p.queries + q) * p.heads + m) * p.channels;
}

}  // namespace
}  // namespace msda
