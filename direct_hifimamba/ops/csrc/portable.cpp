#define SELECTIVE_SCAN_WIDTH 4
#include "kernel.h"

const selective_scan::Kernel selective_scan::kPortable = {scratch_floats, forward, backward};
