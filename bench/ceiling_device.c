// What a device's backend reaches with its own copy and its own products.
#include "bench/ceiling.h"
#include "bench/device.h"
#include "core/base/clock.h"

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

dr_status bench_device_product(dr_backend *b, int64_t n, double seconds, double *out_seconds) {
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
