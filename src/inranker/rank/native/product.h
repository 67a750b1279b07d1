// Products of unsigned codes of activations with int8 weights, exact in 32-bit integers.
#pragma once

#include "vectors.h"

// A weight matrix [in, out]; `out` is a multiple of 32, `in` of 64.
struct Weight {
    const int8_t* codes;   // [out / 16][in / 4][16][4]: 64 bytes are 4 inputs of 16 outputs
    const float* scale;    // [out]
    const int32_t* shift;  // [out], what the codes' middle adds: -128 * the sum of a column's codes
    const float* bias;     // [out]
    int32_t in, out;
};

// Buffers of codes have a multiple of TILE_ROWS rows; those behind the last may hold anything.
static inline int up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// The floats that a row's sums in the columns from `column` on stand for.
static inline Vec scaled(IntVec sums, const Weight& w, int column, float row_scale) {
    return __builtin_convertvector(sums, Vec) * at(w.scale + column) * row_scale + at(w.bias + column);
}

#if defined(__AMX_INT8__)

struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr int TILE_ROWS = 32;

// 32 rows and 32 columns at a time: four tiles of sums, two of codes, two of weights.
static void product(const uint8_t* codes, const float* row_scale, int rows, const Weight& w, int first, int count,
                    float* out, int stride) {
    alignas(64) int32_t sums[4][16][16];
    const int panel = w.in * 16;
    for (int column = first; column < first + count; column += 32) {
        const int8_t* weights = w.codes + (size_t)column * w.in;
        for (int row = 0; row < rows; row += 32) {
            const uint8_t* a = codes + (size_t)row * w.in;
            const bool both = rows - row > 16;
            _tile_loadd(0, w.shift + column, 0);
            _tile_loadd(1, w.shift + column + 16, 0);
            _tile_loadd(2, w.shift + column, 0);
            _tile_loadd(3, w.shift + column + 16, 0);
            for (int k = 0; k < w.in; k += 64) {
                _tile_loadd(4, a + k, w.in);
                _tile_loadd(6, weights + k * 16, 64);
                _tile_dpbusd(0, 4, 6);
                _tile_loadd(7, weights + panel + k * 16, 64);
                _tile_dpbusd(1, 4, 7);
                if (both) {
                    _tile_loadd(5, a + 16 * w.in + k, w.in);
                    _tile_dpbusd(2, 5, 6);
                    _tile_dpbusd(3, 5, 7);
                }
            }
            _tile_stored(0, sums[0], 64);
            _tile_stored(1, sums[1], 64);
            _tile_stored(2, sums[2], 64);
            _tile_stored(3, sums[3], 64);
            const int end = rows - row < 32 ? rows - row : 32;
            for (int i = 0; i < end; i++)
                for (int half = 0; half < 2; half++) {
                    IntVec integers;
                    std::memcpy(&integers, sums[i / 16 * 2 + half][i % 16], sizeof integers);
                    at(out + (size_t)(row + i) * stride + column - first + 16 * half) =
                        scaled(integers, w, column + 16 * half, row_scale[row + i]);
                }
        }
    }
}

#else

#if defined(__AVX512VNNI__)
constexpr int TILE_ROWS = 8, TILE_COLUMNS = 32;
static inline IntVec dot(IntVec sums, int32_t codes, const int8_t* weights) {
    return (IntVec)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(codes), _mm512_loadu_si512(weights));
}
#elif defined(__AVXVNNI__)
constexpr int TILE_ROWS = 6, TILE_COLUMNS = 16;
static inline IntVec dot(IntVec sums, int32_t codes, const int8_t* weights) {
    return (IntVec)_mm256_dpbusd_avx_epi32((__m256i)sums, _mm256_set1_epi32(codes),
                                           _mm256_loadu_si256((const __m256i*)weights));
}
#else
constexpr int TILE_ROWS = 6, TILE_COLUMNS = 16;
// The sum of two products is kept in 16 bits; weights are such that it fits (see export/int8.py).
static inline IntVec dot(IntVec sums, int32_t codes, const int8_t* weights) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(codes), _mm256_loadu_si256((const __m256i*)weights));
    return sums + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#endif

