// What the emulated cuBLASLt's algorithms are, and the products that they compute. Each adds in an order of
// its own, so that taking another one shows in the bits.
#ifndef DR_TESTS_EMULATED_CUBLAS_LT_PRODUCT_H
#define DR_TESTS_EMULATED_CUBLAS_LT_PRODUCT_H

#include <stddef.h>
#include <stdint.h>

namespace emulated {

// Column-major: element (i, j) at i + j · stride.
struct lt_matrix {
    int64_t rows, columns, stride;
    bool is_bf16, is_transposed;
};

// d [m, n] = alpha · op(a) [m, k] · op(b) [k, n] + beta · c [m, n] + bias [m]
struct lt_problem {
    lt_matrix a, b, c, d;
    int64_t m, n, k;
    bool has_bias;
};

struct lt_memory {
    const void *a, *b, *c; // c: not read when beta is 0
    const float *bias;     // NULL without one
    void *d;
    float *workspace;
    float alpha, beta;
};

// Where partial sums of an element meet.
enum lt_meeting {
    LT_NOWHERE,   // there are none
    LT_IN_RESULT, // in d, one split after the other; counters in the workspace
    LT_IN_PARTS,  // in the workspace, the last split first
    LT_IN_STREAM  // as in parts, where the size of d says how many splits: a reduction that nobody declares
};

struct lt_family {
    int id;
    int64_t chunk; // products of k that are added up before they are added to the sum
    int32_t splits;
    lt_meeting meeting;
    uint32_t address, stride; // alignment in bytes of a, b, c, d and bias; 0: an element's
    int64_t least_n, most_n, n_multiple, k_multiple;
};

enum { LT_FAMILIES = 9 };
extern const lt_family lt_families[LT_FAMILIES];

// The order in which the heuristic offers them, best first, for d of n columns: places in lt_families.
const int *lt_ranking(int64_t n);

bool lt_takes(const lt_family &family, const lt_problem &p); // sizes and strides; not addresses
uint32_t lt_reduction(const lt_family &family);              // cublasLtReductionScheme_t
size_t lt_workspace(const lt_family &family, const lt_problem &p);
size_t lt_bytes(const lt_matrix &m);
void lt_multiply(const lt_family &family, const lt_problem &p, const lt_memory &at);

} // namespace emulated

#endif
