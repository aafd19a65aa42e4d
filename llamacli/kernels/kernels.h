/* CPU kernels of llamacli: matrix products with int4, int8 and bfloat16 weights, and what stands
 * between them in a Llama. Plain C11 with pthreads; no Python, no torch: callers pass pointers.
 *
 * Every function exists once for each instruction set (see struct kernels). Activations of a matrix
 * product are bfloat16; those of one with int4 weights become integers of 16 bits, or of 8 where a
 * weight asks for that. Sums are int32 within a group, else float32; the weights are not rounded
 * further.
 *
 * Letters: N output rows of a weight, K columns, g group size, M rows of activations.
 */
#ifndef LLAMACLI_KERNELS_H
#define LLAMACLI_KERNELS_H

#include <stdint.h>

typedef uint16_t bf16;

enum {
    TILE = 16,       /* output rows that are computed together */
    MAX_ROWS = 16,   /* rows of activations that are computed together */
    MAX_BLOCK = 64,  /* the same for `matmul_block` */
    SUM_GROUP = 32,  /* columns; divides every group size */
};

/* A weight (N, K).
 *
 * bits 16: row-major bfloat16.
 *
 * bits 4 and 8: tiles of 16 rows, the last one padded with zeros, each one stream from front to
 * back. Eight columns of 16 rows are a chunk: for each row one 32-bit word of eight 4-bit values,
 * column 2j in bits 4j of the lower half, column 2j+1 in bits 4j of the upper half, so that masking
 * gives pairs of neighbours.
 *   bits 4: for each group 16 scales and 16 zero points (bfloat16), then g/8 chunks; the values are
 *           q + 8. w = q * scale + zero_point.
 *   bits 8: 16 scales (float32); then for each 8 columns two chunks, (q >> 4) + 8 and q & 15.
 *           w = q * scale.
 */
struct matrix {
    const void *data;
    const float *bias; /* N, or null */
    int64_t n, k;
    int32_t bits;
    int32_t group_size;      /* a multiple of SUM_GROUP; counts for bits 4 */
    int32_t activation_bits; /* 8: activations are rounded, with bits 4; else 16 */
};

/* M rows of activations, (M, K), and what products with weights of bits 4 take beside them. */
struct activations {
    bf16 *x;
    int64_t ld;    /* the distance of rows of x and integers, K or more */
    float *sums;   /* (M, K/g): of the columns of each group */
    float *scales; /* (M, K/g): x is about scales · integers */
    /* With activation_bits 16 int16_t; the scale is a power of two, so that what is at least 1/128
     * of a group's greatest number is exact, and all is within 1/65536 of it.
     * With 8 int8_t. Each eight columns stand in the order 0 4 1 5 2 6 3 7, as the halves of a
     * chunk's bytes do. */
    void *integers;
};

/* Bytes of one tile; K is a multiple of 8, with bits 4 of the group size. */
static inline int64_t tile_bytes(const struct matrix *w) {
    if (w->bits == 4)
        return w->k / w->group_size * (64 + w->group_size * 8);
    return w->bits == 8 ? 64 + w->k * 16 : (int64_t)TILE * w->k * 2;
}

static inline int64_t tiles(const struct matrix *w) {
    return (w->n + TILE - 1) / TILE;
}

/* The activations from a row on. */
static inline struct activations from_row(const struct activations *a, const struct matrix *w,
                                   int64_t row) {
    int64_t groups = w->bits == 4 ? row * (w->k / w->group_size) : 0;
    return (struct activations){a->x + row * a->ld, a->ld, a->sums + groups, a->scales + groups,
                                (int8_t *)a->integers + row * a->ld * (w->activation_bits / 8)};
}

/* Query heads of one row that share a key/value head. */
struct attention {
    const float *q;            /* (G, D), rotated */
    const bf16 *keys, *values; /* (S, D), all of them seen */
    int64_t length;            /* S, at least 1 */
    int32_t heads, head_size;  /* G, D */
    float *scores;             /* room for (G, S) */
    float *out;                /* (G, D) */
};

struct kernels {
    const char *name;
    /* y (M, ldy) = x · wᵀ for tiles first … last-1; column 0 of y is the first row of tile `first`.
     * M <= MAX_ROWS. */
    void (*matmul)(const struct matrix *w, const struct activations *in, int rows, float *y,
                   int64_t ldy, int64_t first, int64_t last);
    /* The same for up to MAX_BLOCK rows, where there is a unit for matrices; else null. The weight
     * has 4 or 8 bits. */
    void (*matmul_block)(const struct matrix *w, const struct activations *in, int rows, float *y,
                         int64_t ldy, int64_t first, int64_t last);
    /* Tiles first … last-1 of a weight of 4 or 8 bits, row-major: out (16 · tiles, K), without the
     * last tile's padding. */
    void (*unpack)(const struct matrix *w, bf16 *out, int64_t first, int64_t last);
    /* out (n) = x / rms(x) · weight. */
    void (*rms_norm)(const float *x, const float *weight, float eps, int64_t n, bf16 *out);
    void (*to_bf16)(const float *x, int64_t n, bf16 *out);
    void (*widen_row)(const bf16 *x, int64_t n, float *out);
    /* What goes with rows first … last-1 of x for a weight of 4 bits. */
    void (*prepare)(const struct matrix *w, const struct activations *in, int64_t first,
                    int64_t last);
    /* out = silu(gate) · up */
    void (*silu_mul)(const float *gate, const float *up, int64_t n, bf16 *out);
    /* Rotate pairs (i, i + D/2) of a head in place; cos and sin are (D). */
    void (*rotate)(float *x, const float *cos, const float *sin, int64_t head_size);
    void (*attend)(const struct attention *a);
};

extern const struct kernels kernels_portable;
#if defined(__x86_64__) && defined(__GNUC__)
#define LLAMACLI_X86 1
extern const struct kernels kernels_avx2, kernels_avx512, kernels_amx;
#endif

#endif
