// Step scores: gathered rows through a head of one or two outputs and a link.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace wcse::cpu {

void score_steps(const ScoreArgs& g) {
    for (int64_t s = 0; s < g.steps; s++)
        if (g.rows[s] < 0 || g.rows[s] >= g.n_rows)
            throw std::invalid_argument("rows[" + std::to_string(s) + "]=" + std::to_string(g.rows[s]) +
                                        " is outside the " + std::to_string(g.n_rows) + " hidden states");
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
    for (int64_t s = 0; s < g.steps; s++) {
        const float* out = x.data() + s * width;
        const double z = width == 2 ? static_cast<double>(out[1]) - out[0] : out[0];
        g.scores[s] = static_cast<float>(g.bounded ? 1 / (1 + std::exp(-z)) : z);
    }
}

}  // namespace wcse::cpu
