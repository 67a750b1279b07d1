// Attention of one head within one sequence. q, k, v: [tokens, size] with a stride; the result likewise.
#pragma once

#include "product.h"

// Floats of space for one head of a sequence of so many tokens.
static inline size_t attention_space(int tokens, int size) { return (size_t)up(tokens, 64) * (2 * size + 64); }

// The largest score of a row; what stands behind the tokens, up to `wide`, becomes a score that gives no share.
static inline float top_score(float* scores, int tokens, int wide) {
    for (int i = tokens; i < wide; i++) scores[i] = -INFINITY;
    Vec most = all(-INFINITY);
    for (int i = 0; i < wide; i += W) most = larger(most, at(scores + i));
    return largest(most);
}

// One query, in fp32: the last layer has no more. `scores` has room for all tokens.
static void attend_one(const float* q, const float* k, const float* v, int stride, int tokens, int size, float* out,
                       float* scores) {
    const float factor = LOG2_E / std::sqrt((float)size);
    for (int j = 0; j < tokens; j++) {
        Vec s{};
        for (int i = 0; i < size; i += W) s += at(q + i) * at(k + (size_t)j * stride + i);
        scores[j] = sum(s) * factor;
    }
    const float top = top_score(scores, tokens, up(tokens, W));
    Vec total{};
    for (int j = 0; j < tokens; j += W) total += at(scores + j) = exp2(at(scores + j) - top);
    const float inverse = 1.f / sum(total);
    for (int i = 0; i < size; i += W) {
        Vec mixed{};
        for (int j = 0; j < tokens; j++) mixed += scores[j] * at(v + (size_t)j * stride + i);
        at(out + i) = mixed * inverse;
    }
}

#if defined(__AMX_BF16__)

// 16 pairs of floats as bf16, the lower in the lower half.
static inline __m512i bf16_pair(__m512 low, __m512 high) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low)),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high)), 16));
}

// In bf16 with sums in fp32, 16 queries at a time. `space` holds keys as [tokens / 16][size / 2][16][2], values as
// [tokens / 32][size / 16][16][16][2] (the layout that tiles multiply), scores and their exponentials.
static void attend(const float* q, const float* k, const float* v, int stride, int tokens, int size, float* out,
                   int out_stride, float* space) {
    const int wide = up(tokens, 32);
    auto* keys = reinterpret_cast<uint32_t*>(space);  // of two bf16 each
    auto* values = keys + wide * size / 2;
    auto* scores = reinterpret_cast<float*>(values + wide * size / 2);  // [16][wide]
    auto* shares = reinterpret_cast<uint16_t*>(scores + 16 * wide);     // [16][wide]
    alignas(64) uint16_t queries[16 * 64];
    alignas(64) float mixed[4][16][16];
    const float factor = LOG2_E / std::sqrt((float)size);

    for (int block = 0; block < wide; block += 16) {
        alignas(64) uint32_t rows[16][32] = {};
        for (int j = 0; j < 16 && block + j < tokens; j++)
            for (int i = 0; i < size; i += 32) {
                const float* from = k + (size_t)(block + j) * stride + i;
                _mm512_store_si512(&rows[j][i / 2],
                                   (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from)));
            }
        const __m512i places = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(32));
        for (int i = 0; i < size / 2; i++)
            _mm512_storeu_si512(keys + (block * size / 2) + i * 16,
                                _mm512_i32gather_epi32(places, (const int*)&rows[0][i], 4));
    }
    for (int pair = 0; pair < wide / 2; pair++)
        for (int i = 0; i < size; i += 16) {
            const float* from = v + (size_t)(2 * pair) * stride + i;
            __m512 low = 2 * pair < tokens ? _mm512_loadu_ps(from) : _mm512_setzero_ps();
            __m512 high = 2 * pair + 1 < tokens ? _mm512_loadu_ps(from + stride) : _mm512_setzero_ps();
            uint32_t* to = values + pair / 16 * 16 * size + i * 16 + pair % 16 * 16;
            _mm512_storeu_si512(to, bf16_pair(low, high));
        }

    for (int row = 0; row < tokens; row += 16) {
        const int rows = tokens - row < 16 ? tokens - row : 16;
        for (int j = 0; j < rows; j++)
            for (int i = 0; i < size; i += 32) {
                const float* from = q + (size_t)(row + j) * stride + i;
                __m512i two =
                    (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_loadu_ps(from + 16), _mm512_set1_ps(factor)),
                                                 _mm512_mul_ps(_mm512_loadu_ps(from), _mm512_set1_ps(factor)));
                _mm512_storeu_si512(queries + j * size + i, two);
            }
        _tile_loadd(2, queries, size * 2);
        if (size == 64) _tile_loadd(3, queries + 32, size * 2);
        for (int block = 0; block < wide; block += 16) {
            _tile_zero(0);
            _tile_loadd(4, keys + block * size / 2, 64);
            _tile_dpbf16ps(0, 2, 4);
            if (size == 64) {
                _tile_loadd(5, keys + block * size / 2 + 256, 64);
                _tile_dpbf16ps(0, 3, 5);
            }
            _tile_stored(0, scores + block, wide * 4);
        }
        float inverse[16];
        for (int j = 0; j < rows; j++) {
            float* mine = scores + j * wide;
            const float top = top_score(mine, tokens, wide);
            Vec total{};
            for (int i = 0; i < wide; i += 32) {
                Vec a = exp2(at(mine + i) - top), b = exp2(at(mine + i + 16) - top);
                total += a + b;
                _mm512_storeu_si512(shares + j * wide + i, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
            }
            inverse[j] = 1.f / sum(total);
        }
        for (int i = 0; i < size; i += 32) {
            _tile_zero(0);
            _tile_zero(1);
            for (int block = 0; block < wide; block += 32) {
                const uint32_t* from = values + block / 2 * size + i * 16;
                _tile_loadd(4, shares + block, wide * 2);
                _tile_loadd(5, from, 64);
                _tile_dpbf16ps(0, 4, 5);
                _tile_loadd(6, from + 256, 64);
                _tile_dpbf16ps(1, 4, 6);
            }
            _tile_stored(0, mixed[i / 16], 64);
            _tile_stored(1, mixed[i / 16 + 1], 64);
        }
        for (int j = 0; j < rows; j++)
            for (int i = 0; i < size; i += 16)
                at(out + (size_t)(row + j) * out_stride + i) = at(mixed[i / 16][j]) * inverse[j];
    }
}

