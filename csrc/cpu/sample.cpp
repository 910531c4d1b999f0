// Sampling without sorting the vocabulary.
//
// Min-p, top-k and top-p each keep a prefix of the ids in the order (larger logit, then lower id), so all three
// together are one prefix: a logit and the last id that is kept among those equal to it. Top-k finds its end among
// the few logits that can be in it (k blocks of 64 have a maximum no smaller than the k-th largest maximum). Top-p
// weighs the row at eight thresholds at a time until the boundary lies between two that enclose few. Where few ids
// are kept, the draw works on their list alone. Draws that read one row share its passes. Every sum has one fixed
// order.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cpu/kernels.h"
#include "cpu/philox.h"
#include "thread_pool.h"

namespace wcse::cpu {
namespace {

constexpr float LOG2E = 1.44269504088896341f;
constexpr float NONE = -std::numeric_limits<float>::infinity(), ALL = std::numeric_limits<float>::infinity();
constexpr int64_t SHORT_LIST = 4096;  // ids that are cheaper to handle one by one than in passes over the row
constexpr double FIRST_STEP = 2;      // bits of weight between the first thresholds
constexpr int ROUNDS = 8;             // of narrowing; by then only equal logits are left between two thresholds

Prefix tighter(Prefix a, Prefix b) {
    return a.value > b.value || (a.value == b.value && a.last_id < b.last_id) ? a : b;
}

// One row of logits and the sums that its draws share. Weights are e^((x - top) / temperature).
class Row {
public:
    Row(const Table& table, const float* x, int64_t n) : table_(table), x_(x), n_(n), block_tops_((n + 63) / 64) {
        top_ = table_.row_top(x_, n_, block_tops_.data());
    }

    bool finite() const { return top_.finite; }
    int32_t greedy() const { return static_cast<int32_t>(top_.id); }

    float logprob(int32_t token) {
        if (raw_.sums.empty()) add_up(raw_, LOG2E, everything());
        return static_cast<float>(static_cast<double>(x_[token]) - top_.value - std::log(raw_.total));
    }

    // Fixes temperature and filters for the draws that follow.
    void filter(float temperature, int32_t top_k, float top_p, float min_p) {
        scale_ = std::min(LOG2E / temperature, 1e30f);
        keep_ = everything();
        if (min_p > 0) {
            const double least = top_.value + static_cast<double>(temperature) * std::log(static_cast<double>(min_p));
            keep_ = {std::min(top_.value, static_cast<float>(least)), n_ - 1};
        }
        const bool limited = top_k > 0 && top_k < n_;
        if (limited) keep_ = tighter(keep_, first_k(top_k));
        listed_ = (limited || min_p > 0) && make_list();
        if (top_p < 1 && listed_) {
            keep_ = shortest_prefix(list_, 0, top_p * total());
            make_list();
        } else if (top_p < 1) {
            const int64_t kept = cut_nucleus(top_p);
            listed_ = kept <= SHORT_LIST && make_list();
            if (!listed_) add_up(kept_, scale_, keep_);
        } else if (!listed_ && temperature == 1.f && keep_.value == NONE) {
            if (raw_.sums.empty()) add_up(raw_, LOG2E, everything());
            kept_ = raw_;
        } else if (!listed_) {
            add_up(kept_, scale_, keep_);
        }
    }

    // The first kept id, in id order, whose cumulative share exceeds u.
    int32_t draw(double u) const {
        const double target = u * total();
        if (!listed_) return draw_from_row(target);
        const auto found = std::upper_bound(list_sums_.begin(), list_sums_.end(), target) - list_sums_.begin();
        return list_[std::min(found, static_cast<std::ptrdiff_t>(list_.size()) - 1)];
    }

private:
    struct Sums {
        std::vector<double> sums;  // per block of SUM_BLOCK ids
        double total = 0;
    };

    int64_t blocks() const { return (n_ + SUM_BLOCK - 1) / SUM_BLOCK; }
    Prefix everything() const { return {NONE, n_ - 1}; }
    bool before(int32_t a, int32_t b) const { return x_[a] > x_[b] || (x_[a] == x_[b] && a < b); }
    bool kept(int64_t id) const { return x_[id] > keep_.value || (x_[id] == keep_.value && id <= keep_.last_id); }
    double total() const { return listed_ ? list_sums_.back() : kept_.total; }

    void add_up(Sums& out, float scale, Prefix keep) const {
        out.sums.resize(blocks());
        out.total = table_.prefix_sums(x_, n_, top_.value, scale, keep, out.sums.data());
    }

    // Ids of the prefix with from <= x < to, ascending; false if there are more than most.
    bool collect(float from, float to, Prefix prefix, int64_t most, std::vector<int32_t>& ids) const {
        ids.resize(most + SUM_BLOCK);
        const int64_t count = table_.ids_between(x_, n_, from, to, prefix, most, ids.data());
        if (count >= 0) ids.resize(count);
        return count >= 0;
    }

