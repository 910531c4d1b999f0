#include "plan.h"

#include <stdexcept>
#include <string>

namespace wcse {
namespace {

constexpr int32_t kNone = KVTree::kNone;

// The part of the tree above and at the segments, linked for a walk: one entry per node, entry 0 = super-root.
struct Branches {
    std::vector<int32_t> id, first_child, next_sibling, segment;
    size_t size() const { return id.size(); }
    int32_t add(int32_t node) {
        id.push_back(node);
        first_child.push_back(kNone);
        next_sibling.push_back(kNone);
        segment.push_back(kNone);
        return static_cast<int32_t>(id.size() - 1);
    }
};

[[noreturn]] void refuse(size_t segment, const std::string& rule) {
    throw std::invalid_argument("plan: segment " + std::to_string(segment) + ": " + rule);
}

Branches collect(const KVTree& tree, const int32_t* nodes, const int32_t* n_new, size_t segments) {
    Branches branches;
    std::vector<int32_t> entry(static_cast<size_t>(tree.id_limit()), kNone);  // of each node id
    entry[KVTree::kRoot] = branches.add(KVTree::kRoot);
    for (size_t s = 0; s < segments; s++) {
        if (!tree.alive(nodes[s])) refuse(s, "node " + std::to_string(nodes[s]) + " is dead or unknown");
        if (n_new[s] < 1 || n_new[s] > tree.length(nodes[s]))
            refuse(s, "n_new is " + std::to_string(n_new[s]) + ", must be between 1 and the node's length " +
                          std::to_string(tree.length(nodes[s])));
        for (int32_t id = nodes[s]; entry[static_cast<size_t>(id)] == kNone; id = tree.parent(id))
            entry[static_cast<size_t>(id)] = branches.add(id);
        int32_t& owner = branches.segment[static_cast<size_t>(entry[static_cast<size_t>(nodes[s])])];
        if (owner != kNone) refuse(s, "node " + std::to_string(nodes[s]) + " is a segment already");
        owner = static_cast<int32_t>(s);
    }
    // Pushed to the front in falling order of id, children end up in rising order.
    for (size_t id = entry.size() - 1; id > 0; id--) {
        if (entry[id] == kNone) continue;
        const size_t up = static_cast<size_t>(entry[static_cast<size_t>(tree.parent(static_cast<int32_t>(id)))]);
        branches.next_sibling[static_cast<size_t>(entry[id])] = branches.first_child[up];
        branches.first_child[up] = entry[id];
    }
    return branches;
}

}  // namespace

Plan make_plan(const KVTree& tree, const int32_t* nodes, const int32_t* n_new, size_t segments) {
    const Branches branches = collect(tree, nodes, n_new, segments);
    Plan plan;
    plan.row_start.resize(segments);
    plan.own.resize(segments);
    plan.order.reserve(segments);

    struct Open {
        int32_t branch, planned;  // planned: index in plan.nodes, kNone when the node has no tokens
    };
    std::vector<Open> path;  // from below the super-root to the node that is being walked
    const auto enter = [&](int32_t branch) {
        const int32_t id = branches.id[static_cast<size_t>(branch)];
        const int32_t segment = branches.segment[static_cast<size_t>(branch)];
        const int32_t length = tree.length(id), depth = tree.depth(id), row = plan.n_rows();
        const int32_t own = segment == kNone ? 0 : n_new[segment];
        path.push_back({branch, length == 0 ? kNone : static_cast<int32_t>(plan.nodes.size())});
        if (length == 0) return;
        const std::vector<int32_t>& pages = tree.pages(id);
        plan.nodes.lo.push_back(row);
        plan.nodes.hi.push_back(row);
        plan.nodes.page_begin.push_back(static_cast<int32_t>(plan.pages.size()));
        plan.pages.insert(plan.pages.end(), pages.begin(), pages.end());
        plan.nodes.page_end.push_back(static_cast<int32_t>(plan.pages.size()));
        plan.nodes.length.push_back(length);
        plan.nodes.seen.push_back(own == 0 ? length : length - own + 1);
        plan.nodes.pos.push_back(depth - length);
        if (segment == kNone) return;
        plan.order.push_back(segment);
        plan.row_start[static_cast<size_t>(segment)] = row;
        plan.own[static_cast<size_t>(segment)] = path.back().planned;
        for (int32_t position = depth - own; position < depth; position++) plan.positions.push_back(position);
    };

    int32_t next = branches.first_child[0];
    for (;;) {
        while (next != kNone) {
            enter(next);
            next = branches.first_child[static_cast<size_t>(next)];
        }
        if (path.empty()) break;
        const Open done = path.back();
        path.pop_back();
        if (done.planned != kNone) plan.nodes.hi[static_cast<size_t>(done.planned)] = plan.n_rows();
        next = branches.next_sibling[static_cast<size_t>(done.branch)];
    }
    return plan;
}

void advance_plan(Plan& plan, const int32_t* slots, size_t segments) {
    PlanNodes& nodes = plan.nodes;
    if (segments != plan.own.size())
        throw std::invalid_argument("plan: " + std::to_string(segments) + " slots for " +
                                    std::to_string(plan.own.size()) + " segments");
    for (size_t s = 0; s < segments; s++) {
        const size_t x = static_cast<size_t>(plan.own[s]);
        const int32_t length = nodes.length[x];
        if (nodes.hi[x] - nodes.lo[x] != 1 || nodes.seen[x] != length) refuse(s, "it is not one row of a leaf");
        if (slots[s] < 0 || slots[s] % kPageTokens != length % kPageTokens)
            refuse(s, "slot " + std::to_string(slots[s]) + " does not follow " + std::to_string(length) + " tokens");
    }
    for (size_t s = 0; s < segments; s++) {
        const size_t x = static_cast<size_t>(plan.own[s]);
        if (slots[s] % kPageTokens == 0) {
            const size_t begin = static_cast<size_t>(nodes.page_begin[x]), end = static_cast<size_t>(nodes.page_end[x]);
            nodes.page_begin[x] = static_cast<int32_t>(plan.pages.size());
            for (size_t i = begin; i < end; i++) plan.pages.push_back(int32_t{plan.pages[i]});
            plan.pages.push_back(slots[s] / kPageTokens);
            nodes.page_end[x] = static_cast<int32_t>(plan.pages.size());
        }
        nodes.length[x]++;
        nodes.seen[x]++;
        plan.positions[static_cast<size_t>(nodes.lo[x])]++;
    }
}

}  // namespace wcse
