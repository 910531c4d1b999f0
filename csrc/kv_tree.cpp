#include "kv_tree.h"

#include <algorithm>
#include <limits>

#include "kv_tree_keys.h"

namespace wcse {
namespace {

[[noreturn]] void refuse(const char* operation, int32_t id, const std::string& rule) {
    throw std::invalid_argument(std::string(operation) + ": " + node_name(id) + " " + rule);
}

template <class T>
void grow(std::vector<T>& v, size_t n) {  // reserve() alone would grow by one each time
    if (v.capacity() < n) v.reserve(std::max(n, 2 * v.capacity()));
}

}  // namespace

KVTree::KVTree(int64_t num_pages, bool debug) : total_(num_pages), debug_(debug) {
    constexpr int64_t most = std::numeric_limits<int32_t>::max() / kPageTokens;  // slots are int32
    if (num_pages < 1 || num_pages > most)
        throw std::invalid_argument("KVTree: num_pages is " + std::to_string(num_pages) +
                                    ", must be between 1 and " + std::to_string(most));
    free_.resize(static_cast<size_t>(num_pages));
    for (size_t i = 0; i < free_.size(); i++) free_[i] = static_cast<int32_t>(free_.size() - 1 - i);
    lent_.resize(free_.size(), 0);
    nodes_.emplace_back();
    at(kRoot).used = at(kRoot).sealed = true;
    at(kRoot).holds = 1;
}

// ---------------------------------------------------------------------------------------------- operations

int32_t KVTree::fork(int32_t parent) {
    if (!need(parent, "fork").sealed) refuse("fork", parent, "is not sealed; seal it first");
    int32_t id;
    if (free_ids_.empty()) {
        if (nodes_.size() >= static_cast<size_t>(std::numeric_limits<int32_t>::max()))
            throw KVExhausted("fork: all node ids are in use");
        grow(free_ids_, nodes_.size() + 1);  // so that freeing never allocates
        nodes_.emplace_back();
        id = static_cast<int32_t>(nodes_.size() - 1);
    } else {
        id = free_ids_.back();
        free_ids_.pop_back();
    }
    Node& node = at(id);
    node.used = true;
    node.parent = parent;
    node.depth = at(parent).depth;
    node.refs = 1;
    node.holds = 1;
    at(parent).children++;
    hold(parent);
    used_nodes_++;
    audit();
    return id;
}

void KVTree::extend(int32_t node, const int32_t* tokens, size_t n, int32_t* slots) {
    extend_each(&node, 1, tokens, n, n, slots, "extend");
}

void KVTree::extend_rows(const int32_t* nodes, const int32_t* tokens, size_t rows, int32_t* slots) {
    extend_each(nodes, rows, tokens, 1, 1, slots, "extend_rows");
}

void KVTree::extend_ahead(const int32_t* nodes, size_t rows, size_t n, int32_t* slots) {
    const std::vector<int32_t> blank(n, 0);
    extend_each(nodes, rows, blank.data(), 0, n, slots, "extend_ahead");
}

// Appends n tokens to each node; those of the next node begin `step` further on. All or nothing.
void KVTree::extend_each(const int32_t* nodes, size_t rows, const int32_t* tokens, size_t step, size_t n,
                         int32_t* slots, const char* operation) {
    const uint64_t stamp = ++stamp_;
    int64_t more = 0;
    for (size_t i = 0; i < rows; i++) {
        need_extensible(nodes[i], tokens + i * step, n, operation);
        Node& node = at(nodes[i]);
        if (node.stamp == stamp) refuse(operation, nodes[i], "is given twice; rows must be distinct");
        node.stamp = stamp;
        more += pages_for(static_cast<int64_t>(node.tokens.size() + n)) - static_cast<int64_t>(node.pages.size());
    }
    if (n == 0) return;
    need_pages(more, operation);
    for (size_t i = 0; i < rows; i++) reserve(nodes[i], n);
    grow(flight_, flight_.size() + rows);
    while (free_pages() < more) evict_oldest();
    for (size_t i = 0; i < rows; i++) append(nodes[i], tokens + i * step, n, slots + i * n);
    peak_used_ = std::max(peak_used_, used_pages());
    audit();
}

void KVTree::amend_rows(const int32_t* nodes, const int32_t* drop, const int32_t* counts, size_t rows,
                        const int32_t* tokens, size_t n_tokens) {
    const uint64_t stamp = ++stamp_;
    size_t next = 0;
    for (size_t i = 0; i < rows; i++) {
        need_extensible(nodes[i], tokens, 0, "amend_rows");
        Node& node = at(nodes[i]);
        if (node.stamp == stamp) refuse("amend_rows", nodes[i], "is given twice; rows must be distinct");
        node.stamp = stamp;
        const int64_t left = static_cast<int64_t>(node.tokens.size()) - drop[i];
        const int64_t in_flight = node.flight_from == kNone ? -1 : int64_t{node.flight_from} * kPageTokens;
        if (drop[i] < 0 || counts[i] < 0 || in_flight < 0 || left - counts[i] < in_flight || left <= in_flight)
            refuse("amend_rows", nodes[i], "has too few tokens in flight");
        next += static_cast<size_t>(counts[i]);
        if (next > n_tokens) refuse("amend_rows", nodes[i], "gets fewer tokens than it counts");
        need_extensible(nodes[i], tokens + next - counts[i], static_cast<size_t>(counts[i]), "amend_rows");
    }
    for (size_t i = rows; i-- > 0;) {
        Node& node = at(nodes[i]);
        node.tokens.resize(node.tokens.size() - static_cast<size_t>(drop[i]));
        node.depth -= drop[i];
        tokens_ -= drop[i];
        next -= static_cast<size_t>(counts[i]);
        std::copy_n(tokens + next, counts[i], node.tokens.end() - counts[i]);
        while (static_cast<int64_t>(node.pages.size()) > pages_for(static_cast<int64_t>(node.tokens.size()))) {
            free_.push_back(node.pages.back());  // never allocates: it once held them all
            node.pages.pop_back();
            in_flight_--;
        }
    }
    audit();
}

void KVTree::settle() {
    for (int32_t id : flight_) {
        Node& node = at(id);
        const int64_t written = static_cast<int64_t>(node.pages.size()) - node.flight_from;
        in_flight_ -= written;
        pinned_ += written;
        node.flight_from = kNone;
        unhold(id);
    }
    flight_.clear();
    audit();
}

void KVTree::seal(int32_t id) {
    if (need(id, "seal").sealed) refuse("seal", id, "is sealed already");
    index_insert(id, key_of(at(id).parent, at(id).tokens));
    at(id).sealed = true;
    audit();
}

void KVTree::retain(int32_t id) {
    need(id, "retain");
    if (at(id).refs++ == 0) hold(id);
    audit();
}

void KVTree::release(int32_t id) { give_back(id, false, "release"); }

void KVTree::drop(int32_t id) { give_back(id, true, "drop"); }

std::pair<int32_t, int64_t> KVTree::match_prefix(const int32_t* tokens, size_t n, int32_t under) {
    if (under != kRoot && need(under, "match_prefix").depth != 0)
        refuse("match_prefix", under, "holds tokens; give an empty node");
    // Siblings may hold equal tokens, so this is a search. It visits no node twice, whatever the hash does.
    int32_t best = under;
    std::vector<int32_t> open{under};
    while (!open.empty()) {
        const int32_t id = open.back();
        open.pop_back();
        if (at(id).depth > at(best).depth) best = id;
        if (at(id).children == 0) continue;
        const size_t begin = static_cast<size_t>(at(id).depth);
        const size_t longest = std::min(kKeyTokens, n - begin);
        uint64_t key = key_of_parent(id);
        for (size_t i = 0;; i++) {
            const auto found = index_.find(key);
            for (int32_t twin = found == index_.end() ? kNone : found->second; twin != kNone;
                 twin = at(twin).twin_after)
                if (at(twin).parent == id && key_length(at(twin).tokens) == i &&
                    matches(twin, tokens + begin, n - begin))
                    open.push_back(twin);
            if (i == longest) break;
            key = key_with(key, tokens[begin + i]);
        }
    }
    if (at(best).refs++ == 0) hold(best);
    audit();
    return {best, at(best).depth};
}

int64_t KVTree::evict(int64_t n_pages) {
    if (n_pages < 0) throw std::invalid_argument("evict: n_pages is " + std::to_string(n_pages) + ", must be >= 0");
    int64_t freed = 0;
    while (freed < n_pages && oldest_ != kNone) freed += evict_oldest();
    audit();
    return freed;
}

void KVTree::lend(const int32_t* pages, size_t n) {
    std::vector<char> spare = marked(free_);
    claim_each(spare, pages, n, "lend", "is not spare");
    free_.erase(std::remove_if(free_.begin(), free_.end(), [&](int32_t page) { return !spare[static_cast<size_t>(page)]; }),
                free_.end());
    for (size_t i = 0; i < n; i++) lent_[static_cast<size_t>(pages[i])] = 1;
    n_lent_ += static_cast<int64_t>(n);
    audit();
}

void KVTree::take_back(const int32_t* pages, size_t n) {
    claim_each(lent_, pages, n, "take_back", "is not lent");
    for (size_t i = n; i-- > 0;) free_.push_back(pages[i]);  // never allocates: it once held them all
    n_lent_ -= static_cast<int64_t>(n);
    audit();
}

void KVTree::relocate(const int32_t* from, const int32_t* to, size_t n) {
    std::vector<char> spare = marked(free_), owned(static_cast<size_t>(total_), 0);
    for (const Node& node : nodes_)
        for (int32_t page : node.pages) owned[static_cast<size_t>(page)] = 1;
    claim_each(owned, from, n, "relocate", "belongs to no node");
    claim_each(spare, to, n, "relocate", "is not spare");
    std::vector<int32_t> moved(static_cast<size_t>(total_), kNone), back(static_cast<size_t>(total_), kNone);
    for (size_t i = 0; i < n; i++) {
        moved[static_cast<size_t>(from[i])] = to[i];
        back[static_cast<size_t>(to[i])] = from[i];
    }
    const auto follow = [](std::vector<int32_t>& pages, const std::vector<int32_t>& map) {
        for (int32_t& page : pages)
            if (map[static_cast<size_t>(page)] != kNone) page = map[static_cast<size_t>(page)];
    };
    for (Node& node : nodes_) follow(node.pages, moved);
    follow(free_, back);
    audit();
}

// ------------------------------------------------------------------------------------------------- reading

bool KVTree::alive(int32_t id) const noexcept {
    if (id < 0 || id >= id_limit() || !at(id).used) return false;
    return at(id).sealed || at(id).refs > 0;  // else released while in flight: settle() frees it
}

int32_t KVTree::length(int32_t id) const { return static_cast<int32_t>(need(id, "length").tokens.size()); }

int32_t KVTree::depth(int32_t id) const { return need(id, "depth").depth; }

int32_t KVTree::parent(int32_t id) const { return need(id, "parent").parent; }

int64_t KVTree::refs(int32_t id) const { return need(id, "refs").refs; }

bool KVTree::sealed(int32_t id) const { return need(id, "sealed").sealed; }

const std::vector<int32_t>& KVTree::tokens(int32_t id) const { return need(id, "tokens").tokens; }

const std::vector<int32_t>& KVTree::pages(int32_t id) const { return need(id, "pages").pages; }

KVTree::Stats KVTree::stats() const noexcept {
    return {total_, total_ - used_pages(), cached_, pinned_, in_flight_, n_lent_, used_nodes_, tokens_, peak_used_, evicted_};
}

// ------------------------------------------------------------------------------------------------ the inside

const KVTree::Node& KVTree::need(int32_t id, const char* operation) const {
    if (id < 0 || id >= id_limit()) refuse(operation, id, "does not exist");
    if (!alive(id)) refuse(operation, id, "is dead: it was released, evicted or dropped");
    return at(id);
}

void KVTree::need_extensible(int32_t id, const int32_t* tokens, size_t n, const char* operation) const {
    if (need(id, operation).sealed) refuse(operation, id, "is sealed; fork a child and extend that");
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0) refuse(operation, id, "got token " + std::to_string(tokens[i]) + ", must be >= 0");
}

