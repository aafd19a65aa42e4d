/* Threads, packing, whole products and whole decode steps; what Python calls. */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#ifdef LLAMACLI_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#define EXPORT __attribute__((visibility("default")))
#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* ------------------------------------------------------------------------------ instruction sets */

#ifdef LLAMACLI_X86
/* Whether there is AMX for bfloat16 and integers, and the system lets this process use it. */
static int has_amx(void) {
#ifdef __linux__
    enum { REQUEST = 0x1023, TILE_DATA = 18, BF16 = 1 << 22, TILES = 1 << 24, INT8 = 1 << 25 };
    unsigned a, b, c, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILES) && (d & INT8) &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return 0;
#endif
}
#endif

static const struct kernels *best(void) {
#ifdef LLAMACLI_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vnni"))
        return has_amx() ? &kernels_amx : &kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &kernels_avx2;
#endif
    return &kernels_portable;
}

static const struct kernels *kernels;

/* Use the kernels of this name, or the best where it is null; false if they cannot run here. */
EXPORT int llamacli_use(const char *name) {
    const struct kernels *fastest = best();
    const struct kernels *known[] = {
        &kernels_portable,
#ifdef LLAMACLI_X86
        &kernels_avx2,
        &kernels_avx512,
        &kernels_amx,
#endif
    };
    if (name == NULL) {
        kernels = fastest;
        return 1;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i]->name, name) == 0) {
            kernels = known[i];
            return 1;
        }
        if (known[i] == fastest) /* those after it cannot run */
            break;
    }
    return 0;
}

EXPORT const char *llamacli_name(void) {
    return kernels->name;
}

/* -------------------------------------------------------------------------------------- threads
 *
 * Jobs run on the threads of torch where these are GNU OpenMP's: they stay awake for a while after
 * their work, and would be in the way of others. Elsewhere we have workers of our own. The caller
 * is thread 0. The others wait for work: briefly awake, since the next call mostly comes at once,
 * then asleep.
 */

enum { AWAKE = 2000, MAX_THREADS = 256 };

typedef void job(int thread, int threads, void *argument);

static struct {
    pthread_mutex_t busy; /* one job at a time */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    job *run;
    void *argument;
    int threads, started;
    atomic_uint generation, done;
    atomic_uint arrived, phase; /* of the barrier */
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

/* Functions of GNU OpenMP, or null. */
static struct {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread)(void), (*threads)(void);
} openmp;

EXPORT void llamacli_share_threads(void *parallel, void *thread, void *threads) {
    memcpy(&openmp.parallel, &parallel, sizeof parallel);
    memcpy(&openmp.thread, &thread, sizeof thread);
    memcpy(&openmp.threads, &threads, sizeof threads);
}

static inline void relax(int spins) {
    if (spins % 256 == 255) {
        sched_yield();
        return;
    }
#ifdef LLAMACLI_X86
    __builtin_ia32_pause();
#endif
}

/* Wait until all threads of the job are here. */
static void barrier(int threads) {
    unsigned phase = atomic_load(&pool.phase);
    if (atomic_fetch_add(&pool.arrived, 1) + 1 == (unsigned)threads) {
        atomic_store(&pool.arrived, 0);
        atomic_store(&pool.phase, phase + 1);
        return;
    }
    for (int spins = 0; atomic_load(&pool.phase) == phase; spins = (spins + 1) & 0xffff)
        relax(spins);
}

struct worker {
    int thread;
    unsigned seen; /* generation */
};

static void *work(void *argument) {
    struct worker self = *(struct worker *)argument;
    free(argument);
    for (;;) {
        for (int spins = 0; atomic_load(&pool.generation) == self.seen && spins < AWAKE; spins++)
            relax(spins);
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.generation) == self.seen)
            pthread_cond_wait(&pool.wake, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
        self.seen++;
        if (self.thread < pool.threads)
            pool.run(self.thread, pool.threads, pool.argument);
        atomic_fetch_add(&pool.done, 1);
    }
    return NULL;
}

/* A fork waits for the job that runs; its child has no workers, and none that ever waited. */
static void before_fork(void) {
    pthread_mutex_lock(&pool.busy);
}

static void after_fork(void) {
    pthread_mutex_unlock(&pool.busy);
}

static void in_child(void) {
    pool.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    pool.wake = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    pool.started = 0;
    openmp.parallel = NULL; /* its threads are gone, too, and it does not know */
    after_fork();
}

