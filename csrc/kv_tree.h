// The KV tree: who owns which page of keys and values. It knows token ids, nodes and page numbers; it knows
// nothing of models, tensors or text, and it never touches the pools that the pages index.
//
// A forest under an empty super-root (id 0). A node owns its span of tokens and whole pages of 16 tokens; a
// child starts a new page, so forking, pruning and sharing copy nothing. Node ids and pages are reused.
//
// Every page is in one of four states, and free + cached + pinned + in flight = total at all times:
//   free       owned by no node
//   pinned     a reference or an unsettled write holds the node or one of its descendants
//   cached     owned by a node that nothing holds; all of these can be evicted, children before parents
//   in flight  touched by extend() since the last settle(): the running step still writes it. The step also
//              reads the rest of the path, so an unsettled node holds itself and all of its ancestors.
// Free pages can be lent: they are handed out no more until they are taken back, so that the memory behind them may
// serve another tree. They stay free. Where a lender wants particular pages, relocate() empties them first.
// Eviction order is that in which nodes stopped being held. A child stops before its parent, hence the oldest
// cached node never has children and evicting is popping the front of a list.
//
// One owner thread. Every method either succeeds or throws and leaves the tree as it was.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace wcse {

constexpr int32_t kPageTokens = 16;

// Not enough free and cached pages. The tree is unchanged: suspend work, release nodes, try again.
class KVExhausted : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

class KVTree {
public:
    struct Stats {
        int64_t total, free, cached, pinned, in_flight;  // pages
        int64_t lent;                                    // free pages that are not handed out
        int64_t nodes;                                   // nodes that own an id, the super-root left out
        int64_t tokens;                                  // tokens stored in them
        int64_t peak_used;                               // most pages that were not free at one time
        int64_t evicted;                                 // pages evicted so far
    };

    static constexpr int32_t kRoot = 0;
    static constexpr int32_t kNone = -1;

    // debug: check() after every operation that changes something.
    explicit KVTree(int64_t num_pages, bool debug = false);

    // A new empty child of a sealed node, with one reference.
    int32_t fork(int32_t parent);

    // Appends to an unsealed node; writes the n slots (page * 16 + offset) of the tokens. Evicts if it must.
    void extend(int32_t node, const int32_t* tokens, size_t n, int32_t* slots);

    // Appends tokens[i] to nodes[i]; the nodes are distinct. All or nothing.
    void extend_rows(const int32_t* nodes, const int32_t* tokens, size_t rows, int32_t* slots);

    // Appends n tokens of id 0 to each of the nodes, which are distinct: room for tokens that a device will draw by
    // itself. All or nothing. Writes the n slots of each node in turn.
    void extend_ahead(const int32_t* nodes, size_t rows, size_t n, int32_t* slots);

    // What the device drew: the last `drop` tokens of nodes[i] go, pages that they leave empty are free, and the
    // counts[i] tokens before those become the next ones of `tokens`. All of them must be in flight, and a token in
    // flight must remain. All or nothing. Pages become free in the reverse of the order in which extend_ahead() took
    // them: the same extension takes the same pages again.
    void amend_rows(const int32_t* nodes, const int32_t* drop, const int32_t* counts, size_t rows,
                    const int32_t* tokens, size_t n_tokens);

    // The running step has written its keys and values: nothing is in flight any more.
    void settle();

    // No more tokens: from now on the node can be forked and, once settled, matched.
    void seal(int32_t node);

    void retain(int32_t node);

    // Gives one reference back. The last one leaves a sealed node cached and frees an unsealed one.
    void release(int32_t node);

    // release(), but the last reference frees the node at once, when its last child is gone at the latest.
    void drop(int32_t node);

    // The deepest chain of sealed, settled nodes whose tokens are a prefix of the given ones: (its last node,
    // tokens matched). Ids are compared one by one. The node is retained; the super-root when nothing matches.
    // under: an empty node in whose subtree alone to look.
    std::pair<int32_t, int64_t> match_prefix(const int32_t* tokens, size_t n, int32_t under = kRoot);

    // Frees least recently held cached nodes until n_pages are freed or none is left. Returns the pages freed.
    int64_t evict(int64_t n_pages);

    // The free pages that are not lent.
    const std::vector<int32_t>& spare() const noexcept { return free_; }

    // These spare pages are not handed out from now on.
    void lend(const int32_t* pages, size_t n);