void KVTree::need_pages(int64_t n_pages, const char* operation) const {
    if (n_pages > free_pages() + cached_)  // every cached page can be evicted
        throw KVExhausted(std::string(operation) + ": needs " + std::to_string(n_pages) + " pages, " +
                          std::to_string(free_pages()) + " are free and " + std::to_string(cached_) +
                          " cached of " + std::to_string(total_));
}

// By page, whether it is one of these.
std::vector<char> KVTree::marked(const std::vector<int32_t>& pages) const {
    std::vector<char> found(static_cast<size_t>(total_), 0);
    for (int32_t page : pages) found[static_cast<size_t>(page)] = 1;
    return found;
}

// Takes the marks of these pages away. Without its mark, or given twice, a page is refused and nothing is changed.
void KVTree::claim_each(std::vector<char>& kind, const int32_t* pages, size_t n, const char* operation,
                        const char* rule) const {
    for (size_t i = 0; i < n; i++) {
        if (pages[i] >= 0 && pages[i] < total_ && kind[static_cast<size_t>(pages[i])]) {
            kind[static_cast<size_t>(pages[i])] = 0;
            continue;
        }
        const std::string page = std::to_string(pages[i]);
        while (i-- > 0) kind[static_cast<size_t>(pages[i])] = 1;
        throw std::invalid_argument(std::string(operation) + ": page " + page + " " + rule + ", or is given twice");
    }
}

