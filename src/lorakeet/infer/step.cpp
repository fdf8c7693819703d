// One step of generation in one call: one new token of each of a few sequences through all layers and the output head.
// Called by native_step.py, which says what it handles; the decoder itself, layer by layer, is the truth that the tests hold
// this file against.
//
// A step over few rows is bound by reading the weights, and, operation by operation, by everything between reading them.
// So one team of threads goes through all layers together. Activations are float32 throughout, whatever the weights are.
#include <cstdint>

#if !defined(__AVX2__) || !defined(__FMA__)
extern "C" int lorakeet_is_supported() { return 0; }
#else

#include <immintrin.h>

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "../ops/attention/vectors.h"
#include "../quant/scales.h"

extern "C" {

// These structures are those of native_step.py, field by field.

enum Kind { FLOATS, BF16, FOUR_BITS, EIGHT_BITS };

// The weight of a linear layer, (O, I). Four bits have scales and a table of sixteen values, eight bits one scale a row.
struct Matrix {
    const void *weight;
    Scales scales;
    const float *code;
    int32_t kind, O, I, blocksize;
};

// The update of a linear layer: scaling * B A.
struct Pair {
    const float *A, *B;
    int32_t rank;
    float scaling;
};

struct Layer {
    Matrix qkv, o, gate_up, down;
    const float *norm, *mlp_norm;
    void *keys, *values;  // (rows, K, columns, E)
};

struct Model {
    const Layer *layers;
    Matrix head;
    const float *norm;
    int32_t num_layers, D, F, H, K, E, rotary_pairs, window, cache_is_bf16, num_threads;
    float eps;
};
}

namespace {

constexpr int GROUP = 8;  // rows whose sums stay in registers
constexpr int PART = 64;  // weights of four or eight bits that are multiplied at once
constexpr int TASK = 32;  // outputs that a thread takes at once
constexpr int AHEAD = 4096;  // bytes by which quantised weights are fetched before they are needed
constexpr float LOG2E = 1.44269504f;

enum { QKV, O, GATE_UP, DOWN, MATRICES };  // a layer's, in the order of an adapter's pairs; the head's is the last

typedef uint16_t Half __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

inline V load(const float *p) { return at(p); }
inline V load(const uint16_t *bf16) { return (V)(__builtin_convertvector(*(const Half *)bf16, I) << 16); }

inline float one(const float *p) { return *p; }
inline float one(const uint16_t *bf16) {
    const uint32_t bits = (uint32_t)*bf16 << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline void store(float *to, float x) { *to = x; }
inline void store(uint16_t *to, float x) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *to = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

template <class A>
inline float dot(const A *a, const float *b, int n) {
    V sum{};
    int i = 0;
    for (; i + LANES <= n; i += LANES) sum += load(a + i) * at(b + i);
    float rest = sum_of(sum);
    for (; i < n; i++) rest += one(a + i) * b[i];
    return rest;
}

// --- Products --------------------------------------------------------------------------------------------------------

// What a product is applied to, (T, I); for quantised weights also in whole numbers of 16 bits, with one scale for each
// row and PART. 15 bits of precision are more than bf16 has and as good as exact beside the rounding of the weights, and
// two products are computed and added by one instruction.
struct Input {
    const float *x = nullptr;
    int64_t width = 0;
    std::vector<int16_t> numbers;
    std::vector<float> scales;

    void whole_numbers(int t, bool in_order_of_nibbles) {
        for (int64_t at = t * width; at < (t + 1) * width; at += PART) whole_part(at, in_order_of_nibbles);
    }

    void whole_part(int64_t at, bool in_order_of_nibbles) {
        V most{};
        for (int i = 0; i < PART; i += LANES) {
            const V value = load(x + at + i), size = value < 0 ? -value : value;
            most = size > most ? size : most;
        }
        float largest = 1e-30f;
        for (int i = 0; i < LANES; i++) largest = std::max(largest, most[i]);
        scales[at / PART] = largest / 32767;
        const __m256 factor = _mm256_set1_ps(32767 / largest);
        __m256i n[4];
        for (int i = 0; i < 4; i++) {
            const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + at + 16 * i), factor));
            const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + at + 16 * i + 8), factor));
            n[i] = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);  // packing works in halves
        }
        __m256i *to = (__m256i *)(numbers.data() + at);
        if (!in_order_of_nibbles) {
            for (int i = 0; i < 4; i++) _mm256_storeu_si256(to + i, n[i]);
            return;
        }
        // FourBits::load has weights 0, 2, .. in its first two vectors and 1, 3, .. in the others, in this order.
        const __m256i mask = _mm256_set1_epi32(0xFFFF);
        for (int i = 0; i < 2; i++) {
            const __m256i a = _mm256_permute2x128_si256(n[i], n[i + 2], 0x20);
            const __m256i b = _mm256_permute2x128_si256(n[i], n[i + 2], 0x31);
            _mm256_storeu_si256(to + i, _mm256_packus_epi32(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)));
            _mm256_storeu_si256(to + i + 2, _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16)));
        }
    }
};

