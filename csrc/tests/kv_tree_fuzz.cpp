#include "kv_tree_fuzz.h"

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <sstream>
#include <stdexcept>

namespace wcse {
namespace {

enum class Outcome { done, refused, exhausted };

constexpr int32_t kMostNodes = 24;  // of one tree: small ones meet their edges sooner

// What the tree should be, without any bookkeeping: every question is answered by looking at all nodes.
class Model {
public:
    struct Node {
        int32_t parent = KVTree::kNone;
        std::vector<int32_t> tokens, pages;
        int64_t refs = 0;
        int64_t flight_from = -1;  // first page in flight
        bool used = false, sealed = false, dropped = false, held = false;
        int64_t unheld_at = 0;
    };

    explicit Model(int64_t total) : total_(total), nodes_(1) { nodes_[0].used = nodes_[0].sealed = nodes_[0].held = true; }

    const Node& node(int32_t id) const { return nodes_[static_cast<size_t>(id)]; }
    int32_t id_limit() const { return static_cast<int32_t>(nodes_.size()); }
    bool known(int32_t id) const { return id >= 0 && id < id_limit() && node(id).used; }
    bool alive(int32_t id) const { return known(id) && (node(id).sealed || node(id).refs > 0); }
    bool open(int32_t id) const { return alive(id) && !node(id).sealed; }

    bool has_children(int32_t id) const {
        return std::any_of(nodes_.begin(), nodes_.end(), [&](const Node& n) { return n.used && n.parent == id; });
    }
    int64_t depth(int32_t id) const {
        int64_t sum = 0;
        for (; id != KVTree::kNone; id = node(id).parent) sum += static_cast<int64_t>(node(id).tokens.size());
        return sum;
    }
    std::vector<int32_t> path_tokens(int32_t id) const {
        std::vector<int32_t> all;
        for (; id != KVTree::kNone; id = node(id).parent)
            all.insert(all.begin(), node(id).tokens.begin(), node(id).tokens.end());
        return all;
    }
    bool settled_path(int32_t id) const {
        for (; id != KVTree::kNone; id = node(id).parent)
            if (!node(id).sealed || node(id).flight_from >= 0) return false;
        return true;
    }
    bool owned(int32_t page) const {
        for (const Node& n : nodes_)
            if (std::find(n.pages.begin(), n.pages.end(), page) != n.pages.end()) return true;
        return false;
    }

    KVTree::Stats stats() const {
        KVTree::Stats s{total_, total_, 0, 0, 0, lent_, 0, 0, peak_, evicted_};
        const std::vector<bool> held = held_nodes();
        for (int32_t id = 1; id < id_limit(); id++) {
            const Node& n = node(id);
            if (!n.used) continue;
            const auto pages = static_cast<int64_t>(n.pages.size());
            const int64_t written = n.flight_from < 0 ? 0 : pages - n.flight_from;
            s.free -= pages;
            s.in_flight += written;
            (held[static_cast<size_t>(id)] ? s.pinned : s.cached) += pages - written;
            s.nodes++;
            s.tokens += static_cast<int64_t>(n.tokens.size());
        }
        return s;
    }

