// Products of linear layers through cuBLASLt: what is decided on the host, in plain functions that need
// neither the library nor a device. The library counts columns first: a row-major matrix [T, n] is its [n, T]
// with the same memory, so that y = x Wᵀ becomes yᵀ = W xᵀ.
#ifndef DR_CUDA_LINEAR_LT_H
#define DR_CUDA_LINEAR_LT_H

#include <stdbool.h>
#include <stdint.h>

#ifndef DR_LT_WORKSPACE_BYTES // tests have less
#define DR_LT_WORKSPACE_BYTES (32 << 20)
#endif

enum {
    DR_LT_ALIGNMENT = 16,                    // bytes; of every address that the library gets
    DR_LT_ROWS = 256,                        // of the product that an exact algorithm is chosen for
    DR_LT_GRADIENT_ROWS = 4096,              // the same for a weight's gradient, which sums over them
    DR_LT_WORKSPACE = DR_LT_WORKSPACE_BYTES, // in the loose precisions
    DR_LT_MOST_CHECKED = 14                  // numbers of rows that an algorithm must take
};

typedef enum dr_lt_op {
    DR_LT_FORWARD,         // y [T, n_out] = x Wᵀ
    DR_LT_FORWARD_BIAS,    // the same + bias
    DR_LT_FORWARD_ROUNDED, // y as bf16; of the bf16 precisions
    DR_LT_BACKWARD_INPUT,  // dx [T, n_in] = dy W
    DR_LT_BACKWARD_WEIGHT  // dw [n_out, n_in] = dyᵀ x
} dr_lt_op;

// A matrix as the library sees it: element (i, j) at i + j · stride.
typedef struct dr_lt_matrix {
    int64_t rows, columns, stride;
    bool is_transposed; // the product takes its transpose
} dr_lt_matrix;

// d = a · b. Forward: a is W, b is x; backward by input: W and dy; by weight: x and dy.
typedef struct dr_lt_shape {
    dr_lt_matrix a, b, d;
} dr_lt_shape;

static inline dr_lt_shape dr_lt_shape_of(dr_lt_op op, int64_t n_out, int64_t n_in, int64_t T) {
    const dr_lt_matrix weight = {n_in, n_out, n_in, false}, x = {n_in, T, n_in, false},
                       y = {n_out, T, n_out, false};
    dr_lt_shape shape = {weight, x, y};
    if (op == DR_LT_BACKWARD_INPUT) {
        shape = (dr_lt_shape){weight, y, x};
    } else if (op == DR_LT_BACKWARD_WEIGHT) {
        shape = (dr_lt_shape){x, y, weight};
        shape.b.is_transposed = true;
    } else {
        shape.a.is_transposed = true;
    }
    return shape;
}

// What one algorithm serves. most_rows 0: every T, so that no row's bits depend on T; else T in
// most_rows / 2 + 1 … most_rows or, where these do not all have an algorithm in common, one T alone.
typedef struct dr_lt_key {
    dr_lt_op op;
    int64_t n_out, n_in, most_rows;
    int64_t only_rows; // that T; 0: all of them
} dr_lt_key;

static inline dr_lt_key dr_lt_key_of(dr_lt_op op, int64_t n_out, int64_t n_in, int64_t T, bool is_loose) {
    dr_lt_key key = {op, n_out, n_in, is_loose ? 1 : 0, 0};
    while (is_loose && key.most_rows < T) key.most_rows *= 2;
    return key;
}

static inline bool dr_lt_key_equal(const dr_lt_key *a, const dr_lt_key *b) {
    return a->op == b->op && a->n_out == b->n_out && a->n_in == b->n_in && a->most_rows == b->most_rows &&
           a->only_rows == b->only_rows;
}

// The T for which the library is asked what is best.
static inline int64_t dr_lt_chosen_for(const dr_lt_key *key) {
    if (key->only_rows > 0) return key->only_rows;
    if (key->most_rows > 0) return key->most_rows;
    return key->op == DR_LT_BACKWARD_WEIGHT ? DR_LT_GRADIENT_ROWS : DR_LT_ROWS;
}

// The T, *out_n of them, with which an algorithm must work before it is taken: odd ones and those around the
// sizes of tiles when it is to serve every T, else the ends of its range, or its one T.
static inline void dr_lt_checked(const dr_lt_key *key, int64_t rows[DR_LT_MOST_CHECKED], int *out_n) {
    static const int64_t every[DR_LT_MOST_CHECKED] = {1,  2,   3,   7,    8,    16,    33,
                                                      64, 128, 257, 1000, 4096, 16384, 65535};
    *out_n = key->only_rows > 0 ? 1 : key->most_rows > 0 ? 2 : DR_LT_MOST_CHECKED;
    for (int i = 0; i < *out_n; i++) rows[i] = every[i];
    if (key->most_rows == 0) return;
    rows[0] = key->only_rows > 0 ? key->only_rows : key->most_rows / 2 + 1;
    rows[1] = key->most_rows;
}

// Whether the library may multiply by this weight: depends on the weight alone, never on T. bf16: every row
// begins at a multiple of DR_LT_ALIGNMENT bytes. fp32, which is loose: always.
static inline bool dr_lt_serves(bool is_bf16, int64_t n_out, int64_t n_in) {
    return !is_bf16 || (n_out % 8 == 0 && n_in % 8 == 0);
}

static inline bool dr_lt_is_aligned(const void *address) {
    return (uintptr_t)address % DR_LT_ALIGNMENT == 0;
}

// Whether an algorithm that the library offers keeps rows exact: it adds each element's products in one
// place, so nothing that depends on how many tiles there are enters the sum. A sum over several blocks, split
// or streamed, needs memory to meet in, or its own reduction.
static inline bool dr_lt_is_exact(int32_t n_splits, uint32_t reduction, uint64_t workspace) {
    return (n_splits == 0 || n_splits == 1) && reduction == 0 && workspace == 0;
}

#endif
