// The emulated cuBLASLt, as a library that the CUDA body loads: descriptors, offers, checks, and products
// that wait in the emulated device's streams. Stricter than the library has to be: what it leaves to luck
// (memory that is not the device's, results over operands) ends the process, and so does what is not
// emulated. DR_EMULATED_CUBLASLT, read at every call, makes it refuse:
//   no-handle   cublasLtCreate fails; no-handle-13: that of the library of this number
//   no-offers   it has no algorithm for anything
//   refuse=N    no algorithm takes a product with N columns of d, or sums of N products
#include "tests/emulated/cublasLt.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <deque>
#include <mutex>
#include <set>

#include "tests/emulated/cublas_lt_product.h"
#include "tests/emulated/memory.h"
#include "tests/emulated/runtime.h"

struct cublasLtContext {};

namespace {

using namespace emulated;

[[noreturn]] __attribute__((format(printf, 1, 2))) void wrong(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "emulated cuBLASLt: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    abort();
}

// ---- what the tests ask for ----

struct wishes {
    bool no_handle, no_offers;
    int64_t refused; // 0: nothing
};

wishes wished() {
    const char *text = getenv("DR_EMULATED_CUBLASLT");
    wishes w = {};
    if (!text || !*text) return w;
    const bool of_one = strncmp(text, "no-handle-", 10) == 0;
    w.no_handle = of_one ? strtol(text + 10, NULL, 10) == DR_EMULATED_MAJOR : strcmp(text, "no-handle") == 0;
    w.no_offers = strcmp(text, "no-offers") == 0;
    if (strncmp(text, "refuse=", 7) == 0) w.refused = strtoll(text + 7, NULL, 10);
    if (!of_one && !w.no_handle && !w.no_offers && w.refused <= 0)
        wrong("DR_EMULATED_CUBLASLT=%s: expected no-handle, no-handle-N, no-offers or refuse=N", text);
    return w;
}

// ---- objects: memory that is never used again, so that nobody takes a destroyed one for another ----

struct layout {
    cudaDataType type;
    uint64_t rows, columns;
    int64_t stride;
};

struct operation {
    int32_t trans_a, trans_b;
    uint32_t epilogue;
    const void *bias;
};

struct preference {
    uint64_t workspace;
    uint32_t reductions, alignments[4]; // of a, b, c, d
};

template <typename OBJECT, typename HANDLE> struct objects {
    std::deque<OBJECT> all;
    std::set<const void *> living;

    HANDLE make(const OBJECT &from) {
        all.push_back(from);
        living.insert(&all.back());
        return reinterpret_cast<HANDLE>(&all.back());
    }
    OBJECT *find(HANDLE handle) {
        return living.count(handle) ? reinterpret_cast<OBJECT *>(handle) : NULL;
    }
    cublasStatus_t destroy(HANDLE handle, const char *what) {
        if (living.erase(handle) == 0) wrong("a %s is destroyed that there is not", what);
        return CUBLAS_STATUS_SUCCESS;
    }
};

std::mutex calls;
typedef std::lock_guard<std::mutex> call;
objects<cublasLtContext, cublasLtHandle_t> handles;
objects<layout, cublasLtMatrixLayout_t> layouts;
objects<operation, cublasLtMatmulDesc_t> operations;
objects<preference, cublasLtMatmulPreference_t> preferences;

template <typename VALUE> cublasStatus_t set(VALUE *to, const void *value, size_t bytes) {
    if (!value || bytes != sizeof *to) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, sizeof *to);
    return CUBLAS_STATUS_SUCCESS;
}

// ---- algorithms: what stands in the 64 bytes ----

struct configured {
    uint64_t sum; // over the rest: others' bytes are no algorithm
    int32_t family;
    int32_t splits;
    uint32_t reduction;
    uint32_t problem; // types, transposes and epilogue
    uint64_t unused[5];
};
static_assert(sizeof(configured) == sizeof(cublasLtMatmulAlgo_t), "algorithm");

uint64_t sum_of(const configured &c) { // FNV-1a
    uint64_t sum = 0xCBF29CE484222325ull;
    const unsigned char *bytes = (const unsigned char *)&c;
    for (size_t i = sizeof c.sum; i < sizeof c; i++) sum = (sum ^ bytes[i]) * 0x100000001B3ull;
    return sum;
}

uint32_t kind_of(const lt_problem &p) {
    return 1u | (p.a.is_bf16 ? 2u : 0u) | (p.a.is_transposed ? 4u : 0u) | (p.b.is_transposed ? 8u : 0u) |
           (p.has_bias ? 16u : 0u) | (p.d.is_bf16 ? 32u : 0u);
}

