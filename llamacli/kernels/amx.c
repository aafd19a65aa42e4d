/* AVX-512, and for several rows of activations AMX, the CPU's unit for matrices: one instruction
 * multiplies 16 rows of a weight by 16 rows of activations, 32 columns of each.
 */

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c,bmi2,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c,bmi2,amx-tile,amx-bf16")
#endif

#include "avx512.h"

enum { COLUMNS = 32 };

/* The compiler does not know what memory the tile instructions read and write. */
#define SETTLED() __asm__ volatile("" ::: "memory")

/* Registers: 0 … 3 are sums of 16 rows of activations each, 4 and 6 activations (6 for a last block
 * of fewer rows), 5 a part of the weight. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static void configure(int rows) {
    struct tile_config config = {.palette = 1};
    int blocks = (rows + TILE - 1) / TILE, last = rows - (blocks - 1) * TILE;
    for (int i = 0; i < 7; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = TILE;
    }
    config.rows[blocks - 1] = config.rows[6] = (uint8_t)last;
    SETTLED();
    _tile_loadconfig(&config);
}

/* 32 columns of 16 rows, from words of 4-bit values: a pair of columns in each row of the register.
 * `step` is the distance of chunks. */
INLINE void load_weight(const uint8_t *words, int64_t step, __m512i values, bf16 *buffer) {
    UNROLLED
    for (int c = 0; c < COLUMNS / 8; c++) {
        __m512i chunk = _mm512_loadu_si512(words + c * step);
        _mm_prefetch((const char *)words + c * step + PREFETCH, _MM_HINT_T0);
        UNROLLED
        for (int j = 0; j < 4; j++) {
            __m512i index = j == 0 ? chunk : values_of(chunk, j);
            _mm512_store_si512(buffer + (c * 4 + j) * COLUMNS,
                               _mm512_permutexvar_epi16(index, values));
        }
    }
    SETTLED();
    _tile_loadd(5, buffer, 64);
    SETTLED();
}

/* Add x · wᵀ for the columns in register 5; x is that of the first row. */
INLINE void add_blocks(const bf16 *x, int64_t ldx, int blocks) {
    int64_t stride = ldx * 2, block = TILE * ldx;
#define ADD(i) \
    if (blocks == i + 1) { \
        _tile_loadd(6, x + i * block, stride); \
        _tile_dpbf16ps(i, 6, 5); \
    } else if (blocks > i + 1) { \
        _tile_loadd(4, x + i * block, stride); \
        _tile_dpbf16ps(i, 4, 5); \
    }
    ADD(0) ADD(1) ADD(2) ADD(3)
#undef ADD
}

INLINE void clear(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

INLINE void read_sums(int blocks, float *sums) {
    _tile_stored(0, sums, 64);
    if (blocks > 1)
        _tile_stored(1, sums + TILE * TILE, 64);
    if (blocks > 2)
        _tile_stored(2, sums + 2 * TILE * TILE, 64);
    if (blocks > 3)
        _tile_stored(3, sums + 3 * TILE * TILE, 64);
    SETTLED();
}

static void block_int4(const struct matrix *w, const uint8_t *tile, const bf16 *x,
                       const float *sums, int rows, float *y) {
    const __m512i values = table(8.0f, 1.0f);
    const int64_t size = w->group_size, entries = w->k / SUM_GROUP;
    const int blocks = (rows + TILE - 1) / TILE;
    _Alignas(64) bf16 buffer[TILE * COLUMNS];
    _Alignas(64) float dot[MAX_BLOCK * TILE];
    for (int i = 0; i < rows; i++)
        _mm512_store_ps(y + i * TILE, _mm512_setzero_ps());
    for (int64_t k = 0; k < w->k; k += size) {
        __m512 scale = widened((const bf16 *)tile), zero_point = widened((const bf16 *)tile + TILE);
        tile += 64;
        clear();
        for (int64_t c = 0; c < size; c += COLUMNS, tile += COLUMNS * 8) {
            load_weight(tile, 64, values, buffer);
            add_blocks(x + k + c, w->k, blocks);
        }
        read_sums(blocks, dot);
        for (int i = 0; i < rows; i++) {
            const float *sum = sums + i * entries + k / SUM_GROUP;
            float of_group = 0;
            for (int64_t s = 0; s < size / SUM_GROUP; s++)
                of_group += sum[s];
            __m512 out = _mm512_load_ps(y + i * TILE);
            out = _mm512_fmadd_ps(scale, _mm512_load_ps(dot + i * TILE), out);
            out = _mm512_fmadd_ps(zero_point, _mm512_set1_ps(of_group), out);
            _mm512_store_ps(y + i * TILE, out);
        }
    }
}

static void block_int8(const struct matrix *w, const uint8_t *tile, const bf16 *x, int rows,
                       float *y) {
    const __m512i high = table(8.0f, 16.0f), low = table(0.0f, 1.0f);
    const int blocks = (rows + TILE - 1) / TILE;
    const __m512 scale = _mm512_loadu_ps(tile);
    _Alignas(64) bf16 buffer[TILE * COLUMNS];
    tile += 64;
    clear();
    for (int64_t k = 0; k < w->k; k += COLUMNS, tile += COLUMNS * 16) {
        load_weight(tile, 128, high, buffer);
        add_blocks(x + k, w->k, blocks);
        load_weight(tile + 64, 128, low, buffer);
        add_blocks(x + k, w->k, blocks);
    }
    read_sums(blocks, y);
    for (int i = 0; i < rows; i++)
        _mm512_store_ps(y + i * TILE, _mm512_mul_ps(scale, _mm512_load_ps(y + i * TILE)));
}

static void matmul_block(const struct matrix *w, const bf16 *x, const float *sums, int rows,
                         float *y, int64_t ldy, int64_t first, int64_t last) {
    configure(rows);
    for (int64_t tile = first; tile < last; tile++) {
        const uint8_t *data = (const uint8_t *)w->data + tile * tile_bytes(w);
        _Alignas(64) float values[MAX_BLOCK * TILE];
        if (w->bits == 4)
            block_int4(w, data, x, sums, rows, values);
        else
            block_int8(w, data, x, rows, values);
        for (int i = 0; i < rows; i++)
            store(w, tile, values + i * TILE, y + i * ldy + (tile - first) * TILE);
    }
    _tile_release();
}

enum { FEW_ROWS = 3 }; /* up to here the memory is what takes time, and AVX-512 has less to prepare */

static void matmul_amx(const struct matrix *w, const bf16 *x, const float *sums, int rows, float *y,
                       int64_t ldy, int64_t first, int64_t last) {
    if (rows > FEW_ROWS && w->bits != 16 && w->k % COLUMNS == 0)
        matmul_block(w, x, sums, rows, y, ldy, first, last);
    else
        matmul(w, x, sums, rows, y, ldy, first, last);
}

const struct kernels kernels_amx = {
    "amx",    matmul_amx, matmul_block, unpack,   rms_norm, to_bf16,
    widen_row, group_sums, silu_mul,     rotate,   attend_avx512,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
