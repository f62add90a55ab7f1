#include "kernels.h"

MSDA_DEFINE_TABLE(avx512)