// One reason more to keep the node. The first one takes it out of the cache and is a reason to keep its parent.
void KVTree::hold(int32_t id) {
    while (at(id).holds++ == 0) {
        const int64_t pages = static_cast<int64_t>(at(id).pages.size());
        cache_remove(id);
        cached_ -= pages;
        pinned_ += pages;
        id = at(id).parent;
    }
}

// One reason less. With the last one the node is cached or freed, and its parent loses a reason.
void KVTree::unhold(int32_t id) {
    while (--at(id).holds == 0) {
        const Node& node = at(id);
        const int64_t pages = static_cast<int64_t>(node.pages.size());
        const int32_t parent = node.parent;
        pinned_ -= pages;
        if (node.children == 0 && (node.dropped || !node.sealed)) {
            free_node(id);
        } else {
            cached_ += pages;
            cache_append(id);
        }
        id = parent;
    }
}

void KVTree::give_back(int32_t id, bool drop, const char* operation) {
    if (need(id, operation).refs == 0) refuse(operation, id, "has no reference to give back");
    if (--at(id).refs == 0) {
        at(id).dropped = drop;
        unhold(id);
    }
    audit();
}

void KVTree::cache_append(int32_t id) {
    at(id).older = newest_;
    (newest_ == kNone ? oldest_ : at(newest_).newer) = id;
    newest_ = id;
}

