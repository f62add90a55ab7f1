#include "device.h"

void msda::run_f32(const Problem& p, const Options& options, bool backward, Gpu& gpu) {
  run_typed<float>(p, options, backward, gpu);
}
