// The emulated cuBLASLt's algorithms.
#include "tests/emulated/cublas_lt_product.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "tests/emulated/cublasLt.h"

namespace emulated {

static const int64_t ANY = INT64_MAX;

// Those that a caller must not take by mistake come first where they are offered: one that wants more
// alignment than a row of 16 bytes has, and three that add partial sums of several blocks.
const lt_family lt_families[LT_FAMILIES] = {
    {1, 40, 1, LT_NOWHERE, 256, 16, 1, ANY, 1, 1},   // addresses that only whole allocations have
    {2, 12, 1, LT_NOWHERE, 16, 16, 17, 1024, 1, 1},  // neither few columns nor many
    {3, 16, 1, LT_NOWHERE, 16, 16, 8, ANY, 8, 16},   // whole tiles only
    {4, 20, 1, LT_NOWHERE, 16, 16, 1, ANY, 1, 1},    // for few columns
    {5, 8, 1, LT_NOWHERE, 16, 16, 1, ANY, 1, 1},     // for many
    {6, 1 << 30, 1, LT_NOWHERE, 0, 0, 1, ANY, 1, 1}, // any address and stride, slow
    {7, 8, 4, LT_IN_PARTS, 0, 0, 1, ANY, 1, 1},      // for few columns
    {8, 12, 2, LT_IN_RESULT, 16, 16, 1, ANY, 1, 1},  //
    {9, 8, 1, LT_IN_STREAM, 16, 16, 1, ANY, 1, 1},   //
};

const int *lt_ranking(int64_t n) {
    static const int few[] = {0, 6, 8, 3, 7, 4, 1, 2, 5}, some[] = {0, 8, 4, 2, 6, 1, 3, 7, 5},
                     many[] = {0, 1, 7, 2, 8, 4, 3, 6, 5};
    return n <= 16 ? few : n <= 128 ? some : many;
}

static size_t element_bytes(const lt_matrix &m) {
    return m.is_bf16 ? sizeof(uint16_t) : sizeof(float);
}

size_t lt_bytes(const lt_matrix &m) {
    return ((size_t)(m.columns - 1) * (size_t)m.stride + (size_t)m.rows) * element_bytes(m);
}

bool lt_takes(const lt_family &family, const lt_problem &p) {
    if (p.n < family.least_n || p.n > family.most_n || p.n % family.n_multiple || p.k % family.k_multiple)
        return false;
    if (family.stride == 0) return true;
    for (const lt_matrix *m : {&p.a, &p.b, &p.c, &p.d})
        if ((size_t)m->stride * element_bytes(*m) % family.stride) return false;
    return true;
}

uint32_t lt_reduction(const lt_family &family) {
    return family.meeting == LT_IN_RESULT  ? CUBLASLT_REDUCTION_SCHEME_INPLACE
           : family.meeting == LT_IN_PARTS ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
                                           : CUBLASLT_REDUCTION_SCHEME_NONE;
}

static int64_t parts_of(const lt_family &family, const lt_problem &p) {
    return family.meeting == LT_IN_STREAM ? 2 + p.m * p.n / 512 % 3 : family.splits;
}

static const size_t COUNTERS = 64; // bytes

size_t lt_workspace(const lt_family &family, const lt_problem &p) {
    if (family.meeting == LT_NOWHERE) return 0;
    if (family.meeting == LT_IN_RESULT) return COUNTERS;
    return (size_t)(parts_of(family, p) * p.m * p.n) * sizeof(float);
}

// ---- operands ----

static float value(const lt_matrix &m, const void *data, int64_t i, int64_t j) {
    const int64_t at = m.is_transposed ? j + i * m.stride : i + j * m.stride;
    if (!m.is_bf16) return ((const float *)data)[at];
    const uint32_t bits = (uint32_t)((const uint16_t *)data)[at] << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

// Element (i, j) of d, bf16 to nearest, ties to even.
static void put(const lt_matrix &m, void *data, int64_t i, int64_t j, float v) {
    const int64_t at = i + j * m.stride;
    if (!m.is_bf16) {
        ((float *)data)[at] = v;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    ((uint16_t *)data)[at] =
        (uint16_t)(is_nan ? bits >> 16 | 0x40u : (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

// op(m) with element (i, j) at i + j · rows of it.
static std::vector<float> dense(const lt_matrix &m, const void *data) {
    const int64_t rows = m.is_transposed ? m.columns : m.rows, columns = m.is_transposed ? m.rows : m.columns;
    std::vector<float> out((size_t)(rows * columns));
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = 0; i < rows; i++) out[(size_t)(i + j * rows)] = value(m, data, i, j);
    return out;
}

// ---- sums ----

// sum [m] of the products of k in from … to - 1, for one column of op(b): chunk by chunk.
static void add_column(const float *a, const float *b, int64_t m, int64_t from, int64_t to, int64_t chunk,
                       float *part, float *sum) {
    std::fill(sum, sum + m, 0.0f);
    for (int64_t begin = from; begin < to; begin += chunk) {
        std::fill(part, part + m, 0.0f);
        for (int64_t k = begin; k < std::min(begin + chunk, to); k++) {
            const float *column = a + k * m, factor = b[k];
            for (int64_t i = 0; i < m; i++) part[i] = fmaf(column[i], factor, part[i]);
        }
        for (int64_t i = 0; i < m; i++) sum[i] += part[i];
    }
}

static void finish_column(const lt_problem &p, const lt_memory &at, int64_t j, const float *sum) {
    for (int64_t i = 0; i < p.m; i++) {
        float v = at.alpha * sum[i];
        if (at.beta != 0) v = fmaf(at.beta, value(p.c, at.c, i, j), v);
        put(p.d, at.d, i, j, at.bias ? v + at.bias[i] : v);
    }
}

// The splits add up in d one after the other, in its type, as counters let them; the last one ends the
// column.
static void add_in_result(const lt_problem &p, const lt_memory &at, int64_t j, int64_t part, int64_t parts,
                          float *sum) {
    if (j == 0 && part == 0) memset(at.workspace, 0, COUNTERS);
    const bool is_first = part == 0, is_last = part == parts - 1;
    for (int64_t i = 0; i < p.m; i++) {
        float v = at.alpha * sum[i];
        if (is_first && at.beta != 0) v = fmaf(at.beta, value(p.c, at.c, i, j), v);
        if (!is_first) v += value(p.d, at.d, i, j);
        put(p.d, at.d, i, j, is_last && at.bias ? v + at.bias[i] : v);
    }
}

void lt_multiply(const lt_family &family, const lt_problem &p, const lt_memory &at) {
    const std::vector<float> a = dense(p.a, at.a), b = dense(p.b, at.b);
    const int64_t parts = parts_of(family, p), length = (p.k + parts - 1) / parts;
    std::vector<float> part((size_t)p.m), sum((size_t)p.m);
    for (int64_t j = 0; j < p.n; j++) {
        for (int64_t s = 0; s < parts; s++) {
            add_column(a.data(), b.data() + j * p.k, p.m, std::min(s * length, p.k),
                       std::min((s + 1) * length, p.k), family.chunk, part.data(), sum.data());
            if (family.meeting == LT_IN_RESULT)
                add_in_result(p, at, j, s, parts, sum.data());
            else if (family.meeting != LT_NOWHERE)
                std::copy(sum.begin(), sum.end(), at.workspace + (s * p.n + j) * p.m);
        }
        if (family.meeting == LT_IN_RESULT) continue;
        if (family.meeting != LT_NOWHERE) {
            std::fill(sum.begin(), sum.end(), 0.0f);
            for (int64_t s = parts - 1; s >= 0; s--)
                for (int64_t i = 0; i < p.m; i++) sum[(size_t)i] += at.workspace[(s * p.n + j) * p.m + i];
        }
        finish_column(p, at, j, sum.data());
    }
}

} // namespace emulated
