/* Runs every kernel over many shapes with buffers of exact size; for a build with sanitizers.
 *
 * What sanitizers do not see, as masked loads, the memory itself catches: a buffer ends where a
 * page ends, and the next page cannot be read. Results are compared with products in double.
 */
#include "../llamacli/kernels/engine.c"

#include <math.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(begin, size) ((void)(begin), (void)(size))
#define __asan_unpoison_memory_region(begin, size) ((void)(begin), (void)(size))
#endif

enum { MAX_BUFFERS = 256 };

static struct {
    void *pages;
    size_t size;
} buffers[MAX_BUFFERS];
static int used;

/* So many bytes, aligned like numbers of 4 bytes if they are such; filled with NaN. */
static void *buffer(int64_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = ((size_t)bytes + page - 1) / page * page;
    int access = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *pages = mmap(NULL, room + page, access, flags, -1, 0);
    if (pages == MAP_FAILED || used == MAX_BUFFERS || mprotect(pages + room, page, PROT_NONE) != 0)
        abort();
    char *start = pages + room - bytes;
    memset(start, 0xff, (size_t)bytes);
    __asan_poison_memory_region(pages, (size_t)(start - pages));
    buffers[used].pages = pages;
    buffers[used++].size = room + page;
    return start;
}

static void release(void) {
    while (used > 0) {
        used--;
        __asan_unpoison_memory_region(buffers[used].pages, buffers[used].size);
        munmap(buffers[used].pages, buffers[used].size);
    }
}

static uint32_t state = 1;

static uint32_t bits(void) {
    return (state = state * 1664525 + 1013904223) >> 8;
}

static float uniform(void) { /* -1 … 1 */
    return (float)bits() / 8388608.0f - 1.0f;
}

static float wide(bf16 x) {
    uint32_t word = (uint32_t)x << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

static bf16 *numbers(int64_t count, float factor) {
    bf16 *out = buffer(count * 2);
    for (int64_t i = 0; i < count; i++) {
        float x = uniform() * factor;
        kernels->to_bf16(&x, 1, out + i);
    }
    return out;
}

static float *floats(int64_t count, float factor) {
    float *out = buffer(count * 4);
    for (int64_t i = 0; i < count; i++)
        out[i] = uniform() * factor;
    return out;
}

static int activation_bits; /* of weights of 4 bits */

/* A random weight; group_size counts for 4 bits. */
static struct matrix weight(int64_t n, int64_t k, int bits_of, int group_size) {
    struct matrix w = {NULL, n % 2 ? floats(n, 1) : NULL, n, k, bits_of, group_size, 16};
    if (bits_of == 4)
        w.activation_bits = activation_bits;
    if (bits_of == 16) {
        w.data = numbers(n * k, 1);
        return w;
    }
    uint8_t *qdata = buffer(n * k * bits_of / 8);
    for (int64_t i = 0; i < n * k * bits_of / 8; i++)
        qdata[i] = (uint8_t)bits();
    struct packing p = {qdata, NULL, NULL, w, buffer(llamacli_packed_bytes(&w))};
    if (bits_of == 4) {
        p.scale = numbers(n * k / group_size, 0.1f);
        p.zero_point = numbers(n * k / group_size, 0.1f);
    } else {
        p.scale = floats(n, 0.01f);
    }
    llamacli_pack(&p);
    w.data = p.tiles;
    return w;
}

static void check(const struct matrix *w, int64_t rows, int threads) {
    const bf16 *values = w->data;
    if (w->bits != 16) {
        bf16 *out = buffer(w->n * w->k * 2);
        struct unpacking u = {w, out, 0, tiles(w)};
        llamacli_unpack(&u, threads);
        values = out;
    }
    bf16 *x = numbers(rows * w->k, 1), *y = buffer(rows * w->n * 2);
    struct product p = {.w = w, .x = x, .y = y, .rows = rows};
    if (llamacli_multiply(&p, threads) != 0)
        exit(1);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t r = 0; r < w->n; r++) {
            double sum = w->bias ? w->bias[r] : 0, size = fabs(sum);
            for (int64_t i = 0; i < w->k; i++) {
                double term = (double)wide(values[r * w->k + i]) * wide(x[row * w->k + i]);
                sum += term;
                size += fabs(term);
            }
            if (!(fabs(wide(y[row * w->n + r]) - sum) <= 0.01 * size)) {
                printf("%s: %d bits, (%d, %d), %d rows: wrong\n", kernels->name, w->bits, (int)w->n,
                       (int)w->k, (int)rows);
                exit(1);
            }
        }
}

