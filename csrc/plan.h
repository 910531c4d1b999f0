// The plan of one forward pass: which rows there are, in which order, and which pages each of them sees.
//
// A segment is the last n_new tokens of a node; its tokens are the rows. Nodes are walked depth-first, children
// in order of node id, so the rows at or below any node are one interval [lo, hi), and a kernel can read each
// page once for all of them. A pure function of the tree: plans hold no reference and go stale with the tree. When
// nothing changed but that every segment grew by a token, a plan is brought up to date instead of made anew.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kv_tree.h"

namespace wcse {

// One entry per tree node with tokens that some row sees, in depth-first order (parents first).
struct PlanNodes {
    std::vector<int32_t> lo, hi;                 // rows at or below the node
    std::vector<int32_t> page_begin, page_end;   // its pages: this range of Plan::pages
    std::vector<int32_t> length;                 // own tokens
    std::vector<int32_t> seen;                   // row r of [lo, hi) sees the first min(length, seen + r - lo)
    std::vector<int32_t> pos;                    // absolute position of the first own token
    size_t size() const { return lo.size(); }
};

struct Plan {
    std::vector<int32_t> order;      // segments, by index, in depth-first order
    std::vector<int32_t> row_start;  // first row of each segment, by index
    std::vector<int32_t> positions;  // absolute position of each row
    std::vector<int32_t> own;        // the entry of `nodes` of each segment, by index
    PlanNodes nodes;
    std::vector<int32_t> pages;
    int32_t n_rows() const { return static_cast<int32_t>(positions.size()); }
};

// Segments: the last n_new[s] >= 1 tokens of nodes[s]; the nodes are distinct.
// Throws std::invalid_argument that names the segment otherwise.
Plan make_plan(const KVTree& tree, const int32_t* nodes, const int32_t* n_new, size_t segments);

// The plan one token later: each segment is one row, the last token of a leaf, and its next token lies in slots[s].
// A node whose new token opens a page has its pages listed again at the end of `pages`; the old list stays, unused.
// Throws std::invalid_argument that names the segment otherwise, and leaves the plan as it was.
void advance_plan(Plan& plan, const int32_t* slots, size_t segments);

}  // namespace wcse