    void add(int32_t id, int32_t parent) {
        if (id >= id_limit()) nodes_.resize(static_cast<size_t>(id) + 1);
        Node& n = at(id) = Node();
        n.used = true;
        n.parent = parent;
        n.refs = 1;
        update();
    }
    void seal(int32_t id) { at(id).sealed = true; }
    void retain(int32_t id) {
        at(id).refs++;
        update();
    }
    void give_back(int32_t id, bool drop) {
        if (--at(id).refs == 0) at(id).dropped = drop;
        update();
    }
    void settle() {
        for (int32_t id : std::vector<int32_t>(std::move(flight_))) {
            at(id).flight_from = -1;
            update();
        }
        flight_.clear();
    }
    int64_t pages_needed(int32_t id, size_t more) const {
        return static_cast<int64_t>((node(id).tokens.size() + more + 15) / 16 - node(id).pages.size());
    }
    void lend(int64_t pages) { lent_ += pages; }
    void relocate(int32_t from, int32_t to) {
        for (Node& n : nodes_) std::replace(n.pages.begin(), n.pages.end(), from, to);
    }
    void make_room(int64_t pages) {
        while (stats().free - lent_ < pages) evict_one();
    }
    // Returns what is wrong with the slots, or nothing.
    std::string append(int32_t id, const std::vector<int32_t>& tokens, const std::vector<int32_t>& slots) {
        for (size_t i = 0; i < tokens.size(); i++) {
            Node& n = at(id);
            const size_t index = n.tokens.size() / 16, offset = n.tokens.size() % 16;
            const int32_t page = slots[i] / 16;
            if (slots[i] < 0 || page >= total_) return "slot out of range";
            if (static_cast<size_t>(slots[i] % 16) != offset) return "wrong offset in page";
            if (offset == 0) {
                if (owned(page)) return "page belongs to another node";
                n.pages.push_back(page);
            } else if (n.pages.back() != page) {
                return "token went to a page that is not the node's last";
            }
            if (n.flight_from < 0) {
                n.flight_from = static_cast<int64_t>(index);
                flight_.push_back(id);
            }
            n.tokens.push_back(tokens[i]);
        }
        update();
        peak_ = std::max(peak_, total_ - stats().free);
        return "";
    }
    int64_t evict_one() {
        int32_t oldest = -1;
        for (int32_t id = 1; id < id_limit(); id++)
            if (node(id).used && !node(id).held && !has_children(id) &&
                (oldest < 0 || node(id).unheld_at < node(oldest).unheld_at))
                oldest = id;
        if (oldest < 0) return -1;
        int64_t freed = 0;
        for (int32_t id = oldest;;) {
            const int32_t parent = node(id).parent;
            freed += static_cast<int64_t>(node(id).pages.size());
            at(id) = Node();
            id = parent;
            if (node(id).held || !node(id).dropped || has_children(id)) break;
        }
        evicted_ += freed;
        return freed;
    }

private:
    Node& at(int32_t id) { return nodes_[static_cast<size_t>(id)]; }

    std::vector<bool> held_nodes() const {
        std::vector<bool> held(nodes_.size(), false);
        held[0] = true;
        for (int32_t id = 0; id < id_limit(); id++)
            if (node(id).refs > 0 || node(id).flight_from >= 0)
                for (int32_t up = id; up != KVTree::kNone; up = node(up).parent) held[static_cast<size_t>(up)] = true;
        return held;
    }
    int levels(int32_t id) const {
        int n = 0;
        for (; id != KVTree::kNone; id = node(id).parent) n++;
        return n;
    }
    // Nodes that nothing holds any more are cached, or freed, children before parents.
    void update() {
        const std::vector<bool> held = held_nodes();
        std::vector<int32_t> gone;
        for (int32_t id = 1; id < id_limit(); id++) {
            if (node(id).used && node(id).held && !held[static_cast<size_t>(id)]) gone.push_back(id);
            at(id).held = held[static_cast<size_t>(id)];
        }
        std::sort(gone.begin(), gone.end(), [&](int32_t a, int32_t b) { return levels(a) > levels(b); });
        for (int32_t id : gone) {
            if (!has_children(id) && (node(id).dropped || !node(id).sealed))
                at(id) = Node();
            else
                at(id).unheld_at = ++clock_;
        }
    }

    int64_t total_, lent_ = 0, peak_ = 0, evicted_ = 0, clock_ = 0;
    std::vector<Node> nodes_;
    std::vector<int32_t> flight_;
};

class Fuzzer {
public:
    Fuzzer(uint64_t seed, int64_t pages, FuzzReport& report)
        : rng_(seed), total_(pages), tree_(pages), model_(pages), report_(report) {}

    void run(int64_t operations) {
        for (int64_t i = 0; i < operations; i++) {
            step();
            compare();
            report_.operations++;
        }
        drain();
    }

    std::string last;  // the operation that ran last

private:
    int64_t below(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }
    bool chance(int percent) { return below(100) < percent; }

    [[noreturn]] void differ(const std::string& what) { throw std::runtime_error(last + ": " + what); }

