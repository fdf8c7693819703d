// Four-bit weights back to bfloat16 or float32, and products of a few rows with them. Called by quant/nf4.py, which says
// what is computed; its dequantize_reference is the truth that the tests hold this file against, to the bit where weights
// are written.
//
// A block of weights has one scale, so its weights are among 16 numbers: those are computed and rounded once a block,
// and every weight is looked up among them. A vector unit looks 32 up at a time.
#include <cstdint>

#if !defined(__AVX2__) || !defined(__FMA__)
extern "C" int lorakeet_is_supported() { return 0; }
#else

// Scales are rounded after the product and after the sum, as bitsandbytes does: never fused into one operation.
#pragma GCC optimize("fp-contract=off")

#include <immintrin.h>

#include "scales.h"

namespace {

constexpr int CHUNK = 64;  // weights that one step of the loops below takes

// --- Sixteen scaled values, and weights looked up among them ---------------------------------------------------------

inline __m256i rounded_to_bf16(__m256 values) {  // to nearest, ties to even, in the lower halves
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), is_odd), 16);
}

inline __m256i bf16_values(const float *code, float scale) {
    const __m256 factor = _mm256_set1_ps(scale);
    const __m256i low = rounded_to_bf16(_mm256_mul_ps(_mm256_loadu_ps(code), factor));
    const __m256i high = rounded_to_bf16(_mm256_mul_ps(_mm256_loadu_ps(code + 8), factor));
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);  // packing works in halves
}

#if defined(__AVX512BW__)

struct ToBf16 {
    using number = uint16_t;
    __m512i values;

    ToBf16(const float *code, float scale) : values(_mm512_castsi256_si512(bf16_values(code, scale))) {}

    void chunk(const uint8_t *packed, number *out) const {
        for (int i = 0; i < 2; i++) {
            const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(packed + 16 * i)));
            const __m512i second = _mm512_slli_epi32(_mm512_and_si512(bytes, _mm512_set1_epi32(15)), 16);
            const __m512i both = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), second);
            _mm512_storeu_si512(out + 32 * i, _mm512_permutexvar_epi16(both, values));
        }
    }
};

struct ToFloat {
    using number = float;
    __m512 values;

    ToFloat(const float *code, float scale) : values(_mm512_mul_ps(_mm512_loadu_ps(code), _mm512_set1_ps(scale))) {}

    void sixteen(__m128i nibbles, number *out) const {
        _mm512_storeu_ps(out, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles), values));
    }

#else

struct ToBf16 {
    using number = uint16_t;
    __m256i low, high;  // the bytes of the sixteen numbers, in both halves

    ToBf16(const float *code, float scale) {
        const __m256i values = bf16_values(code, scale);
        const __m256i bytes =
            _mm256_packus_epi16(_mm256_and_si256(values, _mm256_set1_epi16(255)), _mm256_srli_epi16(values, 8));
        low = _mm256_permute4x64_epi64(bytes, 0x88);
        high = _mm256_permute4x64_epi64(bytes, 0xDD);
    }

    void chunk(const uint8_t *packed, number *out) const {
        const __m256i bytes = _mm256_loadu_si256((const __m256i *)packed), mask = _mm256_set1_epi8(15);
        const __m256i first = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
        const __m256i second = _mm256_and_si256(bytes, mask);
        const __m256i first_low = _mm256_shuffle_epi8(low, first), first_high = _mm256_shuffle_epi8(high, first);
        const __m256i second_low = _mm256_shuffle_epi8(low, second), second_high = _mm256_shuffle_epi8(high, second);
        // Bytes to numbers, numbers to pairs; each within the halves of a vector, so those are sorted at the end.
        const __m256i first_a = _mm256_unpacklo_epi8(first_low, first_high);
        const __m256i first_b = _mm256_unpackhi_epi8(first_low, first_high);
        const __m256i second_a = _mm256_unpacklo_epi8(second_low, second_high);
        const __m256i second_b = _mm256_unpackhi_epi8(second_low, second_high);
        const __m256i a = _mm256_unpacklo_epi16(first_a, second_a), b = _mm256_unpackhi_epi16(first_a, second_a);
        const __m256i c = _mm256_unpacklo_epi16(first_b, second_b), d = _mm256_unpackhi_epi16(first_b, second_b);
        _mm256_storeu_si256((__m256i *)out, _mm256_permute2x128_si256(a, b, 0x20));
        _mm256_storeu_si256((__m256i *)(out + 16), _mm256_permute2x128_si256(c, d, 0x20));
        _mm256_storeu_si256((__m256i *)(out + 32), _mm256_permute2x128_si256(a, b, 0x31));
        _mm256_storeu_si256((__m256i *)(out + 48), _mm256_permute2x128_si256(c, d, 0x31));
    }
};

struct ToFloat {
    using number = float;
    __m256 low, high;

    ToFloat(const float *code, float scale)
        : low(_mm256_mul_ps(_mm256_loadu_ps(code), _mm256_set1_ps(scale))),
          high(_mm256_mul_ps(_mm256_loadu_ps(code + 8), _mm256_set1_ps(scale))) {}

    void eight(__m128i nibbles, number *out) const {
        const __m256i at = _mm256_cvtepu8_epi32(nibbles);
        const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(at, 28));  // the fourth bit becomes the sign
        const __m256 if_low = _mm256_permutevar8x32_ps(low, at), if_high = _mm256_permutevar8x32_ps(high, at);
        _mm256_storeu_ps(out, _mm256_blendv_ps(if_low, if_high, is_high));
    }

    void sixteen(__m128i nibbles, number *out) const {
        eight(nibbles, out);
        eight(_mm_srli_si128(nibbles, 8), out + 8);
    }

