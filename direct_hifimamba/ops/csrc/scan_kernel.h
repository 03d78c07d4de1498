// The scan of one strip, compiled once per instruction set.
//
// Lanes are channels, the states of a channel sit in as many vector registers, time runs sequentially. So the sum over
// states is vertical, and B and C, which all channels of a group share, are broadcast operands. A chunk of the sequence
// is gathered into tiles (step, lane), scanned, and scattered; nothing of shape (channel, state, length) exists.
// Backward recomputes the states of a chunk from its first one into cache and walks back over it.
//
// With a_t = exp(delta_t A), x_t = delta_t u_t, g_t the gradient of h_t and gy that of C.h + D u:
//   g_t = gy_t C_t + a_{t+1} g_{t+1},  grad B_t = sum g_t x_t,  grad C_t = sum gy_t h_t  (over channels),
//   grad x_t = sum g_t B_t,  grad (delta_t A) = g_t a_t h_{t-1}.
#pragma once

#include <initializer_list>

#include "scan.h"
#include "simd.h"

namespace {

using native::kLanes;
using native::kSteps;
using native::Scan;
using native::Strip;
using native::Turns;
using native::View;

constexpr int kTile = kSteps * kLanes;
constexpr int kMaxBlock = 16;  // states that are kept in registers at a time

template <int N>
struct Size {
    static constexpr int value = N;
};

// Cuts the states into blocks of a size known to the compiler; `work` gets the size and the first state.
template <typename Work>
inline void for_each_block(int64_t state, Work&& work) {
    int64_t n = 0;
    for (; n + 16 <= state; n += 16) work(Size<16>{}, n);
    for (; n + 8 <= state; n += 8) work(Size<8>{}, n);
    for (; n + 4 <= state; n += 4) work(Size<4>{}, n);
    for (; n < state; ++n) work(Size<1>{}, n);
}

// Tile (step, lane) of a (row, time) matrix; lanes that do not exist are 0.
inline void gather(float* tile, const float* data, const View& v, int lanes, int steps) {
    if (v.row == 1 && lanes == kLanes) {
        for (int t = 0; t < steps; ++t)
            for (int lane = 0; lane < kLanes; lane += kWidth)
                store(tile + t * kLanes + lane, load(data + t * v.time + lane));
        return;
    }
    for (int t = 0; t < steps; ++t)
        for (int lane = 0; lane < kLanes; ++lane)
            tile[t * kLanes + lane] = lane < lanes ? data[lane * v.row + t * v.time] : 0.0f;
}

inline void scatter(const float* tile, float* data, const View& v, int lanes, int steps) {
    if (v.row == 1 && lanes == kLanes) {
        for (int t = 0; t < steps; ++t)
            for (int lane = 0; lane < kLanes; lane += kWidth)
                store(data + t * v.time + lane, load(tile + t * kLanes + lane));
        return;
    }
    for (int t = 0; t < steps; ++t)
        for (int lane = 0; lane < lanes; ++lane) data[lane * v.row + t * v.time] = tile[t * kLanes + lane];
}

// Tile (step, state) of N states of B or C.
template <int N>
inline void pack(float* tile, const float* data, const View& v, int steps) {
    if (v.row == 1) {
        for (int t = 0; t < steps; ++t) memcpy(tile + t * N, data + t * v.time, N * sizeof(float));
        return;
    }
    for (int n = 0; n < N; ++n)
        for (int t = 0; t < steps; ++t) tile[t * N + n] = data[n * v.row + t * v.time];
}

template <int N>
inline void unpack(const float* tile, float* data, const View& v, int steps) {
    if (v.row == 1) {
        for (int t = 0; t < steps; ++t) memcpy(data + t * v.time, tile + t * N, N * sizeof(float));
        return;
    }
    for (int n = 0; n < N; ++n)
        for (int t = 0; t < steps; ++t) data[n * v.row + t * v.time] = tile[t * N + n];
}

// Memory of a thread, cut into pieces.
class Scratch {
  public:
    explicit Scratch(float* memory) : memory_(memory) {}
    float* take(int64_t floats) {
        float* piece = memory_;
        memory_ += floats;
        return piece;
    }

