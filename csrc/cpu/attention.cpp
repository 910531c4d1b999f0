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
        : plan_(plan),
          g_(g),
          table_(table),
          head_(kv_head),
          begin_(begin),
          end_(end),
          group_(g.n_heads / g.n_kv_heads) {
        const size_t rows = static_cast<size_t>(end - begin), packed = rows * group_, d = g.d;
        static thread_local Scratch scratch;
        scratch.begin(2 * Scratch::padded<float>(packed * d) + Scratch::padded<float>(packed) +
                      Scratch::padded<float>(packed * 16) + Scratch::padded<float>(ATTEND_ROWS * BLOCK) +
                      2 * Scratch::padded<int32_t>(rows) +
                      (g.half ? 2 * Scratch::padded<float>(BLOCK * d) : 0));
        q_ = scratch.take<float>(packed * d);
        out_ = scratch.take<float>(packed * d);
        top_ = scratch.take<float>(packed);
        sum_ = scratch.take<float>(packed * 16);
        scores_ = scratch.take<float>(ATTEND_ROWS * BLOCK);
        first_ = scratch.take<int32_t>(rows);
        last_ = scratch.take<int32_t>(rows);
        if (g.half) {
            wide_k_ = scratch.take<float>(BLOCK * d);
            wide_v_ = scratch.take<float>(BLOCK * d);
        }
        std::fill_n(out_, packed * d, 0.f);
        std::fill_n(top_, packed, -1e30f);
        std::fill_n(sum_, packed * 16, 0.f);
    }

    void run(const std::vector<int32_t>& above) {
        const float factor = g_.softcap != 0.f ? g_.scale / g_.softcap : g_.scale * LOG2E;
        const size_t width = static_cast<size_t>(group_) * g_.d;
        for (int32_t r = begin_; r < end_; r++)
            table_.scale(q_ + (r - begin_) * width, g_.q + offset(r), factor, static_cast<int64_t>(width));
        list_blocks(above);
        const size_t count = blocks_.size();
        for (size_t i = 0; i < count; i++) block(blocks_[i], i + 1 < count ? &blocks_[i + 1] : nullptr);
        for (int32_t r = begin_; r < end_; r++)
            table_.normalise(g_.out + offset(r), out_ + (r - begin_) * width,
                             sum_ + static_cast<size_t>(r - begin_) * group_ * 16, group_, g_.d);
    }

