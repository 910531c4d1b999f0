// Linear layers by integer dot products: inputs are rounded to 8 bits in the groups in which the weights are quantised.
// The products of a group are summed exactly; per output, one chain of multiply-adds in the order of the groups makes
// the sum over them: out += (weight scale * input scale) * sum. So bits depend on nothing but the row, and AVX2 and
// AVX-512 agree, with VNNI or without.

// Inputs of one group. The largest becomes 127 or -127; a group of (nearly) nothing is 0.
inline void round_group(const float* x, int n, int group, int8_t* codes, float& scale, int32_t& sum_of_codes) {
    constexpr float NOTHING = 0x1p-120f;  // 127 / x is still finite here
    const int vecs = group / 16;
    Vec v[2], size = vzero(), spoiled = vzero();
    for (int i = 0; i < vecs; i++) {
        const int left = n - 16 * i;
        v[i] = left >= 16 ? vload(x + 16 * i) : left > 0 ? vload_n(x + 16 * i, left) : vzero();
        size = max(size, max(v[i], sub(vzero(), v[i])));
        spoiled = add(spoiled, sub(v[i], v[i]));  // NaN where an input is NaN or infinite
    }
    const float top = max(size), zero_or_nan = sum(spoiled);
    scale = zero_or_nan;
    sum_of_codes = 0;
    if (zero_or_nan != 0.f || !(top >= NOTHING)) {
        __builtin_memset(codes, 0, group);
        return;
    }
    scale = top / 127.f;
    const Vec inverse = vset(127.f / top);
    Vec total = vzero();
    for (int i = 0; i < vecs; i++) {
        for (int r = 0; r < N_REGS; r++) {
            const Reg code = round(mul(v[i].r[r], inverse.r[r]));
            store_bytes(codes + 16 * i + r * W, code);
            total.r[r] = add(total.r[r], code);
        }
    }
    sum_of_codes = static_cast<int32_t>(sum(total));
}

void round_rows(const float* x, int64_t k, const RoundedRows& out, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
        for (int64_t g = 0; g < out.groups; g++) {
            const int64_t first = g * out.group, at = r * out.groups + g;
            const int n = static_cast<int>(k - first < out.group ? k - first : out.group);
            round_group(x + r * k + first, n, out.group, out.codes + r * out.width() + first, out.scales[at],
                        out.sums[at]);
        }
}

struct DotShape {
    static constexpr int ROWS_MOST = DOT_ROWS;
    static constexpr int vecs(int rows) { return rows <= DOT_FEW_ROWS ? VECS_FEW_ROWS : DOT_VECS; }
};

template <int BITS, int M, int N>
struct DotRun {
    // Adds the products of one octet of inputs.
    static inline __attribute__((always_inline)) void step(Ints (&sums)[M][N], const char* octet, const int8_t* codes,
                                                           int64_t width) {
        unroll<2>([&](auto half) {
            Ints w[N];
            unroll<N>([&](auto j) {
                if constexpr (BITS == 8)
                    w[j] = load_ints(octet + (half * BLOCK_COLUMNS + j * W) * 4);
                else if constexpr (half == 0)
                    w[j] = low_halves(load_ints(octet + j * W * 4));
                else
                    w[j] = high_halves(load_ints(octet + j * W * 4));
            });
            unroll<M>([&](auto m) {
                int32_t four;
                __builtin_memcpy(&four, codes + m * width + half * 4, 4);
                const Ints x = ints(four);
                unroll<N>([&](auto j) {
                    if constexpr (BITS == 8)
                        sums[m][j] = dot8(sums[m][j], w[j], x);
                    else
                        sums[m][j] = dot4(sums[m][j], w[j], x);
                });
            });
        });
    }

