// Arguments of the kernels that map pixels: mirrored field by field in pixels.py. All tensors are contiguous, channels
// last, and channel counts multiples of kChannels.
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

// out[i] += weight[i] (V h + b) with h = gelu(U x[i] + a), or times G x[i] where there is a gate G, for the pixels i of
// `index`, each of which stands in it once.
struct Expert {
    int64_t pixels, channels, hidden;
    const float* x;        // (all pixels, channels)
    const int64_t* index;  // (pixels), or null for all in order
    const float* weight;   // (pixels), or null for 1
    const float *U, *a;    // (hidden, channels), (hidden) or null for 0; U is replaced by its packed form
    const float* G;        // (hidden, channels), replaced by its packed form, or null
    const float *V, *b;    // (channels, hidden), (channels) or null for 0; V is replaced by its packed form
    float* out;            // (all pixels, channels)
};

// Backward passes cut their pixels into `parts`, each with `sums` of its own, (parts, ...): what adds these up in order
// gets the same bits from any number of threads.

// Gradients of Project up to n = gain convolved + offset; `grad` is that of y. Sums: gradient of P^T, (wide, channels);
// over pixels of the gradient of n, and of that times convolved.
struct ProjectBackward {
    int64_t pixels, channels, wide, parts;
    const float *grad, *projected, *convolved;  // (pixels, channels) twice, (pixels, wide)
    const float *gain, *offset;                 // (wide)
    const float* Pt;                            // (wide, channels), replaced by its packed form
    float* grad_normalised;                     // (pixels, wide)
    float* sums;                                // (parts, wide * channels + 2 * wide)
};

// Gradients of Expand, that of convolved being gain * grad_normalised - slope * convolved - level. With g, the gradient
// of W x + b, the sums are: of g x^T, (wide, channels); of g; gradient of K, (3, 3, wide). Parts are rows.
struct ExpandBackward {
    int64_t height, width, channels, wide, parts;
    const float *x, *grad;                      // (height, width, channels)
    const float *W, *b;                         // (wide, channels), (wide); W is replaced by its packed form
    const float* Wt;                            // (channels, wide), replaced by its packed form
    const float* depthwise;                     // (3, 3, wide)
    const float *grad_normalised, *convolved;   // (height, width, wide)
    const float *gain, *slope, *level;          // (wide), scalar, scalar
    float* grad_x;                              // (height, width, channels): grad + W^T g
    float* sums;                                // (parts, wide * channels + wide + 9 * wide)
};

// Gradients of Expert; `grad` is that of its output. Sums: gradients of U and V^T, both (hidden, channels), a and b.
struct ExpertBackward {
    int64_t pixels, channels, hidden, parts;
    const float *x, *grad;  // (all pixels, channels)
    const int64_t* index;   // (pixels), or null
    const float* weight;    // (pixels), or null
    const float *U, *a;     // (hidden, channels), (hidden); U is replaced by its packed form
    const float *Ut, *Vt;   // transposed, (channels, hidden), (hidden, channels); replaced by their packed forms
    const float* b;         // (channels)
    float* grad_x;          // (all pixels, channels), added to
    float* grad_weight;     // (pixels), or null
    float* sums;            // (parts, 2 * hidden * channels + hidden + channels)
};

}  // namespace native
