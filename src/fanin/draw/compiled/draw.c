/* The draw of fanin, compiled: Philox4x32-10 words and integer maps, bit for bit those of the numpy
 * reference (philox.py, gaussian.py, tensors.py), which explains them.
 *
 * kernel.h is written once, in operations on vectors, and included for each instruction set of
 * lanes.h.  Nothing but integers is touched until one conversion to float, one multiplication and
 * at most one addition; compile with -ffp-contract=off.
 */

#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { WORDS, NORMAL, UNIFORM, BETWEEN };              /* what is drawn; see native.py */
enum { INTEGER, FLOAT32, FLOAT64, BFLOAT16, FLOAT16 }; /* how it is written */
enum { SCALAR, AVX2, AVX512, NEON, GATHER };           /* instruction sets; AVX-512 twice */

typedef struct {
    uint64_t low, high;   /* the key */
    uint32_t first, width; /* the words between two bounds */
    float scale, shift;
    int32_t shifted; /* whether shift is added */
    int32_t kind, form;
} Job;

/* The normal table: a row for 0, then one for each sixteenth of an octave; c0 … c3 of each, row by
 * row and column by column. */
enum { ROWS = 497, COLUMNS = 4 };
static uint32_t by_row[ROWS][COLUMNS] __attribute__((aligned(64)));
static uint32_t by_column[COLUMNS][512] __attribute__((aligned(64)));

enum { LINE = 64 };                 /* bytes of the caches */
enum { PIECE = 1024 };              /* numbers at once: they stay in the first cache */
enum { BEFORE_ONE = 127 * 16 - 1 }; /* exponent and four bits of 1.0f, less one */
/* c0 and c1, then c2 and c3, of the row that exponent and four bits of a float give. */
static uint64_t by_pair[2][BEFORE_ONE + ROWS] __attribute__((aligned(64)));
/* c3, c2, c0 and c1 of the same. */
static uint32_t by_half[BEFORE_ONE + ROWS][COLUMNS] __attribute__((aligned(64)));
static const int SIZES[] = {4, 4, 8, 2, 2};

/* The upper half of the counter, and the two words of the key of each round. */
enum { ROUNDS = 10 };
typedef struct {
    uint64_t high, of[ROUNDS][2];
} Keys;

static Keys keys_of(const Job *job) {
    Keys keys = {job->high, {{(uint32_t)job->low, job->low >> 32}}};
    for (int round = 1; round < ROUNDS; round++) {
        keys.of[round][0] = (uint32_t)(keys.of[round - 1][0] + 0x9E3779B9u);
        keys.of[round][1] = (uint32_t)(keys.of[round - 1][1] + 0xBB67AE85u);
    }
    return keys;
}

/* To bfloat16, to the nearest, ties to even; no value here is NaN. */
static inline uint16_t brain(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

/* The same to float16. */
static inline uint16_t half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7FFFFFFFu;
    if (size >= 113u << 23) /* normal: subtract the difference of the exponents' offsets */
        return (uint16_t)(sign | ((size - (112u << 23) + 0xFFFu + (size >> 13 & 1)) >> 13));
    float rounded; /* subnormal: a sum with ½ leaves multiples of 2⁻²⁴ */
    memcpy(&rounded, &size, 4);
    rounded += 0.5f;
    memcpy(&bits, &rounded, 4);
    return (uint16_t)(sign | (bits - (126u << 23)));
}

#include "lanes.h"
#include "kernel.h"

#if defined(__x86_64__)
#if defined(__clang__) /* which has words of its own for GCC's "target of what follows" */
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif
#define SET_AVX2
#include "lanes.h"
#include "kernel.h"
#undef SET_AVX2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define SET_AVX512
#include "lanes.h"
#include "kernel.h"
#define SET_GATHER
#include "lanes.h"
#include "kernel.h"
#undef SET_GATHER
#undef SET_AVX512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#elif defined(__aarch64__)
#define SET_NEON
#include "lanes.h"
#include "kernel.h"
#undef SET_NEON
#endif

typedef void (*Fill)(const Job *, uint64_t, uint64_t, char *, int);
typedef void (*Map)(const Job *, uint32_t *, uint64_t);

/* What an instruction set does; nothing where the machine does not have it. */
typedef struct {
    Fill fill;
    Map map;
} Code;

