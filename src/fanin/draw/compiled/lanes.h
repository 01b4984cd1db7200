/* Operations on vectors for one instruction set, chosen by SET_SCALAR, SET_AVX2, SET_AVX512 or
 * SET_NEON.  Undefines those of the set before.
 *
 * V: LANES numbers of 32 bits.  W: half as many of 64 bits, of which a product takes the lower 32.
 * S: which of LANES numbers are not negative.  kernel.h says in words what each operation does where
 * it uses it.
 */

#undef NAME
#undef LANES
#undef V
#undef W
#undef S
#undef NOT_NEGATIVE
#undef FOLD
#undef SIGNED
#undef NOT
#undef DENSE
#undef LOAD
#undef STORE
#undef ALL
#undef ADD
#undef SUB
#undef AND_NOT
#undef XOR
#undef SRL
#undef SRA
#undef SLL_EACH
#undef ROUGH
#undef AT_LEAST_0
#undef LOOK_UP
#undef NORMALS
#undef STRAIGHT
#undef AS_W
#undef WALL
#undef WADD
#undef WORDER
#undef PRODUCT
#undef UPPER
#undef ACROSS
#undef XOR3
#undef PACK
#undef SPLIT
#undef STORE2
#undef CHAINS
#undef IN_TURN
#undef HALVES
#undef STREAM

/* Rows one after the other, from those that exponent and four bits of a float give. */
#define DENSE(row) AT_LEAST_0(SUB(row, ALL(BEFORE_ONE)))

#if defined(SET_AVX512)

/* SET_GATHER: the same, but for how rows are looked up. */
#ifdef SET_GATHER
#define NAME(f) f##_gather
#define LOOK_UP look_up_gather
#else
#define NAME(f) f##_avx512
#define LOOK_UP look_up_avx512
#endif
#define LANES 16
#define V __m512i
#define W __m512i
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, v) _mm512_storeu_si512(p, v)
#define ALL(x) _mm512_set1_epi32((int)(x))
#define ADD _mm512_add_epi32
#define SUB _mm512_sub_epi32
#define XOR _mm512_xor_si512
#define SRL _mm512_srli_epi32
#define SRA _mm512_srai_epi32
#define SLL_EACH _mm512_sllv_epi32
#define ROUGH(v) \
    _mm512_castps_si512(_mm512_cvt_roundepi32_ps(v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC))
#define AT_LEAST_0(v) _mm512_max_epi32(v, ALL(0))
#define S __mmask16
#define NOT_NEGATIVE(word) _mm512_movepi32_mask(word)
#define FOLD(word, upper) _mm512_mask_xor_epi32(word, upper, word, ALL(0xFFFFFFFFu))
#define SIGNED(sum, upper) _mm512_mask_sub_epi32(sum, _knot_mask16(upper), ALL(0), sum)
#define AS_W(v) (v)
#define WALL(x) _mm512_set1_epi64((long long)(x))
#define WADD _mm512_add_epi64
#define WORDER _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0)
#define CHAINS 2
#define PRODUCT _mm512_mul_epu32
#define UPPER(w) _mm512_srli_epi64(w, 32)
/* Shifts have one unit of the processor, which products need too; shuffles have the other, which the
 * map needs for permutations. */
#define ACROSS(w) _mm512_shuffle_epi32(w, (_MM_PERM_ENUM)0xF5)
#define XOR3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define PACK(even, odd) _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, (_MM_PERM_ENUM)0xA0)
#define SPLIT(even, odd) _mm512_mask_shuffle_epi32(odd, 0x5555, even, (_MM_PERM_ENUM)0xF5)

