#define SELECTIVE_SCAN_WIDTH 16
#include "kernel.h"

const selective_scan::Kernel selective_scan::kAvx512 = {scratch_floats, forward, backward};
