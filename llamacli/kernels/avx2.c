/* AVX2 with fused multiply-add: eight rows of a tile at once.
 *
 * Two instructions make floats of four-bit values: a mask leaves the j-th values where they are,
 * 2^(4j) times too large, and activations are made smaller by as much. That the values are 8 (or
 * 128) too large, too, is corrected by the sum of the activations.
 */

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#include <immintrin.h>

#include "generic.h"

enum {
    HALF = TILE / 2,  /* rows of a tile in a register */
    MAX_TOGETHER = 4, /* rows of activations whose sums stay in registers */
    PIECE = 256,      /* columns of activations that are made floats at once */
};

INLINE __m256 widened(const bf16 *x) {
    __m128i half = _mm_loadu_si128((const __m128i *)x);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* Eight columns of activations for `words_of`: the j-th of a word's lower half, then of its upper. */
INLINE void shrink(const bf16 *x, float *out) {
    const __m256 factors = _mm256_setr_ps(1.0f, 0x1p-16f, 0x1p-4f, 0x1p-20f, 0x1p-8f, 0x1p-24f,
                                          0x1p-12f, 1.0f);
    _mm256_storeu_ps(out, _mm256_mul_ps(widened(x), factors));
}

/* The i-th of the eight values of each word, times what `shrink` divides by. */
INLINE __m256 words_of(const uint8_t *words, int i) {
    __m256i all = _mm256_loadu_si256((const __m256i *)words);
    int start = i / 2 * 4 + i % 2 * 16;
    __m256i value = start == 28 ? _mm256_srli_epi32(all, 28) /* not the sign of a number */
                                : _mm256_and_si256(all, _mm256_set1_epi32(15 << start));
    return _mm256_cvtepi32_ps(value);
}

/* Add a chunk times eight columns of each row of x, which `shrink` made; rows are PIECE apart. */
INLINE void add_chunk(const uint8_t *chunk, const float *x, int rows, __m256 (*dot)[2]) {
    _mm_prefetch((const char *)chunk + PREFETCH, _MM_HINT_T0);
    UNROLLED
    for (int i = 0; i < 8; i++) {
        __m256 left = words_of(chunk, i), right = words_of(chunk + 32, i);
        UNROLLED
        for (int row = 0; row < rows; row++) {
            __m256 in = _mm256_broadcast_ss(x + row * PIECE + i);
            dot[row][0] = _mm256_fmadd_ps(left, in, dot[row][0]);
            dot[row][1] = _mm256_fmadd_ps(right, in, dot[row][1]);
        }
    }
}

INLINE void shrink_rows(const struct activations *a, int64_t k, int64_t columns, int rows,
                        float *out) {
    for (int row = 0; row < rows; row++)
        for (int64_t c = 0; c < columns; c += 8)
            shrink(a->x + row * a->ld + k + c, out + row * PIECE + c);
}

INLINE void clear(int rows, __m256 (*dot)[2]) {
    UNROLLED
    for (int row = 0; row < rows; row++)
        dot[row][0] = dot[row][1] = _mm256_setzero_ps();
}

/* What the scales and zero points at the front of a group mean for values that are 0 … 15. */
INLINE void read_group(const uint8_t *group, int half, __m256 *scale, __m256 *offset) {
    const bf16 *at = (const bf16 *)group + half * HALF;
    *scale = widened(at);
    *offset = _mm256_fnmadd_ps(*scale, _mm256_set1_ps(8.0f), widened(at + TILE));
}

static float row_sum(const bf16 *x, int64_t k) {
    float sum = 0;
    for (int64_t i = 0; i < k; i++)
        sum += widen(x[i]);
    return sum;
}

INLINE void rows_int8(const struct matrix *w, const uint8_t *tile, const struct activations *a,
                      int rows, float *y) {
    __m256 high[MAX_TOGETHER][2], low[MAX_TOGETHER][2];
    float x[MAX_TOGETHER * PIECE];
    clear(rows, high);
    clear(rows, low);
    const uint8_t *chunks = tile + 64;
    for (int64_t k = 0; k < w->k; k += PIECE) {
        int64_t columns = w->k - k < PIECE ? w->k - k : PIECE;
        shrink_rows(a, k, columns, rows, x);
        for (int64_t i = 0; i < columns; i += 8, chunks += 128) {
            add_chunk(chunks, x + i, rows, high);
            add_chunk(chunks + 64, x + i, rows, low);
        }
    }
    for (int row = 0; row < rows; row++) {
        __m256 sum = _mm256_set1_ps(row_sum(a->x + row * a->ld, w->k) * -128.0f);
        for (int half = 0; half < 2; half++) {
            __m256 all = _mm256_fmadd_ps(high[row][half], _mm256_set1_ps(16.0f), low[row][half]);
            __m256 scale = _mm256_loadu_ps((const float *)tile + half * HALF);
            _mm256_storeu_ps(y + row * TILE + half * HALF,
                             _mm256_mul_ps(scale, _mm256_add_ps(all, sum)));
        }
    }
}

/* Add 32 columns of half a tile times rounded activations. Sums of pairs fit in 16 bits: eight
 * times 2 · 15 · 127. */
INLINE void add_rounded(const uint8_t *chunks, const int8_t *x, int64_t ld, int rows, __m256i *dot) {
    const __m256i low = _mm256_set1_epi8(15);
    UNROLLED
    for (int row = 0; row < rows; row++) {
        __m256i pairs = _mm256_setzero_si256();
        UNROLLED
        for (int c = 0; c < 4; c++) {
            __m256i words = _mm256_loadu_si256((const __m256i *)(chunks + 64 * c));
            __m256i even = _mm256_and_si256(words, low);
            __m256i odd = _mm256_and_si256(_mm256_srli_epi32(words, 4), low);
            int32_t in[2];
            memcpy(in, x + row * ld + 8 * c, 8);
            even = _mm256_maddubs_epi16(even, _mm256_set1_epi32(in[0]));
            odd = _mm256_maddubs_epi16(odd, _mm256_set1_epi32(in[1]));
            pairs = _mm256_add_epi16(pairs, _mm256_add_epi16(even, odd));
        }
        dot[row] = _mm256_add_epi32(dot[row], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
}

/* The same with activations of 16 bits, whose rows are `ld` bytes apart. */
INLINE void add_fixed(const uint8_t *chunks, const int8_t *x, int64_t ld, int rows, __m256i *dot) {
    const __m256i low = _mm256_set1_epi32(0x000f000f);
    UNROLLED
    for (int c = 0; c < 4; c++, chunks += 64) {
        __m256i words = _mm256_loadu_si256((const __m256i *)chunks);
        UNROLLED
        for (int j = 0; j < 4; j++) {
            __m256i w = _mm256_and_si256(_mm256_srli_epi32(words, 4 * j), low);
            UNROLLED
            for (int row = 0; row < rows; row++) {
                int32_t in;
                memcpy(&in, x + row * ld + 16 * c + 4 * j, 4);
                dot[row] = _mm256_add_epi32(dot[row], _mm256_madd_epi16(w, _mm256_set1_epi32(in)));
            }
        }
    }
}

INLINE void rows_int4(const struct matrix *w, const uint8_t *tile, const struct activations *a,
                      int bits, int rows, float *y) {
    const int64_t size = w->group_size, groups = w->k / size, ld = a->ld * bits / 8;
    memset(y, 0, sizeof(float) * (size_t)(rows * TILE));
    for (int64_t group = 0; group < groups; group++, tile += 64 + size * 8) {
        __m256 scale, offset;
        UNROLLED
        for (int half = 0; half < 2; half++) {
            const uint8_t *chunks = tile + 64 + half * 32;
            const int8_t *x = (const int8_t *)a->integers + group * size * bits / 8;
            __m256i dot[MAX_TOGETHER];
            UNROLLED
            for (int row = 0; row < rows; row++)
                dot[row] = _mm256_setzero_si256();
            for (int64_t c = 0; c < size; c += SUM_GROUP, chunks += 256, x += 4 * bits) {
                UNROLLED
                for (int i = half; i < 4; i += 2)
                    _mm_prefetch((const char *)chunks + PREFETCH + 64 * i, _MM_HINT_T0);
                if (bits == 8)
                    add_rounded(chunks, x, ld, rows, dot);
                else
                    add_fixed(chunks, x, ld, rows, dot);
            }
            read_group(tile, half, &scale, &offset);
            UNROLLED
            for (int row = 0; row < rows; row++) {
                float *to = y + row * TILE + half * HALF;
                __m256 by = _mm256_set1_ps(a->scales[row * groups + group]);
                __m256 sum = _mm256_set1_ps(a->sums[row * groups + group]);
                __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(dot[row]), scale);
                __m256 out = _mm256_fmadd_ps(product, by, _mm256_loadu_ps(to));
                _mm256_storeu_ps(to, _mm256_fmadd_ps(offset, sum, out));
            }
        }
    }
}

/* The odd ones of 16 values, and the even ones. */
INLINE __m256 odd_of(__m256i x) {
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int32_t)0xffff0000)));
}

