// The mask of dropout (backend.h): a function of a key and of the element's number, so that the backward pass
// and every body draw it again.
#ifndef DR_CORE_COMPUTE_DROPOUT_H
#define DR_CORE_COMPUTE_DROPOUT_H

#include <stdint.h>

#include "core/base/every_body.h"

typedef struct dr_dropout_mask {
    uint32_t key, threshold;
    float scale; // of what is kept
} dr_dropout_mask;

static inline dr_dropout_mask dr_dropout_mask_of(float rate, uint32_t key) { // rate in [0, 1)
    dr_dropout_mask mask;
    mask.key = key;
    mask.threshold = (uint32_t)(rate * 4294967296.0f);
    mask.scale = 1.0f / (1.0f - rate);
    return mask;
}

// What element i is multiplied by.
DR_EVERY_BODY float dr_dropout_factor(dr_dropout_mask mask, int64_t i) {
    uint32_t h = (uint32_t)i * 0x9E3779B9u ^ mask.key; // lowbias32 (Wellons, "Hash Function Prospector")
    h ^= h >> 16;
    h *= 0x7FEB352Du;
    h ^= h >> 15;
    h *= 0x846CA68Bu;
    h ^= h >> 16;
    return h < mask.threshold ? 0.0f : mask.scale;
}

#endif
