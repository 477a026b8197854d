// Products of linear layers through cuBLASLt, loaded when a backend is made. bf16: operands that are fp32 are
// rounded into scratch once a call, sums are fp32, and so are results but for those that are asked for as
// bf16, which the library rounds as it writes them. One algorithm serves a weight and an operation whatever T
// is, and no block shares an element's sum with another: rows are exact. The loose precisions take what the
// library thinks best for a T.
#include "cuda/linear_lt.h"

#include "cuda/cuda_internal.h"

#if defined(__has_include) && !defined(DR_WITHOUT_CUBLASLT)
#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define HAVE_CUBLASLT 1
#endif
#endif

#include <dlfcn.h>
#include <string.h>

enum { NAMES = 3 };
// The last one is for machines whose loader does not know the toolkit's folder.
static const char *const names[NAMES] = {"libcublasLt.so.13", "libcublasLt.so.12",
                                         "/usr/local/cuda/lib64/libcublasLt.so"};

void dr_cuda_lt_versions(int32_t *out_built, int32_t *out_found) {
    *out_built = *out_found = 0;
#ifdef HAVE_CUBLASLT
    *out_built = CUBLAS_VERSION;
#endif
    for (int i = 0; i < NAMES && *out_found == 0; i++) {
        void *library = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL);
        if (!library) continue;
        size_t (*get_version)(void) = NULL;
        void *symbol = dlsym(library, "cublasLtGetVersion");
        memcpy(&get_version, &symbol, sizeof symbol);
        if (get_version) *out_found = (int32_t)get_version();
        dlclose(library);
    }
}

#ifdef HAVE_CUBLASLT

#include <stdio.h>

#include <cuda_runtime_api.h>

#include "core/base/alloc.h"
#include "core/base/log.h"