#else

constexpr int QUERIES = W == 16 ? 8 : 4;

// out[QUERIES][2 W] = a[QUERIES][n] b[n][2 W]
static inline void small_product(const float* a, int a_stride, const float* b, int b_stride, int n, float* out,
                                 int out_stride) {
    Vec sums[QUERIES][2] = {};
    for (int k = 0; k < n; k++) {
        Vec low = at(b + (size_t)k * b_stride), high = at(b + (size_t)k * b_stride + W);
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; i++) {
            const float x = a[(size_t)i * a_stride + k];
            sums[i][0] += x * low;
            sums[i][1] += x * high;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; i++) {
        at(out + (size_t)i * out_stride) = sums[i][0];
        at(out + (size_t)i * out_stride + W) = sums[i][1];
    }
}

// In fp32, a few queries at a time. `space` holds the keys transposed, [size][tokens], and the scores.
static void attend(const float* q, const float* k, const float* v, int stride, int tokens, int size, float* out,
                   int out_stride, float* space) {
    const int wide = up(tokens, 2 * W);
    float *keys = space, *scores = keys + (size_t)size * wide;
    alignas(64) float queries[QUERIES * 64] = {}, mixed[QUERIES * 64];
    const float factor = LOG2_E / std::sqrt((float)size);
    for (int j = 0; j < tokens; j++)
        for (int i = 0; i < size; i++) keys[(size_t)i * wide + j] = k[(size_t)j * stride + i];
    for (int i = 0; i < size; i++)
        for (int j = tokens; j < wide; j++) keys[(size_t)i * wide + j] = 0;

    for (int row = 0; row < tokens; row += QUERIES) {
        const int rows = tokens - row < QUERIES ? tokens - row : QUERIES;
        for (int j = 0; j < rows; j++)
            for (int i = 0; i < size; i += W)
                at(queries + j * size + i) = at(q + (size_t)(row + j) * stride + i) * factor;
        for (int block = 0; block < wide; block += 2 * W)
            small_product(queries, size, keys + block, wide, size, scores + block, wide);
        float inverse[QUERIES];
        for (int j = 0; j < rows; j++) {
            float* mine = scores + (size_t)j * wide;
            const float top = top_score(mine, tokens, wide);
            Vec total{};
            for (int i = 0; i < wide; i += W) total += at(mine + i) = exp2(at(mine + i) - top);
            inverse[j] = 1.f / sum(total);
        }
        for (int i = 0; i < size; i += 2 * W) small_product(scores, wide, v + i, stride, tokens, mixed + i, size);
        for (int j = 0; j < rows; j++)
            for (int i = 0; i < size; i += W)
                at(out + (size_t)(row + j) * out_stride + i) = at(mixed + j * size + i) * inverse[j];
    }
}

#endif