// A weight is one of sixteen values times its block's scale. The values are kept as whole numbers, below 2^13 so that
// eight products with 15 bits fit into a sum of 32, and multiples of 192, in which FP4's values are whole numbers.
struct FourBits {
    static constexpr int LARGEST = 42 * 192;
    const Matrix &matrix;
    __m256i low, high;  // the bytes of the sixteen numbers, in both halves

    explicit FourBits(const Matrix &matrix) : matrix(matrix) {
        alignas(16) uint8_t bytes[2][16];
        for (int i = 0; i < 16; i++) {
            const int number = (int)std::lrint(matrix.code[i] * LARGEST);
            bytes[0][i] = number & 255;
            bytes[1][i] = (number >> 8) & 255;
        }
        low = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)bytes[0]));
        high = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)bytes[1]));
    }

    float scale(int64_t at) const { return matrix.scales.of(at / matrix.blocksize) * (1.0f / LARGEST); }

    void load(int64_t at, __m256i *weights) const {
        const uint8_t *packed = (const uint8_t *)matrix.weight + at / 2;
        _mm_prefetch(packed + AHEAD, _MM_HINT_T0);
        const __m256i bytes = _mm256_loadu_si256((const __m256i *)packed);
        const __m256i mask = _mm256_set1_epi8(15);
        const __m256i nibbles[2] = {_mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask), _mm256_and_si256(bytes, mask)};
        for (int i = 0; i < 2; i++) {
            const __m256i lows = _mm256_shuffle_epi8(low, nibbles[i]), highs = _mm256_shuffle_epi8(high, nibbles[i]);
            weights[2 * i] = _mm256_unpacklo_epi8(lows, highs);
            weights[2 * i + 1] = _mm256_unpackhi_epi8(lows, highs);
        }
    }
};

struct EightBits {
    const Matrix &matrix;

    float scale(int64_t at) const { return matrix.scales.absmax[at / matrix.I] * (1.0f / 127); }

    void load(int64_t at, __m256i *weights) const {
        const __m128i *bytes = (const __m128i *)((const int8_t *)matrix.weight + at);
        _mm_prefetch((const char *)bytes + AHEAD, _MM_HINT_T0);
        for (int i = 0; i < 4; i++) weights[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + i));
    }
};

// out[t][o - begin] = row o of the weights times row `first + t` of the input, for T rows and the outputs begin to end
template <int T, class Weights>
void whole_products(const Weights &weights, const Input &in, int first, int begin, int end, float (*out)[TASK]) {
    const int64_t width = in.width, parts = width / PART;
    const int16_t *x = in.numbers.data() + first * width;
    const float *scales = in.scales.data() + first * parts;
    for (int o = begin; o < end; o++) {
        __m256 sums[T] = {};
        for (int64_t part = 0; part < parts; part++) {
            const int64_t at = o * width + part * PART;
            __m256i w[4];
            weights.load(at, w);
            const __m256 scale = _mm256_set1_ps(weights.scale(at));
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                const __m256i *n = (const __m256i *)(x + t * width + part * PART);
                const __m256i a = _mm256_add_epi32(_mm256_madd_epi16(w[0], _mm256_loadu_si256(n)),
                                                   _mm256_madd_epi16(w[1], _mm256_loadu_si256(n + 1)));
                const __m256i b = _mm256_add_epi32(_mm256_madd_epi16(w[2], _mm256_loadu_si256(n + 2)),
                                                   _mm256_madd_epi16(w[3], _mm256_loadu_si256(n + 3)));
                const __m256 factor = _mm256_mul_ps(scale, _mm256_broadcast_ss(scales + t * parts + part));
                sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(a, b)), factor, sums[t]);
            }
        }
        for (int t = 0; t < T; t++) out[t][o - begin] = sum_of(sums[t]);
    }
}

