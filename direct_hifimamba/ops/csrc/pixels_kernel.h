// Matrix products over pixels with what comes before and after them, compiled once per instruction set.
//
// A tile of kRows pixels is multiplied by a panel of kPanel output channels in registers. The tile stays in the nearest
// cache, the packed weights in the next one, and activations, biases and sums are applied where the numbers are: nothing
// wider than the input is written to memory but the output of the depthwise convolution.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

using native::Expand;
using native::Expert;
using native::Project;

// Accumulators and operands of a product fill the registers: 32 of 16 floats, else 16.
constexpr int kRows = kWidth == 16 ? 12 : 6;
constexpr int kVecs = 2;
constexpr int kPanel = kVecs * kWidth;

// Panel by panel, (depth, kPanel) each; outputs that do not exist are 0.
int64_t packed_floats(int64_t outputs, int64_t depth) { return (outputs + kPanel - 1) / kPanel * kPanel * depth; }

void pack(const float* weight, int64_t outputs, int64_t depth, float* packed) {
    for (int64_t first = 0; first < outputs; first += kPanel)
        for (int64_t k = 0; k < depth; ++k)
            for (int64_t n = first; n < first + kPanel; ++n)
                *packed++ = n < outputs ? weight[n * depth + k] : 0.0f;
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
    return kRows * e.channels + (4 * (e.width + 2) + 9) * min(kGroup, e.wide);
}

// Rows of the image, each made once but for those next to another thread's.
void expand(const Expand& e, int64_t first_row, int64_t end_row, float* scratch) {
    const int64_t most = min(kGroup, e.wide), row_floats = (e.width + 2) * most;  // a column of zeros on either side
    float *tile = scratch, *K = tile + kRows * e.channels, *lines = K + 9 * most;
    Moments lanes[kGroup / kWidth];
    const float* zeros = lines + 3 * row_floats;
    const auto line = [&](int64_t y) { return lines + (y + 3) % 3 * row_floats; };
    memset(scratch, 0, expand_scratch_floats(e) * sizeof(float));

    for (int64_t group = 0; group < e.wide; group += kGroup) {
        const int64_t wide = min(kGroup, e.wide - group);
        for (int i = 0; i < 9; ++i)
            for (int64_t n = 0; n < wide; ++n) K[i * wide + n] = e.depthwise[(group + n) * 9 + i];

        const auto activate = [&](int64_t y) {
            if (y < 0 || y >= e.height) return;
            float* out = line(y) + wide;
            for (int64_t first = 0; first < e.width; first += kRows, out += kRows * wide) {
                const int rows = tile_rows(first, e.width);
                const float* x = whole_tile(e.x + (y * e.width + first) * e.channels, e.channels, rows, tile);
                map_tile(x, e.channels, e.W + group * e.channels, wide, e.channels, rows,
                         [&](int r, int64_t n, Vec sum) {
                             store(out + r * wide + n, gelu(sum + load(e.b + group + n)));
                         });
            }
            memset(line(y) + (e.width + 1) * wide, 0, wide * sizeof(float));
        };
        const auto convolve = [&](int64_t y) {
            const float* rows[3] = {y > 0 ? line(y - 1) : zeros, line(y), y + 1 < e.height ? line(y + 1) : zeros};
            float* row = e.convolved + y * e.width * e.wide + group;
            for (int64_t n = 0; n < wide; n += kWidth) {
                Vec weights[9];
                UNROLL for (int i = 0; i < 9; ++i) weights[i] = load(K + i * wide + n);
                Moments& lane = lanes[n / kWidth];
                // Every value is loaded once, and added to the sums of the columns to its left and right.
                Vec left{}, middle{};
                for (int64_t x = 0; x < e.width + 2; ++x) {
                    Vec right{};
                    UNROLL for (int i = 0; i < 3; ++i) {
                        const Vec value = load(rows[i] + x * wide + n);
                        left += weights[3 * i + 2] * value;
                        middle += weights[3 * i + 1] * value;
                        right += weights[3 * i] * value;
                    }
                    if (x >= 2) {
                        stream(row + (x - 2) * e.wide + n, left);
                        if (x == 2) lane = {left};
                        lane.add(left);
                    }
                    left = middle;
                    middle = right;
                }
            }
            // Joins the lanes, then the groups of channels.
            const float per_column = 1 / float(e.width);
            Vec means{}, deviations{};
            for (int64_t n = 0; n < wide; n += kWidth) means += lanes[n / kWidth].mean(per_column);
            const double count = double(e.width * wide), mean = lane_sum(means) / double(wide);
            for (int64_t n = 0; n < wide; n += kWidth) {
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
    finish_streams();
}

int64_t project_scratch_floats(const Project& p) { return kRows * p.wide; }

void project(const Project& p, int64_t first, int64_t end, float* tile) {
    memset(tile, 0, kRows * p.wide * sizeof(float));
    for (; first < end; first += kRows) {
        const int rows = tile_rows(first, end);
        const float* convolved = p.convolved + first * p.wide;
        for (int r = 0; r < rows; ++r)
            for (int64_t n = 0; n < p.wide; n += kWidth)
                store(tile + r * p.wide + n,
                      gelu(load(convolved + r * p.wide + n) * load(p.gain + n) + load(p.offset + n)));
        map_tile(tile, p.wide, p.P, p.channels, p.wide, rows, [&](int r, int64_t n, Vec sum) {
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
        map_tile(tile, e.channels, e.U, e.hidden, e.channels, rows, [&](int r, int64_t n, Vec sum) {
            store(hidden + r * e.hidden + n, gelu(e.a ? sum + load(e.a + n) : sum));
        });
        if (e.G)
            map_tile(tile, e.channels, e.G, e.hidden, e.channels, rows, [&](int r, int64_t n, Vec sum) {
                store(hidden + r * e.hidden + n, load(hidden + r * e.hidden + n) * sum);
            });
        map_tile(hidden, e.hidden, e.V, e.channels, e.hidden, rows, [&](int r, int64_t n, Vec sum) {
            float* out = e.out + pixel(r) * e.channels + n;
            const Vec value = e.b ? sum + load(e.b + n) : sum;
            store(out, load(out) + (e.weight ? value * e.weight[first + r] : value));
        });
    }
}

}  // namespace
