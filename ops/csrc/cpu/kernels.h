// The kernels of one instruction set, as a table. Included once per instruction set.
#pragma once

#include "backward.h"
#include "forward.h"
#include "kernel_table.h"

namespace msda {
namespace {

template <template <typename, typename> class Pass>
bool run_typed(const Problem& p) {
  const bool same = p.point_type == p.value_type;
  switch (p.value_type) {
    case DType::kFloat32:
      return same && (Pass<float, float>::run(p), true);
    case DType::kFloat64:
      return same && (Pass<double, double>::run(p), true);
    case DType::kFloat16:
      if (same) return Pass<Half, Half>::run(p), true;
      return p.point_type == DType::kFloat32 && (Pass<Half, float>::run(p), true);
    case DType::kBFloat16:
      if (same) return Pass<BFloat16, BFloat16>::run(p), true;
      return p.point_type == DType::kFloat32 && (Pass<BFloat16, float>::run(p), true);
  }
  return false;
}

}  // namespace
}  // namespace msda

#define MSDA_DEFINE_TABLE(isa)                                                       \
  namespace msda {                                                                   \
  extern const KernelTable kernels_##isa;                                            \
  const KernelTable kernels_##isa = {#isa, run_typed<Forward>, run_typed<Backward>}; \
  }
