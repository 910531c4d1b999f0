// Linear layers: how their outputs are cut into tasks and spread over threads, and where rounded inputs lie.
#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "thread_pool.h"

namespace wcse::cpu {
namespace {

constexpr int64_t ROW_BLOCK = 96, FEWEST_ROWS = 12;
constexpr int64_t ROUNDED_PER_TASK = 32768;  // inputs

// Blocks of rows: cache-sized, and with few groups of columns enough for every thread to have some.
int64_t count_row_blocks(int64_t rows, int64_t groups) {
    const int64_t fewest = (rows + ROW_BLOCK - 1) / ROW_BLOCK, most = std::max(fewest, rows / FEWEST_ROWS);
    return std::clamp(4 * num_threads() / groups, fewest, most);
}

// Microseconds of a task: arithmetic or the stream of its weights, whichever is longer.
double task_cost(const LinearArgs& g, int64_t rows) {
    const double operations = 2.0 * BLOCK_COLUMNS * static_cast<double>(rows * g.k);
    const double arithmetic = operations / (g.weight.integer ? 3e5 : 1e5);
    return std::max(arithmetic, static_cast<double>(g.weight.block_bytes(g.k)) / 2.5e4);
}

float* unpack_scratch() {
    static thread_local Scratch scratch;
    constexpr size_t size = BLOCK_PANELS * K_BLOCK * PANEL;
    scratch.begin(Scratch::padded<float>(size));
    return scratch.take<float>(size);
}

// The inputs as codes, in memory of the calling thread that its next call reuses.
RoundedRows round_inputs(const Table& table, const LinearArgs& g, int64_t rows) {
    static thread_local Scratch scratch;
    RoundedRows out{};
    out.group = g.weight.group;
    out.groups = (g.k + out.group - 1) / out.group;
    const size_t codes = static_cast<size_t>(rows * out.width()), groups = static_cast<size_t>(rows * out.groups);
    scratch.begin(Scratch::padded<int8_t>(codes) + Scratch::padded<float>(groups) + Scratch::padded<int32_t>(groups));
    out.codes = scratch.take<int8_t>(codes);
    out.scales = scratch.take<float>(groups);
    out.sums = scratch.take<int32_t>(groups);
    parallel_for(rows, std::max<int64_t>(1, ROUNDED_PER_TASK / g.k),
                 [&](int64_t begin, int64_t end) { table.round_rows(g.x, g.k, out, begin, end); });
    return out;
}

// body(first row, last row, first panel, last panel) over tasks that cover the outputs.
template <class Body>
void over_outputs(const LinearArgs& g, int64_t rows, const Body& body) {
    const int64_t panels = (g.n + PANEL - 1) / PANEL, groups = (panels + BLOCK_PANELS - 1) / BLOCK_PANELS;
    const int64_t row_blocks = count_row_blocks(rows, groups), tasks = groups * row_blocks;
    const int64_t block = (rows + row_blocks - 1) / row_blocks;
    const double cost = task_cost(g, block);
    int64_t chunk = std::min(static_cast<int64_t>(20 / cost) + 1, std::max<int64_t>(1, tasks / (4 * num_threads())));
    if (cost * static_cast<double>(tasks) < 30) chunk = tasks;  // waking the others would cost more
    // Row blocks of one group of columns are neighbours, so its weights are read from memory once.
    parallel_for(tasks, chunk, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t group = begin / row_blocks, first = begin % row_blocks;
            const int64_t last = std::min(row_blocks, first + end - begin);
            // Rounding up may leave the last block without rows.
            body(std::min(rows, first * block), std::min(rows, last * block), group * BLOCK_PANELS,
                 std::min(panels, (group + 1) * BLOCK_PANELS));
            begin += last - first;
        }
    });
}

}  // namespace

void linear(const LinearArgs& g, int64_t rows) {
    if (rows == 0) return;
    const Table& table = active();
    if (g.weight.integer) {
        const RoundedRows x = round_inputs(table, g, rows);
        return over_outputs(g, rows, [&](int64_t first, int64_t last, int64_t panel, int64_t end) {
            table.dot_linear(g, x, first, last, panel, end);
        });
    }
    over_outputs(g, rows, [&](int64_t first, int64_t last, int64_t panel, int64_t end) {
        table.linear(g, first, last, panel, end, g.weight.bits == 32 ? nullptr : unpack_scratch());
    });
}

}  // namespace wcse::cpu