#ifndef SET_GATHER
/* All but one in 256 numbers fall into the last eight octaves, whose 128 rows are eight
 * vectors: permutations of these are quick everywhere, and gathering is slow on many processors. */
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
static inline void look_up_avx512(__m512i row, __m512i *c) {
    for (int k = 0; k < COLUMNS; k++) c[k] = column_avx512(by_column[k], DENSE(row));
}
/* Where gathering is quick, that of two numbers at once is quicker than permutations. */
static inline void look_up_gather(__m512i row, __m512i *c) {
    const __m256i lower = _mm512_castsi512_si256(row), upper = _mm512_extracti64x4_epi64(row, 1);
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = ADD(even, ALL(1));
    for (int k = 0; k < COLUMNS; k += 2) {
        const __m512i a = _mm512_i32gather_epi64(lower, by_pair[k / 2], 8);
        const __m512i b = _mm512_i32gather_epi64(upper, by_pair[k / 2], 8);
        c[k] = _mm512_permutex2var_epi32(a, even, b);
        c[k + 1] = _mm512_permutex2var_epi32(a, odd, b);
    }
}
static inline void store2_avx512(uint32_t *out, __m512i a, __m512i b) {
    STORE(out, _mm512_unpacklo_epi64(a, b)), STORE(out + 16, _mm512_unpackhi_epi64(a, b));
}
#endif
#define STORE2 store2_avx512
#define STREAM(in, out) _mm512_stream_si512((__m512i *)(out), LOAD(in))
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
#define AND_NOT(a, b) _mm256_andnot_si256(b, a)
#define XOR _mm256_xor_si256
#define SRL _mm256_srli_epi32
#define SRA _mm256_srai_epi32
#define SLL_EACH _mm256_sllv_epi32
#define ROUGH(v) _mm256_castps_si256(_mm256_cvtepi32_ps(AND_NOT(v, SRL(v, 24))))
#define AS_W(v) (v)
#define WALL(x) _mm256_set1_epi64x((long long)(x))
#define WADD _mm256_add_epi64
#define WORDER _mm256_set_epi64x(3, 1, 2, 0)
#define PRODUCT _mm256_mul_epu32
#define UPPER(w) _mm256_srli_epi64(w, 32)
/* Three chains, with sixteen registers.  First the two that are there before the product: compilers
 * take three in any order, and the other one makes rounds a sixth longer.  And one chain after the
 * other in each round: in an order of its own gcc has not enough registers. */
#define CHAINS 3
#define IN_TURN(a, b) __asm__ volatile("" : "+x"(a), "+x"(b))
static inline __m256i kept_avx2(__m256i v) {
    __asm__("" : "+x"(v));
    return v;
}
#define XOR3(a, b, c) XOR(a, kept_avx2(XOR(b, c)))
#define PACK(even, odd) _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA)
#define SPLIT(even, odd) _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA)
/* Normals in two loops, or numbers wait for what is looked up, and what is looked up for its row: 0.6 of
 * the time.  The second takes two vectors at a time, each operation on both before the next.  Of a row
 * come two numbers of 64 bits, c2 above c3 and c1 above c0; the upper half of a product stands where
 * it is subtracted from c2 and c1.  kernel.h has the same in one loop. */
