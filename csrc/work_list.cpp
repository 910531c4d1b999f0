#include "work_list.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "kv_tree.h"

namespace wcse {
namespace {

constexpr int32_t kPage = kPageTokens;

void check(const char* name, int32_t value, int32_t least, int32_t most) {
    if (value < least || value > most)
        throw std::invalid_argument(std::string("work_list: ") + name + "=" + std::to_string(value) +
                                    "; expected a number from " + std::to_string(least) + " to " +
                                    std::to_string(most));
}

struct Tile {
    int32_t row, rows, begin, end;  // entries [begin, end) of the list
};

class Builder {
public:
    Builder(const Plan& plan, const WorkOptions& options) : plan_(plan), o_(options) {
        if (!o_.ahead) return;
        own_.assign(static_cast<size_t>(plan.n_rows()), -1);
        list_.tails.assign(static_cast<size_t>(plan.n_rows()), -1);
        // Depth-first: the last node that begins with a row is the row's own.
        for (size_t x = 0; x < plan.nodes.size(); x++)
            own_[static_cast<size_t>(plan.nodes.lo[x])] = static_cast<int32_t>(x);
    }

    WorkList build() {
        const int32_t rows = plan_.n_rows();
        std::vector<int32_t> open;  // nodes that reach into the tile: ancestors of its first row
        size_t next = 0;
        for (int32_t a = 0; a < rows; a += o_.tile_rows) {
            const int32_t b = std::min(a + o_.tile_rows, rows);
            open.erase(std::remove_if(open.begin(), open.end(), [&](int32_t node) { return hi(node) <= a; }),
                       open.end());
            for (; next < plan_.nodes.size() && plan_.nodes.lo[next] < b; next++)
                open.push_back(static_cast<int32_t>(next));
            const int32_t begin = static_cast<int32_t>(list_.page.size());
            for (const int32_t node : open) add_node(node, a, b);
            list_.entries += static_cast<int64_t>(list_.page.size()) - begin;
            // Padding is read, though nobody sees it: a page of the list, for others may hold another model's bytes,
            // which need not be finite numbers of this one's type.
            while ((list_.page.size() - static_cast<size_t>(begin)) % static_cast<size_t>(o_.block_pages))
                push(list_.page.back() & 0x07FFFFFF, 0, 0);
            tiles_.push_back({a, b - a, begin, static_cast<int32_t>(list_.page.size())});
        }
        split();
        return std::move(list_);
    }

private:
    int32_t hi(int32_t node) const { return plan_.nodes.hi[static_cast<size_t>(node)]; }

    void push(int32_t page, int32_t rows, int32_t pos) {
        list_.page.push_back(page);
        list_.rows.push_back(rows);
        list_.pos.push_back(pos);
    }

    void add_node(int32_t node, int32_t a, int32_t b) {
        const size_t x = static_cast<size_t>(node);
        const int32_t lo = plan_.nodes.lo[x], length = plan_.nodes.length[x], first = plan_.nodes.page_begin[x];
        const int32_t from = std::max(lo, a), to = std::min(plan_.nodes.hi[x], b);
        if (from >= to) return;
        const int32_t most = std::min(length, plan_.nodes.seen[x] + to - 1 - lo);  // that the last row sees
        const bool grows = o_.ahead && own_[static_cast<size_t>(lo)] == node;
        int32_t oldest = 0;  // position of the oldest token that any of the rows sees
        if (o_.window)
            oldest = *std::min_element(plan_.positions.begin() + from, plan_.positions.begin() + to) - o_.window + 1;
        for (int32_t token = 0, page = first; token < most; token += kPage, page++) {
            const int32_t valid = std::min(kPage, length - token), pos = plan_.nodes.pos[x] + token;
            if (pos + valid <= oldest) continue;
            if (grows) list_.tails[static_cast<size_t>(lo)] = static_cast<int32_t>(list_.page.size());
            // A page that grows is seen as far as it is valid.
            push(plan_.pages[static_cast<size_t>(page)] | static_cast<int32_t>(static_cast<uint32_t>(valid) << 27),
                 pack_rows(from - a, to - a, grows ? kMaxTileRows : plan_.nodes.seen[x] - token - lo + a), pos);
        }
        for (int32_t i = 0; grows && i < o_.ahead_pages; i++) {
            const int32_t page = o_.ahead[static_cast<size_t>(lo) * static_cast<size_t>(o_.ahead_pages) + i];
            const int32_t stored = plan_.nodes.page_end[x] - first;
            if (page >= 0)
                push(page, pack_rows(from - a, to - a, kMaxTileRows), plan_.nodes.pos[x] + (stored + i) * kPage);
        }
    }

    void split() {
        int64_t total = 0;
        for (const Tile& tile : tiles_) total += tile.end - tile.begin;
        const int64_t target = std::max<int64_t>(o_.least_pages, (total + o_.items - 1) / o_.items);
        list_.merge.assign(static_cast<size_t>(plan_.n_rows()) * 3, 0);
        for (const Tile& tile : tiles_) {
            const int32_t pages = tile.end - tile.begin, blocks = pages / o_.block_pages;
            const int32_t chunks = static_cast<int32_t>(
                std::clamp<int64_t>((pages + target / 2) / target, 1, std::max(1, blocks)));
            for (int32_t i = 0; i < chunks; i++) {
                const int32_t begin = static_cast<int32_t>(static_cast<int64_t>(blocks) * i / chunks);
                const int32_t end = static_cast<int32_t>(static_cast<int64_t>(blocks) * (i + 1) / chunks);
                const int32_t slot = chunks == 1 ? -1 : list_.slots + i * tile.rows;
                items_.push_back({tile.row, tile.rows, tile.begin + begin * o_.block_pages,
                                  tile.begin + end * o_.block_pages, slot});
            }
            if (chunks == 1) continue;
            for (int32_t r = 0; r < tile.rows; r++) {
                int32_t* merge = list_.merge.data() + static_cast<size_t>(tile.row + r) * 3;
                merge[0] = list_.slots + r;
                merge[1] = tile.rows;
                merge[2] = chunks;
            }
            list_.slots += chunks * tile.rows;
        }
        std::stable_sort(items_.begin(), items_.end(),
                         [](const Item& x, const Item& y) { return x.end - x.begin > y.end - y.begin; });
        for (const Item& item : items_)
            list_.items.insert(list_.items.end(), {item.row, item.rows, item.begin, item.end, item.slot});
    }

    struct Item {
        int32_t row, rows, begin, end, slot;
    };

    const Plan& plan_;
    const WorkOptions o_;
    std::vector<int32_t> own_;  // with o_.ahead, by row: the node whose last token it is
    WorkList list_;
    std::vector<Tile> tiles_;
    std::vector<Item> items_;
};

}  // namespace

int32_t pack_rows(int32_t lo, int32_t hi, int32_t causal) {
    return lo | hi << 8 | (std::clamp(causal, -kMaxTileRows, kMaxTileRows - 1) + kMaxTileRows) << 16;
}

WorkList make_work_list(const Plan& plan, const WorkOptions& options) {
    check("tile_rows", options.tile_rows, 1, kMaxTileRows);
    check("block_pages", options.block_pages, 1, 64);
    check("items", options.items, 1, 1 << 20);
    check("least_pages", options.least_pages, 1, 1 << 20);
    check("window", options.window, 0, 1 << 30);
    for (const int32_t page : plan.pages)
        if (page >= 1 << 27) throw std::invalid_argument("work_list: page " + std::to_string(page) + " needs over 27 bits");
    return Builder(plan, options).build();
}

}  // namespace wcse