    static __attribute__((noinline)) void run(const LinearTile& t) {
        Reg c[M][N];
        unroll<M>([&](auto m) {
            unroll<N>([&](auto j) {
                const bool whole = j < N - 1 || t.tail == W;
                c[m][j] = t.first_k ? load_some(t.c + m * t.ldc + j * W, whole, t.tail) : zero();
            });
        });
        const Weight w = t.weight;
        const RoundedRows& x = *t.rounded;
        const int64_t width = x.width();
        const int8_t* codes = x.codes + t.row * width + t.first_k;
        int64_t at = t.row * x.groups + t.first_k / w.group;
        const char* group = t.b;
        for (int64_t k = 0; k < t.k; k += w.group, group += w.group_bytes(), at++) {
            Ints sums[M][N];
            unroll<M>([&](auto m) {
                const Ints start = ints(BITS == 8 ? -RAISED * x.sums[at + m * x.groups] : 0);
                unroll<N>([&](auto j) { sums[m][j] = start; });
            });
            const char* octet = group + w.param_bytes() + t.column * 4;
            for (int i = 0; i < w.group; i += OCTET, octet += OCTET_BYTES<BITS>, codes += OCTET) {
                if constexpr (N < VECS_FEW_ROWS)  // less than a block is no stream to the processor
                    for (int line = 0; line < OCTET_BYTES<BITS>; line += 64) __builtin_prefetch(octet + PREFETCH + line);
                step(sums, octet, codes, width);
            }
            add_group(c, sums, group, t, at);
        }
        finish(c, t);
    }

    static inline __attribute__((always_inline)) void add_group(Reg (&c)[M][N], const Ints (&sums)[M][N],
                                                                const char* group, const LinearTile& t, int64_t at) {
        const RoundedRows& x = *t.rounded;
        Params p[N];
        unroll<N>([&](auto j) { p[j] = load_params(group, t.weight, t.column + j * W); });
        unroll<M>([&](auto m) {
            const float scale = x.scales[at + m * x.groups];
            unroll<N>([&](auto j) { c[m][j] = fma(to_floats(sums[m][j]), mul(p[j].scale, set1(scale)), c[m][j]); });
            if (t.weight.minima) {
                const Reg total = set1(scale * static_cast<float>(x.sums[at + m * x.groups]));
                unroll<N>([&](auto j) { c[m][j] = fma(p[j].minimum, total, c[m][j]); });
            }
        });
    }
};
template <int M, int N>
using Dot8Run = DotRun<8, M, N>;
template <int M, int N>
using Dot4Run = DotRun<4, M, N>;

// Inputs that a task takes at a time, so that its weights stay in the first-level cache for all its rows.
constexpr int64_t DOT_BLOCK = 768;

void dot_linear(const LinearArgs& g, const RoundedRows& x, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                int64_t panel_end) {
    LinearTile t;
    t.weight = g.weight;
    t.rounded = &x;
    t.row = row_begin;
    t.a = nullptr;
    t.lda = 0;
    t.ldc = g.n;
    t.panel_stride = 0;
    t.ld_add = 0;
    for (int64_t k = 0; k < g.k; k += DOT_BLOCK) {
        const bool last = k + DOT_BLOCK >= g.k;
        t.first_k = k;
        t.k = last ? g.k - k : DOT_BLOCK;
        for (int64_t p = panel_begin; p < panel_end; p += BLOCK_PANELS) {
            const int64_t column = p * PANEL, at = row_begin * g.n + column;
            const int64_t end = (p + BLOCK_PANELS < panel_end ? p + BLOCK_PANELS : panel_end) * PANEL;
            const int columns = static_cast<int>((end < g.n ? end : g.n) - column);
            t.b = g.weight.data + p / BLOCK_PANELS * g.weight.block_bytes(g.k) + g.weight.offset(k);
            t.c = g.out + at;
            t.add = last && g.bias ? g.bias + column : nullptr;
            t.residual = last && g.residual ? g.residual + at : nullptr;
            if (g.weight.bits == 8)
                linear_tiles<Dot8Run, DotShape>(t, row_end - row_begin, columns);
            else
                linear_tiles<Dot4Run, DotShape>(t, row_end - row_begin, columns);
        }
    }
}

double dot_loop(int64_t iterations) {
    constexpr int CHAINS = 12, STEPS = 4;
    volatile int32_t source = 0x01020304;
    Ints sums[CHAINS];
    unroll<CHAINS>([&](auto i) { sums[i] = ints(i); });
    for (int64_t n = 0; n < iterations; n += STEPS) {
        const Ints x = ints(source);  // read anew, or it would be a multiplication
        unroll<STEPS>([&](auto) { unroll<CHAINS>([&](auto i) { sums[i] = dot4(sums[i], x, x); }); });
    }
    Reg total = zero();
    unroll<CHAINS>([&](auto i) { total = max(total, to_floats(sums[i])); });
    float last[W];
    store(last, total);
    source = last[0] > 0;
    return 2.0 * 4 * W * CHAINS * static_cast<double>(iterations);
}

constexpr void set_integer_kernels(Table& table) {
    table.round_rows = round_rows;
    table.dot_linear = dot_linear;
    table.dot_loop = dot_loop;
}
