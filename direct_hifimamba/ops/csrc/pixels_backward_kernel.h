// Backward passes of pixels_kernel.h, compiled once per instruction set.
//
// Some pixels at a time go through all products while what belongs to them is in the cache of the core. Values between
// the layers are computed again. Gradients of weights, sums over pixels, are added to the sums of the part.
#pragma once

#include "pixels_kernel.h"

namespace {

using native::ExpandBackward;
using native::ExpertBackward;
using native::ProjectBackward;

inline float total(Vec x) {
    float sum = 0;
    for (int lane = 0; lane < kWidth; ++lane) sum += x[lane];
    return sum;
}

int64_t project_backward_scratch_floats(const ProjectBackward& p) {
    return kChunk * (padded(p.channels) + padded(p.inner));
}

void project_backward(const ProjectBackward& p, int64_t part, float* scratch) {
    memset(scratch, 0, project_backward_scratch_floats(p) * sizeof(float));
    const int64_t narrow = padded(p.channels), inner = padded(p.inner);
    float *grad = scratch, *activated = scratch + kChunk * narrow;

    const int64_t weights = p.inner * p.channels, floats = weights + 2 * p.inner;
    float *grad_Pt = p.sums + part * floats, *sum = grad_Pt + weights, *sum_products = sum + p.inner;
    memset(grad_Pt, 0, floats * sizeof(float));

    const int64_t end = (part + 1) * p.pixels / p.parts;
    for (int64_t first = part * p.pixels / p.parts; first < end; first += kChunk) {
        const int64_t count = end - first < kChunk ? end - first : kChunk;
        for (int64_t i = 0; i < count; ++i)
            for (int64_t n = 0; n < p.channels; n += kWidth) {
                const int64_t at = (first + i) * p.channels + n;
                store(grad + i * narrow + n, load(p.grad + at) * gelu_and_slope(load(p.projected + at)).slope);
            }
        for (int64_t tile = 0; tile < count; tile += kRows)
            map_tile(grad + tile * narrow, narrow, p.Pt, p.inner, p.channels, tile_rows(tile, count),
                     [&](int r, int64_t n, Vec product) {
                         const int64_t at = (first + tile + r) * p.inner + n;
                         const Vec convolved = load(p.convolved + at);
                         const Gelu gelu = gelu_and_slope(convolved * load(p.gain + n) + load(p.offset + n));
                         store(activated + (tile + r) * inner + n, gelu.value);
                         const Vec value = product * gelu.slope;
                         store(p.grad_normalised + at, value);
                         store(sum + n, load(sum + n) + value);
                         store(sum_products + n, load(sum_products + n) + value * convolved);
                     });
        add_products(activated, grad, p.inner, p.channels, count, grad_Pt);
    }
}

int64_t expand_backward_scratch_floats(const ExpandBackward& e) {
    return 4 * (e.width + 2) * e.inner + (e.width + kRows) * (padded(e.channels) + padded(e.inner));
}

void expand_backward(const ExpandBackward& e, int64_t part, float* scratch) {
    memset(scratch, 0, expand_backward_scratch_floats(e) * sizeof(float));
    const int64_t narrow = padded(e.channels), inner = padded(e.inner);
    const int64_t row_floats = (e.width + 2) * e.inner;  // a column of zeros on either side
    float *lines = scratch, *x = lines + 4 * row_floats, *expanded = x + (e.width + kRows) * narrow;
    const auto line = [&](int64_t y) { return lines + (y >= 0 && y < e.height ? y % 3 : 3) * row_floats; };

    const int64_t weights = e.inner * e.channels, floats = weights + 10 * e.inner;
    float *correlation = e.sums + part * floats, *sum = correlation + weights, *grad_K = sum + e.inner;
    memset(correlation, 0, floats * sizeof(float));

    const Vec slope = splat(*e.slope), level = splat(*e.level);
    const auto fill = [&](int64_t y) {
        if (y < 0 || y >= e.height) return;
        float* out = line(y) + e.inner;
        for (int64_t i = 0; i < e.width; ++i)
            for (int64_t n = 0; n < e.inner; n += kWidth) {
                const int64_t at = (y * e.width + i) * e.inner + n;
                store(out + i * e.inner + n,
                      load(e.gain + n) * load(e.grad_normalised + at) - slope * load(e.convolved + at) - level);
            }
    };
    // Replaces `expanded` by its gradient in some columns of row y.
    const auto convolve = [&](int64_t y, int64_t begin, int64_t end) {
        const float* rows[3] = {line(y + 1), line(y), line(y - 1)};
        for (int64_t n = 0; n < e.inner; n += kWidth) {
            Vec K[9], products[9] = {}, total{};
            UNROLL for (int i = 0; i < 9; ++i) K[i] = load(e.depthwise + i * e.inner + n);
            for (int64_t column = begin; column < end; ++column) {
                float* value = expanded + column * inner + n;
                const Gelu activated = gelu_and_slope(load(value));
                Vec grad{};
                UNROLL for (int i = 0; i < 9; ++i) {
                    const Vec grad_convolved = load(rows[i / 3] + (column + 2 - i % 3) * e.inner + n);
                    grad += K[i] * grad_convolved;
                    products[i] += activated.value * grad_convolved;
                }
                grad *= activated.slope;
                total += grad;
                store(value, grad);
            }
            store(sum + n, load(sum + n) + total);
            UNROLL for (int i = 0; i < 9; ++i) {
                float* to = grad_K + i * e.inner + n;
                store(to, load(to) + products[i]);
            }
        }
    };

    const int64_t first = part * e.height / e.parts, end = (part + 1) * e.height / e.parts;
    if (first == end) return;
    fill(first - 1);
    fill(first);
    for (int64_t y = first; y < end; ++y) {
        fill(y + 1);
        const int64_t row = y * e.width * e.channels;
        for (int64_t i = 0; i < e.width; ++i)
            memcpy(x + i * narrow, e.x + row + i * e.channels, e.channels * sizeof(float));
        for (int64_t tile = 0; tile < e.width; tile += kRows) {
            const int rows = tile_rows(tile, e.width);
            map_tile(x + tile * narrow, narrow, e.W, e.inner, e.channels, rows,
                     [&](int r, int64_t n, Vec product) {
                         store(expanded + (tile + r) * inner + n, product + load(e.b + n));
                     });
            convolve(y, tile, tile + rows);
            map_tile(expanded + tile * inner, inner, e.Wt, e.channels, e.inner, rows,
                     [&](int r, int64_t n, Vec product) {
                         const int64_t at = row + (tile + r) * e.channels + n;
                         store(e.grad_x + at, load(e.grad + at) + product);
                     });
        }
        add_products(expanded, x, e.inner, e.channels, e.width, correlation);
    }
}

int64_t expert_backward_scratch_floats(const ExpertBackward& e) {
    return 2 * kChunk * (padded(e.channels) + padded(e.hidden));
}

void expert_backward(const ExpertBackward& e, int64_t part, float* scratch) {
    memset(scratch, 0, expert_backward_scratch_floats(e) * sizeof(float));
    const int64_t narrow = padded(e.channels), inner = padded(e.hidden);
    float *x = scratch, *grad = x + kChunk * narrow;
    float *hidden = grad + kChunk * narrow, *grad_hidden = hidden + kChunk * inner;

    const int64_t weights = e.hidden * e.channels, floats = 2 * weights + e.hidden + e.channels;
    float *grad_U = e.sums + part * floats, *grad_Vt = grad_U + weights;
    float *grad_a = grad_Vt + weights, *grad_b = grad_a + e.hidden;
    memset(grad_U, 0, floats * sizeof(float));

    const int64_t end = (part + 1) * e.pixels / e.parts;
    for (int64_t first = part * e.pixels / e.parts; first < end; first += kChunk) {
        const int64_t count = end - first < kChunk ? end - first : kChunk;
        const auto pixel = [&](int64_t i) { return e.index ? e.index[first + i] : first + i; };
        for (int64_t i = 0; i < count; ++i) {
            memcpy(x + i * narrow, e.x + pixel(i) * e.channels, e.channels * sizeof(float));
            memcpy(grad + i * narrow, e.grad + pixel(i) * e.channels, e.channels * sizeof(float));
        }
        for (int64_t tile = 0; tile < count; tile += kRows) {
            const int rows = tile_rows(tile, count);
            map_tile(x + tile * narrow, narrow, e.U, e.hidden, e.channels, rows,
                     [&](int r, int64_t n, Vec sum) { store(hidden + (tile + r) * inner + n, sum + load(e.a + n)); });
            Vec dots[kRows] = {};
            map_tile(grad + tile * narrow, narrow, e.Vt, e.hidden, e.channels, rows,
                     [&](int r, int64_t n, Vec sum) {
                         const int64_t i = (tile + r) * inner + n;
                         const Gelu activated = gelu_and_slope(load(hidden + i));
                         store(hidden + i, activated.value);
                         dots[r] += sum * activated.value;
                         store(grad_hidden + i, sum * activated.slope * (e.weight ? e.weight[first + tile + r] : 1.0f));
                     });
            for (int r = 0; e.weight && r < rows; ++r)
                for (int64_t n = 0; n < e.channels; n += kWidth) {
                    float* output_grad = grad + (tile + r) * narrow + n;
                    dots[r] += load(output_grad) * load(e.b + n);
                    store(output_grad, load(output_grad) * e.weight[first + tile + r]);
                }
            for (int r = 0; e.weight && r < rows; ++r) e.grad_weight[first + tile + r] = total(dots[r]);
            map_tile(grad_hidden + tile * inner, inner, e.Ut, e.channels, e.hidden, rows,
                     [&](int r, int64_t n, Vec sum) {
                         float* out = e.grad_x + pixel(tile + r) * e.channels + n;
                         store(out, load(out) + sum);
                     });
        }
        add_products(grad_hidden, x, e.hidden, e.channels, count, grad_U);
        add_products(hidden, grad, e.hidden, e.channels, count, grad_Vt);
        add_pixels(grad_hidden, e.hidden, count, grad_a);
        add_pixels(grad, e.channels, count, grad_b);
    }
}

}  // namespace