// Up to four rows at once, so that their sums stay in registers. Each sum is one chain of additions, in the same order for
// any number of rows: what a row gets does not depend on its company, to the bit. An addition waits for the one before it,
// so with few rows several outputs are computed side by side.
template <int T, class Number>
void float_products(const Number *weights, const Input &in, int first, int begin, int end, float (*out)[TASK]) {
    if constexpr (T > 4) {
        float_products<4>(weights, in, first, begin, end, out);
        float_products<T - 4>(weights, in, first + 4, begin, end, out + 4);
    } else {
        constexpr int OUTPUTS = T == 1 ? 8 : T == 2 ? 4 : 2;
        const int64_t width = in.width;
        const float *x = in.x + first * width;
        for (int o = begin; o < end; o += OUTPUTS) {
            int outputs[OUTPUTS];  // the last one again where fewer are left
            for (int n = 0; n < OUTPUTS; n++) outputs[n] = std::min(o + n, end - 1);
            V sums[OUTPUTS][T] = {};
            // What comes after the next outputs is fetched meanwhile, in the order in which it lies: the machine itself
            // looks ahead along each of these rows, and a row ends too soon for that. It makes a step nearly twice as fast.
            const char *ahead = (const char *)(weights + (o + 2 * OUTPUTS) * width);
            for (int64_t i = 0; i < width; i += LANES) {
                constexpr int BYTES = OUTPUTS * LANES * sizeof(Number);
                for (int at = 0; at < BYTES; at += 64) _mm_prefetch(ahead + at, _MM_HINT_T0);
                ahead += BYTES;
                V w[OUTPUTS];
#pragma GCC unroll 8
                for (int n = 0; n < OUTPUTS; n++) w[n] = load(weights + outputs[n] * width + i);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++) {
                    const V value = at(x + t * width + i);
#pragma GCC unroll 8
                    for (int n = 0; n < OUTPUTS; n++) sums[n][t] += w[n] * value;
                }
            }
            for (int n = 0; n < OUTPUTS; n++)
                for (int t = 0; t < T; t++) out[t][outputs[n] - begin] = sum_of(sums[n][t]);
        }
    }
}

template <int T>
void products_of(const Matrix &matrix, const Input &in, int first, int begin, int end, float (*out)[TASK]) {
    switch (matrix.kind) {
        case FLOATS: return float_products<T>((const float *)matrix.weight, in, first, begin, end, out);
        case BF16: return float_products<T>((const uint16_t *)matrix.weight, in, first, begin, end, out);
        case FOUR_BITS: return whole_products<T>(FourBits(matrix), in, first, begin, end, out);
        case EIGHT_BITS: return whole_products<T>(EightBits{matrix}, in, first, begin, end, out);
    }
}

// A number of rows known to the compiler keeps their sums in registers.
template <int T = GROUP, class... Rest>
void products(int rows, Rest... rest) {
    if (rows == T)
        products_of<T>(rest...);
    else if constexpr (T > 1)
        products<T - 1>(rows, rest...);
}

// --- The team --------------------------------------------------------------------------------------------------------

// A phase is a number of tasks that may be done in any order; the next one begins when all of them are done. Threads are
// not waited for, only tasks: one that the system has put to sleep between two tasks, since others use the machine too,
// holds nobody up, and finds nothing left to do in the phases that it has missed.
struct Phase {
    alignas(64) std::atomic<int> claimed{0};
    std::atomic<int> done{0};

