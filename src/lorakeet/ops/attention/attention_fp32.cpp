// Causal attention of fp32 heads over documents that lie end to end, forward and backward: blocks of 64 x 64 scores
// that never leave the cache. Called by ops/attention/packed.py, which says what is computed; its attention_reference is the
// truth that the tests hold this file against. For CPUs without bf16 products; attention_bf16.cpp is for those with them.
// Source of the algorithm: Dao 2023, FlashAttention-2, arXiv:2307.08691.
#include <cstdint>

#if !defined(__AVX2__) || !defined(__FMA__)
extern "C" int lorakeet_is_supported() { return 0; }
#else

#include <cmath>
#include <vector>

using element = float;

#include "attention.h"
#include "vectors.h"

namespace {

// --- Products --------------------------------------------------------------------------------------------------------

// C[M][N vectors] (+)= A[M][depth] B[depth][N vectors], or with the transpose of A[depth][M] where it is TURNED; M and
// N are small enough for C to stay in registers.
template <int M, int N, bool ADD, bool TURNED>
inline void product_tile(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, int depth) {
    V sum[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) sum[m][n] = ADD ? at(c + m * ldc + n * LANES) : V{};
    for (int p = 0; p < depth; p++) {
        V row[N];
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) row[n] = at(b + p * ldb + n * LANES);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const V left = all(TURNED ? a[p * lda + m] : a[m * lda + p]);
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) sum[m][n] += left * row[n];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) at(c + m * ldc + n * LANES) = sum[m][n];
}

template <int N, bool ADD, bool TURNED>
void product_columns(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, int rows, int depth) {
    constexpr int M = 6;
    const int64_t step = TURNED ? 1 : lda;
    int m = 0;
    for (; m + M <= rows; m += M) product_tile<M, N, ADD, TURNED>(c + m * ldc, ldc, a + m * step, lda, b, ldb, depth);
    for (; m < rows; m++) product_tile<1, N, ADD, TURNED>(c + m * ldc, ldc, a + m * step, lda, b, ldb, depth);
}

// C[rows][columns] (+)= A[rows][depth] B[depth][columns]; columns are rounded up to a vector.
template <bool ADD, bool TURNED = false>
void product(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, int rows, int columns,
             int depth) {
    int n = 0;
    for (; n + LANES < columns; n += 2 * LANES)
        product_columns<2, ADD, TURNED>(c + n, ldc, a, lda, b + n, ldb, rows, depth);
    if (n < columns) product_columns<1, ADD, TURNED>(c + n, ldc, a, lda, b + n, ldb, rows, depth);
}

// --- Elements --------------------------------------------------------------------------------------------------------

// Which of the lanes from `j` on lie in [first, end).
inline I lanes(int j, int first, int end) {
    I index;
    for (int i = 0; i < LANES; i++) index[i] = j + i;
    return (index >= first) & (index < end);
}

// rows [tokens][E] -> [E][BLOCK], zero beyond the block
void transpose(float *to, const Rows &rows, const Block &block, int E) {
    for (int e = 0; e < E; e++) {
        for (int i = 0; i < block.size; i++) to[e * BLOCK + i] = rows.at(block.token + i)[e];
        for (int i = block.size; i < BLOCK; i++) to[e * BLOCK + i] = 0;
    }
}

// The keys that a query sees among those of a block: [first, end).
struct Seen {
    int first, end;
    Seen(const Problem &p, const Block &queries, int i, const Block &keys) {
        const int query = queries.position + i - keys.position;
        // A window may be larger than any number of tokens: it must not overflow.
        first = (int)std::max<int64_t>(0, (int64_t)query - p.window + 1);
        end = std::min(keys.size, query + 1);
    }
};

// --- Forward ---------------------------------------------------------------------------------------------------------

// Turn the scores of some queries into probabilities relative to the running maximum, and bring what was summed up
// under an earlier maximum to the new one.
void online_softmax(const Problem &p, const Block &queries, const Block &keys, float scale, float *scores, float *most,
                    float *total, const Rows &out) {
    for (int i = 0; i < queries.size; i++) {
        const Seen seen(p, queries, i, keys);
        float *row = scores + i * BLOCK;
        V high = all(most[i]);
        for (int j = 0; j < keys.size; j += LANES) {
            const V score = lanes(j, seen.first, seen.end) ? at(row + j) * (scale * LOG2E) : high;
            at(row + j) = score;
            high = score > high ? score : high;
        }
        float now = most[i];
        for (int l = 0; l < LANES; l++) now = std::max(now, high[l]);
        const float fade = most[i] == now ? 1.0f : std::exp2(most[i] - now);
        most[i] = now;
        V sum{};
        for (int j = 0; j < keys.size; j += LANES) {
            const V weight = lanes(j, seen.first, seen.end) ? exp2_of(at(row + j) - now) : V{};
            sum += weight;
            at(row + j) = weight;
        }
        total[i] = total[i] * fade + sum_of(sum);
        if (fade != 1.0f)
            for (int e = 0; e < p.E; e += LANES) at(out.at(queries.token + i) + e) *= fade;
    }
}

