#define NATIVE_WIDTH 8
#define NATIVE_KERNELS kAvx2
#include "unit.h"
