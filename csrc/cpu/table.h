// What one instruction set offers: a table of plain functions over ranges of rows. The drivers (attention.cpp,
// linear.cpp, rows.cpp, sample.cpp) check, cut the work, own the scratch memory and run the threads.
// Plain data only: this header is also seen by the files that are compiled with wider instructions.
#pragma once
#include <cstddef>
#include <cstdint>

namespace wcse::cpu {

constexpr int PAGE = 16;         // tokens in a page
constexpr int BLOCK_PAGES = 4;   // pages that attention handles at a time, counted from a node's first page
constexpr int BLOCK = PAGE * BLOCK_PAGES;
constexpr int ATTEND_ROWS = 48;  // rows whose scores attention keeps at a time
constexpr int PANEL = 16;        // output columns in one panel of a packed weight
constexpr int SUM_BLOCK = 1024;  // logits per partial sum of the sampler
constexpr int THRESHOLDS = 8;    // at which the sampler weighs a row in one pass

// Longest run of inputs that a linear layer sums in registers, a multiple of OCTET and of every quantised group.
constexpr int64_t K_BLOCK = 384, K_STEP = 32;
constexpr int BLOCK_PANELS = 4;  // panels that a task of a linear layer takes together
constexpr int BLOCK_COLUMNS = BLOCK_PANELS * PANEL;
constexpr int OCTET = 8;  // inputs that lie together in a quantised weight

// A packed weight [n][k]; outputs beyond n are zeros. 32 bits: float panels [ceil(n / PANEL)][k][PANEL].
// 8 or 4 bits: blocks of BLOCK_COLUMNS outputs, each ceil(k / group) groups of consecutive inputs. A group is scales
// [BLOCK_COLUMNS], as many minima (or none), codes; a weight is scale * code + minimum. Eight-bit codes are
// int8 [group / 4][BLOCK_COLUMNS][4]. Four-bit codes are 0..15 in bytes [group / OCTET][BLOCK_COLUMNS][4]: byte i holds
// input i of the eight in its low half and input 4 + i in its high half. So a task reads one stream, front to back.
struct Weight {
    const char* data;
    int bits;
    int group;    // 16 or 32
    bool wide;    // scales and minima are float32, else float16
    bool minima;
    bool integer = false;  // inputs are rounded to 8 bits too, in the same groups, and products are of integers

    int64_t param_bytes() const { return BLOCK_COLUMNS * (wide ? 4 : 2) * (minima ? 2 : 1); }
    int64_t group_bytes() const { return param_bytes() + static_cast<int64_t>(group) * BLOCK_COLUMNS * bits / 8; }
    int64_t block_bytes(int64_t k) const {
        return bits == 32 ? BLOCK_COLUMNS * k * 4 : (k + group - 1) / group * group_bytes();
    }
    // Where inputs from k on begin in a block; k is a multiple of group.
    int64_t offset(int64_t k) const { return bits == 32 ? k * PANEL * 4 : k / group * group_bytes(); }
};

struct LinearArgs {
    const float* x;         // [rows][k]
    Weight weight;
    const float* bias;      // [n] or null
    const float* residual;  // [rows][n] or null
    float* out;             // [rows][n]
    int64_t n, k;
};

// Rows of inputs as codes: x is scale * code.
struct RoundedRows {
    int8_t* codes;   // [rows][groups * group], -127..127; zeros beyond k
    float* scales;   // [rows][groups]; NaN where an input is not finite
    int32_t* sums;   // [rows][groups], of the codes
    int64_t groups;  // of a row
    int group;       // 16 or 32

