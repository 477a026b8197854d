// Rounding to bf16: the upper half of a float.
#include "core/compute/cpu_internal.h"

enum { BLOCK = 32768 };

static DR_HOT void round_block(const float *x, int64_t n, bf16 *out) {
    for (int64_t i = 0; i < n; i++) out[i] = (bf16)dr_bf16_bits(x[i]);
}

static DR_HOT void round_block_floats(const float *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = dr_bf16_value(dr_bf16_bits(x[i]));
}

// One thread begins no parallel region: rows are rounded one by one within such regions.
void dr_bf16_round(const float *x, int64_t n, int n_threads, bf16 *out) {
    if (n_threads == 1) {
        round_block(x, n, out);
        return;
    }
#pragma omp parallel for num_threads(n_threads) schedule(static) if (n_threads > 1 && n > 4 * BLOCK)
    for (int64_t i = 0; i < n; i += BLOCK) round_block(x + i, n - i < BLOCK ? n - i : BLOCK, out + i);
}

void dr_bf16_round_floats(const float *x, int64_t n, int n_threads, float *out) {
    if (n_threads == 1) {
        round_block_floats(x, n, out);
        return;
    }
#pragma omp parallel for num_threads(n_threads) schedule(static) if (n_threads > 1 && n > 4 * BLOCK)
    for (int64_t i = 0; i < n; i += BLOCK) round_block_floats(x + i, n - i < BLOCK ? n - i : BLOCK, out + i);
}
