// Step scores: gathered rows through a head of one or two outputs and a link, summed up along their paths, and the best
// paths of each group.
#include <algorithm>
#include <cmath>
#include <limits>
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

double value(const PathScores& path, Aggregation how) {
    switch (how) {
        case Aggregation::last: return path.last;
        case Aggregation::min: return path.least;
        case Aggregation::prod: return std::exp(path.logs);
        default: return path.total / path.steps;
    }
}

void enter(Place candidate, Place* begin, Place* end) {
    if (std::isnan(candidate.value)) candidate.value = -std::numeric_limits<double>::infinity();
    const auto better = [](const Place& a, const Place& b) {
        return a.value > b.value || (a.value == b.value && a.order < b.order);
    };
    Place* at = std::upper_bound(begin, end, candidate, better);
    if (at == end) return;
    std::move_backward(at, end - 1, end);
    *at = candidate;
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
        if (g.group[s] < -1 || g.group[s] >= g.groups)
            throw std::invalid_argument("group[" + std::to_string(s) + "]=" + std::to_string(g.group[s]) +
                                        " is neither -1 nor one of the " + std::to_string(g.groups) + " groups");
    }
    for (int64_t i = 0; i <= g.groups; i++)
        if (g.bounds[i] < (i ? g.bounds[i - 1] : 0) || g.bounds[i] > g.n_best)
            throw std::invalid_argument("bounds[" + std::to_string(i) + "]=" + std::to_string(g.bounds[i]) +
                                        " does not lie between the one before and the " + std::to_string(g.n_best) +
                                        " places");
    for (int64_t i = 0; i < g.groups; i++)
        if (const auto how = static_cast<int32_t>(g.how[i]); how < 0 || how > static_cast<int32_t>(Aggregation::mean))
            throw std::invalid_argument("how[" + std::to_string(i) + "]=" + std::to_string(how) +
                                        " is no aggregation");
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
        if (const int32_t i = g.group[s]; i >= 0)
            enter({value(g.out[s], g.how[i]), g.order[s]}, g.best + g.bounds[i], g.best + g.bounds[i + 1]);
    }
}

}  // namespace wcse::cpu
