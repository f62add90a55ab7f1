// The CPU kernels of one instruction set.
#pragma once

#include "../problem.h"

namespace msda {

struct KernelTable {
  const char* name;
  // Both return false for a combination of element types that they do not have.
  bool (*forward)(const Problem&);
  bool (*backward)(const Problem&);
};

// The kernels for this processor; MS_DEFORM_ATTN_ISA=plain|avx2|avx512 in the environment chooses among those
// that it can run. Throws std::runtime_error for any other value.
const KernelTable& cpu_kernels();

}  // namespace msda