    // These lent pages are handed out again, the first of them first.
    void take_back(const int32_t* pages, size_t n);

    // Nodes own pages to[i], which are spare, instead of from[i], which become so. Who calls moves what is in them.
    void relocate(const int32_t* from, const int32_t* to, size_t n);

    // Recounts everything from scratch. Throws std::logic_error that names the violated law.
    void check() const;

    bool alive(int32_t node) const noexcept;
    int32_t length(int32_t node) const;  // own tokens
    int32_t depth(int32_t node) const;   // tokens on the path, own ones included
    int32_t parent(int32_t node) const;  // kNone for the super-root
    int64_t refs(int32_t node) const;
    bool sealed(int32_t node) const;
    const std::vector<int32_t>& tokens(int32_t node) const;
    const std::vector<int32_t>& pages(int32_t node) const;
    int32_t id_limit() const noexcept { return static_cast<int32_t>(nodes_.size()); }  // all ids are below
    Stats stats() const noexcept;

private:
    friend struct KVTreeFaults;  // tests plant violations that check() must find

    struct Node {
        std::vector<int32_t> tokens;
        std::vector<int32_t> pages;
        uint64_t key = 0;    // look-up key below the parent, once sealed
        uint64_t stamp = 0;  // the extend_rows() call that saw the node last
        int64_t refs = 0;    // given out by fork, retain and match_prefix
        int32_t holds = 0;   // (refs > 0) + (in flight) + held children; the super-root has one more
        int32_t parent = kNone;
        int32_t depth = 0;
        int32_t children = 0;
        int32_t flight_from = kNone;                      // index of the first page in flight
        int32_t older = kNone, newer = kNone;             // list of cached nodes
        int32_t twin_before = kNone, twin_after = kNone;  // nodes with the same key
        bool used = false;     // owns its id
        bool sealed = false;
        bool dropped = false;  // the last reference was given back by drop()
    };

    Node& at(int32_t id) { return nodes_[static_cast<size_t>(id)]; }
    const Node& at(int32_t id) const { return nodes_[static_cast<size_t>(id)]; }
    const Node& need(int32_t id, const char* operation) const;
    void need_extensible(int32_t id, const int32_t* tokens, size_t n, const char* operation) const;
    void need_pages(int64_t n_pages, const char* operation) const;
    int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }  // to be handed out
    int64_t used_pages() const { return total_ - n_lent_ - free_pages(); }
    std::vector<char> marked(const std::vector<int32_t>& pages) const;
    void claim_each(std::vector<char>& kind, const int32_t* pages, size_t n, const char* operation, const char* rule) const;

    void hold(int32_t id);
    void unhold(int32_t id);
    void give_back(int32_t id, bool drop, const char* operation);
    void cache_append(int32_t id);
    void cache_remove(int32_t id);
    int32_t free_node(int32_t id);
    int64_t evict_oldest();
    void extend_each(const int32_t* nodes, size_t rows, const int32_t* tokens, size_t step, size_t n, int32_t* slots,
                     const char* operation);
    void reserve(int32_t id, size_t n);
    void append(int32_t id, const int32_t* tokens, size_t n, int32_t* slots);
    void index_insert(int32_t id, uint64_t key);
    void index_erase(int32_t id);
    bool matches(int32_t id, const int32_t* tokens, size_t n) const;
    void audit() const;

    void check_pages() const;   // every page has exactly one owner
    void check_links() const;   // parents, depths, children, references, what each node holds
    void check_states() const;  // free + cached + pinned + in flight = total, recounted
    void check_lists() const;   // cached nodes, children before parents; nodes in flight
    void check_index() const;   // sealed nodes can be found, others cannot

    std::vector<Node> nodes_;
    std::vector<int32_t> free_ids_;
    std::vector<int32_t> free_;     // pages, a stack; those that are lent are not in it
    std::vector<char> lent_;        // by page
    std::vector<int32_t> flight_;   // nodes with pages in flight, in the order they got there
    std::unordered_map<uint64_t, int32_t> index_;  // key -> first of its twins
    int64_t total_, n_lent_ = 0, cached_ = 0, pinned_ = 0, in_flight_ = 0;
    int64_t used_nodes_ = 0, tokens_ = 0, peak_used_ = 0, evicted_ = 0;
    int32_t oldest_ = kNone, newest_ = kNone;
    uint64_t stamp_ = 0;
    bool debug_;
};

}  // namespace wcse
