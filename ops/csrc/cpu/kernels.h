// The CPU kernels of one instruction set, and their selection at run time.
#pragma once

#include "../problem.h"

namespace msda {

// A call of dropout on `count` contiguous elements. The output may be the input.
struct Dropout {
  const void* x;
  void* output;
  int64_t count;
  DType type;
  uint16_t threshold;  // the probability times 2^16
  uint64_t seed;
  float scale;
};

struct KernelTable {
  const char* name;
  // All return false for an unsupported combination of element types.
  bool (*forward)(const Problem&);
  bool (*backward)(const Problem&);
  bool (*dropout)(const Dropout&);
};

// Returns the best kernels for this processor, or those that MS_DEFORM_ATTN_ISA=plain|avx2|avx512 selects. Throws
// std::runtime_error if the selected ones are unknown or not supported by this processor.
const KernelTable& cpu_kernels();

}  // namespace msda
