#define NATIVE_WIDTH 16
#include "pixels_backward_kernel.h"
#include "pixels_kernel.h"
#include "scan_kernel.h"

const native::Kernels native::kAvx512 = {
    scan_scratch_floats,
    scan_forward,
    scan_backward,
    packed_floats,
    pack,
    expand_scratch_floats,
    expand,
    project_scratch_floats,
    project,
    expert_scratch_floats,
    expert,
    project_backward_scratch_floats,
    project_backward,
    expand_backward_scratch_floats,
    expand_backward,
    expert_backward_scratch_floats,
    expert_backward,
};
