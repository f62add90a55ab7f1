#include "runtime.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "kernel_table.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace msda {

void parallel_for(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  if (count > 0) TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, 1, body, context));
}

namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kKeep = size_t(64) << 20;  // a thread gives back larger scratch after the call

struct ThreadScratch {
  void* memory = nullptr;
  size_t size = 0;
  ~ThreadScratch() { std::free(memory); }
};
thread_local ThreadScratch scratch;

}  // namespace

void* acquire_scratch(size_t bytes) {
  if (bytes > scratch.size) {
    std::free(scratch.memory);
    scratch.memory = nullptr;
    scratch.size = 0;
    const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    // Whole huge pages where they fit; the rest in small ones, or each thread would hold up to 2 MB for nothing.
    const size_t page = bytes >= kHugePage ? 4096 : 64;
    const size_t rounded = (bytes + page - 1) / page * page;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, rounded) != 0) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // Gathers touch rows all over the slice: with 4 KB pages most of them miss the first-level TLB.
    if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
    scratch.memory = memory;
    scratch.size = rounded;
  }
  return scratch.memory;
}

void release_scratch() {
  if (scratch.size > kKeep) {
    std::free(scratch.memory);
    scratch.memory = nullptr;
    scratch.size = 0;
  }
}

extern const KernelTable kernels_plain;
#if defined(__x86_64__)
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
#endif

namespace {

const KernelTable* choose() {
  const char* wanted = std::getenv("MS_DEFORM_ATTN_ISA");
  const auto allowed = [wanted](const char* name) {
    return wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, name) == 0;
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && allowed("avx512")) {
    return &kernels_avx512;
  }
  if (avx2 && allowed("avx2")) return &kernels_avx2;
#endif
  if (allowed("plain")) return &kernels_plain;
  throw std::runtime_error(std::string("MS_DEFORM_ATTN_ISA is '") + wanted +
                           "', but this processor and this build offer only plain"
#if defined(__x86_64__)
                           + (avx2 ? ", avx2" : "")
#endif
                           + "; unset it to take the best");
}

}  // namespace

const KernelTable& cpu_kernels() {
  static const KernelTable* table = choose();
  return *table;
}

}  // namespace msda
