// The emulated cuBLASLt: that it computes what the library's words say, and refuses what a strict one would.
#include "tests/cuda_memory.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/log.h"
#include "cuda/backend_cuda.h"
#include "tests/emulated/cublasLt.h"
#include "tests/emulated/stderr_to.h"

int64_t emulated_cublas_lt_living(void);

enum { M = 20, N = 24, K = 48, SPACE = 1 << 20, MOST = 16, GAP = 12 };
#define IS(call, status) assert_int_equal((call), CUBLAS_STATUS_##status)

// ---- one product, by the library's own calls ----

typedef struct product {
    bool is_bf16, a_transposed, b_transposed, has_bias, is_rounded; // rounded: d is bf16
    float alpha, beta;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulPreference_t preference;
    cudaStream_t stream;
    float *a_values, *b_values, *c_values, *bias_values; // the host's; a and b [stride, columns]
    void *a_at, *b_at, *d_at, *bias_at, *workspace;
} product;

static void *on_device(product *p, const void *values, size_t bytes) {
    void *at = NULL;
    assert_int_equal(cudaMalloc(&at, bytes), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(at, values, bytes, cudaMemcpyHostToDevice, p->stream), cudaSuccess);
    return at;
}

static uint16_t *halves_of(const float *values, int64_t n) { // values that bf16 has
    uint16_t *halves = op_array(n, sizeof *halves);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        halves[i] = (uint16_t)(bits >> 16);
    }
    return halves;
}

static void *operand(product *p, const float *values, int64_t n) {
    if (!p->is_bf16) return on_device(p, values, (size_t)n * sizeof *values);
    return on_device(p, halves_of(values, n), (size_t)n * sizeof(uint16_t));
}

static size_t d_bytes(const product *p) {
    return (M + GAP) * N * (p->is_rounded ? sizeof(uint16_t) : sizeof(float));
}

static const void *c_bytes_of(const product *p) {
    return p->is_rounded ? (const void *)halves_of(p->c_values, (M + GAP) * N) : p->c_values;
}

static int64_t rows_of(bool is_transposed, int64_t rows, int64_t columns) {
    return is_transposed ? columns : rows;
}

static void attributes_set(product *p) {
    const int32_t a = p->a_transposed, b = p->b_transposed;
    const uint32_t epilogue = p->has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT, aligned = 16;
    const uint64_t space = SPACE;
    IS(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a), SUCCESS);
    IS(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b), SUCCESS);
    IS(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue),
       SUCCESS);
    IS(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias_at,
                                      sizeof p->bias_at),
       SUCCESS);
    IS(cublasLtMatmulPreferenceSetAttribute(p->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &space,
                                            sizeof space),
       SUCCESS);
    for (int i = CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES; i <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES;
         i++)
        IS(cublasLtMatmulPreferenceSetAttribute(p->preference, (cublasLtMatmulPreferenceAttributes_t)i,
                                                &aligned, sizeof aligned),
           SUCCESS);
}

// p has its first seven fields. Columns of all matrices stand GAP elements apart.
static void product_open(product *p) {
    const cudaDataType type = p->is_bf16 ? CUDA_R_16BF : CUDA_R_32F,
                       result = p->is_rounded ? CUDA_R_16BF : CUDA_R_32F;
    const int64_t a_rows = rows_of(p->a_transposed, M, K), a_columns = M + K - a_rows;
    const int64_t b_rows = rows_of(p->b_transposed, K, N), b_columns = K + N - b_rows;
    const int64_t a_stride = 64, b_stride = 64, d_stride = M + GAP; // whole 16 bytes in both types
    assert_int_equal(cudaStreamCreateWithFlags(&p->stream, cudaStreamNonBlocking), cudaSuccess);
    p->a_values = rounded(op_normal(a_stride * a_columns, 0, 1), a_stride * a_columns);
    p->b_values = rounded(op_normal(b_stride * b_columns, 0, 1), b_stride * b_columns);
    p->c_values = p->beta != 0 ? op_normal(d_stride * N, 0, 1) : op_poison(d_stride * N);
    if (p->is_rounded) p->c_values = rounded(p->c_values, d_stride * N);
    p->bias_values = op_normal(M, 0, 1);
    p->a_at = operand(p, p->a_values, a_stride * a_columns);
    p->b_at = operand(p, p->b_values, b_stride * b_columns);
    p->d_at = on_device(p, c_bytes_of(p), d_bytes(p));
    p->bias_at = on_device(p, p->bias_values, M * sizeof(float));
    assert_int_equal(cudaMalloc(&p->workspace, SPACE), cudaSuccess);
    IS(cublasLtCreate(&p->handle), SUCCESS);
    IS(cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), SUCCESS);
    IS(cublasLtMatrixLayoutCreate(&p->a, type, (uint64_t)a_rows, (uint64_t)a_columns, a_stride), SUCCESS);
    IS(cublasLtMatrixLayoutCreate(&p->b, type, (uint64_t)b_rows, (uint64_t)b_columns, b_stride), SUCCESS);
    IS(cublasLtMatrixLayoutCreate(&p->d, result, M, N, d_stride), SUCCESS);
    IS(cublasLtMatmulPreferenceCreate(&p->preference), SUCCESS);
    attributes_set(p);
}

