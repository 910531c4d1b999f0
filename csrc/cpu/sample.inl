// Passes of the sampler over one row of logits. Weights are exp2((x - top) * scale).

constexpr float INFINITE = __builtin_inff();

inline Vec at_least(const Vec& x, const Vec& y, float least) {  // y where x >= least, else 0
    Vec out;
    for (int i = 0; i < N_REGS; i++) out.r[i] = select(greater_equal(x.r[i], set1(least)), y.r[i], zero());
    return out;
}
inline Vec above(const Vec& x, const Vec& y, float least) {  // y where x > least, else 0
    Vec out;
    for (int i = 0; i < N_REGS; i++) out.r[i] = select(less(set1(least), x.r[i]), y.r[i], zero());
    return out;
}
// y for the ids i .. i + 15 of the prefix, 0 for the others.
inline Vec inside(const Vec& x, const Vec& y, int64_t i, Prefix keep) {
    if (i + 15 <= keep.last_id) return at_least(x, y, keep.value);
    if (i > keep.last_id) return above(x, y, keep.value);
    return keep_lanes(at_least(x, y, keep.value), above(x, y, keep.value), 0, static_cast<int>(keep.last_id - i) + 1);
}
inline unsigned lanes_at_least(const Vec& x, float least) {
    unsigned out = 0;
    for (int i = 0; i < N_REGS; i++) out |= bits(greater_equal(x.r[i], set1(least))) << (i * W);
    return out;
}
inline Vec weights(const Vec& x, float top, float scale) { return exp2(mul(sub(x, vset(top)), vset(scale))); }

// f(i, x) for the logits i .. i + 15; lanes past the end are -inf.
template <class F>
inline void each(const float* x, int64_t begin, int64_t end, F&& f) {
    int64_t i = begin;
    for (; i + 16 <= end; i += 16) f(i, vload(x + i));
    if (i < end) {
        const int n = static_cast<int>(end - i);
        f(i, keep_lanes(vload_n(x + i, n), vset(-INFINITE), 0, n));
    }
}

RowTop row_top(const float* x, int64_t n, float* block_tops) {
    Vec top = vset(-INFINITE);
    unsigned nan = 0;
    for (int64_t begin = 0; begin < n; begin += 64) {
        Vec block = vset(-INFINITE);
        each(x, begin, begin + 64 < n ? begin + 64 : n, [&](int64_t, const Vec& v) {
            for (int i = 0; i < N_REGS; i++) nan |= bits(unordered(v.r[i]));
            block = max(block, v);
        });
        block_tops[begin / 64] = max(block);
        top = max(top, block);
    }
    const float highest = max(top);
    if (nan || highest == INFINITE || highest == -INFINITE) return {highest, 0, false};
    int64_t id = 0;
    while (block_tops[id / 64] != highest) id += 64;
    while (x[id] != highest) id++;
    return {highest, id, true};
}

double prefix_sums(const float* x, int64_t n, float top, float scale, Prefix keep, double* sums) {
    double total = 0;
    for (int64_t begin = 0; begin < n; begin += SUM_BLOCK) {
        Vec block = vzero();
        each(x, begin, begin + SUM_BLOCK < n ? begin + SUM_BLOCK : n, [&](int64_t i, const Vec& v) {
            block = add(block, inside(v, weights(v, top, scale), i, keep));
        });
        sums[begin / SUM_BLOCK] = sum(block);
        total += sums[begin / SUM_BLOCK];
    }
    return total;
}

double masses(const float* x, int64_t n, float top, float scale, Prefix keep, const float* thresholds, Mass* out,
              double* sums) {
    double total = 0;
    for (int t = 0; t < THRESHOLDS; t++) out[t] = {0, 0};
    for (int64_t begin = 0; begin < n; begin += SUM_BLOCK) {
        Vec all = vzero(), block[THRESHOLDS];
        int64_t count[THRESHOLDS] = {};
        for (Vec& v : block) v = vzero();
        each(x, begin, begin + SUM_BLOCK < n ? begin + SUM_BLOCK : n, [&](int64_t i, const Vec& v) {
            const Vec w = inside(v, weights(v, top, scale), i, keep);
            all = add(all, w);
            unroll<THRESHOLDS>([&](auto t) {
                const Reg least = set1(thresholds[t]);
                for (int j = 0; j < N_REGS; j++) {
                    const Mask m = greater_equal(v.r[j], least);
                    block[t].r[j] = add_where(block[t].r[j], m, w.r[j]);
                    count[t] += __builtin_popcount(bits(m));
                }
            });
        });
        sums[begin / SUM_BLOCK] = sum(all);
        total += sums[begin / SUM_BLOCK];
        for (int t = 0; t < THRESHOLDS; t++) {
            out[t].weight += sum(block[t]);
            out[t].count += count[t];
        }
    }
    return total;
}

int64_t ids_between(const float* x, int64_t n, float from, float to, Prefix keep, int64_t most, int32_t* ids) {
    int64_t count = 0;
    const auto add_lanes = [&](int64_t i, const Vec& v) {
        unsigned lanes = lanes_at_least(v, from) & ~lanes_at_least(v, to);
        if (lanes) lanes &= lanes_at_least(inside(v, vset(1.f), i, keep), 1.f);
        for (; lanes; lanes &= lanes - 1) ids[count++] = static_cast<int32_t>(i + __builtin_ctz(lanes));
    };
    for (int64_t begin = 0; begin < n && count <= most; begin += SUM_BLOCK)
        each(x, begin, begin + SUM_BLOCK < n ? begin + SUM_BLOCK : n, add_lanes);
    return count <= most ? count : -1;
}

void exps(const float* x, int64_t n, float top, float scale, float* out) {
    each(x, 0, n, [&](int64_t i, const Vec& v) {
        vstore_n(out + i, weights(v, top, scale), n - i < 16 ? static_cast<int>(n - i) : 16);
    });
}
