/* Operations on vectors for one instruction set, chosen by SET_SCALAR, SET_AVX2, SET_AVX512 or
 * SET_NEON.  Undefines those of the set before.
 *
 * V: LANES numbers of 32 bits.  W: half as many of 64 bits, of which a product takes the lower 32.
 * kernel.h says in words what each operation does where it uses it.
 */

#undef NAME
#undef LANES
#undef V
#undef W
#undef LOAD
#undef STORE
#undef ALL
#undef ADD
#undef SUB
#undef AND
#undef XOR
#undef SRL
#undef SRA
#undef SLL_EACH
#undef ABOVE
#undef ROUGH
#undef AT_LEAST_0
#undef COLUMN
#undef AS_W
#undef WALL
#undef WLOAD
#undef PRODUCT
#undef UPPER
#undef XOR3
#undef PACK
#undef SPLIT
#undef STORE4
#undef HALVES

#if defined(SET_AVX512)

#define NAME(f) f##_avx512
#define LANES 16
#define V __m512i
#define W __m512i
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, v) _mm512_storeu_si512(p, v)
#define ALL(x) _mm512_set1_epi32((int)(x))
#define ADD _mm512_add_epi32
#define SUB _mm512_sub_epi32
#define AND _mm512_and_si512
#define XOR _mm512_xor_si512
#define SRL _mm512_srli_epi32
#define SRA _mm512_srai_epi32
#define SLL_EACH _mm512_sllv_epi32
#define ABOVE(v, x) _mm512_movm_epi32(_mm512_cmpgt_epi32_mask(v, ALL(x)))
#define ROUGH(v) _mm512_castps_si512(_mm512_cvtepi32_ps(v))
#define AT_LEAST_0(v) _mm512_max_epi32(v, ALL(0))
#define AS_W(v) (v)
#define WALL(x) _mm512_set1_epi64((long long)(x))
#define WLOAD(p) _mm512_loadu_si512(p)
#define PRODUCT _mm512_mul_epu32
#define UPPER(w) _mm512_srli_epi64(w, 32)
#define XOR3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define PACK(even, odd) _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, (_MM_PERM_ENUM)0xA0)
#define SPLIT(even, odd) _mm512_mask_shuffle_epi32(odd, 0x5555, even, (_MM_PERM_ENUM)0xF5)

/* All but one in 256 numbers fall into the last eight octaves, whose 128 rows are eight
 * vectors: permutations of these are quicker than gathering. */
static inline __m512i column_avx512(const uint32_t *column, __m512i row) {
    enum { FROM = ROWS - 128 };
    const uint32_t *p = column + FROM;
    const __m512i i = SUB(row, ALL(FROM));
    const __m512i a = _mm512_permutex2var_epi32(LOAD(p), i, LOAD(p + 16));
    const __m512i b = _mm512_permutex2var_epi32(LOAD(p + 32), i, LOAD(p + 48));
    const __m512i c = _mm512_permutex2var_epi32(LOAD(p + 64), i, LOAD(p + 80));
    const __m512i d = _mm512_permutex2var_epi32(LOAD(p + 96), i, LOAD(p + 112));
    const __mmask16 second = _mm512_test_epi32_mask(i, ALL(32));
    const __mmask16 upper = _mm512_test_epi32_mask(i, ALL(64));
    const __mmask16 before = _mm512_cmplt_epi32_mask(i, ALL(0));
    const __m512i lower = _mm512_mask_blend_epi32(second, a, b);
    const __m512i found = _mm512_mask_blend_epi32(upper, lower, _mm512_mask_blend_epi32(second, c, d));
    if (__builtin_expect(before == 0, 1)) return found;
    return _mm512_mask_i32gather_epi32(found, before, row, column, 4);
}
#define COLUMN(k, row) column_avx512(table[k], row)

