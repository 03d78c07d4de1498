// Arguments of the kernels for pixels; inverted_bottleneck.py and experts.py mirror those that they hand over field by
// field. Tensors are contiguous, channels last, and channel counts are multiples of kChannels.
#pragma once

#include <cstdint>

namespace native {

constexpr int kChannels = 16;

constexpr double kEpsilon = 1e-5;  // added to variances before they divide

// Inverted bottleneck of an image: y = x + gelu(P gelu(N(K * gelu(N(W x))))). K is 3 x 3 and per channel, zeros around
// the image; N normalises to mean 0 and variance 1 over the image, scales and shifts.
struct Bottleneck {
    int64_t height, width, channels, wide;
    const float* x;                                      // (height, width, channels)
    const float *expand, *expand_scale, *expand_offset;  // W, (wide, channels); (wide) twice
    const float* depthwise;                              // K, (wide, 3, 3)
    const float *depthwise_scale, *depthwise_offset;     // (wide)
    const float* project;                                // P, (channels, wide)
    float* convolved;                       // output of K, (height, width, wide)
    float *projected, *y;                   // argument of the last gelu, or null, and result, as x
    double* statistics;                     // mean of `convolved`, and its standard deviation, that N divides by
    double *input_mean, *input_covariance;  // of x over pixels, (channels), (channels, channels)
};

// First half: convolved = K * gelu(W x + b), the normalisation being part of W and b.
struct Expand {
    int64_t height, width, channels, wide;
    const float* x;
    const float *W, *b;  // packed, (wide)
    const float* depthwise;
    float* convolved;
    double* moments;  // (height, 2): mean of every row of `convolved` and sum of the squared deviations from it
};

// Second half: y = x + gelu(P gelu(gain convolved + offset)).
struct Project {
    int64_t pixels, channels, wide;
    const float *x, *convolved;
    const float *gain, *offset;  // (wide)
    const float* P;              // packed
    float *projected, *y;
};

// out[i] = weight[i] (V gelu(U x[i] + a) + b) for the pixels i of `index`, each of which stands in it once. Several of
// them are a list, in whose order they run.
struct Expert {
    int64_t all_pixels, pixels, channels, hidden;
    int64_t add;           // to what is in `out`, instead of replacing it
    const float* x;        // (all pixels, channels)
    const int64_t* index;  // (pixels), or null for all in order
    const float* weight;   // (pixels), or null for 1
    const float *U, *a;    // (hidden, channels), (hidden); U is replaced by its packed form
    const float *V, *b;    // (channels, hidden), (channels); V is replaced by its packed form
    float* out;            // (all pixels, channels)
    const Expert* next;    // whose turn is after this one, or null
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
    int64_t all_pixels, pixels, channels, hidden, parts;
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
