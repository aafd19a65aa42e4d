/* AVX-512, and for several rows of activations AMX, the CPU's unit for matrices: one instruction
 * multiplies 16 rows of a weight by 16 rows of activations, 32 columns of each, or 64 of integers.
 */

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi2,amx-tile,amx-bf16,amx-int8"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi2,amx-tile,amx-bf16,amx-int8")
#endif

#include "avx512.h"

enum {
    COLUMNS = 32,
    PIECE = 128,     /* columns that are unpacked at once, so that a tile finds them written */
    BLOCK_TILES = 4, /* whose sums stay in the cache */
};

/* The compiler does not know what memory the tile instructions read and write. */
#define SETTLED() __asm__ volatile("" ::: "memory")

/* Registers: 0 … 3 are sums of 16 rows of activations each, 4 and 6 activations (6 for a last block
 * of fewer rows), 5 a part of the weight. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* For so many rows of activations, of which an instruction takes so many bytes. */
static void configure(int rows, int bytes) {
    struct tile_config config = {.palette = 1};
    int blocks = (rows + TILE - 1) / TILE, last = rows - (blocks - 1) * TILE;
    for (int i = 0; i < 7; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = TILE;
    }
    config.row_bytes[4] = config.row_bytes[6] = (uint16_t)bytes;
    config.rows[5] = (uint8_t)(bytes / 4);
    config.rows[blocks - 1] = config.rows[6] = (uint8_t)last;
    SETTLED();
    _tile_loadconfig(&config);
}

/* For the sums of 16 rows of a weight in register 0, so many rows of activations in 4. */
static void configure_turned(int rows) {
    struct tile_config config = {.palette = 1};
    config.rows[0] = config.rows[4] = config.rows[5] = TILE;
    config.row_bytes[0] = config.row_bytes[4] = (uint16_t)(4 * rows);
    config.row_bytes[5] = 64;
    SETTLED();
    _tile_loadconfig(&config);
}

/* 32 columns of 16 rows, from words of 4-bit values: a pair of columns in each row of the register.
 * `step` is the distance of chunks. */
INLINE void widen_weight(const uint8_t *words, int64_t step, __m512i values, bf16 *buffer) {
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

/* 16 of 32 bits for each row. */
INLINE void read_sums(int blocks, void *out) {
    float *sums = out;
    _tile_stored(0, sums, 64);
    if (blocks > 1)
        _tile_stored(1, sums + TILE * TILE, 64);
    if (blocks > 2)
        _tile_stored(2, sums + 2 * TILE * TILE, 64);
    if (blocks > 3)
        _tile_stored(3, sums + 3 * TILE * TILE, 64);
    SETTLED();
}

static void tiles_int8(const struct matrix *w, const struct activations *in, int rows, float *y,
                       int64_t ldy, int64_t first, int count) {
    const __m512i high = table(8.0f, 16.0f), low = table(0.0f, 1.0f);
    const int blocks = (rows + TILE - 1) / TILE;
    _Alignas(64) bf16 buffer[2 * COLUMNS * TILE];
    _Alignas(64) float dot[MAX_BLOCK * TILE];
    for (int64_t tile = first; tile < first + count; tile++) {
        const uint8_t *data = (const uint8_t *)w->data + tile * tile_bytes(w);
        const __m512 scale = _mm512_loadu_ps(data);
        clear();
        data += 64;
        for (int64_t k = 0; k < w->k; k += COLUMNS, data += COLUMNS * 16) {
            widen_weight(data, 128, high, buffer);
            widen_weight(data + 64, 128, low, buffer + COLUMNS * TILE);
            SETTLED();
            _tile_loadd(5, buffer, 64);
            add_blocks(in->x + k, in->ld, blocks);
            _tile_loadd(5, buffer + COLUMNS * TILE, 64);
            add_blocks(in->x + k, in->ld, blocks);
            SETTLED();
        }
        read_sums(blocks, dot);
        for (int i = 0; i < rows; i++) {
            float *of_row = dot + i * TILE;
            _mm512_store_ps(of_row, _mm512_mul_ps(scale, _mm512_load_ps(of_row)));
            store(w, tile, of_row, y + i * ldy + (tile - first) * TILE);
        }
    }
}

/* Integers of a tile, four columns in each row of the register. */
INLINE void spread_integers(const uint8_t *words, int64_t columns, uint8_t *buffer) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t c = 0; c < columns / 8; c++) {
        __m512i chunk = _mm512_loadu_si512(words + c * 64);
        _mm_prefetch((const char *)words + c * 64 + PREFETCH, _MM_HINT_T0);
        _mm512_store_si512(buffer + c * 128, _mm512_and_si512(chunk, low));
        _mm512_store_si512(buffer + c * 128 + 64,
                           _mm512_and_si512(_mm512_srli_epi32(chunk, 4), low));
    }
}

