#include "runtime.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace msda {

void parallel_for(int64_t count, int64_t work, void (*body)(int64_t, int64_t, void*), void* context) {
  if (count <= 0) return;
  // Waking a thread takes about ten microseconds, and milliseconds if another program occupies its core.
  constexpr int64_t kWorthAThread = int64_t(1) << 18;  // multiply-adds: about 20 microseconds
  const int64_t grain = work >= kWorthAThread ? 1 : kWorthAThread / (work > 0 ? work : 1);
  if (count <= grain) {
    body(0, count, context);
  } else {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, body, context));
  }
}

namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kKeep = size_t(64) << 20;  // larger scratch memory is freed after the call

struct KeptMemory {
  void* memory = nullptr;
  size_t size = 0;

  void free() {
    std::free(memory);
    memory = nullptr;
    size = 0;
  }
  ~KeptMemory() { free(); }
};
thread_local KeptMemory kept;

// MS_DEFORM_ATTN_HUGE_PAGES=0 disables huge pages for results. This is faster in virtual machines whose host reclaims
// free huge pages, so that memory used for the first time is slow.
bool wants_huge_pages() {
  static const bool wanted = [] {
    const char* text = std::getenv("MS_DEFORM_ATTN_HUGE_PAGES");
    return text == nullptr || std::strcmp(text, "0") != 0;
  }();
  return wanted;
}

// Faults in the huge pages [begin, end) by one write into each.
void touch(int64_t begin, int64_t end, void* memory) {
  for (int64_t page = begin; page < end; ++page) static_cast<volatile char*>(memory)[page * int64_t(kHugePage)] = 0;
}

}  // namespace

void touch_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < 2 * int64_t(kHugePage) || !wants_huge_pages()) return;
  // Only whole huge pages inside the memory, so that no other memory is affected. Without free huge pages, or on
  // memory that is in use already, madvise() has no effect.
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
  const int64_t pages = int64_t((reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes) - begin) / kHugePage);
  if (pages < 1 || madvise(reinterpret_cast<void*>(begin), size_t(pages) * kHugePage, MADV_HUGEPAGE) != 0) return;
  // In parallel and beforehand: threads that write all over the memory would wait for each other's page faults.
  parallel_for(pages, kHugePage, touch, reinterpret_cast<void*>(begin));
#else
  (void)memory;
  (void)bytes;
#endif
}

ThreadScratch::ThreadScratch(size_t bytes) {
  if (bytes > kept.size) {
    kept.free();
    const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    // Whole huge pages where they fit; the rest in small ones, or each thread would waste up to 2 MB.
    const size_t page = bytes >= kHugePage ? 4096 : 64;
    const size_t rounded = (bytes + page - 1) / page * page;
    if (posix_memalign(&kept.memory, alignment, rounded) != 0) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // Gathers touch rows all over the slice: with 4 KB pages most of them miss the first-level TLB.
    if (alignment == kHugePage) madvise(kept.memory, rounded, MADV_HUGEPAGE);
#endif
    kept.size = rounded;
  }
  data_ = kept.memory;
}

ThreadScratch::~ThreadScratch() {
  if (kept.size > kKeep) kept.free();
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
                           "', but this processor and this build support only plain"
#if defined(__x86_64__)
                           + (avx2 ? ", avx2" : "")
#endif
                           + "; unset it to select the best");
}

}  // namespace

const KernelTable& cpu_kernels() {
  static const KernelTable* table = choose();
  return *table;
}

}  // namespace msda
