// Philox 4x32-10 and the small distributions built on it.
#include "core/base/rng.h"

#include <math.h>

void dr_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
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

uint32_t dr_draw(const dr_draw_key *key) {
    uint32_t counter[4] = {key->position, key->turn << 16 | (key->sample & 0xFFFFu), key->prompt, key->step};
    uint32_t philox_key[2] = {(uint32_t)key->seed, (uint32_t)(key->seed >> 32)};
    uint32_t out[4];
    dr_philox(counter, philox_key, out);
    return out[0];
}

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
