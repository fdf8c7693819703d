// Which blocks of tokens see which: shared by the attention kernels for bf16 and fp32.
//
// A document is a chain of segments: its own and those it continues. A block is up to 64 tokens of one segment.
// One task is a tree of segments and a query head; tasks share nothing that they write.
#pragma once

#include <algorithm>
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

}  // namespace
