#define NATIVE_WIDTH 4
#define NATIVE_KERNELS kPortable
#include "unit.h"
