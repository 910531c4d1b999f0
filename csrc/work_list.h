// A plan cut into work items for a GPU: a tile of consecutive rows times a flat list of pages.
//
// Rows are in depth-first order, so the nodes that a tile's rows see are the path above its first row and the nodes
// that begin inside it. Each page of these stands once in the tile's list, with the interval of rows that see it; long
// lists are split into chunks, whose partial results are merged. A pure function of the plan; knows no device.
#pragma once
#include <cstdint>
#include <vector>

#include "plan.h"

namespace wcse {

struct WorkOptions {
    int32_t tile_rows;    // rows of a tile, 1 to 128
    int32_t block_pages;  // pages that a kernel reads per loop step; lists are padded to a multiple
    int32_t items;        // wanted items: long lists are split to reach them
    int32_t least_pages;  // of a chunk, so that splitting does not cost more than it gives
    int32_t window;       // sliding window in tokens, 0 for none: pages outside every row's window are left out
    // Pages that each row's own node will grow into, `ahead_pages` a row, -1 for none: they follow its last page in
    // the list, with no valid token yet. Rows must be the last tokens of distinct leaves.
    const int32_t* ahead = nullptr;
    int32_t ahead_pages = 0;
};

struct WorkList {
    // Five a work item: first row, rows, entries [begin, end), first partial slot (-1: stores its result itself).
    // Longest first.
    std::vector<int32_t> items;
    // One a page of a tile's list. page: id | valid tokens << 27. rows: see pack_rows. pos: of the first token.
    std::vector<int32_t> page, rows, pos;
    // Three a row: first partial slot, slots from one chunk's partial to the next, chunks (0: nothing to merge).
    std::vector<int32_t> merge;
    std::vector<int32_t> tails;  // with `ahead`, one a row: the entry of its last token; its next pages follow it
    int32_t slots = 0;    // partial results in all
    int64_t entries = 0;  // pages of all lists, padding left out: what the kernel reads, per head
};

constexpr int32_t kMaxTileRows = 128;

// Row e of the tile sees token t of a page if lo <= e < hi and t < causal + e: lo | hi << 8 | (causal + 128) << 16.
int32_t pack_rows(int32_t lo, int32_t hi, int32_t causal);

// Throws std::invalid_argument that names the option.
WorkList make_work_list(const Plan& plan, const WorkOptions& options);

}  // namespace wcse
