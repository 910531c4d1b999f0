// What the KV tree and the laws that it is checked by share: how nodes are looked up and named, and how tokens fill pages.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kv_tree.h"

namespace wcse {

// A node is looked up by a hash of its first tokens; longer ones that agree so far are compared one by one.
// 64 is the length of a prompt block, so one of those has no false candidates.
constexpr size_t kKeyTokens = 64;

inline uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

inline uint64_t key_of_parent(int32_t parent) { return mix(static_cast<uint64_t>(parent)); }

inline uint64_t key_with(uint64_t key, int32_t token) { return mix(key ^ static_cast<uint32_t>(token)); }

inline size_t key_length(const std::vector<int32_t>& tokens) { return std::min(tokens.size(), kKeyTokens); }

inline uint64_t key_of(int32_t parent, const std::vector<int32_t>& tokens) {
    uint64_t key = key_of_parent(parent);
    for (size_t i = 0; i < key_length(tokens); i++) key = key_with(key, tokens[i]);
    return key;
}

inline int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

inline std::string node_name(int32_t id) { return "node " + std::to_string(id); }

}  // namespace wcse
