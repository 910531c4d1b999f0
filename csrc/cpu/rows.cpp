// Linear layers, norms, activations and rotary embedding: how their rows are cut and spread over threads.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "thread_pool.h"

namespace wcse::cpu {
namespace {

// Rows per task of a row-wise loop, so that a task is worth waking a thread for.
int64_t rows_per_task(int64_t elements_per_row, int64_t elements_per_task) {
    return std::max<int64_t>(1, elements_per_task / std::max<int64_t>(1, elements_per_row));
}

constexpr int64_t LIGHT = 65536;  // floats of a task that only adds and multiplies
constexpr int64_t HEAVY = 16384;  // of one that computes exponentials

constexpr int64_t ROW_BLOCK = 96, FEWEST_ROWS = 12, GROUP = BLOCK_PANELS * PANEL;

// Blocks of rows of a linear layer: cache-sized, and with few groups of columns enough for every thread to have some.
int64_t count_row_blocks(int64_t rows, int64_t groups) {
    const int64_t fewest = (rows + ROW_BLOCK - 1) / ROW_BLOCK, most = std::max(fewest, rows / FEWEST_ROWS);
    return std::clamp(4 * num_threads() / groups, fewest, most);
}

// Microseconds of a task of a linear layer: arithmetic or the stream of its weights, whichever is longer.
double task_cost(const LinearArgs& g, int64_t rows) {
    const double flops = 2.0 * GROUP * static_cast<double>(rows * g.k);
    return std::max(flops / 1e5, static_cast<double>(g.weight.block_bytes(g.k)) / 2.5e4);
}

float* quant_scratch(const LinearArgs& g) {
    if (g.weight.bits == 32) return nullptr;
    static thread_local Scratch scratch;
    constexpr size_t size = BLOCK_PANELS * K_BLOCK * PANEL;
    scratch.begin(Scratch::padded<float>(size));
    return scratch.take<float>(size);
}

}  // namespace

void linear(const LinearArgs& g, int64_t rows) {
    const Table& table = active();
    const int64_t panels = (g.n + PANEL - 1) / PANEL, groups = (panels + BLOCK_PANELS - 1) / BLOCK_PANELS;
    if (rows == 0) return;
    const int64_t row_blocks = count_row_blocks(rows, groups), tasks = groups * row_blocks;
    const int64_t block = (rows + row_blocks - 1) / row_blocks;
    const double cost = task_cost(g, block);
    int64_t chunk = std::min(static_cast<int64_t>(20 / cost) + 1, std::max<int64_t>(1, tasks / (4 * num_threads())));
    if (cost * static_cast<double>(tasks) < 30) chunk = tasks;  // waking the others would cost more
    // Row blocks of one group of columns are neighbours, so its weights are read from memory once.
    parallel_for(tasks, chunk, [&](int64_t begin, int64_t end) {
        float* const scratch = quant_scratch(g);
        while (begin < end) {
            const int64_t group = begin / row_blocks, first = begin % row_blocks;
            const int64_t last = std::min(row_blocks, first + end - begin);
            // Rounding up may leave the last block without rows.
            table.linear(g, std::min(rows, first * block), std::min(rows, last * block), group * BLOCK_PANELS,
                         std::min(panels, (group + 1) * BLOCK_PANELS), scratch);
            begin += last - first;
        }
    });
}

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
