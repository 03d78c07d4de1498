// C interface of the kernels: choice of the instruction set, threads. Python loads it through ctypes.
#include <Python.h>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "kernels.h"

using native::Bottleneck;
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

constexpr int64_t kLine = 64 / sizeof(float);  // floats in a line of the cache

int64_t whole_lines(int64_t floats) { return (floats + kLine - 1) / kLine * kLine; }

// Floats without values, the first at the start of a line, so that vectors do not lie across two.
class Floats {
  public:
    explicit Floats(int64_t count) : memory_(new float[count + kLine]) {}
    float* data() const {
        return memory_.get() + kLine - reinterpret_cast<uintptr_t>(memory_.get()) / sizeof(float) % kLine;
    }

  private:
    std::unique_ptr<float[]> memory_;
};

// Calls work(task, scratch) for tasks 0, 1, ... in this order, on up to `threads` threads, each with `floats` of
// scratch.
template <typename Work>
void for_each(int64_t tasks, int64_t threads, int64_t floats, Work work) {
    floats = whole_lines(floats);
    threads = std::min(threads, tasks);
    const Floats memory(threads * floats);

    std::atomic<int64_t> next{0}, started{0};
    auto run = [&] {
        const int64_t thread = started.fetch_add(1);
        if (thread >= threads) return;
        [[maybe_unused]] const FlushDenormals flush;
        float* scratch = memory.data() + thread * floats;
        for (int64_t i; (i = next.fetch_add(1)) < tasks;) work(i, scratch);
    };
    on_threads(threads, run);
}

// Calls work(first, end, scratch) for the parts of a range, which are whole tiles but for the last one.
template <typename Work>
void for_each_part(int64_t size, int64_t tile, int64_t parts, int64_t threads, int64_t floats, Work work) {
    const int64_t tiles = (size + tile - 1) / tile;
    parts = std::min(parts, tiles);
    for_each(parts, threads, floats, [&](int64_t i, float* scratch) {
        work(i * tiles / parts * tile, std::min(size, (i + 1) * tiles / parts * tile), scratch);
    });
}

Floats packed(const Kernels& kernels, const float* weight, int64_t outputs, int64_t depth) {
    Floats result(kernels.packed_floats(outputs, depth));
    kernels.pack(weight, outputs, depth, result.data());
    return result;
}

// Mean and covariance of an image's pixels.
void input_moments(const Kernels& kernels, const Bottleneck& g, int64_t threads) {
    const int64_t pixels = g.height * g.width, channels = g.channels, floats = (channels + 1) * channels;
    // Of the pixels less the mean of some of them, so that little cancels. So many, a prime, lie in all columns.
    const int64_t samples = std::min<int64_t>(251, pixels);
    std::vector<float> shift(channels);
    for (int64_t i = 0; i < samples; ++i)
        for (int64_t n = 0; n < channels; ++n) shift[n] += g.x[i * pixels / samples * channels + n] / float(samples);

    // As many parts as the image asks for, whatever the number of threads: the bits are the same.
    const int64_t parts = std::clamp<int64_t>(pixels / 1024, 1, 16);
    std::vector<float> sums(parts * floats);
    for_each(parts, threads, kernels.moments_scratch_floats(channels), [&](int64_t part, float* scratch) {
        const int64_t first = part * pixels / parts, end = (part + 1) * pixels / parts;
        kernels.moments(g.x + first * channels, channels, end - first, shift.data(), &sums[part * floats], scratch);
    });
    std::vector<double> means(floats);
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t i = 0; i < floats; ++i) means[i] += sums[part * floats + i];
    for (double& mean : means) mean /= double(pixels);
    for (int64_t n = 0; n < channels; ++n) {
        g.input_mean[n] = shift[n] + means[n];
        for (int64_t k = 0; k < channels; ++k)
            g.input_covariance[n * channels + k] =
                means[(std::min(n, k) + 1) * channels + std::max(n, k)] - means[n] * means[k];
    }
}

// What normalises an image: v -> gain v + offset per channel.
struct Normalisation {
    std::vector<float> gain, offset;

    Normalisation(double mean, double deviation, const float* scale, const float* shift, int64_t channels)
        : gain(channels), offset(channels) {
        for (int64_t n = 0; n < channels; ++n) {
            gain[n] = scale[n] / float(deviation);
            offset[n] = shift[n] - gain[n] * float(mean);
        }
    }
};

// Mean of some values, and their standard deviation as a normalisation divides by it.
void finish_statistics(const std::vector<double>& means, double mean_variance, double* statistics) {
    double mean = 0, between = 0;
    for (const double value : means) mean += value / double(means.size());
    for (const double value : means) between += (value - mean) * (value - mean) / double(means.size());
    statistics[0] = mean;
    statistics[1] = std::sqrt(mean_variance + between + native::kEpsilon);
}

// The first normalisation, from the moments of the narrow input: W x is never made for it.
Normalisation expand_normalisation(const Kernels& kernels, const Bottleneck& g) {
    std::vector<double> means(g.inner);
    std::vector<float> scratch(kernels.variance_scratch_floats(g.channels));
    for (int64_t n = 0; n < g.inner; ++n) {
        // Several sums side by side do not wait for each other.
        double sums[native::kChannels] = {};
        for (int64_t k = 0; k < g.channels; k += native::kChannels)
            for (int64_t i = 0; i < native::kChannels; ++i)
                sums[i] += g.expand[n * g.channels + k + i] * g.input_mean[k + i];
        for (const double sum : sums) means[n] += sum;
    }
    const double sum = kernels.variance(g.expand, g.inner, g.channels, g.input_covariance, scratch.data());
    double statistics[2];
    finish_statistics(means, sum / double(g.inner), statistics);
    return {statistics[0], statistics[1], g.expand_scale, g.expand_offset, g.inner};
}