static Code code_of(int set) {
    const Code none = {NULL, NULL};
    switch (set) {
        case SCALAR: return (Code){fill_scalar, map_scalar};
#if defined(__x86_64__)
        case AVX2: /* every processor with the one has the other */
            return __builtin_cpu_supports("avx2") ? (Code){fill_avx2, map_avx2} : none;
        case AVX512:
        case GATHER:
            if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
                !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
                return none;
            return set == GATHER ? (Code){fill_gather, map_gather} : (Code){fill_avx512, map_avx512};
#elif defined(__aarch64__)
        case NEON: return (Code){fill_neon, map_neon};
#endif
        default: return none;
    }
}

/* Equal runs of `count` consecutive elements: `stride` from one to the next in the stream, `step` in
 * memory. */
typedef struct {
    uint64_t start, count, repeats, stride, step;
} Rows;

/* Values to write to `out`; `before` is the number of those of the tasks before. */
typedef struct {
    Job job;
    Rows rows;
    char *out;
    uint64_t before;
} Task;

static uint64_t elements(const Task *task) { return task->rows.count * task->rows.repeats; }

enum { MOST = 64 }; /* threads: many more than memory can be written with */

/* Tasks that threads share.  The elements of all of them, one after the other, are cut into a part
 * for each thread, and a part into tiles.  Who has taken the last tile of its own part helps with the
 * others: a thread may start late, or be interrupted. */
typedef struct {
    const Task *tasks;
    uint64_t count, tile;
    Fill fill;
    int much; /* whether values fill the caches many times */
    uint64_t page; /* bytes */
    int parts;
    struct {
        _Atomic uint64_t next; /* the first element that nobody has taken */
        uint64_t stop;
    } part[MOST];
} Work;

typedef struct {
    Work *work;
    int own; /* part */
    pthread_t thread;
    int runs;
} Worker;

/* Elements of a tile.  Fewer, and two threads ask for one large page of memory more often, which the
 * system then clears twice: 87 M values into new memory take 93 ms in tiles of 2^14, 57 ms in tiles
 * of 2^18 (two threads).  More is no quicker, and at the end one thread waits longer for the other. */
enum { FEWEST = 1 << 14, MANY = 1 << 18, TILES = 16 /* of a part, where that is between */ };

/* Have the system make all pages of new memory at once: one by one, at the first write to each, takes
 * a fifth longer altogether.  Whether all were there before. */
static int present(const Work *work, char *out, uint64_t bytes) {
#if defined(__linux__)
    enum { POPULATE_WRITE = 23 }; /* MADV_POPULATE_WRITE of Linux 5.14 and later */
    enum { MOST_PAGES = MANY * 8 / 4096 }; /* of a tile of doubles, where pages are smallest */
    const uint64_t page = work->page, above = (uintptr_t)out + page - 1;
    const uint64_t first = above - above % page, end = (uintptr_t)out + bytes;
    const uint64_t pages = end > first ? (end - first) / page : 0;
    unsigned char there[MOST_PAGES];
    if (pages == 0 || pages > MOST_PAGES || mincore((void *)first, pages * page, there)) return 1;
    int all = 1;
    for (uint64_t i = 0; i < pages; i++) all &= there[i];
    if (!all) madvise((void *)first, pages * page, POPULATE_WRITE); /* or as without it */
    return all;
#else
    (void)work, (void)out, (void)bytes;
    return 1;
#endif
}

/* Write elements first … stop − 1 of a task. */
static void write_run(const Work *work, const Task *task, uint64_t first, uint64_t stop) {
    const Rows *rows = &task->rows;
    for (uint64_t at = first; at < stop;) {
        const uint64_t row = at / rows->count, column = at % rows->count;
        const uint64_t left = rows->count - column, most = stop - at;
        const uint64_t size = left < most ? left : most;
        const uint64_t bytes = size * SIZES[task->job.form];
        char *out = task->out + (row * rows->step + column) * SIZES[task->job.form];
        /* New memory was cleared just now, and is in the caches. */
        const int past = present(work, out, bytes) && work->much;
        work->fill(&task->job, rows->start + row * rows->stride + column, size, out, past);
        at += size;
    }
}

