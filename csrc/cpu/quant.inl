// Quantised panels: tiles that unpack their weights in registers, for a few rows, and whole blocks unpacked to floats,
// for the tiles of gemm.inl. A weight is scale * code + minimum, rounded once, in either way, and sums run in the same
// order, so both give the same bits. The layout is that of Weight in table.h.

// Scales and minima of one register of columns.
struct Params {
    Reg scale, minimum;
};

inline Params load_params(const char* group, const Weight& w, int column) {
    if (w.wide) {
        const char* p = group + column * 4;
        return {load(reinterpret_cast<const float*>(p)),
                w.minima ? load(reinterpret_cast<const float*>(p + PANEL * 4)) : zero()};
    }
    const char* p = group + column * 2;
    return {load_halves(p), w.minima ? load_halves(p + PANEL * 2) : zero()};
}

template <int BITS>
constexpr int OCTET_BYTES = OCTET * PANEL * BITS / 8;

// Codes of input I of the eight, for the register of columns that begins at `column`.
template <int BITS, int I>
inline __attribute__((always_inline)) Reg unpack(const char* octet, int column) {
    if constexpr (BITS == 8)
        return byte<I % 4>(load_ints(octet + (I / 4 * PANEL + column) * 4));
    else
        return half_byte<I>(load_ints(octet + column * 4));
}

// As LinearRun, for weights of BITS bits; b is at the start of a group.
template <int BITS, int M, int N>
struct QuantRun {
    static __attribute__((noinline)) void run(const LinearTile& t) {
        Reg c[M][N];
        clear(c);
        const Weight w = t.weight;
        const int64_t param_bytes = w.param_bytes(), group_bytes = w.group_bytes();
        const char* group = t.b;
        for (int64_t k = 0; k < t.k; k += w.group, group += group_bytes) {
            Params p[N];
            unroll<N>([&](auto j) {
                p[j] = load_params(group + (j / VECS_PER_PANEL) * t.panel_stride, w, (j % VECS_PER_PANEL) * W);
            });
            const char* octet = group + param_bytes;
            const int64_t end = t.k - k < w.group ? t.k : k + w.group;
            for (int64_t i = k; i < end; i += OCTET, octet += OCTET_BYTES<BITS>) {
                const int64_t left = end - i;
                unroll<OCTET>([&](auto s) {
                    if (s >= left) return;
                    unroll<N>([&](auto j) {
                        const Reg code = unpack<BITS, s>(octet + (j / VECS_PER_PANEL) * t.panel_stride,
                                                         (j % VECS_PER_PANEL) * W);
                        const Reg b = fma(p[j].scale, code, p[j].minimum);
                        unroll<M>([&](auto m) { c[m][j] = fma(set1(t.a[m * t.lda + i + s]), b, c[m][j]); });
                    });
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

// Floats [k][PANEL] of whole groups of one panel; k is rounded up to whole groups.
template <int BITS>
inline void unpack_panel(const char* group, const Weight& w, int64_t k, float* out) {
    for (int64_t i = 0; i < k; i += w.group, group += w.group_bytes()) {
        Params p[VECS_PER_PANEL];
        unroll<VECS_PER_PANEL>([&](auto v) { p[v] = load_params(group, w, v * W); });
        const char* octet = group + w.param_bytes();
        for (int o = 0; o < w.group; o += OCTET, octet += OCTET_BYTES<BITS>, out += OCTET * PANEL)
            unroll<OCTET>([&](auto s) {
                unroll<VECS_PER_PANEL>([&](auto v) {
                    store(out + s * PANEL + v * W, fma(p[v].scale, unpack<BITS, s>(octet, v * W), p[v].minimum));
                });
            });
    }
}
