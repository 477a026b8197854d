// A tensor map as the emulated copy engine reads it: bf16 rows [T, n_heads, d], boxes of 64 columns of
// box_heads heads of box_rows rows.
#ifndef DR_TESTS_EMULATED_CUDA_H
#define DR_TESTS_EMULATED_CUDA_H

#include <stdint.h>

typedef struct CUtensorMap {
    const uint16_t *rows;
    int64_t T;
    int32_t n_heads, d, box_heads, box_rows;
} CUtensorMap;

#endif
