// Step scores: gathered rows through a head of one or two outputs and a link, summed up along their paths.
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

}  // namespace wcse::cpu