    // Any id now and then; mostly one for which `good` holds.
    int32_t pick(const std::function<bool(int32_t)>& good) {
        if (chance(3)) return static_cast<int32_t>(below(model_.id_limit() + 4)) - 2;
        candidates_.clear();
        for (int32_t id = 0; id < model_.id_limit(); id++)
            if (good(id)) candidates_.push_back(id);
        if (candidates_.empty()) return static_cast<int32_t>(below(model_.id_limit()));
        return candidates_[static_cast<size_t>(below(static_cast<int64_t>(candidates_.size())))];
    }
    int32_t pick_open() {
        return pick([&](int32_t id) { return model_.open(id); });
    }
    int32_t pick_alive() {
        return pick([&](int32_t id) { return model_.alive(id); });
    }
    int32_t pick_referenced() {
        return pick([&](int32_t id) { return model_.alive(id) && model_.node(id).refs > 0; });
    }
    std::vector<int32_t> some_tokens(int64_t n) {
        std::vector<int32_t> tokens(static_cast<size_t>(n));
        for (int32_t& t : tokens) t = static_cast<int32_t>(below(100) < 85 ? 0 : below(3));
        return tokens;
    }

    // Calls the tree and demands the outcome that the model foresees.
    void expect(Outcome outcome, const std::function<void()>& call) {
        static const char* const names[] = {"succeeds", "is refused", "is out of pages"};
        Outcome got = Outcome::done;
        std::string why;
        try {
            call();
        } catch (const KVExhausted& e) {
            got = Outcome::exhausted;
            why = e.what();
        } catch (const std::invalid_argument& e) {
            got = Outcome::refused;
            why = e.what();
        }
        if (got != outcome)
            differ(std::string(names[static_cast<int>(got)]) + " where it should not; model: " +
                   names[static_cast<int>(outcome)] + " " + why);
        report_.refused += got == Outcome::refused;
        report_.exhausted += got == Outcome::exhausted;
    }
    static Outcome allowed(bool ok) { return ok ? Outcome::done : Outcome::refused; }

    void step() {
        const int64_t r = below(100);
        if (r < 16) return fork();
        if (r < 32) return extend();
        if (r < 42) return extend_rows();
        if (r < 52) return settle();
        if (r < 62) return seal();
        if (r < 64) return retain();
        if (r < 84) return give_back(false);
        if (r < 92) return give_back(true);
        if (r < 99) return match();
        if (chance(50)) return evict();
        lend_or_take_back();
    }

    void fork() {
        const int32_t parent =
            pick([&](int32_t id) { return model_.alive(id) && model_.node(id).sealed && (id != 0 || chance(30)); });
        last = "fork(" + std::to_string(parent) + ")";
        if (model_.stats().nodes >= kMostNodes) return;
        const bool ok = model_.alive(parent) && model_.node(parent).sealed;
        expect(allowed(ok), [&] {
            const int32_t id = tree_.fork(parent);
            if (model_.known(id)) differ("the new id is in use");
            model_.add(id, parent);
        });
    }

    void extend() {
        const int32_t id = pick_open();
        std::vector<int32_t> tokens = some_tokens(chance(50) ? below(6) : below(70));
        if (chance(2) && !tokens.empty()) tokens.back() = -1;
        last = "extend(" + std::to_string(id) + ", " + std::to_string(tokens.size()) + " tokens)";
        const bool valid = model_.open(id) && (tokens.empty() || tokens.back() >= 0);
        std::vector<int32_t> slots(tokens.size(), -1);
        Outcome outcome = allowed(valid);
        if (valid) {
            const KVTree::Stats stats = model_.stats();
            const int64_t more = model_.pages_needed(id, tokens.size());
            if (more > stats.free - stats.lent + stats.cached) outcome = Outcome::exhausted;
        }
        expect(outcome, [&] { tree_.extend(id, tokens.data(), tokens.size(), slots.data()); });
        if (outcome != Outcome::done) return;
        model_.make_room(model_.pages_needed(id, tokens.size()));
        const std::string wrong = model_.append(id, tokens, slots);
        if (!wrong.empty()) differ(wrong);
    }