static void product_close(product *p) {
    cublasLtMatmulPreferenceDestroy(p->preference);
    cublasLtMatrixLayoutDestroy(p->a);
    cublasLtMatrixLayoutDestroy(p->b);
    cublasLtMatrixLayoutDestroy(p->d);
    cublasLtMatmulDescDestroy(p->desc);
    cublasLtDestroy(p->handle);
    void *const at[] = {p->a_at, p->b_at, p->d_at, p->bias_at, p->workspace};
    for (int i = 0; i < 5; i++) assert_int_equal(cudaFree(at[i]), cudaSuccess);
    assert_int_equal(cudaStreamDestroy(p->stream), cudaSuccess);
    op_free_arrays();
}

static cublasStatus_t offers_of(const product *p, cublasLtMatmulHeuristicResult_t offers[MOST], int *out_n) {
    return cublasLtMatmulAlgoGetHeuristic(p->handle, p->desc, p->a, p->b, p->d, p->d, p->preference, MOST,
                                          offers, out_n);
}

static cublasStatus_t multiply(const product *p, const cublasLtMatmulAlgo_t *algorithm, size_t space) {
    return cublasLtMatmul(p->handle, p->desc, &p->alpha, p->a_at, p->a, p->b_at, p->b, &p->beta, p->d_at,
                          p->d, p->d_at, p->d, algorithm, p->workspace, space, p->stream);
}

// d as the host has it; c stands in its place again behind that.
static float *result_of(product *p) {
    const size_t bytes = d_bytes(p);
    float *got = op_array((M + GAP) * N, sizeof *got);
    uint16_t *halves = op_array((M + GAP) * N, sizeof *halves);
    assert_int_equal(cudaMemcpyAsync(p->is_rounded ? (void *)halves : got, p->d_at, bytes,
                                     cudaMemcpyDeviceToHost, p->stream),
                     cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(p->d_at, c_bytes_of(p), bytes, cudaMemcpyHostToDevice, p->stream),
                     cudaSuccess);
    for (int i = 0; p->is_rounded && i < (M + GAP) * N; i++) {
        const uint32_t bits = (uint32_t)halves[i] << 16;
        memcpy(&got[i], &bits, sizeof bits);
    }
    return got;
}

static float *wanted(const product *p) {
    float *want = op_copy(p->c_values, (M + GAP) * N); // between columns nothing is written
    for (int j = 0; j < N; j++)
        for (int i = 0; i < M; i++) {
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += (double)p->a_values[p->a_transposed ? k + i * 64 : i + k * 64] *
                       p->b_values[p->b_transposed ? j + k * 64 : k + j * 64];
            sum *= p->alpha;
            if (p->beta != 0) sum += (double)p->beta * p->c_values[i + j * (M + GAP)];
            want[i + j * (M + GAP)] = (float)(sum + (p->has_bias ? p->bias_values[i] : 0));
        }
    return want;
}

static void check_columns(const float *got, const float *want, bool has_gaps) {
    for (int j = 0; j < N; j++) {
        const int at = j * (M + GAP);
        check_close("a column of d", got + at, want + at, M, 3e-5, 3e-5);
        if (has_gaps) check_same_bits("behind a column", got + at + M, want + at + M, GAP);
    }
}

