// The scales of four-bit weights, as bitsandbytes stores them.
#pragma once

#include <cstdint>

namespace {

constexpr int NESTED_BLOCK = 256;  // scales that share one scale of their own

// The scales of a weight's blocks as they are stored: float32, or indices into a table, with scales of their own.
struct Scales {
    const float *absmax;
    const uint8_t *indices;
    const float *table, *nested_absmax, *offset;

    float of(int64_t block) const {
        if (absmax) return absmax[block];
        float scale = table[indices[block]] * nested_absmax[block / NESTED_BLOCK];
        scale += *offset;
        return scale;
    }
};

}  // namespace