INLINE __m256 even_of(__m256i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}

INLINE float sum_of(__m256 x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Some rows of a bfloat16 weight times each row of x. Memory gives more where several rows are read
 * at once than one from front to back. */
INLINE void rows_bf16(const bf16 *w, const struct activations *a, int64_t k, int streams, int rows,
                      float *y) {
    __m256 dot[MAX_TOGETHER][2];
    clear(streams * rows, dot);
    int64_t at = 0;
    for (; at + 16 <= k; at += 16) {
        const bf16 *ahead = w + (streams == 1 ? at + PREFETCH / 2 : ahead_of(at, k, streams * k));
        UNROLLED
        for (int r = 0; r < streams; r++) {
            __m256i here = _mm256_loadu_si256((const __m256i *)(w + r * k + at));
            _mm_prefetch((const char *)(ahead + r * k), _MM_HINT_T0);
            UNROLLED
            for (int row = 0; row < rows; row++) {
                __m256i in = _mm256_loadu_si256((const __m256i *)(a->x + row * a->ld + at));
                __m256 *sums = dot[row * streams + r];
                sums[0] = _mm256_fmadd_ps(even_of(here), even_of(in), sums[0]);
                sums[1] = _mm256_fmadd_ps(odd_of(here), odd_of(in), sums[1]);
            }
        }
    }
    UNROLLED
    for (int row = 0; row < rows; row++) {
        UNROLLED
        for (int r = 0; r < streams; r++) {
            __m256 *sums = dot[row * streams + r];
            float sum = sum_of(_mm256_add_ps(sums[0], sums[1]));
            for (int64_t i = at; i < k; i++)
                sum += widen(w[r * k + i]) * widen(a->x[row * a->ld + i]);
            y[row * TILE + r] = sum;
        }
    }
}

INLINE void tile_bf16(const bf16 *w, const struct activations *a, int64_t k, int count, int rows,
                      float *y) {
    const int streams = MAX_TOGETHER / rows;
    int r = 0;
    for (; r + streams <= count; r += streams)
        rows_bf16(w + r * k, a, k, streams, rows, y + r);
    for (; r < count; r++)
        rows_bf16(w + r * k, a, k, 1, rows, y + r);
}

INLINE void tile_of(const struct matrix *w, int64_t tile, const struct activations *a, int rows,
                    float *y) {
    const uint8_t *data = (const uint8_t *)w->data + tile * tile_bytes(w);
    if (w->activation_bits == 8)
        rows_int4(w, data, a, 8, rows, y);
    else if (w->bits == 4)
        rows_int4(w, data, a, 16, rows, y);
    else if (w->bits == 8)
        rows_int8(w, data, a, rows, y);
    else
        tile_bf16((const bf16 *)data, a, w->k, rows_of(w, tile), rows, y);
}

static void matmul(const struct matrix *w, const struct activations *a, int rows, float *y,
                   int64_t ldy, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; tile++)
        for (int row = 0; row < rows; row += MAX_TOGETHER) {
            struct activations in = from_row(a, w, row);
            int count = rows - row < MAX_TOGETHER ? rows - row : MAX_TOGETHER;
            float values[MAX_TOGETHER * TILE];
            switch (count) {
#define CASE(n) \
    case n: \
        tile_of(w, tile, &in, n, values); \
        break;
                CASE(1) CASE(2) CASE(3) CASE(4)
#undef CASE
            }
            for (int i = 0; i < count; i++)
                store(w, tile, values + i * TILE, y + (row + i) * ldy + (tile - first) * TILE);
        }
}

const struct kernels kernels_avx2 = {
    "avx2", matmul, NULL, unpack, rms_norm, to_bf16, widen_row, prepare, silu_mul, rotate, attend,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
