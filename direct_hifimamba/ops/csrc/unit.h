// All kernels of one instruction set. Its translation unit says how wide its vectors are (NATIVE_WIDTH) and what the
// table is called (NATIVE_KERNELS).
#pragma once

#include "pixels_backward_kernel.h"
#include "pixels_kernel.h"
#include "scan_kernel.h"

const native::Kernels native::NATIVE_KERNELS = {
    scan_scratch_floats,
    scan_forward,
    scan_backward,
    kRows,
    packed_floats,
    pack,
    moments_scratch_floats,
    moments,
    variance_scratch_floats,
    variance,
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
