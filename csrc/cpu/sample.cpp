// Sampling without sorting the vocabulary.
//
// Min-p, top-k and top-p each keep a prefix of the ids in the order (larger logit, then lower id), so all three
// together are one prefix: a logit and the last id that is kept among those equal to it. Top-k finds its end among
// the few logits that can be in it (at least k blocks of 64 have a maximum as large as the k-th largest of those).
// Top-p adds the weights up in bins by logit and sorts only the bin that the boundary falls into.
// Draws that read one row share its passes. Every sum has one fixed order.
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
constexpr int BINS = 1024;
constexpr float BINS_PER_BIT = 16;  // 64 bits in all: what lies below weighs nothing

Prefix tighter(Prefix a, Prefix b) {
    return a.value > b.value || (a.value == b.value && a.last_id < b.last_id) ? a : b;
}

class Row {
public:
    Row(const Table& table, const float* x, int64_t n)
        : table_(table), x_(x), n_(n), block_tops_((n + 63) / 64), raw_sums_(blocks()) {
        top_ = table_.row_top(x_, n_, block_tops_.data());
        if (top_.finite) raw_total_ = table_.prefix_sums(x_, n_, top_.value, LOG2E, everything(), raw_sums_.data());
    }

    bool finite() const { return top_.finite; }
    int32_t greedy() const { return static_cast<int32_t>(top_.id); }
    float logprob(int32_t token) const {
        return static_cast<float>(static_cast<double>(x_[token]) - top_.value - std::log(raw_total_));
    }

    // Fixes temperature and filters for the draws that follow.
    void filter(float temperature, int32_t top_k, float top_p, float min_p) {
        scale_ = std::min(LOG2E / temperature, 1e30f);  // finite times BINS_PER_BIT
        keep_ = everything();
        if (min_p > 0) {
            const double least = top_.value + static_cast<double>(temperature) * std::log(static_cast<double>(min_p));
            keep_ = {std::min(top_.value, static_cast<float>(least)), n_ - 1};
        }
        if (top_k > 0 && top_k < n_) keep_ = tighter(keep_, first_k(top_k));
        const bool raw = temperature == 1.f && min_p <= 0 && !(top_k > 0 && top_k < n_);
        if (raw) {
            sums_ = raw_sums_;
            total_ = raw_total_;
        } else {
            add_up();
        }
        if (top_p < 1) {
            keep_ = tighter(keep_, nucleus(top_p));
            add_up();
        }
    }

    // The first kept id, in id order, whose cumulative share exceeds u.
    int32_t draw(double u) {
        const double target = u * total_;
        double before = 0;
        int64_t block = 0, last = 0;
        for (; block < blocks() && before + sums_[block] <= target; block++) {
            if (sums_[block] > 0) last = block;
            before += sums_[block];
        }
        if (block == blocks()) {  // rounding: the last id that is kept
            block = last;
            before = -std::numeric_limits<double>::infinity();
        }
        const int64_t begin = block * SUM_BLOCK, n = std::min<int64_t>(SUM_BLOCK, n_ - begin);
        float weight[SUM_BLOCK];
        table_.exps(x_ + begin, n, top_.value, scale_, weight);
        int64_t found = begin;
        for (int64_t i = 0; i < n; i++) {
            const float x = x_[begin + i];
            if (!(x > keep_.value || (x == keep_.value && begin + i <= keep_.last_id)) || weight[i] == 0.f) continue;
            found = begin + i;
            before += weight[i];
            if (before > target) break;
        }
        return static_cast<int32_t>(found);
    }

private:
    int64_t blocks() const { return (n_ + SUM_BLOCK - 1) / SUM_BLOCK; }
    Prefix everything() const { return {-std::numeric_limits<float>::infinity(), n_ - 1}; }
    bool before(int32_t a, int32_t b) const { return x_[a] > x_[b] || (x_[a] == x_[b] && a < b); }

    void add_up() {
        sums_.resize(blocks());
        total_ = table_.prefix_sums(x_, n_, top_.value, scale_, keep_, sums_.data());
    }

