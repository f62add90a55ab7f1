// The CPU kernels of one instruction set, and their selection at run time.
#pragma once

#include "../problem.h"

namespace msda {

struct KernelTable {
  const char* name;
  // Both return false for an unsupported combination of element types.
  bool (*forward)(const Problem&);
  bool (*backward)(const Problem&);
};

// Returns the best kernels for this processor, or those that MS_DEFORM_ATTN_ISA=plain|avx2|avx512 selects. Throws
// std::runtime_error if the selected ones are unknown or not supported by this processor.
const KernelTable& cpu_kernels();

}  // namespace msda
