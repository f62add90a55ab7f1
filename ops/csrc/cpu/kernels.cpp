// Compiled once per instruction set, with MSDA_ISA set to its name.
#include "backward.h"  // first: simd.h silences warnings of <immintrin.h>, which other headers include, too
#include "forward.h"

#include "dropout.h"

#define MSDA_STRING_OF(x) #x
#define MSDA_STRING(x) MSDA_STRING_OF(x)
#define MSDA_TABLE_OF(isa) kernels_##isa
#define MSDA_TABLE(isa) MSDA_TABLE_OF(isa)

namespace msda {
namespace {

template <template <typename, typename> class Pass>
bool run(const Problem& p) {
  const bool same = p.point_type == p.value_type;
  switch (p.value_type) {
    case DType::kFloat32:
      return same && (Pass<float, float>(p).run(), true);
    case DType::kFloat64:
      return same && (Pass<double, double>(p).run(), true);
    case DType::kFloat16:
      if (same) return Pass<Half, Half>(p).run(), true;
      return p.point_type == DType::kFloat32 && (Pass<Half, float>(p).run(), true);
    case DType::kBFloat16:
      if (same) return Pass<BFloat16, BFloat16>(p).run(), true;
      return p.point_type == DType::kFloat32 && (Pass<BFloat16, float>(p).run(), true);
  }
  return false;
}

}  // namespace

extern const KernelTable MSDA_TABLE(MSDA_ISA);
const KernelTable MSDA_TABLE(MSDA_ISA) = {MSDA_STRING(MSDA_ISA), run<Forward>, run<Backward>, drop};

}  // namespace msda
