// Arguments of the kernels that map pixels: mirrored field by field in inverted_bottleneck.py and expert.py. All tensors
// are contiguous, channels last, and channel counts multiples of kChannels.
#pragma once

#include <cstdint>

namespace native {

constexpr int kChannels = 16;

// First half of an inverted bottleneck: convolved = K * gelu(W x + b), K being 3 x 3 and per channel, zeros around.
struct Expand {
    int64_t height, width, channels, wide;
    const float* x;          // (height, width, channels)
    const float *W, *b;      // (wide, channels), (wide); W is replaced by its packed form
    const float* depthwise;  // (wide, 3, 3)
    float* convolved;        // (height, width, wide)
    double* moments;         // (height, 2): mean of every row of `convolved` and sum of the squared deviations from it
};

// Second half: y = x + gelu(P gelu(gain convolved + offset)).
struct Project {
    int64_t pixels, channels, wide;
    const float *x, *convolved;  // (pixels, channels), (pixels, wide)
    const float *gain, *offset;  // (wide)
    const float* P;              // (channels, wide), replaced by its packed form
    float* projected;            // (pixels, channels), argument of the last GELU, or null
    float* y;                    // (pixels, channels)
};

// out[i] += weight[i] (V gelu(U x[i] + a) + b) for the pixels i of `index`, each of which stands in it once.
struct Expert {
    int64_t pixels, channels, hidden;
    const float* x;        // (all pixels, channels)
    const int64_t* index;  // (pixels), or null for all in order
    const float* weight;   // (pixels), or null for 1
    const float *U, *a;    // (hidden, channels), (hidden); U is replaced by its packed form
    const float *V, *b;    // (channels, hidden), (channels); V is replaced by its packed form
    float* out;            // (all pixels, channels)
};

}  // namespace native