void forward_head(const Problem &p, const std::vector<Block> &blocks, const Head &head) {
    thread_local std::vector<float> memory;
    const int E = p.E, size = BLOCK * E;
    float *keys = scratch(memory, size * blocks.size());
    for (size_t b = 0; b < blocks.size(); b++) transpose(keys + b * size, head.k, blocks[b], E);
    float scores[BLOCK * BLOCK], most[BLOCK], total[BLOCK];
    for (size_t i = 0; i < blocks.size(); i++) {
        const Block &queries = blocks[i];
        // Smaller than any score, and still finite: the first rescaling multiplies zeros by zero.
        std::fill_n(most, BLOCK, -1e30f);
        std::fill_n(total, BLOCK, 0.0f);
        for (int r = 0; r < queries.size; r++) std::fill_n(head.out.at(queries.token + r), E, 0.0f);
        for (size_t b = 0; b <= i; b++) {
            if (!p.is_visible(queries, blocks[b])) continue;
            product<false>(scores, BLOCK, head.q.at(queries.token), head.q.stride, keys + b * size, BLOCK, queries.size,
                           blocks[b].size, E);
            online_softmax(p, queries, blocks[b], head.scale, scores, most, total, head.out);
            product<true>(head.out.at(queries.token), head.out.stride, scores, BLOCK, head.v.at(blocks[b].token),
                          head.v.stride, queries.size, E, blocks[b].size);
        }
        for (int r = 0; r < queries.size; r++) {
            head.lse[queries.token + r] = most[r] + std::log2(total[r]);
            for (int e = 0; e < E; e += LANES) at(head.out.at(queries.token + r) + e) /= total[r];
        }
    }
}

// --- Backward --------------------------------------------------------------------------------------------------------

// Scores and the gradient of the probabilities -> probabilities, and the gradient of the scores.
void score_gradients(const Problem &p, const Block &queries, const Block &keys, float *scores, float *dprobs,
                     const float *lse, const float *delta, float scale) {
    for (int i = 0; i < queries.size; i++) {
        const Seen seen(p, queries, i, keys);
        for (int j = 0; j < keys.size; j += LANES) {
            V &score = at(scores + i * BLOCK + j), &dprob = at(dprobs + i * BLOCK + j);
            score = lanes(j, seen.first, seen.end) ? exp2_of(score * (scale * LOG2E) - lse[i]) : V{};
            dprob = score * scale * (dprob - delta[i]);
        }
    }
}

// delta: for each token the product of its output and the output's gradient.
void output_times_gradient(float *delta, const Rows &out, const Rows &grad, const Block &block, int E) {
    for (int r = 0; r < block.size; r++) {
        V sum{};
        for (int e = 0; e < E; e += LANES) sum += at(out.at(block.token + r) + e) * at(grad.at(block.token + r) + e);
        delta[r] = sum_of(sum);
    }
}

void backward_head(const Problem &p, const std::vector<Block> &blocks, const Head &head, const HeadGrad &grad) {
    thread_local std::vector<float> memory;
    const int E = p.E, num_blocks = blocks.size();
    float *delta = scratch(memory, BLOCK * num_blocks + 2 * BLOCK * E);
    float *keys_turned = delta + BLOCK * num_blocks, *values_turned = keys_turned + BLOCK * E;
    for (int b = 0; b < num_blocks; b++) {
        output_times_gradient(delta + b * BLOCK, head.out, grad.out, blocks[b], E);
        for (int r = 0; r < blocks[b].size; r++) std::fill_n(grad.q.at(blocks[b].token + r), E, 0.0f);
    }
    float scores[BLOCK * BLOCK], dprobs[BLOCK * BLOCK];
    for (int b = 0; b < num_blocks; b++) {
        const Block &keys = blocks[b];
        float *dk = grad.k + (int64_t)keys.token * E, *dv = grad.v + (int64_t)keys.token * E;
        std::fill_n(dk, keys.size * E, 0.0f);
        std::fill_n(dv, keys.size * E, 0.0f);
        transpose(keys_turned, head.k, keys, E);
        transpose(values_turned, head.v, keys, E);
        for (int i = b; i < num_blocks; i++) {
            const Block &queries = blocks[i];
            if (!p.is_visible(queries, keys)) continue;
            const float *q = head.q.at(queries.token), *dout = grad.out.at(queries.token);
            product<false>(scores, BLOCK, q, head.q.stride, keys_turned, BLOCK, queries.size, keys.size, E);
            product<false>(dprobs, BLOCK, dout, grad.out.stride, values_turned, BLOCK, queries.size, keys.size, E);
            score_gradients(p, queries, keys, scores, dprobs, head.lse + queries.token, delta + i * BLOCK, head.scale);
            product<true, true>(dv, E, scores, BLOCK, dout, grad.out.stride, keys.size, E, queries.size);
            product<true, true>(dk, E, dprobs, BLOCK, q, head.q.stride, keys.size, E, queries.size);
            product<true>(grad.q.at(queries.token), grad.q.stride, dprobs, BLOCK, head.k.at(keys.token), head.k.stride,
                          queries.size, E, keys.size);
        }
    }
}

void sum_groups(const Problem &p, const float *per_head, float *grad) {
    const int groups = p.H / p.K;
#pragma omp parallel for
    for (int t = 0; t < p.T; t++)
        for (int h = 0; h < p.K; h++)
            for (int e = 0; e < p.E; e += LANES) {
                V sum{};
                for (int g = 0; g < groups; g++) sum += at(per_head + ((int64_t)(h * groups + g) * p.T + t) * p.E + e);
                at(grad + ((int64_t)t * p.K + h) * p.E + e) = sum;
            }
}

}  // namespace

#endif