// ---- what it computes ----

// Every algorithm that is offered, with every transpose, type, bias, alpha and beta: the product; and each in
// an order of its own.
static void test_products(void **state) {
    (void)state;
    for (int i = 0; i < 32; i++) {
        product p = {.is_bf16 = i & 1,
                     .a_transposed = i & 2,
                     .b_transposed = i & 4,
                     .has_bias = i & 8,
                     .alpha = i & 2 ? 1.0f : 0.5f,
                     .beta = i & 16 ? 1.25f : 0.0f};
        cublasLtMatmulHeuristicResult_t offers[MOST];
        const float *got[MOST];
        int n = 0, n_got = 0;
        product_open(&p);
        IS(offers_of(&p, offers, &n), SUCCESS);
        for (int k = 0; k < n; k++) {
            if (offers[k].state != CUBLAS_STATUS_SUCCESS) continue;
            IS(multiply(&p, &offers[k].algo, offers[k].workspaceSize), SUCCESS);
            got[n_got] = result_of(&p);
            check_columns(got[n_got], wanted(&p), true);
            for (int other = 0; other < n_got; other++)
                assert_memory_not_equal(got[n_got], got[other], (M + GAP) * N * sizeof(float));
            n_got++;
        }
        assert_true(n_got >= 7 && n_got == n - 1); // one of them failed
        product_close(&p);
    }
}

// d in bf16: the sum in fp32, rounded once, but where splits meet in d, which rounds every one.
static void test_rounded_results(void **state) {
    (void)state;
    for (int i = 0; i < 8; i++) {
        product p = {.is_bf16 = true,
                     .a_transposed = i & 1,
                     .b_transposed = i & 2,
                     .is_rounded = true,
                     .alpha = 1,
                     .beta = i & 4 ? 1.25f : 0.0f};
        cublasLtMatmulHeuristicResult_t offers[MOST];
        int n = 0, n_meeting = 0, n_once = 0;
        product_open(&p);
        IS(offers_of(&p, offers, &n), SUCCESS);
        for (int k = 0; k < n; k++) {
            uint32_t reduction = 0;
            size_t written = 0;
            if (offers[k].state != CUBLAS_STATUS_SUCCESS) continue;
            IS(cublasLtMatmulAlgoConfigGetAttribute(&offers[k].algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
                                                    &reduction, sizeof reduction, &written),
               SUCCESS);
            const bool meets = reduction == CUBLASLT_REDUCTION_SCHEME_INPLACE;
            IS(multiply(&p, &offers[k].algo, offers[k].workspaceSize), SUCCESS);
            const float *got = result_of(&p), *want = wanted(&p);
            for (int j = 0; j < N; j++) {
                const int at = j * (M + GAP);
                check_close("a column of d", got + at, want + at, M, meets ? 0.06 : 3e-5, 0x1p-8);
                check_same_bits("behind a column", got + at + M, p.c_values + at + M, GAP);
            }
            n_meeting += meets;
            n_once += !meets;
        }
        assert_true(n_meeting == 1 && n_once >= 6);
        product_close(&p);
    }
    // not of operands in fp32, and an algorithm is for one type of d
    product p = {.is_bf16 = true, .alpha = 1}, other = {.is_bf16 = true, .is_rounded = true, .alpha = 1},
            plain = {.is_rounded = true, .alpha = 1};
    cublasLtMatmulHeuristicResult_t offers[MOST];
    int n = 0;
    product_open(&p);
    product_open(&other);
    product_open(&plain);
    IS(offers_of(&p, offers, &n), SUCCESS);
    IS(multiply(&other, &offers[0].algo, SPACE), INVALID_VALUE);
    IS(offers_of(&plain, offers, &n), NOT_SUPPORTED);
    product_close(&plain);
    product_close(&other);
    product_close(&p);
}

