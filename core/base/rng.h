// Counter-based randomness: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011). A draw is a pure function of its key and counter, so no generator state is carried between steps,
// ranks or runs.
#ifndef DR_CORE_BASE_RNG_H
#define DR_CORE_BASE_RNG_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The bijection itself; known-answer vectors are in tests/test_base.c.
void dr_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

// What a draw of the policy is keyed by. turn < 2^16, sample < 2^16.
typedef struct dr_draw_key {
    uint64_t seed;
    uint32_t step, prompt, sample, turn, position;
} dr_draw_key;

// 32 random bits for one sampled token.
uint32_t dr_draw(const dr_draw_key *key);

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
