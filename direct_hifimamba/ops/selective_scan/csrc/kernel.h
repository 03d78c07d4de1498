// The scan of one item, compiled once per instruction set.
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

using selective_scan::kLanes;
using selective_scan::kSteps;
using selective_scan::Scan;
using selective_scan::Turns;
using selective_scan::View;

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

struct Item {
    int64_t index, block, batch, group;
    int64_t first;  // channel of the group
    int64_t channel;  // `first` counted over all groups
    int lanes;

    Item(const Scan& s, int64_t item)
        : index(item),
          block(item / (s.batch * s.groups)),
          batch(item / s.groups % s.batch),
          group(item % s.groups),
          first(block * kLanes),
          channel(group * s.channels + first),
          lanes(s.channels - first < kLanes ? int(s.channels - first) : kLanes) {}

    float* at(const View& v, int64_t row, int64_t t) const {
        return v.data + batch * v.batch + group * v.group + row * v.row + t * v.time;
    }
};

// Tile (step, lane) of a (row, time) matrix; lanes that do not exist are 0.
inline void gather(float* tile, const float* data, const View& v, int lanes, int steps) {
    if (v.row == 1 && lanes == kLanes) {
        for (int t = 0; t < steps; ++t)
            for (int lane = 0; lane < kLanes; lane += kWidth) store(tile + t * kLanes + lane, load(data + t * v.time + lane));
        return;
    }
    int t = 0;
    if (v.time == 1) {
        for (; t + kWidth <= steps; t += kWidth)
            for (int lane = 0; lane < kLanes; lane += kWidth) {
                Vec rows[kWidth];
                UNROLL for (int r = 0; r < kWidth; ++r)
                    rows[r] = lane + r < lanes ? load(data + (lane + r) * v.row + t) : Vec{};
                transpose(rows);
                UNROLL for (int r = 0; r < kWidth; ++r) store(tile + (t + r) * kLanes + lane, rows[r]);
            }
    }
    for (; t < steps; ++t)
        for (int lane = 0; lane < kLanes; ++lane)
            tile[t * kLanes + lane] = lane < lanes ? data[lane * v.row + t * v.time] : 0.0f;
}

