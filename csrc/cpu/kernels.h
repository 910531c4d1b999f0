// The CPU kernels: what bind_kernels.cpp calls. Pointers are to float32 (or as typed) contiguous memory of the shapes
// given; nothing here knows of Python or tensors. Loops run on the pool of thread_pool.h; results do not depend on it.
// Bad indices raise std::invalid_argument before anything is written.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/table.h"
#include "plan.h"

namespace wcse::cpu {

// Instruction sets that this processor runs, best first; the one in use; and a choice of another for tests.
std::vector<std::string> isas();
std::string isa();
void set_isa(const std::string& name);
const Table& active();

struct TreeAttention {
    const float* q;        // [T][n_heads][d]
    const void* k_pages;  // [n_pages], page_stride numbers apart, of [n_kv_heads][d][PAGE] floats or, where half, float16
    const void* v_pages;  // the same of [n_kv_heads][PAGE][d]
    float* out;            // [T][n_heads][d]
    int n_heads, n_kv_heads, d;
    int64_t n_pages, page_stride;
    float scale, softcap;
    int64_t window;
    bool half;
};
void tree_attention(const Plan& plan, const TreeAttention& g);

void linear(const LinearArgs& g, int64_t rows);
void rms_norm(const NormArgs& g, int64_t rows);
void gated_act(const GatedArgs& g, int64_t rows);
void rope(const RopeArgs& g, int64_t rows, int64_t n_positions, int64_t n_pages);

struct SampleArgs {
    const float* logits;  // [n_rows][vocab]
    int64_t n_rows, vocab;
    // One entry per draw.
    const int32_t* rows;
    const float* temperature;
    const int32_t* top_k;
    const float *top_p, *min_p;
    const uint64_t* keys;
    const int32_t* counters;
    int32_t* tokens;
    float* logprobs;
    int64_t draws;
};
void sample(const SampleArgs& g);

// out[r] = log-softmax of logits[r] at tokens[r]; NaN for a row with NaN, +inf or nothing but -inf.
void token_logprobs(const float* logits, const int32_t* tokens, float* out, int64_t rows, int64_t vocab);

// What the aggregations need of the scores along a path.
struct PathScores {
    double last, least, logs, total, steps;
};

// A candidate's place among the best of its group.
struct Place {
    double value;  // -inf for NaN
    double order;  // the smaller comes first among equals; +inf: nobody
};

enum class Aggregation : int32_t { last, min, prod, mean };

struct ScoreArgs {
    const float* hidden;  // [n_rows][layers[0].k]
    int64_t n_rows;
    const int32_t* rows;       // [steps]
    const LinearArgs* layers;  // x and out are set by score_steps
    int n_layers;
    bool bounded;             // sigmoid of the (difference of the) outputs; otherwise as it is
    const PathScores* known;  // [n_known]
    int64_t n_known;
    const int32_t* above;  // [steps]: place of the step above in known followed by out, before this one; -1: none
    PathScores* out;       // [steps]; last is the score, rounded to float
    int64_t steps;
    const int32_t* group;    // [steps]: the group that a step is a candidate of; -1: none
    const double* order;     // [steps]
    int64_t groups;
    const int32_t* bounds;   // [groups + 1]: the best of group g so far are best[bounds[g] .. bounds[g + 1])
    const Aggregation* how;  // [groups]: what they are ranked by
    Place* best;             // [n_best], best first in each group; updated
    int64_t n_best;
};
// Gather, linear layers with ReLU between them, link, the sums along each path, and the best of each group. The scores
// of rows do not depend on each other.
void score_steps(const ScoreArgs& g);

// Floating-point operations per second of bare multiply-adds on every thread of the pool, each at its best within this
// time.
double fma_peak(double seconds);
double dot_peak(double seconds);  // the same of integers: products of bytes, sums of 32 bits

}  // namespace wcse::cpu