    template <class Work>
    void work_off(int num_tasks, Work work) {
        for (int task; claimed.load(std::memory_order_relaxed) < num_tasks && (task = claimed++) < num_tasks;) {
            work(task);
            done.fetch_add(1, std::memory_order_release);
        }
        for (int spins = 0; done.load(std::memory_order_acquire) < num_tasks; spins++)
            spins < 1000 ? _mm_pause() : (void)sched_yield();
    }
};

// --- A step ----------------------------------------------------------------------------------------------------------

// What all threads of a step share.
struct Step {
    const Model &model;
    const int T;
    float *const x;                       // (T, D), on the way through the layers; in the end normed
    const float *const cos, *const sin;   // (T, rotary_pairs)
    const int64_t *const positions;       // (T,): where the new token of each row goes
    const int64_t row_stride, columns;    // of the keys and values
    const Pair *const *const adapters;    // for each row the pairs of all matrices, or null
    float *const logits;                  // (T, vocabulary)

    int max_rank = 0;
    Input in;
    std::vector<float> normed, qkv, mixed, hidden, low;
    std::vector<Phase> phases;

    void prepare() {
        const int width = std::max({model.D, model.F, model.H * model.E});
        in.numbers.resize(T * width);
        in.scales.resize(T * width / PART + T);
        normed.resize(T * model.D);
        qkv.resize(T * (model.H + 2 * model.K) * model.E);
        mixed.resize(T * model.H * model.E);
        hidden.resize(T * model.F);
        for (int t = 0; t < T; t++)
            if (adapters[t])
                for (int i = 0; i <= model.num_layers * MATRICES; i++) max_rank = std::max(max_rank, adapters[t][i].rank);
        low.resize(T * max_rank);
        phases = std::vector<Phase>((model.num_layers + 1) * PHASES);
    }

    static constexpr int PHASES = 16;  // at least as many as a layer has

    const Pair *pair(int t, int matrix) const {
        const Pair *pairs = adapters[t];
        return pairs && pairs[matrix].rank > 0 ? pairs + matrix : nullptr;
    }

    void run();
};

// What one thread does. Every thread goes through the same phases in the same order.
struct Worker {
    Step &step;
    const Model &model = step.model;
    const int T = step.T;
    Phase *phase = step.phases.data();
    std::vector<float> memory = std::vector<float>(2 * T * TASK), scores{};

    template <class Work>
    void each(int num_tasks, Work work) {
        phase++->work_off(num_tasks, work);
    }

    // Make `x` the input of the next product; `fill(row)` writes it first.
    template <class Fill>
    void take(const Matrix &matrix, int number, const float *x, Fill fill) {
        each(T, [&](int t) {
            fill(t);
            Input &in = step.in;
            in.x = x;  // by every task alike
            in.width = matrix.I;
            if (matrix.kind == FOUR_BITS || matrix.kind == EIGHT_BITS) in.whole_numbers(t, matrix.kind == FOUR_BITS);
        });
        if (step.max_rank == 0) return;
        // low[t] = scaling * A x[t], by the adapter of each row
        each(T * step.max_rank, [&](int task) {
            const int t = task / step.max_rank, r = task % step.max_rank;
            const Pair *update = step.pair(t, number);
            if (update && r < update->rank)
                step.low[task] = update->scaling * dot(update->A + (int64_t)r * matrix.I, x + (int64_t)t * matrix.I, matrix.I);
        });
    }

    // Root-mean-square norm of every row, as input.
    void take_normed(const Matrix &matrix, int number, const float *weight) {
        take(matrix, number, step.normed.data(), [&](int t) {
            const int D = model.D;
            const float *row = step.x + t * D;
            const float factor = 1 / std::sqrt(dot(row, row, D) / D + model.eps);
            for (int d = 0; d < D; d++) step.normed[t * D + d] = row[d] * factor * weight[d];
        });
    }

