// The layers of a decoder as one call: the kernels of kernels.h one after another, over buffers that are kept.
//
// What a call needs anew is in StepArgs; what a model is was handed over once. Results have the bits of the kernels
// called one by one. Knows nothing of embeddings, vocabularies or sampling.
#pragma once
#include <array>
#include <cstdint>
#include <mutex>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace wcse::cpu {

struct Matrix {
    Weight weight;
    const float* bias;  // or null
    int64_t n, k;
};

struct LayerArgs {
    const float *attn_norm, *ffn_norm;
    const float *attn_post_norm, *ffn_post_norm;  // of what attention and MLP give, before it is added; or null
    const float *q_norm, *k_norm;                 // or null
    Matrix qkv, o, gate_up, down;
    int64_t window;
    int rope;  // which of the step's tables
};

struct ModelArgs {
    std::vector<LayerArgs> layers;
    const float* final_norm;
    int64_t dim;
    int n_heads, n_kv_heads, d;
    float eps, norm_offset, scale, softcap;
    bool gelu;
};

struct RopeTable {
    const float *cos, *sin;  // [positions][d / 2]
    int64_t positions;
};

struct StepArgs {
    float* x;  // [rows][dim], what the first layer gets; overwritten
    int64_t rows;
    const int32_t *positions, *slots;
    std::vector<RopeTable> ropes;
    char *k_pages, *v_pages;  // of the first layer, see TreeAttention
    bool half;  // pages are float16
    int64_t n_pages, page_stride, layer_stride;  // strides in numbers
    const int64_t* out_rows;  // rows whose final hidden state is wanted, in this order
    int64_t n_out;
    float* out;  // [n_out][dim]
};

// What a step's time is spent on.
enum Stage { MATRICES, ATTENTION, ROWS, STAGES };

// Seconds by stage of every forward pass of this process so far: a clock, which is only ever read by difference.
std::array<double, STAGES> stage_seconds();

class Forward {
public:
    explicit Forward(ModelArgs model);
    // Throws std::invalid_argument for a position, slot, page or row out of range.
    void run(const Plan& plan, const StepArgs& step);

private:
    void attend(const LayerArgs& layer, size_t index, const Plan& plan, const StepArgs& step);
    void feed_forward(const LayerArgs& layer, float* x, const float* attended, const float* next_norm, float* normed,
                      int64_t rows);
    void norm(const float* x, float* residual, const float* weight, float* out, int64_t rows);
    void multiply(const Matrix& m, const float* x, float* out, int64_t rows);
    void reserve(int64_t rows, int64_t n_out);

    const ModelArgs model_;
    std::mutex mutex_;  // of the buffers
    Scratch memory_;
    float *normed_, *qkv_, *q_, *out_, *gate_up_, *inner_, *last_;
};

}  // namespace wcse::cpu
