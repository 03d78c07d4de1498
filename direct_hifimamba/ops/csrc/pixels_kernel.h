// Kernels for the pixels of images, compiled once per instruction set.
//
// In matrix products a tile of kRows pixels is multiplied by a panel of kPanel output channels in registers. The tile
// stays in the nearest cache, the packed weights in the next one, and activations, biases and sums are applied where
// the numbers are: nothing wider than the input is written to memory but what the depthwise convolution of a bottleneck
// gives.
#pragma once

#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace {

using native::Expand;
using native::Expert;
using native::kChannels;
using native::Project;

// Accumulators and operands of a product fill the registers: 32 of 16 floats, else 16.
constexpr int kRows = kWidth == 16 ? 12 : 6;
constexpr int kVecs = 2;
constexpr int kPanel = kVecs * kWidth;

// Panel by panel, (depth, kPanel) each; outputs that do not exist are 0.
int64_t packed_floats(int64_t outputs, int64_t depth) { return (outputs + kPanel - 1) / kPanel * kPanel * depth; }

void pack(const float* weight, int64_t outputs, int64_t depth, float* packed) {
    for (int64_t first = 0; first < outputs; first += kPanel, packed += kPanel * depth)
        for (int64_t n = 0; n < kPanel; n += kWidth)
            for (int64_t k = 0; k < depth; k += kWidth) {
                Vec block[kWidth] = {};
                for (int r = 0; first + n < outputs && r < kWidth; ++r)
                    block[r] = load(weight + (first + n + r) * depth + k);
                transpose(block);
                for (int r = 0; r < kWidth; ++r) store(packed + (k + r) * kPanel + n, block[r]);
            }
}

// The kRows x depth factor of a product: element (r, k) is data[r * row + k * step].
struct Left {
    const float* data;
    int64_t row, step;
};

// The depth x outputs factor: element (k, n) is data[n * panel + k * step] for the first n of a panel; the rest follow.
struct Right {
    const float* data;
    int64_t panel, step;
};

// work(row, output, sum) gets the products vector by vector. Reads, and drops, whole tiles and panels of both factors.
template <typename Work>
inline void multiply(Left left, Right right, int64_t outputs, int64_t depth, int rows, Work&& work) {
    for (int64_t first = 0; first < outputs; first += kPanel) {
        const float *x = left.data, *weight = right.data + first * right.panel;
        Vec sums[kRows][kVecs];
        UNROLL for (int r = 0; r < kRows; ++r) UNROLL for (int v = 0; v < kVecs; ++v) sums[r][v] = Vec{};
        for (int64_t k = 0; k < depth; ++k, x += left.step, weight += right.step) {
            Vec weights[kVecs];
            UNROLL for (int v = 0; v < kVecs; ++v) weights[v] = load(weight + v * kWidth);
            UNROLL for (int r = 0; r < kRows; ++r) {
                const Vec factor = splat(x[r * left.row]);
                UNROLL for (int v = 0; v < kVecs; ++v) sums[r][v] += factor * weights[v];
            }
        }
        UNROLL for (int v = 0; v < kVecs; ++v) {
            const int64_t output = first + v * kWidth;
            if (output >= outputs) break;
            UNROLL for (int r = 0; r < kRows; ++r)
                if (r < rows) work(r, output, sums[r][v]);
        }
    }
}

// The products of a tile of pixels, `stride` apart, with a packed weight.
template <typename Work>
inline void map_tile(const float* x, int64_t stride, const float* packed, int64_t outputs, int64_t depth, int rows,
                     Work&& work) {
    multiply({x, stride, 1}, {packed, depth, kPanel}, outputs, depth, rows, work);
}

// The rows of a tile, copied to `tile` unless all are there to be read.
inline const float* whole_tile(const float* x, int64_t channels, int rows, float* tile) {
    if (rows == kRows) return x;
    memcpy(tile, x, rows * channels * sizeof(float));
    return tile;
}

inline double lane_sum(Vec x) {
    double sum = 0;
    for (int lane = 0; lane < kWidth; ++lane) sum += x[lane];
    return sum;
}

inline int tile_rows(int64_t first, int64_t end) { return end - first < kRows ? int(end - first) : kRows; }

// Pixels that go through several products together, while what belongs to them is in the cache of the core.
constexpr int kChunk = 8 * kRows;

// Distance of the pixels of a chunk: by the added line they do not all fall into the same few sets of the cache. What
// `multiply` reads beyond the channels of a pixel falls into it.
inline int64_t padded(int64_t channels) { return channels + kChannels; }
static_assert(kRows - 1 <= kChannels && kPanel - kChannels <= kChannels);

// out (rows, columns) += left^T right over `count` pixels, which are padded(rows) and padded(columns) apart. What lies
// wholly below the diagonal may be left out.
inline void add_products(const float* left, const float* right, int64_t rows, int64_t columns, int64_t count,
                         float* out, bool upper = false) {
    // Panel by panel: that of `right` stays in the nearest cache.
    for (int64_t column = 0; column < columns; column += kPanel)
        for (int64_t row = 0; row < (upper ? min(rows, column + kPanel) : rows); row += kRows)
            multiply({left + row, 1, padded(rows)}, {right + column, 1, padded(columns)},
                     columns - column < kPanel ? columns - column : kPanel, count, tile_rows(row, rows),
                     [&](int r, int64_t n, Vec sum) {
                         float* to = out + (row + r) * columns + column + n;
                         store(to, load(to) + sum);
                     });
}

