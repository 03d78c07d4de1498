// Nanoseconds of this machine for one exponential and for one multiply-add on a vector of floats, in registers alone,
// with as many independent ones as it takes to fill the pipelines. The vector's length is printed first.
#include <ctime>
#include <cstdio>

#include "simd.h"

template <typename Step>
static double nanoseconds(Step step) {
    constexpr int rounds = 20000, repetitions = 50;
    double best = 1e30;
    for (int r = 0; r < repetitions; ++r) {
        timespec begin, end;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
        for (int i = 0; i < rounds; ++i) step();
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
        const double spent = (end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec);
        if (spent / rounds < best) best = spent / rounds;
    }
    return best;
}

int main() {
    constexpr int independent = 12;
    Vec x[independent], sum[independent]{};
    for (int i = 0; i < independent; ++i) x[i] = splat(0.05f * i);
    const double add = nanoseconds([&] {
        UNROLL for (int i = 0; i < independent; ++i) sum[i] = sum[i] * x[i] + x[i];
    });
    const double exponential = nanoseconds([&] {
        UNROLL for (int i = 0; i < independent; ++i) x[i] = exp(-x[i]);
    });
    float used = 0;
    for (int i = 0; i < independent; ++i) used += sum[i][0] + x[i][0];
    printf("%d %g %g %g\n", kWidth, exponential / independent, add / independent, used);
}
