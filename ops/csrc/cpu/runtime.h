// What the CPU kernels need from their surroundings; compiled once, for the baseline instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace msda {

// Runs body(begin, end, context) over [0, count) on PyTorch's threads. One call takes one contiguous share. `work` is
// about how many multiply-adds one index means: little work stays on the calling thread.
void parallel_for(int64_t count, int64_t work, void (*body)(int64_t, int64_t, void*), void* context);

// Readies fresh memory of a result, whose contents are undefined, for writing. Large memory comes straight from the
// system, and faulting it in by 4 KB pages can take longer than computing what goes there.
void touch_pages(void* memory, int64_t bytes);

// Memory of the calling thread, at least `bytes` long, aligned to 64 bytes, contents undefined. It is kept for the
// next call unless it is very large; release_scratch() ends the use.
void* acquire_scratch(size_t bytes);
void release_scratch();

}  // namespace msda
