// Carves arrays out of one scratch allocation. A first pass with a null base measures the size that is needed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace msda {
namespace {

struct Arena {
  char* base;
  size_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    used = (used + 63) / 64 * 64;
    T* result = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += size_t(count) * sizeof(T);
    return result;
  }
};

}  // namespace
}  // namespace msda