void bottleneck(const Kernels& kernels, const Bottleneck& g, int64_t threads) {
    const int64_t pixels = g.height * g.width;
    input_moments(kernels, g, threads);
    const Normalisation first = expand_normalisation(kernels, g);
    std::vector<float> folded(g.expand, g.expand + g.inner * g.channels);
    for (int64_t n = 0; n < g.inner; ++n)
        for (int64_t k = 0; k < g.channels; ++k) folded[n * g.channels + k] *= first.gain[n];

    const auto W = packed(kernels, folded.data(), g.inner, g.channels);
    std::vector<double> moments(2 * g.height);
    const Expand e{g.height,    g.width,     g.channels, g.inner, g.x, W.data(), first.offset.data(),
                   g.depthwise, g.convolved, moments.data()};
    // One part per thread: rows at the boundary of two parts are computed twice.
    for_each_part(g.height, 1, threads, threads, kernels.expand_scratch_floats(e),
                  [&](int64_t begin, int64_t end, float* scratch) { kernels.expand(e, begin, end, scratch); });

    std::vector<double> means(g.height);
    double squares = 0;
    for (int64_t y = 0; y < g.height; ++y) {
        means[y] = moments[2 * y];
        squares += moments[2 * y + 1];
    }
    finish_statistics(means, squares / double(pixels * g.inner), g.statistics);
    const Normalisation second(g.statistics[0], g.statistics[1], g.depthwise_scale, g.depthwise_offset, g.inner);

    const auto P = packed(kernels, g.project, g.channels, g.inner);
    const Project p{pixels,   g.channels,         g.inner,   g.x,        g.convolved, second.gain.data(),
                    second.offset.data(), P.data(), g.projected, g.y};
    for_each_part(pixels, kernels.tile, 8 * threads, threads, kernels.project_scratch_floats(p),
                  [&](int64_t begin, int64_t end, float* scratch) { kernels.project(p, begin, end, scratch); });
}

// Throws if an expert is to take pixels that do not exist.
template <typename Arguments>
void check_index(const Arguments& e) {
    for (int64_t i = 0; e.index && i < e.pixels; ++i)
        if (e.index[i] < 0 || e.index[i] >= e.all_pixels) throw std::out_of_range("index");
}

void experts(const Kernels& kernels, const Expert* first, int64_t threads) {
    std::vector<Expert> all;
    for (const Expert* e = first; e; e = e->next) {
        check_index(*e);
        if (e->pixels > 0) all.push_back(*e);
    }
    struct Weight {
        const float** data;
        int64_t outputs, depth, place;
    };
    std::vector<Weight> weights;
    int64_t floats = 0;
    const auto add = [&](const float** data, int64_t outputs, int64_t depth) {
        weights.push_back({data, outputs, depth, floats});
        floats += whole_lines(kernels.packed_floats(outputs, depth));
    };
    for (Expert& e : all) {
        add(&e.U, e.hidden, e.channels);
        add(&e.V, e.channels, e.hidden);
    }
    const Floats memory(floats);
    for_each(int64_t(weights.size()), threads, 0, [&](int64_t i, float*) {
        const Weight& w = weights[i];
        kernels.pack(*w.data, w.outputs, w.depth, memory.data() + w.place);
        *w.data = memory.data() + w.place;
    });
    for (const Expert& e : all)
        for_each_part(e.pixels, kernels.tile, 8 * threads, threads, kernels.expert_scratch_floats(e),
                      [&](int64_t begin, int64_t end, float* scratch) { kernels.expert(e, begin, end, scratch); });
}

// 0, or what went wrong: 1 if memory ran out, 2 if the caller's struct has not the size of ours, 3 if an index has rows
// that do not exist.
template <typename Arguments, typename Work>
int guard(const Arguments*, int64_t bytes, Work work) {
    if (bytes != sizeof(Arguments)) return 2;
    try {
        work();
    } catch (const std::bad_alloc&) {
        return 1;
    } catch (const std::out_of_range&) {
        return 3;
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

EXPORT int native_bottleneck(const Bottleneck* g, int64_t bytes, int instruction_set, int64_t threads) {
    return guard(g, bytes, [&] { bottleneck(*instruction_sets()[instruction_set].kernels, *g, threads); });
}

EXPORT int native_experts(const Expert* first, int64_t bytes, int instruction_set, int64_t threads) {
    return guard(first, bytes, [&] { experts(*instruction_sets()[instruction_set].kernels, first, threads); });
}

EXPORT int native_project_backward(const ProjectBackward* given, int64_t bytes, int instruction_set, int64_t threads) {
    const Kernels& kernels = *instruction_sets()[instruction_set].kernels;
    return guard(given, bytes, [&] {
        const auto Pt = packed(kernels, given->Pt, given->inner, given->channels);
        ProjectBackward p = *given;
        p.Pt = Pt.data();
        for_each(p.parts, threads, kernels.project_backward_scratch_floats(p),
                 [&](int64_t part, float* scratch) { kernels.project_backward(p, part, scratch); });
    });
}

EXPORT int native_expand_backward(const ExpandBackward* given, int64_t bytes, int instruction_set, int64_t threads) {
    const Kernels& kernels = *instruction_sets()[instruction_set].kernels;
    return guard(given, bytes, [&] {
        const auto W = packed(kernels, given->W, given->inner, given->channels);
        const auto Wt = packed(kernels, given->Wt, given->channels, given->inner);
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
        check_index(*given);
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
