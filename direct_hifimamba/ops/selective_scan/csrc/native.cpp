// C interface of the scan: choice of the instruction set, threads. Python loads it through ctypes.
#include <Python.h>

#include <atomic>
#include <cstdint>
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

// For every item the chunk that it finished last, counting down. An item never waits for one that starts after it, and
// items start in order, so whatever the number of threads somebody can go on.
class BackwardTurns final : public Turns {
  public:
    explicit BackwardTurns(const Scan& s)
        : chunks_(s.chunks()), before_(s.batch * s.groups), last_(new Counter[s.items()]) {
        for (int64_t i = 0; i < s.items(); ++i) last_[i].chunk.store(chunks_, std::memory_order_relaxed);
    }
    ~BackwardTurns() { delete[] last_; }
    BackwardTurns(const BackwardTurns&) = delete;
    BackwardTurns& operator=(const BackwardTurns&) = delete;

    void wait(int64_t item, int64_t chunk) override {
        if (item < before_) return;
        const auto& previous = last_[item - before_].chunk;
        while (previous.load(std::memory_order_acquire) > chunk) std::this_thread::yield();
    }
    void finish(int64_t item, int64_t chunk) override { last_[item].chunk.store(chunk, std::memory_order_release); }

  private:
    struct alignas(64) Counter {
        std::atomic<int64_t> chunk;
    };
    int64_t chunks_, before_;
    Counter* last_;
};

// Calls work(item, scratch) for all items, in order of their start. The threads end with the call, so a process may
// fork at any time.
template <typename Work>
void for_each_item(const Scan& s, const Kernel& kernel, int64_t threads, Work work) {
    constexpr int64_t kAlign = 64 / sizeof(float);
    const int64_t floats = (kernel.scratch_floats(s) + kAlign - 1) / kAlign * kAlign;
    if (threads > s.items()) threads = s.items();
    std::vector<float> memory(threads * floats + kAlign);
    float* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / sizeof(float);

    std::atomic<int64_t> next{0};
    const auto run = [&](int64_t thread) {
        const FlushDenormals flush;
        for (int64_t item; (item = next.fetch_add(1)) < s.items();) work(item, aligned + thread * floats);
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

// Names of the instruction sets that run here, fastest first, between blanks. Below they go by their place in this list.
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
        for_each_item(*s, kernel, threads, [&](int64_t item, float* scratch) { kernel.forward(*s, item, scratch); });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

EXPORT int selective_scan_backward(const Scan* s, int instruction_set, int64_t threads) {
    const Kernel& kernel = *instruction_sets()[instruction_set].kernel;
    try {
        BackwardTurns turns(*s);
        for_each_item(*s, kernel, threads,
                      [&](int64_t item, float* scratch) { kernel.backward(*s, item, scratch, turns); });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// An extension module only so that wheels carry it; there is nothing to import.
static PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module_definition); }
