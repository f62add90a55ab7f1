#include "kernels.h"

MSDA_DEFINE_TABLE(plain)
