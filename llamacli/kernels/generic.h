/* The steps between matrix products, in C that compilers turn into vectors; included once for each
 * instruction set. */


#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels.h"

/* For kernels whose numbers of rows are known, and stay in registers. */
#define UNROLLED _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

enum {
    PREFETCH = 2112, /* bytes ahead in the stream of a tile */
    AHEAD = 256,     /* columns ahead in each of several rows that are read at once */
};

static inline float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Round to nearest, ties to even. */
static inline bf16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float power_of_two(int exponent) {
    uint32_t bits = (uint32_t)(exponent + 127) << 23;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* exp(x) for |x| <= 87, to 2e-7 of its value: 2^n · a polynomial of the rest (Cephes). */
static inline float exponential(float x) {
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * power_of_two((int32_t)n);
}

static void rms_norm(const float *x, const float *weight, float eps, int64_t n, bf16 *out) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    float inverse = 1.0f / sqrtf(sum / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        out[i] = narrow(x[i] * inverse * weight[i]);
}

static void to_bf16(const float *x, int64_t n, bf16 *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = narrow(x[i]);
}

static void widen_row(const bf16 *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = widen(x[i]);
}

/* The greatest |x|, which is the greatest of its bits; what is not finite is greater than all else. */
static inline float greatest_size(const bf16 *x, int64_t n) {
    bf16 most = 0;
    for (int64_t i = 0; i < n; i++) {
        bf16 size = x[i] & 0x7fff;
        most = size > most ? size : most;
    }
    return widen(most);
}

/* One group of a row as integers, whose products with 4 bits have sums of less than 2^31.
 * bfloat16 has 8 bits; the greatest number gets 7 more behind them. */
static inline float fix_group(const bf16 *x, int64_t size, int16_t *out, float *sum) {
    enum { LEAST = 15, INFINITE = 255, MANTISSA = 23, MOST_SUMMED = 4096 };
    int exponent = narrow(greatest_size(x, size)) >> 7;
    int is_finite = exponent < INFINITE;
    exponent = exponent > LEAST ? exponent : LEAST; /* what is much smaller becomes zero */
    for (int64_t summed = MOST_SUMMED; summed < size; summed *= 2)
        exponent++;
    float scale = power_of_two(exponent - 127 - 14), inverse = power_of_two(127 + 14 - exponent);
    int32_t total = 0;
    for (int64_t i = 0; i < size; i++) {
        int32_t value = is_finite ? (int32_t)rintf(widen(x[i]) * inverse) : 0;
        out[i] = (int16_t)value;
        total += value;
    }
    scale = is_finite ? scale : NAN;
    *sum = scale * (float)total;
    return scale;
}

/* One group of a row: the scale such that |x / scale| <= 127, and those numbers rounded. */
static inline float round_group(const bf16 *x, int64_t size, int8_t *out, float *sum) {
    const float least = 127.0f / FLT_MAX; /* what is smaller becomes zero */
    float greatest = greatest_size(x, size);
    float inverse = greatest > least && greatest <= FLT_MAX ? 127.0f / greatest : 0.0f;
    float scale = greatest <= FLT_MAX ? greatest / 127.0f : NAN;
    int32_t total = 0;
    for (int64_t c = 0; c < size; c += SUM_GROUP) {
        int8_t in_order[SUM_GROUP];
        for (int i = 0; i < SUM_GROUP; i++) {
            int32_t value = inverse != 0.0f ? (int32_t)rintf(widen(x[c + i]) * inverse) : 0;
            in_order[i] = (int8_t)value;
            total += value;
        }
        for (int i = 0; i < SUM_GROUP; i += 8)
            for (int j = 0; j < 4; j++) {
                out[c + i + 2 * j] = in_order[i + j];
                out[c + i + 2 * j + 1] = in_order[i + 4 + j];
            }
    }
    *sum = scale * (float)total;
    return scale;
}

static void prepare(const struct matrix *w, const struct activations *in, int64_t first,
                    int64_t last) {
    int64_t size = w->group_size, groups = w->k / size;
    for (int64_t i = first * groups; i < last * groups; i++) {
        int64_t at = i / groups * in->ld + i % groups * size;
        if (w->activation_bits == 8)
            in->scales[i] = round_group(in->x + at, size, (int8_t *)in->integers + at, in->sums + i);
        else
            in->scales[i] = fix_group(in->x + at, size, (int16_t *)in->integers + at, in->sums + i);
    }
}

static void silu_mul(const float *gate, const float *up, int64_t n, bf16 *out) {
    for (int64_t i = 0; i < n; i++) {
        float x = -gate[i];
        x = x > 87.0f ? 87.0f : x;
        x = x < -87.0f ? -87.0f : x;
        out[i] = narrow(gate[i] / (1.0f + exponential(x)) * up[i]);
    }
}

static void rotate(float *x, const float *cos, const float *sin, int64_t head_size) {
    int64_t half = head_size / 2;
    for (int64_t i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cos[i] - second * sin[i];
        x[i + half] = second * cos[i + half] + first * sin[i + half];
    }
}

/* The greatest of at least one value; several at a time, which the compiler would not dare. */
static float greatest_of(const float *x, int64_t n) {
    float most[TILE];
    int64_t i = 0;
    for (int lane = 0; lane < TILE; lane++)
        most[lane] = x[0];
    for (; i + TILE <= n; i += TILE)
        for (int lane = 0; lane < TILE; lane++)
            most[lane] = x[i + lane] > most[lane] ? x[i + lane] : most[lane];
    for (; i < n; i++)
        most[0] = x[i] > most[0] ? x[i] : most[0];
    for (int lane = 1; lane < TILE; lane++)
        most[0] = most[lane] > most[0] ? most[lane] : most[0];
    return most[0];
}

/* exp(scores · scale), divided by their sum, in place. */
static void softmax(float *scores, int64_t length, float scale) {
    float greatest = greatest_of(scores, length), sum = 0;
    for (int64_t s = 0; s < length; s++) {
        float x = (scores[s] - greatest) * scale;
        x = x < -87.0f ? -87.0f : x;
        scores[s] = exponential(x);
        sum += scores[s];
    }
    float inverse = 1.0f / sum;
    for (int64_t s = 0; s < length; s++)
        scores[s] *= inverse;
}

/* softmax(q · keysᵀ / √D) · values. */
static void attend(const struct attention *a) {
    int64_t length = a->length, size = a->head_size;
    for (int64_t s = 0; s < length; s++) {
        const bf16 *key = a->keys + s * size;
        for (int h = 0; h < a->heads; h++) {
            const float *q = a->q + h * size;
            float dot = 0;
            for (int64_t i = 0; i < size; i++)
                dot += q[i] * widen(key[i]);
            a->scores[h * length + s] = dot;
        }
    }
    for (int h = 0; h < a->heads; h++)
        softmax(a->scores + h * length, length, 1.0f / sqrtf((float)size));
    memset(a->out, 0, sizeof(float) * (size_t)(a->heads * size));
    for (int64_t s = 0; s < length; s++) {
        const bf16 *value = a->values + s * size;
        for (int h = 0; h < a->heads; h++) {
            float *out = a->out + h * size, p = a->scores[h * length + s];
            for (int64_t i = 0; i < size; i++)
                out[i] += p * widen(value[i]);
        }
    }
}

/* What to ask for while column `at` of several rows is read, from the first row's front on; `next`
 * is where the rows after them begin. */
static inline int64_t ahead_of(int64_t at, int64_t columns, int64_t next) {
    return at + AHEAD + (at + AHEAD < columns ? 0 : next - columns);
}

/* Of a tile, without its padding. */
static inline int rows_of(const struct matrix *w, int64_t tile) {
    int64_t left = w->n - tile * TILE;
    return left < TILE ? (int)left : TILE;
}

/* The results of a tile, without its padding. */
static inline void store(const struct matrix *w, int64_t tile, const float *values, float *y) {
    int64_t at = tile * TILE;
    for (int r = 0; r < rows_of(w, tile); r++)
        y[r] = values[r] + (w->bias ? w->bias[at + r] : 0.0f);
}

/* Eight columns of one row: out = (value - offset) · scale + zero_point. */
static inline void widen_word(uint32_t word, float offset, float scale, float zero_point,
                              float *out) {
    static const uint32_t shift[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    for (int i = 0; i < 8; i++)
        out[i] = ((float)(int32_t)(word >> shift[i] & 15) - offset) * scale + zero_point;
}

static void unpack_int4(const struct matrix *w, const uint8_t *tile, int64_t rows, bf16 *out) {
    for (int64_t k = 0; k < w->k; k += w->group_size) {
        const bf16 *scale = (const bf16 *)tile, *zero_point = scale + TILE;
        tile += 64;
        for (int64_t r = 0; r < rows; r++) {
            float by = widen(scale[r]), from = widen(zero_point[r]);
            for (int64_t c = 0; c < w->group_size; c += 8) {
                float values[8];
                uint32_t word;
                memcpy(&word, tile + c * 8 + r * 4, 4);
                widen_word(word, 8.0f, by, from, values);
                to_bf16(values, 8, out + r * w->k + k + c);
            }
        }
        tile += w->group_size * 8;
    }
}

static void unpack_int8(const struct matrix *w, const uint8_t *tile, int64_t rows, bf16 *out) {
    for (int64_t r = 0; r < rows; r++) {
        float scale = ((const float *)tile)[r];
        for (int64_t k = 0; k < w->k; k += 8) {
            const uint8_t *chunk = tile + 64 + k * 16 + r * 4;
            float high[8], low[8];
            uint32_t word;
            memcpy(&word, chunk, 4);
            widen_word(word, 8.0f, 16.0f, 0.0f, high);
            memcpy(&word, chunk + 64, 4);
            widen_word(word, 0.0f, 1.0f, 0.0f, low);
            for (int i = 0; i < 8; i++)
                out[r * w->k + k + i] = narrow((high[i] + low[i]) * scale);
        }
    }
}

static void unpack(const struct matrix *w, bf16 *out, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; tile++) {
        const uint8_t *data = (const uint8_t *)w->data + tile * tile_bytes(w);
        int64_t rows = w->n - tile * TILE < TILE ? w->n - tile * TILE : TILE;
        bf16 *to = out + (tile - first) * TILE * w->k;
        w->bits == 4 ? unpack_int4(w, data, rows, to) : unpack_int8(w, data, rows, to);
    }
}