static inline __m512i quarter_avx512(__m512i a, __m512i b, __m512i c, __m512i d, int which) {
    const __m512i x = which == 0   ? _mm512_shuffle_i32x4(a, b, 0x00)
                      : which == 1 ? _mm512_shuffle_i32x4(a, b, 0x55)
                      : which == 2 ? _mm512_shuffle_i32x4(a, b, 0xAA)
                                   : _mm512_shuffle_i32x4(a, b, 0xFF);
    const __m512i y = which == 0   ? _mm512_shuffle_i32x4(c, d, 0x00)
                      : which == 1 ? _mm512_shuffle_i32x4(c, d, 0x55)
                      : which == 2 ? _mm512_shuffle_i32x4(c, d, 0xAA)
                                   : _mm512_shuffle_i32x4(c, d, 0xFF);
    return _mm512_shuffle_i32x4(x, y, 0x88);
}
static inline void store4_avx512(uint32_t *out, __m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
    const __m512i q0 = _mm512_unpacklo_epi64(ab0, cd0), q1 = _mm512_unpackhi_epi64(ab0, cd0);
    const __m512i q2 = _mm512_unpacklo_epi64(ab1, cd1), q3 = _mm512_unpackhi_epi64(ab1, cd1);
    STORE(out, quarter_avx512(q0, q1, q2, q3, 0));
    STORE(out + 16, quarter_avx512(q0, q1, q2, q3, 1));
    STORE(out + 32, quarter_avx512(q0, q1, q2, q3, 2));
    STORE(out + 48, quarter_avx512(q0, q1, q2, q3, 3));
}
#define STORE4 store4_avx512
#define HALVES(in, out) _mm_storeu_si128((__m128i *)(out), _mm256_cvtps_ph(_mm256_loadu_ps(in), 0))

#elif defined(SET_AVX2)

#define NAME(f) f##_avx2
#define LANES 8
#define V __m256i
#define W __m256i
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define ALL(x) _mm256_set1_epi32((int)(x))
#define ADD _mm256_add_epi32
#define SUB _mm256_sub_epi32
#define AND _mm256_and_si256
#define XOR _mm256_xor_si256
#define SRL _mm256_srli_epi32
#define SRA _mm256_srai_epi32
#define SLL_EACH _mm256_sllv_epi32
#define ABOVE(v, x) _mm256_cmpgt_epi32(v, ALL(x))
#define ROUGH(v) _mm256_castps_si256(_mm256_cvtepi32_ps(v))
#define AT_LEAST_0(v) _mm256_max_epi32(v, ALL(0))
#define COLUMN(k, row) _mm256_i32gather_epi32((const int *)table[k], row, 4)
#define AS_W(v) (v)
#define WALL(x) _mm256_set1_epi64x((long long)(x))
#define WLOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define PRODUCT _mm256_mul_epu32
#define UPPER(w) _mm256_srli_epi64(w, 32)
#define XOR3(a, b, c) XOR(XOR(a, b), c)
#define PACK(even, odd) _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA)
#define SPLIT(even, odd) _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA)
static inline void store4_avx2(uint32_t *out, __m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i ab0 = _mm256_unpacklo_epi32(a, b), ab1 = _mm256_unpackhi_epi32(a, b);
    const __m256i cd0 = _mm256_unpacklo_epi32(c, d), cd1 = _mm256_unpackhi_epi32(c, d);
    const __m256i q0 = _mm256_unpacklo_epi64(ab0, cd0), q1 = _mm256_unpackhi_epi64(ab0, cd0);
    const __m256i q2 = _mm256_unpacklo_epi64(ab1, cd1), q3 = _mm256_unpackhi_epi64(ab1, cd1);
    STORE(out, _mm256_permute2x128_si256(q0, q1, 0x20));
    STORE(out + 8, _mm256_permute2x128_si256(q2, q3, 0x20));
    STORE(out + 16, _mm256_permute2x128_si256(q0, q1, 0x31));
    STORE(out + 24, _mm256_permute2x128_si256(q2, q3, 0x31));
}
#define STORE4 store4_avx2
#define HALVES(in, out) _mm_storeu_si128((__m128i *)(out), _mm256_cvtps_ph(_mm256_loadu_ps(in), 0))

#elif defined(SET_NEON)

