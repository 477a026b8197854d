// The small distributions built on Philox 4x32-10.
#include "core/base/rng.h"

#include <math.h>

float dr_unit_float(uint32_t bits) {
    return (float)(bits >> 8) * 0x1p-24f;
}

dr_rng dr_rng_make(uint64_t seed, uint64_t stream) {
    return (dr_rng){.seed = seed, .stream = stream};
}

uint32_t dr_rng_bits(dr_rng *rng) {
    if (rng->n_spare == 0) {
        uint32_t counter[4] = {(uint32_t)rng->counter, (uint32_t)(rng->counter >> 32), (uint32_t)rng->stream,
                               (uint32_t)(rng->stream >> 32) |
                                   0x80000000u}; // top bit: never a token's counter
        uint32_t key[2] = {(uint32_t)rng->seed, (uint32_t)(rng->seed >> 32)};
        dr_philox(counter, key, rng->spare);
        rng->counter++;
        rng->n_spare = 4;
    }
    return rng->spare[4 - rng->n_spare--];
}

void dr_rng_skip(dr_rng *rng, uint64_t n) {
    for (; n > 0 && rng->n_spare > 0; n--) rng->n_spare--;
    rng->counter += n / 4;
    for (n %= 4; n > 0; n--) dr_rng_bits(rng);
}

float dr_rng_float(dr_rng *rng) {
    return dr_unit_float(dr_rng_bits(rng));
}

double dr_rng_normal(dr_rng *rng) {
    double u = ((double)dr_rng_bits(rng) + 1.0) * 0x1p-32, v = (double)dr_rng_bits(rng) * 0x1p-32;
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

uint32_t dr_rng_below(dr_rng *rng, uint32_t n) {
    uint32_t limit = (uint32_t)(0x100000000ull / n * n - 1); // largest accepted value
    for (;;) {
        uint32_t bits = dr_rng_bits(rng);
        if (bits <= limit) return bits % n;
    }
}

void dr_rng_shuffle(dr_rng *rng, int32_t *values, int64_t n) {
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)dr_rng_below(rng, (uint32_t)(i + 1));
        int32_t kept = values[i];
        values[i] = values[j];
        values[j] = kept;
    }
}