// Sums beyond a bound on the workspace, or of a scheme that was not asked for, are not offered.
static void test_preferences(void **state) {
    (void)state;
    product p = {.is_bf16 = true, .alpha = 1};
    cublasLtMatmulHeuristicResult_t offers[MOST];
    const uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint64_t nothing = 0;
    int n = 0, n_splits[2] = {0, 0}, n_streamed[2] = {0, 0};
    product_open(&p);
    for (int exact = 0; exact < 2; exact++) {
        IS(offers_of(&p, offers, &n), SUCCESS);
        for (int i = 0; i < n; i++) {
            int32_t splits = 0;
            uint32_t reduction = 0;
            size_t written = 0;
            if (offers[i].state != CUBLAS_STATUS_SUCCESS) continue;
            IS(cublasLtMatmulAlgoConfigGetAttribute(&offers[i].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits,
                                                    sizeof splits, &written),
               SUCCESS);
            assert_int_equal(written, sizeof splits);
            IS(cublasLtMatmulAlgoConfigGetAttribute(&offers[i].algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
                                                    &reduction, sizeof reduction, &written),
               SUCCESS);
            assert_int_equal(splits > 1, reduction != 0);
            n_splits[exact] += splits > 1;
            n_streamed[exact] += splits == 1 && offers[i].workspaceSize > 0;
        }
        IS(cublasLtMatmulPreferenceSetAttribute(p.preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                &none, sizeof none),
           SUCCESS);
        IS(cublasLtMatmulPreferenceSetAttribute(p.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                &nothing, sizeof nothing),
           SUCCESS);
    }
    assert_int_equal(n_splits[0], 2);
    assert_int_equal(n_streamed[0], 1);
    assert_int_equal(n_splits[1] + n_streamed[1], 0);
    product_close(&p);
}

// A product reads memory when the stream comes to it, and what else it was given when it is called.
static void test_in_turn(void **state) {
    (void)state;
    product p = {.alpha = 1};
    const char *order = getenv("DR_EMULATED_ORDER");
    const size_t bytes = 64 * K * sizeof(float);
    cublasLtMatmulHeuristicResult_t offers[MOST];
    void *pinned = NULL;
    int n = 0;
    product_open(&p);
    IS(offers_of(&p, offers, &n), SUCCESS);
    assert_int_equal(cudaMallocHost(&pinned, bytes), cudaSuccess);
    memcpy(pinned, p.a_values, bytes);
    assert_int_equal(cudaMemcpyAsync(p.a_at, pinned, bytes, cudaMemcpyHostToDevice, p.stream), cudaSuccess);
    IS(multiply(&p, &offers[0].algo, SPACE), SUCCESS);
    const float *want = wanted(&p);
    const uint64_t one = 1;
    IS(cublasLtMatrixLayoutSetAttribute(p.d, CUBLASLT_MATRIX_LAYOUT_COLS, &one, sizeof one), SUCCESS);
    p.alpha = 7;
    if (!order || strcmp(order, "late") == 0) {
        memset(pinned, 0, bytes); // before the copy that stands before the product
        want = memset(op_array((M + GAP) * N, sizeof(float)), 0, (M + GAP) * N * sizeof(float));
    }
    check_columns(result_of(&p), want, false);
    assert_int_equal(cudaStreamSynchronize(p.stream), cudaSuccess);
    assert_int_equal(cudaFreeHost(pinned), cudaSuccess);
    product_close(&p);
}

// ---- what it refuses ----

static void test_sizes_of_attributes(void **state) {
    (void)state;
    product p = {.alpha = 1};
    const uint64_t value[2] = {1, 0};
    cublasLtMatmulHeuristicResult_t offers[MOST];
    size_t written = 0;
    int32_t splits;
    int n = 0;
    product_open(&p);
    IS(offers_of(&p, offers, &n), SUCCESS);
    IS(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSA, value, 8), INVALID_VALUE);
    IS(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, value, 1), INVALID_VALUE);
    IS(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, value, 4), INVALID_VALUE);
    IS(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSB, NULL, 4), INVALID_VALUE);
    IS(cublasLtMatrixLayoutSetAttribute(p.a, CUBLASLT_MATRIX_LAYOUT_COLS, value, 4), INVALID_VALUE);
    IS(cublasLtMatmulPreferenceSetAttribute(p.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, value, 4),
       INVALID_VALUE);
    IS(cublasLtMatmulPreferenceSetAttribute(p.preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, value,
                                            8),
       INVALID_VALUE);
    IS(cublasLtMatmulPreferenceSetAttribute(p.preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, value,
                                            8),
       INVALID_VALUE);
    IS(cublasLtMatmulAlgoConfigGetAttribute(&offers[0].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, 8,
                                            &written),
       INVALID_VALUE);
    IS(cublasLtMatmulAlgoConfigGetAttribute(&offers[0].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, NULL, 0,
                                            &written),
       SUCCESS);
    assert_int_equal(written, sizeof splits);
    IS(offers_of(&p, offers, &n), SUCCESS); // nothing was changed
    product_close(&p);
}

