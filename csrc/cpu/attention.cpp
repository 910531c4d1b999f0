// Tree attention: walks the plan's nodes depth-first for each task (a kv head and a tile of rows) and feeds every
// block of four pages to the rows at or below the node. Output, maximum and sum stay in place per row, so nothing is
// merged afterwards. Blocks are counted from each node's first page: which tokens share a block, and so every bit of
// a row's result, depends on the row's own path alone.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "thread_pool.h"

namespace wcse::cpu {
namespace {

constexpr float LOG2E = 1.44269504088896341f;

void check_plan(const Plan& plan, int64_t n_pages) {
    for (const int32_t page : plan.pages)
        if (page < 0 || page >= n_pages)
            throw std::invalid_argument("the plan reads page " + std::to_string(page) + "; the pool has " +
                                        std::to_string(n_pages));
}

// For every node of the plan the node above it, or -1.
std::vector<int32_t> parents(const PlanNodes& nodes) {
    std::vector<int32_t> above(nodes.size());
    for (int32_t i = 0; i < static_cast<int32_t>(nodes.size()); i++) {
        int32_t up = i - 1;
        while (up >= 0 && nodes.hi[up] <= nodes.lo[i]) up = above[up];
        above[i] = up;
    }
    return above;
}

class Task {
public:
    Task(const Plan& plan, const TreeAttention& g, const Table& table, int kv_head, int32_t begin, int32_t end)
        : plan_(plan), g_(g), table_(table), head_(kv_head), begin_(begin), end_(end), group_(g.n_heads / g.n_kv_heads) {
        const size_t rows = static_cast<size_t>(end - begin), packed = rows * group_, d = g.d;
        static thread_local Scratch scratch;
        scratch.begin(2 * Scratch::padded<float>(packed * d) + Scratch::padded<float>(packed) +
                      Scratch::padded<float>(packed * 16) + Scratch::padded<float>(ATTEND_ROWS * BLOCK) +
                      2 * Scratch::padded<int32_t>(rows));
        q_ = scratch.take<float>(packed * d);
        out_ = scratch.take<float>(packed * d);
        top_ = scratch.take<float>(packed);
        sum_ = scratch.take<float>(packed * 16);
        scores_ = scratch.take<float>(ATTEND_ROWS * BLOCK);
        first_ = scratch.take<int32_t>(rows);
        last_ = scratch.take<int32_t>(rows);
        std::fill_n(out_, packed * d, 0.f);
        std::fill_n(top_, packed, -1e30f);
        std::fill_n(sum_, packed * 16, 0.f);
    }

    void run(const std::vector<int32_t>& above) {
        const float factor = g_.softcap != 0.f ? g_.scale / g_.softcap : g_.scale * LOG2E;
        const size_t width = static_cast<size_t>(group_) * g_.d;
        for (int32_t r = begin_; r < end_; r++)
            table_.scale(q_ + (r - begin_) * width, g_.q + offset(r), factor, static_cast<int64_t>(width));
        const PlanNodes& nodes = plan_.nodes;
        // In depth-first order lo never falls: first the nodes above the first row, then those that begin in the tile.
        const auto next = std::upper_bound(nodes.lo.begin(), nodes.lo.end(), begin_) - nodes.lo.begin();
        std::vector<int32_t> path;
        for (int32_t i = static_cast<int32_t>(next) - 1; i >= 0; i = above[i])
            if (nodes.hi[i] > begin_) path.push_back(i);
        for (size_t i = path.size(); i-- > 0;) node(path[i]);
        for (size_t i = next; i < nodes.size() && nodes.lo[i] < end_; i++) node(i);
        for (int32_t r = begin_; r < end_; r++)
            table_.normalise(g_.out + offset(r), out_ + (r - begin_) * width,
                             sum_ + static_cast<size_t>(r - begin_) * group_ * 16, group_, g_.d);
    }

private:
    size_t offset(int32_t row) const {
        return (static_cast<size_t>(row) * g_.n_heads + static_cast<size_t>(head_) * group_) * g_.d;
    }

    void node(size_t i) {
        for (int32_t from = 0; from < plan_.nodes.length[i]; from += BLOCK) block(i, from);
    }

