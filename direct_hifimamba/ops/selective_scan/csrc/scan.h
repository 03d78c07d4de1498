// What the dispatcher and the kernels of every instruction set agree on.
#pragma once

#include <cstdint>

namespace selective_scan {

// An item is what one thread works on at a time: up to kLanes channels of one group and one sequence. Sixteen floats
// are one cache line, so items never write to the same line of a channels-last tensor.
constexpr int kLanes = 16;
// Steps of a chunk. Forward keeps the state at the start of every chunk, backward starts from there.
constexpr int kSteps = 64;

// A (batch, group, row, time) view; a row is a channel of the group or a state. Strides count elements.
struct View {
    float* data;
    int64_t batch, group, row, time;
};

// One scan, mirrored field by field in native.py. Absent tensors have null data.
struct Scan {
    int64_t batch, groups, channels, state, length;  // channels are those of one group
    int64_t softplus;
    View u, delta, B, C, z;
    const float *A, *D, *delta_bias;  // (groups * channels, state), (groups * channels), (groups * channels)
    View y;
    float* states;  // (item, chunk, state, kLanes)
    View grad_y, grad_u, grad_delta, grad_B, grad_C, grad_z;
    float *grad_A, *grad_D, *grad_delta_bias;  // (batch, groups * channels[, state])

    int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
    int64_t chunks() const { return (length + kSteps - 1) / kSteps; }
    int64_t items() const { return blocks() * batch * groups; }
};

// Items of one group add to the same grad_B and grad_C. They do so in the order of their blocks, chunk by chunk, which
// makes the sum independent of the number of threads. Neighbouring items belong to different groups where possible.
class Turns {
  public:
    virtual void wait(int64_t item, int64_t chunk) = 0;  // until the previous block has finished `chunk`
    virtual void finish(int64_t item, int64_t chunk) = 0;

  protected:
    ~Turns() = default;
};

struct Kernel {
    int64_t (*scratch_floats)(const Scan&);  // per thread
    void (*forward)(const Scan&, int64_t item, float* scratch);
    void (*backward)(const Scan&, int64_t item, float* scratch, Turns&);
};

extern const Kernel kPortable;
#ifdef SELECTIVE_SCAN_X86
extern const Kernel kAvx2;
extern const Kernel kAvx512;
#endif

}  // namespace selective_scan