    std::vector<int32_t> collect_all(float from, float to, Prefix prefix) const {
        std::vector<int32_t> ids;
        if (!collect(from, to, prefix, SHORT_LIST, ids)) collect(from, to, prefix, n_, ids);
        return ids;
    }

    std::vector<float> weights(const int32_t* ids, int64_t count) const {
        std::vector<float> out(count);
        for (int64_t i = 0; i < count; i++) out[i] = x_[ids[i]];
        table_.exps(out.data(), count, top_.value, scale_, out.data());
        return out;
    }

    // list_ = the ids of keep_, with running sums; false if they are too many.
    bool make_list() {
        if (!collect(keep_.value, ALL, keep_, SHORT_LIST, list_)) return false;
        const std::vector<float> weight = weights(list_.data(), static_cast<int64_t>(list_.size()));
        list_sums_.resize(list_.size());
        double sum = 0;
        for (size_t i = 0; i < list_.size(); i++) list_sums_[i] = sum += weight[i];
        return true;
    }

    int32_t draw_from_row(double target) const {
        double below = 0;
        int64_t block = 0, last = 0;
        for (; block < blocks() && below + kept_.sums[block] <= target; block++) {
            if (kept_.sums[block] > 0) last = block;
            below += kept_.sums[block];
        }
        if (block == blocks()) {  // rounding: the last id that is kept
            block = last;
            below = -std::numeric_limits<double>::infinity();
        }
        const int64_t begin = block * SUM_BLOCK, n = std::min<int64_t>(SUM_BLOCK, n_ - begin);
        float weight[SUM_BLOCK];
        table_.exps(x_ + begin, n, top_.value, scale_, weight);
        int64_t found = begin;
        for (int64_t i = 0; i < n; i++) {
            if (weight[i] == 0.f || !kept(begin + i)) continue;
            found = begin + i;
            below += weight[i];
            if (below > target) break;
        }
        return static_cast<int32_t>(found);
    }

    // The k first ids of the order.
    Prefix first_k(int32_t k) const {
        float least = NONE;
        if (k <= static_cast<int64_t>(block_tops_.size())) {
            std::vector<float> tops = block_tops_;
            std::nth_element(tops.begin(), tops.begin() + (k - 1), tops.end(), std::greater<float>());
            least = tops[k - 1];
        }
        std::vector<int32_t> ids = collect_all(least, ALL, everything());
        const auto order = [&](int32_t a, int32_t b) { return before(a, b); };
        std::nth_element(ids.begin(), ids.begin() + (k - 1), ids.end(), order);
        return {x_[ids[k - 1]], ids[k - 1]};
    }

    // Cuts keep_ down to the shortest prefix with the share p of its weight; returns a bound on the number of its ids.
    int64_t cut_nucleus(float p) {
        // The boundary lies in from <= x < to, between `shallow` and `deep` bits below the top. The ids from `to` on
        // weigh `above` < wanted.
        float from = NONE, to = ALL;
        double shallow = 0, deep = FIRST_STEP * (THRESHOLDS + 1), above = 0, wanted = 0;
        int64_t ids_from = n_, ids_to = 0;
        for (int round = 0; round < ROUNDS && (round == 0 || ids_from - ids_to > SHORT_LIST); round++) {
            const double step = (deep - shallow) / (THRESHOLDS + 1);
            float threshold[THRESHOLDS];
            Mass mass[THRESHOLDS];
            for (int t = 0; t < THRESHOLDS; t++)
                threshold[t] = static_cast<float>(top_.value - (shallow + step * (t + 1)) / scale_);
            kept_.sums.resize(blocks());
            kept_.total = table_.masses(x_, n_, top_.value, scale_, keep_, threshold, mass, kept_.sums.data());
            if (round == 0) {
                wanted = p * kept_.total;
                if (scale_ == LOG2E && keep_.value == NONE) raw_ = kept_;
            }
            int t = 0;
            while (t < THRESHOLDS && mass[t].weight < wanted) t++;
            if (t > 0) {
                above = mass[t - 1].weight;
                to = threshold[t - 1];
                ids_to = mass[t - 1].count;
            }
            if (t < THRESHOLDS) {
                from = threshold[t];
                ids_from = mass[t].count;
                deep = shallow + step * (t + 1);
            } else if (round == 0) {
                // Ids lighter than this weigh less than the share 1 - p together: they are not needed.
                deep = std::max(deep, -std::log2(0.5 * (1.0 - p) * kept_.total / static_cast<double>(n_)));
            }
            shallow += step * t;
        }
        std::vector<int32_t> ids = collect_all(from, to, keep_);
        if (!ids.empty()) keep_ = shortest_prefix(std::move(ids), above, wanted);
        return ids_from;
    }