#define NAME(f) f##_neon
#define LANES 4
#define V uint32x4_t
#define W uint64x2_t
#define LOAD(p) vld1q_u32(p)
#define STORE(p, v) vst1q_u32(p, v)
#define ALL(x) vdupq_n_u32((uint32_t)(x))
#define ADD vaddq_u32
#define SUB vsubq_u32
#define AND vandq_u32
#define XOR veorq_u32
#define SRL vshrq_n_u32
#define SRA(v, n) vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(v), n))
#define SLL_EACH(v, n) vshlq_u32(v, vreinterpretq_s32_u32(n))
#define ABOVE(v, x) vcgtq_u32(v, ALL(x))
#define ROUGH(v) vreinterpretq_u32_f32(vcvtq_f32_s32(vreinterpretq_s32_u32(v)))
#define AT_LEAST_0(v) vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(v), vdupq_n_s32(0)))
static inline uint32x4_t column_neon(const uint32_t *column, uint32x4_t row) {
    uint32_t at[4];
    vst1q_u32(at, row);
    const uint32_t found[4] = {column[at[0]], column[at[1]], column[at[2]], column[at[3]]};
    return vld1q_u32(found);
}
#define COLUMN(k, row) column_neon(table[k], row)
#define AS_W(v) vreinterpretq_u64_u32(v)
#define WALL(x) vdupq_n_u64((uint64_t)(x))
#define WLOAD(p) vld1q_u64(p)
#define PRODUCT(a, b) vmull_u32(vmovn_u64(a), vmovn_u64(b))
#define UPPER(w) vshrq_n_u64(w, 32)
#define XOR3(a, b, c) veorq_u64(veorq_u64(a, b), c)
#define PACK(even, odd) vtrn1q_u32(vreinterpretq_u32_u64(even), vreinterpretq_u32_u64(odd))
#define SPLIT(even, odd) vtrn2q_u32(vreinterpretq_u32_u64(even), vreinterpretq_u32_u64(odd))
static inline void store4_neon(uint32_t *out, V a, V b, V c, V d) {
    const uint32x4x4_t all = {{a, b, c, d}};
    vst4q_u32(out, all);
}
#define STORE4 store4_neon

#else

#define NAME(f) f##_scalar
#define LANES 2
typedef struct { uint32_t at[2]; } Pair;
#define V Pair
#define W uint64_t
#define EACH(x0, x1) ((Pair){{(uint32_t)(x0), (uint32_t)(x1)}})
#define BOTH(a, op, b) EACH((a).at[0] op (b).at[0], (a).at[1] op (b).at[1])
#define LOAD(p) EACH((p)[0], (p)[1])
#define STORE(p, v) memcpy(p, (v).at, 8)
#define ALL(x) EACH(x, x)
static inline Pair add_scalar(Pair a, Pair b) { return BOTH(a, +, b); }
static inline Pair sub_scalar(Pair a, Pair b) { return BOTH(a, -, b); }
static inline Pair and_scalar(Pair a, Pair b) { return BOTH(a, &, b); }
static inline Pair xor_scalar(Pair a, Pair b) { return BOTH(a, ^, b); }
static inline Pair srl_scalar(Pair a, int n) { return EACH(a.at[0] >> n, a.at[1] >> n); }
static inline uint32_t sll1_scalar(uint32_t x, uint32_t n) { return n < 32 ? x << n : 0; }
static inline Pair sll_scalar(Pair a, Pair n) {
    return EACH(sll1_scalar(a.at[0], n.at[0]), sll1_scalar(a.at[1], n.at[1]));
}
static inline uint32_t sign_scalar(uint32_t x) { return 0u - (x >> 31); }
static inline Pair rough_scalar(Pair a) {
    const float x[2] = {(float)(int32_t)a.at[0], (float)(int32_t)a.at[1]};
    Pair bits;
    memcpy(bits.at, x, 8);
    return bits;
}
#define ADD add_scalar
#define SUB sub_scalar
#define AND and_scalar
#define XOR xor_scalar
#define SRL srl_scalar
#define SRA(v, n) EACH(sign_scalar((v).at[0]), sign_scalar((v).at[1]))
#define SLL_EACH sll_scalar
#define ABOVE(v, x) EACH(0u - ((v).at[0] > (uint32_t)(x)), 0u - ((v).at[1] > (uint32_t)(x)))
#define ROUGH rough_scalar
#define AT_LEAST_0(v) EACH((v).at[0] & ~sign_scalar((v).at[0]), (v).at[1] & ~sign_scalar((v).at[1]))
#define COLUMN(k, row) EACH(table[k][(row).at[0]], table[k][(row).at[1]])
#define AS_W(v) ((uint64_t)(v).at[1] << 32 | (v).at[0])
#define WALL(x) ((uint64_t)(x))
#define WLOAD(p) (*(p))
#define PRODUCT(a, b) ((uint64_t)(uint32_t)(a) * (uint32_t)(b))
#define UPPER(w) ((w) >> 32)
#define XOR3(a, b, c) ((a) ^ (b) ^ (c))
#define PACK(even, odd) EACH(even, odd)
#define SPLIT(even, odd) EACH((even) >> 32, (odd) >> 32)
static inline void store4_scalar(uint32_t *out, Pair a, Pair b, Pair c, Pair d) {
    for (int i = 0; i < 2; i++) {
        const uint32_t block[4] = {a.at[i], b.at[i], c.at[i], d.at[i]};
        memcpy(out + 4 * i, block, 16);
    }
}
#define STORE4 store4_scalar

#endif
