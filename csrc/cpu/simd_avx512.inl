// Registers of 16 floats (AVX-512 F, BW, VL, DQ). Included inside an anonymous namespace; see simd.inl.

using Reg = __m512;
using Mask = __mmask16;
constexpr int W = 16;

// Micro-kernel tile: ROWS x VECS registers of accumulators.
constexpr int ROWS = 6;
constexpr int VECS = 4;
constexpr int VECS_FEW_ROWS = 4;
// The same where weights are unpacked in registers, and the most rows for which that is done at all.
constexpr int QUANT_ROWS = 8;
constexpr int QUANT_VECS = 2;
constexpr int QUANT_FEW_ROWS = 5;  // take VECS_FEW_ROWS
constexpr int UNPACK_ROWS = 16;
// The same where products are of integers: each sum takes two registers, an integer and a float one.
constexpr int DOT_ROWS = 6;
constexpr int DOT_VECS = 2;
constexpr int DOT_FEW_ROWS = 3;  // take VECS_FEW_ROWS

inline Reg zero() { return _mm512_setzero_ps(); }
inline Reg set1(float x) { return _mm512_set1_ps(x); }
inline Reg load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
inline Mask lanes(int n) { return static_cast<Mask>((1u << n) - 1); }  // 0 <= n <= W
inline Reg load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
inline void store_n(float* p, Reg x, int n) { _mm512_mask_storeu_ps(p, lanes(n), x); }
inline Reg load_halves(const char* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_halves(char* p, Reg x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
// Packed codes, 32 bits a lane: 2^24 times the signed byte I of each lane, and its half byte I % 4 (low, from I = 4 high).
using Ints = __m512i;
inline Ints load_ints(const char* p) { return _mm512_loadu_si512(p); }
template <int I>
inline Reg byte(Ints x) {
    constexpr int first = 0x00808080 + (I << 24), step = 4 << 24;  // zeros below the byte, lane after lane
    const __m512i bytes = _mm512_set4_epi32(first + 3 * step, first + 2 * step, first + step, first);
    return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(x, bytes));
}
template <int I>
inline Reg half_byte(Ints x) {
    constexpr int shift = I % 4 * 8 + I / 4 * 4;
    if constexpr (shift > 0) x = _mm512_srli_epi32(x, shift);
    // A permutation looks at the low four bits only: mask and conversion in one.
    const Reg numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(x, numbers);
}
// Integer dot products: to every 32-bit lane of sum the products of its four bytes are added, exactly. Weights are
// whole: int8 codes (dot8) or half bytes (dot4); inputs are codes in -127..127. dot8 gives the products of codes that
// are RAISED by this much.
inline Ints ints(int32_t x) { return _mm512_set1_epi32(x); }
inline Reg to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Ints low_halves(Ints x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Ints high_halves(Ints x) { return low_halves(_mm512_srli_epi32(x, 4)); }
#ifdef __AVX512VNNI__
constexpr int RAISED = 128;
inline Ints dot4(Ints sum, Ints weights, Ints inputs) { return _mm512_dpbusd_epi32(sum, weights, inputs); }
inline Ints dot8(Ints sum, Ints weights, Ints inputs) {
    return dot4(sum, _mm512_xor_si512(weights, _mm512_set1_epi8(-128)), inputs);
}
#else
constexpr int RAISED = 0;
// Neither 2 * 15 * 127 nor 2 * 128 * 127 leaves the 16 bits of maddubs.
inline Ints dot4(Ints sum, Ints weights, Ints inputs) {
    const Ints pairs = _mm512_maddubs_epi16(weights, inputs);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
inline Ints dot8(Ints sum, Ints weights, Ints inputs) {
    const Ints signed_inputs =
        _mm512_mask_sub_epi8(inputs, _mm512_movepi8_mask(weights), _mm512_setzero_si512(), inputs);
    return dot4(sum, _mm512_abs_epi8(weights), signed_inputs);
}
#endif
// Whole numbers in -127..127 as bytes.
inline void store_bytes(int8_t* p, Reg x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
inline Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
inline Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
inline Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
inline Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
inline Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
// As maxps: the second operand when either is NaN.
inline Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
inline Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
inline Reg round(Reg a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2^n for whole n in [-127, 127]; 2^-127 is 0.
inline Reg pow2(Reg n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline Mask less(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask greater_equal(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Mask unordered(Reg a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
inline Mask both(Mask a, Mask b) { return a & b; }
inline Mask either(Mask a, Mask b) { return a | b; }
inline Reg select(Mask m, Reg a, Reg b) { return _mm512_mask_blend_ps(m, b, a); }
// acc + x where m holds, else acc (it may turn -0 into 0).
inline Reg add_where(Reg acc, Mask m, Reg x) { return _mm512_mask_add_ps(acc, m, acc, x); }
inline unsigned bits(Mask m) { return m; }
// Sum and maximum of 16 lanes, always as ((i, i+8), i+4, i+2, i+1), so that every instruction set agrees.
inline float sum16(const Reg* r) {
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(r[0]), _mm512_extractf32x8_ps(r[0], 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
inline float max16(const Reg* r) {
    const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(r[0]), _mm512_extractf32x8_ps(r[0], 1));
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}