static void check_layout(uint64_t rows, uint64_t columns, int64_t stride, int which) {
    product p = {.alpha = 1};
    cublasLtMatmulHeuristicResult_t offers[MOST];
    cublasLtMatrixLayout_t other = NULL;
    int n = 0;
    product_open(&p);
    IS(offers_of(&p, offers, &n), SUCCESS);
    IS(cublasLtMatrixLayoutCreate(&other, CUDA_R_32F, rows, columns, stride), SUCCESS);
    product q = p;
    *(which == 0 ? &q.a : which == 1 ? &q.b : &q.d) = other;
    IS(multiply(&q, &offers[0].algo, SPACE), INVALID_VALUE);
    IS(offers_of(&q, offers, &n), INVALID_VALUE);
    cublasLtMatrixLayoutDestroy(other);
    product_close(&p);
}

static void test_layouts(void **state) {
    (void)state;
    check_layout(M, K + 1, 64, 0);
    check_layout(K - 1, N, 64, 1);
    check_layout(M + 1, N, 64, 2);
    check_layout(M, N + 1, 64, 2);
    check_layout(M, N, M - 1, 2); // columns over each other
    check_layout(M, 0, 64, 0);
}

static void test_addresses(void **state) {
    (void)state;
    product p = {.is_bf16 = true, .has_bias = true, .alpha = 1};
    cublasLtMatmulHeuristicResult_t offers[MOST];
    const uint32_t whole = 256;
    int n = 0, n_refused = 0;
    product_open(&p);
    for (int i = CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES; i <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES;
         i++)
        IS(cublasLtMatmulPreferenceSetAttribute(p.preference, (cublasLtMatmulPreferenceAttributes_t)i, &whole,
                                                sizeof whole),
           SUCCESS);
    IS(offers_of(&p, offers, &n), SUCCESS);
    product shifted = p;
    shifted.a_at = (char *)p.a_at + 16;
    IS(multiply(&shifted, &offers[0].algo, SPACE), INVALID_VALUE); // it is the one for what was promised
    shifted.a_at = (char *)p.a_at + 2;
    for (int i = 2; i < n; i++) n_refused += multiply(&shifted, &offers[i].algo, SPACE) != 0;
    assert_true(n_refused > 0 && n_refused < n - 2);
    shifted = p;
    shifted.workspace = (char *)p.workspace + 16;
    for (int i = 0; i < n; i++)
        if (offers[i].state == CUBLAS_STATUS_SUCCESS && offers[i].workspaceSize > 0) {
            IS(multiply(&shifted, &offers[i].algo, SPACE - 16), INVALID_VALUE);
            IS(multiply(&p, &offers[i].algo, offers[i].workspaceSize - 1), INVALID_VALUE);
        }
    product_close(&p);
}

static void test_algorithms(void **state) {
    (void)state;
    product p = {.is_bf16 = true, .alpha = 1}, other = {.is_bf16 = true, .a_transposed = true, .alpha = 1};
    cublasLtMatmulHeuristicResult_t offers[MOST], result;
    int n = 0;
    product_open(&p);
    product_open(&other);
    IS(offers_of(&p, offers, &n), SUCCESS);
    assert_int_equal(offers[1].state, CUBLAS_STATUS_NOT_SUPPORTED);
    IS(multiply(&p, &offers[1].algo, SPACE), INVALID_VALUE); // what a failed offer holds
    IS(multiply(&other, &offers[0].algo, SPACE), INVALID_VALUE);
    IS(cublasLtMatmulAlgoCheck(other.handle, other.desc, other.a, other.b, other.d, other.d, &offers[0].algo,
                               &result),
       INVALID_VALUE);
    IS(cublasLtMatmulAlgoCheck(p.handle, p.desc, p.a, p.b, p.d, p.d, &offers[0].algo, &result), SUCCESS);
    assert_int_equal(result.workspaceSize, offers[0].workspaceSize);
    product_close(&other);
    product_close(&p);
}

