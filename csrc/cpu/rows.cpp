// Norms, activations and rotary embedding: how their rows are cut and spread over threads.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#include "thread_pool.h"

namespace wcse::cpu {
namespace {

// Rows per task of a row-wise loop, so that a task is worth waking a thread for.
int64_t rows_per_task(int64_t elements_per_row, int64_t elements_per_task) {
    return std::max<int64_t>(1, elements_per_task / std::max<int64_t>(1, elements_per_row));
}

constexpr int64_t LIGHT = 65536;  // floats of a task that only adds and multiplies
constexpr int64_t HEAVY = 16384;  // of one that computes exponentials

}  // namespace

void rms_norm(const NormArgs& g, int64_t rows) {
    const Table& table = active();
    parallel_for(rows, rows_per_task(g.width, LIGHT), [&](int64_t a, int64_t b) { table.rms_norm(g, a, b); });
}

void gated_act(const GatedArgs& g, int64_t rows) {
    const Table& table = active();
    parallel_for(rows, rows_per_task(g.width, HEAVY), [&](int64_t a, int64_t b) { table.gated_act(g, a, b); });
}

void rope(const RopeArgs& g, int64_t rows, int64_t n_positions, int64_t n_pages) {
    for (int64_t r = 0; r < rows; r++) {
        if (g.positions[r] < 0 || g.positions[r] >= n_positions)
            throw std::invalid_argument("positions[" + std::to_string(r) + "]=" + std::to_string(g.positions[r]) +
                                        " is outside the rotary table of " + std::to_string(n_positions));
        if (g.slots[r] < 0 || g.slots[r] >= n_pages * PAGE)
            throw std::invalid_argument("slots[" + std::to_string(r) + "]=" + std::to_string(g.slots[r]) +
                                        " is outside the pool of " + std::to_string(n_pages) + " pages");
    }
    const Table& table = active();
    const int64_t width = static_cast<int64_t>(g.n_heads + 2 * g.n_kv_heads) * g.d;
    parallel_for(rows, rows_per_task(width, HEAVY), [&](int64_t a, int64_t b) { table.rope(g, a, b); });
}

}  // namespace wcse::cpu
