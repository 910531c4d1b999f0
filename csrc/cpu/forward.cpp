#include "cpu/forward.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <utility>

namespace wcse::cpu {
namespace {

// Rows of the MLP at a time: enough for the matrices to run at full speed, few enough for its wide rows to stay small.
constexpr int64_t MLP_ROWS = 256;

std::array<std::atomic<double>, STAGES> clock_seconds{};

// Adds the time of its life to a stage.
class Timer {
public:
    explicit Timer(Stage stage) : stage_(stage), start_(clock::now()) {}
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;
    ~Timer() {
        const double seconds = std::chrono::duration<double>(clock::now() - start_).count();
        std::atomic<double>& total = clock_seconds[stage_];
        for (double old = total; !total.compare_exchange_weak(old, old + seconds);) {
        }
    }

private:
    using clock = std::chrono::steady_clock;
    Stage stage_;
    clock::time_point start_;
};

void gather(const float* from, const int64_t* rows, int64_t count, int64_t width, float* to) {
    for (int64_t i = 0; i < count; i++) std::copy_n(from + rows[i] * width, width, to + i * width);
}

}  // namespace

std::array<double, STAGES> stage_seconds() {
    std::array<double, STAGES> seconds;
    for (size_t i = 0; i < STAGES; i++) seconds[i] = clock_seconds[i];
    return seconds;
}

Forward::Forward(ModelArgs model) : model_(std::move(model)) {}

void Forward::run(const Plan& plan, const StepArgs& step) {
    for (int64_t i = 0; i < step.n_out; i++)
        if (step.out_rows[i] < 0 || step.out_rows[i] >= step.rows)
            throw std::invalid_argument("out_rows[" + std::to_string(i) + "]=" + std::to_string(step.out_rows[i]) +
                                        " is outside the " + std::to_string(step.rows) + " rows");
    std::lock_guard<std::mutex> lock(mutex_);
    reserve(step.rows, step.n_out);
    const int64_t width = static_cast<int64_t>(model_.n_heads) * model_.d;
    norm(step.x, nullptr, model_.layers[0].attn_norm, normed_, step.rows);
    for (size_t i = 0; i < model_.layers.size(); i++) {
        const LayerArgs& layer = model_.layers[i];
        attend(layer, i, plan, step);
        if (i + 1 < model_.layers.size()) {
            feed_forward(layer, step.x, qkv_, model_.layers[i + 1].attn_norm, normed_, step.rows);
            continue;
        }
        // After the last attention only the rows that were asked for matter.
        gather(step.x, step.out_rows, step.n_out, model_.dim, last_);
        gather(qkv_, step.out_rows, step.n_out, width, q_);
        feed_forward(layer, last_, q_, model_.final_norm, step.out, step.n_out);
    }
}

// From normed_ to the attention's result, in qkv_ [rows][n_heads * d].
void Forward::attend(const LayerArgs& layer, size_t index, const Plan& plan, const StepArgs& step) {
    multiply(layer.qkv, normed_, qkv_, step.rows);
    const size_t at = index * static_cast<size_t>(step.layer_stride) * (step.half ? 2 : 4);
    char *const k = step.k_pages + at, *const v = step.v_pages + at;
    {
        const Timer timer(ROWS);
        const RopeTable& rope = step.ropes[static_cast<size_t>(layer.rope)];
        const RopeArgs args{qkv_,         step.positions,    step.slots, rope.cos,   rope.sin,       layer.q_norm,
                            layer.k_norm, q_,                k,          v,          step.page_stride, step.half,
                            model_.n_heads, model_.n_kv_heads, model_.d, model_.eps, model_.norm_offset};
        cpu::rope(args, step.rows, rope.positions, step.n_pages);
    }
    const Timer timer(ATTENTION);
    tree_attention(plan, {q_, k, v, qkv_, model_.n_heads, model_.n_kv_heads, model_.d, step.n_pages, step.page_stride,
                          model_.scale, model_.softcap, layer.window, step.half});
}

// The rest of a layer: adds to the residual x in place and leaves it normed for the next layer.
void Forward::feed_forward(const LayerArgs& layer, float* x, const float* attended, const float* next_norm,
                           float* normed, int64_t rows) {
    const int64_t dim = model_.dim;
    multiply(layer.o, attended, out_, rows);
    if (layer.attn_post_norm) norm(out_, nullptr, layer.attn_post_norm, out_, rows);
    norm(out_, x, layer.ffn_norm, normed, rows);
    for (int64_t row = 0; row < rows; row += MLP_ROWS) {
        const int64_t count = std::min(MLP_ROWS, rows - row);
        multiply(layer.gate_up, normed + row * dim, gate_up_, count);
        {
            const Timer timer(ROWS);
            gated_act({gate_up_, inner_, layer.down.k, model_.gelu}, count);
        }
        multiply(layer.down, inner_, out_ + row * dim, count);
    }
    if (layer.ffn_post_norm) norm(out_, nullptr, layer.ffn_post_norm, out_, rows);
    norm(out_, x, next_norm, normed, rows);
}

void Forward::norm(const float* x, float* residual, const float* weight, float* out, int64_t rows) {
    const Timer timer(ROWS);
    rms_norm({x, residual, weight, out, model_.dim, model_.eps, model_.norm_offset}, rows);
}

void Forward::multiply(const Matrix& m, const float* x, float* out, int64_t rows) {
    const Timer timer(MATRICES);
    linear({x, m.weight, m.bias, nullptr, out, m.n, m.k}, rows);
}

void Forward::reserve(int64_t rows, int64_t n_out) {
    const LayerArgs& layer = model_.layers[0];
    const int64_t most = std::max(rows, n_out), mlp = std::min(most, MLP_ROWS);
    const std::array<std::pair<float**, int64_t>, 7> parts{{{&normed_, rows * model_.dim},
                                                            {&qkv_, rows * layer.qkv.n},
                                                            {&q_, most * layer.o.k},
                                                            {&out_, most * model_.dim},
                                                            {&gate_up_, mlp * layer.gate_up.n},
                                                            {&inner_, mlp * layer.down.k},
                                                            {&last_, n_out * model_.dim}}};
    size_t bytes = 0;
    for (const auto& part : parts) bytes += Scratch::padded<float>(static_cast<size_t>(part.second));
    memory_.begin(bytes);
    for (const auto& part : parts) *part.first = memory_.take<float>(static_cast<size_t>(part.second));
}

}  // namespace wcse::cpu