static void test_destroyed(void **state) {
    (void)state;
    product p = {.alpha = 1};
    cublasLtMatmulHeuristicResult_t offers[MOST];
    const uint64_t columns = 1;
    int n = 0;
    product_open(&p);
    product dead = p;
    IS(cublasLtCreate(&dead.handle), SUCCESS);
    IS(cublasLtDestroy(dead.handle), SUCCESS);
    IS(offers_of(&dead, offers, &n), NOT_INITIALIZED);
    dead = p;
    IS(cublasLtMatrixLayoutCreate(&dead.b, CUDA_R_32F, K, N, 64), SUCCESS);
    IS(offers_of(&dead, offers, &n), SUCCESS);
    IS(cublasLtMatrixLayoutDestroy(dead.b), SUCCESS);
    IS(offers_of(&dead, offers, &n), INVALID_VALUE);
    IS(multiply(&dead, &offers[0].algo, SPACE), INVALID_VALUE);
    IS(cublasLtMatrixLayoutSetAttribute(dead.b, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof columns),
       INVALID_VALUE);
    product_close(&p);
    assert_int_equal(emulated_cublas_lt_living(), 0);
}

// ---- what ends the process ----

static void check_ends(void (*call)(product *), const char *text) {
    const char *path = check_path(check_scratch_dir(), "stderr");
    product p = {.alpha = 1};
    product_open(&p);
    fflush(NULL);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        stderr_to(path);
        signal(SIGABRT, SIG_DFL); // cmocka's own
        call(&p);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    char *said = check_read_file(path, NULL);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || !strstr(said, text))
        fail_msg("expected an end with \"%s\", found status %d and \"%s\"", text, status, said);
    free(said);
    product_close(&p);
}

static void ask_for_order(product *p) {
    const int32_t row = 1;
    cublasLtMatrixLayoutSetAttribute(p->a, (cublasLtMatrixLayoutAttribute_t)1, &row, sizeof row);
}

static void ask_for_waves(product *p) {
    const float waves = 1;
    cublasLtMatmulPreferenceSetAttribute(p->preference, (cublasLtMatmulPreferenceAttributes_t)9, &waves,
                                         sizeof waves);
}

static void ask_for_relu(product *p) {
    const uint32_t relu = 2;
    cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &relu, sizeof relu);
}

static void destroy_twice(product *p) {
    cublasLtMatrixLayoutDestroy(p->a);
    cublasLtMatrixLayoutDestroy(p->a);
}

static void multiply_hosts(product *p) {
    cublasLtMatmulHeuristicResult_t offers[MOST];
    int n = 0;
    IS(offers_of(p, offers, &n), SUCCESS);
    p->a_at = (void *)((uintptr_t)(p->a_values + 64) & ~(uintptr_t)255);
    multiply(p, &offers[0].algo, SPACE);
}

static void multiply_over_operand(product *p) {
    cublasLtMatmulHeuristicResult_t offers[MOST];
    int n = 0;
    IS(offers_of(p, offers, &n), SUCCESS);
    p->b_at = p->d_at = p->a_at;
    multiply(p, &offers[0].algo, SPACE);
}

static void test_ends(void **state) {
    (void)state;
    check_ends(ask_for_order, "attribute 1 of a layout is not emulated");
    check_ends(ask_for_waves, "attribute 9 of a preference is not emulated");
    check_ends(ask_for_relu, "epilogue 2 is not emulated");
    check_ends(destroy_twice, "a layout is destroyed that there is not");
    check_ends(multiply_hosts, "a: ");
    check_ends(multiply_over_operand, "a overlaps d");
}

// ---- the program ----

int main(void) {
    const struct CMUnitTest tests[] = {
        cuda_test(test_products),   cuda_test(test_preferences),
        cuda_test(test_in_turn),    cuda_test(test_sizes_of_attributes),
        cuda_test(test_layouts),    cuda_test(test_addresses),
        cuda_test(test_algorithms), cuda_test(test_destroyed),
        cuda_test(test_ends),       cuda_test(test_rounded_results),
    };
    dr_log_set_level(DR_LOG_INFO);
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