// What is called of the library; only the types come from the header.
typedef struct library {
    __typeof__(&cublasLtCreate) create;
    __typeof__(&cublasLtDestroy) destroy;
    __typeof__(&cublasLtGetStatusString) status_string;
    __typeof__(&cublasLtMatmulDescCreate) desc_create;
    __typeof__(&cublasLtMatmulDescDestroy) desc_destroy;
    __typeof__(&cublasLtMatmulDescSetAttribute) desc_set;
    __typeof__(&cublasLtMatrixLayoutCreate) layout_create;
    __typeof__(&cublasLtMatrixLayoutDestroy) layout_destroy;
    __typeof__(&cublasLtMatrixLayoutSetAttribute) layout_set;
    __typeof__(&cublasLtMatmulPreferenceCreate) preference_create;
    __typeof__(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    __typeof__(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    __typeof__(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    __typeof__(&cublasLtMatmulAlgoCheck) check;
    __typeof__(&cublasLtMatmulAlgoConfigGetAttribute) config_get;
    __typeof__(&cublasLtMatmul) matmul;
} library;

// One key's descriptors and algorithm. Their columns are set to those of each call's T.
typedef struct choice {
    dr_lt_key key;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
    bool is_served;     // an algorithm was found; otherwise this program's own kernels serve
    int64_t taken_rows; // loose precisions: the T that it was last found to take; 0: none
} choice;

struct dr_cuda_lt {
    library lib;
    cublasLtHandle_t handle;
    bool is_bf16, is_loose;
    choice *choices;
    int64_t n_choices, capacity;
    dr_cuda_buffer operands[2], result, bias; // rounded; results and bias only where an address is odd
    dr_cuda_buffer workspace;                 // loose precisions only
};

#define LT_TRY(lt, call, what)                                                                               \
    do {                                                                                                     \
        cublasStatus_t lt_status_ = (call);                                                                  \
        DR_CHECK(lt_status_ == CUBLAS_STATUS_SUCCESS, DR_ERR_INTERNAL, "cublasLt, %s: %s", what,             \
                 (lt)->lib.status_string(lt_status_));                                                       \
    } while (0)

// ---- the library ----

// false: not there; `reason` says what.
static bool find(void *handle, const char *name, void *out_function, char *reason, size_t size) {
    void *symbol = dlsym(handle, name);
    if (!symbol) snprintf(reason, size, "the library has no %s", name);
    memcpy(out_function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static bool find_all(void *handle, library *out, char *reason, size_t size) {
    return find(handle, "cublasLtCreate", &out->create, reason, size) &&
           find(handle, "cublasLtDestroy", &out->destroy, reason, size) &&
           find(handle, "cublasLtGetStatusString", &out->status_string, reason, size) &&
           find(handle, "cublasLtMatmulDescCreate", &out->desc_create, reason, size) &&
           find(handle, "cublasLtMatmulDescDestroy", &out->desc_destroy, reason, size) &&
           find(handle, "cublasLtMatmulDescSetAttribute", &out->desc_set, reason, size) &&
           find(handle, "cublasLtMatrixLayoutCreate", &out->layout_create, reason, size) &&
           find(handle, "cublasLtMatrixLayoutDestroy", &out->layout_destroy, reason, size) &&
           find(handle, "cublasLtMatrixLayoutSetAttribute", &out->layout_set, reason, size) &&
           find(handle, "cublasLtMatmulPreferenceCreate", &out->preference_create, reason, size) &&
           find(handle, "cublasLtMatmulPreferenceDestroy", &out->preference_destroy, reason, size) &&
           find(handle, "cublasLtMatmulPreferenceSetAttribute", &out->preference_set, reason, size) &&
           find(handle, "cublasLtMatmulAlgoGetHeuristic", &out->heuristic, reason, size) &&
           find(handle, "cublasLtMatmulAlgoCheck", &out->check, reason, size) &&
           find(handle, "cublasLtMatmulAlgoConfigGetAttribute", &out->config_get, reason, size) &&
           find(handle, "cublasLtMatmul", &out->matmul, reason, size);
}

// The library of this name, started: one that is newer than the driver can be opened, and cannot start. It
// then stays open: other backends of this process may use it. false: `reason` says why.
static bool start_library(const char *name, library *out, cublasLtHandle_t *out_handle, bool *was_opened,
                          char *reason, size_t size) {
    char own[256] = "";
    void *shared = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!shared) {
        const char *error = dlerror();
        if (reason[0] == '\0') snprintf(reason, size, "%s", error ? error : name);
        return false;
    }
    cublasStatus_t status = CUBLAS_STATUS_NOT_INITIALIZED;
    bool is_whole = find_all(shared, out, own, sizeof own);
    if (is_whole) status = out->create(out_handle);
    if (status == CUBLAS_STATUS_SUCCESS) return true;
    if (is_whole) snprintf(own, sizeof own, "cublasLtCreate: %s", out->status_string(status));
    if (!*was_opened) snprintf(reason, size, "%s: %s", name, own);
    *was_opened = true;
    dlclose(shared);
    return false;
}

// The newest that starts; false: none does, and `reason` says why the first that is there does not.
static bool start_any(library *out, cublasLtHandle_t *out_handle, char *reason, size_t size) {
    bool was_opened = false;
    reason[0] = '\0';
    for (int i = 0; i < 2; i++)
        if (start_library(names[i], out, out_handle, &was_opened, reason, size)) return true;
    return !was_opened && start_library(names[2], out, out_handle, &was_opened, reason, size);
}

// ---- the choice of an algorithm ----

static dr_status layout_make(const dr_cuda_lt *lt, const dr_lt_matrix *m, cudaDataType type,
                             cublasLtMatrixLayout_t *out) {
    LT_TRY(lt, lt->lib.layout_create(out, type, (uint64_t)m->rows, (uint64_t)m->columns, m->stride),
           "layout");
    return DR_OK;
}

static dr_status columns_set(const dr_cuda_lt *lt, cublasLtMatrixLayout_t layout, const dr_lt_matrix *m) {
    const uint64_t columns = (uint64_t)m->columns;
    LT_TRY(lt, lt->lib.layout_set(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof columns), "columns");
    return DR_OK;
}

// The choice's layouts become those of a product of T rows.
static dr_status rows_set(const dr_cuda_lt *lt, const choice *c, int64_t T) {
    const dr_lt_shape shape = dr_lt_shape_of(c->key.op, c->key.n_out, c->key.n_in, T);
    DR_TRY(columns_set(lt, c->a, &shape.a));
    DR_TRY(columns_set(lt, c->b, &shape.b));
    return columns_set(lt, c->d, &shape.d);
}

static dr_status bias_set(const dr_cuda_lt *lt, const choice *c, const float *bias) {
    LT_TRY(lt, lt->lib.desc_set(c->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias), "bias");
    return DR_OK;
}

static dr_status desc_make(const dr_cuda_lt *lt, choice *c, const dr_lt_shape *shape) {
    const int32_t a = shape->a.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                  b = shape->b.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    LT_TRY(lt, lt->lib.desc_create(&c->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product");
    LT_TRY(lt, lt->lib.desc_set(c->desc, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a), "left operand");
    LT_TRY(lt, lt->lib.desc_set(c->desc, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b), "right operand");
    if (c->key.op != DR_LT_FORWARD_BIAS) return DR_OK;
    LT_TRY(lt, lt->lib.desc_set(c->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue),
           "epilogue");
    return bias_set(lt, c, (const float *)(uintptr_t)DR_LT_ALIGNMENT); // looked at for its alignment only
}

// What is asked for: the same alignments for every caller, and when exact nothing to sum over blocks with.
static dr_status preference_fill(const dr_cuda_lt *lt, cublasLtMatmulPreference_t preference) {
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint32_t alignment = DR_LT_ALIGNMENT;
    const uint32_t reductions =
        lt->is_loose ? CUBLASLT_REDUCTION_SCHEME_MASK : CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint64_t workspace = lt->is_loose ? DR_LT_WORKSPACE : 0;
    for (int i = 0; i < 4; i++)
        LT_TRY(lt, lt->lib.preference_set(preference, alignments[i], &alignment, sizeof alignment),
               "alignment");
    LT_TRY(lt,
           lt->lib.preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
                                  sizeof reductions),
           "reductions");
    LT_TRY(lt,
           lt->lib.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                  sizeof workspace),
           "workspace");
    return DR_OK;
}

static dr_status is_exact(const dr_cuda_lt *lt, const cublasLtMatmulHeuristicResult_t *found, bool *out) {
    int32_t n_splits = 0;
    uint32_t reduction = 0;
    size_t written = 0;
    LT_TRY(lt,
           lt->lib.config_get(&found->algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &n_splits, sizeof n_splits,
                              &written),
           "splits");
    LT_TRY(lt,
           lt->lib.config_get(&found->algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                              sizeof reduction, &written),
           "reduction");
    *out = dr_lt_is_exact(n_splits, reduction, found->workspaceSize);
    return DR_OK;
}

static dr_status takes(const dr_cuda_lt *lt, const choice *c, const cublasLtMatmulAlgo_t *algorithm,
                       int64_t T, bool *out) {
    const size_t workspace = lt->is_loose ? DR_LT_WORKSPACE : 0;
    cublasLtMatmulHeuristicResult_t result;
    DR_TRY(rows_set(lt, c, T));
    cublasStatus_t status = lt->lib.check(lt->handle, c->desc, c->a, c->b, c->d, c->d, algorithm, &result);
    *out = status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= workspace;
    return DR_OK;
}

// Whether the algorithm takes the numbers of rows that stand for those of the choice.
static dr_status takes_rows(const dr_cuda_lt *lt, const choice *c, const cublasLtMatmulAlgo_t *algorithm,
                            bool *out) {
    int64_t rows[DR_LT_MOST_CHECKED];
    int n = 0;
    dr_lt_checked(&c->key, rows, &n);
    *out = true;
    for (int i = 0; i < n && *out; i++) DR_TRY(takes(lt, c, algorithm, rows[i], out));
    return DR_OK;
}

enum { MOST_OFFERS = 64 };

// Of the library's offers, best first, the one that can serve behind `skipped` others that can.
static dr_status choose(const dr_cuda_lt *lt, choice *c, cublasLtMatmulPreference_t preference, int skipped) {
    cublasLtMatmulHeuristicResult_t offers[MOST_OFFERS];
    int n = 0;
    DR_TRY(preference_fill(lt, preference));
    DR_TRY(rows_set(lt, c, dr_lt_chosen_for(&c->key)));
    cublasStatus_t status =
        lt->lib.heuristic(lt->handle, c->desc, c->a, c->b, c->d, c->d, preference, MOST_OFFERS, offers, &n);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED)
        n = 0;
    else
        LT_TRY(lt, status, "choice of an algorithm");
    for (int i = 0; i < n && !c->is_served; i++) {
        bool is_fit = true;
        if (offers[i].state != CUBLAS_STATUS_SUCCESS) continue;
        if (!lt->is_loose) DR_TRY(is_exact(lt, &offers[i], &is_fit));
        if (is_fit) DR_TRY(takes_rows(lt, c, &offers[i].algo, &is_fit));
        if (!is_fit || skipped-- > 0) continue;
        c->algorithm = offers[i].algo;
        c->is_served = true;
    }
    return DR_OK;
}

static dr_status offer_take(const dr_cuda_lt *lt, choice *c, int skipped) {
    cublasLtMatmulPreference_t preference = NULL;
    c->is_served = false;
    LT_TRY(lt, lt->lib.preference_create(&preference), "preference");
    dr_status status = choose(lt, c, preference, skipped);
    lt->lib.preference_destroy(preference);
    return status;
}

static void choice_free(const dr_cuda_lt *lt, const choice *c) {
    if (c->desc) lt->lib.desc_destroy(c->desc);
    if (c->a) lt->lib.layout_destroy(c->a);
    if (c->b) lt->lib.layout_destroy(c->b);
    if (c->d) lt->lib.layout_destroy(c->d);
}

static dr_status choice_fill(const dr_cuda_lt *lt, choice *c) {
    const dr_lt_shape shape = dr_lt_shape_of(c->key.op, c->key.n_out, c->key.n_in, dr_lt_chosen_for(&c->key));
    const cudaDataType type = lt->is_bf16 ? CUDA_R_16BF : CUDA_R_32F,
                       result = c->key.op == DR_LT_FORWARD_ROUNDED ? CUDA_R_16BF : CUDA_R_32F;
    DR_TRY(desc_make(lt, c, &shape));
    DR_TRY(layout_make(lt, &shape.a, type, &c->a));
    DR_TRY(layout_make(lt, &shape.b, type, &c->b));
    DR_TRY(layout_make(lt, &shape.d, result, &c->d));
    DR_TRY(offer_take(lt, c, 0));
    if (!c->is_served)
        dr_info("cublasLt: no algorithm serves operation %d of a weight of %lld x %lld; the own kernels do",
                (int)c->key.op, (long long)c->key.n_out, (long long)c->key.n_in);
    return DR_OK;
}

static dr_status choice_of(dr_cuda_lt *lt, const dr_lt_key *key, choice **out_choice) {
    for (int64_t i = 0; i < lt->n_choices; i++)
        if (dr_lt_key_equal(&lt->choices[i].key, key)) {
            *out_choice = &lt->choices[i];
            return DR_OK;
        }
    if (lt->n_choices == lt->capacity) {
        int64_t bigger = lt->capacity ? 2 * lt->capacity : 64;
        DR_TRY(dr_grow(&lt->choices, "product algorithms", lt->capacity, bigger, sizeof *lt->choices));
        lt->capacity = bigger;
    }
    choice c = {.key = *key};
    dr_status status = choice_fill(lt, &c);
    if (status != DR_OK) {
        choice_free(lt, &c);
        return status;
    }
    lt->choices[lt->n_choices] = c;
    *out_choice = &lt->choices[lt->n_choices++];
    return DR_OK;
}

// What serves a product. The algorithm of a range of rows need not take all of them: what it wants of
// workspace does not grow evenly. Then there is one for T alone; which one is a matter of T, not of what was
// multiplied before.
static dr_status choice_for(dr_cuda_lt *lt, const dr_lt_product *p, const choice **out_choice) {
    dr_lt_key key = dr_lt_key_of(p->op, p->n_out, p->n_in, p->T, lt->is_loose);
    choice *c = NULL;
    bool is_taken = true;
    DR_TRY(choice_of(lt, &key, &c));
    if (lt->is_loose && c->is_served && c->taken_rows != p->T)
        DR_TRY(takes(lt, c, &c->algorithm, p->T, &is_taken));
    if (is_taken) {
        c->taken_rows = p->T;
    } else {
        key.only_rows = p->T;
        DR_TRY(choice_of(lt, &key, &c));
    }
    *out_choice = c;
    return DR_OK;
}

// ---- products ----

static dr_status device_copy(dr_cuda_state *state, void *to, const void *from, int64_t bytes) {
    DR_CUDA_TRY(DR_ERR_INTERNAL,
                cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice, state->stream),
                "copy of %lld bytes", (long long)bytes);
    return DR_OK;
}

// The operand in the type that is multiplied, at an address that the library takes: itself where it can be.
static dr_status operand_of(dr_cuda_state *state, int at, const dr_lt_operand *from, const void **out) {
    dr_cuda_lt *lt = state->lt;
    dr_cuda_buffer *buffer = &lt->operands[at];
    int64_t bytes = from->n * (int64_t)(lt->is_bf16 ? sizeof(uint16_t) : sizeof(float));
    const void *made = lt->is_bf16 ? (const void *)from->rounded : from->values;
    *out = made;
    if (made && dr_lt_is_aligned(made)) return DR_OK;
    DR_TRY(dr_cuda_reserve(state, buffer, "operand of a product", bytes));
    *out = buffer->data;
    if (made) return device_copy(state, buffer->data, made, bytes);
    return dr_cuda_round_bf16(from->values, from->n, buffer->data, state->stream);
}

// Scratch in the place of `memory` where the library does not take its address.
static dr_status stand_in(dr_cuda_state *state, dr_cuda_buffer *buffer, const void *memory, int64_t bytes,
                          bool is_read, void **out) {
    DR_TRY(dr_cuda_reserve(state, buffer, "result of a product", bytes));
    *out = buffer->data;
    return is_read ? device_copy(state, buffer->data, memory, bytes) : DR_OK;
}

static dr_status multiply(dr_cuda_state *state, const choice *c, const dr_lt_product *p, const void *left,
                          const void *right, void *out) {
    const dr_cuda_lt *lt = state->lt;
    const float one = 1.0f, beta = p->accumulate ? 1.0f : 0.0f;
    DR_TRY(rows_set(lt, c, p->T));
    cublasStatus_t status =
        lt->lib.matmul(lt->handle, c->desc, &one, left, c->a, right, c->b, &beta, out, c->d, out, c->d,
                       &c->algorithm, lt->workspace.data, (size_t)lt->workspace.bytes, state->stream);
    DR_CHECK(status == CUBLAS_STATUS_SUCCESS, DR_ERR_INTERNAL,
             "cublasLt, operation %d of %lld rows and a weight of %lld x %lld: %s", (int)p->op,
             (long long)p->T, (long long)p->n_out, (long long)p->n_in, lt->lib.status_string(status));
    return DR_OK;
}

dr_status dr_cuda_lt_product(dr_cuda_state *state, const dr_lt_product *p, bool *out_served) {
    dr_cuda_lt *lt = state->lt;
    *out_served = false;
    if (p->T == 0 || !dr_lt_serves(lt->is_bf16, p->n_out, p->n_in)) return DR_OK;
    const dr_lt_shape shape = dr_lt_shape_of(p->op, p->n_out, p->n_in, p->T);
    const size_t element = p->op == DR_LT_FORWARD_ROUNDED ? sizeof(uint16_t) : sizeof(float);
    const int64_t bytes = shape.d.rows * shape.d.columns * (int64_t)element;
    const choice *c = NULL;
    const void *left = NULL, *right = NULL;
    void *out = p->out, *bias = NULL;
    DR_TRY(choice_for(lt, p, &c));
    if (!c->is_served) return DR_OK;
    DR_TRY(operand_of(state, 0, &p->left, &left));
    DR_TRY(operand_of(state, 1, &p->right, &right));
    if (!dr_lt_is_aligned(p->out)) DR_TRY(stand_in(state, &lt->result, p->out, bytes, p->accumulate, &out));
    if (p->bias && !dr_lt_is_aligned(p->bias))
        DR_TRY(stand_in(state, &lt->bias, p->bias, p->n_out * (int64_t)sizeof(float), true, &bias));
    if (p->bias) DR_TRY(bias_set(lt, c, bias ? bias : p->bias));
    DR_TRY(multiply(state, c, p, left, right, out));
    *out_served = true;
    return out == p->out ? DR_OK : device_copy(state, p->out, out, bytes);
}

dr_status dr_cuda_lt_take_offer(dr_cuda_state *state, const dr_lt_product *p, int offer, bool *out_is_there) {
    dr_cuda_lt *lt = state->lt;
    choice *c = NULL;
    const dr_lt_key key = dr_lt_key_of(p->op, p->n_out, p->n_in, p->T, lt->is_loose);
    DR_TRY(choice_of(lt, &key, &c));
    DR_TRY(offer_take(lt, c, offer));
    *out_is_there = c->is_served;
    return DR_OK;
}

// ---- start and end ----

dr_status dr_cuda_lt_open(dr_cuda_state *state, dr_precision precision, const char **out_reason) {
    static char reason[512];
    library lib;
    cublasLtHandle_t handle = NULL;
    if (!start_any(&lib, &handle, reason, sizeof reason)) {
        *out_reason = reason;
        return DR_OK;
    }
    dr_status status = dr_alloc(&state->lt, "cublasLt", 1, sizeof *state->lt);
    if (status != DR_OK) {
        lib.destroy(handle);
        return status;
    }
    state->lt->lib = lib;
    state->lt->handle = handle;
    state->lt->is_bf16 = dr_rounds_to_bf16(precision);
    state->lt->is_loose = dr_is_loose(precision);
    if (!state->lt->is_loose) return DR_OK;
    return dr_cuda_reserve(state, &state->lt->workspace, "workspace of products", DR_LT_WORKSPACE);
}

void dr_cuda_lt_close(dr_cuda_state *state) {
    dr_cuda_lt *lt = state->lt;
    if (!lt) return;
    for (int64_t i = 0; i < lt->n_choices; i++) choice_free(lt, &lt->choices[i]);
    dr_cuda_release(state, &lt->operands[0]);
    dr_cuda_release(state, &lt->operands[1]);
    dr_cuda_release(state, &lt->result);
    dr_cuda_release(state, &lt->bias);
    dr_cuda_release(state, &lt->workspace);
    if (lt->handle) lt->lib.destroy(lt->handle);
    dr_free(lt->choices);
    dr_free(lt);
    state->lt = NULL;
}

#else

dr_status dr_cuda_lt_open(dr_cuda_state *state, dr_precision precision, const char **out_reason) {
    (void)state, (void)precision;
    *out_reason = "this build was made without cublasLt.h";
    return DR_OK;
}

void dr_cuda_lt_close(dr_cuda_state *state) {
    (void)state;
}

dr_status dr_cuda_lt_product(dr_cuda_state *state, const dr_lt_product *product, bool *out_served) {
    (void)state, (void)product;
    *out_served = false;
    return DR_OK;
}

dr_status dr_cuda_lt_take_offer(dr_cuda_state *state, const dr_lt_product *product, int offer,
                                bool *out_is_there) {
    (void)state, (void)product, (void)offer;
    *out_is_there = false;
    return DR_OK;
}

#endif
