// Quantised panels: tiles that unpack their weights in registers, for a few rows, and whole blocks unpacked to floats,
// for the tiles of gemm.inl. A weight is scale * code + minimum, rounded once, in either way, and sums run in the same
// order, so both give the same bits. The layout is that of Weight in table.h.

// Scales and minima of one register of columns.
struct Params {
    Reg scale, minimum;
};

// `column` is counted from the block's first.
inline Params load_params(const char* group, const Weight& w, int column) {
    Params p{zero(), zero()};
    if (w.wide) {
        const float* at = reinterpret_cast<const float*>(group) + column;
        p.scale = load(at);
        if (w.minima) p.minimum = load(at + BLOCK_COLUMNS);
    } else {
        p.scale = load_halves(group + column * 2);
        if (w.minima) p.minimum = load_halves(group + (BLOCK_COLUMNS + column) * 2);
    }
    return p;
}

// The same with the scale of what unpack() gives.
template <int BITS>
inline Params unpack_params(const char* group, const Weight& w, int column) {
    Params p = load_params(group, w, column);
    if constexpr (BITS == 8) p.scale = mul(p.scale, set1(0x1p-24f));
    return p;
}

template <int BITS>
constexpr int OCTET_BYTES = OCTET * BLOCK_COLUMNS * BITS / 8;

// Codes (of 8 bits times 2^24) of input I of the eight, for the register of columns that begins at `column` of the block.
template <int BITS, int I>
inline __attribute__((always_inline)) Reg unpack(const char* octet, int column) {
    if constexpr (BITS == 8)
        return byte<I % 4>(load_ints(octet + (I / 4 * BLOCK_COLUMNS + column) * 4));
    else
        return half_byte<I>(load_ints(octet + column * 4));
}

// Bytes ahead that tiles of fewer columns than a block fetch: what they read is no stream to the processor.
constexpr int PREFETCH = 2048;

// Tiles that unpack weights: more rows than of float weights, so that a weight is unpacked for as many as possible.
struct QuantShape {
    static constexpr int ROWS_MOST = QUANT_ROWS;
    static constexpr int vecs(int rows) { return rows <= QUANT_FEW_ROWS ? VECS_FEW_ROWS : QUANT_VECS; }
};

// As LinearRun, for weights of BITS bits; b is at the start of a group, and k is a multiple of OCTET.
template <int BITS, int M, int N>
struct QuantRun {
    // Input I of an octet.
    template <int I>
    static inline __attribute__((always_inline)) void step(Reg (&c)[M][N], const Params (&p)[N], const char* octet,
                                                           const float* a, int64_t lda) {
        unroll<N>([&](auto j) {
            const Reg b = fma(p[j].scale, unpack<BITS, I>(octet, j * W), p[j].minimum);
            unroll<M>([&](auto m) { c[m][j] = fma(set1(a[m * lda + I]), b, c[m][j]); });
        });
    }

    static __attribute__((noinline)) void run(const LinearTile& t) {
        Reg c[M][N];
        clear(c);
        const Weight w = t.weight;
        const char* group = t.b;
        for (int64_t k = 0; k < t.k; k += w.group, group += w.group_bytes()) {
            Params p[N];
            unroll<N>([&](auto j) { p[j] = unpack_params<BITS>(group, w, t.column + j * W); });
            const int64_t end = t.k - k < w.group ? t.k - k : w.group;
            const char* octet = group + w.param_bytes();
            const float* a = t.a + k;
            for (int64_t i = 0; i < end; i += OCTET, octet += OCTET_BYTES<BITS>, a += OCTET) {
                if constexpr (M > QUANT_FEW_ROWS)
                    for (int line = 0; line < OCTET_BYTES<BITS>; line += 64)
                        __builtin_prefetch(octet + PREFETCH + line);
                unroll<OCTET>([&](auto s) {
                    asm volatile("" : "+r"(a));  // GCC would load the inputs of all steps first and spill the sums
                    step<s>(c, p, octet + t.column * 4, a, t.lda);
                });
            }
        }
        finish(c, t);
    }
};
template <int M, int N>
using Quant8Run = QuantRun<8, M, N>;
template <int M, int N>
using Quant4Run = QuantRun<4, M, N>;

// A block as float panels [K_BLOCK][PANEL]; k is rounded up to whole groups.
template <int BITS>
inline void unpack_block(const char* group, const Weight& w, int64_t k, float* out) {
    constexpr int VECS_PER_BLOCK = BLOCK_COLUMNS / W;
    for (int64_t i = 0; i < k; i += w.group, group += w.group_bytes()) {
        const char* octet = group + w.param_bytes();
        for (int o = 0; o < w.group; o += OCTET, octet += OCTET_BYTES<BITS>, out += OCTET * PANEL)
            for (int v = 0; v < VECS_PER_BLOCK; v++) {
                const Params p = unpack_params<BITS>(group, w, v * W);
                float* const to = out + v / VECS_PER_PANEL * K_BLOCK * PANEL + v % VECS_PER_PANEL * W;
                unroll<OCTET>([&](auto s) {
                    store(to + s * PANEL, fma(p.scale, unpack<BITS, s>(octet, v * W), p.minimum));
                });
            }
    }
}