    Prefix first_k(int32_t k) {
        float least = -std::numeric_limits<float>::infinity();
        if (k <= static_cast<int64_t>(block_tops_.size())) {
            std::vector<float> tops = block_tops_;
            std::nth_element(tops.begin(), tops.begin() + (k - 1), tops.end(), std::greater<float>());
            least = tops[k - 1];
        }
        ids_.resize(n_ + 16);
        const int64_t count = table_.ids_from(x_, n_, least, ids_.data());
        std::nth_element(ids_.begin(), ids_.begin() + (k - 1), ids_.begin() + count,
                         [&](int32_t a, int32_t b) { return before(a, b); });
        return {x_[ids_[k - 1]], ids_[k - 1]};
    }

    // The shortest prefix of keep_ that holds the share p of its weight.
    Prefix nucleus(float p) {
        const double wanted = p * total_;
        // Ids lighter than this weigh less than the rest together: they cannot be in it.
        const float least = static_cast<float>(0.5 * (1.0 - p) * total_ / static_cast<double>(n_));
        const float bin_scale = scale_ * BINS_PER_BIT;
        double bins[BINS] = {};
        table_.histogram(x_, n_, top_.value, scale_, keep_, least, bin_scale, BINS, bins);
        double before_bin = 0;
        int bin = 0;
        while (bin < BINS && before_bin + bins[bin] < wanted) before_bin += bins[bin++];
        if (bin == BINS) return keep_;
        ids_.resize(n_ + 16);
        const int64_t count = table_.bin_ids(x_, n_, top_.value, keep_, bin_scale, BINS, bin, ids_.data());
        std::sort(ids_.begin(), ids_.begin() + count, [&](int32_t a, int32_t b) { return before(a, b); });
        std::vector<float> weight(count);
        for (int64_t i = 0; i < count; i++) weight[i] = x_[ids_[i]];
        table_.exps(weight.data(), count, top_.value, scale_, weight.data());
        int64_t last = 0;
        for (double sum = before_bin; last + 1 < count && (sum += weight[last]) < wanted;) last++;
        return {x_[ids_[last]], ids_[last]};
    }

    const Table& table_;
    const float* x_;
    const int64_t n_;
    RowTop top_;
    std::vector<float> block_tops_;
    std::vector<double> raw_sums_;
    double raw_total_ = 0;
    float scale_ = 0;
    Prefix keep_{};
    std::vector<double> sums_;
    double total_ = 0;
    std::vector<int32_t> ids_;
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

}  // namespace

void sample(const SampleArgs& g) {
    check(g);
    const auto filters = [&](int64_t j) { return std::make_tuple(g.temperature[j], g.top_k[j], g.top_p[j], g.min_p[j]); };
    std::vector<int64_t> order(g.draws), starts;
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return g.rows[a] != g.rows[b] ? g.rows[a] < g.rows[b] : filters(a) < filters(b);
    });
    for (int64_t i = 0; i < g.draws; i++)
        if (i == 0 || g.rows[order[i]] != g.rows[order[i - 1]]) starts.push_back(i);
    const int64_t n_rows = static_cast<int64_t>(starts.size());
    starts.push_back(g.draws);
    const Table& table = active();
    const int64_t chunk = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, g.vocab));
    parallel_for(n_rows, chunk, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++) {
            Row row(table, g.logits + g.rows[order[starts[r]]] * g.vocab, g.vocab);
            for (int64_t i = starts[r]; i < starts[r + 1]; i++) {
                const int64_t j = order[i];
                int32_t token = -1;
                if (row.finite()) {
                    token = row.greedy();
                    if (g.temperature[j] != 0) {
                        if (i == starts[r] || filters(j) != filters(order[i - 1]))
                            row.filter(g.temperature[j], g.top_k[j], g.top_p[j], g.min_p[j]);
                        token = row.draw(uniform(g.keys[j], static_cast<uint32_t>(g.counters[j])));
                    }
                }
                g.tokens[j] = token;
                g.logprobs[j] = token < 0 ? std::numeric_limits<float>::quiet_NaN() : row.logprob(token);
            }
        }
    });
}

}  // namespace wcse::cpu
