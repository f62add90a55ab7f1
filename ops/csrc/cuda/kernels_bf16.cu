#include "device.h"

void msda::run_bf16(const Problem& p, const Options& options, bool backward, Gpu& gpu) {
  run_typed<BFloat16>(p, options, backward, gpu);
}