#endif

    void chunk(const uint8_t *packed, number *out) const {
        const __m128i mask = _mm_set1_epi8(15);
        for (int i = 0; i < 2; i++) {
            const __m128i bytes = _mm_loadu_si128((const __m128i *)(packed + 16 * i));
            const __m128i first = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask), second = _mm_and_si128(bytes, mask);
            sixteen(_mm_unpacklo_epi8(first, second), out + 32 * i);
            sixteen(_mm_unpackhi_epi8(first, second), out + 32 * i + 16);
        }
    }
};

template <class To>
void dequantize(typename To::number *out, const uint8_t *packed, const float *code, const Scales &scales,
                int64_t first_block, int64_t num_blocks, int64_t blocksize) {
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < num_blocks; block++) {
        const To to(code, scales.of(first_block + block));
        for (int64_t i = block * blocksize; i < (block + 1) * blocksize; i += CHUNK) to.chunk(packed + i / 2, out + i);
    }
}

// --- Products of a few rows: a generated token needs every weight once, so none is written -------------------------------

constexpr int FEW_ROWS = 8;

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

// A sum of products, of a chunk's weights at a time: in float32 from bf16 pairs.
struct SumOfBf16 {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();

    void add(const uint16_t *weights, const uint16_t *x) {
        even = _mm512_dpbf16_ps(even, (__m512bh)_mm512_loadu_si512(weights), (__m512bh)_mm512_loadu_si512(x));
        odd = _mm512_dpbf16_ps(odd, (__m512bh)_mm512_loadu_si512(weights + 32), (__m512bh)_mm512_loadu_si512(x + 32));
    }
    uint16_t total() const {
        return _mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set1_ps(_mm512_reduce_add_ps(_mm512_add_ps(even, odd)))), 0);
    }
};

#endif

struct SumOfFloats {
    static constexpr int LANES = 8;
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};

    void add(const float *weights, const float *x) {
        for (int i = 0; i < CHUNK; i += LANES) {
            __m256 &sum = sums[i / LANES % 4];
            sum = _mm256_fmadd_ps(_mm256_loadu_ps(weights + i), _mm256_loadu_ps(x + i), sum);
        }
    }
    float total() const {
        const __m256 eight = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
};

// out[T][O] = x[T][I] times the transpose of the weights [O][I]
template <class To, class Sum, int T>
void multiply_rows(typename To::number *out, const typename To::number *x, const uint8_t *packed, const float *code,
                   const Scales &scales, int64_t O, int64_t I, int64_t blocksize) {
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < O; o++) {
        Sum sums[T];
        for (int64_t i = 0; i < I; i += blocksize) {
            const To to(code, scales.of((o * I + i) / blocksize));
            for (int64_t at = i; at < i + blocksize; at += CHUNK) {
                typename To::number weights[CHUNK];
                to.chunk(packed + (o * I + at) / 2, weights);
#pragma GCC unroll 8
                for (int t = 0; t < T; t++) sums[t].add(weights, x + t * I + at);
            }
        }
        for (int t = 0; t < T; t++) out[t * O + o] = sums[t].total();
    }
}

// A number of rows known to the compiler keeps their sums in registers.
template <class To, class Sum, int T = FEW_ROWS, class... Rest>
void multiply(int rows, typename To::number *out, const typename To::number *x, Rest... rest) {
    if (rows == T)
        multiply_rows<To, Sum, T>(out, x, rest...);
    else if constexpr (T > 1)
        multiply<To, Sum, T - 1>(rows, out, x, rest...);
}

}  // namespace

extern "C" {

int lorakeet_is_supported() { return 1; }

// The most rows that `lorakeet_multiply` takes of a type; 0 where this CPU has no products of it.
int lorakeet_most_rows(int is_bf16) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    return FEW_ROWS;
#else
    return is_bf16 ? 0 : FEW_ROWS;
#endif
}

// out (T, O) = x (T, I) times the transpose of the weights (O, I), whose blocks lie within rows; the rest as below.
void lorakeet_multiply(void *out, const void *x, int is_bf16, const uint8_t *packed, const float *code,
                       const float *absmax, const uint8_t *indices, const float *table, const float *nested_absmax,
                       const float *offset, int T, int64_t O, int64_t I, int64_t blocksize) {
    const Scales scales{absmax, indices, table, nested_absmax, offset};
    if (!is_bf16)
        multiply<ToFloat, SumOfFloats>(T, (float *)out, (const float *)x, packed, code, scales, O, I, blocksize);
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    else
        multiply<ToBf16, SumOfBf16>(T, (uint16_t *)out, (const uint16_t *)x, packed, code, scales, O, I, blocksize);
#endif
}

// Writes the weights of `num_blocks` blocks, whose bytes begin at `packed`, to `out`; `first_block` is the number of
// the first among the scales. `absmax` is null where the scales are quantised too. blocksize is a multiple of 64.
void lorakeet_dequantize(void *out, int is_bf16, const uint8_t *packed, const float *code, const float *absmax,
                         const uint8_t *indices, const float *table, const float *nested_absmax, const float *offset,
                         int64_t first_block, int64_t num_blocks, int64_t blocksize) {
    const Scales scales{absmax, indices, table, nested_absmax, offset};
    if (is_bf16)
        dequantize<ToBf16>((uint16_t *)out, packed, code, scales, first_block, num_blocks, blocksize);
    else
        dequantize<ToFloat>((float *)out, packed, code, scales, first_block, num_blocks, blocksize);
}
}
#endif
