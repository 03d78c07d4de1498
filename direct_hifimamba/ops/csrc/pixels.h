// Arguments of the kernels for pixels; inverted_bottleneck.py and experts.py mirror those that they hand over field by
// field. Tensors are contiguous, channels last, and channel counts are multiples of kChannels.
#pragma once

#include <cstdint>

namespace native {

constexpr int kChannels = 16;

constexpr double kEpsilon = 1e-5;  // added to variances before the division

// Inverted bottleneck of an image: y = x + gelu(P gelu(N(K * gelu(N(W x))))). K is 3 x 3 and per channel, zeros around
// the image; N normalises to mean 0 and variance 1 over the image, scales and shifts.
struct Bottleneck {
    int64_t height, width, channels, inner;
    const float* x;                                      // (height, width, channels)
    const float *expand, *expand_scale, *expand_offset;  // W, (inner, channels); (inner) twice
    const float* depthwise;                              // K, (inner, 3, 3)
    const float *depthwise_scale, *depthwise_offset;     // (inner)
    const float* project;                                // P, (channels, inner)
    float* convolved;                       // output of K, (height, width, inner)
    float *projected, *y;                   // argument of the last gelu, or null, and result, as x
    double* statistics;                     // mean of `convolved`, and its standard deviation, that N divides by
    double *input_mean, *input_covariance;  // of x over pixels, (channels), (channels, channels)
};

// First half: convolved = K * gelu(W x + b), the normalisation being part of W and b.
struct Expand {
    int64_t height, width, channels, inner;
    const float* x;
    const float *W, *b;  // packed, (inner)
    const float* depthwise;
    float* convolved;
    double* moments;  // (height, 2): mean of every row of `convolved` and sum of the squared deviations from it
};

// Second half: y = x + gelu(P gelu(gain convolved + offset)).
struct Project {
    int64_t pixels, channels, inner;
    const float *x, *convolved;
    const float *gain, *offset;  // (inner)
    const float* P;              // packed
    float *projected, *y;
};

// out[i] = weight[i] (V gelu(U x[i] + a) + b) for the pixels i of `index`, each of which occurs once. Several experts
// form a list and run in its order.
struct Expert {
    int64_t all_pixels, pixels, channels, hidden;
    int64_t add;           // to what is in `out`, instead of replacing it
    const float* x;        // (all pixels, channels)
    const int64_t* index;  // (pixels), or null for all in order
    const float* weight;   // (pixels), or null for 1
    const float *U, *a;    // (hidden, channels), (hidden); U is replaced by its packed form
    const float *V, *b;    // (channels, hidden), (channels); V is replaced by its packed form
    float* out;            // (all pixels, channels)
    const Expert* next;    // next in the list, or null
};

// Backward passes cut their pixels into `parts`, each with `sums` of its own, (parts, ...): what adds these up in order
// gets the same bits from any number of threads.

// Gradients of Project up to n = gain convolved + offset; `grad` is that of y. Sums: gradient of P^T,
// (inner, channels); sums over pixels of the gradient of n, and of its product with convolved.
struct ProjectBackward {
    int64_t pixels, channels, inner, parts;
    const float *grad, *projected, *convolved;  // (pixels, channels) twice, (pixels, inner)
    const float *gain, *offset;                 // (inner)
    const float* Pt;                            // (inner, channels), replaced by its packed form
    float* grad_normalised;                     // (pixels, inner)
    float* sums;                                // (parts, inner * channels + 2 * inner)
};

// Gradients of Expand, that of convolved being gain * grad_normalised - slope * convolved - level. With g, the gradient
// of W x + b, the sums are: of g x^T, (inner, channels); of g; gradient of K, (3, 3, inner). Parts are rows.
struct ExpandBackward {
    int64_t height, width, channels, inner, parts;
    const float *x, *grad;                      // (height, width, channels)
    const float *W, *b;                         // (inner, channels), (inner); W is replaced by its packed form
    const float* Wt;                            // (channels, inner), replaced by its packed form
    const float* depthwise;                     // (3, 3, inner)
    const float *grad_normalised, *convolved;   // (height, width, inner)
    const float *gain, *slope, *level;          // (inner), scalar, scalar
    float* grad_x;                              // (height, width, channels): grad + W^T g
    float* sums;                                // (parts, inner * channels + inner + 9 * inner)
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