    void extend_rows() {
        std::vector<int32_t> ids;
        for (int32_t id = 0; id < model_.id_limit(); id++)
            if (model_.open(id) && chance(70)) ids.push_back(id);
        if (chance(3)) ids.push_back(pick_open());
        std::shuffle(ids.begin(), ids.end(), rng_);
        std::vector<int32_t> tokens = some_tokens(static_cast<int64_t>(ids.size())), slots(ids.size(), -1);
        if (chance(2) && !tokens.empty()) tokens[0] = -7;
        last = "extend_rows(" + std::to_string(ids.size()) + " rows)";
        bool valid = tokens.empty() || tokens[0] >= 0;
        int64_t more = 0;
        for (size_t i = 0; i < ids.size(); i++) {
            valid = valid && model_.open(ids[i]) && std::count(ids.begin(), ids.end(), ids[i]) == 1;
            if (valid) more += model_.pages_needed(ids[i], 1);
        }
        const KVTree::Stats stats = model_.stats();
        const Outcome outcome =
            !valid ? Outcome::refused : more > stats.free - stats.lent + stats.cached ? Outcome::exhausted : Outcome::done;
        expect(outcome, [&] { tree_.extend_rows(ids.data(), tokens.data(), ids.size(), slots.data()); });
        if (outcome != Outcome::done) return;
        model_.make_room(more);
        for (size_t i = 0; i < ids.size(); i++) {
            const std::string wrong = model_.append(ids[i], {tokens[i]}, {slots[i]});
            if (!wrong.empty()) differ(wrong);
        }
    }

    void settle() {
        last = "settle()";
        tree_.settle();
        model_.settle();
    }

    void seal() {
        const int32_t id = pick_open();
        last = "seal(" + std::to_string(id) + ")";
        expect(allowed(model_.open(id)), [&] { tree_.seal(id); });
        if (model_.open(id)) model_.seal(id);
    }

    void retain() {
        const int32_t id = pick_alive();
        last = "retain(" + std::to_string(id) + ")";
        const bool ok = model_.alive(id);
        expect(allowed(ok), [&] { tree_.retain(id); });
        if (ok) model_.retain(id);
    }

    void give_back(bool drop) {
        const int32_t id = pick_referenced();
        last = std::string(drop ? "drop(" : "release(") + std::to_string(id) + ")";
        const bool ok = model_.alive(id) && model_.node(id).refs > 0;
        expect(allowed(ok), [&] { drop ? tree_.drop(id) : tree_.release(id); });
        if (ok) model_.give_back(id, drop);
    }

    void match() {
        const int32_t near = pick_alive();
        std::vector<int32_t> query = model_.alive(near) ? model_.path_tokens(near) : some_tokens(20);
        if (chance(30) && !query.empty()) query.resize(static_cast<size_t>(below(static_cast<int64_t>(query.size()) + 1)));
        if (chance(30) && !query.empty()) query[static_cast<size_t>(below(static_cast<int64_t>(query.size())))] ^= 1;
        const std::vector<int32_t> more = some_tokens(below(40));
        if (chance(70)) query.insert(query.end(), more.begin(), more.end());
        last = "match_prefix(" + std::to_string(query.size()) + " tokens)";

        int64_t best = 0;
        for (int32_t id = 1; id < model_.id_limit(); id++)
            if (is_match(id, query)) best = std::max(best, model_.depth(id));
        const auto [id, matched] = tree_.match_prefix(query.data(), query.size());
        if (matched != best) differ("matched " + std::to_string(matched) + " tokens instead of " + std::to_string(best));
        if (id != 0 && (!is_match(id, query) || model_.depth(id) != best)) differ("matched a wrong node");
        if (id == 0 && best != 0) differ("matched the super-root");
        model_.retain(id);
        report_.matched_tokens += matched;
    }
    bool is_match(int32_t id, const std::vector<int32_t>& query) const {
        if (!model_.alive(id) || !model_.settled_path(id)) return false;
        const std::vector<int32_t> path = model_.path_tokens(id);
        return path.size() <= query.size() && std::equal(path.begin(), path.end(), query.begin());
    }

    void evict() {
        const int64_t want = below(total_ + 2) - 1;
        last = "evict(" + std::to_string(want) + ")";
        int64_t freed = 0, expected = 0;
        expect(allowed(want >= 0), [&] { freed = tree_.evict(want); });
        while (expected < want) {
            const int64_t one = model_.evict_one();
            if (one < 0) break;
            expected += one;
        }
        if (freed != expected) differ("freed " + std::to_string(freed) + " pages instead of " + std::to_string(expected));
    }

