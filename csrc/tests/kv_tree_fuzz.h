// Tests of the KV tree that need to be fast or to see inside: a fuzzer against a naive model, and planted faults.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kv_tree.h"

namespace wcse {

struct FuzzReport {
    int64_t operations = 0, refused = 0, exhausted = 0, evicted_pages = 0, matched_tokens = 0, trees = 0;
};

// Random operations, misuse and exhaustion included, on trees of 1 to 64 pages. After every one the tree must
// equal a model made of plain vectors, and check() must pass. Throws std::runtime_error with the seed, the tree
// and the operation at the first difference.
FuzzReport fuzz_kv_tree(uint64_t seed, int64_t operations);

// Breaks one law of the tree, so that check() must throw. The tree is of no use afterwards.
struct KVTreeFaults {
    static std::vector<std::string> names();
    static void plant(KVTree& tree, const std::string& name, int32_t node);
};

}  // namespace wcse