    int64_t width() const { return groups * group; }
};

struct NormArgs {
    const float* x;  // [rows][width]
    float* residual; // [rows][width], becomes the sum; or null
    const float* weight;
    float* out;
    int64_t width;
    float eps, offset;
};

struct RopeArgs {
    const float* qkv;
    const int32_t *positions, *slots;
    const float *cos, *sin;
    const float *q_norm, *k_norm;  // or null
    float* q;
    void *k_pages, *v_pages;  // of float, or of halves
    int64_t page_stride;      // numbers from one page to the next
    bool half;
    int n_heads, n_kv_heads, d;
    float eps, norm_offset;
};

struct GatedArgs {
    const float* gate_up;
    float* out;
    int64_t width;
    bool gelu;
};

// One block of one node for an interval of packed rows (tree row x query head of the group).
struct AttendArgs {
    const float* k[BLOCK_PAGES];
    const float* v[BLOCK_PAGES];
    int tokens;            // valid tokens of the block
    const int32_t* first;  // per tree row, it sees tokens [first, last) of the block; null: all of them
    const int32_t* last;
    const float* q;  // [rows][d], scaled so that scores are base-2 logarithms (with softcap: arguments of tanh)
    float* out;      // [rows][d], unnormalised
    float* top;      // [rows]
    float* sum;      // [rows][16]
    float* scores;   // scratch [ATTEND_ROWS][BLOCK]
    int rows, group, d;
    float cap;  // softcap * log2(e), or 0
    // Pages of the block that follows, as they are stored, to be fetched from memory meanwhile.
    const char* next_k[BLOCK_PAGES];
    const char* next_v[BLOCK_PAGES];
    int next_pages;
    int64_t page_bytes;
};

// The most likely end of a row of logits: ids with x > value, and those with x == value up to last_id.
struct Prefix {
    float value;
    int64_t last_id;
};

// What lies at or above a threshold.
struct Mass {
    double weight;
    int64_t count;
};

struct RowTop {
    float value;
    int64_t id;    // of the first largest
    bool finite;   // no NaN, no +inf, not all -inf
};

struct Table {
    const char* name;
    int unpack_rows;  // up to so many rows linear unpacks quantised weights in registers
    // scratch [4][K_BLOCK][PANEL] is for the weights of a quantised block; null where they are float.
    void (*linear)(const LinearArgs&, int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end,
                   float* scratch);
    // Linear layers whose weight is `integer`: rounding of rows [begin, end) of x [rows][k], and the products.
    void (*round_rows)(const float* x, int64_t k, const RoundedRows& out, int64_t begin, int64_t end);
    void (*dot_linear)(const LinearArgs&, const RoundedRows&, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                       int64_t panel_end);
    void (*rms_norm)(const NormArgs&, int64_t begin, int64_t end);
    void (*rope)(const RopeArgs&, int64_t begin, int64_t end);
    void (*gated_act)(const GatedArgs&, int64_t begin, int64_t end);
    void (*scale)(float* out, const float* x, float factor, int64_t n);
    void (*widen)(float* out, const char* halves, int64_t n);  // n is a multiple of 16
    void (*attend)(const AttendArgs&);
    void (*normalise)(float* out, const float* acc, const float* sum, int64_t rows, int64_t d);
    // Sampler. exp below means exp2((x - top) * scale).
    RowTop (*row_top)(const float* x, int64_t n, float* block_tops);  // block_tops [ceil(n / 64)]
    // Sums of exp over the prefix per SUM_BLOCK, in fixed order; returns their sum.
    double (*prefix_sums)(const float* x, int64_t n, float top, float scale, Prefix keep, double* sums);
    // The same, and for each threshold the weight of the ids of the prefix with x >= threshold, and how many ids of
    // the row have it.
    double (*masses)(const float* x, int64_t n, float top, float scale, Prefix keep, const float* thresholds, Mass* out,
                     double* sums);
    // Ids of the prefix with from <= x < to, ascending; returns how many, or -1 if there are more than `most`.
    // ids has room for most + SUM_BLOCK.
    int64_t (*ids_between)(const float* x, int64_t n, float from, float to, Prefix keep, int64_t most, int32_t* ids);
    void (*exps)(const float* x, int64_t n, float top, float scale, float* out);
    double (*fma_loop)(int64_t iterations);  // floating-point operations done
    double (*dot_loop)(int64_t iterations);  // the same of integers
};

const Table& portable_table();
#ifdef WCSE_X86
const Table& avx2_table();
const Table& avx512_table();
#endif
// Those with integer dot products as instructions (VNNI); other kernels are the same.
#ifdef WCSE_AVX_VNNI
const Table& avx_vnni_table();
#endif
#ifdef WCSE_AVX512_VNNI
const Table& avx512_vnni_table();
#endif

}  // namespace wcse::cpu