INLINE void add_integers(const int8_t *x, int64_t ldx, int blocks) {
    int64_t block = TILE * ldx;
#define ADD(i) \
    if (blocks == i + 1) { \
        _tile_loadd(6, x + i * block, ldx); \
        _tile_dpbsud(i, 6, 5); \
    } else if (blocks > i + 1) { \
        _tile_loadd(4, x + i * block, ldx); \
        _tile_dpbsud(i, 4, 5); \
    }
    ADD(0) ADD(1) ADD(2) ADD(3)
#undef ADD
}

/* Columns of integers that one instruction takes. */
static int step_of(const struct matrix *w) {
    return w->group_size % 64 == 0 ? 64 : 32;
}

/* y (rows, 16) += what one group of a tile gives with bfloat16 activations. */
static void add_group_int4(const struct matrix *w, const uint8_t *tile,
                           const struct activations *in, int64_t group, int rows, float *y) {
    const __m512i values = table(8.0f, 1.0f);
    const int64_t size = w->group_size, groups = w->k / size;
    const int blocks = (rows + TILE - 1) / TILE;
    const bf16 *x = in->x + group * size;
    const float *sums = in->sums + group;
    _Alignas(64) bf16 buffer[PIECE * TILE];
    _Alignas(64) float dot[MAX_BLOCK * TILE];
    clear();
    for (int64_t start = 0; start < size; start += PIECE) {
        int64_t end = size - start < PIECE ? size : start + PIECE;
        for (int64_t c = start; c < end; c += COLUMNS)
            widen_weight(tile + 64 + c * 8, 64, values, buffer + (c - start) * TILE);
        SETTLED();
        for (int64_t c = start; c < end; c += COLUMNS) {
            _tile_loadd(5, buffer + (c - start) * TILE, 64);
            add_blocks(x + c, in->ld, blocks);
        }
        SETTLED();
    }
    read_sums(blocks, dot);
    __m512 scale = widened((const bf16 *)tile), zero_point = widened((const bf16 *)tile + TILE);
    for (int i = 0; i < rows; i++) {
        __m512 out = _mm512_fmadd_ps(scale, _mm512_load_ps(dot + i * TILE),
                                     _mm512_load_ps(y + i * TILE));
        out = _mm512_fmadd_ps(zero_point, _mm512_set1_ps(sums[i * groups]), out);
        _mm512_store_ps(y + i * TILE, out);
    }
}

/* The same with rounded activations. */
static void add_group_rounded(const struct matrix *w, const uint8_t *tile,
                              const struct activations *in, int64_t group, int rows, float *y) {
    const int64_t size = w->group_size, groups = w->k / size, step = step_of(w);
    const int blocks = (rows + TILE - 1) / TILE;
    const int8_t *x = (const int8_t *)in->integers + group * size;
    const float *x_scale = in->scales + group, *x_sum = in->sums + group;
    _Alignas(64) uint8_t buffer[PIECE * TILE];
    _Alignas(64) int32_t dot[MAX_BLOCK * TILE];
    __m512 scale, offset;
    clear();
    for (int64_t start = 0; start < size; start += PIECE) {
        int64_t end = size - start < PIECE ? size : start + PIECE;
        spread_integers(tile + 64 + start * 8, end - start, buffer);
        SETTLED();
        for (int64_t c = start; c < end; c += step) {
            _tile_loadd(5, buffer + (c - start) * TILE, 64);
            add_integers(x + c, in->ld, blocks);
        }
        SETTLED();
    }
    read_sums(blocks, dot);
    read_group(tile, &scale, &offset);
    for (int i = 0; i < rows; i++) {
        __m512 out = add_group(_mm512_load_ps(y + i * TILE), _mm512_load_si512(dot + i * TILE),
                               scale, offset, x_scale[i * groups], x_sum[i * groups]);
        _mm512_store_ps(y + i * TILE, out);
    }
}

/* Some tiles, group after group, so that a group's activations stay near. */
static void tiles_int4(const struct matrix *w, const struct activations *in, int rows, float *y,
                       int64_t ldy, int64_t first, int count) {
    _Alignas(64) float values[BLOCK_TILES][MAX_BLOCK * TILE];
    const uint8_t *data = (const uint8_t *)w->data + first * tile_bytes(w);
    for (int tile = 0; tile < count; tile++)
        memset(values[tile], 0, sizeof(float) * (size_t)(rows * TILE));
    for (int64_t group = 0; group < w->k / w->group_size; group++)
        for (int tile = 0; tile < count; tile++) {
            const uint8_t *at = data + tile * tile_bytes(w) + group * (64 + w->group_size * 8);
            (w->activation_bits == 8 ? add_group_rounded : add_group_int4)(w, at, in, group, rows,
                                                                           values[tile]);
        }
    for (int tile = 0; tile < count; tile++)
        for (int i = 0; i < rows; i++)
            store(w, first + tile, values[tile] + i * TILE, y + i * ldy + tile * TILE);
}

