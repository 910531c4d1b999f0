// Tree attention of one block of at most 64 tokens: scores, online softmax, weighted values. The row's output,
// maximum and sum are updated in place. A masked token weighs exactly 0 and is never read where it lies past the
// block's valid tokens, so whatever an unused slot holds cannot reach a result.

constexpr float NEVER = -1e30f;  // below every score; also the maximum of a row that has seen nothing

// Lanes of a head's last register: head sizes are multiples of 8, so only wider registers can have a tail.
inline Reg load_tail(const float* p, int n) {
    if constexpr (W <= 8) return load(p);
    return load_n(p, n);
}
inline void store_tail(float* p, Reg x, int n) {
    if constexpr (W <= 8) return store(p, x);
    store_n(p, x, n);
}

// The pages of the block that comes next: the tiles ask for a few lines of memory per step, so that they arrive while
// this block is worked on. (The processor's own prefetching stops at the end of a 4 KB page.) Tiles of few rows have
// fewer steps in all, and time to ask for more.
constexpr int lines_per_step(int rows) { return rows <= 3 ? 4 : 2; }

struct Ahead {
    const char* line[4];
    template <int LINES>
    inline __attribute__((always_inline)) void fetch(int64_t step) const {
        unroll<LINES>([&](auto i) { __builtin_prefetch(line[i] + step * 64, 0, 2); });
    }
};

struct ScoreTile {
    const float* q;
    int64_t d;
    const float* const* k;
    int page;  // first page (and, where a register is narrower than a page, always a whole one)
    float* scores;
    Ahead ahead;
};

template <int M, int N>
struct ScoreRun {
    static __attribute__((noinline)) void run(const ScoreTile& t) {
        Reg c[M][N];
        clear(c);
        const float* pages[(N + VECS_PER_PANEL - 1) / VECS_PER_PANEL];
        unroll<(N + VECS_PER_PANEL - 1) / VECS_PER_PANEL>([&](auto j) { pages[j] = t.k[t.page + j]; });
        const Ahead ahead = t.ahead;
        multiply<M, N>(
            c, t.q, t.d, [&](auto j) { return pages[j / VECS_PER_PANEL] + (j % VECS_PER_PANEL) * W; }, PAGE, t.d,
            [&](int64_t step) { ahead.fetch<lines_per_step(M)>(step); });
        float* out = t.scores + t.page * PAGE;
        unroll<M>([&](auto i) { unroll<N>([&](auto j) { store(out + i * BLOCK + j * W, c[i][j]); }); });
    }
};

struct ValueTile {
    const float* weights;  // [rows][BLOCK]
    const float* const* v;
    int tokens;
    int column;
    float* out;
    int64_t d;
    int tail;  // valid lanes of the last register
    Ahead ahead;
};

template <int M, int N>
struct ValueRun {
    static __attribute__((noinline)) void run(const ValueTile& t) {
        Reg c[M][N];
        float* const out = t.out + t.column;
        unroll<M>([&](auto i) {
            unroll<N>([&](auto j) { c[i][j] = load_tail(out + i * t.d + j * W, j == N - 1 ? t.tail : W); });
        });
        const Ahead ahead = t.ahead;
        for (int from = 0; from < t.tokens; from += PAGE) {
            const float* v = t.v[from / PAGE] + t.column;
            const int n = t.tokens - from < PAGE ? t.tokens - from : PAGE;
            for (int k = 0; k < n; k++, v += t.d) {
                ahead.fetch<lines_per_step(M)>(from + k);
                Reg b[N];
                unroll<N>([&](auto j) { b[j] = j == N - 1 ? load_tail(v + j * W, t.tail) : load(v + j * W); });
                unroll<M>([&](auto i) {
                    const Reg x = set1(t.weights[i * BLOCK + from + k]);
                    unroll<N>([&](auto j) { c[i][j] = fma(x, b[j], c[i][j]); });
                });
            }
        }
        unroll<M>([&](auto i) {
            unroll<N>([&](auto j) { store_tail(out + i * t.d + j * W, c[i][j], j == N - 1 ? t.tail : W); });
        });
    }
};

// Hands out the memory of the next block to the tiles.
class Feed {
public:
    explicit Feed(const AttendArgs& g) : bytes_(g.page_bytes), idle_(reinterpret_cast<const char*>(g.q)) {
        for (int j = 0; j < g.next_pages; j++) {
            region_[count_++] = g.next_k[j];
            region_[count_++] = g.next_v[j];
        }
    }
    // For a tile of this many rows and steps.
    Ahead take(int rows, int64_t steps) {
        Ahead ahead{{idle_, idle_, idle_, idle_}};
        for (int i = 0; i < lines_per_step(rows) && at_ < count_; i++) {
            ahead.line[i] = region_[at_] + done_;
            done_ += steps * 64;
            if (done_ >= bytes_) {
                done_ = 0;
                at_++;
            }
        }
        return ahead;
    }

private:
    const char* region_[2 * BLOCK_PAGES];
    int64_t bytes_, done_ = 0;
    const char* idle_;  // something near: asking for it again costs nothing
    int count_ = 0, at_ = 0;
};

