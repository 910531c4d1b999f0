// The laws of the KV tree: check() recounts everything from scratch and names the one that is violated. It uses no count
// that the tree keeps but to compare it.
#include <stdexcept>
#include <string>
#include <vector>

#include "kv_tree.h"
#include "kv_tree_keys.h"

namespace wcse {
namespace {

[[noreturn]] void violated(const std::string& law) { throw std::logic_error("KVTree.check: " + law); }

}  // namespace

void KVTree::check() const {
    check_pages();
    check_links();
    check_states();
    check_lists();
    check_index();
}

void KVTree::check_pages() const {
    constexpr int32_t nobody = -2, is_free = -1;
    std::vector<int32_t> owner(static_cast<size_t>(total_), nobody);
    const auto name = [](int32_t who) { return who == is_free ? "the free list" : node_name(who); };
    const auto claim = [&](int32_t page, int32_t who) {
        if (page < 0 || page >= total_) violated("page " + std::to_string(page) + " of " + name(who) + " does not exist");
        int32_t& slot = owner[static_cast<size_t>(page)];
        if (slot != nobody)
            violated("page " + std::to_string(page) + " belongs to " + name(slot) + " and to " + name(who));
        slot = who;
    };
    int64_t lent = 0;
    for (int32_t page : free_) claim(page, is_free);
    for (int32_t page = 0; page < total_; page++)
        if (lent_[static_cast<size_t>(page)]) claim(page, is_free), lent++;
    if (lent != n_lent_) violated("count of lent pages is wrong");
    for (int32_t id = 0; id < id_limit(); id++)
        for (int32_t page : at(id).pages) claim(page, id);
    for (size_t page = 0; page < owner.size(); page++)
        if (owner[page] == nobody) violated("page " + std::to_string(page) + " is lost: nobody owns it");
}

void KVTree::check_links() const {
    std::vector<int32_t> children(nodes_.size(), 0), holds(nodes_.size(), 0);
    holds[kRoot] = 1;
    int64_t used = 0, tokens = 0;
    for (int32_t id = 0; id < id_limit(); id++) {
        const Node& node = at(id);
        const int64_t length = static_cast<int64_t>(node.tokens.size());
        if (!node.used) {
            if (length || !node.pages.empty() || node.refs) violated("dead " + node_name(id) + " is not empty");
            continue;
        }
        tokens += length;
        if (node.refs < 0) violated(node_name(id) + " has a negative reference count");
        if (static_cast<int64_t>(node.pages.size()) != pages_for(length))
            violated(node_name(id) + " has " + std::to_string(node.pages.size()) + " pages for " +
                     std::to_string(length) + " tokens");
        const bool in_flight = node.flight_from != kNone;
        if (in_flight && (node.flight_from < 0 || node.flight_from >= static_cast<int32_t>(node.pages.size())))
            violated(node_name(id) + " is in flight from a page that it does not have");
        if (!node.sealed && node.refs == 0 && !in_flight) violated("unsealed " + node_name(id) + " has no reference");
        holds[static_cast<size_t>(id)] += (node.refs > 0) + in_flight;
        if (id == kRoot) {
            if (length || node.depth || node.parent != kNone || !node.sealed) violated("the super-root is not empty");
            continue;
        }
        used++;
        if (node.parent < 0 || node.parent >= id_limit() || !at(node.parent).used)
            violated("parent of " + node_name(id) + " is dead");
        const Node& parent = at(node.parent);
        if (!parent.sealed) violated("parent of " + node_name(id) + " is not sealed");
        if (parent.depth + length != node.depth) violated("depth of " + node_name(id) + " is wrong");
        if (parent.holds == 0 && node.holds > 0) violated(node_name(id) + " is held and its parent is not");
        children[static_cast<size_t>(node.parent)]++;
        holds[static_cast<size_t>(node.parent)] += node.holds > 0;
    }
    for (int32_t id = 0; id < id_limit(); id++) {
        if (children[static_cast<size_t>(id)] != at(id).children) violated("child count of " + node_name(id) + " is wrong");
        if (holds[static_cast<size_t>(id)] != at(id).holds) violated("hold count of " + node_name(id) + " is wrong");
    }
    if (used != used_nodes_ || static_cast<int64_t>(free_ids_.size()) != id_limit() - 1 - used)
        violated("count of nodes is wrong");
    if (tokens != tokens_) violated("count of tokens is wrong");
}

void KVTree::check_states() const {
    std::vector<char> held(nodes_.size(), 0);  // from the references alone, not from the hold counts
    for (int32_t id = 0; id < id_limit(); id++)
        if (at(id).refs > 0 || at(id).flight_from != kNone)
            for (int32_t up = id; up != kNone && !held[static_cast<size_t>(up)]; up = at(up).parent)
                held[static_cast<size_t>(up)] = 1;
    int64_t cached = 0, pinned = 0, in_flight = 0;
    for (int32_t id = 0; id < id_limit(); id++) {
        const int64_t pages = static_cast<int64_t>(at(id).pages.size());
        const int64_t written = at(id).flight_from == kNone ? 0 : pages - at(id).flight_from;
        in_flight += written;
        (held[static_cast<size_t>(id)] ? pinned : cached) += pages - written;
    }
    if (cached != cached_) violated("count of cached pages is wrong");
    if (pinned != pinned_) violated("count of pinned pages is wrong");
    if (in_flight != in_flight_) violated("count of pages in flight is wrong");
    const int64_t free = total_ - used_pages();
    if (free + cached_ + pinned_ + in_flight_ != total_)
        violated("free " + std::to_string(free) + " + cached " + std::to_string(cached_) + " + pinned " +
                 std::to_string(pinned_) + " + in flight " + std::to_string(in_flight_) + " is not total " +
                 std::to_string(total_));
    if (peak_used_ < used_pages() || peak_used_ > total_) violated("peak of used pages is wrong");
}

void KVTree::check_lists() const {
    std::vector<char> seen(nodes_.size(), 0);
    int32_t before = kNone;
    for (int32_t id = oldest_; id != kNone; before = id, id = at(id).newer) {
        if (id < 0 || id >= id_limit() || seen[static_cast<size_t>(id)]) violated("list of cached nodes is broken");
        seen[static_cast<size_t>(id)] = 1;
        const Node& node = at(id);
        if (node.older != before) violated("list of cached nodes is broken at " + node_name(id));
        if (!node.used || !node.sealed || node.holds > 0) violated(node_name(id) + " is listed as cached and is not");
        if (node.dropped && node.children == 0) violated("dropped " + node_name(id) + " is cached without children");
        if (node.parent != kRoot && seen[static_cast<size_t>(node.parent)])
            violated(node_name(id) + " would be evicted after its parent");
    }
    if (newest_ != before) violated("list of cached nodes is broken at its end");
    for (int32_t id = 1; id < id_limit(); id++)
        if (at(id).used && at(id).holds == 0 && !seen[static_cast<size_t>(id)])
            violated("cached " + node_name(id) + " is not listed");
    size_t in_flight = 0;
    for (const Node& node : nodes_) in_flight += node.flight_from != kNone;
    for (int32_t id : flight_)
        if (at(id).flight_from == kNone) violated(node_name(id) + " is listed as in flight and is not");
    if (in_flight != flight_.size()) violated("list of nodes in flight is wrong");
}

void KVTree::check_index() const {
    size_t listed = 0, sealed = 0;
    for (const auto& [key, first] : index_) {
        int32_t before = kNone;
        for (int32_t id = first; id != kNone; before = id, id = at(id).twin_after) {
            if (id <= kRoot || id >= id_limit() || ++listed > nodes_.size()) violated("look-up index is broken");
            const Node& node = at(id);
            if (!node.used || !node.sealed) violated(node_name(id) + " can be looked up and is not sealed");
            if (node.twin_before != before) violated("look-up index is broken at " + node_name(id));
            if (node.key != key || key != key_of(node.parent, node.tokens))
                violated("look-up key of " + node_name(id) + " is wrong");
        }
    }
    for (int32_t id = 1; id < id_limit(); id++) sealed += at(id).used && at(id).sealed;
    if (listed != sealed) violated("a sealed node cannot be looked up");
}

}  // namespace wcse
