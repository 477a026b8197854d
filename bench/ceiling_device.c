// What a device reaches: with the backend's own copy, and with the products of cuBLASLt, which is free to
// choose.
#include "bench/ceiling.h"

#include <stdio.h>
#include <string.h>

#include "bench/device.h"
#include "core/base/clock.h"

#if DR_HAVE_CUDA_KERNELS
#include "cuda/backend_cuda.h"
#include "cuda/cuda_internal.h"
#endif

enum { CALLS = 4 }; // queued between two waits

typedef struct device_job {
    dr_backend *b;
    dr_weight *w;
    float *from, *to;
    int64_t n; // bytes of a copy, rows of a product
} device_job;

static dr_status copy_run(void *context, double *out_seconds) {
    device_job *j = context;
    DR_TRY(bench_wait(j->b, j->to));
    double begun = dr_clock_seconds();
    for (int i = 0; i < CALLS; i++) j->b->ops->copy(j->b, j->to, j->from, (size_t)j->n);
    DR_TRY(bench_wait(j->b, j->to));
    *out_seconds = (dr_clock_seconds() - begun) / CALLS;
    return DR_OK;
}

static dr_status product_run(void *context, double *out_seconds) {
    device_job *j = context;
    DR_TRY(bench_wait(j->b, j->to));
    double begun = dr_clock_seconds();
    for (int i = 0; i < CALLS; i++) DR_TRY(j->b->ops->linear_forward(j->b, j->w, j->from, j->n, NULL, j->to));
    DR_TRY(bench_wait(j->b, j->to));
    *out_seconds = (dr_clock_seconds() - begun) / CALLS;
    return DR_OK;
}

static void release(device_job *j) {
    if (j->w) j->b->ops->weight_destroy(j->b, j->w);
    if (j->from) j->b->ops->memory_destroy(j->b, j->from);
    if (j->to) j->b->ops->memory_destroy(j->b, j->to);
}

dr_status bench_device_copy(dr_backend *b, size_t bytes, double seconds, double *out_seconds) {
    device_job j = {.b = b, .n = (int64_t)bytes};
    int64_t n = j.n / (int64_t)sizeof(float);
    dr_status status = bench_normal(b, n, 0, 1, 1, &j.from);
    if (status == DR_OK) status = dr_memory_create(b, &j.to, "copy", n, sizeof(float));
    if (status == DR_OK) status = bench_median(copy_run, &j, seconds, out_seconds);
    release(&j);
    return status;
}

// ---- the library's products ----

#if DR_HAVE_CUDA_KERNELS
enum { MOST_OFFERS = 8 }; // that are timed, best by the library's estimate first

typedef struct library_job {
    dr_backend *b; // of a loose precision: the library may split sums and has a workspace
    dr_lt_product product;
    float *operands[2], *out;
    uint16_t *rounded[2]; // bf16 only
} library_job;

static dr_status library_run(void *context, double *out_seconds) {
    library_job *j = context;
    bool is_served = true;
    DR_TRY(bench_wait(j->b, j->out));
    double begun = dr_clock_seconds();
    for (int i = 0; i < CALLS && is_served; i++)
        DR_TRY(dr_cuda_lt_product(j->b->state, &j->product, &is_served));
    DR_TRY(bench_wait(j->b, j->out));
    *out_seconds = (dr_clock_seconds() - begun) / CALLS;
    DR_CHECK(is_served, DR_ERR_INTERNAL, "ceiling: cuBLASLt left a product undone");
    return DR_OK;
}

