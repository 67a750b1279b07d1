// Vectors of floats as wide as the instruction set allows, and what BERT needs done to rows of them.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int W = 16;  // floats a vector
#else
constexpr int W = 8;
#endif

typedef float Vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * W), aligned(4), may_alias));

static inline Vec& at(float* p) { return *reinterpret_cast<Vec*>(p); }
static inline const Vec& at(const float* p) { return *reinterpret_cast<const Vec*>(p); }
static inline Vec all(float x) { return x - Vec{}; }
static inline Vec magnitude(Vec x) { return (Vec)((IntVec)x & 0x7fffffff); }

#if defined(__AVX512F__)
static inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline Vec smaller(Vec a, Vec b) { return _mm512_min_ps(a, b); }
static inline Vec floats_of(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
// The lowest bytes of four vectors, in order.
static inline void store_lowest_bytes(const IntVec x[4], uint8_t* p) {
    const __m512i low = _mm512_set1_epi32(255);
    __m512i a = _mm512_packus_epi32(_mm512_and_si512((__m512i)x[0], low), _mm512_and_si512((__m512i)x[1], low));
    __m512i b = _mm512_packus_epi32(_mm512_and_si512((__m512i)x[2], low), _mm512_and_si512((__m512i)x[3], low));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b)));
}
static inline float sum(Vec x) { return _mm512_reduce_add_ps(x); }
static inline float largest(Vec x) { return _mm512_reduce_max_ps(x); }
#else
static inline Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
static inline Vec smaller(Vec a, Vec b) { return _mm256_min_ps(a, b); }
static inline Vec floats_of(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
static inline void store_lowest_bytes(const IntVec x[4], uint8_t* p) {
    const __m256i low = _mm256_set1_epi32(255);
    __m256i a = _mm256_packus_epi32(_mm256_and_si256((__m256i)x[0], low), _mm256_and_si256((__m256i)x[1], low));
    __m256i b = _mm256_packus_epi32(_mm256_and_si256((__m256i)x[2], low), _mm256_and_si256((__m256i)x[3], low));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i*)p, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order));
}
static inline float sum(Vec x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float largest(Vec x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
#endif

// Adding 1.5 * 2^23 to a small float rounds it to an integer, which then stands in the lowest bits.
constexpr float ROUND = 12582912.f;

// 2^x for x up to 127, to 3e-6 of it; everything below 2^-126 gives 2^-126.
static inline Vec exp2(Vec x) {
    x = larger(x, all(-126.f));
    Vec shifted = x + ROUND;
    Vec f = x - (shifted - ROUND);  // -0.5 to 0.5
    Vec p = 9.5701014e-3f * f + 5.5917860e-2f;
    p = p * f + 2.4024745e-1f;
    p = p * f + 6.9312181e-1f;
    p = p * f + 9.9999926e-1f;
    return (Vec)((IntVec)p + ((IntVec)shifted << 23));
}

constexpr float LOG2_E = 1.44269504f;

enum Activation { GELU = 0, GELU_TANH = 1, RELU = 2 };

// x * Phi(x) = max(x, 0) - |x| * 2^q(|x|), q(a) = log2(erfc(a / sqrt 2) / 2): smooth, so a polynomial does. This one
// was fitted on [0, 6] for the least error of the result, 5e-7; beyond 6 the second term is below 1e-8.
static inline Vec gelu(Vec x) {
    Vec a = magnitude(x), b = smaller(a, all(6.f));
    Vec q = -4.7695606e-04f * b + 7.1131638e-03f;
    q = q * b - 5.1909088e-02f;
    q = q * b - 4.5988800e-01f;
    q = q * b - 1.1508462e+00f;
    q = q * b - 1.0000266e+00f;
    return larger(x, Vec{}) - a * exp2(q);
}

static inline Vec gelu_tanh(Vec x) {  // x * sigmoid(2 u)
    Vec u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x / (1.f + exp2(smaller(u * (-2.f * LOG2_E), all(100.f))));
}

// `n` is a multiple of 64.
static inline void activate(float* x, size_t n, int32_t kind) {
    const auto each = [=](auto function) {
        for (size_t i = 0; i < n; i += W) at(x + i) = function(at(x + i));
    };
    if (kind == GELU) return each([](Vec v) { return gelu(v); });
    if (kind == GELU_TANH) return each([](Vec v) { return gelu_tanh(v); });
    each([](Vec v) { return larger(v, Vec{}); });
}

// The product of a row's 64 floats with the orthogonal, symmetric Hadamard matrix: butterflies between vectors, then
// between lanes.
#if defined(__AVX512F__)
#define SWAP(x, i)                                                                                    \
    ((i) == 1   ? __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14) \
     : (i) == 2 ? __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13) \
     : (i) == 4 ? __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11) \
                : __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7))
#else
#define SWAP(x, i)                                                      \
    ((i) == 1   ? __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6) \
     : (i) == 2 ? __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5) \
                : __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3))
#endif

static inline Vec signs(int i) {
    Vec s;
    for (int j = 0; j < W; j++) s[j] = j & i ? -1.f : 1.f;
    return s;
}

static inline void rotate64(float* row) {
    constexpr int N = 64 / W;
    Vec x[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) x[i] = at(row + i * W);
#pragma GCC unroll 8
    for (int half = N / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < N; i++)
            if (!(i & half)) {
                Vec a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
        x[i] = SWAP(x[i], 1) + signs(1) * x[i];
        x[i] = SWAP(x[i], 2) + signs(2) * x[i];
        x[i] = SWAP(x[i], 4) + signs(4) * x[i];
        if (W == 16) x[i] = SWAP(x[i], 8) + signs(8) * x[i];
        at(row + i * W) = x[i] * 0.125f;
    }
}
#undef SWAP

// A row of size n as codes around 128, and its scale: x = scale * (code - 128).
static inline float quantize(const float* x, int n, uint8_t* codes) {
    Vec most = all(1e-30f);
    for (int i = 0; i < n; i += W) most = larger(most, magnitude(at(x + i)));
    float scale = largest(most) * (1.f / 127.f), inverse = 1.f / scale;
    for (int i = 0; i < n; i += 4 * W) {
        IntVec four[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) four[j] = (IntVec)(at(x + i + j * W) * inverse + (ROUND + 128.f));
        store_lowest_bytes(four, codes + i);
    }
    return scale;
}

static inline void layer_norm(float* x, int n, const float* scale, const float* bias, float epsilon) {
    Vec total{};
    for (int i = 0; i < n; i += W) total += at(x + i);
    float mean = sum(total) / n;
    Vec squares{};
    for (int i = 0; i < n; i += W) {
        Vec d = at(x + i) - mean;
        squares += d * d;
    }
    float inverse = 1.f / std::sqrt(sum(squares) / n + epsilon);
    for (int i = 0; i < n; i += W) at(x + i) = (at(x + i) - mean) * inverse * at(scale + i) + at(bias + i);
}