// out (channels) += the sum of `count` pixels, padded(channels) apart.
inline void add_pixels(const float* values, int64_t channels, int64_t count, float* out) {
    for (int64_t n = 0; n < channels; n += kWidth) {
        Vec sum{};
        for (int64_t i = 0; i < count; ++i) sum += load(values + i * padded(channels) + n);
        store(out + n, load(out + n) + sum);
    }
}

int64_t moments_scratch_floats(int64_t channels) { return kChunk * padded(channels); }

// Sums over pixels of x - shift, (channels), and of its products, (channels, channels), of which those below the
// diagonal may be missing.
void moments(const float* x, int64_t channels, int64_t pixels, const float* shift, float* sums, float* scratch) {
    memset(scratch, 0, moments_scratch_floats(channels) * sizeof(float));
    memset(sums, 0, (channels + 1) * channels * sizeof(float));
    for (int64_t first = 0; first < pixels; first += kChunk) {
        const int64_t count = pixels - first < kChunk ? pixels - first : kChunk;
        for (int64_t i = 0; i < count; ++i)
            for (int64_t n = 0; n < channels; n += kWidth)
                store(scratch + i * padded(channels) + n, load(x + (first + i) * channels + n) - load(shift + n));
        add_pixels(scratch, channels, count, sums);
        add_products(scratch, scratch, channels, channels, count, sums + channels, true);
    }
}

int64_t variance_scratch_floats(int64_t depth) { return (kRows + depth) * depth + kPanel; }

// Sum over outputs of the variance of weight x, x being of some covariance.
double variance(const float* weight, int64_t outputs, int64_t depth, const double* covariance, float* scratch) {
    memset(scratch, 0, variance_scratch_floats(depth) * sizeof(float));
    float *tile = scratch, *rounded = tile + kRows * depth;
    for (int64_t i = 0; i < depth * depth; ++i) rounded[i] = float(covariance[i]);
    double sum = 0;
    for (int64_t first = 0; first < outputs; first += kRows) {
        const int rows = tile_rows(first, outputs);
        const float* left = whole_tile(weight + first * depth, depth, rows, tile);
        Vec products{};
        multiply({left, depth, 1}, {rounded, 1, depth}, depth, depth, rows,
                 [&](int r, int64_t n, Vec product) { products += product * load(left + r * depth + n); });
        sum += lane_sum(products);
    }
    return sum;
}

// A row of kWidth channels convolved with a 3 x 3 kernel: work(column, value). Pixels of the three rows are `steps`
// apart; beyond their ends are zeros.
template <typename Work>
inline void convolve_row(const float* const (&rows)[3], const int64_t (&steps)[3], int64_t width, const Vec* kernel,
                         Work&& work) {
    // Every value is loaded once, and added to the sums of the columns to its left and right.
    Vec left{}, middle{};
    for (int64_t x = 0; x < width; ++x) {
        Vec right{};
        UNROLL for (int i = 0; i < 3; ++i) {
            const Vec value = load(rows[i] + x * steps[i]);
            left += kernel[3 * i + 2] * value;
            middle += kernel[3 * i + 1] * value;
            right += kernel[3 * i] * value;
        }
        if (x > 0) work(x - 1, left);
        left = middle;
        middle = right;
    }
    if (width > 0) work(width - 1, left);
}

// Expanded channels at a time, whole panels: three rows of them stay in the cache of the core.
constexpr int64_t kGroup = 160;

// Mean and squared deviations of a row's values, lane by lane. Sums are of values less one of them, so that nothing
// cancels.
struct Moments {
    Vec shift{}, sum{}, squares{};

    void add(Vec value) {
        const Vec deviation = value - shift;
        sum += deviation;
        squares += deviation * deviation;
    }
    Vec mean(float per_value) const { return shift + sum * per_value; }
    Vec squared_deviations(float per_value) const { return squares - sum * sum * per_value; }
};

int64_t expand_scratch_floats(const Expand& e) {
    return kRows * e.channels + (3 * e.width + 9) * min(kGroup, e.inner);
}