    // Particular pages change sides, as they do between the models of one memory.
    void lend_or_take_back() {
        std::vector<int32_t> owned, spare = tree_.spare(), lent;
        for (int32_t page = 0; page < total_; page++) {
            if (model_.owned(page)) owned.push_back(page);
            else if (std::find(spare.begin(), spare.end(), page) == spare.end()) lent.push_back(page);
        }
        const auto draw = [&](std::vector<int32_t>& from, size_t most) {
            std::shuffle(from.begin(), from.end(), rng_);
            from.resize(static_cast<size_t>(below(static_cast<int64_t>(std::min(from.size(), most)) + 1)));
        };
        const int64_t what = below(4);
        if (what == 0) {
            draw(spare, spare.size());
            last = "lend " + std::to_string(spare.size());
            expect(Outcome::done, [&] { tree_.lend(spare.data(), spare.size()); });
            model_.lend(static_cast<int64_t>(spare.size()));
        } else if (what == 1) {
            draw(lent, lent.size());
            last = "take_back " + std::to_string(lent.size());
            expect(Outcome::done, [&] { tree_.take_back(lent.data(), lent.size()); });
            model_.lend(-static_cast<int64_t>(lent.size()));
        } else if (what == 2) {
            draw(owned, spare.size());
            draw(spare, spare.size());
            const size_t n = std::min(owned.size(), spare.size());
            last = "relocate " + std::to_string(n);
            expect(Outcome::done, [&] { tree_.relocate(owned.data(), spare.data(), n); });
            for (size_t i = 0; i < n; i++) model_.relocate(owned[i], spare[i]);
        } else {
            const std::vector<int32_t> wrong{below(2) ? total32() : -1};
            last = "pages that do not exist";
            expect(Outcome::refused, [&] { tree_.lend(wrong.data(), 1); });
            expect(Outcome::refused, [&] { tree_.take_back(wrong.data(), 1); });
            expect(Outcome::refused, [&] { tree_.relocate(wrong.data(), wrong.data(), 1); });
            if (owned.empty()) return;
            expect(Outcome::refused, [&] { tree_.lend(owned.data(), 1); });
            expect(Outcome::refused, [&] { tree_.relocate(owned.data(), owned.data(), 1); });
        }
    }
    int32_t total32() const { return static_cast<int32_t>(total_); }

    // All references go, then all pages must come back.
    void drain() {
        for (int32_t id = 0; id < model_.id_limit(); id++)
            while (model_.known(id) && model_.node(id).refs > 0) {
                const bool drop = chance(30);
                last = "drain: " + std::string(drop ? "drop(" : "release(") + std::to_string(id) + ")";
                drop ? tree_.drop(id) : tree_.release(id);
                model_.give_back(id, drop);
                compare();
            }
        settle();
        compare();
        last = "drain: evict";
        report_.evicted_pages += model_.stats().evicted;
        tree_.evict(total_ + 1);
        while (model_.evict_one() >= 0) {}
        compare();
        const KVTree::Stats stats = tree_.stats();
        if (stats.free != total_ || stats.nodes != 0) differ("pages or nodes are left");
    }

    void compare() {
        try {
            tree_.check();
        } catch (const std::logic_error& e) {
            differ(e.what());
        }
        const KVTree::Stats a = tree_.stats(), b = model_.stats();
        const auto same = [&](const char* name, int64_t x, int64_t y) {
            if (x != y) differ(std::string(name) + " is " + std::to_string(x) + " instead of " + std::to_string(y));
        };
        same("total", a.total, b.total);
        same("free", a.free, b.free);
        same("cached", a.cached, b.cached);
        same("pinned", a.pinned, b.pinned);
        same("in_flight", a.in_flight, b.in_flight);
        same("lent", a.lent, b.lent);
        same("nodes", a.nodes, b.nodes);
        same("tokens", a.tokens, b.tokens);
        same("peak_used", a.peak_used, b.peak_used);
        same("evicted", a.evicted, b.evicted);
        for (int32_t id = -1; id <= std::max(model_.id_limit(), tree_.id_limit()); id++) compare_node(id);
    }
    void compare_node(int32_t id) {
        if (tree_.alive(id) != model_.alive(id)) differ("node " + std::to_string(id) + ": alive or not");
        if (!model_.alive(id)) return;
        const Model::Node& node = model_.node(id);
        if (tree_.parent(id) != node.parent || tree_.tokens(id) != node.tokens || tree_.pages(id) != node.pages ||
            tree_.refs(id) != node.refs || tree_.sealed(id) != node.sealed || tree_.depth(id) != model_.depth(id) ||
            tree_.length(id) != static_cast<int32_t>(node.tokens.size()))
            differ("node " + std::to_string(id) + " differs");
    }

