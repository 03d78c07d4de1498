#define NATIVE_WIDTH 16
#define NATIVE_KERNELS kAvx512
#include "unit.h"