  private:
    float* memory_;
};

// A block of a strip and what stays with it from chunk to chunk.
struct Block {
    Block(const Scan& s, const Strip& strip, int64_t index, float* memory)
        : number(strip.first_block + index),
          batch(strip.batch),
          group(strip.group),
          first(number * kLanes),
          lanes(s.channels - first < kLanes ? int(s.channels - first) : kLanes) {
        Scratch scratch(memory + index * floats(s));
        for (float** rows : {&A, &h, &g, &grad_A}) *rows = scratch.take(s.state * kLanes);
        for (float** row : {&D, &delta_bias, &grad_D, &grad_delta_bias}) *row = scratch.take(kLanes);
    }
    static int64_t floats(const Scan& s) { return 4 * (s.state + 1) * kLanes; }

    // Before the first chunk. Lanes that do not exist get 0 everywhere, and then stay there.
    void start(const Scan& s) const {
        memset(A, 0, floats(s) * sizeof(float));
        const int64_t channel = group * s.channels + first;
        for (int lane = 0; lane < lanes; ++lane) {
            for (int64_t n = 0; n < s.state; ++n)
                A[n * kLanes + lane] = s.A[(channel + lane) * s.state + n] * kLog2E;
            if (s.D) D[lane] = s.D[channel + lane];
            if (s.delta_bias) delta_bias[lane] = s.delta_bias[channel + lane];
        }
    }

    // After the last one: the gradients of this sequence.
    void finish(const Scan& s) const {
        const int64_t channel = (batch * s.groups + group) * s.channels + first;
        for (int lane = 0; lane < lanes; ++lane) {
            for (int64_t n = 0; n < s.state; ++n)
                s.grad_A[(channel + lane) * s.state + n] = grad_A[n * kLanes + lane];
            s.grad_D[channel + lane] = grad_D[lane];
            s.grad_delta_bias[channel + lane] = grad_delta_bias[lane];
        }
    }

    float* at(const View& v, int64_t t) const {
        return v.data + batch * v.batch + group * v.group + first * v.row + t * v.time;
    }
    float* states(const Scan& s, int64_t chunk) const {
        const int64_t sequence = batch * s.groups + group;
        return s.states + ((sequence * s.chunks() + chunk) * s.blocks() + number) * s.state * kLanes;
    }

    int64_t number, batch, group, first;  // `first` channel within the group
    int lanes;
    float *A, *h, *g, *grad_A;  // (state, lane): A log2(e), the state, a_{t+1} g_{t+1}, its gradient
    float *D, *delta_bias, *grad_D, *grad_delta_bias;  // (lane)
};

// A chunk of all states of B, C or their gradients, block by block of states (see for_each_block).
struct StateTile {
    StateTile(const Scan& s, Scratch& scratch) : data(scratch.take(floats(s))) {}
    static int64_t floats(const Scan& s) { return kSteps * s.state; }

    float* states_from(int64_t n) const { return data + kSteps * n; }

    void read(const Scan& s, const Strip& strip, const View& v, int64_t t0, int steps) const {
        for_each_block(s.state, [&](auto size, int64_t n) {
            pack<decltype(size)::value>(states_from(n), at(strip, v, n, t0), v, steps);
        });
    }
    void write(const Scan& s, const Strip& strip, const View& v, int64_t t0, int steps) const {
        for_each_block(s.state, [&](auto size, int64_t n) {
            unpack<decltype(size)::value>(states_from(n), at(strip, v, n, t0), v, steps);
        });
    }

    float* data;

  private:
    static float* at(const Strip& strip, const View& v, int64_t n, int64_t t) {
        return v.data + strip.batch * v.batch + strip.group * v.group + n * v.row + t * v.time;
    }
};

// The chunk at hand: tiles (step, lane) of one block, and B and C.
struct Chunk {
    Chunk(const Scan& s, Scratch& scratch)
        : u(scratch.take(kTile)),
          delta(scratch.take(kTile)),
          x(scratch.take(kTile)),
          y(scratch.take(kTile)),
          z(scratch.take(kTile)),
          B(s, scratch),
          C(s, scratch) {}
    static int64_t floats(const Scan& s) { return 5 * kTile + 2 * StateTile::floats(s); }

