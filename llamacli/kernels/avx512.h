/* AVX-512 with its bfloat16 dot product. One instruction multiplies 16 rows of a tile by a pair of
 * columns; 4-bit values become bfloat16 by a table in a register.
 */

#include <immintrin.h>

#include "generic.h"

enum {
    MAX_SUMS = 16,   /* the most rows times sums */
    TOGETHER = 4,    /* tiles of 4 bits that are read in turn for one row of activations */
};

INLINE __m512 widened(const bf16 *x) {
    __m256i half = _mm256_loadu_si256((const __m256i *)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* A pair of neighbours of x, in every lane. */
INLINE __m512bh pair(const bf16 *x) {
    int32_t both;
    memcpy(&both, x, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

/* The bfloat16 of (i - offset) · factor for i = 0 … 15, twice: a look-up heeds the lowest five bits
 * of an index, so that four bits need not be cut out of a word. */
INLINE __m512i table(float offset, float factor) {
    bf16 entries[32];
    for (int i = 0; i < 32; i++)
        entries[i] = narrow(((float)(i & 15) - offset) * factor);
    return _mm512_loadu_si512(entries);
}

/* How many sums a row of activations has, so that additions do not wait for each other: a dot
 * product takes about 12 cycles, and 1 or 2 of them can begin in each. */
INLINE int sums_of(int rows) {
    return rows == 1 ? 8 : rows <= 3 ? 4 : rows <= 7 ? 2 : 1;
}

/* Words whose lowest four bits are the j-th four-bit values. A multishift does it, since shifts wait
 * for the unit that the dot products fill. */
INLINE __m512i values_of(__m512i words, int j) {
    const int64_t each = 0x0101010101010101, start = 0x3030202010100000;
    return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(start + each * 4 * j), words);
}

/* Multiply a chunk by eight columns of each row of x. */
INLINE void add_words(__m512i words, __m512i values, const bf16 *x, int64_t ldx, int rows, int sums,
                      int first, __m512 *dot) {
    UNROLLED
    for (int j = 0; j < 4; j++) {
        __m512i index = j == 0 ? words : values_of(words, j);
        __m512bh w = (__m512bh)_mm512_permutexvar_epi16(index, values);
        UNROLLED
        for (int i = 0; i < rows; i++) {
            __m512 *sum = &dot[i * sums + (first + j) % sums];
            *sum = _mm512_dpbf16_ps(*sum, w, pair(x + i * ldx + 2 * j));
        }
    }
}

INLINE __m512 total(const __m512 *dot, int sums) {
    __m512 sum = dot[0];
    UNROLLED
    for (int i = 1; i < sums; i++)
        sum = _mm512_add_ps(sum, dot[i]);
    return sum;
}

/* Two neighbours of a row of 16 bits, or four of 8, in every lane. */
INLINE __m512i neighbors(const void *x) {
    int32_t all;
    memcpy(&all, x, 4);
    return _mm512_set1_epi32(all);
}

/* Multiply a chunk by eight columns of each row of integers, which are `ld` bytes apart. One
 * instruction multiplies 16 rows of the weight by 32 bits of a row. */
INLINE void add_integers_of(__m512i words, const int8_t *x, int64_t ld, int bits, int rows, int sums,
                            int first, __m512i *dot) {
    const __m512i low = bits == 8 ? _mm512_set1_epi8(15) : _mm512_set1_epi32(0x000f000f);
    UNROLLED
    for (int j = 0; j < bits / 4; j++) {
        __m512i w = _mm512_and_si512(_mm512_srli_epi32(words, 4 * j), low);
        UNROLLED
        for (int i = 0; i < rows; i++) {
            __m512i *sum = &dot[i * sums + (first + j) % sums], in = neighbors(x + i * ld + 4 * j);
            *sum = bits == 8 ? _mm512_dpbusd_epi32(*sum, w, in) : _mm512_dpwssd_epi32(*sum, w, in);
        }
    }
}

/* Add what a group gives to 16 outputs of one row, from the products of its integers. */
INLINE __m512 add_group(__m512 y, __m512i dot, __m512 scale, __m512 offset, float x_scale,
                        float x_sum) {
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale);
    y = _mm512_fmadd_ps(product, _mm512_set1_ps(x_scale), y);
    return _mm512_fmadd_ps(offset, _mm512_set1_ps(x_sum), y);
}

/* What the scales and zero points at the front of a group mean for values that are 0 … 15. */
INLINE void read_group(const uint8_t *group, __m512 *scale, __m512 *offset) {
    __m512 zero_point = widened((const bf16 *)group + TILE);
    *scale = widened((const bf16 *)group);
    *offset = _mm512_fnmadd_ps(*scale, _mm512_set1_ps(8.0f), zero_point);
}

/* Some tiles in turn, a group of each: for one row of x that is 3 % faster than one by one. */
INLINE void rows_int4(const struct matrix *w, const uint8_t *tile, const struct activations *a,
                      int bits, int together, int rows, float *out) {
    const int several = sums_of(rows);
    const int64_t size = w->group_size, groups = w->k / size, ld = a->ld * bits / 8;
    __m512 y[MAX_ROWS], scale, offset;
    UNROLLED
    for (int i = 0; i < together * rows; i++)
        y[i] = _mm512_setzero_ps();
    for (int64_t group = 0; group < groups; group++, tile += 64 + size * 8) {
        UNROLLED
        for (int t = 0; t < together; t++) {
            const uint8_t *at = tile + t * tile_bytes(w);
            const int8_t *x = (const int8_t *)a->integers + group * size * bits / 8;
            __m512i dot[MAX_SUMS];
            UNROLLED
            for (int i = 0; i < rows * several; i++)
                dot[i] = _mm512_setzero_si512();
            read_group(at, &scale, &offset);
            at += 64;
            for (int64_t c = 0; c < size; c += 16) {
                UNROLLED
                for (int j = 0; j < 2; j++, at += 64, x += bits) {
                    _mm_prefetch((const char *)at + PREFETCH, _MM_HINT_T0);
                    add_integers_of(_mm512_loadu_si512(at), x, ld, bits, rows, several, 4 * j, dot);
                }
            }
            UNROLLED
            for (int i = 0; i < rows; i++) {
                UNROLLED
                for (int j = 1; j < several; j++)
                    dot[i * several] = _mm512_add_epi32(dot[i * several], dot[i * several + j]);
                y[t * rows + i] = add_group(y[t * rows + i], dot[i * several], scale, offset,
                                            a->scales[i * groups + group],
                                            a->sums[i * groups + group]);
            }
        }
    }
    UNROLLED
    for (int i = 0; i < together * rows; i++)
        _mm512_storeu_ps(out + i * TILE, y[i]);
}

INLINE void rows_int8(const struct matrix *w, const uint8_t *tile, const struct activations *a,
                      int rows, float *out) {
    const __m512i high = table(8.0f, 16.0f), low = table(0.0f, 1.0f);
    const int several = sums_of(rows);
    __m512 dot[MAX_SUMS], scale = _mm512_loadu_ps(tile);
    UNROLLED
    for (int i = 0; i < rows * several; i++)
        dot[i] = _mm512_setzero_ps();
    tile += 64;
    for (int64_t k = 0; k < w->k; k += 8, tile += 128) {
        _mm_prefetch((const char *)tile + PREFETCH, _MM_HINT_T0);
        _mm_prefetch((const char *)tile + PREFETCH + 64, _MM_HINT_T0);
        add_words(_mm512_loadu_si512(tile), high, a->x + k, a->ld, rows, several, 0, dot);
        add_words(_mm512_loadu_si512(tile + 64), low, a->x + k, a->ld, rows, several, 4, dot);
    }
    UNROLLED
    for (int i = 0; i < rows; i++)
        _mm512_storeu_ps(out + i * TILE, _mm512_mul_ps(scale, total(dot + i * several, several)));
}

/* 32 values, or the last of a row. */
INLINE __m512bh columns(const bf16 *x, int64_t left) {
    __mmask32 mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    return (__m512bh)_mm512_maskz_loadu_epi16(mask, x);
}

/* Some rows of a bfloat16 weight times each row of x. Memory gives more where several rows are read
 * at once than one from front to back. */
INLINE void rows_bf16(const bf16 *w, const struct activations *a, int64_t k, int streams, int rows,
                      float *out) {
    __m512 dot[MAX_SUMS];
    UNROLLED
    for (int i = 0; i < rows * streams; i++)
        dot[i] = _mm512_setzero_ps();
    int64_t at = 0;
    for (; at + 32 <= k; at += 32) {
        const bf16 *ahead = w + (streams == 1 ? at + PREFETCH / 2 : ahead_of(at, k, streams * k));
        UNROLLED
        for (int r = 0; r < streams; r++) {
            __m512bh here = (__m512bh)_mm512_loadu_si512(w + r * k + at);
            _mm_prefetch((const char *)(ahead + r * k), _MM_HINT_T0);
            UNROLLED
            for (int i = 0; i < rows; i++) {
                __m512bh in = (__m512bh)_mm512_loadu_si512(a->x + i * a->ld + at);
                dot[i * streams + r] = _mm512_dpbf16_ps(dot[i * streams + r], here, in);
            }
        }
    }
    if (at < k) {
        UNROLLED
        for (int r = 0; r < streams; r++) {
            __m512bh here = columns(w + r * k + at, k - at);
            UNROLLED
            for (int i = 0; i < rows; i++)
                dot[i * streams + r] = _mm512_dpbf16_ps(dot[i * streams + r], here,
                                                        columns(a->x + i * a->ld + at, k - at));
        }
    }
    UNROLLED
    for (int i = 0; i < rows; i++) {
        UNROLLED
        for (int r = 0; r < streams; r++)
            out[i * TILE + r] = _mm512_reduce_add_ps(dot[i * streams + r]);
    }
}

INLINE void tile_bf16(const bf16 *w, const struct activations *in, int64_t k, int count, int rows,
                      float *out) {
    const int streams = rows == 1 ? 16 : rows == 2 ? 8 : rows <= 4 ? 4 : rows <= 7 ? 2 : 1;
    int r = 0;
    for (; r + streams <= count; r += streams)
        rows_bf16(w + r * k, in, k, streams, rows, out + r);
    for (; r < count; r++)
        rows_bf16(w + r * k, in, k, 1, rows, out + r);
}

/* The products of `together` tiles, each (rows, 16); several at once are of 4 bits. */
INLINE void tiles_from(const struct matrix *w, const struct activations *in, int rows,
                       int64_t tile, int together, float *values) {
    const uint8_t *data = (const uint8_t *)w->data + tile * tile_bytes(w);
    if (w->bits == 4 && w->activation_bits == 8)
        rows_int4(w, data, in, 8, together, rows, values);
    else if (w->bits == 4)
        rows_int4(w, data, in, 16, together, rows, values);
    else if (w->bits == 8)
        rows_int8(w, data, in, rows, values);
    else
        tile_bf16((const bf16 *)data, in, w->k, rows_of(w, tile), rows, values);
}

INLINE void tiles_of(const struct matrix *w, const struct activations *in, int rows, float *y,
                     int64_t ldy, int64_t first, int64_t last) {
    const int most = rows == 1 ? TOGETHER : 1;
    float values[MAX_ROWS * TILE];
    for (int64_t tile = first, count; tile < last; tile += count) {
        count = w->bits == 4 && tile + most <= last ? most : 1;
        if (count == most)
            tiles_from(w, in, rows, tile, most, values);
        else
            tiles_from(w, in, rows, tile, 1, values);
        for (int i = 0; i < count * rows; i++)
            store(w, tile + i / rows, values + i * TILE,
                  y + i % rows * ldy + (tile + i / rows - first) * TILE);
    }
}

/* A copy for each number of rows, in which they stay in registers. */
static void matmul(const struct matrix *w, const struct activations *in, int rows, float *y,
                   int64_t ldy, int64_t first, int64_t last) {
    switch (rows) {
#define CASE(n) \
    case n: \
        tiles_of(w, in, n, y, ldy, first, last); \
        break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
        CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
        CASE(15) CASE(16)
#undef CASE
    }
}

/* ------------------------------------------------------------------------------------ attention */

/* The sums of 16 vectors, in order. */
INLINE __m512 sums_of_16(const __m512 *d) {
    __m512 pairs[8], fours[4];
    UNROLLED
    for (int i = 0; i < 8; i++)
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(d[2 * i], d[2 * i + 1]),
                                 _mm512_unpackhi_ps(d[2 * i], d[2 * i + 1]));
    UNROLLED
    for (int i = 0; i < 4; i++) {
        __m512d first = _mm512_castps_pd(pairs[2 * i]), second = _mm512_castps_pd(pairs[2 * i + 1]);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(first, second)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(first, second)));
    }
    UNROLLED
    for (int i = 0; i < 2; i++)
        pairs[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                                 _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(pairs[0], pairs[1], 0x88),
                         _mm512_shuffle_f32x4(pairs[0], pairs[1], 0xdd));
}

