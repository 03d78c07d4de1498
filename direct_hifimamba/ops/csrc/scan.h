// The selective scan: what the dispatcher and the kernels of every instruction set agree on.
#pragma once

#include <cstdint>

namespace native {

// Channels that are scanned side by side, a block. Sixteen floats are one cache line, so blocks never share a line of a
// channels-last tensor.
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
    float* states;  // (batch, group, chunk, block, state, kLanes)
    View grad_y, grad_u, grad_delta, grad_B, grad_C, grad_z;
    float *grad_A, *grad_D, *grad_delta_bias;  // (batch, groups * channels[, state])

    int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
    int64_t chunks() const { return (length + kSteps - 1) / kSteps; }
};

// What one thread works on: some neighbouring blocks of one group of one sequence, taken through the chunks together so
// that they read whole rows of channels-last tensors, and B and C once.
struct Strip {
    int64_t index, batch, group, first_block, blocks;
};

// The strips of a group add to the same grad_B and grad_C. They do so in order, chunk by chunk, which makes the sum
// independent of the number of strips and threads.
class Turns {
  public:
    virtual void wait(const Strip&, int64_t chunk) = 0;  // until the previous strip has finished `chunk`
    virtual void finish(const Strip&, int64_t chunk) = 0;

  protected:
    ~Turns() = default;
};

}  // namespace native
