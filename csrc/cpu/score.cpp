// Step scores: gathered rows through a head of one or two outputs and a link, summed up along their paths; the best of
// each group of scores.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace wcse::cpu {
namespace {

PathScores then(const PathScores& path, double score) {
    const double least = path.least <= score || std::isnan(path.least) ? path.least : score;
    return {score, least, path.logs + std::log(score), path.total + score, path.steps + 1};
}

void check(const ScoreArgs& g) {
    for (int64_t s = 0; s < g.steps; s++) {
        if (g.rows[s] < 0 || g.rows[s] >= g.n_rows)
            throw std::invalid_argument("rows[" + std::to_string(s) + "]=" + std::to_string(g.rows[s]) +
                                        " is outside the " + std::to_string(g.n_rows) + " hidden states");
        if (g.above[s] < -1 || g.above[s] >= g.n_known + s)
            throw std::invalid_argument("above[" + std::to_string(s) + "]=" + std::to_string(g.above[s]) +
                                        " is neither -1 nor one of the " + std::to_string(g.n_known) +
                                        " known paths and the steps before");
    }
}

}  // namespace

void score_steps(const ScoreArgs& g) {
    check(g);
    int64_t width = g.layers[0].k;
    std::vector<float> x(static_cast<size_t>(g.steps * width)), y;
    for (int64_t s = 0; s < g.steps; s++) std::copy_n(g.hidden + g.rows[s] * width, width, x.data() + s * width);
    for (int i = 0; i < g.n_layers; i++) {
        LinearArgs layer = g.layers[i];
        y.resize(static_cast<size_t>(g.steps * layer.n));
        layer.x = x.data();
        layer.out = y.data();
        linear(layer, g.steps);
        if (i + 1 < g.n_layers)
            for (float& v : y) v = v > 0 || std::isnan(v) ? v : 0.f;
        std::swap(x, y);
        width = layer.n;
    }
    // In double and one by one: neither the vector width nor the place in the batch may change a bit.
    constexpr double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    for (int64_t s = 0; s < g.steps; s++) {
        const float* out = x.data() + s * width;
        const double z = width == 2 ? static_cast<double>(out[1]) - out[0] : out[0];
        const float score = static_cast<float>(g.bounded ? 1 / (1 + std::exp(-z)) : z);
        const int64_t above = g.above[s];
        const PathScores path = above < 0           ? PathScores{nan, inf, 0, 0, 0}
                                : above < g.n_known ? g.known[above]
                                                    : g.out[above - g.n_known];
        g.out[s] = then(path, score);
    }
}

void group_top_k(const TopKArgs& g) {
    for (int64_t i = 0; i <= g.groups; i++)
        if (g.bounds[i] < (i ? g.bounds[i - 1] : 0) || g.bounds[i] > g.n_scores)
            throw std::invalid_argument("bounds[" + std::to_string(i) + "]=" + std::to_string(g.bounds[i]) +
                                        " does not lie between the one before and the " + std::to_string(g.n_scores) +
                                        " scores");
    const auto better = [scores = g.scores](int32_t a, int32_t b) {
        const float x = scores[a], y = scores[b];
        if (std::isnan(x) != std::isnan(y)) return std::isnan(y);
        return x > y || (!(x < y) && a < b);
    };
    std::vector<int32_t> places;
    for (int64_t i = 0; i < g.groups; i++) {
        places.resize(static_cast<size_t>(g.bounds[i + 1] - g.bounds[i]));
        std::iota(places.begin(), places.end(), g.bounds[i]);
        const auto kept = std::min(g.k, static_cast<int64_t>(places.size()));
        std::partial_sort(places.begin(), places.begin() + kept, places.end(), better);
        std::fill_n(std::copy_n(places.begin(), kept, g.out + i * g.k), g.k - kept, -1);
    }
}

}  // namespace wcse::cpu
