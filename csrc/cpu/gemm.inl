// Register tiles: ROWS x VECS accumulators, one multiply-add chain per output in the order of k.
// Tiles are out of line on purpose: inlined into a caller, GCC spills the accumulators.

template <int I>
struct Index {
    constexpr operator int() const { return I; }
};
template <int I, int N, class F>
inline __attribute__((always_inline)) void unroll_from(F&& f) {
    if constexpr (I < N) {
        f(Index<I>{});
        unroll_from<I + 1, N>(f);
    }
}
template <int N, class F>
inline __attribute__((always_inline)) void unroll(F&& f) {
    unroll_from<0, N>(f);
}

// Tile sizes where weights are floats: most rows, and most registers of columns of so many rows.
struct FloatShape {
    static constexpr int ROWS_MOST = ROWS;
    static constexpr int vecs(int rows) { return rows <= 2 ? VECS_FEW_ROWS : VECS; }
};

// Tile<M, N>::run for every tile size.
template <class Fn, template <int, int> class Tile, class Shape = FloatShape>
struct Tiles {
    Fn at[Shape::ROWS_MOST + 1][VECS_FEW_ROWS + 1] = {};
    constexpr Tiles() { fill<1, 1>(); }
    template <int M, int N>
    constexpr void fill() {
        at[M][N] = &Tile<M, N>::run;
        if constexpr (N < Shape::vecs(M))
            fill<M, N + 1>();
        else if constexpr (M < Shape::ROWS_MOST)
            fill<M + 1, 1>();
    }
};

// f(row, rows) over tiles of nearly equal height: seven rows are 4 + 3, not 6 + 1.
template <class Shape = FloatShape, class F>
inline void row_tiles(int64_t rows, F&& f) {
    int64_t tiles = (rows + Shape::ROWS_MOST - 1) / Shape::ROWS_MOST;
    for (int64_t r = 0, m; r < rows; r += m, tiles--) {
        m = (rows - r + tiles - 1) / tiles;
        f(r, static_cast<int>(m));
    }
}

template <int M, int N>
inline __attribute__((always_inline)) void clear(Reg (&c)[M][N]) {
    unroll<M>([&](auto i) { unroll<N>([&](auto j) { c[i][j] = zero(); }); });
}

// c += a [M][k] x b [k][N * W]. Column j of registers starts at column(j); its rows are ldb apart.
// each_step(i) is called before step i.
template <int M, int N, class Column, class Step>
inline __attribute__((always_inline)) void multiply(Reg (&c)[M][N], const float* __restrict a, int64_t lda,
                                                    Column column, int64_t ldb, int64_t k, Step each_step) {
    for (int64_t i = 0; i < k; i++) {
        each_step(i);
        Reg b[N];
        unroll<N>([&](auto j) { b[j] = load(column(j) + i * ldb); });
        unroll<M>([&](auto m) {
            const Reg x = set1(a[m * lda + i]);
            unroll<N>([&](auto j) { c[m][j] = fma(x, b[j], c[m][j]); });
        });
    }
}

// A whole register or its first n lanes; whole ones are spared the slower masked instructions.
inline Reg load_some(const float* p, bool whole, int n) { return whole ? load(p) : load_n(p, n); }
inline void store_some(float* p, Reg x, bool whole, int n) { whole ? store(p, x) : store_n(p, x, n); }

constexpr int VECS_PER_PANEL = 16 / W;

struct LinearTile {
    const float* a;  // rows of x from the first k of this block
    int64_t lda;
    const char* b;         // panel from the first k of this block, at the first column
    int64_t panel_stride;  // bytes; 0 for quantised weights, which find their panels by `column`
    int64_t k;
    float* c;  // and the other row-major operands, at the first row and column
    int64_t ldc;
    const float* add;  // what the products are added to: bias, out, or null
    int64_t ld_add;    // 0 for bias
    const float* residual;
    int tail;    // valid lanes of the last register
    int column;  // the first one, counted from the block's
    Weight weight;
    // Of integer products, whose sums begin with what c holds unless this is the first block of k.
    const RoundedRows* rounded = nullptr;
    int64_t row = 0, first_k = 0;
};

template <int M, int N>
inline __attribute__((always_inline)) void finish(const Reg (&c)[M][N], const LinearTile& t) {
    unroll<M>([&](auto i) {
        unroll<N>([&](auto j) {
            const int64_t column = j * W;
            const bool whole = j < N - 1 || t.tail == W;
            Reg x = c[i][j];
            if (t.add) x = add(load_some(t.add + i * t.ld_add + column, whole, t.tail), x);
            if (t.residual) x = add(x, load_some(t.residual + i * t.ldc + column, whole, t.tail));
            store_some(t.c + i * t.ldc + column, x, whole, t.tail);
        });
    });
}

template <int M, int N>
struct LinearRun {
    static __attribute__((noinline)) void run(const LinearTile& t) {
        Reg c[M][N];
        clear(c);
        const float* const b = reinterpret_cast<const float*>(t.b);
        const int64_t stride = t.panel_stride / static_cast<int64_t>(sizeof(float));
        multiply<M, N>(
            c, t.a, t.lda, [&](auto j) { return b + (j / VECS_PER_PANEL) * stride + (j % VECS_PER_PANEL) * W; },
            PANEL, t.k, [](int64_t) {});
        finish(c, t);
    }
};

using LinearTiles = void (*)(const LinearTile&);

// Every tile of rows x columns of a block. Quantised tiles begin at a panel.
template <template <int, int> class Run, class Shape = FloatShape>
inline void linear_tiles(LinearTile t, int64_t rows, int columns) {
    static constexpr Tiles<LinearTiles, Run, Shape> tiles;
    const int vecs = (columns + W - 1) / W;
    const int64_t tile_count = (rows + Shape::ROWS_MOST - 1) / Shape::ROWS_MOST;
    const int group = Shape::vecs(static_cast<int>((rows + tile_count - 1) / tile_count));
    const LinearTile start = t;
    for (int v = 0; v < vecs; v += group) {
        const int n = vecs - v < group ? vecs - v : group;
        t.tail = columns - (v + n - 1) * W < W ? columns - (v + n - 1) * W : W;
        row_tiles<Shape>(rows, [&](int64_t r, int m) {
            const int64_t column = v * W;
            t.column = v * W;
            t.a = start.a + r * t.lda;
            t.row = start.row + r;
            t.b = start.b + (v / VECS_PER_PANEL) * t.panel_stride + (v % VECS_PER_PANEL) * W * sizeof(float);
            t.c = start.c + r * t.ldc + column;
            t.add = start.add ? start.add + r * t.ld_add + column : nullptr;
            t.residual = start.residual ? start.residual + r * t.ldc + column : nullptr;
            tiles.at[m][n](t);
        });
    }
}
