// A fusion for the tests of the retrieval model's ops: shapes, and what it reads.
#ifndef DR_TESTS_FUSION_CASE_H
#define DR_TESTS_FUSION_CASE_H

#include "tests/op_check.h"

enum { L = 6, D = 20, K = L / 2 + 1, B = 3 };

// Everything that a fusion of n requests reads, and room for what it writes.
static inline dr_fusion fusion_case(int64_t n) {
    float *dft = op_array(2 * K * L, sizeof(float)), *inverse = op_array(2 * K * L, sizeof(float));
    const double turn = 2 * 3.14159265358979323846 / L, norm = 1 / sqrt((double)L);
    for (int k = 0; k < K; k++)
        for (int l = 0; l < L; l++) {
            double twice = k == 0 || k == K - 1 ? 1 : 2;
            dft[k * L + l] = (float)(cos(turn * k * l) * norm);
            dft[(K + k) * L + l] = (float)(-sin(turn * k * l) * norm);
            inverse[l * 2 * K + k] = (float)(twice * cos(turn * k * l) * norm);
            inverse[l * 2 * K + K + k] = (float)(twice == 1 ? 0 : -twice * sin(turn * k * l) * norm);
        }
    dr_fusion f = {.B = n,
                   .L = L,
                   .D = D,
                   .dft = dft,
                   .inverse = inverse,
                   .filter = op_normal((int64_t)K * D * 2, 0, 1),
                   .positions = op_normal((int64_t)L * D, 0, 1),
                   .out = op_poison(n * L * D)};
    for (int i = 0; i < 2; i++) {
        f.x[i] = op_normal(n * L * D, 0, 1);
        f.gate[i] = op_normal(D, 0, 0.3);
        f.bias[i] = op_normal(1, 0, 1);
        f.spectra[i] = op_poison(n * 2 * K * D);
        f.filtered[i] = op_poison(n * L * D);
        f.openness[i] = op_poison(n * L);
    }
    return f;
}

#endif
