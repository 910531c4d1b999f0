// Which table of kernels runs: the widest that the processor has, chosen once, or the one a test asks for.
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
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        tables.push_back(&avx512_table());
    if (avx2) tables.push_back(&avx2_table());
#endif
    tables.push_back(&portable_table());
    return tables;
}

std::atomic<const Table*>& current() {
    static std::atomic<const Table*> table{supported().front()};
    return table;
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

double fma_peak(double seconds) {
    const Table& table = active();
    using clock = std::chrono::steady_clock;
    std::atomic<double> total{0};
    const auto start = clock::now();
    const auto elapsed = [&] { return std::chrono::duration<double>(clock::now() - start).count(); };
    parallel_for(num_threads(), 1, [&](int64_t, int64_t) {
        double done = 0;
        while (elapsed() < seconds) done += table.fma_loop(10000);
        for (double old = total; !total.compare_exchange_weak(old, old + done);) {
        }
    });
    return total / elapsed();
}

}  // namespace wcse::cpu
