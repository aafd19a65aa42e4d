/* Plain C, for any machine; on ARM the compiler uses NEON. */

#include "generic.h"

/* Add eight columns of a chunk: sum[r] += Σ (value - offset) · x. Inlined it would be four times
 * slower: gcc takes the loops apart before it makes vectors of them. */
__attribute__((noinline)) static void add_chunk(const uint32_t *chunk, const float *x, float offset,
                                                float *sum) {
    for (int j = 0; j < 4; j++) {
        float even = x[2 * j], odd = x[2 * j + 1];
        for (int r = 0; r < TILE; r++) {
            int32_t low = (int32_t)(chunk[r] >> (4 * j) & 15);
            int32_t high = (int32_t)(chunk[r] >> (4 * j + 16) & 15);
            sum[r] += ((float)low - offset) * even + ((float)high - offset) * odd;
        }
    }
}

/* Eight activations from a column on, in the order of columns. */
static inline void read_eight(const void *integers, int bits, int64_t column, float *out) {
    const int16_t *wide = (const int16_t *)integers + column;
    const int8_t *narrow = (const int8_t *)integers + column;
    for (int i = 0; i < 8; i++)
        out[i] = bits == 8 ? narrow[i % 4 * 2 + i / 4] : wide[i];
}

static void tile_int4(const struct matrix *w, const uint8_t *tile, const struct activations *a,
                      float *y) {
    memset(y, 0, sizeof(float) * TILE);
    for (int64_t group = 0, k = 0; k < w->k; group++) {
        const bf16 *scale = (const bf16 *)tile, *zero_point = scale + TILE;
        float dot[TILE] = {0}, x[8];
        tile += 64;
        for (int c = 0; c < w->group_size; c += 8, k += 8, tile += 64) {
            read_eight(a->integers, w->activation_bits, k, x);
            add_chunk((const uint32_t *)tile, x, 8.0f, dot);
        }
        for (int r = 0; r < TILE; r++)
            y[r] += widen(scale[r]) * a->scales[group] * dot[r] +
                    widen(zero_point[r]) * a->sums[group];
    }
}

static void tile_int8(const struct matrix *w, const uint8_t *tile, const bf16 *x, float *y) {
    const float *scale = (const float *)tile;
    const uint32_t *chunk = (const uint32_t *)(tile + 64);
    float high[TILE] = {0}, low[TILE] = {0};
    for (int64_t k = 0; k < w->k; k += 8, chunk += 2 * TILE) {
        float in[8];
        widen_row(x + k, 8, in);
        add_chunk(chunk, in, 8.0f, high);
        add_chunk(chunk + TILE, in, 0.0f, low);
    }
    for (int r = 0; r < TILE; r++)
        y[r] = scale[r] * (16.0f * high[r] + low[r]);
}

static float row_bf16(const bf16 *w, const bf16 *x, int64_t k) {
    float sum = 0;
    for (int64_t i = 0; i < k; i++)
        sum += widen(w[i]) * widen(x[i]);
    return sum;
}

static void matmul(const struct matrix *w, const struct activations *a, int rows, float *y,
                   int64_t ldy, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; tile++) {
        const uint8_t *data = (const uint8_t *)w->data + tile * tile_bytes(w);
        for (int row = 0; row < rows; row++) {
            struct activations in = from_row(a, w, row);
            float values[TILE];
            if (w->bits == 4)
                tile_int4(w, data, &in, values);
            else if (w->bits == 8)
                tile_int8(w, data, in.x, values);
            else
                for (int64_t r = 0; r < TILE && tile * TILE + r < w->n; r++)
                    values[r] = row_bf16((const bf16 *)data + r * w->k, in.x, w->k);
            store(w, tile, values, y + row * ldy + (tile - first) * TILE);
        }
    }
}

const struct kernels kernels_portable = {
    "portable", matmul, NULL, unpack, rms_norm, to_bf16, widen_row, prepare, silu_mul, rotate, attend,
};
