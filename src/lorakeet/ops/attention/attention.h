// What the attention kernels for bf16 and fp32 share: which blocks of tokens see which, the tensors of one head, and the
// functions that Python calls. Whoever includes this has said what an `element` of the tensors is, and defines
// forward_head, backward_head and sum_groups.
//
// A document is a chain of segments: its own and those it continues. A block is up to 64 tokens of one segment.
// One task is a tree of segments and a query head; tasks share nothing that they write.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int BLOCK = 64;
constexpr float LOG2E = 1.44269504f;

struct Block {
    int segment, token, size, position;
    int end_position() const { return position + size; }
};

struct Problem {
    int T, H, K, E, window;
    const int *borders, *parents;  // as in Python: borders[s], borders[s + 1]; parents[s + 1]
    std::vector<std::vector<Block>> trees;

    Problem(int T, int H, int K, int E, int window, const int *borders, const int *parents, int num_segments)
        : T(T), H(H), K(K), E(E), window(window), borders(borders), parents(parents) {
        std::vector<int> tree(num_segments), end(num_segments);
        for (int s = 0; s < num_segments; s++) {
            const int parent = parents[s + 1], start = parent < 0 ? 0 : end[parent], size = borders[s + 1] - borders[s];
            if (parent < 0) trees.emplace_back();
            tree[s] = parent < 0 ? (int)trees.size() - 1 : tree[parent];
            end[s] = start + size;
            for (int i = 0; i < size; i += BLOCK)
                trees[tree[s]].push_back({s, borders[s] + i, std::min(BLOCK, size - i), start + i});
        }
    }

    // Whether every query of the one block sees every key of the other, where `is_visible` holds.
    bool is_all_visible(const Block &queries, const Block &keys) const {
        return keys.end_position() <= queries.position + 1 && queries.end_position() - 1 - keys.position < window;
    }

    // Whether some query of the one block sees some key of the other.
    bool is_visible(const Block &queries, const Block &keys) const {
        if (keys.position >= queries.end_position() || queries.position - keys.end_position() + 1 >= window) return false;
        int segment = queries.segment;
        while (segment > keys.segment) segment = parents[segment + 1];
        return segment == keys.segment;
    }
};

// Memory of a thread, kept between calls.
template <typename V>
V *scratch(std::vector<V> &memory, size_t size) {
    if (memory.size() < size) memory.resize(size);
    return memory.data();
}

// The rows of one head in a (tokens, heads, width) tensor.
struct Rows {
    element *data;
    int64_t stride;
    element *at(int token) const { return data + token * stride; }
};

struct Head {
    Rows q, k, v, out;
    float *lse;  // of each token: log2 of the sum of 2^score, scores counted in units of ln 2
    float scale;
};

struct HeadGrad {
    Rows out, q;   // the gradient of the output, and of the queries
    float *k, *v;  // (T, E) of this query head
};

void forward_head(const Problem &p, const std::vector<Block> &blocks, const Head &head);
void backward_head(const Problem &p, const std::vector<Block> &blocks, const Head &head, const HeadGrad &grad);

// Sum the gradients of the query heads that share a key head: (H, T, E) -> (T, K, E).
void sum_groups(const Problem &p, const float *per_head, element *grad);

}  // namespace

extern "C" int lorakeet_is_supported() { return 1; }

// Scores are multiplied by `scale`, or by 1 / sqrt(E) if it is 0.
// q, k, v: (T, heads, E) whose tokens are `*_stride` elements apart; out (T, H, E) and lse (H, T) are written.
extern "C" void lorakeet_attention_forward(element *q, element *k, element *v, element *out, float *lse, int64_t q_stride,
                                           int64_t k_stride, int64_t v_stride, int T, int H, int K, int E, int window,
                                           float scale, const int *borders, const int *parents, int num_segments) {
    const Problem p(T, H, K, E, window, borders, parents, num_segments);
    if (scale == 0) scale = 1 / std::sqrt((float)E);
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (size_t tree = 0; tree < p.trees.size(); tree++)
        for (int h = 0; h < H; h++) {
            const int kv = h / (H / K);
            forward_head(p, p.trees[tree],
                         {{q + h * E, q_stride}, {k + kv * E, k_stride}, {v + kv * E, v_stride}, {out + h * E, H * E},
                          lse + (int64_t)h * T, scale});
        }
}

// The same tensors and the gradient of `out`; dq (T, H, E), dk and dv (T, K, E) are written, and `per_head`, room for
// 2 H T E floats.
extern "C" void lorakeet_attention_backward(element *q, element *k, element *v, element *out, float *lse, int64_t q_stride,
                                            int64_t k_stride, int64_t v_stride, int T, int H, int K, int E, int window,
                                            float scale, const int *borders, const int *parents, int num_segments, element *grad,
                                            element *dq, element *dk, element *dv, float *per_head) {
    const Problem p(T, H, K, E, window, borders, parents, num_segments);
    if (scale == 0) scale = 1 / std::sqrt((float)E);
    float *dk_heads = per_head, *dv_heads = per_head + (int64_t)H * T * E;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (size_t tree = 0; tree < p.trees.size(); tree++)
        for (int h = 0; h < H; h++) {
            const int kv = h / (H / K);
            backward_head(p, p.trees[tree],
                          {{q + h * E, q_stride}, {k + kv * E, k_stride}, {v + kv * E, v_stride}, {out + h * E, H * E},
                           lse + (int64_t)h * T, scale},
                          {{grad + h * E, H * E}, {dq + h * E, H * E}, dk_heads + (int64_t)h * T * E,
                           dv_heads + (int64_t)h * T * E});
        }
    sum_groups(p, dk_heads, dk);
    sum_groups(p, dv_heads, dv);
}