static dr_status library_create(dr_backend *like, int64_t n, library_job *j) {
    const bool rounds = dr_rounds_to_bf16(like->precision);
    dr_cuda_state *state = NULL;
    DR_TRY(dr_backend_cuda_create(rounds ? DR_BF16_LOOSE : DR_FP32_LOOSE, 0, &j->b));
    for (int i = 0; i < 2; i++) {
        DR_TRY(bench_normal(j->b, n * n, 0, 1, (uint64_t)(2 + i), &j->operands[i]));
        if (!rounds) continue;
        DR_TRY(dr_memory_create(j->b, &j->rounded[i], "operand", n * n, sizeof(uint16_t)));
        DR_TRY(dr_cuda_enter(j->b, &state));
        DR_TRY(dr_cuda_round_bf16(j->operands[i], n * n, j->rounded[i], state->stream));
    }
    DR_TRY(dr_memory_create(j->b, &j->out, "product", n * n, sizeof(float)));
    j->product = (dr_lt_product){.op = rounds ? DR_LT_FORWARD_ROUNDED : DR_LT_FORWARD,
                                 .n_out = n,
                                 .n_in = n,
                                 .T = n,
                                 .left = {j->operands[0], j->rounded[0], n * n},
                                 .right = {j->operands[1], j->rounded[1], n * n},
                                 .out = j->out};
    return DR_OK;
}

static void library_release(library_job *j) {
    if (!j->b) return;
    void *memory[] = {j->operands[0], j->operands[1], j->rounded[0], j->rounded[1], j->out};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        if (memory[i]) j->b->ops->memory_destroy(j->b, memory[i]);
    dr_backend_destroy(j->b);
}

// Its estimate is not always right: several offers are timed, and the fastest is the ceiling.
static dr_status library_fastest(library_job *j, double seconds, double *out_seconds, char note[BENCH_NOTE]) {
    int best = 0, n = 0;
    for (; n < MOST_OFFERS; n++) {
        bool is_there = false;
        double median = 0;
        DR_TRY(dr_cuda_lt_take_offer(j->b->state, &j->product, n, &is_there));
        if (!is_there) break;
        DR_TRY(bench_median(library_run, j, seconds, &median));
        if (n > 0 && median >= *out_seconds) continue;
        *out_seconds = median;
        best = n;
    }
    DR_CHECK(n > 0, DR_ERR_UNSUPPORTED, "ceiling: cuBLASLt offers nothing for this product");
    snprintf(note, BENCH_NOTE, "cuBLASLt, offer %d of %d", best + 1, n);
    return DR_OK;
}

static dr_status library_product(dr_backend *like, int64_t n, double seconds, double *out_seconds,
                                 char note[BENCH_NOTE]) {
    library_job j = {0};
    dr_status status = library_create(like, n, &j);
    if (status == DR_OK) status = library_fastest(&j, seconds, out_seconds, note);
    library_release(&j);
    return status;
}
#else
static dr_status library_product(dr_backend *like, int64_t n, double seconds, double *out_seconds,
                                 char note[BENCH_NOTE]) {
    (void)like, (void)n, (void)seconds, (void)out_seconds, (void)note;
    return DR_FAIL(DR_ERR_UNSUPPORTED, "ceiling: this build has no CUDA kernels");
}
#endif

static dr_status own_product(dr_backend *b, int64_t n, double seconds, double *out_seconds) {
    device_job j = {.b = b, .n = n};
    float *values = NULL;
    dr_status status;
    DR_TRY_GOTO(status, bench_normal(b, n * n, 0, 1, 2, &values), end);
    DR_TRY_GOTO(status, b->ops->weight_create(b, n, n, &j.w), end);
    DR_TRY_GOTO(status, b->ops->weight_pack(b, j.w, values), end);
    DR_TRY_GOTO(status, bench_normal(b, n * n, 0, 1, 3, &j.from), end);
    DR_TRY_GOTO(status, dr_memory_create(b, &j.to, "product", n * n, sizeof(float)), end);
    status = bench_median(product_run, &j, seconds, out_seconds);
end:
    release(&j);
    if (values) b->ops->memory_destroy(b, values);
    return status;
}

dr_status bench_device_product(dr_backend *b, int64_t n, double seconds, double *out_seconds,
                               char note[BENCH_NOTE]) {
    dr_status status = library_product(b, n, seconds, out_seconds, note);
    if (status != DR_ERR_UNSUPPORTED) return status;
    snprintf(note, BENCH_NOTE, "no cuBLASLt here: own linear_forward");
    return own_product(b, n, seconds, out_seconds);
}
