// Vectors of floats as wide as the CPU has them, and what is computed with them element by element.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float V __attribute__((vector_size(4 * LANES), aligned(4), may_alias));  // wherever floats lie
typedef int32_t I __attribute__((vector_size(4 * LANES)));

inline V &at(float *p) { return *(V *)p; }
inline const V &at(const float *p) { return *(const V *)p; }
inline V all(float x) { return x - V{}; }

// 2^x for x <= 0, to 1e-7 relative: Taylor's series of degree 7 on [-1/2, 1/2].
inline V exp2_of(V x) {
    x = x > -126.0f ? x : all(-126.0f);  // smaller ones are no longer normal numbers
    const V magic = all(0x1.8p23f), shifted = x + magic;  // adding it rounds to whole numbers, in the last bits
    const V r = x - (shifted - magic);
    V sum = all(1.52527338e-5f);
    for (float c : {1.54035304e-4f, 1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.0f})
        sum = sum * r + c;
    return (V)((I)sum + ((I)shifted << 23));
}

inline float sum_of(__m256 x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#if defined(__AVX512F__)
inline float sum_of(V x) { return _mm512_reduce_add_ps((__m512)x); }
#endif

}  // namespace
