// Vectors of NATIVE_WIDTH floats on the vector extensions of gcc and clang.
//
// Everything has internal linkage: a template or inline function of this file compiled for AVX-512 must never be the
// one that the linker keeps for a machine without it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE__)
#include <immintrin.h>
#endif

// The few operations that the vector extensions lack or that compilers do not find in them.
#if NATIVE_WIDTH == 16 && defined(__AVX512F__)
// gcc 12 warns about the forms without a mask.
#define SCALEF(x, y) _mm512_maskz_scalef_ps(0xffff, x, y)
#define MINPS(x, y) _mm512_maskz_min_ps(0xffff, x, y)
#define MAXPS(x, y) _mm512_maskz_max_ps(0xffff, x, y)
#elif NATIVE_WIDTH == 8 && defined(__AVX__)
#define MINPS _mm256_min_ps
#define MAXPS _mm256_max_ps
#elif NATIVE_WIDTH == 4 && defined(__SSE__)
#define MINPS _mm_min_ps
#define MAXPS _mm_max_ps
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

constexpr int kWidth = NATIVE_WIDTH;

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));
typedef float UnalignedVec __attribute__((vector_size(kWidth * 4), aligned(4)));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<UnalignedVec*>(p) = x; }
inline Vec splat(float x) { return x - Vec{}; }
// min and max return the first argument where it is NaN.
#ifdef MINPS
inline Vec min(Vec a, Vec b) { return MINPS(b, a); }
inline Vec max(Vec a, Vec b) { return MAXPS(b, a); }
#else
inline Vec min(Vec a, Vec b) { return b < a ? b : a; }
inline Vec max(Vec a, Vec b) { return a < b ? b : a; }
#endif

inline int64_t min(int64_t a, int64_t b) { return b < a ? b : a; }
inline Vec abs(Vec x) { return (Vec)((IntVec)x & 0x7fffffff); }

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

// 2^(x * y), so split that v 2^(x y) = w + w fraction with w = times(v). This keeps the full precision of slow decays:
// 2^(x y) itself, close to 1, would be rounded to 3e-8, and many equal steps add up equal errors.
//
// Measured against double precision: error at most 1.9e-7 of 2^(x y) (2.3 ulp) beside that of x * y in float; exactly 1
// at 0; 0 or a denormal number below 2^-126, 0 below 2^-150, infinite from 2^128 (without SCALEF from 2^127.5); NaN
// stays NaN. |x * y| must stay below 5e14.
struct Power {
    Vec whole, fraction;  // the power of two, or its exponent for SCALEF; 2^f - 1 for the rest f of the exponent

    Vec times(Vec v) const {
#ifdef SCALEF
        return SCALEF(v, whole);
#else
        return v * whole;
#endif
    }
    // The power less 1, to 6e-8 of the larger of itself and the power.
    Vec minus_one() const {
        const Vec scale = times(splat(1.0f));
        return scale * fraction + (scale - 1.0f);
    }
};

inline Power power(Vec x, Vec y) {
    constexpr float rounder = 0x1.8p23f;  // adding it rounds to an integer, in the last bits of the sum
#ifdef SCALEF
    // Bounds that only infinities need, of which the difference below would be NaN.
    const Vec product = min(max(x * y, splat(-160.0f)), splat(160.0f));
    const Vec whole = product + rounder - rounder;
    const Vec f = product - whole;
#else
    // At -127 the exponent field becomes 0, at 128 that of infinity, the fraction being 0 in both.
    const Vec product = min(max(x * y, splat(-127.0f)), splat(128.0f));
    const Vec shifted = product + rounder;
    const Vec f = product - (shifted - rounder);
    const Vec whole = (Vec)(((IntVec)shifted << 23) + (127 << 23));
#endif
    // (2^f - 1) / f, minimax for the relative error of 2^f on [-0.5, 0.5]
    Vec p = f * 0x1.5bba14p-10f + 0x1.3cea88p-7f;
    p = p * f + 0x1.c6b752p-5f;
    p = p * f + 0x1.ebf9bcp-3f;
    p = p * f + 0x1.62e42ap-1f;
    return {whole, p * f};
}

inline Vec exp(Vec x) {
    const Power p = power(x, splat(kLog2E));
    return p.times(1.0f + p.fraction);
}

// log(1 + e^x). Measured error at most (3 + |x| / 20) 1e-7 of itself.
inline Vec softplus(Vec x) {
    const Vec e = exp(-abs(x));
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

struct Gelu {
    Vec value, slope;  // x Phi(x) and its derivative Phi(x) + x phi(x), phi being the density of the distribution Phi
};

// Measured error of the value at most 3e-7 of |x|, of the slope at most 1.6e-7. The value is max(x, 0) - |x| T, in
// which nothing cancels, T being Phi(-|x|), with |x| T as at kGeluEnd beyond, 3e-8; the slope is u = T - |x| phi(x)
// where x is negative, else 1 - u.
inline Gelu gelu_and_slope(Vec x) {
    constexpr float kGeluEnd = 5.75f;
    const Vec t = min(abs(x), splat(kGeluEnd));
    // T = 2^-q: q is close to a parabola. Minimax for the absolute error of T.
    Vec q = t * -0x1.1c3580p-17f + 0x1.c42bf2p-15f;
    q = q * t + 0x1.b9b342p-12f;
    q = q * t - 0x1.e4437ap-8f;
    q = q * t + 0x1.afa546p-5f;
    q = q * t + 0x1.d62c3ep-2f;
    q = q * t + 0x1.26af34p+0f;
    q = q * t + 0x1.fffffcp-1f;
    const Power power_of_two = power(q, splat(-1.0f));
    const Vec tail = power_of_two.times(1.0f + power_of_two.fraction);
    const Vec u = tail - t * 0.3989422804f * exp(t * t * -0.5f);
    return {max(x, Vec{}) - t * tail, x < 0.0f ? u : 1.0f - u};
}

inline Vec gelu(Vec x) { return gelu_and_slope(x).value; }

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

}  // namespace