/* q · keysᵀ of one head for up to 16 positions; D is a multiple of 32. */
INLINE void score_block(const bf16 *q, const bf16 *keys, int64_t size, int64_t positions,
                        float *scores) {
    __m512 dot[16];
    UNROLLED
    for (int i = 0; i < 16; i++) {
        const bf16 *key = keys + (i < positions ? i : positions - 1) * size;
        dot[i] = _mm512_setzero_ps();
        for (int64_t d = 0; d < size; d += 32)
            dot[i] = _mm512_dpbf16_ps(dot[i], columns(key + d, 32), columns(q + d, 32));
    }
    __mmask16 mask = (__mmask16)((1u << positions) - 1);
    _mm512_mask_storeu_ps(scores, mask, sums_of_16(dot));
}

/* 32 columns of scores · values for some heads, whose sums stay in registers. */
INLINE void mix_values(const struct attention *a, int first, int heads, int64_t column) {
    __m512 sum[4][2];
    UNROLLED
    for (int h = 0; h < heads; h++)
        sum[h][0] = sum[h][1] = _mm512_setzero_ps();
    const float *scores = a->scores + first * a->length;
    const bf16 *value = a->values + column;
    for (int64_t s = 0; s < a->length; s++, value += a->head_size) {
        __m512 left = widened(value), right = widened(value + 16);
        UNROLLED
        for (int h = 0; h < heads; h++) {
            __m512 p = _mm512_set1_ps(scores[h * a->length + s]);
            sum[h][0] = _mm512_fmadd_ps(p, left, sum[h][0]);
            sum[h][1] = _mm512_fmadd_ps(p, right, sum[h][1]);
        }
    }
    UNROLLED
    for (int h = 0; h < heads; h++) {
        float *out = a->out + (first + h) * a->head_size + column;
        _mm512_storeu_ps(out, sum[h][0]);
        _mm512_storeu_ps(out + 16, sum[h][1]);
    }
}

enum { MAX_HEAD_SIZE = 256 };

static void attend_avx512(const struct attention *a) {
    int64_t size = a->head_size, length = a->length;
    if (size % 32 != 0 || size > MAX_HEAD_SIZE) {
        attend(a);
        return;
    }
    for (int h = 0; h < a->heads; h++) {
        bf16 q[MAX_HEAD_SIZE];
        to_bf16(a->q + h * size, size, q);
        for (int64_t s = 0; s < length; s += 16)
            score_block(q, a->keys + s * size, size, length - s < 16 ? length - s : 16,
                        a->scores + h * length + s);
        softmax(a->scores + h * length, length, 1.0f / sqrtf((float)size));
    }
    for (int64_t column = 0; column < size; column += 32) {
        int h = 0;
        for (; h + 4 <= a->heads; h += 4)
            mix_values(a, h, 4, column);
        for (; h < a->heads; h++)
            mix_values(a, h, 1, column);
    }
}
