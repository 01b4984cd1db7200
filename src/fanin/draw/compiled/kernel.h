/* The draw for the instruction set of lanes.h. */

/* 4·LANES words, from a block of Philox4x32-10 on. */
static inline void NAME(philox)(const Job *job, uint64_t block, uint32_t *out) {
    uint64_t even[LANES / 2], odd[LANES / 2];
    for (int i = 0; i < LANES / 2; i++) {
        even[i] = block + 2 * i;
        odd[i] = block + 2 * i + 1;
    }
    /* Of each 64 bits the lower 32 are the counter word; what stands above is never looked at. */
    W a0 = WLOAD(even), b0 = WLOAD(odd), a1 = UPPER(a0), b1 = UPPER(b0);
    W a2 = WALL(job->high), b2 = a2, a3 = UPPER(a2), b3 = a3;
    uint32_t k0 = (uint32_t)job->low, k1 = (uint32_t)(job->low >> 32);
    const W m0 = WALL(0xD2511F53u), m1 = WALL(0xCD9E8D57u);
    for (int round = 0; round < 10; round++) {
        const W pa0 = PRODUCT(a0, m0), pa1 = PRODUCT(a2, m1);
        const W pb0 = PRODUCT(b0, m0), pb1 = PRODUCT(b2, m1);
        a0 = XOR3(UPPER(pa1), a1, WALL(k0));
        b0 = XOR3(UPPER(pb1), b1, WALL(k0));
        a2 = XOR3(UPPER(pa0), a3, WALL(k1));
        b2 = XOR3(UPPER(pb0), b3, WALL(k1));
        a1 = pa1, b1 = pb1, a3 = pa0, b3 = pb0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    /* Lower halves of even and odd lanes side by side; then the four words of each block. */
    STORE4(out, PACK(a0, b0), PACK(a1, b1), PACK(a2, b2), PACK(a3, b3));
}

/* Upper half of the product of 32 × 32 bits. */
static inline V NAME(high)(V x, V y) {
    const W even = PRODUCT(AS_W(x), AS_W(y)), odd = PRODUCT(UPPER(AS_W(x)), UPPER(AS_W(y)));
    return SPLIT(even, odd);
}

/* z·2²⁸ of each word: gaussian.py. */
static inline V NAME(normal)(V word) {
    const V upper = SRA(word, 31); /* all bits set where z is not negative */
    const V r = XOR(word, upper);
    /* A float of 24 bits must not round up to the next row: the last 7 of 31 bits are cleared. */
    const V lost = AND(ABOVE(r, (1 << 24) - 1), ALL(127));
    const V rough = ROUGH(SUB(r, AND(r, lost)));
    const V row = AT_LEAST_0(SUB(SRL(rough, 19), ALL(BEFORE_ONE)));
    const V t = SLL_EACH(r, SUB(ALL(36 + 127), SRL(rough, 23)));
    V sum = NAME(high)(COLUMN(3, row), t);
    sum = NAME(high)(SUB(COLUMN(2, row), sum), t);
    sum = NAME(high)(SUB(COLUMN(1, row), sum), t);
    sum = SUB(COLUMN(0, row), SRL(sum, 7)); /* c1, c2 and c3 have seven bits more than c0 */
    const V lower = XOR(upper, ALL(0xFFFFFFFFu));
    return SUB(XOR(sum, lower), lower); /* −sum where all bits of lower are set */
}

/* Words to numbers in place, `count` of them: a multiple of LANES. */
static inline void NAME(map)(const Job *job, uint32_t *words, uint64_t count) {
    const V first = ALL(job->first), width = ALL(job->width);
    for (uint32_t *at = words; at < words + count && job->kind != WORDS; at += LANES) {
        V v = LOAD(at);
        if (job->kind == UNIFORM) {
            v = SRL(v, 8);
            v = ADD(ADD(v, v), ALL(1 - (1 << 24)));
        } else {
            if (job->kind == BETWEEN) v = ADD(first, NAME(high)(v, width));
            v = NAME(normal)(v);
        }
        STORE(at, v);
    }
}

/* Numbers to values: one conversion, one multiplication, at most one addition, one rounding. */
static void NAME(write)(const Job *job, const int32_t *in, int count, char *out) {
    float values[PIECE] __attribute__((aligned(64)));
    float *at = job->form == FLOAT32 ? (float *)out : values;
    if (job->form == INTEGER) {
        memcpy(out, in, (size_t)count * 4);
        return;
    }
    for (int i = 0; i < count; i++) at[i] = (float)in[i] * job->scale;
    if (job->shifted)
        for (int i = 0; i < count; i++) at[i] += job->shift;
    if (job->form == FLOAT64)
        for (int i = 0; i < count; i++) ((double *)out)[i] = at[i];
    if (job->form == BFLOAT16)
        for (int i = 0; i < count; i++) ((uint16_t *)out)[i] = brain(at[i]);
    if (job->form == FLOAT16) {
        int i = 0;
#ifdef HALVES
        for (; i + 8 <= count; i += 8) HALVES(at + i, (uint16_t *)out + i);
#endif
        for (; i < count; i++) ((uint16_t *)out)[i] = half(at[i]);
    }
}

/* Values start … start + count − 1 of the stream. */
static void NAME(fill)(const Job *job, uint64_t start, uint64_t count, char *out) {
    uint32_t piece[PIECE + 4 * LANES] __attribute__((aligned(64)));
    while (count) {
        const int lane = (int)(start % 4);
        const int size = (int)(count < PIECE ? count : PIECE);
        const int step = 4 * LANES;
        for (int i = 0; i < lane + size; i += step) {
            NAME(philox)(job, start / 4 + i / 4, piece + i);
            NAME(map)(job, piece + i, step);
        }
        NAME(write)(job, (const int32_t *)piece + lane, size, out);
        out += (size_t)size * SIZES[job->form];
        start += size;
        count -= size;
    }
}