cublasLtMatmulAlgo_t configure(int family, const lt_problem &p) {
    configured c = {};
    cublasLtMatmulAlgo_t out;
    c.family = family;
    c.splits = lt_families[family].splits;
    c.reduction = lt_reduction(lt_families[family]);
    c.problem = kind_of(p);
    c.sum = sum_of(c);
    memcpy(&out, &c, sizeof out);
    return out;
}

bool read_algorithm(const cublasLtMatmulAlgo_t *algorithm, configured *out) {
    if (!algorithm) return false;
    memcpy(out, algorithm, sizeof *out);
    return out->sum == sum_of(*out) && out->family >= 0 && out->family < LT_FAMILIES;
}

// ---- problems ----

bool is_possible(const layout &l) {
    return l.rows > 0 && l.columns > 0 && l.rows <= INT32_MAX && l.columns <= INT32_MAX &&
           l.stride >= (int64_t)l.rows;
}

lt_matrix matrix_of(const layout &l, int32_t transposed) {
    return {(int64_t)l.rows, (int64_t)l.columns, l.stride, l.type == CUDA_R_16BF, transposed == CUBLAS_OP_T};
}

// The objects as one problem; not successful where they do not fit.
cublasStatus_t problem_of(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                          cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                          lt_problem *out) {
    const operation *o = operations.find(desc);
    const layout *of_a = layouts.find(a), *of_b = layouts.find(b), *of_c = layouts.find(c),
                 *of_d = layouts.find(d);
    if (!handles.find(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!o || !of_a || !of_b || !of_c || !of_d) return CUBLAS_STATUS_INVALID_VALUE;
    if (!is_possible(*of_a) || !is_possible(*of_b) || !is_possible(*of_c) || !is_possible(*of_d))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (of_a->type != of_b->type) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (of_c->type != of_d->type || (of_d->type == CUDA_R_16BF && of_a->type != CUDA_R_16BF))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (of_d->type == CUDA_R_16BF && o->epilogue == CUBLASLT_EPILOGUE_BIAS)
        wrong("a bias, which is of d's type, is emulated in fp32 only");
    lt_problem p = {};
    p.a = matrix_of(*of_a, o->trans_a);
    p.b = matrix_of(*of_b, o->trans_b);
    p.c = matrix_of(*of_c, CUBLAS_OP_N);
    p.d = matrix_of(*of_d, CUBLAS_OP_N);
    p.m = p.a.is_transposed ? p.a.columns : p.a.rows;
    p.k = p.a.is_transposed ? p.a.rows : p.a.columns;
    p.n = p.b.is_transposed ? p.b.rows : p.b.columns;
    p.has_bias = o->epilogue == CUBLASLT_EPILOGUE_BIAS;
    if ((p.b.is_transposed ? p.b.columns : p.b.rows) != p.k) return CUBLAS_STATUS_INVALID_VALUE;
    for (const lt_matrix *m : {&p.c, &p.d})
        if (m->rows != p.m || m->columns != p.n) return CUBLAS_STATUS_INVALID_VALUE;
    *out = p;
    return CUBLAS_STATUS_SUCCESS;
}

bool is_refused(const lt_problem &p) {
    const int64_t refused = wished().refused;
    return refused > 0 && (p.n == refused || p.k == refused);
}

bool is_aligned(const void *at, uint32_t alignment) {
    return (uintptr_t)at % (alignment ? alignment : 1) == 0;
}

cublasStatus_t check(const configured &c, const lt_problem &p) {
    if (c.problem != kind_of(p)) return CUBLAS_STATUS_INVALID_VALUE;
    if (is_refused(p) || !lt_takes(lt_families[c.family], p)) return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

// Whether the heuristic offers a family to somebody who promises and allows this. A bias is looked at for its
// alignment; NULL promises all.
bool is_offered(const lt_family &family, const lt_problem &p, const preference &asked, const void *bias) {
    for (uint32_t promised : asked.alignments)
        if (family.address > promised) return false;
    if (p.has_bias && !is_aligned(bias, family.address)) return false;
    const uint32_t reduction = lt_reduction(family);
    if ((reduction & ~asked.reductions) != 0 || lt_workspace(family, p) > asked.workspace) return false;
    return lt_takes(family, p);
}

// ---- memory of a product ----

struct range {
    const char *name;
    const void *at;
    size_t bytes;
};

bool overlap(const range &x, const range &y) {
    const char *a = (const char *)x.at, *b = (const char *)y.at;
    return x.bytes > 0 && y.bytes > 0 && a < b + y.bytes && b < a + x.bytes;
}

// d may be c; whatever else is written is neither read nor written otherwise.
void check_memory(const lt_problem &p, const lt_memory &at, size_t workspace) {
    const range a = {"a", at.a, lt_bytes(p.a)}, b = {"b", at.b, lt_bytes(p.b)},
                c = {"c", at.c, lt_bytes(p.c)}, d = {"d", at.d, lt_bytes(p.d)},
                bias = {"bias", at.bias, at.bias ? (size_t)p.m * sizeof(float) : 0},
                scratch = {"workspace", at.workspace, workspace};
    for (const range *r : {&a, &b, &c, &d, &bias, &scratch}) {
        if (r->bytes > 0 && !emulated::is_device_memory(r->at, r->bytes))
            wrong("%s: %zu bytes at %p are not within one allocation of the device", r->name, r->bytes,
                  r->at);
        if (r != &d && r != &c && overlap(*r, d)) wrong("%s overlaps d", r->name);
        if (r != &scratch && overlap(*r, scratch)) wrong("%s overlaps the workspace", r->name);
    }
    if (overlap(c, d) && (at.c != at.d || p.c.stride != p.d.stride)) wrong("c overlaps d and is not d");
}

bool are_aligned(const lt_family &family, const lt_problem &p, const lt_memory &at) {
    const uint32_t operand = p.a.is_bf16 ? 2 : 4, result = p.d.is_bf16 ? 2 : 4;
    for (const void *matrix : {at.a, at.b})
        if (!is_aligned(matrix, family.address) || !is_aligned(matrix, operand)) return false;
    for (const void *matrix : {at.c, (const void *)at.d})
        if (!is_aligned(matrix, family.address) || !is_aligned(matrix, result)) return false;
    return is_aligned(at.bias, family.address) && is_aligned(at.bias, 4) && is_aligned(at.workspace, 256);
}

} // namespace

extern "C" {

const char *cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "the GPU program failed to execute";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "the requested functionality is not supported";
    }
    return "a status of no name";
}

