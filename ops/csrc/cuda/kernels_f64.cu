#include "device.h"

void msda::run_f64(const Problem& p, const Options& options, bool backward, Gpu& gpu) {
  run_typed<double>(p, options, backward, gpu);
}
