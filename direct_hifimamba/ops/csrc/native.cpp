// C interface of the kernels: choice of the instruction set, threads. Python loads it through ctypes.
#include <Python.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

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

#include "kernels.h"

using native::Expand;
using native::ExpandBackward;
using native::Expert;
using native::ExpertBackward;
using native::Kernels;
using native::Project;
using native::ProjectBackward;
using native::Scan;
using native::Strip;
using native::Turns;

namespace {

struct InstructionSet {
    const char* name;
    const Kernels* kernels;
};

// Those that run on this machine, fastest first.
const std::vector<InstructionSet>& instruction_sets() {
    static const std::vector<InstructionSet> sets = [] {
        std::vector<InstructionSet> found;
#ifdef NATIVE_X86
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
            found.push_back({"avx512", &native::kAvx512});
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            found.push_back({"avx2", &native::kAvx2});
#endif
        found.push_back({"portable", &native::kPortable});
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

const pid_t kLoadedBy = getpid();

// Calls `run` on several threads at once, this one among them, and waits for all.
//
// These are PyTorch's own where it uses GNU OpenMP (or what answers to its entry point, whose interface is fixed): they
// spin for a while after each of its operators, and other threads would share their cores with them. As many as PyTorch
// takes are called, since OpenMP ends those that a smaller team leaves out. A forked process has lost them without
// OpenMP knowing; there, as without OpenMP, `threads` are started that end with the call.
template <typename Run>
void on_threads(int64_t threads, Run& run) {
    using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
    static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    if (threads > 1 && parallel && getpid() == kLoadedBy) {
        parallel([](void* given) { (*static_cast<Run*>(given))(); }, &run, 0, 0);
        return;
    }
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back([&run] { run(); });
    } catch (const std::system_error&) {
        // The threads that could be started do the work.
    }
    run();
    for (auto& other : others) other.join();
}

// Calls work(task, scratch) for tasks 0, 1, ... in this order, on up to `threads` threads, each with `floats` of
// scratch.
template <typename Work>
void for_each(int64_t tasks, int64_t threads, int64_t floats, Work work) {
    constexpr int64_t line = 64 / sizeof(float);
    floats = (floats + line - 1) / line * line;
    threads = std::min(threads, tasks);
    const std::unique_ptr<float[]> memory(new float[threads * floats + line]);
    float* aligned = memory.get() + line - reinterpret_cast<uintptr_t>(memory.get()) / sizeof(float) % line;

    std::atomic<int64_t> next{0}, started{0};
    auto run = [&] {
        const int64_t thread = started.fetch_add(1);
        if (thread >= threads) return;
        [[maybe_unused]] const FlushDenormals flush;
        float* scratch = aligned + thread * floats;
        for (int64_t i; (i = next.fetch_add(1)) < tasks;) work(i, scratch);
    };
    on_threads(threads, run);
}

// Calls work(first, end, scratch) for the parts of a range.
template <typename Work>
void for_each_part(int64_t size, int64_t parts, int64_t threads, int64_t floats, Work work) {
    parts = std::max<int64_t>(1, std::min(parts, size));
    for_each(parts, threads, floats, [&](int64_t i, float* scratch) {
        work(i * size / parts, (i + 1) * size / parts, scratch);
    });
}

// Asks for large pages where memory is written first: faults of small ones cost as much as the arithmetic. Linux alone
// has them to ask for; a refusal changes nothing but time.
void prefer_large_pages([[maybe_unused]] const float* data, [[maybe_unused]] int64_t floats) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t size = uintptr_t{1} << 21;
    const auto address = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (address + size - 1) / size * size, end = (address + floats * sizeof(float)) / size * size;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

std::vector<float> packed(const Kernels& kernels, const float* weight, int64_t outputs, int64_t depth) {
    std::vector<float> result(kernels.packed_floats(outputs, depth));
    kernels.pack(weight, outputs, depth, result.data());
    return result;
}

// 0, 1 if memory ran out, or 2 if the caller's struct has not the size of ours.
template <typename Arguments, typename Work>
int guard(const Arguments*, int64_t bytes, Work work) {
    if (bytes != sizeof(Arguments)) return 2;
    try {
        work();
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int native_scan_lanes() { return native::kLanes; }
EXPORT int native_scan_steps() { return native::kSteps; }
EXPORT int native_channels() { return native::kChannels; }

// Names of the instruction sets that run here, fastest first, between blanks. Below they go by their place in it.
EXPORT const char* native_instruction_sets() {
    static const std::string names = [] {
        std::string joined;
        for (const auto& set : instruction_sets()) joined += std::string(joined.empty() ? "" : " ") + set.name;
        return joined;
    }();
    return names.c_str();
}

EXPORT int native_scan_forward(const Scan* s, int64_t bytes, int instruction_set, int64_t threads) {
    const Kernels& kernels = *instruction_sets()[instruction_set].kernels;
    return guard(s, bytes, [&] {
        const Strips strips(*s, threads);
        for_each(strips.count(), threads, kernels.scan_scratch_floats(*s, strips.most_blocks()),
                 [&](int64_t i, float* scratch) { kernels.scan_forward(*s, strips[i], scratch); });
    });
}

EXPORT int native_scan_backward(const Scan* s, int64_t bytes, int instruction_set, int64_t threads) {
    const Kernels& kernels = *instruction_sets()[instruction_set].kernels;
    return guard(s, bytes, [&] {
        const Strips strips(*s, threads);
        BackwardTurns turns(*s, strips);
        for_each(strips.count(), threads, kernels.scan_scratch_floats(*s, strips.most_blocks()),
                 [&](int64_t i, float* scratch) { kernels.scan_backward(*s, strips[i], scratch, turns); });
    });
}

EXPORT int native_expand(const Expand* given, int64_t bytes, int instruction_set, int64_t threads) {
    const Kernels& kernels = *instruction_sets()[instruction_set].kernels;
    return guard(given, bytes, [&] {
        const auto W = packed(kernels, given->W, given->wide, given->channels);
        Expand e = *given;
        e.W = W.data();
        prefer_large_pages(e.convolved, e.height * e.width * e.wide);
        // One part per thread: where parts meet, rows are made twice.
        for_each_part(e.height, threads, threads, kernels.expand_scratch_floats(e),
                      [&](int64_t first, int64_t end, float* scratch) { kernels.expand(e, first, end, scratch); });
    });
}

EXPORT int native_project(const Project* given, int64_t bytes, int instruction_set, int64_t threads) {
    const Kernels& kernels = *instruction_sets()[instruction_set].kernels;
    return guard(given, bytes, [&] {
        const auto P = packed(kernels, given->P, given->channels, given->wide);
        Project p = *given;
        p.P = P.data();
        prefer_large_pages(p.y, p.pixels * p.channels);
        for_each_part(p.pixels, 8 * threads, threads, kernels.project_scratch_floats(p),
                      [&](int64_t first, int64_t end, float* scratch) { kernels.project(p, first, end, scratch); });
    });
}

EXPORT int native_expert(const Expert* given, int64_t bytes, int instruction_set, int64_t threads) {
    const Kernels& kernels = *instruction_sets()[instruction_set].kernels;
    return guard(given, bytes, [&] {
        const auto U = packed(kernels, given->U, given->hidden, given->channels);
        const auto G = packed(kernels, given->G, given->G ? given->hidden : 0, given->channels);
        const auto V = packed(kernels, given->V, given->channels, given->hidden);
        Expert e = *given;
        e.U = U.data();
        if (given->G) e.G = G.data();
        e.V = V.data();
        for_each_part(e.pixels, 8 * threads, threads, kernels.expert_scratch_floats(e),
                      [&](int64_t first, int64_t end, float* scratch) { kernels.expert(e, first, end, scratch); });
    });
}

EXPORT int native_project_backward(const ProjectBackward* given, int64_t bytes, int instruction_set, int64_t threads) {
    const Kernels& kernels = *instruction_sets()[instruction_set].kernels;
    return guard(given, bytes, [&] {
        const auto Pt = packed(kernels, given->Pt, given->wide, given->channels);
        ProjectBackward p = *given;
        p.Pt = Pt.data();
        prefer_large_pages(p.grad_normalised, p.pixels * p.wide);
        for_each(p.parts, threads, kernels.project_backward_scratch_floats(p),
                 [&](int64_t part, float* scratch) { kernels.project_backward(p, part, scratch); });
    });
}

EXPORT int native_expand_backward(const ExpandBackward* given, int64_t bytes, int instruction_set, int64_t threads) {
    const Kernels& kernels = *instruction_sets()[instruction_set].kernels;
    return guard(given, bytes, [&] {
        const auto W = packed(kernels, given->W, given->wide, given->channels);
        const auto Wt = packed(kernels, given->Wt, given->channels, given->wide);
        ExpandBackward e = *given;
        e.W = W.data();
        e.Wt = Wt.data();
        for_each(e.parts, threads, kernels.expand_backward_scratch_floats(e),
                 [&](int64_t part, float* scratch) { kernels.expand_backward(e, part, scratch); });
    });
}

EXPORT int native_expert_backward(const ExpertBackward* given, int64_t bytes, int instruction_set, int64_t threads) {
    const Kernels& kernels = *instruction_sets()[instruction_set].kernels;
    return guard(given, bytes, [&] {
        const auto U = packed(kernels, given->U, given->hidden, given->channels);
        const auto Ut = packed(kernels, given->Ut, given->channels, given->hidden);
        const auto Vt = packed(kernels, given->Vt, given->hidden, given->channels);
        ExpertBackward e = *given;
        e.U = U.data();
        e.Ut = Ut.data();
        e.Vt = Vt.data();
        for_each(e.parts, threads, kernels.expert_backward_scratch_floats(e),
                 [&](int64_t part, float* scratch) { kernels.expert_backward(e, part, scratch); });
    });
}

// An extension module only so that wheels carry it; there is nothing to import.
static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "_native", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module_definition); }
