// Vectors of SELECTIVE_SCAN_WIDTH floats on the vector extensions of gcc and clang.
//
// Everything has internal linkage: a template or inline function of this file compiled for AVX-512 must never be the
// one that the linker keeps for a machine without it.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

constexpr int kWidth = SELECTIVE_SCAN_WIDTH;

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));
typedef float UnalignedVec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<UnalignedVec*>(p) = x; }
inline Vec splat(float x) { return x - Vec{}; }
inline Vec min(Vec a, Vec b) { return b < a ? b : a; }  // min and max return the first argument where it is NaN
inline Vec max(Vec a, Vec b) { return a < b ? b : a; }

template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
    using type = Lanes<I...>;
};
using AllLanes = MakeLanes<kWidth>::type;

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

// Lane j of the results, S being a power of two:   S in j   not in j
//   keep      b[j]     a[j]
//   cross     b[j-S]   a[j+S]
//   low       b[j-S]   a[j]
//   high      b[j]     a[j+S]
template <int S, int... I>
inline Vec keep(Vec a, Vec b, Lanes<I...>) {
    return SHUFFLE(a, b, (I & S ? I + kWidth : I)...);
}
template <int S, int... I>
inline Vec cross(Vec a, Vec b, Lanes<I...>) {
    return SHUFFLE(a, b, (I & S ? I - S + kWidth : I + S)...);
}
template <int S, int... I>
inline Vec low(Vec a, Vec b, Lanes<I...>) {
    return SHUFFLE(a, b, (I & S ? I - S + kWidth : I)...);
}
template <int S, int... I>
inline Vec high(Vec a, Vec b, Lanes<I...>) {
    return SHUFFLE(a, b, (I & S ? I + kWidth : I + S)...);
}

// Transposes the kWidth x kWidth matrix of the rows.
template <int S = kWidth / 2>
inline void transpose(Vec* rows) {
    UNROLL for (int r = 0; r < kWidth; ++r) {
        if (r & S) continue;
        const Vec a = rows[r], b = rows[r + S];
        rows[r] = low<S>(a, b, AllLanes{});
        rows[r + S] = high<S>(a, b, AllLanes{});
    }
    if constexpr (S > 1) transpose<S / 2>(rows);
}

template <int S>
inline void add_pairs(Vec* rows) {
    if constexpr (S > 0) {
        UNROLL for (int r = 0; r < S; ++r)
            rows[r] = keep<S>(rows[r], rows[r + S], AllLanes{}) + cross<S>(rows[r], rows[r + S], AllLanes{});
        add_pairs<S / 2>(rows);
    }
}

template <int S>
inline Vec fold(Vec x) {
    if constexpr (S < kWidth) return fold<2 * S>(x + cross<S>(x, x, AllLanes{}));
    return x;
}

// Adds sum(rows[r] * weight) over the lanes to out[r] for r in 0..N-1. Overwrites the rows.
template <int N>
inline void add_lane_sums(Vec* rows, Vec weight, float* out) {
    constexpr int M = N < kWidth ? N : kWidth;
    UNROLL for (int first = 0; first < N; first += M) {
        Vec* part = rows + first;
        if constexpr (M == 1) {
            part[0] *= weight;
        } else {
            constexpr int S = M / 2;
            const Vec crossed = cross<S>(weight, weight, AllLanes{});
            UNROLL for (int r = 0; r < S; ++r)
                part[r] = keep<S>(part[r], part[r + S], AllLanes{}) * weight +
                          cross<S>(part[r], part[r + S], AllLanes{}) * crossed;
            add_pairs<S / 2>(part);
        }
        const Vec sums = fold<M>(part[0]);
        UNROLL for (int r = 0; r < M; ++r) out[first + r] += sums[r];
    }
}

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147182f;

// 2^(x * y). Relative error below 2e-7 where the result is a normal number; smaller results are 0, larger ones infinite,
// NaN stays NaN. |x * y| must stay below 5e14.
inline Vec exp2_product(Vec x, Vec y) {
#ifdef __AVX512F__
    const Vec shifted = x * y + 0x1.8p23f;  // rounds to an integer in the last bits
    const Vec whole = shifted - 0x1.8p23f;
    const Vec f = x * y - whole;
#else
    // At -127 the exponent field becomes 0, at 128 that of infinity, the fraction being 0 in both.
    const Vec product = min(max(x * y, splat(-127.0f)), splat(128.0f));
    const Vec shifted = product + 0x1.8p23f;
    const Vec f = product - (shifted - 0x1.8p23f);
#endif
    // Minimax for the relative error on [-0.5, 0.5], exactly 1 at 0 so that states do not drift where the step is 0.
    Vec p = f * 0x1.5bba14p-10f + 0x1.3cea88p-7f;
    p = p * f + 0x1.c6b752p-5f;
    p = p * f + 0x1.ebf9bcp-3f;
    p = p * f + 0x1.62e42ap-1f;
    p = p * f + 1.0f;
#ifdef __AVX512F__
    return _mm512_maskz_scalef_ps(0xffff, p, whole);  // the plain form warns in gcc 12
#else
    return (Vec)((IntVec)p + ((IntVec)shifted << 23));
#endif
}

inline Vec exp(Vec x) { return exp2_product(x, splat(kLog2E)); }

// log(1 + e^x), to a few 1e-7 of itself.
inline Vec softplus(Vec x) {
    const Vec e = exp(-max(x, -x));
    // log(1 + e) / e, minimax for the relative error on [0, 1]
    Vec p = e * 0.005232661496847868f - 0.029505105689167976f;
    p = p * e + 0.07822573184967041f;
    p = p * e - 0.1366322636604309f;
    p = p * e + 0.19105997681617737f;
    p = p * e - 0.2484297901391983f;
    p = p * e + 0.3331909775733948f;
    p = p * e - 0.4999949336051941f;
    p = p * e + 0.9999999403953552f;
    return p * e + max(x, Vec{});
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

}  // namespace