    void start(const Scan& s, const Strip& strip, int64_t chunk) {
        t0 = chunk * kSteps;
        steps = s.length - t0 < kSteps ? int(s.length - t0) : kSteps;
        B.read(s, strip, s.B, t0, steps);
        C.read(s, strip, s.C, t0, steps);
    }

    // u, delta after bias and softplus, x = delta u, y = D u, z; and the softplus' derivative if asked for.
    void read(const Scan& s, const Block& block, float* derivative = nullptr) const {
        gather(u, block.at(s.u, t0), s.u, block.lanes, steps);
        gather(delta, block.at(s.delta, t0), s.delta, block.lanes, steps);
        if (s.z.data) gather(z, block.at(s.z, t0), s.z, block.lanes, steps);
        for (int i = 0; i < steps * kLanes; i += kWidth) {
            const int lane = i % kLanes;
            const Vec raw = load(delta + i) + load(block.delta_bias + lane);
            const Vec step = s.softplus ? softplus(raw) : raw;
            store(delta + i, step);
            store(x + i, step * load(u + i));
            store(y + i, load(block.D + lane) * load(u + i));
            if (derivative) store(derivative + i, s.softplus ? sigmoid(raw) : splat(1.0f));
        }
    }

    float *u, *delta, *x, *y, *z;
    StateTile B, C;
    int64_t t0;
    int steps;
};

template <int N>
inline void load_rows(Vec* rows, const float* p) {
    UNROLL for (int n = 0; n < N; ++n) rows[n] = load(p + n * kLanes);
}
template <int N>
inline void store_rows(const Vec* rows, float* p) {
    UNROLL for (int n = 0; n < N; ++n) store(p + n * kLanes, rows[n]);
}

// y += C.h over a chunk, for kWidth lanes from `lane` and N states from `first`.
template <int N>
inline void scan_chunk(const Chunk& in, const Block& block, int64_t first, int lane) {
    const float *A = block.A + first * kLanes + lane, *B = in.B.states_from(first), *C = in.C.states_from(first);
    Vec h[N];
    load_rows<N>(h, block.h + first * kLanes + lane);
    for (int t = 0; t < in.steps; ++t) {
        const int i = t * kLanes + lane;
        const Vec delta = load(in.delta + i), x = load(in.x + i);
        Vec y = load(in.y + i);
        UNROLL for (int n = 0; n < N; ++n) {
            const Power decay = power(delta, load(A + n * kLanes));
            const Vec scaled = decay.times(h[n]);
            h[n] = scaled * decay.fraction + (x * B[t * N + n] + scaled);
            y += h[n] * C[t * N + n];
        }
        store(in.y + i, y);
    }
    store_rows<N>(h, block.h + first * kLanes + lane);
}

void scan_forward(const Scan& s, const Strip& strip, float* memory) {
    Scratch scratch(memory);
    Chunk in(s, scratch);
    float* blocks = scratch.take(strip.blocks * Block::floats(s));
    for (int64_t b = 0; b < strip.blocks; ++b) Block(s, strip, b, blocks).start(s);

    for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
        in.start(s, strip, chunk);
        for (int64_t b = 0; b < strip.blocks; ++b) {
            const Block block(s, strip, b, blocks);
            if (s.states) memcpy(block.states(s, chunk), block.h, s.state * kLanes * sizeof(float));
            in.read(s, block);
            for_each_block(s.state, [&](auto size, int64_t n) {
                for (int lane = 0; lane < kLanes; lane += kWidth)
                    scan_chunk<decltype(size)::value>(in, block, n, lane);
            });
            if (s.z.data)
                for (int i = 0; i < in.steps * kLanes; i += kWidth)
                    store(in.y + i, load(in.y + i) * load(in.z + i) * sigmoid(load(in.z + i)));
            scatter(in.y, block.at(s.y, in.t0), s.y, block.lanes, in.steps);
        }
    }
}