static void products(int threads) {
    static const int ns[] = {1, 16, 23, 50}, rows[] = {1, 2, 3, 7, 14, 16, 17, 29, 70};
    static const int sizes[][3] = {{4, 32, 32},  {4, 96, 32},  {4, 128, 64}, {4, 256, 128},
                                   {4, 256, 256}, {8, 8, 0},   {8, 40, 0},   {8, 128, 0},
                                   {16, 1, 0},   {16, 31, 0},  {16, 32, 0},  {16, 33, 0},
                                   {16, 127, 0}, {16, 130, 0}, {16, 200, 0},
                                   {16, 320, 0}, {16, 4128, 0}};
    for (size_t i = 0; i < sizeof ns / sizeof *ns; i++)
        for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++) {
            struct matrix w = weight(ns[i], sizes[j][1], sizes[j][0], sizes[j][2]);
            for (size_t m = 0; m < sizeof rows / sizeof *rows; m++)
                check(&w, rows[m], threads);
            release();
        }
}

/* `count` tokens of `batch` sequences through two layers; the caches are filled to their end. */
static void decode(struct step s, int bits_of, int count, int batch, int threads) {
    int64_t heads = s.heads * s.head_size, kv = s.kv_heads * s.head_size, c = s.hidden_size;
    struct layer layers[2];
    for (int i = 0; i < 2; i++)
        layers[i] = (struct layer){
            .q = weight(heads, c, bits_of, 32),
            .k = weight(kv, c, bits_of, 32),
            .v = weight(kv, c, bits_of, 32),
            .o = weight(c, heads, bits_of, 32),
            .gate = weight(s.intermediate_size, c, bits_of, 32),
            .up = weight(s.intermediate_size, c, bits_of, 32),
            .down = weight(c, s.intermediate_size, bits_of, 32),
            .input_norm = floats(c, 1),
            .post_attention_norm = floats(c, 1),
            .keys = numbers(batch * kv * s.capacity, 1),
            .values = numbers(batch * kv * s.capacity, 1),
        };
    s.rows = count * batch;
    int64_t *sequence = buffer(s.rows * 8), *begin = buffer(s.rows * 8), *at = buffer(s.rows * 8);
    for (int row = 0; row < s.rows; row++) {
        sequence[row] = row / count;
        at[row] = s.capacity - count + row % count;
        begin[row] = MIN(sequence[row], at[row]);
    }
    s.layers = layers;
    s.num_layers = 2;
    s.norm = floats(c, 1);
    s.eps = 1e-5f;
    s.sequence = sequence;
    s.begin = begin;
    s.position = at;
    s.cos = floats(s.rows * s.head_size, 1);
    s.sin = floats(s.rows * s.head_size, 1);
    int64_t *token_ids = buffer(s.rows * 8);
    for (int row = 0; row < s.rows; row++)
        token_ids[row] = row % 5;
    s.token_ids = token_ids;
    s.embeddings = numbers(5 * c, 1);
    s.out = buffer(s.rows * c * 2);
    s.scratch = buffer(llamacli_scratch(&s, threads) * 4);
    llamacli_step(&s, threads);
    for (int64_t i = 0; i < s.rows * c; i++)
        if (!isfinite(wide(s.out[i]))) {
            printf("%s: a step of %d bits is not finite\n", kernels->name, bits_of);
            exit(1);
        }
    release();
}

static void steps(int threads) {
    struct step odd = {.hidden_size = 36, .intermediate_size = 50, .heads = 3, .kv_heads = 1,
                       .head_size = 12, .capacity = 17};
    struct step grouped = {.hidden_size = 64, .intermediate_size = 96, .heads = 8, .kv_heads = 2,
                           .head_size = 8, .capacity = 14};
    struct step large = {.hidden_size = 128, .intermediate_size = 160, .heads = 2, .kv_heads = 2,
                         .head_size = 64, .capacity = 70};
    for (int count = 1; count <= MAX_ROWS; count += count < 4 ? 1 : 5) {
        decode(odd, 16, count, 1, threads);
        for (int bits_of = 4; bits_of <= 16; bits_of *= 2) {
            decode(grouped, bits_of, count, 1, threads);
            decode(large, bits_of, 1, count, threads);
        }
    }
}

int main(void) {
    static const char *const names[] = {"portable", "avx2", "avx512", "amx"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!llamacli_use(names[i]))
            continue;
        for (activation_bits = 8; activation_bits <= 16; activation_bits += 8)
            for (int threads = 1; threads <= 3; threads++) {
                products(threads);
                steps(threads);
            }
        printf("%s: ok\n", names[i]);
    }
    return 0;
}