private:
    size_t offset(int32_t row) const {
        return (static_cast<size_t>(row) * g_.n_heads + static_cast<size_t>(head_) * group_) * g_.d;
    }

    // At most BLOCK tokens of a node, from token `from`, for the rows [begin, end) that may see some of them.
    struct Block {
        int32_t node, from, begin, end;
    };

    int32_t tokens(const Block& b) const { return std::min(BLOCK, plan_.nodes.length[b.node] - b.from); }

    void list_blocks(const std::vector<int32_t>& above) {
        const PlanNodes& nodes = plan_.nodes;
        // In depth-first order lo never falls: first the nodes above the first row, then those that begin in the tile.
        const auto next = std::upper_bound(nodes.lo.begin(), nodes.lo.end(), begin_) - nodes.lo.begin();
        std::vector<int32_t> path;
        for (int32_t i = static_cast<int32_t>(next) - 1; i >= 0; i = above[i])
            if (nodes.hi[i] > begin_) path.push_back(i);
        for (size_t i = path.size(); i-- > 0;) list_node(path[i]);
        for (size_t i = next; i < nodes.size() && nodes.lo[i] < end_; i++) list_node(static_cast<int32_t>(i));
    }

    void list_node(int32_t i) {
        const PlanNodes& nodes = plan_.nodes;
        const int32_t lo = nodes.lo[i], end = std::min(end_, nodes.hi[i]);
        for (int32_t from = 0; from < nodes.length[i]; from += BLOCK) {
            const int32_t seen = nodes.seen[i] - from;  // a row of the node sees a token once seen + r - lo >= 1
            const int32_t begin = std::max({begin_, lo, lo + 1 - seen});
            if (begin < end) blocks_.push_back({i, from, begin, end});
        }
    }

    size_t page_size() const { return static_cast<size_t>(PAGE) * g_.d; }
    size_t page_bytes() const { return page_size() * (g_.half ? 2 : 4); }

    // Addresses of the block's pages; returns their number.
    int pages(const Block& b, const char** k, const char** v) const {
        const int count = (tokens(b) + PAGE - 1) / PAGE;
        for (int j = 0; j < count; j++) {
            const size_t page = plan_.pages[plan_.nodes.page_begin[b.node] + b.from / PAGE + j];
            const size_t at = page * static_cast<size_t>(g_.page_stride) * (g_.half ? 2 : 4) + static_cast<size_t>(head_) * page_bytes();
            k[j] = static_cast<const char*>(g_.k_pages) + at;
            v[j] = static_cast<const char*>(g_.v_pages) + at;
        }
        return count;
    }

    // The block's pages for the kernel: where they lie, or halves as floats.
    void read(const Block& b, AttendArgs& a) {
        const char *k[BLOCK_PAGES], *v[BLOCK_PAGES];
        const int count = pages(b, k, v);
        for (int j = 0; j < count; j++) {
            if (!g_.half) {
                a.k[j] = reinterpret_cast<const float*>(k[j]);
                a.v[j] = reinterpret_cast<const float*>(v[j]);
                continue;
            }
            float *const wide_k = wide_k_ + j * page_size(), *const wide_v = wide_v_ + j * page_size();
            table_.widen(wide_k, k[j], static_cast<int64_t>(page_size()));
            table_.widen(wide_v, v[j], static_cast<int64_t>(page_size()));
            a.k[j] = wide_k;
            a.v[j] = wide_v;
        }
    }

    void block(const Block& b, const Block* next) {
        const PlanNodes& nodes = plan_.nodes;
        const int32_t n = tokens(b), seen = nodes.seen[b.node] - b.from, lo = nodes.lo[b.node];
        bool masked = seen + (b.begin - lo) < n;
        if ((masked || g_.window) && !limits(b, lo, seen, n, nodes.pos[b.node] + b.from, masked)) return;
        AttendArgs a;
        read(b, a);
        a.page_bytes = static_cast<int64_t>(page_bytes());
        a.next_pages = next ? pages(*next, a.next_k, a.next_v) : 0;
        const size_t packed = static_cast<size_t>(b.begin - begin_) * group_;
        a.tokens = n;
        a.first = masked ? first_ : nullptr;
        a.last = masked ? last_ : nullptr;
        a.q = q_ + packed * g_.d;
        a.out = out_ + packed * g_.d;
        a.top = top_ + packed;
        a.sum = sum_ + packed * 16;
        a.scores = scores_;
        a.rows = (b.end - b.begin) * group_;
        a.group = group_;
        a.d = g_.d;
        a.cap = g_.softcap * LOG2E;
        table_.attend(a);
    }

    // Fills first_ and last_ for the rows of the block; sets masked if a window hides some of it; false if no row sees
    // anything of it.
    bool limits(const Block& b, int32_t lo, int32_t seen, int32_t n, int32_t pos, bool& masked) {
        bool any = false;
        for (int32_t r = b.begin; r < b.end; r++) {
            const int32_t last = std::min(n, seen + (r - lo));
            const int64_t oldest = g_.window ? plan_.positions[r] - g_.window + 1 - pos : 0;
            const int32_t first = static_cast<int32_t>(std::clamp<int64_t>(oldest, 0, n));
            first_[r - b.begin] = first;
            last_[r - b.begin] = last;
            any |= first < last;
            masked |= first > 0;
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
    float *wide_k_ = nullptr, *wide_v_ = nullptr;
    int32_t *first_, *last_;
    std::vector<Block> blocks_;
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