inline void block_scores(const AttendArgs& g, int row, int rows, int pages, Feed& feed) {
    static constexpr Tiles<void (*)(const ScoreTile&), ScoreRun> tiles;
    constexpr int step = VECS / VECS_PER_PANEL;  // pages per tile
    static_assert(step >= 1 && VECS % VECS_PER_PANEL == 0, "a tile covers whole pages");
    for (int page = 0; page < pages; page += step) {
        const int n = (pages - page < step ? pages - page : step) * VECS_PER_PANEL;
        row_tiles(rows, [&](int64_t r, int m) {
            tiles.at[m][n]({g.q + (row + r) * g.d, g.d, g.k, page, g.scores + r * BLOCK, feed.take(m, g.d)});
        });
    }
}

inline void block_values(const AttendArgs& g, int row, int rows, int tokens, Feed& feed) {
    static constexpr Tiles<void (*)(const ValueTile&), ValueRun> tiles;
    const int vecs = (g.d + W - 1) / W, groups = (vecs + VECS - 1) / VECS;
    for (int group = 0, v = 0; group < groups; group++) {
        const int n = (vecs - v + groups - group - 1) / (groups - group);  // 5 registers are 3 + 2, not 4 + 1
        const int last = g.d - (v + n - 1) * W, tail = last < W ? last : W;
        row_tiles(rows, [&](int64_t r, int m) {
            tiles.at[m][n]({g.scores + r * BLOCK, g.v, tokens, v * W, g.out + (row + r) * g.d, g.d, tail,
                            feed.take(m, tokens)});
        });
        v += n;
    }
}

// Turns the scores s of one row into weights; updates its maximum and sums and rescales its output.
inline void block_softmax(const AttendArgs& g, float* s, int row, int pages, int first, int last) {
    Vec score[BLOCK_PAGES];
    Vec top = vset(NEVER);
    for (int j = 0; j < pages; j++) {
        Vec x = vload(s + j * PAGE);
        if (g.cap != 0.f) x = mul(vset(g.cap), tanh(x));
        const int from = first - j * PAGE, to = last - j * PAGE;
        if (from > 0 || to < PAGE) x = keep_lanes(x, vset(NEVER), from, to);
        score[j] = x;
        top = max(top, x);
    }
    const float old = g.top[row], highest = max(top), now = old < highest ? highest : old;
    if (now == NEVER) {  // this row has seen nothing yet
        for (int j = 0; j < pages; j++) vstore(s + j * PAGE, vzero());
        return;
    }
    const Vec shift = vset(now);
    Vec total = vzero();
    for (int j = 0; j < pages; j++) {
        const Vec e = exp2(sub(score[j], shift));
        vstore(s + j * PAGE, e);
        total = add(total, e);
    }
    float* sums = g.sum + row * 16;
    if (now == old) {
        vstore(sums, add(vload(sums), total));
        return;
    }
    const Vec factor = exp2(vset(old - now));
    vstore(sums, fma(vload(sums), factor, total));
    g.top[row] = now;
    float* out = g.out + static_cast<int64_t>(row) * g.d;
    for (int i = 0; i < g.d; i += W) {
        const int n = g.d - i < W ? g.d - i : W;
        store_tail(out + i, mul(load_tail(out + i, n), factor.r[0]), n);
    }
}

void attend(const AttendArgs& g) {
    Feed feed(g);
    for (int row = 0; row < g.rows; row += ATTEND_ROWS) {
        const int rows = g.rows - row < ATTEND_ROWS ? g.rows - row : ATTEND_ROWS;
        int tokens = g.tokens;
        if (g.last) {  // the most that any of these rows sees
            tokens = 0;
            for (int r = row / g.group; r <= (row + rows - 1) / g.group; r++)
                tokens = g.last[r] > tokens ? g.last[r] : tokens;
        }
        const int pages = (tokens + PAGE - 1) / PAGE;
        if (pages == 0) continue;
        block_scores(g, row, rows, pages, feed);
        for (int r = 0; r < rows; r++) {
            const int tree_row = (row + r) / g.group;
            block_softmax(g, g.scores + r * BLOCK, row + r, pages, g.first ? g.first[tree_row] : 0,
                          g.last ? g.last[tree_row] : tokens);
        }
        block_values(g, row, rows, tokens, feed);
    }
}

void normalise(float* out, const float* acc, const float* sums, int64_t rows, int64_t d) {
    for (int64_t r = 0; r < rows; r++) scale(out + r * d, acc + r * d, 1.f / sum(vload(sums + r * 16)), d);
}