    std::mt19937_64 rng_;
    int64_t total_;
    KVTree tree_;
    Model model_;
    FuzzReport& report_;
    std::vector<int32_t> candidates_;
};

}  // namespace

FuzzReport fuzz_kv_tree(uint64_t seed, int64_t operations) {
    FuzzReport report;
    std::mt19937_64 rng(seed);
    while (report.operations < operations) {
        const uint64_t tree_seed = rng();
        const int64_t pages = 1 + static_cast<int64_t>(rng() % (rng() % 2 ? 12 : 64));
        const int64_t length = std::min<int64_t>(operations - report.operations, 100 + static_cast<int64_t>(rng() % 3000));
        const int64_t before = report.operations;
        Fuzzer fuzzer(tree_seed, pages, report);
        try {
            fuzzer.run(length);
        } catch (const std::exception& e) {
            std::ostringstream message;
            message << "seed " << seed << ", tree " << report.trees << " of " << pages << " pages, operation "
                    << report.operations - before << " (" << report.operations << " in all): " << e.what();
            throw std::runtime_error(message.str());
        }
        report.trees++;
    }
    return report;
}

// --------------------------------------------------------------------------------------------------- faults

std::vector<std::string> KVTreeFaults::names() {
    return {"page lost",     "page twice",   "free page in use", "cached count",  "pinned count",
            "flight count",  "token count",  "node count",       "refs",          "negative refs",
            "holds",         "child count",  "dead parent",      "open parent",   "depth",
            "page missing",  "cache order",  "cache missing",    "index missing", "token changed",
            "flight list",   "peak",         "unsealed cached"};
}

void KVTreeFaults::plant(KVTree& tree, const std::string& name, int32_t id) {
    auto& node = tree.at(id);
    const std::map<std::string, std::function<void()>> faults = {
        {"page lost", [&] { tree.free_.pop_back(); }},
        {"page twice", [&] { node.pages[0] = tree.at(node.parent).pages[0]; }},
        {"free page in use", [&] { tree.free_.back() = node.pages[0]; }},
        {"cached count", [&] { tree.cached_++; }},
        {"pinned count", [&] { tree.pinned_--; }},
        {"flight count", [&] { tree.in_flight_++; }},
        {"token count", [&] { tree.tokens_--; }},
        {"node count", [&] { tree.used_nodes_++; }},
        {"refs", [&] { node.refs = node.refs == 0; }},
        {"negative refs", [&] { node.refs = -1; }},
        {"holds", [&] { node.holds++; }},
        {"child count", [&] { node.children++; }},
        {"dead parent", [&] { node.parent = tree.id_limit(); }},
        {"open parent", [&] { tree.at(node.parent).sealed = false; }},
        {"depth", [&] { node.depth++; }},
        {"page missing", [&] { tree.free_.push_back(node.pages.back()), node.pages.pop_back(); }},
        {"cache order", [&] { tree.cache_remove(node.parent), tree.cache_remove(id), tree.cache_append(node.parent), tree.cache_append(id); }},
        {"cache missing", [&] { tree.cache_remove(id); }},
        {"index missing", [&] { tree.index_erase(id); }},
        {"token changed", [&] { node.tokens[0]++; }},
        {"flight list", [&] { tree.flight_.clear(); }},
        {"peak", [&] { tree.peak_used_ = 0; }},
        {"unsealed cached", [&] { tree.index_erase(id), node.sealed = false; }},
    };
    faults.at(name)();
}

}  // namespace wcse
