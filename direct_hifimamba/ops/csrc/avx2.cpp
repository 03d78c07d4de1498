#define SELECTIVE_SCAN_WIDTH 8
#include "kernel.h"

const selective_scan::Kernel selective_scan::kAvx2 = {scratch_floats, forward, backward};
