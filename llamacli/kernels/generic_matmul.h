/* Matrix products in C that compilers turn into vectors. */

#include "generic.h"

/* Add the eight columns of a chunk: sum[r] += Σ (value - offset) · x. */
static inline void add_chunk(const uint32_t *chunk, const bf16 *x, float offset, float *sum) {
    for (int j = 0; j < 4; j++) {
        float even = widen(x[2 * j]), odd = widen(x[2 * j + 1]);
        for (int r = 0; r < TILE; r++) {
            int32_t low = (int32_t)(chunk[r] >> (4 * j) & 15);
            int32_t high = (int32_t)(chunk[r] >> (4 * j + 16) & 15);
            sum[r] += ((float)low - offset) * even + ((float)high - offset) * odd;
        }
    }
}

static void tile_int4(const struct matrix *w, const uint8_t *tile, const bf16 *x,
                      const float *sums, float *y) {
    int groups = (int)(w->k / w->group_size), entries = w->group_size / SUM_GROUP;
    memset(y, 0, sizeof(float) * TILE);
    for (int group = 0; group < groups; group++) {
        const bf16 *scale = (const bf16 *)tile, *zero_point = scale + TILE;
        const uint32_t *chunk = (const uint32_t *)(tile + 64);
        float dot[TILE] = {0}, sum = 0;
        for (int c = 0; c < w->group_size / 8; c++, chunk += TILE, x += 8)
            add_chunk(chunk, x, 8.0f, dot);
        for (int i = 0; i < entries; i++)
            sum += *sums++;
        for (int r = 0; r < TILE; r++)
            y[r] += widen(scale[r]) * dot[r] + widen(zero_point[r]) * sum;
        tile = (const uint8_t *)chunk;
    }
}

static void tile_int8(const struct matrix *w, const uint8_t *tile, const bf16 *x, float *y) {
    const float *scale = (const float *)tile;
    const uint32_t *chunk = (const uint32_t *)(tile + 64);
    float high[TILE] = {0}, low[TILE] = {0};
    for (int64_t k = 0; k < w->k; k += 8, chunk += 2 * TILE) {
        add_chunk(chunk, x + k, 8.0f, high);
        add_chunk(chunk + TILE, x + k, 0.0f, low);
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

static void matmul(const struct matrix *w, const bf16 *x, const float *sums, int rows, float *y,
                   int64_t ldy, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; tile++) {
        const uint8_t *data = (const uint8_t *)w->data + tile * tile_bytes(w);
        for (int row = 0; row < rows; row++) {
            const bf16 *in = x + row * w->k;
            float values[TILE];
            if (w->bits == 4)
                tile_int4(w, data, in, sums + row * (w->k / SUM_GROUP), values);
            else if (w->bits == 8)
                tile_int8(w, data, in, values);
            else
                for (int64_t r = 0; r < TILE && tile * TILE + r < w->n; r++)
                    values[r] = row_bf16((const bf16 *)data + r * w->k, in, w->k);
            store(w, tile, values, y + row * ldy + (tile - first) * TILE);
        }
    }
}