static void matmul_block(const struct matrix *w, const struct activations *in, int rows, float *y,
                         int64_t ldy, int64_t first, int64_t last) {
    configure(rows, w->activation_bits == 8 ? step_of(w) : 64);
    for (int64_t tile = first; tile < last; tile += BLOCK_TILES) {
        int count = (int)(last - tile < BLOCK_TILES ? last - tile : BLOCK_TILES);
        float *to = y + (tile - first) * TILE;
        (w->bits == 4 ? tiles_int4 : tiles_int8)(w, in, rows, to, ldy, tile, count);
    }
    _tile_release();
}

/* ------------------------------------------------------------------------------ bfloat16 weights */

enum {
    WIDTH = 4096,  /* columns whose activations are turned at once */
    CHUNK = 16,    /* tiles whose sums stay in the cache */
};

/* Pairs of columns of x become rows: that is how the second operand stands in a register. */
static void turn(const bf16 *x, int64_t ldx, int rows, int64_t columns, uint32_t (*turned)[TILE]) {
    for (int64_t pair = 0; pair < columns / 2; pair++)
        for (int row = 0; row < rows; row++)
            memcpy(&turned[pair][row], x + row * ldx + 2 * pair, 4);
}

/* sums (16, 16) += 16 rows of a weight · activations, for some columns. The rows of the weight are
 * the first operand, as they are in memory. */
static void add_columns(const bf16 *w, int64_t ldw, int64_t columns, uint32_t (*turned)[TILE],
                        float *sums) {
    _tile_loadd(0, sums, 64);
    for (int64_t at = 0; at < columns; at += COLUMNS) {
        const bf16 *ahead = w + ahead_of(at, columns, TILE * ldw);
        UNROLLED
        for (int row = 0; row < TILE; row++)
            _mm_prefetch((const char *)(ahead + row * ldw), _MM_HINT_T0);
        _tile_loadd(5, w + at, ldw * 2);
        _tile_loadd(4, turned[at / 2], 64);
        _tile_dpbf16ps(0, 5, 4);
    }
    _tile_stored(0, sums, 64);
}

static void store_turned(const struct matrix *w, int64_t tile, const float *sums, int rows,
                         float *y, int64_t ldy) {
    for (int row = 0; row < rows; row++) {
        float values[TILE];
        for (int r = 0; r < TILE; r++)
            values[r] = sums[r * TILE + row];
        store(w, tile, values, y + row * ldy);
    }
}

/* Whole tiles first … last-1; K is a multiple of 32. */
static void matmul_bf16(const struct matrix *w, const struct activations *in, int rows, float *y,
                        int64_t ldy, int64_t first, int64_t last) {
    _Alignas(64) uint32_t turned[WIDTH / 2][TILE];
    _Alignas(64) float sums[CHUNK][TILE * TILE];
    const bf16 *data = w->data;
    configure_turned(rows);
    for (int64_t from = first; from < last; from += CHUNK) {
        int count = (int)(last - from < CHUNK ? last - from : CHUNK);
        memset(sums, 0, sizeof sums);
        for (int64_t k = 0; k < w->k; k += WIDTH) {
            int64_t columns = w->k - k < WIDTH ? w->k - k : WIDTH;
            if (from == first || w->k > WIDTH)
                turn(in->x + k, in->ld, rows, columns, turned);
            SETTLED();
            for (int i = 0; i < count; i++)
                add_columns(data + (from + i) * TILE * w->k + k, w->k, columns, turned,
                            sums[i]);
            SETTLED();
        }
        for (int i = 0; i < count; i++)
            store_turned(w, from + i, sums[i], rows, y + (from + i - first) * TILE, ldy);
    }
    _tile_release();
}

/* Up to here the memory is what takes time, and AVX-512 has less to prepare. */
enum { FEW_ROWS = 3, FEW_ROUNDED_ROWS = 8, FEW_BF16_ROWS = 2 };

static void matmul_amx(const struct matrix *w, const struct activations *in, int rows, float *y,
                       int64_t ldy, int64_t first, int64_t last) {
    int few = w->activation_bits == 8 ? FEW_ROUNDED_ROWS : FEW_ROWS;
    int64_t whole = w->n / TILE < last ? w->n / TILE : last; /* nothing is read behind the end */
    if (w->bits == 16 && rows > FEW_BF16_ROWS && w->k % COLUMNS == 0 && first < whole) {
        matmul_bf16(w, in, rows, y, ldy, first, whole);
        matmul(w, in, rows, y + (whole - first) * TILE, ldy, whole, last);
    } else if (rows > few && w->bits != 16 && w->k % COLUMNS == 0) {
        matmul_block(w, in, rows, y, ldy, first, last);
    } else {
        matmul(w, in, rows, y, ldy, first, last);
    }
}

const struct kernels kernels_amx = {
    "amx",    matmul_amx, matmul_block, unpack,   rms_norm, to_bf16,
    widen_row, prepare, silu_mul,     rotate,   attend_avx512,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
