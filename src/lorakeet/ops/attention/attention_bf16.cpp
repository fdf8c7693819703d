// Causal attention of bf16 heads over documents that lie end to end, forward and backward: blocks of 64 x 64 scores
// that never leave the cache, products in fp32 from bf16 pairs (AVX512_BF16). Called by ops/attention/packed.py, which says
// what is computed; its attention_reference is the truth that the tests hold this file against.
// Source of the algorithm: Dao 2023, FlashAttention-2, arXiv:2307.08691.
//
// "Packed" matrices hold bf16 pairs as 32-bit words, because one instruction multiplies and adds pairs:
//   rows    [m][k/2]  pairs of neighbours in a row: any row-major bf16 matrix is this already
//   columns [k/2][n]  pairs of neighbours in a column
#include <cstdint>

#if !defined(__AVX512BF16__)
extern "C" int lorakeet_is_supported() { return 0; }
#else

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

using element = uint16_t;

#include "attention.h"

namespace {

using word = uint32_t;

// --- Products --------------------------------------------------------------------------------------------------------

// C[M][16 N] (+)= A[M][pairs] B[pairs][16 N]; M and N are small enough for C to stay in registers.
template <int M, int N, bool ADD>
void product_tile(float *c, int ldc, const word *a, int lda, const word *b, int ldb, int pairs) {
    __m512 sum[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sum[m][n] = ADD ? _mm512_loadu_ps(c + m * ldc + 16 * n) : _mm512_setzero_ps();
    for (int p = 0; p < pairs; p++) {
        __m512bh row[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) row[n] = (__m512bh)_mm512_loadu_si512(b + p * ldb + 16 * n);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const __m512bh left = (__m512bh)_mm512_set1_epi32(a[m * lda + p]);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sum[m][n] = _mm512_dpbf16_ps(sum[m][n], left, row[n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) _mm512_storeu_ps(c + m * ldc + 16 * n, sum[m][n]);
}

template <int N, bool ADD>
void product_columns(float *c, int ldc, const word *a, int lda, const word *b, int ldb, int rows, int pairs) {
    constexpr int M = N == 4 ? 6 : 8;
    int m = 0;
    for (; m + M <= rows; m += M) product_tile<M, N, ADD>(c + m * ldc, ldc, a + m * lda, lda, b, ldb, pairs);
    for (; m + 2 <= rows; m += 2) product_tile<2, N, ADD>(c + m * ldc, ldc, a + m * lda, lda, b, ldb, pairs);
    if (m < rows) product_tile<1, N, ADD>(c + m * ldc, ldc, a + m * lda, lda, b, ldb, pairs);
}

// C[rows][columns] (+)= A[rows][pairs] B[pairs][columns]; columns are rounded up to 16.
template <bool ADD>
void product(float *c, int ldc, const word *a, int lda, const word *b, int ldb, int rows, int columns, int pairs) {
    for (int n = 0; n < columns; n += 64) {
        switch ((std::min(64, columns - n) + 15) / 16) {
            case 1: product_columns<1, ADD>(c + n, ldc, a, lda, b + n, ldb, rows, pairs); break;
            case 2: product_columns<2, ADD>(c + n, ldc, a, lda, b + n, ldb, rows, pairs); break;
            case 3: product_columns<3, ADD>(c + n, ldc, a, lda, b + n, ldb, rows, pairs); break;
            default: product_columns<4, ADD>(c + n, ldc, a, lda, b + n, ldb, rows, pairs);
        }
    }
}

// --- Elements --------------------------------------------------------------------------------------------------------

// 2^x to 3e-6 relative, a hundredth of what bf16 resolves: Taylor's series of degree 5 on [-1/2, 1/2].
inline __m512 exp2_ps(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(1.3333558e-3f);
    for (float c : {9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(c));
    return _mm512_scalef_ps(sum, whole);
}

inline __m512 to_float(__m256i bf16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16)); }
inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// Lanes of the 16 from `at` on that lie in [first, end).
inline __mmask16 lanes(int at, int first, int end) {
    const auto below = [at](int n) { return (1u << std::clamp(n - at, 0, 16)) - 1u; };
    return (__mmask16)(below(end) & ~below(first));
}

// Transpose 16 x 16 words; rows and columns beyond those given are zero.
void transpose16(word *to, int ldt, const word *from, int ldf, int rows) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = i < rows ? _mm512_loadu_si512(from + i * ldf) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 16; j += 8) {
            b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
            b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
        }
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(to + i * ldt, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512(to + (i + 8) * ldt, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
        _mm512_storeu_si512(to + (i + 4) * ldt, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
        _mm512_storeu_si512(to + (i + 12) * ldt, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
    }
}

// --- Tokens of one head ----------------------------------------------------------------------------------------------

inline const word *words(const Rows &rows, int token) { return (const word *)rows.at(token); }

// rows [tokens][E/2] -> columns of the transpose [E/2][BLOCK], zero beyond the block
void pack_transposed(word *to, const Rows &rows, const Block &block, int E) {
    for (int i = 0; i < BLOCK; i += 16)
        for (int e = 0; e < E / 2; e += 16)
            transpose16(to + e * BLOCK + i, BLOCK, words(rows, block.token) + i * (rows.stride / 2) + e, rows.stride / 2,
                        std::clamp(block.size - i, 0, 16));
}

// rows [tokens][E] -> columns [BLOCK/2][E], zero beyond the block
void pack_columns(word *to, const Rows &rows, const Block &block, int E) {
    for (int i = 0; i < block.size; i += 2)
        for (int e = 0; e < E; e += 16) {
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((__m256i *)(rows.at(block.token + i) + e)));
            __m512i high = _mm512_setzero_si512();
            if (i + 1 < block.size)
                high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((__m256i *)(rows.at(block.token + i + 1) + e)));
            _mm512_storeu_si512(to + (i / 2) * E + e, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

// --- Forward ---------------------------------------------------------------------------------------------------------

// Turn the scores of some queries into probabilities relative to the running maximum, and bring what was summed up
// under an earlier maximum to the new one; `total` has a sum for each of 16 lanes. ALL: every query sees every key.
template <bool ALL>
void online_softmax(const Problem &p, const Block &queries, const Block &keys, float scale, const float *scores,
                    uint16_t *probs, float *most, float *total, float *out) {
    const int width = (keys.size + 15) / 16 * 16;
    for (int i = 0; i < queries.size; i++) {
        const int query = queries.position + i - keys.position;
        const int first = std::max(0, query - p.window + 1), end = std::min(keys.size, query + 1);
        const auto seen = [=](int j) { return ALL ? lanes(j, 0, keys.size) : lanes(j, first, end); };
        __m512 row[BLOCK / 16], high = _mm512_set1_ps(most[i]);
        for (int j = 0; j < width; j += 16) {
            row[j / 16] = _mm512_mul_ps(_mm512_loadu_ps(scores + i * BLOCK + j), _mm512_set1_ps(scale * LOG2E));
            high = _mm512_mask_max_ps(high, seen(j), high, row[j / 16]);
        }
        const float now = _mm512_reduce_max_ps(high);
        const float fade = most[i] == now ? 1.0f : std::exp2(most[i] - now);
        most[i] = now;
        __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(total + 16 * i), _mm512_set1_ps(fade));
        for (int j = 0; j < width; j += 16) {
            const __m512 weight = _mm512_maskz_mov_ps(seen(j), exp2_ps(_mm512_sub_ps(row[j / 16], _mm512_set1_ps(now))));
            sum = _mm512_add_ps(sum, weight);
            _mm256_storeu_si256((__m256i *)(probs + i * BLOCK + j), to_bf16(weight));
        }
        _mm512_storeu_ps(total + 16 * i, sum);
        if (fade != 1.0f)
            for (int e = 0; e < p.E; e += 16)
                _mm512_storeu_ps(out + i * p.E + e, _mm512_mul_ps(_mm512_loadu_ps(out + i * p.E + e), _mm512_set1_ps(fade)));
    }
}

void forward_head(const Problem &p, const std::vector<Block> &blocks, const Head &head) {
    thread_local std::vector<word> packed;
    const int E = p.E, size = BLOCK * E / 2;
    word *keys = scratch(packed, 2 * size * blocks.size()), *values = keys + size * blocks.size();
    for (size_t b = 0; b < blocks.size(); b++) {
        pack_transposed(keys + b * size, head.k, blocks[b], E);
        pack_columns(values + b * size, head.v, blocks[b], E);
    }
    alignas(64) float scores[BLOCK * BLOCK], most[BLOCK], total[BLOCK * 16], out[BLOCK * 256];
    alignas(64) uint16_t probs[BLOCK * BLOCK];
    for (size_t i = 0; i < blocks.size(); i++) {
        const Block &queries = blocks[i];
        // Smaller than any score, and still finite: the first rescaling multiplies zeros by zero.
        std::fill_n(most, BLOCK, -1e30f);
        std::fill_n(total, BLOCK * 16, 0.0f);
        std::fill_n(out, BLOCK * E, 0.0f);
        for (size_t b = 0; b <= i; b++) {
            if (!p.is_visible(queries, blocks[b])) continue;
            product<false>(scores, BLOCK, words(head.q, queries.token), head.q.stride / 2, keys + b * size, BLOCK,
                           queries.size, blocks[b].size, E / 2);
            const auto softmax = p.is_all_visible(queries, blocks[b]) ? online_softmax<true> : online_softmax<false>;
            softmax(p, queries, blocks[b], head.scale, scores, probs, most, total, out);
            product<true>(out, E, (word *)probs, BLOCK / 2, values + b * size, E, queries.size, E,
                          (blocks[b].size + 1) / 2);
        }
        for (int r = 0; r < queries.size; r++) {
            const float sum = _mm512_reduce_add_ps(_mm512_load_ps(total + 16 * r));
            head.lse[queries.token + r] = most[r] + std::log2(sum);
            for (int e = 0; e < E; e += 16)
                _mm256_storeu_si256((__m256i *)(head.out.at(queries.token + r) + e),
                                    to_bf16(_mm512_div_ps(_mm512_loadu_ps(out + r * E + e), _mm512_set1_ps(sum))));
        }
    }
}

// --- Backward --------------------------------------------------------------------------------------------------------

// What is read of one block of queries, over and over.
struct Queries {
    std::vector<word> q_transposed, q_columns, grad_transposed, grad_columns;
    std::vector<float> delta, grad_transposed_sum;
};

// Scores and the gradient of the probabilities, both [keys][queries] -> probabilities, and the gradient of the scores
// by rows and by columns. ALL: every query sees every key.
template <bool ALL>
void score_gradients(const Problem &p, const Block &queries, const Block &keys, const float *scores, const float *dprobs,
                     const float *lse, const float *delta, float scale, uint16_t *probs, uint16_t *dscores, word *columns) {
    const int width = (queries.size + 15) / 16 * 16;
    for (int j = 0; j < width; j += 16) {
        const __mmask16 real = lanes(j, 0, queries.size);
        const __m512 lse_j = _mm512_maskz_loadu_ps(real, lse + j), delta_j = _mm512_maskz_loadu_ps(real, delta + j);
        __m512i even = _mm512_setzero_si512();
        for (int i = 0; i < keys.size; i++) {
            const int key = keys.position + i - queries.position;
            // A window may be larger than any number of tokens: it must not overflow.
            const int end = (int)std::min<int64_t>(queries.size, (int64_t)key + p.window);
            const __mmask16 seeing = ALL ? real : lanes(j, std::max(0, key), end);
            const __m512 score = _mm512_loadu_ps(scores + i * BLOCK + j);
            const __m512 prob =
                _mm512_maskz_mov_ps(seeing, exp2_ps(_mm512_fmsub_ps(score, _mm512_set1_ps(scale * LOG2E), lse_j)));
            const __m512 dscore = _mm512_mul_ps(_mm512_mul_ps(prob, _mm512_set1_ps(scale)),
                                                _mm512_sub_ps(_mm512_loadu_ps(dprobs + i * BLOCK + j), delta_j));
            const __m256i rounded = to_bf16(dscore);
            _mm256_storeu_si256((__m256i *)(probs + i * BLOCK + j), to_bf16(prob));
            _mm256_storeu_si256((__m256i *)(dscores + i * BLOCK + j), rounded);
            const __m512i wide = _mm512_cvtepu16_epi32(rounded);
            if (i % 2 == 0) even = wide;
            if (i % 2 == 1 || i + 1 == keys.size)
                _mm512_storeu_si512(columns + (i / 2) * BLOCK + j,
                                    i % 2 ? _mm512_or_si512(even, _mm512_slli_epi32(wide, 16)) : even);
        }
    }
}

// delta: for each query the product of its output and the output's gradient.
void output_times_gradient(float *delta, const Rows &out, const Rows &grad, const Block &block, int E) {
    for (int r = 0; r < block.size; r++) {
        __m512 sum = _mm512_setzero_ps();
        for (int e = 0; e < E; e += 16)
            sum = _mm512_fmadd_ps(to_float(_mm256_loadu_si256((__m256i *)(out.at(block.token + r) + e))),
                                  to_float(_mm256_loadu_si256((__m256i *)(grad.at(block.token + r) + e))), sum);
        delta[r] = _mm512_reduce_add_ps(sum);
    }
}

void backward_head(const Problem &p, const std::vector<Block> &blocks, const Head &head, const HeadGrad &grad) {
    thread_local Queries memory;
    const int E = p.E, size = BLOCK * E / 2, num_blocks = blocks.size();
    word *q_transposed = scratch(memory.q_transposed, size * num_blocks);
    word *q_columns = scratch(memory.q_columns, size * num_blocks);
    word *grad_transposed = scratch(memory.grad_transposed, size * num_blocks);
    word *grad_columns = scratch(memory.grad_columns, size * num_blocks);
    float *delta = scratch(memory.delta, BLOCK * num_blocks);
    float *dq = scratch(memory.grad_transposed_sum, BLOCK * E * num_blocks);  // [block][E][BLOCK]
    std::fill_n(dq, BLOCK * E * num_blocks, 0.0f);
    for (int b = 0; b < num_blocks; b++) {
        pack_transposed(q_transposed + b * size, head.q, blocks[b], E);
        pack_columns(q_columns + b * size, head.q, blocks[b], E);
        pack_transposed(grad_transposed + b * size, grad.out, blocks[b], E);
        pack_columns(grad_columns + b * size, grad.out, blocks[b], E);
        output_times_gradient(delta + b * BLOCK, head.out, grad.out, blocks[b], E);
    }
    alignas(64) float scores[BLOCK * BLOCK], dprobs[BLOCK * BLOCK];
    alignas(64) uint16_t probs[BLOCK * BLOCK], dscores[BLOCK * BLOCK];
    alignas(64) word columns[BLOCK / 2 * BLOCK], key_columns[BLOCK / 2 * 256], key_rows[256 * BLOCK / 2];
    for (int b = 0; b < num_blocks; b++) {
        const Block &keys = blocks[b];
        float *dk = grad.k + (int64_t)keys.token * E, *dv = grad.v + (int64_t)keys.token * E;
        std::fill_n(dk, keys.size * E, 0.0f);
        std::fill_n(dv, keys.size * E, 0.0f);
        // Keys transposed, [E][pairs of tokens].
        std::fill_n(key_columns, BLOCK / 2 * E, 0u);
        pack_columns(key_columns, head.k, keys, E);
        for (int i = 0; i < BLOCK / 2; i += 16)
            for (int e = 0; e < E; e += 16)
                transpose16(key_rows + e * (BLOCK / 2) + i, BLOCK / 2, key_columns + i * E + e, E, 16);
        for (int i = b; i < num_blocks; i++) {
            const Block &queries = blocks[i];
            if (!p.is_visible(queries, keys)) continue;
            const int pairs = (queries.size + 1) / 2;
            product<false>(scores, BLOCK, words(head.k, keys.token), head.k.stride / 2, q_transposed + i * size, BLOCK,
                           keys.size, queries.size, E / 2);
            product<false>(dprobs, BLOCK, words(head.v, keys.token), head.v.stride / 2, grad_transposed + i * size, BLOCK,
                           keys.size, queries.size, E / 2);
            const auto differentiate = p.is_all_visible(queries, keys) ? score_gradients<true> : score_gradients<false>;
            differentiate(p, queries, keys, scores, dprobs, head.lse + queries.token, delta + i * BLOCK, head.scale, probs,
                          dscores, columns);
            product<true>(dv, E, (word *)probs, BLOCK / 2, grad_columns + i * size, E, keys.size, E, pairs);
            product<true>(dk, E, (word *)dscores, BLOCK / 2, q_columns + i * size, E, keys.size, E, pairs);
            product<true>(dq + i * BLOCK * E, BLOCK, key_rows, BLOCK / 2, columns, BLOCK, E, queries.size,
                          (keys.size + 1) / 2);
        }
    }
    alignas(64) float turned[16 * 16];
    for (int b = 0; b < num_blocks; b++)
        for (int e = 0; e < E; e += 16)
            for (int i = 0; i < blocks[b].size; i += 16) {
                transpose16((word *)turned, 16, (word *)dq + b * BLOCK * E + e * BLOCK + i, BLOCK, 16);
                for (int r = 0; r < std::min(16, blocks[b].size - i); r++)
                    _mm256_storeu_si256((__m256i *)(grad.q.at(blocks[b].token + i + r) + e),
                                        to_bf16(_mm512_load_ps(turned + 16 * r)));
            }
}

void sum_groups(const Problem &p, const float *per_head, uint16_t *grad) {
    const int groups = p.H / p.K;
#pragma omp parallel for
    for (int t = 0; t < p.T; t++)
        for (int h = 0; h < p.K; h++)
            for (int e = 0; e < p.E; e += 16) {
                __m512 sum = _mm512_setzero_ps();
                for (int g = 0; g < groups; g++)
                    sum = _mm512_add_ps(sum, _mm512_loadu_ps(per_head + ((int64_t)(h * groups + g) * p.T + t) * p.E + e));
                _mm256_storeu_si256((__m256i *)(grad + ((int64_t)t * p.K + h) * p.E + e), to_bf16(sum));
            }
}

}  // namespace

#endif
