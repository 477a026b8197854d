// Inside the CPU body only: the one way a query row is attended, whatever call it comes from. Keys stand in
// blocks of 16 positions, transposed to [d][16], both in the cache and in the training pass; a row's scores,
// maximum, exponentials and sums run over these blocks in one fixed way, so a row gets the same bits from the
// cache, from a chunk and from a packed batch.
#ifndef DR_CORE_COMPUTE_ATTENTION_ROWS_INTERNAL_H
#define DR_CORE_COMPUTE_ATTENTION_ROWS_INTERNAL_H

#include "core/compute/cpu_internal.h"

enum { DR_KEYS = DR_LANES, DR_ATTENTION_ROWS = 8, DR_ATTENTION_HEADS = 4, DR_MAX_HEAD = 256 };

// Where the keys [d][DR_KEYS] and values [DR_KEYS][d] of key/value heads stand: block i of head h at base +
// (pages ? pages[i] : i) * block_stride + h * head_stride elements.
typedef struct dr_key_blocks {
    const void *k, *v;
    const int32_t *pages;
    int64_t block_stride, head_stride; // the latter of more heads than one
    bool is_bf16; // elements are bf16, each row's in the order of dr_bf16_place; else floats
} dr_key_blocks;

// Up to DR_ATTENTION_ROWS query rows of one head that look at the first n_keys[r] keys.
typedef struct dr_query_rows {
    int32_t n;
    const float *q[DR_ATTENTION_ROWS];
    float *out[DR_ATTENTION_ROWS];
    float *lse[DR_ATTENTION_ROWS]; // NULL: not wanted
    int32_t n_keys[DR_ATTENTION_ROWS];
} dr_query_rows;

DR_INLINE int64_t dr_padded_keys(int64_t n) {
    return (n + DR_KEYS - 1) / DR_KEYS * DR_KEYS;
}

// heads [n_heads], at most DR_ATTENTION_HEADS, with as many rows each. scores: n_heads * DR_ATTENTION_ROWS *
// dr_padded_keys(the most keys of a row) floats of scratch.
void dr_attend(dr_query_rows *heads, int n_heads, const dr_key_blocks *blocks, int32_t d, float scale,
               float *scores);

// Where element e of a row of n bf16 stands: of 16 whole ones number i and i + 8 share a word, so that one
// shift and one mask widen them into two vectors in their order.
DR_INLINE int32_t dr_bf16_place(int32_t e, int32_t n) {
    int32_t begin = e / 16 * 16, i = e - begin;
    if (begin + 16 > n) return e;
    return begin + (i < 8 ? 2 * i : 2 * i - 15);
}

#endif
