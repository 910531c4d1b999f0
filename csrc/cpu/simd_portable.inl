// Registers of 4 floats through the compiler's vector extension: SSE2, NEON or whatever the target has.
// Included inside an anonymous namespace; see simd.inl.

typedef float Reg __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));
constexpr int W = 4;

// Micro-kernel tile: ROWS x VECS registers of accumulators. x86 without AVX has 16 registers, others 32.
#if defined(__x86_64__) || defined(__i386__)
constexpr int ROWS = 3;
#else
constexpr int ROWS = 6;
#endif
constexpr int VECS = 4;
constexpr int VECS_FEW_ROWS = 4;
// The same where weights are unpacked in registers, and the most rows for which that is done at all.
constexpr int QUANT_ROWS = 3;
constexpr int QUANT_VECS = 4;
constexpr int QUANT_FEW_ROWS = 3;  // take VECS_FEW_ROWS
constexpr int UNPACK_ROWS = 6;
// The same where products are of integers.
constexpr int DOT_ROWS = 2;
constexpr int DOT_VECS = 4;
constexpr int DOT_FEW_ROWS = 2;  // take VECS_FEW_ROWS

inline Reg zero() { return Reg{0, 0, 0, 0}; }
inline Reg set1(float x) { return Reg{x, x, x, x}; }
inline Reg load(const float* p) {
    Reg r;
    __builtin_memcpy(&r, p, sizeof r);
    return r;
}
inline void store(float* p, Reg x) { __builtin_memcpy(p, &x, sizeof x); }
inline Reg load_n(const float* p, int n) {
    Reg r = zero();
    for (int i = 0; i < n; i++) r[i] = p[i];
    return r;
}
inline void store_n(float* p, Reg x, int n) {
    for (int i = 0; i < n; i++) p[i] = x[i];
}
// Of finite halves: the exponent is 112 too small.
inline Reg load_halves(const char* p) {
    uint16_t halves[W];
    __builtin_memcpy(halves, p, sizeof halves);
    Reg r;
    for (int i = 0; i < W; i++) {
        const uint32_t bits = (halves[i] & 0x7fffu) << 13, sign = (halves[i] & 0x8000u) << 16;
        float size;
        __builtin_memcpy(&size, &bits, sizeof size);
        size *= 0x1p112f;
        r[i] = sign ? -size : size;
    }
    return r;
}
// Of numbers up to 65504. Below the smallest normal half, adding 0.5 leaves the rounded half in the last bits.
inline void store_halves(char* p, Reg x) {
    uint16_t halves[W];
    for (int i = 0; i < W; i++) {
        const float number = x[i], size = __builtin_fabsf(number), small = size + 0.5f;
        uint32_t bits, small_bits, sign;
        __builtin_memcpy(&bits, &size, sizeof bits);
        __builtin_memcpy(&small_bits, &small, sizeof small_bits);
        __builtin_memcpy(&sign, &number, sizeof sign);
        const uint32_t rounded = (bits + 0xfff + ((bits >> 13) & 1)) >> 13;
        const uint32_t half = bits < 0x38800000u ? small_bits - 0x3f000000u : rounded - 0x1c000u;
        halves[i] = static_cast<uint16_t>(half | ((sign >> 16) & 0x8000u));
    }
    __builtin_memcpy(p, halves, sizeof halves);
}
// Packed codes, 32 bits a lane: 2^24 times the signed byte I of each lane, and its half byte I % 4 (low, from I = 4 high).
using Ints = Mask;
inline Ints load_ints(const char* p) {
    Ints x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}
template <int I>
inline Reg byte(Ints x) {
    typedef uint32_t Words __attribute__((vector_size(16)));
    const Words top = (reinterpret_cast<Words>(x) << (24 - 8 * I)) & 0xff000000u;
    return __builtin_convertvector(reinterpret_cast<Ints>(top), Reg);
}
template <int I>
inline Reg half_byte(Ints x) {
    return __builtin_convertvector((x >> (I % 4 * 8 + I / 4 * 4)) & 15, Reg);
}
// Integer dot products; see simd_avx512.inl. Two products fit in 16 bits, which the compiler multiplies as vectors.
constexpr int RAISED = 0;
inline Ints ints(int32_t x) { return Ints{x, x, x, x}; }
inline Reg to_floats(Ints x) { return __builtin_convertvector(x, Reg); }
inline Ints low_halves(Ints x) { return x & 0x0f0f0f0f; }
inline Ints high_halves(Ints x) { return low_halves(x >> 4); }
inline Ints dot8(Ints sum, Ints weights, Ints inputs) {
    typedef int16_t Shorts __attribute__((vector_size(16)));
    const auto odd = [](Ints x) { return reinterpret_cast<Shorts>(x) >> 8; };
    const auto even = [](Ints x) { return (reinterpret_cast<Shorts>(x) << 8) >> 8; };
    const Ints pairs = reinterpret_cast<Ints>(odd(weights) * odd(inputs) + even(weights) * even(inputs));
    return sum + (pairs >> 16) + ((pairs << 16) >> 16);
}
inline Ints dot4(Ints sum, Ints weights, Ints inputs) { return dot8(sum, weights, inputs); }
inline void store_bytes(int8_t* p, Reg x) {
    for (int i = 0; i < W; i++) p[i] = static_cast<int8_t>(x[i]);
}
inline Reg fma(Reg a, Reg b, Reg c) {
#ifdef __FP_FAST_FMAF
    return Reg{__builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1]), __builtin_fmaf(a[2], b[2], c[2]),
               __builtin_fmaf(a[3], b[3], c[3])};
#else
    return a * b + c;
#endif
}
inline Reg add(Reg a, Reg b) { return a + b; }
inline Reg sub(Reg a, Reg b) { return a - b; }
inline Reg mul(Reg a, Reg b) { return a * b; }
inline Reg div(Reg a, Reg b) { return a / b; }
inline Reg max(Reg a, Reg b) { return a > b ? a : b; }
inline Reg min(Reg a, Reg b) { return a < b ? a : b; }
// Adding 1.5 * 2^23 leaves no bits for a fraction (|a| < 2^22).
inline Reg round(Reg a) { return (a + 12582912.f) - 12582912.f; }
inline Reg pow2(Reg n) {
    const Mask exponent = (__builtin_convertvector(n, Mask) + 127) << 23;
    Reg r;
    __builtin_memcpy(&r, &exponent, sizeof r);
    return r;
}
inline Mask less(Reg a, Reg b) { return a < b; }
inline Mask greater_equal(Reg a, Reg b) { return a >= b; }
inline Mask unordered(Reg a) { return a != a; }
inline Mask both(Mask a, Mask b) { return a & b; }
inline Mask either(Mask a, Mask b) { return a | b; }
inline Reg select(Mask m, Reg a, Reg b) { return m ? a : b; }
inline Reg add_where(Reg acc, Mask m, Reg x) { return acc + select(m, x, zero()); }
inline unsigned bits(Mask m) {
    return static_cast<unsigned>((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8));
}
inline float sum16(const Reg* r) {
    const Reg b = (r[0] + r[2]) + (r[1] + r[3]);
    return (b[0] + b[2]) + (b[1] + b[3]);
}
inline float max16(const Reg* r) {
    const Reg b = max(max(r[0], r[2]), max(r[1], r[3]));
    const float c = b[0] > b[2] ? b[0] : b[2], d = b[1] > b[3] ? b[1] : b[3];
    return c > d ? c : d;
}
