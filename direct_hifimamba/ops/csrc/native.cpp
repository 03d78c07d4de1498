// C interface of the scan: choice of the instruction set, threads. Python loads it through ctypes.
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "scan.h"

using selective_scan::Kernel;
using selective_scan::Scan;
using selective_scan::Strip;
using selective_scan::Turns;

namespace {

struct InstructionSet {
    const char* name;
    const Kernel* kernel;
};

// Those that run on this machine, fastest first.
const std::vector<InstructionSet>& instruction_sets() {
    static const std::vector<InstructionSet> sets = [] {
        std::vector<InstructionSet> found;
#ifdef SELECTIVE_SCAN_X86
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
            found.push_back({"avx512", &selective_scan::kAvx512});
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            found.push_back({"avx2", &selective_scan::kAvx2});
#endif
        found.push_back({"portable", &selective_scan::kPortable});
        return found;
    }();
    return sets;
}

// Flushes denormal numbers to 0 while it lives: a state that dies away would otherwise make every step 50 times slower.
class FlushDenormals {
  public:
#if defined(__SSE__)
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#elif defined(__aarch64__)
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" ::"r"(saved_ | (uint64_t{1} << 24)));
    }
    ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

  private:
    uint64_t saved_;
#endif
};

// The strips of all groups of all sequences. Neighbouring strips belong to different groups where there are several.
class Strips {
  public:
    // As few strips as keep all threads equally busy.
    Strips(const Scan& s, int64_t threads) : scan_(s), groups_(s.batch * s.groups), per_group_(1) {
        while (per_group_ < s.blocks() && count() % threads != 0 && count() < 4 * threads) ++per_group_;
    }
    int64_t count() const { return groups_ * per_group_; }
    int64_t most_blocks() const { return (scan_.blocks() + per_group_ - 1) / per_group_; }

    Strip operator[](int64_t index) const {
        const int64_t place = index / groups_;
        const int64_t begin = place * scan_.blocks() / per_group_, end = (place + 1) * scan_.blocks() / per_group_;
        return {index, index % groups_ / scan_.groups, index % scan_.groups, begin, end - begin};
    }
    // The strip of the same group that comes before, negative for the first one.
    int64_t before(int64_t index) const { return index - groups_; }

  private:
    const Scan& scan_;
    int64_t groups_, per_group_;
};

// For every strip the chunk that it finished last, counting down. Strips are started in order and wait only for one
// that was started before, so whatever the number of threads somebody can go on.
class BackwardTurns final : public Turns {
  public:
    BackwardTurns(const Scan& s, const Strips& strips) : strips_(strips), finished_(strips.count()) {
        for (auto& strip : finished_) strip.chunk.store(s.chunks(), std::memory_order_relaxed);
    }
    void wait(const Strip& strip, int64_t chunk) override {
        const int64_t before = strips_.before(strip.index);
        if (before < 0) return;
        while (finished_[before].chunk.load(std::memory_order_acquire) > chunk) std::this_thread::yield();
    }
    void finish(const Strip& strip, int64_t chunk) override {
        finished_[strip.index].chunk.store(chunk, std::memory_order_release);
    }

  private:
    struct alignas(64) Finished {
        std::atomic<int64_t> chunk;
    };
    const Strips& strips_;
    std::vector<Finished> finished_;
};

// Calls work(strip, scratch) for all strips. The threads end with the call, so a process may fork at any time.
template <typename Work>
void for_each_strip(const Scan& s, const Strips& strips, const Kernel& kernel, int64_t threads, Work work) {
    constexpr int64_t line = 64 / sizeof(float);
    const int64_t floats = (kernel.scratch_floats(s, strips.most_blocks()) + line - 1) / line * line;
    threads = std::min(threads, strips.count());
    const std::unique_ptr<float[]> memory(new float[threads * floats + line]);
    float* aligned = memory.get() + line - reinterpret_cast<uintptr_t>(memory.get()) / sizeof(float) % line;

    std::atomic<int64_t> next{0};
    const auto run = [&](int64_t thread) {
        [[maybe_unused]] const FlushDenormals flush;
        for (int64_t i; (i = next.fetch_add(1)) < strips.count();) work(strips[i], aligned + thread * floats);
    };
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
    } catch (const std::system_error&) {
        // The threads that could be started do the work.
    }
    run(0);
    for (auto& other : others) other.join();
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int selective_scan_lanes() { return selective_scan::kLanes; }
EXPORT int selective_scan_steps() { return selective_scan::kSteps; }

// Names of the instruction sets that run here, fastest first, between blanks. Below they go by their place in it.
EXPORT const char* selective_scan_instruction_sets() {
    static const std::string names = [] {
        std::string joined;
        for (const auto& set : instruction_sets()) joined += std::string(joined.empty() ? "" : " ") + set.name;
        return joined;
    }();
    return names.c_str();
}

// Both return 0, or 1 if memory ran out.
EXPORT int selective_scan_forward(const Scan* s, int instruction_set, int64_t threads) {
    const Kernel& kernel = *instruction_sets()[instruction_set].kernel;
    try {
        const Strips strips(*s, threads);
        for_each_strip(*s, strips, kernel, threads,
                       [&](const Strip& strip, float* scratch) { kernel.forward(*s, strip, scratch); });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

EXPORT int selective_scan_backward(const Scan* s, int instruction_set, int64_t threads) {
    const Kernel& kernel = *instruction_sets()[instruction_set].kernel;
    try {
        const Strips strips(*s, threads);
        BackwardTurns turns(*s, strips);
        for_each_strip(*s, strips, kernel, threads,
                       [&](const Strip& strip, float* scratch) { kernel.backward(*s, strip, scratch, turns); });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// An extension module only so that wheels carry it; there is nothing to import.
static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "_native", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module_definition); }
