// Registers of 8 floats (AVX2 and FMA). Included inside an anonymous namespace; see simd.inl.

using Reg = __m256;
using Mask = __m256;
constexpr int W = 8;

// Micro-kernel tile: ROWS x VECS registers of accumulators; one or two rows take more columns instead.
constexpr int ROWS = 6;
constexpr int VECS = 2;
constexpr int VECS_FEW_ROWS = 4;
// The same where weights are unpacked in registers, and the most rows for which that is done at all.
constexpr int QUANT_ROWS = 4;
constexpr int QUANT_VECS = 2;
constexpr int QUANT_FEW_ROWS = 1;  // take VECS_FEW_ROWS
constexpr int UNPACK_ROWS = 12;
// The same where products are of integers.
constexpr int DOT_ROWS = 3;
constexpr int DOT_VECS = 2;
constexpr int DOT_FEW_ROWS = 1;  // take VECS_FEW_ROWS

inline Reg zero() { return _mm256_setzero_ps(); }
inline Reg set1(float x) { return _mm256_set1_ps(x); }
inline Reg load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
inline __m256i lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Reg load_n(const float* p, int n) { return _mm256_maskload_ps(p, lanes(n)); }
inline void store_n(float* p, Reg x, int n) { _mm256_maskstore_ps(p, lanes(n), x); }
inline Reg load_halves(const char* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_halves(char* p, Reg x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
// Packed codes, 32 bits a lane: 2^24 times the signed byte I of each lane, and its half byte I % 4 (low, from I = 4 high).
using Ints = __m256i;
inline Ints load_ints(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
template <int I>
inline Reg byte(Ints x) {
    constexpr int first = 0x00808080 + (I << 24), step = 4 << 24;  // zeros below the byte, lane after lane
    const __m256i bytes = _mm256_setr_epi32(first, first + step, first + 2 * step, first + 3 * step, first,
                                            first + step, first + 2 * step, first + 3 * step);
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(x, bytes));
}
template <int I>
inline Reg half_byte(Ints x) {
    constexpr int shift = I % 4 * 8 + I / 4 * 4;
    if constexpr (shift > 0) x = _mm256_srli_epi32(x, shift);
    if constexpr (shift < 28) x = _mm256_and_si256(x, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(x);
}
// Integer dot products; see simd_avx512.inl.
inline Ints ints(int32_t x) { return _mm256_set1_epi32(x); }
inline Reg to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Ints low_halves(Ints x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Ints high_halves(Ints x) { return low_halves(_mm256_srli_epi32(x, 4)); }
#ifdef __AVXVNNI__
constexpr int RAISED = 128;
inline Ints dot4(Ints sum, Ints weights, Ints inputs) { return _mm256_dpbusd_avx_epi32(sum, weights, inputs); }
inline Ints dot8(Ints sum, Ints weights, Ints inputs) {
    return dot4(sum, _mm256_xor_si256(weights, _mm256_set1_epi8(-128)), inputs);
}
#else
constexpr int RAISED = 0;
inline Ints dot4(Ints sum, Ints weights, Ints inputs) {
    const Ints pairs = _mm256_maddubs_epi16(weights, inputs);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Ints dot8(Ints sum, Ints weights, Ints inputs) {
    return dot4(sum, _mm256_abs_epi8(weights), _mm256_sign_epi8(inputs, weights));
}
#endif
inline void store_bytes(int8_t* p, Reg x) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x), _mm256_setzero_si256());
    const __m256i bytes = _mm256_packs_epi16(words, words);  // four in each half
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p),
                     _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}
inline Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
inline Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
inline Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
inline Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
inline Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
inline Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
inline Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
inline Reg round(Reg a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Reg pow2(Reg n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Mask less(Reg a, Reg b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline Mask greater_equal(Reg a, Reg b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
inline Mask unordered(Reg a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
inline Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
inline Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
inline Reg select(Mask m, Reg a, Reg b) { return _mm256_blendv_ps(b, a, m); }
inline Reg add_where(Reg acc, Mask m, Reg x) { return _mm256_add_ps(acc, _mm256_and_ps(m, x)); }
inline unsigned bits(Mask m) { return static_cast<unsigned>(_mm256_movemask_ps(m)); }
inline float sum16(const Reg* r) {
    const __m256 a = _mm256_add_ps(r[0], r[1]);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
inline float max16(const Reg* r) {
    const __m256 a = _mm256_max_ps(r[0], r[1]);
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}
