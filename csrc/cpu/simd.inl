// Vec: 16 floats on any instruction set, and the few functions of them that the kernels need.
//
// Every sum over a row is kept in 16 lanes and reduced in one order, and multiply-adds are explicit, so AVX2 and
// AVX-512 give the same bits; the portable code differs from them where the target has no fused multiply-add.
// Included inside an anonymous namespace after one of the simd_<isa>.inl files: code compiled with wider
// instructions must never be merged by the linker with a copy that other files use.

constexpr int N_REGS = 16 / W;

struct Vec {
    Reg r[N_REGS];
};

#define WCSE_EACH for (int i = 0; i < N_REGS; i++)
inline Vec vzero() {
    Vec v;
    WCSE_EACH v.r[i] = zero();
    return v;
}
inline Vec vset(float x) {
    Vec v;
    WCSE_EACH v.r[i] = set1(x);
    return v;
}
inline Vec vload(const float* p) {
    Vec v;
    WCSE_EACH v.r[i] = load(p + i * W);
    return v;
}
inline void vstore(float* p, const Vec& v) { WCSE_EACH store(p + i * W, v.r[i]); }
// Number of the first n lanes that fall into register i.
inline int part(int n, int i) {
    const int left = n - i * W;
    return left < 0 ? 0 : left < W ? left : W;
}
inline Vec vload_n(const float* p, int n) {  // missing lanes are 0
    if (n == 16) return vload(p);
    Vec v;
    WCSE_EACH v.r[i] = load_n(p + i * W, part(n, i));
    return v;
}
inline void vstore_n(float* p, const Vec& v, int n) {
    if (n == 16) return vstore(p, v);
    WCSE_EACH store_n(p + i * W, v.r[i], part(n, i));
}
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    Vec v;
    WCSE_EACH v.r[i] = fma(a.r[i], b.r[i], c.r[i]);
    return v;
}
#define WCSE_BINARY(name)                                \
    inline Vec name(const Vec& a, const Vec& b) {        \
        Vec v;                                           \
        WCSE_EACH v.r[i] = name(a.r[i], b.r[i]);         \
        return v;                                        \
    }
WCSE_BINARY(add)
WCSE_BINARY(sub)
WCSE_BINARY(mul)
WCSE_BINARY(div)
WCSE_BINARY(max)
WCSE_BINARY(min)
#undef WCSE_BINARY
inline float sum(const Vec& v) { return sum16(v.r); }
inline float max(const Vec& v) { return max16(v.r); }
inline Vec lane_numbers() {
    static const float number[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return vload(number);
}
// Lanes [first, last) of v; elsewhere other.
inline Vec keep_lanes(const Vec& v, const Vec& other, int first, int last) {
    const Vec number = lane_numbers();
    Vec out;
    WCSE_EACH {
        const Mask inside = both(greater_equal(number.r[i], set1(static_cast<float>(first))),
                                 less(number.r[i], set1(static_cast<float>(last))));
        out.r[i] = select(inside, v.r[i], other.r[i]);
    }
    return out;
}
// 0 where v is NaN or infinite.
inline Vec finite_or_zero(const Vec& v) {
    const Reg big = set1(3.4028234663852886e38f), small = set1(-3.4028234663852886e38f);
    Vec out;
    WCSE_EACH out.r[i] = select(both(greater_equal(big, v.r[i]), greater_equal(v.r[i], small)), v.r[i], zero());
    return out;
}

// 2^x within 1e-7 relative; exactly 0 below 2^-126.5, 1 at 0. NaN in, NaN out; x <= 127.
inline Reg exp2(Reg x) {
    // The second operand of max is kept for NaN.
    const Reg clamped = max(set1(-127.f), x);
    const Reg whole = round(clamped), f = sub(clamped, whole);
    Reg p = set1(1.559467754e-4f);
    p = fma(p, f, set1(1.340664390e-3f));
    p = fma(p, f, set1(9.617692975e-3f));
    p = fma(p, f, set1(5.550310551e-2f));
    p = fma(p, f, set1(2.402265278e-1f));
    p = fma(p, f, set1(6.931472150e-1f));
    p = fma(p, f, set1(1.f));
    return mul(p, pow2(whole));
}
inline Vec exp2(const Vec& x) {
    Vec v;
    WCSE_EACH v.r[i] = exp2(x.r[i]);
    return v;
}
// tanh within 2 units in the last place (as Cephes): an odd polynomial up to 0.625, 1 - 2 / (e^2x + 1) beyond.
inline Reg tanh(Reg x) {
    const Reg u = mul(x, x), size = max(sub(zero(), x), x);
    Reg p = set1(-5.70498872745e-3f);
    p = fma(p, u, set1(2.06390887954e-2f));
    p = fma(p, u, set1(-5.37397155531e-2f));
    p = fma(p, u, set1(1.33314422036e-1f));
    p = fma(p, u, set1(-3.33332819422e-1f));
    const Reg near = fma(mul(p, u), x, x);
    const Reg e = exp2(mul(min(set1(10.f), size), set1(2.f * 1.44269504088896341f)));
    const Reg far = sub(set1(1.f), div(set1(2.f), add(e, set1(1.f))));
    return select(less(size, set1(0.625f)), near, select(less(x, zero()), sub(zero(), far), far));
}
inline Vec tanh(const Vec& x) {
    Vec v;
    WCSE_EACH v.r[i] = tanh(x.r[i]);
    return v;
}
#undef WCSE_EACH