    // The outputs begin to end of a matrix for all rows, with the updates of their adapters.
    void outputs(const Matrix &matrix, int number, int begin, int end, float (*out)[TASK]) const {
        for (int t = 0; t < T; t += GROUP)
            products(std::min(GROUP, T - t), std::cref(matrix), std::cref(step.in), t, begin, end, out + t);
        if (step.max_rank == 0) return;
        for (int t = 0; t < T; t++)
            if (const Pair *update = step.pair(t, number))
                for (int o = begin; o < end; o++)
                    out[t][o - begin] +=
                        dot(update->B + (int64_t)o * update->rank, step.low.data() + t * step.max_rank, update->rank);
    }

    // Go through the outputs of a matrix and hand each to `use(row, output, value)`.
    template <class Use>
    void multiply(const Matrix &matrix, int number, Use use) {
        float(*out)[TASK] = (float(*)[TASK])memory.data();
        each((matrix.O + TASK - 1) / TASK, [&](int task) {
            const int begin = task * TASK, end = std::min(begin + TASK, matrix.O);
            outputs(matrix, number, begin, end, out);
            for (int t = 0; t < T; t++)
                for (int o = begin; o < end; o++) use(t, o, out[t][o - begin]);
        });
    }

    // SwiGLU: the gate's outputs and the others of the same places are computed by one thread.
    void multiply_gated(const Matrix &matrix, int number) {
        float(*gate)[TASK] = (float(*)[TASK])memory.data(), (*up)[TASK] = gate + T;
        const int F = model.F;
        each((F + TASK - 1) / TASK, [&](int task) {
            const int begin = task * TASK, size = std::min(TASK, F - begin);
            outputs(matrix, number, begin, begin + size, gate);
            outputs(matrix, number, F + begin, F + begin + size, up);
            for (int t = 0; t < T; t++)
                for (int i = 0; i < size; i += LANES) {
                    const V a = at(gate[t] + i), e = exp2_of((a > 0 ? -a : a) * LOG2E);  // of minus the size: no overflow
                    at(step.hidden.data() + t * F + begin + i) = a * (a > 0 ? all(1) : e) / (1 + e) * at(up[t] + i);
                }
        });
    }

    // Pair r of a head is made of the elements r and rotary_pairs + r.
    void rotate(int t, float *head) const {
        const int R = model.rotary_pairs;
        for (int r = 0; r < R; r++) {
            const float a = head[r], b = head[R + r], c = step.cos[t * R + r], s = step.sin[t * R + r];
            head[r] = a * c - b * s;
            head[R + r] = b * c + a * s;
        }
    }

    // Turn all queries and keys, and put the keys and values where they belong.
    template <class Number>
    void store_new(const Layer &layer) {
        const int H = model.H, K = model.K, E = model.E;
        each(T * (H + K), [&](int task) {
            const int t = task / (H + K), h = task % (H + K);
            float *head = step.qkv.data() + ((int64_t)t * (H + 2 * K) + h) * E;
            rotate(t, head);
            if (h < H) return;
            const int64_t place = t * step.row_stride + ((h - H) * step.columns + step.positions[t]) * E;
            for (int e = 0; e < E; e++) store((Number *)layer.keys + place + e, head[e]);
            for (int e = 0; e < E; e++) store((Number *)layer.values + place + e, head[K * E + e]);
        });
    }

    template <class Number>
    void attend(const Layer &layer) {
        const int H = model.H, K = model.K, E = model.E;
        each(T * H, [&](int task) {
            const int t = task / H, h = task % H;
            const int64_t end = step.positions[t] + 1, first = std::max<int64_t>(0, end - model.window);
            const int64_t place = t * step.row_stride + (h / (H / K) * step.columns + first) * E;
            const float *query = step.qkv.data() + ((int64_t)t * (H + 2 * K) + h) * E;
            attend_head((const Number *)layer.keys + place, (const Number *)layer.values + place, end - first, query,
                        step.mixed.data() + (int64_t)task * E);
        });
    }