/* Write elements first … stop − 1 of all tasks. */
static void write_tile(const Work *work, uint64_t first, uint64_t stop) {
    uint64_t low = 0, high = work->count; /* the last task that starts at `first` or before */
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        if (work->tasks[middle].before <= first) low = middle;
        else high = middle;
    }
    for (const Task *task = work->tasks + low; first < stop; task++) {
        const uint64_t end = task->before + elements(task), most = end < stop ? end : stop;
        write_run(work, task, first - task->before, most - task->before);
        first = most;
    }
}

static void *run(void *argument) {
    const Worker *worker = argument;
    Work *work = worker->work;
    fenv_t before; /* the caller's mode of rounding, and of flushing to zero */
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    for (int turn = 0; turn < work->parts; turn++) {
        const int part = (worker->own + turn) % work->parts;
        const uint64_t stop = work->part[part].stop;
        for (;;) {
            const uint64_t at = atomic_fetch_add(&work->part[part].next, work->tile);
            if (at >= stop) break;
            write_tile(work, at, stop - at < work->tile ? stop : at + work->tile);
        }
    }
#if defined(__x86_64__)
    _mm_sfence(); /* what was written past the caches is seen by all that comes later */
#endif
    fesetenv(&before);
    return NULL;
}

/* Set the normal table: ROWS · COLUMNS numbers, column by column. */
void fanin_table(const uint32_t *columns) {
    for (int row = 0; row < ROWS; row++)
        for (int k = 0; k < COLUMNS; k++)
            by_column[k][row] = by_row[row][k] = columns[k * ROWS + row];
    static const int halves[COLUMNS] = {3, 2, 0, 1};
    for (int row = 0; row < ROWS; row++) {
        const int at = row ? BEFORE_ONE + row : 0; /* exponent and four bits, as they are */
        for (int k = 0; k < COLUMNS; k += 2)
            by_pair[k / 2][at] = by_row[row][k] | (uint64_t)by_row[row][k + 1] << 32;
        for (int k = 0; k < COLUMNS; k++) by_half[at][k] = by_row[row][halves[k]];
    }
}

/* Whether this machine has an instruction set. */
int fanin_has(int set) { return code_of(set).fill != NULL; }

/* Bytes from which on values are written past the caches: uniforms take 0.85 of the time then, normals
 * 0.95, for 100 MB; of 8 MB what is read next takes longer by what was gained. */
enum { MUCH = 1 << 25 };

/* Write the values of some tasks, on up to `threads` threads; 0, or −1 where the instruction set is
 * absent. */
int fanin_write(Task *tasks, uint64_t count, int threads, int set) {
    Work work = {tasks, count, 0, code_of(set).fill, 0, 4096, 0, {{0}}};
    Worker workers[MOST];
    if (work.fill == NULL) return -1;
    uint64_t total = 0, bytes = 0;
    for (uint64_t i = 0; i < count; i++) {
        tasks[i].before = total;
        total += elements(&tasks[i]);
        bytes += elements(&tasks[i]) * SIZES[tasks[i].job.form];
    }
    work.much = bytes >= MUCH;
#if defined(__linux__)
    work.page = (uint64_t)sysconf(_SC_PAGESIZE);
#endif
    if (threads > MOST) threads = MOST;
    if (threads < 1) threads = 1;
    /* whole pieces, so that no two threads write to one line of the cache but at an edge */
    const uint64_t step = (total / threads + PIECE) / PIECE * PIECE;
    work.tile = step / TILES / PIECE * PIECE;
    if (work.tile < FEWEST) work.tile = FEWEST;
    if (work.tile > MANY) work.tile = MANY;
    for (uint64_t at = 0; at < total; at += step, work.parts++) {
        atomic_init(&work.part[work.parts].next, at);
        work.part[work.parts].stop = total - at < step ? total : at + step;
    }
    for (int i = work.parts; i-- > 0;) { /* the first is this thread's */
        Worker *worker = &workers[i];
        *worker = (Worker){&work, i, 0, 0};
        if (i) worker->runs = pthread_create(&worker->thread, NULL, run, worker) == 0;
        else run(worker); /* which also does the part of a thread that cannot be had */
    }
    for (int i = 1; i < work.parts; i++)
        if (workers[i].runs) pthread_join(workers[i].thread, NULL);
    return 0;
}

/* Words to numbers in place, for tests: `count` is a multiple of 16. */
int fanin_map(const Job *job, uint32_t *words, uint64_t count, int set) {
    const Map map = code_of(set).map;
    if (map == NULL || count % 16) return -1;
    map(job, words, count);
    return 0;
}