// What backward needs beside the chunk.
struct Adjoint {
    Adjoint(const Scan& s, Scratch& scratch)
        : gy(scratch.take(kTile)),
          grad_x(scratch.take(kTile)),
          grad_log(scratch.take(kTile)),
          derivative(scratch.take(kTile)),
          loss(scratch.take(kSteps * kMaxBlock * kWidth)),
          kept(scratch.take(kSteps * kMaxBlock * kWidth)),
          grad_B(s, scratch),
          grad_C(s, scratch) {}
    static int64_t floats(const Scan& s) {
        return 4 * kTile + 2 * kSteps * kMaxBlock * kWidth + 2 * StateTile::floats(s);
    }

    float *gy, *grad_x, *grad_log, *derivative;  // (step, lane); grad_log: sum of A log2(e) grad (delta A)
    float *loss, *kept;  // (step, state of a block, lane of a vector): a_t - 1 and a_t h_{t-1}
    StateTile grad_B, grad_C;
};

// The states of a chunk once more, for grad C and, if there is a gate, y.
template <int N, bool WithY>
inline void recompute_chunk(const Chunk& in, const Block& block, const Adjoint& adjoint, int64_t first, int lane) {
    const float *A = block.A + first * kLanes + lane, *B = in.B.states_from(first), *C = in.C.states_from(first);
    float* grad_C = adjoint.grad_C.states_from(first);
    Vec h[N];
    load_rows<N>(h, block.h + first * kLanes + lane);
    for (int t = 0; t < in.steps; ++t) {
        const int i = t * kLanes + lane;
        const Vec delta = load(in.delta + i), x = load(in.x + i);
        Vec y = WithY ? load(in.y + i) : Vec{};
        Vec rows[N];
        UNROLL for (int n = 0; n < N; ++n) {
            const Power decay = power(delta, load(A + n * kLanes));
            const Vec scaled = decay.times(h[n]);
            const Vec kept = scaled * decay.fraction + scaled;
            store(adjoint.loss + (t * N + n) * kWidth, decay.minus_one());
            store(adjoint.kept + (t * N + n) * kWidth, kept);
            rows[n] = h[n] = kept + x * B[t * N + n];
            if (WithY) y += h[n] * C[t * N + n];
        }
        if (WithY) store(in.y + i, y);
        add_lane_sums<N>(rows, load(adjoint.gy + i), grad_C + t * N);
    }
}

template <int N>
inline void walk_back(const Chunk& in, const Block& block, const Adjoint& adjoint, int64_t first, int lane) {
    const float *A = block.A + first * kLanes + lane, *B = in.B.states_from(first), *C = in.C.states_from(first);
    float *grad_B = adjoint.grad_B.states_from(first), *grad_A = block.grad_A + first * kLanes + lane;
    Vec g[N], sum_A[N];
    load_rows<N>(g, block.g + first * kLanes + lane);
    UNROLL for (int n = 0; n < N; ++n) sum_A[n] = Vec{};
    for (int t = in.steps - 1; t >= 0; --t) {
        const int i = t * kLanes + lane;
        const Vec delta = load(in.delta + i), gy = load(adjoint.gy + i);
        Vec grad_x = load(adjoint.grad_x + i), grad_log = load(adjoint.grad_log + i);
        Vec rows[N];
        UNROLL for (int n = 0; n < N; ++n) {
            rows[n] = g[n] + gy * C[t * N + n];
            grad_x += rows[n] * B[t * N + n];
            const Vec grad = rows[n] * load(adjoint.kept + (t * N + n) * kWidth);
            g[n] = rows[n] * load(adjoint.loss + (t * N + n) * kWidth) + rows[n];
            grad_log += grad * load(A + n * kLanes);
            sum_A[n] += grad * delta;
        }
        store(adjoint.grad_x + i, grad_x);
        store(adjoint.grad_log + i, grad_log);
        add_lane_sums<N>(rows, load(in.x + i), grad_B + t * N);
    }
    store_rows<N>(g, block.g + first * kLanes + lane);
    // The sums of chunks are added up apart from those within one, for the rounding's sake.
    UNROLL for (int n = 0; n < N; ++n) store(grad_A + n * kLanes, load(grad_A + n * kLanes) + sum_A[n]);
}