enum { NUMBERS, VALUES, VALUES_PAST }; /* what is written: past the caches in the last */
static inline __m128i row_avx2(uint32_t at) {
    return _mm_load_si128((const __m128i *)((const char *)by_half + at));
}
static inline __attribute__((always_inline)) void piece_avx2(
    const uint32_t *words, int count, int what, float scale, char *out) { /* a multiple of 16 */
    enum { HALVES = 4 }; /* even and odd numbers of two vectors */
    uint32_t rows[PIECE] __attribute__((aligned(64))), shifted[PIECE] __attribute__((aligned(64)));
    for (int i = 0; i < count; i += 8) {
        const __m256i word = LOAD(words + i), r = XOR(word, SRA(word, 31)), rough = ROUGH(r);
        STORE(shifted + i, SLL_EACH(r, SUB(ALL(36 + 127), SRL(rough, 23))));
        STORE(rows + i, _mm256_and_si256(SRL(rough, 15), ALL(~15))); /* in bytes */
    }
    for (int i = 0; i < count; i += 16) {
        __m256i t[HALVES], low[HALVES], high[HALVES], sum[HALVES];
        for (int k = 0; k < HALVES; k++) {
            const int first = i + k / 2 * 8;
            const uint32_t *at = rows + first + k % 2;
            const __m256i a = _mm256_set_m128i(row_avx2(at[4]), row_avx2(at[0]));
            const __m256i b = _mm256_set_m128i(row_avx2(at[6]), row_avx2(at[2]));
            low[k] = _mm256_unpacklo_epi64(a, b), high[k] = _mm256_unpackhi_epi64(a, b);
            t[k] = LOAD(shifted + first);
            if (k % 2) t[k] = UPPER(t[k]);
        }
        for (int k = 0; k < HALVES; k++) sum[k] = PRODUCT(low[k], t[k]);
        for (int k = 0; k < HALVES; k++) sum[k] = UPPER(SUB(low[k], sum[k]));
        for (int k = 0; k < HALVES; k++) sum[k] = PRODUCT(sum[k], t[k]);
        for (int k = 0; k < HALVES; k++) sum[k] = UPPER(SUB(high[k], sum[k]));
        for (int k = 0; k < HALVES; k++) sum[k] = PRODUCT(sum[k], t[k]);
        for (int k = 0; k < HALVES; k++) sum[k] = SUB(high[k], _mm256_srli_epi64(sum[k], 32 + 7));
        for (int k = 0; k < HALVES; k += 2) {
            const __m256i upper = SRA(LOAD(words + i + k * 4), 31);
            const __m256i number = SUB(upper, XOR(PACK(sum[k], sum[k + 1]), upper));
            const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(number), _mm256_set1_ps(scale));
            char *at = out + (i + k * 4) * 4;
            if (what == NUMBERS) STORE(at, number);
            if (what == VALUES) _mm256_storeu_ps((float *)at, value);
            if (what == VALUES_PAST) _mm256_stream_ps((float *)at, value);
        }
    }
}
static void normals_avx2(uint32_t *words, uint64_t count) {
    for (uint64_t at = 0; at < count; at += PIECE) {
        const int size = (int)(count - at < PIECE ? count - at : PIECE);
        piece_avx2(words + at, size, NUMBERS, 0, (char *)(words + at));
    }
}
#define NORMALS normals_avx2
/* Of float32, a piece from registers to where it is wanted: in whole lines where past the caches. */
static void straight_avx2(const uint32_t *words, float scale, char *out, int past) {
    if (past) piece_avx2(words, PIECE, VALUES_PAST, scale, out);
    else piece_avx2(words, PIECE, VALUES, scale, out);
}
#define STRAIGHT straight_avx2
static inline void store2_avx2(uint32_t *out, __m256i a, __m256i b) {
    STORE(out, _mm256_unpacklo_epi64(a, b)), STORE(out + 8, _mm256_unpackhi_epi64(a, b));
}
#define STORE2 store2_avx2
static inline void line_avx2(const char *in, char *out) {
    for (int i = 0; i < LINE; i += 32) _mm256_stream_si256((__m256i *)(out + i), LOAD(in + i));
}
#define STREAM line_avx2
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
#define AND_NOT vbicq_u32
#define XOR veorq_u32
#define SRL vshrq_n_u32
#define SRA(v, n) vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(v), n))
#define SLL_EACH(v, n) vshlq_u32(v, vreinterpretq_s32_u32(n))
#define ROUGH(v) vreinterpretq_u32_f32(vcvtq_f32_u32(AND_NOT(v, SRL(v, 24))))
#define AT_LEAST_0(v) vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(v), vdupq_n_s32(0)))
static inline void look_up_neon(uint32x4_t rough, uint32x4_t *c) {
    const uint32x4_t row = DENSE(rough);
    const uint32x4_t x0 = vld1q_u32(by_row[vgetq_lane_u32(row, 0)]);
    const uint32x4_t x1 = vld1q_u32(by_row[vgetq_lane_u32(row, 1)]);
    const uint32x4_t x2 = vld1q_u32(by_row[vgetq_lane_u32(row, 2)]);
    const uint32x4_t x3 = vld1q_u32(by_row[vgetq_lane_u32(row, 3)]);
    const uint64x2_t a = vreinterpretq_u64_u32(vtrn1q_u32(x0, x1));
    const uint64x2_t b = vreinterpretq_u64_u32(vtrn2q_u32(x0, x1));
    const uint64x2_t d = vreinterpretq_u64_u32(vtrn1q_u32(x2, x3));
    const uint64x2_t e = vreinterpretq_u64_u32(vtrn2q_u32(x2, x3));
    c[0] = vreinterpretq_u32_u64(vtrn1q_u64(a, d));
    c[1] = vreinterpretq_u32_u64(vtrn1q_u64(b, e));
    c[2] = vreinterpretq_u32_u64(vtrn2q_u64(a, d));
    c[3] = vreinterpretq_u32_u64(vtrn2q_u64(b, e));
}
#define LOOK_UP look_up_neon
#define AS_W(v) vreinterpretq_u64_u32(v)
#define WALL(x) vdupq_n_u64((uint64_t)(x))
#define WADD vaddq_u64
#define WORDER vcombine_u64(vcreate_u64(0), vcreate_u64(1))
#define CHAINS 2
#define PRODUCT(a, b) vmull_u32(vmovn_u64(a), vmovn_u64(b))
#define UPPER(w) vshrq_n_u64(w, 32)
#define XOR3(a, b, c) veorq_u64(veorq_u64(a, b), c)
#define PACK(even, odd) vtrn1q_u32(vreinterpretq_u32_u64(even), vreinterpretq_u32_u64(odd))
#define SPLIT(even, odd) vtrn2q_u32(vreinterpretq_u32_u64(even), vreinterpretq_u32_u64(odd))
static inline void store2_neon(uint32_t *out, uint32x4_t x, uint32x4_t y) {
    const uint64x2_t a = vreinterpretq_u64_u32(x), b = vreinterpretq_u64_u32(y);
    STORE(out, vreinterpretq_u32_u64(vtrn1q_u64(a, b)));
    STORE(out + 4, vreinterpretq_u32_u64(vtrn2q_u64(a, b)));
}
#define STORE2 store2_neon

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
static inline Pair and_not_scalar(Pair a, Pair b) { return BOTH(a, &~, b); }
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
#define AND_NOT and_not_scalar
#define XOR xor_scalar
#define SRL srl_scalar
#define SRA(v, n) EACH(sign_scalar((v).at[0]), sign_scalar((v).at[1]))
#define SLL_EACH sll_scalar
#define ROUGH(v) rough_scalar(AND_NOT(v, SRL(v, 24)))
#define AT_LEAST_0(v) EACH((v).at[0] & ~sign_scalar((v).at[0]), (v).at[1] & ~sign_scalar((v).at[1]))
static inline void look_up_scalar(Pair rough, Pair *c) {
    const Pair row = DENSE(rough);
    for (int k = 0; k < COLUMNS; k++) c[k] = EACH(by_row[row.at[0]][k], by_row[row.at[1]][k]);
}
#define LOOK_UP look_up_scalar
#define AS_W(v) ((uint64_t)(v).at[1] << 32 | (v).at[0])
#define WALL(x) ((uint64_t)(x))
#define WADD(a, b) ((a) + (b))
#define WORDER 0
#define CHAINS 2
#define PRODUCT(a, b) ((uint64_t)(uint32_t)(a) * (uint32_t)(b))
#define UPPER(w) ((w) >> 32)
#define XOR3(a, b, c) ((a) ^ (b) ^ (c))
#define PACK(even, odd) EACH(even, odd)
#define SPLIT(even, odd) EACH((even) >> 32, (odd) >> 32)
#define STORE2(out, a, b) (STORE(out, a), STORE((out) + 2, b))

#endif

#ifndef IN_TURN /* compilers know best */
#define IN_TURN(a, b)
#endif

#ifndef ACROSS /* the upper half in the place of the lower; above it stands anything */
#define ACROSS UPPER
#endif

#ifndef S /* all bits of a number set, or none */
#define S V
#define NOT_NEGATIVE(word) SRA(word, 31)
#define FOLD(word, upper) XOR(word, upper)
#define SIGNED(sum, upper) SUB(XOR(sum, NOT(upper)), NOT(upper))
#define NOT(v) XOR(v, ALL(0xFFFFFFFFu))
#endif
