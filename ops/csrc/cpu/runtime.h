// Threads and memory of the CPU kernels. runtime.cpp is compiled for the baseline instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace msda {

// Runs body(begin, end, context) over [0, count) on PyTorch's threads, one contiguous share per call. `work` is the
// approximate number of multiply-adds per index; small amounts of work run on the calling thread.
void parallel_for(int64_t count, int64_t work, void (*body)(int64_t, int64_t, void*), void* context);

// Requests huge pages for fresh memory of a result and faults them in; the contents become undefined. Large blocks
// come directly from the system, and faulting them in by 4 KB pages can take longer than computing the result.
void touch_pages(void* memory, int64_t bytes);

// Scratch memory of the calling thread, aligned to 64 bytes, contents undefined. The memory is kept for the next call
// unless it is very large. At most one per thread at a time.
class ThreadScratch {
 public:
  explicit ThreadScratch(size_t bytes);
  ~ThreadScratch();
  ThreadScratch(const ThreadScratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

namespace {

template <typename F>
void parallel_for(int64_t count, int64_t work, const F& body) {
  const auto call = [](int64_t begin, int64_t end, void* f) { (*static_cast<const F*>(f))(begin, end); };
  msda::parallel_for(count, work, call, const_cast<F*>(&body));
}

// Divides one allocation into arrays. A first pass with a null base measures the size that is needed.
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