void scan_backward(const Scan& s, const Strip& strip, float* memory, Turns& turns) {
    Scratch scratch(memory);
    Chunk in(s, scratch);
    const Adjoint adjoint(s, scratch);
    float* blocks = scratch.take(strip.blocks * Block::floats(s));
    for (int64_t b = 0; b < strip.blocks; ++b) Block(s, strip, b, blocks).start(s);

    for (int64_t chunk = s.chunks() - 1; chunk >= 0; --chunk) {
        in.start(s, strip, chunk);
        const int size = in.steps * kLanes;
        turns.wait(strip, chunk);
        adjoint.grad_B.read(s, strip, s.grad_B, in.t0, in.steps);
        adjoint.grad_C.read(s, strip, s.grad_C, in.t0, in.steps);

        for (int64_t b = 0; b < strip.blocks; ++b) {
            const Block block(s, strip, b, blocks);
            memcpy(block.h, block.states(s, chunk), s.state * kLanes * sizeof(float));
            in.read(s, block, adjoint.derivative);
            gather(adjoint.gy, block.at(s.grad_y, in.t0), s.grad_y, block.lanes, in.steps);
            if (s.z.data)  // from here on z holds grad_y times the derivative of the gate
                for (int i = 0; i < size; i += kWidth) {
                    const Vec z = load(in.z + i), grad_y = load(adjoint.gy + i), gate = sigmoid(z);
                    store(adjoint.gy + i, grad_y * z * gate);
                    store(in.z + i, grad_y * gate * (1.0f + z * (1.0f - gate)));
                }
            memset(adjoint.grad_x, 0, size * sizeof(float));
            memset(adjoint.grad_log, 0, size * sizeof(float));

            for_each_block(s.state, [&](auto state, int64_t n) {
                constexpr int N = decltype(state)::value;
                for (int lane = 0; lane < kLanes; lane += kWidth) {
                    if (s.z.data) recompute_chunk<N, true>(in, block, adjoint, n, lane);
                    else recompute_chunk<N, false>(in, block, adjoint, n, lane);
                    walk_back<N>(in, block, adjoint, n, lane);
                }
            });

            for (int lane = 0; lane < kLanes; lane += kWidth) {
                Vec sum_D{}, sum_delta{};
                const Vec D = load(block.D + lane);
                for (int i = lane; i < size; i += kLanes) {
                    const Vec u = load(in.u + i), grad_x = load(adjoint.grad_x + i), gy = load(adjoint.gy + i);
                    const Vec grad_delta =
                        (grad_x * u + load(adjoint.grad_log + i) * kLn2) * load(adjoint.derivative + i);
                    sum_D += gy * u;
                    sum_delta += grad_delta;
                    store(adjoint.grad_x + i, grad_x * load(in.delta + i) + gy * D);
                    store(adjoint.grad_log + i, grad_delta);
                }
                store(block.grad_D + lane, load(block.grad_D + lane) + sum_D);
                store(block.grad_delta_bias + lane, load(block.grad_delta_bias + lane) + sum_delta);
            }
            scatter(adjoint.grad_x, block.at(s.grad_u, in.t0), s.grad_u, block.lanes, in.steps);
            scatter(adjoint.grad_log, block.at(s.grad_delta, in.t0), s.grad_delta, block.lanes, in.steps);
            if (s.z.data) {
                for (int i = 0; i < size; i += kWidth) store(in.z + i, load(in.z + i) * load(in.y + i));
                scatter(in.z, block.at(s.grad_z, in.t0), s.grad_z, block.lanes, in.steps);
            }
        }
        adjoint.grad_B.write(s, strip, s.grad_B, in.t0, in.steps);
        adjoint.grad_C.write(s, strip, s.grad_C, in.t0, in.steps);
        turns.finish(strip, chunk);
    }
    for (int64_t b = 0; b < strip.blocks; ++b) Block(s, strip, b, blocks).finish(s);
}

int64_t scan_scratch_floats(const Scan& s, int64_t blocks) {
    return Chunk::floats(s) + Adjoint::floats(s) + blocks * Block::floats(s);
}

}  // namespace
