/* The draw for the instruction set of lanes.h. */

/* Words of CHAINS vectors of blocks, from a block of Philox4x32-10 on. */
static inline void NAME(philox)(const Keys *keys, uint64_t block, uint32_t *out) {
    /* Of each 64 bits the lower 32 are the counter word; what stands above is never looked at.
     * Blocks stand in the order that STORE2 turns into their own. */
    W x[CHAINS][4];
    for (int c = 0; c < CHAINS; c++) {
        x[c][0] = WADD(WALL(block + c * (LANES / 2)), WORDER);
        x[c][1] = UPPER(x[c][0]);
        x[c][2] = WALL(keys->high);
        x[c][3] = UPPER(x[c][2]);
    }
    const W m0 = WALL(0xD2511F53u), m1 = WALL(0xCD9E8D57u);
#pragma GCC unroll 10
    for (int round = 0; round < ROUNDS; round++) {
        const W k0 = WALL(keys->of[round][0]), k1 = WALL(keys->of[round][1]);
#pragma GCC unroll 3
        for (int c = 0; c < CHAINS; c++) {
            const W p0 = PRODUCT(x[c][0], m0), p1 = PRODUCT(x[c][2], m1);
            x[c][0] = XOR3(ACROSS(p1), x[c][1], k0);
            x[c][2] = XOR3(ACROSS(p0), x[c][3], k1);
            x[c][1] = p1, x[c][3] = p0;
            IN_TURN(x[c][0], x[c][2]);
        }
    }
    /* Lower halves side by side: two words, and two words, of each block. */
    for (int c = 0; c < CHAINS; c++)
        STORE2(out + c * 2 * LANES, PACK(x[c][0], x[c][1]), PACK(x[c][2], x[c][3]));
}

/* Upper half of the product of 32 × 32 bits. */
static inline V NAME(high)(V x, V y) {
    const W even = PRODUCT(AS_W(x), AS_W(y)), odd = PRODUCT(UPPER(AS_W(x)), UPPER(AS_W(y)));
    return SPLIT(even, odd);
}

#ifndef NORMALS
/* z·2²⁸ of each word: gaussian.py. */
static inline V NAME(normal)(V word) {
    const S upper = NOT_NEGATIVE(word); /* z is not negative */
    const V r = FOLD(word, upper);      /* the complement there */
    const V rough = ROUGH(r);           /* as a float, rounded down: up might be the next row */
    const V t = SLL_EACH(r, SUB(ALL(36 + 127), SRL(rough, 23)));
    V c[COLUMNS];
    LOOK_UP(SRL(rough, 19), c);
    V sum = NAME(high)(c[3], t);
    sum = NAME(high)(SUB(c[2], sum), t);
    sum = NAME(high)(SUB(c[1], sum), t);
    sum = SUB(c[0], SRL(sum, 7)); /* c1, c2 and c3 have seven bits more than c0 */
    return SIGNED(sum, upper);
}

static void NAME(normals)(uint32_t *words, uint64_t count) {
    for (uint32_t *at = words; at < words + count; at += LANES) STORE(at, NAME(normal)(LOAD(at)));
}
#endif

/* All words to those between two bounds, in place, `count` of them: a multiple of LANES. */
static inline void NAME(between)(const Job *job, uint32_t *words, uint64_t count) {
    const V first = ALL(job->first), width = ALL(job->width);
    for (uint32_t *at = words; at < words + count; at += LANES)
        STORE(at, ADD(first, NAME(high)(LOAD(at), width)));
}

/* Words to numbers in place, `count` of them: a multiple of LANES, and of 16. */
static inline void NAME(map)(const Job *job, uint32_t *words, uint64_t count) {
    switch (job->kind) {
        case BETWEEN: NAME(between)(job, words, count); /* falls through */
        case NORMAL: NAME(normals)(words, count); break;
        case UNIFORM:
            for (uint32_t *at = words; at < words + count; at += LANES) {
                const V v = SRL(LOAD(at), 8);
                STORE(at, ADD(ADD(v, v), ALL(1 - (1 << 24))));
            }
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

#ifdef STREAM
/* Copy `size` bytes, whole lines of them past the caches. */
static void NAME(stream)(const char *in, uint64_t size, char *out) {
    uint64_t at = -(uintptr_t)out % LINE; /* bytes before the first whole line */
    if (at > size) at = size;
    memcpy(out, in, at);
    for (; at + LINE <= size; at += LINE) STREAM(in + at, out + at);
    memcpy(out + at, in + at, size - at);
}
#endif

/* Values start … start + count − 1 of the stream; `past` the caches, where that can be. */
static void NAME(fill)(const Job *job, uint64_t start, uint64_t count, char *out, int past) {
    const Keys keys = keys_of(job);
    enum { STEP = CHAINS * 2 * LANES }; /* words at once */
    uint32_t piece[PIECE + 2 * STEP] __attribute__((aligned(64)));
#ifdef STREAM
    char values[PIECE * 8] __attribute__((aligned(64)));
#endif
    (void)past;
    while (count) {
        const int lane = (int)(start % 4);
        const int size = (int)(count < PIECE ? count : PIECE);
        int drawn = 0; /* in loops of their own: in one the processor cannot look far enough ahead */
        for (; drawn < lane + size; drawn += STEP)
            NAME(philox)(&keys, start / 4 + drawn / 4, piece + drawn);
#ifdef STRAIGHT
        if (job->form == FLOAT32 && !job->shifted && (job->kind == NORMAL || job->kind == BETWEEN) &&
            lane == 0 && size == PIECE && !(past && (uintptr_t)out % LINE)) {
            if (job->kind == BETWEEN) NAME(between)(job, piece, size);
            STRAIGHT(piece, job->scale, out, past);
            out += (size_t)size * 4, start += size, count -= size;
            continue;
        }
#endif
        NAME(map)(job, piece, drawn);
#ifdef STREAM
        if (past) {
            NAME(write)(job, (const int32_t *)piece + lane, size, values);
            NAME(stream)(values, (uint64_t)size * SIZES[job->form], out);
        } else
#endif
            NAME(write)(job, (const int32_t *)piece + lane, size, out);
        out += (size_t)size * SIZES[job->form];
        start += size;
        count -= size;
    }
}