// Rows of the image, each made once but for those next to another thread's.
void expand(const Expand& e, int64_t first_row, int64_t end_row, float* scratch) {
    const int64_t most = min(kGroup, e.inner);
    float *tile = scratch, *K = tile + kRows * e.channels, *lines = K + 9 * most;
    const float zeros[kWidth] = {};  // a row beyond the image, read with steps of 0
    Moments lanes[kGroup / kWidth];
    const auto line = [&](int64_t y) { return lines + y % 3 * e.width * most; };
    memset(tile, 0, kRows * e.channels * sizeof(float));

    for (int64_t group = 0; group < e.inner; group += kGroup) {
        const int64_t inner = min(kGroup, e.inner - group);
        for (int i = 0; i < 9; ++i)
            for (int64_t n = 0; n < inner; ++n) K[i * inner + n] = e.depthwise[(group + n) * 9 + i];

        const auto activate = [&](int64_t y) {
            if (y < 0 || y >= e.height) return;
            float* out = line(y);
            for (int64_t first = 0; first < e.width; first += kRows, out += kRows * inner) {
                const int rows = tile_rows(first, e.width);
                const float* x = whole_tile(e.x + (y * e.width + first) * e.channels, e.channels, rows, tile);
                map_tile(x, e.channels, e.W + group * e.channels, inner, e.channels, rows,
                         [&](int r, int64_t n, Vec sum) {
                             store(out + r * inner + n, gelu(sum + load(e.b + group + n)));
                         });
            }
        };
        const auto convolve = [&](int64_t y) {
            const bool above = y > 0, below = y + 1 < e.height;
            const int64_t steps[3] = {above ? inner : 0, inner, below ? inner : 0};
            float* row = e.convolved + y * e.width * e.inner + group;
            for (int64_t n = 0; n < inner; n += kWidth) {
                const float* const rows[3] = {above ? line(y - 1) + n : zeros, line(y) + n,
                                              below ? line(y + 1) + n : zeros};
                Vec kernel[9];
                UNROLL for (int i = 0; i < 9; ++i) kernel[i] = load(K + i * inner + n);
                Moments& lane = lanes[n / kWidth];
                convolve_row(rows, steps, e.width, kernel, [&](int64_t x, Vec value) {
                    store(row + x * e.inner + n, value);
                    if (x == 0) lane = {value};
                    lane.add(value);
                });
            }
            // Joins the lanes, then the groups of channels.
            const float per_column = 1 / float(e.width);
            Vec means{}, deviations{};
            for (int64_t n = 0; n < inner; n += kWidth) means += lanes[n / kWidth].mean(per_column);
            const double count = double(e.width * inner), mean = lane_sum(means) / double(inner);
            for (int64_t n = 0; n < inner; n += kWidth) {
                const Moments& lane = lanes[n / kWidth];
                const Vec difference = lane.mean(per_column) - float(mean);
                deviations += lane.squared_deviations(per_column) + difference * difference * float(e.width);
            }
            const double squares = lane_sum(deviations);
            double* moments = e.moments + 2 * y;
            if (group == 0) moments[0] = moments[1] = 0;
            const double before = double(e.width * group), share = count / (before + count);
            const double difference = mean - moments[0];
            moments[0] += difference * share;
            moments[1] += squares + difference * difference * before * share;
        };

        activate(first_row - 1);
        activate(first_row);
        for (int64_t y = first_row; y < end_row; ++y) {
            activate(y + 1);
            convolve(y);
        }
    }
}

int64_t project_scratch_floats(const Project& p) { return kRows * p.inner; }

void project(const Project& p, int64_t first, int64_t end, float* tile) {
    memset(tile, 0, kRows * p.inner * sizeof(float));
    for (; first < end; first += kRows) {
        const int rows = tile_rows(first, end);
        const float* convolved = p.convolved + first * p.inner;
        for (int r = 0; r < rows; ++r)
            for (int64_t n = 0; n < p.inner; n += kWidth)
                store(tile + r * p.inner + n,
                      gelu(load(convolved + r * p.inner + n) * load(p.gain + n) + load(p.offset + n)));
        map_tile(tile, p.inner, p.P, p.channels, p.inner, rows, [&](int r, int64_t n, Vec sum) {
            const int64_t i = (first + r) * p.channels + n;
            if (p.projected) store(p.projected + i, sum);
            store(p.y + i, load(p.x + i) + gelu(sum));
        });
    }
}

int64_t expert_scratch_floats(const Expert& e) { return kRows * (e.channels + e.hidden); }

void expert(const Expert& e, int64_t first, int64_t end, float* scratch) {
    memset(scratch, 0, expert_scratch_floats(e) * sizeof(float));
    float *tile = scratch, *hidden = scratch + kRows * e.channels;
    for (; first < end; first += kRows) {
        const int rows = tile_rows(first, end);
        const auto pixel = [&](int r) { return e.index ? e.index[first + r] : first + r; };
        for (int r = 0; r < rows; ++r)
            memcpy(tile + r * e.channels, e.x + pixel(r) * e.channels, e.channels * sizeof(float));
        map_tile(tile, e.channels, e.U, e.hidden, e.channels, rows,
                 [&](int r, int64_t n, Vec sum) { store(hidden + r * e.hidden + n, gelu(sum + load(e.a + n))); });
        map_tile(hidden, e.hidden, e.V, e.channels, e.hidden, rows, [&](int r, int64_t n, Vec sum) {
            float* out = e.out + pixel(r) * e.channels + n;
            const Vec value = sum + load(e.b + n);
            const Vec weighted = e.weight ? value * e.weight[first + r] : value;
            store(out, e.add ? load(out) + weighted : weighted);
        });
    }
}

}  // namespace