    void block(size_t i, int32_t from) {
        const PlanNodes& nodes = plan_.nodes;
        const int32_t tokens = std::min(BLOCK, nodes.length[i] - from), seen = nodes.seen[i] - from;
        const int32_t lo = nodes.lo[i];
        // The first of the node's rows that sees a token of this block.
        const int32_t begin = std::max({begin_, lo, seen < 1 ? lo + 1 - seen : lo}), end = std::min(end_, nodes.hi[i]);
        if (begin >= end) return;
        const bool causal = seen + (begin - lo) < tokens;
        if ((causal || g_.window) && !limits(begin, end, lo, seen, tokens, nodes.pos[i] + from)) return;
        const bool masked = masked_ || causal;
        AttendArgs a;
        const size_t stride = static_cast<size_t>(PAGE) * g_.d;
        for (int32_t j = 0; j * PAGE < tokens; j++) {
            const size_t page = plan_.pages[nodes.page_begin[i] + from / PAGE + j];
            const size_t at = (page * g_.n_kv_heads + head_) * stride;
            a.k[j] = g_.k_pages + at;
            a.v[j] = g_.v_pages + at;
        }
        const size_t packed = static_cast<size_t>(begin - begin_) * group_;
        a.tokens = tokens;
        a.first = masked ? first_ : nullptr;
        a.last = masked ? last_ : nullptr;
        a.q = q_ + packed * g_.d;
        a.out = out_ + packed * g_.d;
        a.top = top_ + packed;
        a.sum = sum_ + packed * 16;
        a.scores = scores_;
        a.rows = (end - begin) * group_;
        a.group = group_;
        a.d = g_.d;
        a.cap = g_.softcap * LOG2E;
        table_.attend(a);
    }

    // Fills first_ and last_ for the rows [begin, end); false if no row sees anything of the block.
    bool limits(int32_t begin, int32_t end, int32_t lo, int32_t seen, int32_t tokens, int32_t pos) {
        bool any = false;
        masked_ = false;
        for (int32_t r = begin; r < end; r++) {
            const int32_t last = std::min(tokens, seen + (r - lo));
            const int64_t oldest = g_.window ? plan_.positions[r] - g_.window + 1 - pos : 0;
            const int32_t first = static_cast<int32_t>(std::clamp<int64_t>(oldest, 0, tokens));
            first_[r - begin] = first;
            last_[r - begin] = last;
            any |= first < last;
            masked_ |= first > 0;
        }
        return any;
    }

    const Plan& plan_;
    const TreeAttention& g_;
    const Table& table_;
    const int head_;
    const int32_t begin_, end_;
    const int group_;
    float *q_, *out_, *top_, *sum_, *scores_;
    int32_t *first_, *last_;
    bool masked_ = false;  // a window hides part of the block that limits() looked at last
};

// Rows per tile: enough tasks to share out, but no fewer rows than keep the micro-kernels busy.
int32_t tile_rows(int64_t rows, int n_kv_heads, int group) {
    const int64_t fewest = (ATTEND_ROWS + group - 1) / group, most = std::max<int64_t>(fewest, 256 / group);
    const int64_t share = rows * n_kv_heads / (4 * num_threads());
    return static_cast<int32_t>(std::clamp(share, fewest, most));
}

double flops(const PlanNodes& nodes, const TreeAttention& g) {
    double pairs = 0;
    for (size_t i = 0; i < nodes.size(); i++)
        pairs += static_cast<double>(nodes.length[i]) * (nodes.hi[i] - nodes.lo[i]);
    return 4.0 * pairs * g.n_heads * g.d;
}

}  // namespace

void tree_attention(const Plan& plan, const TreeAttention& g) {
    check_plan(plan, g.n_pages);
    const int32_t rows = plan.n_rows();
    const int group = g.n_heads / g.n_kv_heads;
    const int32_t tile = tile_rows(rows, g.n_kv_heads, group), tiles = (rows + tile - 1) / tile;
    const std::vector<int32_t> above = parents(plan.nodes);
    const Table& table = active();
    const int64_t tasks = static_cast<int64_t>(tiles) * g.n_kv_heads;
    const int64_t chunk = flops(plan.nodes, g) < 3e6 ? tasks : 1;  // a small step is not worth waking a thread
    parallel_for(tasks, chunk, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) {
            // Later rows of a long prompt see more: they go first.
            const int32_t first = (tiles - 1 - static_cast<int32_t>(task / g.n_kv_heads)) * tile;
            Task(plan, g, table, static_cast<int>(task % g.n_kv_heads), first, std::min(rows, first + tile)).run(above);
        }
    });
}

}  // namespace wcse::cpu