__attribute__((noinline)) static void product(const uint8_t* codes, const float* row_scale, int rows, const Weight& w,
                                              int first, int count, float* out, int stride) {
    constexpr int VECTORS = TILE_COLUMNS / W;
    const int panel = w.in * 16;
    for (int column = first; column < first + count; column += TILE_COLUMNS) {
        const int8_t* weights = w.codes + (size_t)column * w.in;
        for (int row = 0; row < rows; row += TILE_ROWS) {
            const uint8_t* a[TILE_ROWS];
            for (int i = 0; i < TILE_ROWS; i++) a[i] = codes + (size_t)(row + i) * w.in;
            IntVec sums[TILE_ROWS][VECTORS];
#pragma GCC unroll 8
            for (int i = 0; i < TILE_ROWS; i++)
#pragma GCC unroll 2
                for (int j = 0; j < VECTORS; j++) std::memcpy(&sums[i][j], w.shift + column + j * W, sizeof(IntVec));
            for (int k = 0; k < w.in; k += 4) {
#pragma GCC unroll 8
                for (int i = 0; i < TILE_ROWS; i++) {
                    int32_t four;
                    std::memcpy(&four, a[i] + k, 4);
#pragma GCC unroll 2
                    for (int j = 0; j < VECTORS; j++) {
                        const int at_column = j * W;
                        sums[i][j] =
                            dot(sums[i][j], four, weights + at_column / 16 * panel + k * 16 + at_column % 16 * 4);
                    }
                }
            }
            const int end = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
            for (int i = 0; i < end; i++)
#pragma GCC unroll 2
                for (int j = 0; j < VECTORS; j++)
                    at(out + (size_t)(row + i) * stride + column - first + j * W) =
                        scaled(sums[i][j], w, column + j * W, row_scale[row + i]);
        }
    }
}

#endif

// A weight matrix whose products stay in fp32: they meet one row a sequence. `in` is a multiple of 64, `out` of 64.
struct KeptWeight {
    const int8_t* codes;  // [in / 64][64][out]
    const float* scale;   // [in / 64][out]
    const float* bias;    // [out]
    int32_t in, out;
};

template <int ROWS_AT_ONCE>
static inline void kept_rows(const float* x, const KeptWeight& w, float* out) {
    constexpr int VECTORS = 64 / W;  // whole cache lines of codes
    for (int column = 0; column < w.out; column += 64) {
        Vec total[ROWS_AT_ONCE][VECTORS];
        for (auto& row : total)
            for (int j = 0; j < VECTORS; j++) row[j] = at(w.bias + column + j * W);
        for (int group = 0; group < w.in; group += 64) {
            Vec part[ROWS_AT_ONCE][VECTORS] = {};
            for (int k = group; k < group + 64; k++)
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; j++) {
                    const Vec weights = floats_of(w.codes + (size_t)k * w.out + column + j * W);
#pragma GCC unroll 4
                    for (int i = 0; i < ROWS_AT_ONCE; i++) part[i][j] += x[(size_t)i * w.in + k] * weights;
                }
            for (int i = 0; i < ROWS_AT_ONCE; i++)
                for (int j = 0; j < VECTORS; j++)
                    total[i][j] += part[i][j] * at(w.scale + (size_t)(group / 64) * w.out + column + j * W);
        }
        for (int i = 0; i < ROWS_AT_ONCE; i++)
            for (int j = 0; j < VECTORS; j++) at(out + (size_t)i * w.out + column + j * W) = total[i][j];
    }
}

// x [rows, in], out [rows, out].
static void kept_product(const float* x, int rows, const KeptWeight& w, float* out) {
    constexpr int MANY = W == 16 ? 4 : 1;  // as many as there are registers for
    int row = 0;
    for (; row + MANY <= rows; row += MANY) kept_rows<MANY>(x + (size_t)row * w.in, w, out + (size_t)row * w.out);
    for (; row < rows; row++) kept_rows<1>(x + (size_t)row * w.in, w, out + (size_t)row * w.out);
}
