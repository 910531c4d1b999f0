// Which table of kernels runs: the widest that the processor has, chosen once, or the one a test asks for.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>

#include "cpu/kernels.h"
#include "thread_pool.h"

namespace wcse::cpu {
namespace {

std::vector<const Table*> supported() {
    std::vector<const Table*> tables;
#ifdef WCSE_X86
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#ifdef WCSE_AVX512_VNNI
    if (avx512 && __builtin_cpu_supports("avx512vnni")) tables.push_back(&avx512_vnni_table());
#endif
    if (avx512) tables.push_back(&avx512_table());
#ifdef WCSE_AVX_VNNI
    if (avx2 && __builtin_cpu_supports("avxvnni")) tables.push_back(&avx_vnni_table());
#endif
    if (avx2) tables.push_back(&avx2_table());
#endif
    tables.push_back(&portable_table());
    return tables;
}

std::atomic<const Table*>& current() {
    static std::atomic<const Table*> table{supported().front()};
    return table;
}

// Operations per second of a loop on every thread.
double peak(double (*loop)(int64_t), double seconds) {
    using clock = std::chrono::steady_clock;
    const auto since = [](clock::time_point t) { return std::chrono::duration<double>(clock::now() - t).count(); };
    std::atomic<double> total{0};
    const auto start = clock::now();
    parallel_for(num_threads(), 1, [&](int64_t begin, int64_t end) {
        double best = 0;  // of short runs: on a busy machine many are interrupted, but not all
        while (since(start) < seconds) {
            const auto t = clock::now();
            const double done = loop(10000);
            best = std::max(best, done / since(t));
        }
        const double sum = best * static_cast<double>(end - begin);
        for (double old = total; !total.compare_exchange_weak(old, old + sum);) {
        }
    });
    return total;
}

}  // namespace

const Table& active() { return *current().load(std::memory_order_relaxed); }

std::string isa() { return active().name; }

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Table* table : supported()) names.emplace_back(table->name);
    return names;
}

void set_isa(const std::string& name) {
    std::string known;
    for (const Table* table : supported()) {
        if (name == table->name) return current().store(table);
        known += std::string(known.empty() ? "" : ", ") + table->name;
    }
    throw std::invalid_argument("isa '" + name + "' does not run here; use one of: " + known);
}

double fma_peak(double seconds) { return peak(active().fma_loop, seconds); }

double dot_peak(double seconds) { return peak(active().dot_loop, seconds); }

}  // namespace wcse::cpu