    template <class Number>
    void attend_head(const Number *keys, const Number *values, int64_t n, const float *query, float *out) {
        const int E = model.E;
        const float scale = LOG2E / std::sqrt((float)E);
        scores.assign((n + LANES - 1) / LANES * LANES, -INFINITY);
        float most = -INFINITY;
        for (int64_t i = 0; i < n; i++) most = std::max(most, scores[i] = scale * dot(keys + i * E, query, E));
        V sum{};
        for (size_t i = 0; i < scores.size(); i += LANES) {
            V &some = at(scores.data() + i);
            some = some > -INFINITY ? exp2_of(some - most) : V{};
            sum += some;
        }
        const float share = 1 / sum_of(sum);
        std::fill_n(out, E, 0.0f);
        for (int64_t i = 0; i < n; i++) add(out, values + i * E, scores[i] * share, E);
    }

    template <class Number>
    static void add(float *out, const Number *row, float weight, int n) {
        int i = 0;
        for (; i + LANES <= n; i += LANES) at(out + i) += load(row + i) * weight;
        for (; i < n; i++) out[i] += one(row + i) * weight;
    }

    template <class Number>
    void layer(const Layer &layer, int number) {
        const int D = model.D, width = (model.H + 2 * model.K) * model.E;
        const auto add_to_x = [&](int t, int o, float value) { step.x[t * D + o] += value; };
        const auto as_it_is = [](int) {};
        take_normed(layer.qkv, number + QKV, layer.norm);
        multiply(layer.qkv, number + QKV, [&](int t, int o, float value) { step.qkv[t * width + o] = value; });
        store_new<Number>(layer);
        attend<Number>(layer);
        take(layer.o, number + O, step.mixed.data(), as_it_is);
        multiply(layer.o, number + O, add_to_x);
        take_normed(layer.gate_up, number + GATE_UP, layer.mlp_norm);
        multiply_gated(layer.gate_up, number + GATE_UP);
        take(layer.down, number + DOWN, step.hidden.data(), as_it_is);
        multiply(layer.down, number + DOWN, add_to_x);
    }

    void run() {
        for (int i = 0; i < model.num_layers; i++)
            if (model.cache_is_bf16)
                layer<uint16_t>(model.layers[i], i * MATRICES);
            else
                layer<float>(model.layers[i], i * MATRICES);
        const int last = model.num_layers * MATRICES;
        take_normed(model.head, last, model.norm);
        multiply(model.head, last, [&](int t, int o, float value) { step.logits[(int64_t)t * model.head.O + o] = value; });
        each(1, [&](int) { std::copy(step.normed.begin(), step.normed.end(), step.x); });
    }
};

void Step::run() {
    prepare();
#pragma omp parallel num_threads(model.num_threads)
    Worker{*this}.run();
}

}  // namespace

extern "C" {

int lorakeet_is_supported() { return 1; }

void lorakeet_step(const Model *model, int T, float *x, const float *cos, const float *sin, const int64_t *positions,
                   int64_t row_stride, int64_t columns, const Pair *const *adapters, float *logits) {
    Step{*model, T, x, cos, sin, positions, row_stride, columns, adapters, logits}.run();
}

// Copies floats to bf16; returns whether every one of them was a bf16 number.
int lorakeet_halve(const uint32_t *floats, uint16_t *out, int64_t n) {
    uint32_t lost = 0;
#pragma omp parallel for reduction(| : lost)
    for (int64_t i = 0; i < n; i++) {
        out[i] = floats[i] >> 16;
        lost |= floats[i] & 0xFFFF;
    }
    return lost == 0;
}

// Rounds rows of floats or bf16 numbers to whole numbers from -127 to 127 times `absmax / 127`.
void lorakeet_to_eight_bits(const void *numbers, int is_bf16, int8_t *out, float *absmax, int O, int64_t I) {
#pragma omp parallel for
    for (int o = 0; o < O; o++) {
        const auto number = [&](int64_t i) {
            return is_bf16 ? one((const uint16_t *)numbers + o * I + i) : one((const float *)numbers + o * I + i);
        };
        float most = 0;
        for (int64_t i = 0; i < I; i++) most = std::max(most, std::abs(number(i)));
        const float factor = most > 0 ? 127 / most : 0;
        for (int64_t i = 0; i < I; i++) out[o * I + i] = (int8_t)std::nearbyint(number(i) * factor);
        absmax[o] = most;
    }
}
}
#endif