void KVTree::cache_remove(int32_t id) {
    Node& node = at(id);
    (node.older == kNone ? oldest_ : at(node.older).newer) = node.newer;
    (node.newer == kNone ? newest_ : at(node.newer).older) = node.older;
    node.older = node.newer = kNone;
}

// The one place where pages become free. Returns the parent.
int32_t KVTree::free_node(int32_t id) {
    Node& node = at(id);
    const int32_t parent = node.parent;
    free_.insert(free_.end(), node.pages.begin(), node.pages.end());  // never allocates: it once held them all
    tokens_ -= static_cast<int64_t>(node.tokens.size());
    if (node.sealed) index_erase(id);
    at(parent).children--;
    used_nodes_--;
    const uint64_t stamp = node.stamp;
    node = Node();
    node.stamp = stamp;
    free_ids_.push_back(id);
    return parent;
}

// Frees the oldest cached node, which has no children, and the dropped ancestors that only waited for it.
int64_t KVTree::evict_oldest() {
    int64_t freed = 0;
    for (int32_t id = oldest_;;) {
        const int64_t pages = static_cast<int64_t>(at(id).pages.size());
        cache_remove(id);
        cached_ -= pages;
        freed += pages;
        id = free_node(id);
        if (at(id).holds > 0 || at(id).children > 0 || !at(id).dropped) break;
    }
    evicted_ += freed;
    return freed;
}

void KVTree::reserve(int32_t id, size_t n) {
    Node& node = at(id);
    grow(node.tokens, node.tokens.size() + n);
    grow(node.pages, static_cast<size_t>(pages_for(static_cast<int64_t>(node.tokens.size() + n))));
}

// Room was made and reserved: cannot fail.
void KVTree::append(int32_t id, const int32_t* tokens, size_t n, int32_t* slots) {
    Node& node = at(id);
    const size_t first = node.tokens.size();
    if (node.flight_from == kNone) {
        node.flight_from = static_cast<int32_t>(first / kPageTokens);
        node.holds++;  // in flight; the node has a reference, so its path is held already
        flight_.push_back(id);
        if (first % kPageTokens != 0) {  // its last page is written again
            pinned_--;
            in_flight_++;
        }
    }
    for (size_t i = first; i < first + n; i++) {
        if (i % kPageTokens == 0) {
            node.pages.push_back(free_.back());
            free_.pop_back();
            in_flight_++;
        }
        *slots++ = node.pages.back() * kPageTokens + static_cast<int32_t>(i % kPageTokens);
    }
    node.tokens.insert(node.tokens.end(), tokens, tokens + n);
    node.depth += static_cast<int32_t>(n);
    tokens_ += static_cast<int64_t>(n);
}

void KVTree::index_insert(int32_t id, uint64_t key) {
    const auto [place, is_new] = index_.emplace(key, id);
    at(id).key = key;
    if (is_new) return;
    at(id).twin_after = place->second;
    at(place->second).twin_before = id;
    place->second = id;
}

void KVTree::index_erase(int32_t id) {
    const Node& node = at(id);
    if (node.twin_after != kNone) at(node.twin_after).twin_before = node.twin_before;
    if (node.twin_before != kNone)
        at(node.twin_before).twin_after = node.twin_after;
    else if (node.twin_after != kNone)
        index_.find(node.key)->second = node.twin_after;
    else
        index_.erase(node.key);
}

bool KVTree::matches(int32_t id, const int32_t* tokens, size_t n) const {
    const Node& node = at(id);
    return node.flight_from == kNone && node.tokens.size() <= n &&
           std::equal(node.tokens.begin(), node.tokens.end(), tokens);
}

void KVTree::audit() const {
    if (debug_) check();
}

}  // namespace wcse
