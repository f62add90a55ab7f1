#include "device.h"

void msda::run_f16(const Problem& p, const Options& options, bool backward, Gpu& gpu) {
  run_typed<Half>(p, options, backward, gpu);
}