inline void scatter(const float* tile, float* data, const View& v, int lanes, int steps) {
    if (v.row == 1 && lanes == kLanes) {
        for (int t = 0; t < steps; ++t)
            for (int lane = 0; lane < kLanes; lane += kWidth) store(data + t * v.time + lane, load(tile + t * kLanes + lane));
        return;
    }
    int t = 0;
    if (v.time == 1) {
        for (; t + kWidth <= steps; t += kWidth)
            for (int lane = 0; lane < kLanes; lane += kWidth) {
                Vec rows[kWidth];
                UNROLL for (int r = 0; r < kWidth; ++r) rows[r] = load(tile + (t + r) * kLanes + lane);
                transpose(rows);
                for (int r = 0; r < kWidth && lane + r < lanes; ++r) store(data + (lane + r) * v.row + t, rows[r]);
            }
    }
    for (; t < steps; ++t)
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

// Adds the tile to N states of grad B or grad C.
template <int N>
inline void unpack(const float* tile, float* data, const View& v, int steps) {
    if (v.row == 1) {
        for (int t = 0; t < steps; ++t)
            UNROLL for (int n = 0; n < N; ++n) data[t * v.time + n] += tile[t * N + n];
        return;
    }
    for (int n = 0; n < N; ++n)
        for (int t = 0; t < steps; ++t) data[n * v.row + t * v.time] += tile[t * N + n];
}

// The lines of the chunk that comes next, fetched one of each tensor per step: rows are so far apart that the machine
// does not foresee them.
class Prefetch {
  public:
    void clear() { count_ = 0; }
    void add(const float* data, const View& v) {
        lines_[count_++] = v.row == 1 ? Lines{data, v.time, kLanes * v.time} : Lines{data, v.row, kLanes};
    }
    void step(int t) const {
        for (int i = 0; i < count_; ++i)
            __builtin_prefetch(lines_[i].data + t % kLanes * lines_[i].inner + t / kLanes * lines_[i].outer);
    }

  private:
    struct Lines {
        const float* data;
        int64_t inner, outer;  // strides of the first kLanes lines, and from there to the next kLanes
    };
    int count_ = 0;
    Lines lines_[7];
};

// One value per lane from a vector over all channels; lanes that do not exist are 0.
inline void gather_channels(float* out, const float* vector, const Item& item, int64_t stride = 1) {
    for (int lane = 0; lane < kLanes; ++lane)
        out[lane] = vector && lane < item.lanes ? vector[(item.channel + lane) * stride] : 0.0f;
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

// What forward and backward both need of an item and of the chunk at hand.
struct Inputs {
    Inputs(const Scan& s, const Item& item, Scratch& scratch)
        : scan(s),
          item(item),
          A(scratch.take(s.state * kLanes)),
          h(scratch.take(s.state * kLanes)),
          D(scratch.take(kLanes)),
          delta_bias(scratch.take(kLanes)),
          u(scratch.take(kTile)),
          delta(scratch.take(kTile)),
          x(scratch.take(kTile)),
          y(scratch.take(kTile)),
          B(scratch.take(kSteps * kMaxBlock)),
          C(scratch.take(kSteps * kMaxBlock)) {
        for (int64_t n = 0; n < s.state; ++n) {
            gather_channels(A + n * kLanes, s.A + n, item, s.state);
            for (int lane = 0; lane < kLanes; ++lane) A[n * kLanes + lane] *= kLog2E;
        }
        gather_channels(D, s.D, item);
        gather_channels(delta_bias, s.delta_bias, item);
    }
    static int64_t floats(const Scan& s) { return 2 * s.state * kLanes + 2 * kLanes + 4 * kTile + 2 * kSteps * kMaxBlock; }

    // Reads a chunk: u, delta after bias and softplus, x = delta u, y = D u; the softplus' derivative if asked for.
    void read(int64_t begin, float* derivative = nullptr) {
        t0 = begin;
        steps = scan.length - begin < kSteps ? int(scan.length - begin) : kSteps;
        gather(u, item.at(scan.u, item.first, t0), scan.u, item.lanes, steps);
        gather(delta, item.at(scan.delta, item.first, t0), scan.delta, item.lanes, steps);
        for (int i = 0; i < steps * kLanes; i += kWidth) {
            const int lane = i % kLanes;
            const Vec raw = load(delta + i) + load(delta_bias + lane);
            const Vec step = scan.softplus ? softplus(raw) : raw;
            store(delta + i, step);
            store(x + i, step * load(u + i));
            store(y + i, load(D + lane) * load(u + i));
            if (derivative) store(derivative + i, scan.softplus ? sigmoid(raw) : splat(1.0f));
        }
    }

    // A tensor (row, time) that the chunk at `begin` will touch.
    void expect(const View& v, int64_t begin) {
        if (v.data && begin >= 0 && begin < scan.length) next.add(item.at(v, item.first, begin), v);
    }

    const Scan& scan;
    const Item& item;
    Prefetch next;
    float *A, *h, *D, *delta_bias;  // (state, lane): A log2(e), and the state before the chunk; (lane)
    float *u, *delta, *x, *y;  // (step, lane)
    float *B, *C;  // (step, state of a block)
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

// y += C.h over a chunk, for kWidth lanes from `lane` and N states.
template <int N>
inline void scan_chunk(const Inputs& in, int lane, const float* A, float* state) {
    Vec h[N];
    load_rows<N>(h, state);
    for (int t = 0; t < in.steps; ++t) {
        const Vec delta = load(in.delta + t * kLanes + lane), x = load(in.x + t * kLanes + lane);
        Vec y = load(in.y + t * kLanes + lane);
        UNROLL for (int n = 0; n < N; ++n) {
            const Power decay = power(delta, load(A + n * kLanes));
            const Vec scaled = decay.times(h[n]);
            h[n] = scaled * decay.fraction + (x * in.B[t * N + n] + scaled);
            y += h[n] * in.C[t * N + n];
        }
        store(in.y + t * kLanes + lane, y);
        in.next.step(t);
    }
    store_rows<N>(h, state);
}

void forward(const Scan& s, int64_t index, float* memory) {
    const Item item(s, index);
    Scratch scratch(memory);
    Inputs in(s, item, scratch);
    float* z = scratch.take(kTile);
    const int64_t state_floats = s.state * kLanes;
    memset(in.h, 0, state_floats * sizeof(float));

    for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
        if (s.states) memcpy(s.states + (index * s.chunks() + chunk) * state_floats, in.h, state_floats * sizeof(float));
        in.read(chunk * kSteps);
        for (const View* v : {&s.u, &s.delta, &s.z, &s.y}) in.expect(*v, in.t0 + kSteps);
        for_each_block(s.state, [&](auto size, int64_t n) {
            constexpr int N = decltype(size)::value;
            pack<N>(in.B, item.at(s.B, n, in.t0), s.B, in.steps);
            pack<N>(in.C, item.at(s.C, n, in.t0), s.C, in.steps);
            for (int lane = 0; lane < kLanes; lane += kWidth) {
                scan_chunk<N>(in, lane, in.A + n * kLanes + lane, in.h + n * kLanes + lane);
                in.next.clear();
            }
        });
        if (s.z.data) {
            gather(z, item.at(s.z, item.first, in.t0), s.z, item.lanes, in.steps);
            for (int i = 0; i < in.steps * kLanes; i += kWidth)
                store(in.y + i, load(in.y + i) * load(z + i) * sigmoid(load(z + i)));
        }
        scatter(in.y, item.at(s.y, item.first, in.t0), s.y, item.lanes, in.steps);
    }
}

// What backward needs beyond the inputs.
struct Adjoint {
    Adjoint(const Scan& s, Scratch& scratch)
        : gy(scratch.take(kTile)),
          z(scratch.take(kTile)),
          grad_x(scratch.take(kTile)),
          grad_log(scratch.take(kTile)),
          derivative(scratch.take(kTile)),
          loss(scratch.take(kSteps * kMaxBlock * kWidth)),
          kept(scratch.take(kSteps * kMaxBlock * kWidth)),
          grad_B(scratch.take(kSteps * kMaxBlock)),
          grad_C(scratch.take(kSteps * kMaxBlock)),
          carry(scratch.take(s.state * kLanes)),
          grad_A(scratch.take(s.state * kLanes)),
          grad_D(scratch.take(kLanes)),
          grad_delta_bias(scratch.take(kLanes)) {
        memset(carry, 0, (2 * s.state + 2) * kLanes * sizeof(float));
    }
    static int64_t floats(const Scan& s) {
        return 5 * kTile + 2 * kSteps * kMaxBlock * (kWidth + 1) + 2 * s.state * kLanes + 2 * kLanes;
    }

    float *gy, *z, *grad_x, *grad_log, *derivative;  // (step, lane); grad_log: sum of A log2(e) grad(delta A)
    float *loss, *kept;  // (step, state of a block, lane of a vector): a_t - 1 and a_t h_{t-1}
    float *grad_B, *grad_C;  // (step, state of a block)
    float *carry, *grad_A;  // (state, lane): a_{t+1} g_{t+1}
    float *grad_D, *grad_delta_bias;  // (lane)
};

// The states of a chunk once more, for grad C and, if there is a gate, y.
template <int N, bool WithY>
inline void recompute_chunk(const Inputs& in, const Adjoint& adjoint, int lane, const float* A, const float* state) {
    Vec h[N];
    load_rows<N>(h, state);
    for (int t = 0; t < in.steps; ++t) {
        const Vec delta = load(in.delta + t * kLanes + lane), x = load(in.x + t * kLanes + lane);
        Vec y = WithY ? load(in.y + t * kLanes + lane) : Vec{};
        Vec rows[N];
        UNROLL for (int n = 0; n < N; ++n) {
            const Power decay = power(delta, load(A + n * kLanes));
            const Vec scaled = decay.times(h[n]);
            const Vec kept = scaled * decay.fraction + scaled;
            store(adjoint.loss + (t * N + n) * kWidth, decay.minus_one());
            store(adjoint.kept + (t * N + n) * kWidth, kept);
            rows[n] = h[n] = kept + x * in.B[t * N + n];
            if (WithY) y += h[n] * in.C[t * N + n];
        }
        if (WithY) store(in.y + t * kLanes + lane, y);
        add_lane_sums<N>(rows, load(adjoint.gy + t * kLanes + lane), adjoint.grad_C + t * N);
    }
}

template <int N>
inline void walk_back(const Inputs& in, const Adjoint& adjoint, int lane, const float* A, float* carry, float* grad_A) {
    Vec g[N], sum_A[N];
    load_rows<N>(g, carry);
    UNROLL for (int n = 0; n < N; ++n) sum_A[n] = Vec{};
    for (int t = in.steps - 1; t >= 0; --t) {
        const int i = t * kLanes + lane;
        const Vec delta = load(in.delta + i), gy = load(adjoint.gy + i);
        Vec grad_x = load(adjoint.grad_x + i), grad_log = load(adjoint.grad_log + i);
        Vec rows[N];
        UNROLL for (int n = 0; n < N; ++n) {
            rows[n] = g[n] + gy * in.C[t * N + n];
            grad_x += rows[n] * in.B[t * N + n];
            const Vec grad = rows[n] * load(adjoint.kept + (t * N + n) * kWidth);
            g[n] = rows[n] * load(adjoint.loss + (t * N + n) * kWidth) + rows[n];
            grad_log += grad * load(A + n * kLanes);
            sum_A[n] += grad * delta;
        }
        store(adjoint.grad_x + i, grad_x);
        store(adjoint.grad_log + i, grad_log);
        in.next.step(t);
        add_lane_sums<N>(rows, load(in.x + i), adjoint.grad_B + t * N);
    }
    store_rows<N>(g, carry);
    UNROLL for (int n = 0; n < N; ++n) store(grad_A + n * kLanes, load(grad_A + n * kLanes) + sum_A[n]);
}

void backward(const Scan& s, int64_t index, float* memory, Turns& turns) {
    const Item item(s, index);
    Scratch scratch(memory);
    Inputs in(s, item, scratch);
    const Adjoint adjoint(s, scratch);
    const int64_t state_floats = s.state * kLanes;

    for (int64_t chunk = s.chunks() - 1; chunk >= 0; --chunk) {
        memcpy(in.h, s.states + (index * s.chunks() + chunk) * state_floats, state_floats * sizeof(float));
        in.read(chunk * kSteps, adjoint.derivative);
        for (const View* v : {&s.u, &s.delta, &s.z, &s.grad_y, &s.grad_u, &s.grad_delta, &s.grad_z})
            in.expect(*v, in.t0 - kSteps);
        const int size = in.steps * kLanes;
        gather(adjoint.gy, item.at(s.grad_y, item.first, in.t0), s.grad_y, item.lanes, in.steps);
        if (s.z.data) {
            // From here on z holds grad_y times the derivative of the gate.
            gather(adjoint.z, item.at(s.z, item.first, in.t0), s.z, item.lanes, in.steps);
            for (int i = 0; i < size; i += kWidth) {
                const Vec z = load(adjoint.z + i), grad_y = load(adjoint.gy + i), sig = sigmoid(z);
                store(adjoint.gy + i, grad_y * z * sig);
                store(adjoint.z + i, grad_y * sig * (1.0f + z * (1.0f - sig)));
            }
        }
        memset(adjoint.grad_x, 0, 2 * kTile * sizeof(float));

        for_each_block(s.state, [&](auto block, int64_t n) {
            constexpr int N = decltype(block)::value;
            pack<N>(in.B, item.at(s.B, n, in.t0), s.B, in.steps);
            pack<N>(in.C, item.at(s.C, n, in.t0), s.C, in.steps);
            memset(adjoint.grad_B, 0, 2 * kSteps * kMaxBlock * sizeof(float));
            for (int lane = 0; lane < kLanes; lane += kWidth) {
                const int64_t first = n * kLanes + lane;
                if (s.z.data) recompute_chunk<N, true>(in, adjoint, lane, in.A + first, in.h + first);
                else recompute_chunk<N, false>(in, adjoint, lane, in.A + first, in.h + first);
                walk_back<N>(in, adjoint, lane, in.A + first, adjoint.carry + first, adjoint.grad_A + first);
                in.next.clear();
            }
            if (n == 0) turns.wait(index, chunk);
            unpack<N>(adjoint.grad_B, item.at(s.grad_B, n, in.t0), s.grad_B, in.steps);
            unpack<N>(adjoint.grad_C, item.at(s.grad_C, n, in.t0), s.grad_C, in.steps);
        });
        turns.finish(index, chunk);

        if (s.z.data) {
            for (int i = 0; i < size; i += kWidth) store(adjoint.z + i, load(adjoint.z + i) * load(in.y + i));
            scatter(adjoint.z, item.at(s.grad_z, item.first, in.t0), s.grad_z, item.lanes, in.steps);
        }
        for (int lane = 0; lane < kLanes; lane += kWidth) {
            Vec sum_D{}, sum_delta{};
            const Vec D = load(in.D + lane);
            for (int i = lane; i < size; i += kLanes) {
                const Vec u = load(in.u + i), grad_x = load(adjoint.grad_x + i), gy = load(adjoint.gy + i);
                const Vec grad_delta = (grad_x * u + load(adjoint.grad_log + i) * kLn2) * load(adjoint.derivative + i);
                sum_D += gy * u;
                sum_delta += grad_delta;
                store(in.delta + i, grad_x * load(in.delta + i) + gy * D);
                store(adjoint.grad_log + i, grad_delta);
            }
            store(adjoint.grad_D + lane, load(adjoint.grad_D + lane) + sum_D);
            store(adjoint.grad_delta_bias + lane, load(adjoint.grad_delta_bias + lane) + sum_delta);
        }
        scatter(in.delta, item.at(s.grad_u, item.first, in.t0), s.grad_u, item.lanes, in.steps);
        scatter(adjoint.grad_log, item.at(s.grad_delta, item.first, in.t0), s.grad_delta, item.lanes, in.steps);
    }

    const int64_t channel = item.batch * s.groups * s.channels + item.channel;
    for (int lane = 0; lane < item.lanes; ++lane) {
        for (int64_t n = 0; n < s.state; ++n)
            s.grad_A[(channel + lane) * s.state + n] = adjoint.grad_A[n * kLanes + lane];
        s.grad_D[channel + lane] = adjoint.grad_D[lane];
        s.grad_delta_bias[channel + lane] = adjoint.grad_delta_bias[lane];
    }
}

int64_t scratch_floats(const Scan& s) { return Inputs::floats(s) + Adjoint::floats(s); }

}  // namespace