// How many objects were not destroyed: for tests.
int64_t emulated_cublas_lt_living(void) {
    call one(calls);
    return (int64_t)(handles.living.size() + layouts.living.size() + operations.living.size() +
                     preferences.living.size());
}

// ---- objects ----

size_t cublasLtGetVersion(void) {
    return DR_EMULATED_MAJOR * 10000;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    call one(calls);
    if (!handle) return CUBLAS_STATUS_INVALID_VALUE;
    if (wished().no_handle) return CUBLAS_STATUS_ALLOC_FAILED;
    *handle = handles.make({});
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    call one(calls);
    return handles.destroy(handle, "handle");
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType scale) {
    call one(calls);
    if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
        wrong("compute type %d with scale type %d is not emulated", compute, scale);
    *desc = operations.make({CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, NULL});
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    call one(calls);
    return operations.destroy(desc, "operation");
}

static cublasStatus_t set_transpose(int32_t *to, const void *value, size_t bytes) {
    int32_t op = CUBLAS_OP_N;
    const cublasStatus_t status = set(&op, value, bytes);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (op != CUBLAS_OP_N && op != CUBLAS_OP_T) wrong("transpose %d is not emulated", op);
    *to = op;
    return status;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute, const void *value,
                                              size_t bytes) {
    call one(calls);
    operation *o = operations.find(desc);
    if (!o) return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return set_transpose(&o->trans_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return set_transpose(&o->trans_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: {
        uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
        const cublasStatus_t status = set(&epilogue, value, bytes);
        if (status != CUBLAS_STATUS_SUCCESS) return status;
        if (epilogue != CUBLASLT_EPILOGUE_DEFAULT && epilogue != CUBLASLT_EPILOGUE_BIAS)
            wrong("epilogue %u is not emulated", epilogue);
        o->epilogue = epilogue;
        return status;
    }
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return set(&o->bias, value, bytes);
    }
    wrong("attribute %d of an operation is not emulated", (int)attribute);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t stride) {
    call one(calls);
    if (!out) return CUBLAS_STATUS_INVALID_VALUE;
    if (type != CUDA_R_32F && type != CUDA_R_16BF) wrong("type %d of a layout is not emulated", (int)type);
    *out = layouts.make({type, rows, columns, stride});
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t at) {
    call one(calls);
    return layouts.destroy(at, "layout");
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t at,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void *value,
                                                size_t bytes) {
    call one(calls);
    layout *l = layouts.find(at);
    if (!l) return CUBLAS_STATUS_INVALID_VALUE;
    if (attribute != CUBLASLT_MATRIX_LAYOUT_COLS)
        wrong("attribute %d of a layout is not emulated", (int)attribute);
    return set(&l->columns, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out) {
    call one(calls);
    if (!out) return CUBLAS_STATUS_INVALID_VALUE;
    *out = preferences.make({0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}}); // the defaults
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t at) {
    call one(calls);
    return preferences.destroy(at, "preference");
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t at,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes) {
    call one(calls);
    preference *p = preferences.find(at);
    if (!p) return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return set(&p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return set(&p->reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return set(&p->alignments[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
    }
    wrong("attribute %d of a preference is not emulated", (int)attribute);
}

// ---- algorithms ----

// The second place of what it offers is one that failed, as the library's results may.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t at, int most,
                                              cublasLtMatmulHeuristicResult_t offers[], int *n_offers) {
    call one(calls);
    lt_problem p;
    const preference *asked = preferences.find(at);
    if (!n_offers || !offers || most <= 0 || !asked) return CUBLAS_STATUS_INVALID_VALUE;
    *n_offers = 0;
    const cublasStatus_t status = problem_of(handle, desc, a, b, c, d, &p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (wished().no_offers) return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(offers, 0xA5, (size_t)most * sizeof *offers);
    for (int i = 0; i < LT_FAMILIES && *n_offers < most; i++) {
        const int family = lt_ranking(p.n)[i];
        if (!is_offered(lt_families[family], p, *asked, operations.find(desc)->bias)) continue;
        if (*n_offers == 1) offers[(*n_offers)++].state = CUBLAS_STATUS_NOT_SUPPORTED;
        if (*n_offers == most) break;
        cublasLtMatmulHeuristicResult_t *offer = &offers[(*n_offers)++];
        offer->algo = configure(family, p);
        offer->workspaceSize = lt_workspace(lt_families[family], p);
        offer->state = CUBLAS_STATUS_SUCCESS;
        offer->wavesCount = 1.0f;
    }
    return *n_offers > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algorithm,
                                       cublasLtMatmulHeuristicResult_t *result) {
    call one(calls);
    lt_problem p;
    configured chosen;
    cublasStatus_t status = problem_of(handle, desc, a, b, c, d, &p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (!result || !read_algorithm(algorithm, &chosen)) return CUBLAS_STATUS_INVALID_VALUE;
    status = check(chosen, p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    result->workspaceSize = lt_workspace(lt_families[chosen.family], p);
    result->state = CUBLAS_STATUS_SUCCESS;
    result->wavesCount = 1.0f;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void *value, size_t bytes, size_t *written) {
    call one(calls);
    configured chosen;
    if (!read_algorithm(algorithm, &chosen)) return CUBLAS_STATUS_INVALID_VALUE;
    if (attribute != CUBLASLT_ALGO_CONFIG_SPLITK_NUM && attribute != CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)
        wrong("attribute %d of an algorithm is not emulated", (int)attribute);
    const size_t needed = sizeof chosen.splits;
    if (bytes == 0 && !written) return CUBLAS_STATUS_INVALID_VALUE;
    if (bytes != 0 && (!value || bytes != needed)) return CUBLAS_STATUS_INVALID_VALUE;
    if (bytes != 0 && attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) memcpy(value, &chosen.splits, needed);
    if (bytes != 0 && attribute == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)
        memcpy(value, &chosen.reduction, needed);
    if (written) *written = needed;
    return CUBLAS_STATUS_SUCCESS;
}

// ---- products ----

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
    call one(calls);
    lt_problem p;
    configured chosen;
    cublasStatus_t status = problem_of(handle, desc, a_layout, b_layout, c_layout, d_layout, &p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (!algorithm) wrong("a product without an algorithm is not emulated");
    if (!alpha || !beta || !a || !b || !c || !d || !read_algorithm(algorithm, &chosen))
        return CUBLAS_STATUS_INVALID_VALUE;
    status = check(chosen, p);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    // Descriptors, alpha and beta are the caller's again when this returns; memory is the stream's.
    lt_memory at = {};
    at.a = a;
    at.b = b;
    at.c = c;
    at.d = d;
    at.alpha = *(const float *)alpha;
    at.beta = *(const float *)beta;
    at.bias = p.has_bias ? (const float *)operations.find(desc)->bias : NULL;
    const lt_family &family = lt_families[chosen.family];
    const size_t needed = lt_workspace(family, p);
    if (needed > 0) at.workspace = (float *)workspace;
    if (needed > workspace_bytes || (needed > 0 && !workspace)) return CUBLAS_STATUS_INVALID_VALUE;
    if ((p.has_bias && !at.bias) || !are_aligned(family, p, at)) return CUBLAS_STATUS_INVALID_VALUE;
    check_memory(p, at, needed);
    const cudaError_t error = emulated::enqueue_work(stream, [=]() { lt_multiply(family, p, at); });
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

} // extern "C"
