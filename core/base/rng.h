// Counter-based randomness: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011). A draw is a pure function of its key and counter, so no generator state is carried between steps,
// ranks or runs.
#ifndef DR_CORE_BASE_RNG_H
#define DR_CORE_BASE_RNG_H

#include <stdint.h>

#include "core/base/every_body.h"

// The bijection itself; known-answer vectors are in tests/test_base.c.
DR_EVERY_BODY void dr_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// What a draw of the policy is keyed by. turn < 2^16, sample < 2^16.
typedef struct dr_draw_key {
    uint64_t seed;
    uint32_t step, prompt, sample, turn, position;
} dr_draw_key;

// 32 random bits for one sampled token: the one `ahead` positions behind the key's.
DR_EVERY_BODY uint32_t dr_draw_ahead(const dr_draw_key *key, uint32_t ahead) {
    const uint32_t counter[4] = {key->position + ahead, key->turn << 16 | (key->sample & 0xFFFFu),
                                 key->prompt, key->step};
    const uint32_t philox_key[2] = {(uint32_t)key->seed, (uint32_t)(key->seed >> 32)};
    uint32_t out[4];
    dr_philox(counter, philox_key, out);
    return out[0];
}

DR_EVERY_BODY uint32_t dr_draw(const dr_draw_key *key) {
    return dr_draw_ahead(key, 0);
}

#ifdef __cplusplus
extern "C" {
#endif

// [0, 1) with 24 bits.
float dr_unit_float(uint32_t bits);

// A sequential stream for everything that is not a token (initial weights, shuffles, dropout, synthetic
// data): stream ids separate uses of one seed. Plain data; copy it to fork.
typedef struct dr_rng {
    uint64_t seed, stream, counter;
    uint32_t spare[4];
    int n_spare;
} dr_rng;

dr_rng dr_rng_make(uint64_t seed, uint64_t stream);
uint32_t dr_rng_bits(dr_rng *rng);
void dr_rng_skip(dr_rng *rng, uint64_t n);                    // as n calls of dr_rng_bits, at once
float dr_rng_float(dr_rng *rng);                              // [0, 1)
double dr_rng_normal(dr_rng *rng);                            // standard normal (Box-Muller)
uint32_t dr_rng_below(dr_rng *rng, uint32_t n);               // [0, n), unbiased; n >= 1
void dr_rng_shuffle(dr_rng *rng, int32_t *values, int64_t n); // Fisher-Yates

#ifdef __cplusplus
}
#endif
#endif