__attribute__((constructor)) static void heed_forks(void) {
    pthread_atfork(before_fork, after_fork, in_child);
}

/* Have so many workers beside the caller, or as many as the system allows. */
static void start_workers(int count) {
    while (pool.started < count) {
        struct worker *self = malloc(sizeof *self);
        pthread_t thread;
        if (self == NULL)
            return;
        *self = (struct worker){pool.started + 1, atomic_load(&pool.generation)};
        if (pthread_create(&thread, NULL, work, self) != 0) {
            free(self);
            return;
        }
        pthread_detach(thread);
        pool.started++;
    }
}

static void shared_job(void *unused) {
    (void)unused;
    pool.run(openmp.thread(), openmp.threads(), pool.argument);
}

/* Run a job on our own workers. */
static void run_here(job *function, void *argument, int threads) {
    start_workers(MIN(threads, MAX_THREADS) - 1);
    pool.run = function;
    pool.argument = argument;
    pool.threads = MIN(threads, pool.started + 1);
    if (pool.threads > 1) {
        atomic_store(&pool.done, 0);
        pthread_mutex_lock(&pool.lock);
        atomic_fetch_add(&pool.generation, 1);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    function(0, pool.threads, argument);
    if (pool.threads > 1)
        for (int spins = 0; atomic_load(&pool.done) < (unsigned)pool.started; spins++)
            relax(spins & 0xffff);
}

/* Run a job on so many threads, and come back when all are through. */
static void run(job *function, void *argument, int threads) {
    pthread_mutex_lock(&pool.busy);
    if (openmp.parallel && threads > 1) {
        pool.run = function;
        pool.argument = argument;
        openmp.parallel(shared_job, NULL, (unsigned)MIN(threads, MAX_THREADS), 0);
    } else {
        run_here(function, argument, threads);
    }
    pthread_mutex_unlock(&pool.busy);
}

/* Where a thread's share of so many units begins; that of the next thread is its end. */
static int64_t share(int64_t units, int thread, int threads) {
    return units * thread / threads;
}

/* ---------------------------------------------------------------------------------- plain reading */

struct reading {
    const uint64_t *data;
    int64_t blocks; /* of 32 words */
    atomic_uint_fast64_t sum;
};

static void read_job(int thread, int threads, void *argument) {
    struct reading *r = argument;
    const uint64_t *end = r->data + 32 * share(r->blocks, thread + 1, threads);
    uint64_t sum = 0;
    for (const uint64_t *at = r->data + 32 * share(r->blocks, thread, threads); at < end; at += 32) {
        for (int line = 0; line < 4; line++)
            __builtin_prefetch(at + 512 + 8 * line);
        for (int i = 0; i < 32; i++)
            sum += at[i];
    }
    atomic_fetch_add(&r->sum, sum);
}

/* Read so many blocks of 256 bytes, each thread its part from front to back: what no kernel that
 * reads weights can beat. The sum of their words. */
EXPORT uint64_t llamacli_read(const uint64_t *data, int64_t blocks, int threads) {
    struct reading reading = {data, blocks, 0};
    run(read_job, &reading, threads);
    return atomic_load(&reading.sum);
}

/* -------------------------------------------------------------------------------------- packing */

struct packing {
    const uint8_t *qdata; /* torchao's: (N, K/2) for 4 bits, (N, K) for 8 */
    const void *scale;    /* (K/g, N) bfloat16 for 4 bits, (N) float32 for 8 */
    const bf16 *zero_point;
    struct matrix to;
    uint8_t *tiles;
};

/* The even four-bit values of a word, together in its lower half. */
static uint32_t even_values(uint32_t word) {
    word &= 0x0f0f0f0f;
    word = (word | word >> 4) & 0x00ff00ff;
    return (word | word >> 8) & 0xffff;
}

/* Eight values of four bits, in the order of columns → in that of a chunk. */
static uint32_t chunk_word(uint32_t word) {
    return even_values(word) | even_values(word >> 4) << 16;
}

enum { LINE_CHUNKS = 16, FEW_CHUNKS = SUM_GROUP / 8 };

/* One row's part of so many chunks: a cache line at once is 2.7 times as fast as a word. */
static inline __attribute__((always_inline)) void pack_chunks(const uint8_t *in, uint8_t *out,
                                                              int count) {
    uint32_t words[LINE_CHUNKS];
    memcpy(words, in, 4 * (size_t)count);
    for (int c = 0; c < count; c++)
        words[c] = chunk_word(words[c] ^ 0x88888888);
    for (int c = 0; c < count; c++)
        memcpy(out + 4 * TILE * c, &words[c], 4);
}

static void pack_tile_int4(const struct packing *p, int64_t tile) {
    const struct matrix *to = &p->to;
    uint8_t *out = p->tiles + tile * tile_bytes(to);
    int64_t first = tile * TILE, count = MIN(to->n - first, TILE);
    int by_line = to->group_size % (8 * LINE_CHUNKS) == 0;
    int step = 8 * (by_line ? LINE_CHUNKS : FEW_CHUNKS);
    memset(out, 0, (size_t)tile_bytes(to));
    for (int64_t column = 0; column < to->k; column += step, out += TILE * step / 2) {
        if (column % to->group_size == 0) {
            int64_t at = column / to->group_size * to->n + first;
            memcpy(out, (const bf16 *)p->scale + at, (size_t)count * 2);
            memcpy(out + 2 * TILE, p->zero_point + at, (size_t)count * 2);
            out += 4 * TILE;
        }
        for (int64_t r = 0; r < count; r++) {
            const uint8_t *in = p->qdata + ((first + r) * to->k + column) / 2;
            by_line ? pack_chunks(in, out + 4 * r, LINE_CHUNKS)
                    : pack_chunks(in, out + 4 * r, FEW_CHUNKS);
        }
    }
}

static void pack_tile_int8(const struct packing *p, int64_t tile) {
    const struct matrix *to = &p->to;
    uint8_t *out = p->tiles + tile * tile_bytes(to);
    int64_t first = tile * TILE, count = MIN(to->n - first, TILE);
    memset(out, 0, (size_t)tile_bytes(to));
    memcpy(out, (const float *)p->scale + first, (size_t)count * 4);
    out += 4 * TILE;
    for (int64_t column = 0; column < to->k; column += 8, out += 8 * TILE)
        for (int64_t r = 0; r < count; r++) {
            const uint8_t *values = p->qdata + (first + r) * to->k + column;
            uint32_t high = 0, low = 0;
            for (int i = 0; i < 8; i++) {
                high |= (uint32_t)((values[i] >> 4) ^ 8) << (4 * i);
                low |= (uint32_t)(values[i] & 15) << (4 * i);
            }
            high = chunk_word(high);
            low = chunk_word(low);
            memcpy(out + 4 * r, &high, 4);
            memcpy(out + 4 * TILE + 4 * r, &low, 4);
        }
}

EXPORT int64_t llamacli_packed_bytes(const struct matrix *to) {
    return tiles(to) * tile_bytes(to);
}

/* On the calling thread: several load a model at once, each with a weight of its own. */
EXPORT void llamacli_pack(const struct packing *p) {
    for (int64_t tile = 0; tile < tiles(&p->to); tile++)
        p->to.bits == 4 ? pack_tile_int4(p, tile) : pack_tile_int8(p, tile);
}

/* -------------------------------------------------------------------------------------- products */

struct product {
    const struct matrix *w;
    const bf16 *x;         /* (M, K) */
    bf16 *y;               /* (M, N) */
    int64_t rows;          /* M */
    struct activations in; /* our own */
};

/* Rows whose distance is a power of two compete for the same few places in the cache. */
enum { APART = 64 };

enum { TILES_AT_ONCE = 16 }; /* so many, and the rows of a block, stay in the cache */

/* This thread's rows of the activations. */
static void prepare_rows(const struct product *p, int thread, int threads) {
    int64_t first = share(p->rows, thread, threads), last = share(p->rows, thread + 1, threads);
    size_t size = (size_t)p->w->k * sizeof(bf16);
    for (int64_t row = first; row < last; row++)
        memcpy(p->in.x + row * p->in.ld, p->x + row * p->w->k, size);
    if (p->w->bits == 4)
        kernels->prepare(p->w, &p->in, first, last);
    barrier(threads);
}

static void product_job(int thread, int threads, void *argument) {
    const struct product *p = argument;
    const struct matrix *w = p->w;
    int by_block = kernels->matmul_block && w->bits != 16 && w->k % SUM_GROUP == 0;
    int64_t most = by_block ? MAX_BLOCK : MAX_ROWS;
    int64_t blocks = (p->rows + most - 1) / most;
    prepare_rows(p, thread, threads);
    int64_t end = share(tiles(w), thread + 1, threads);
    for (int64_t tile = share(tiles(w), thread, threads); tile < end; tile += TILES_AT_ONCE)
        for (int64_t block = 0; block < blocks; block++) {
            int64_t last_tile = MIN(tile + TILES_AT_ONCE, end);
            int64_t count = MIN(w->n, last_tile * TILE) - tile * TILE;
            int64_t first = p->rows * block / blocks, last = p->rows * (block + 1) / blocks;
            struct activations in = from_row(&p->in, w, first);
            float y[MAX_BLOCK * TILES_AT_ONCE * TILE];
            (by_block && last - first > MAX_ROWS ? kernels->matmul_block : kernels->matmul)(
                w, &in, (int)(last - first), y, TILES_AT_ONCE * TILE, tile, last_tile);
            for (int64_t row = first; row < last; row++)
                kernels->to_bf16(y + (row - first) * TILES_AT_ONCE * TILE, count,
                                 p->y + row * w->n + tile * TILE);
        }
}

/* 0, or -1 where there is no memory. */
EXPORT int llamacli_multiply(struct product *product, int threads) {
    const struct matrix *w = product->w;
    int64_t rows = product->rows, ld = w->k + APART;
    int64_t groups = w->bits == 4 ? rows * (w->k / w->group_size) : 0;
    float *room = malloc((size_t)(2 * groups * 4 + rows * ld * 4));
    if (room == NULL)
        return -1;
    bf16 *x = (bf16 *)(room + 2 * groups);
    product->in = (struct activations){x, ld, room, room + groups, x + rows * ld};
    run(product_job, product, threads);
    free(room);
    return 0;
}

struct unpacking {
    const struct matrix *w;
    bf16 *out;
    int64_t first, last; /* tiles */
};

static void unpack_job(int thread, int threads, void *argument) {
    const struct unpacking *u = argument;
    int64_t begin = u->first + share(u->last - u->first, thread, threads);
    int64_t end = u->first + share(u->last - u->first, thread + 1, threads);
    kernels->unpack(u->w, u->out + (begin - u->first) * TILE * u->w->k, begin, end);
}

EXPORT void llamacli_unpack(const struct unpacking *unpacking, int threads) {
    run(unpack_job, (void *)unpacking, threads);
}

/* ------------------------------------------------------------- between products of long prompts */

struct rows {
    const bf16 *x, *up;  /* (M, N) */
    const float *weight; /* (N) */
    bf16 *out;           /* (M, N) */
    int64_t count, size; /* M, N */
    float eps;
    float *wide;         /* (threads, N); our own */
};

static void norm_job(int thread, int threads, void *argument) {
    const struct rows *r = argument;
    float *wide = r->wide + thread * r->size;
    int64_t end = share(r->count, thread + 1, threads);
    for (int64_t row = share(r->count, thread, threads); row < end; row++) {
        kernels->widen_row(r->x + row * r->size, r->size, wide);
        kernels->rms_norm(wide, r->weight, r->eps, r->size, r->out + row * r->size);
    }
}

/* out = x / rms(x) · weight; 0, or -1 where there is no memory. */
EXPORT int llamacli_norm(struct rows *rows, int threads) {
    rows->wide = malloc((size_t)(MIN(threads, MAX_THREADS) * rows->size) * sizeof(float));
    if (rows->wide == NULL)
        return -1;
    run(norm_job, rows, threads);
    free(rows->wide);
    return 0;
}

static void gate_job(int thread, int threads, void *argument) {
    enum { PIECE = 512 };
    const struct rows *r = argument;
    int64_t values = r->count * r->size, end = share(values, thread + 1, threads);
    for (int64_t at = share(values, thread, threads); at < end; at += PIECE) {
        int64_t count = MIN(end - at, PIECE);
        float gate[PIECE], up[PIECE];
        kernels->widen_row(r->x + at, count, gate);
        kernels->widen_row(r->up + at, count, up);
        kernels->silu_mul(gate, up, count, r->out + at);
    }
}

/* out = silu(x) · up; out may be x. */
EXPORT void llamacli_gate(const struct rows *rows, int threads) {
    run(gate_job, (void *)rows, threads);
}

/* ---------------------------------------------------------------------------------- decode steps */

struct layer {
    struct matrix q, k, v, o, gate, up, down;
    const float *input_norm, *post_attention_norm; /* (C) */
    bf16 *keys, *values;                           /* (B, heads, capacity, D) */
};

/* Up to MAX_ROWS tokens through all layers. Tokens of one sequence stand in order of position. */
struct step {
    const struct layer *layers;
    const float *norm; /* (C) */
    int64_t num_layers, hidden_size, intermediate_size, heads, kv_heads, head_size, capacity;
    float eps;
    int32_t rows;            /* M */
    const int64_t *sequence; /* (M): row of the cache */
    const int64_t *begin;    /* (M): first position that is seen */
    const int64_t *position; /* (M): where its key goes, the last that is seen */
    const float *cos, *sin;  /* (M, D) */
    const bf16 *embeddings;  /* (V, C) */
    const int64_t *token_ids; /* (M) */
    bf16 *out;               /* (M, C): normed hidden states */
    float *scratch;          /* llamacli_scratch floats, of which the first are x */
    float *x;                /* (M, C): the residual stream; our own */
};

struct scratch { /* of a thread */
    struct activations in; /* (M, widest) */
    const struct matrix *prepared_for;
    float *scores;
};

static int64_t widest(const struct step *s) {
    int64_t heads = s->heads * s->head_size, most = s->hidden_size;
    most = heads > most ? heads : most;
    most = s->intermediate_size > most ? s->intermediate_size : most;
    return (most + SUM_GROUP - 1) / SUM_GROUP * SUM_GROUP;
}

static int64_t thread_floats(const struct step *s) {
    int64_t group = s->heads / s->kv_heads;
    int64_t of_row = widest(s) + 2 * (widest(s) / SUM_GROUP);
    return s->rows * of_row + group * s->capacity;
}

static int64_t shared_floats(const struct step *s) {
    int64_t heads = s->heads * s->head_size, kv = s->kv_heads * s->head_size;
    return s->rows * (s->hidden_size + 2 * heads + 2 * kv + 2 * s->intermediate_size +
                      widest(s) / 2);
}

EXPORT int64_t llamacli_scratch(const struct step *s, int threads) {
    return shared_floats(s) + threads * thread_floats(s);
}

/* Weights of the same activations mostly take them alike. */
static void prepare(const struct matrix *w, struct scratch *own, int rows) {
    const struct matrix *last = own->prepared_for;
    if (w->bits != 4 || (last && last->group_size == w->group_size &&
                         last->activation_bits == w->activation_bits))
        return;
    kernels->prepare(w, &own->in, 0, rows);
    own->prepared_for = w;
}

/* This thread's tiles of y = in · wᵀ. */
static void multiply(const struct matrix *w, struct scratch *own, int rows, float *y, int thread,
                     int threads) {
    int64_t first = share(tiles(w), thread, threads), last = share(tiles(w), thread + 1, threads);
    prepare(w, own, rows);
    kernels->matmul(w, &own->in, rows, y + first * TILE, w->n, first, last);
}

/* The same, added to the residual stream. */
static void multiply_add(const struct matrix *w, struct scratch *own, int rows, float *x,
                         int thread, int threads) {
    int64_t end = share(tiles(w), thread + 1, threads);
    prepare(w, own, rows);
    enum { WIDE = TILES_AT_ONCE * TILE };
    for (int64_t tile = share(tiles(w), thread, threads); tile < end; tile += TILES_AT_ONCE) {
        float y[MAX_ROWS * WIDE];
        int64_t last = MIN(end, tile + TILES_AT_ONCE), count = MIN(w->n, last * TILE) - tile * TILE;
        kernels->matmul(w, &own->in, rows, y, WIDE, tile, last);
        for (int row = 0; row < rows; row++)
            for (int64_t r = 0; r < count; r++)
                x[row * w->n + tile * TILE + r] += y[row * WIDE + r];
    }
}

static void norm_rows(const struct step *s, const float *weight, struct scratch *own) {
    int64_t size = s->hidden_size;
    for (int row = 0; row < s->rows; row++)
        kernels->rms_norm(s->x + row * size, weight, s->eps, size, own->in.x + row * size);
    own->prepared_for = NULL;
}

static void attend_head(const struct step *s, const struct layer *layer, int64_t head, float *q,
                        float *k, const float *v, float *out, const struct scratch *own) {
    int64_t size = s->head_size, group = s->heads / s->kv_heads;
    for (int row = 0; row < s->rows; row++) {
        const float *cos = s->cos + row * size, *sin = s->sin + row * size;
        float *queries = q + (row * s->heads + head * group) * size;
        float *key = k + (row * s->kv_heads + head) * size;
        int64_t place = (s->sequence[row] * s->kv_heads + head) * s->capacity;
        bf16 *keys = layer->keys + place * size, *values = layer->values + place * size;
        for (int64_t i = 0; i < group; i++)
            kernels->rotate(queries + i * size, cos, sin, size);
        kernels->rotate(key, cos, sin, size);
        kernels->to_bf16(key, size, keys + s->position[row] * size);
        kernels->to_bf16(v + (row * s->kv_heads + head) * size, size,
                         values + s->position[row] * size);
        struct attention a = {
            .q = queries,
            .keys = keys + s->begin[row] * size,
            .values = values + s->begin[row] * size,
            .length = s->position[row] + 1 - s->begin[row],
            .heads = (int32_t)group,
            .head_size = (int32_t)size,
            .scores = own->scores,
            .out = out + (row * s->heads + head * group) * size,
        };
        kernels->attend(&a);
    }
}

/* out = silu(gate) · up, for the columns that this thread has computed. */
static void gate_rows(const struct step *s, const struct layer *layer, const float *gate,
                      const float *up, bf16 *out, int thread, int threads) {
    int64_t wide = s->intermediate_size;
    int64_t first = share(tiles(&layer->gate), thread, threads) * TILE;
    int64_t last = MIN(share(tiles(&layer->gate), thread + 1, threads) * TILE, wide);
    for (int row = 0; row < s->rows; row++) {
        int64_t at = row * wide + first;
        kernels->silu_mul(gate + at, up + at, last - first, out + at);
    }
}

static void layer_job(const struct step *s, const struct layer *layer, float *shared,
                      struct scratch *own, int thread, int threads) {
    int rows = s->rows;
    int64_t heads = s->heads * s->head_size, kv = s->kv_heads * s->head_size;
    int64_t wide = s->intermediate_size;
    float *q = shared + rows * s->hidden_size, *k = q + rows * heads, *v = k + rows * kv, *context = v + rows * kv;
    float *gate = context + rows * heads, *up = gate + rows * wide;
    struct scratch gated = {.in = own->in};
    own->in.ld = s->hidden_size;
    gated.in.ld = wide;
    gated.in.x = (bf16 *)(up + rows * wide);

    norm_rows(s, layer->input_norm, own);
    multiply(&layer->q, own, rows, q, thread, threads);
    multiply(&layer->k, own, rows, k, thread, threads);
    multiply(&layer->v, own, rows, v, thread, threads);
    barrier(threads);
    for (int64_t head = share(s->kv_heads, thread, threads);
         head < share(s->kv_heads, thread + 1, threads); head++)
        attend_head(s, layer, head, q, k, v, context, own);
    barrier(threads);
    kernels->to_bf16(context, rows * heads, own->in.x);
    own->in.ld = heads;
    own->prepared_for = NULL;
    multiply_add(&layer->o, own, rows, s->x, thread, threads);
    barrier(threads);
    own->in.ld = s->hidden_size;
    norm_rows(s, layer->post_attention_norm, own);
    multiply(&layer->gate, own, rows, gate, thread, threads);
    multiply(&layer->up, own, rows, up, thread, threads);
    gate_rows(s, layer, gate, up, gated.in.x, thread, threads);
    barrier(threads);
    multiply_add(&layer->down, &gated, rows, s->x, thread, threads);
    barrier(threads);
}

static void step_job(int thread, int threads, void *argument) {
    const struct step *s = argument;
    float *mine = s->scratch + shared_floats(s) + thread * thread_floats(s);
    int64_t groups = s->rows * (widest(s) / SUM_GROUP);
    struct scratch own = {.in = {.sums = mine, .scales = mine + groups}};
    own.scores = own.in.scales + groups;
    own.in.x = (bf16 *)(own.scores + s->heads / s->kv_heads * s->capacity);
    own.in.integers = own.in.x + s->rows * widest(s);
    for (int64_t i = 0; i < s->num_layers; i++)
        layer_job(s, &s->layers[i], s->scratch, &own, thread, threads);
    for (int64_t row = share(s->rows, thread, threads); row < share(s->rows, thread + 1, threads);
         row++)
        kernels->rms_norm(s->x + row * s->hidden_size, s->norm, s->eps, s->hidden_size,
                          s->out + row * s->hidden_size);
}

/* Without embeddings x goes on from the step before it, in the same scratch. */
EXPORT void llamacli_step(struct step *step, int threads) {
    step->x = step->scratch;
    for (int64_t row = 0; step->embeddings && row < step->rows; row++)
        kernels->widen_row(step->embeddings + step->token_ids[row] * step->hidden_size,
                           step->hidden_size, step->x + row * step->hidden_size);
    run(step_job, step, threads);
}