    // Adds ids to what weighs `above` until it weighs `wanted`: orders only what lies around the boundary.
    Prefix shortest_prefix(std::vector<int32_t> ids, double above, double wanted) const {
        auto begin = ids.begin(), end = ids.end();
        while (end - begin > 1) {
            const auto middle = begin + (end - begin) / 2;
            std::nth_element(begin, middle, end, [&](int32_t a, int32_t b) { return before(a, b); });
            double mass = above;
            for (const float w : weights(&*begin, middle - begin)) mass += w;
            if (mass >= wanted) {
                end = middle;
            } else {
                above = mass;
                begin = middle;
            }
        }
        return {x_[*begin], *begin};
    }

    const Table& table_;
    const float* x_;
    const int64_t n_;
    RowTop top_;
    std::vector<float> block_tops_;
    Sums raw_;  // of all ids at temperature 1, once asked for
    float scale_ = 0;
    Prefix keep_{};
    bool listed_ = false;  // whether list_ is keep_; else kept_ has its sums
    std::vector<int32_t> list_;
    std::vector<double> list_sums_;
    Sums kept_;
};

void refuse(const char* field, int64_t draw, double value, const char* expected) {
    throw std::invalid_argument(std::string(field) + "[" + std::to_string(draw) + "]=" + std::to_string(value) +
                                "; expected " + expected);
}

void check(const SampleArgs& g) {
    for (int64_t j = 0; j < g.draws; j++) {
        const float t = g.temperature[j];
        if (g.rows[j] < 0 || g.rows[j] >= g.n_rows) refuse("rows", j, g.rows[j], "a row of logits");
        if (!(t == 0 || (t >= std::numeric_limits<float>::min() && std::isfinite(t))))
            refuse("temperature", j, t, "0 or a positive finite number");
        if (g.top_k[j] < -1) refuse("top_k", j, g.top_k[j], "-1 or 0 (off) or a positive number");
        if (!(g.top_p[j] > 0 && g.top_p[j] <= 1)) refuse("top_p", j, g.top_p[j], "a number in (0, 1]");
        if (!(g.min_p[j] >= 0 && g.min_p[j] <= 1)) refuse("min_p", j, g.min_p[j], "a number in [0, 1]");
    }
}

std::tuple<float, int32_t, float, float> filters(const SampleArgs& g, int64_t draw) {
    return {g.temperature[draw], g.top_k[draw], g.top_p[draw], g.min_p[draw]};
}

// The draws order[begin, end), which read the same row; those with the same filters are neighbours.
void draw_row(const SampleArgs& g, const Table& table, const int64_t* order, int64_t begin, int64_t end) {
    Row row(table, g.logits + g.rows[order[begin]] * g.vocab, g.vocab);
    for (int64_t i = begin; i < end; i++) {
        const int64_t j = order[i];
        if (!row.finite()) {
            g.tokens[j] = -1;
            g.logprobs[j] = std::numeric_limits<float>::quiet_NaN();
            continue;
        }
        if (g.temperature[j] == 0) {
            g.tokens[j] = row.greedy();
        } else {
            if (i == begin || filters(g, j) != filters(g, order[i - 1]))
                row.filter(g.temperature[j], g.top_k[j], g.top_p[j], g.min_p[j]);
            g.tokens[j] = row.draw(uniform(g.keys[j], static_cast<uint32_t>(g.counters[j])));
        }
        g.logprobs[j] = row.logprob(g.tokens[j]);
    }
}

}  // namespace

void sample(const SampleArgs& g) {
    check(g);
    std::vector<int64_t> order(g.draws), starts;
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return g.rows[a] != g.rows[b] ? g.rows[a] < g.rows[b] : filters(g, a) < filters(g, b);
    });
    for (int64_t i = 0; i < g.draws; i++)
        if (i == 0 || g.rows[order[i]] != g.rows[order[i - 1]]) starts.push_back(i);
    const int64_t n_rows = static_cast<int64_t>(starts.size());
    starts.push_back(g.draws);
    const Table& table = active();
    const int64_t chunk = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, g.vocab));
    parallel_for(n_rows, chunk, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++) draw_row(g, table, order.data(), starts[r], starts[r + 1]);
    });
}

void token_logprobs(const float* logits, const int32_t* tokens, float* out, int64_t rows, int64_t vocab) {
    for (int64_t r = 0; r < rows; r++)
        if (tokens[r] < 0 || tokens[r] >= vocab) refuse("tokens", r, tokens[r], "an id of the vocabulary");
    const Table& table = active();
    const int64_t chunk = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, vocab));
    parallel_for(rows, chunk, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++) {
            Row row(table, logits + r * vocab, vocab);
            out[r] = row.finite() ? row.logprob(tokens[r]) : std::numeric_limits<float>::quiet_NaN();
        }
    });
}

}  // namespace wcse::cpu
