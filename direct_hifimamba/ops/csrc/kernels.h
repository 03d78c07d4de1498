// The kernels of one instruction set, as the dispatcher in native.cpp calls them.
#pragma once

#include <cstdint>

#include "pixels.h"
#include "scan.h"

namespace native {

struct Kernels {
    int64_t (*scan_scratch_floats)(const Scan&, int64_t blocks);  // per thread, for strips of so many blocks
    void (*scan_forward)(const Scan&, const Strip&, float* scratch);
    void (*scan_backward)(const Scan&, const Strip&, float* scratch, Turns&);

    int64_t tile;                                              // pixels that are multiplied at a time
    int64_t (*packed_floats)(int64_t outputs, int64_t depth);  // of a weight in the order that the products read
    void (*pack)(const float* weight, int64_t outputs, int64_t depth, float* packed);
    int64_t (*moments_scratch_floats)(int64_t channels);  // per thread, as those below
    void (*moments)(const float* x, int64_t channels, int64_t pixels, const float* shift, float* sums, float* scratch);
    int64_t (*variance_scratch_floats)(int64_t depth);
    double (*variance)(const float* weight, int64_t outputs, int64_t depth, const double* covariance, float* scratch);
    int64_t (*expand_scratch_floats)(const Expand&);
    void (*expand)(const Expand&, int64_t first_row, int64_t end_row, float* scratch);
    int64_t (*project_scratch_floats)(const Project&);
    void (*project)(const Project&, int64_t first, int64_t end, float* scratch);
    int64_t (*expert_scratch_floats)(const Expert&);
    void (*expert)(const Expert&, int64_t first, int64_t end, float* scratch);
    int64_t (*project_backward_scratch_floats)(const ProjectBackward&);
    void (*project_backward)(const ProjectBackward&, int64_t part, float* scratch);
    int64_t (*expand_backward_scratch_floats)(const ExpandBackward&);
    void (*expand_backward)(const ExpandBackward&, int64_t part, float* scratch);
    int64_t (*expert_backward_scratch_floats)(const ExpertBackward&);
    void (*expert_backward)(const ExpertBackward&, int64_t part, float* scratch);
};

extern const Kernels kPortable;
#ifdef NATIVE_X86
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace native
