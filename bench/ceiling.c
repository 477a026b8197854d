// Ceilings: reads that cannot be optimised away, oneDNN products, and the table that keeps what was measured.
#include "bench/ceiling.h"

#include <dnnl.h>
#include <stdlib.h>
#include <string.h>

#include "bench/device.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/host_memory.h"
#include "core/base/hot.h"

enum { LEAST_REPEATS = sized(5, 1), MOST_REPEATS = 511, MOST_RATES = 256 };

// ---- timing ----

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

dr_status bench_median(bench_run run, void *context, double seconds, double *out_median_s) {
    double times[MOST_REPEATS], begun = 0;
    DR_TRY(run(context, &times[0])); // warm-up: caches, scratch, primitives
    int n = 0;
    begun = dr_clock_seconds();
    while (n < MOST_REPEATS && (n < LEAST_REPEATS || dr_clock_seconds() - begun < seconds))
        DR_TRY(run(context, &times[n++]));
    qsort(times, (size_t)n, sizeof *times, by_value);
    *out_median_s = n % 2 ? times[n / 2] : 0.5 * (times[n / 2 - 1] + times[n / 2]);
    return DR_OK;
}

// ---- what is kept ----

typedef struct measured_read {
    size_t bytes;
    double rate; // bytes/s
} measured_read;

typedef struct measured_product {
    bench_product shape; // count 1
    double seconds;
} measured_product;

struct bench_ceilings {
    dr_backend *device;           // NULL: the processor
    double copy_rate, flops_rate; // of the device; 0: not measured yet
    char product_note[BENCH_NOTE];
    int n_threads;
    bool bf16; // products of bf16 have units of their own; else they are fp32's
    double seconds;
    char *block; // read again and again
    size_t block_bytes;
    measured_read reads[MOST_RATES];
    measured_product products[MOST_RATES];
    int32_t n_reads, n_products;
    dnnl_engine_t engine; // bf16 only
    dnnl_stream_t stream;
};

static dr_status dnnl_try(dnnl_status_t status, const char *what) {
    DR_CHECK(status == dnnl_success, DR_ERR_INTERNAL, "oneDNN: %s failed with status %d", what, (int)status);
    return DR_OK;
}

dr_status bench_ceilings_create(dr_backend *backend, double seconds, bench_ceilings **out) {
    bench_ceilings *c = NULL;
    dr_status status;
    DR_TRY(dr_alloc(&c, "ceilings", 1, sizeof *c));
    c->seconds = seconds;
    if (!bench_is_cpu(backend)) {
        c->device = backend;
        *out = c;
        return DR_OK;
    }
    c->n_threads = backend->n_threads;
    c->bf16 = backend->precision == DR_BF16 && dr_cpu_has_bf16();
    int64_t last_cache = dr_host_cache();
    c->block_bytes = last_cache > (64 << 20) ? 4 * (size_t)last_cache : (size_t)256 << 20;
    DR_TRY_GOTO(status, dr_alloc(&c->block, "block to read", (int64_t)c->block_bytes, 1), destroy);
    memset(c->block, 1, c->block_bytes);
    if (c->bf16) {
        DR_TRY_GOTO(status, dnnl_try(dnnl_engine_create(&c->engine, dnnl_cpu, 0), "engine"), destroy);
        DR_TRY_GOTO(status,
                    dnnl_try(dnnl_stream_create(&c->stream, c->engine, dnnl_stream_in_order), "stream"),
                    destroy);
    }
    *out = c;
    return DR_OK;
destroy:
    bench_ceilings_destroy(c);
    return status;
}

void bench_ceilings_destroy(bench_ceilings *c) {
    if (!c) return;
    if (c->stream) dnnl_stream_destroy(c->stream);
    if (c->engine) dnnl_engine_destroy(c->engine);
    dr_free(c->block);
    dr_free(c);
}

// ---- reading ----

typedef uint64_t lanes __attribute__((vector_size(32)));

typedef struct read_job {
    const char *block;
    size_t bytes, passes;
    int n_threads;
} read_job;

// Eight independent sums, so that additions never wait; count is a multiple of 8.
static DR_HOT uint64_t sum_lanes(const lanes *x, size_t count) {
    lanes s[8] = {0};
    for (size_t i = 0; i < count; i += 8)
        for (int j = 0; j < 8; j++) s[j] += x[i + (size_t)j];
    for (int j = 1; j < 8; j++) s[0] += s[j];
    return s[0][0] + s[0][1] + s[0][2] + s[0][3];
}

static dr_status read_run(void *context, double *out_seconds) {
    const read_job *job = context;
    size_t unit = 8 * sizeof(lanes), part = job->bytes / (size_t)job->n_threads / unit * unit;
    uint64_t total = 0;
    static volatile uint64_t sink; // keeps the sums alive
    double begun = dr_clock_seconds();
#pragma omp parallel for num_threads(job->n_threads) schedule(static, 1) reduction(+ : total)
    for (int t = 0; t < job->n_threads; t++)
        for (size_t pass = 0; pass < job->passes; pass++)
            total += sum_lanes((const lanes *)(job->block + (size_t)t * part), part / sizeof(lanes));
    *out_seconds = dr_clock_seconds() - begun;
    sink = total;
    (void)sink;
    return DR_OK;
}

static dr_status device_rates(bench_ceilings *c) {
    const double side = BENCH_DEVICE_SIDE;
    double copy = 0, product = 0;
    if (c->copy_rate > 0) return DR_OK;
    DR_TRY(bench_device_copy(c->device, BENCH_DEVICE_BYTES, c->seconds, &copy));
    DR_TRY(bench_device_product(c->device, BENCH_DEVICE_SIDE, c->seconds, &product, c->product_note));
    c->copy_rate = 2.0 * BENCH_DEVICE_BYTES / copy;
    c->flops_rate = 2.0 * side * side * side / product;
    return DR_OK;
}

const char *bench_product_note(const bench_ceilings *c) {
    return c->product_note;
}

dr_status bench_read_rate(bench_ceilings *c, size_t bytes, double *out_rate) {
    if (c->device) {
        DR_TRY(device_rates(c));
        *out_rate = c->copy_rate;
        return DR_OK;
    }
    size_t unit = 8 * sizeof(lanes) * (size_t)c->n_threads;
    bytes = bytes == 0 || bytes > c->block_bytes ? c->block_bytes : bytes < unit ? unit : bytes;
    bytes = bytes / unit * unit; // what read_run reads
    for (int32_t i = 0; i < c->n_reads; i++)
        if (c->reads[i].bytes == bytes) {
            *out_rate = c->reads[i].rate;
            return DR_OK;
        }
    size_t shortest = (size_t)16 << 20; // small blocks are read several times a repeat
    read_job job = {c->block, bytes, bytes < shortest ? shortest / bytes : 1, c->n_threads};
    double seconds = 0;
    DR_TRY(bench_median(read_run, &job, c->seconds, &seconds));
    *out_rate = (double)(bytes * job.passes) / seconds;
    if (c->n_reads < MOST_RATES) c->reads[c->n_reads++] = (measured_read){bytes, *out_rate};
    return DR_OK;
}

// ---- products ----

double bench_product_flops(const bench_product *products, int32_t n) {
    double flops = 0;
    for (int32_t i = 0; i < n; i++)
        flops += 2.0 * (double)products[i].m * (double)products[i].n * (double)products[i].k *
                 (double)products[i].count;
    return flops;
}

typedef struct product_job {
    bench_product shape;
    float *a, *b, *c; // fp32
    int64_t repeats;  // small products are done several times a repeat
    // bf16
    dnnl_stream_t stream;
    dnnl_primitive_t primitive;
    dnnl_memory_t src, weights, dst;
} product_job;

static dr_status sgemm_run(void *context, double *out_seconds) {
    product_job *j = context;
    const bench_product *p = &j->shape;
    double begun = dr_clock_seconds();
    for (int64_t i = 0; i < j->repeats; i++)
        DR_TRY(
            dnnl_try(dnnl_sgemm(p->trans_a ? 'T' : 'N', p->trans_b ? 'T' : 'N', p->m, p->n, p->k, 1.0f, j->a,
                                p->trans_a ? p->m : p->k, j->b, p->trans_b ? p->k : p->n, 0.0f, j->c, p->n),
                     "sgemm"));
    *out_seconds = (dr_clock_seconds() - begun) / (double)j->repeats;
    return DR_OK;
}

static dr_status measure_sgemm(bench_ceilings *c, product_job *job, double *out_seconds) {
    const bench_product *p = &job->shape;
    dr_status status;
    DR_TRY_GOTO(status, dr_alloc(&job->a, "left factor", p->m * p->k, sizeof(float)), release);
    DR_TRY_GOTO(status, dr_alloc(&job->b, "right factor", p->k * p->n, sizeof(float)), release);
    DR_TRY_GOTO(status, dr_alloc(&job->c, "product", p->m * p->n, sizeof(float)), release);
    for (int64_t i = 0; i < p->m * p->k; i++) job->a[i] = (float)(i % 13) * 0.1f - 0.6f;
    for (int64_t i = 0; i < p->k * p->n; i++) job->b[i] = (float)(i % 11) * 0.1f - 0.5f;
    status = bench_median(sgemm_run, job, c->seconds, out_seconds);
release:
    dr_free(job->a);
    dr_free(job->b);
    dr_free(job->c);
    return status;
}

static dr_status matmul_run(void *context, double *out_seconds) {
    product_job *j = context;
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, j->src}, {DNNL_ARG_WEIGHTS, j->weights}, {DNNL_ARG_DST, j->dst}};
    double begun = dr_clock_seconds();
    for (int64_t i = 0; i < j->repeats; i++)
        DR_TRY(dnnl_try(dnnl_primitive_execute(j->primitive, j->stream, 3, args), "matmul"));
    DR_TRY(dnnl_try(dnnl_stream_wait(j->stream), "matmul"));
    *out_seconds = (dr_clock_seconds() - begun) / (double)j->repeats;
    return DR_OK;
}

// Memory of the library's own layout for the weights, filled with ones where bf16 wants it.
static dr_status matmul_memory(bench_ceilings *c, const dnnl_memory_desc_t *md, uint16_t value,
                               dnnl_memory_t *out) {
    void *data = NULL;
    DR_TRY(dnnl_try(dnnl_memory_create(out, md, c->engine, DNNL_MEMORY_ALLOCATE), "memory"));
    DR_TRY(dnnl_try(dnnl_memory_get_data_handle(*out, &data), "memory"));
    for (size_t i = 0; i < dnnl_memory_desc_get_size(md) / sizeof value; i++) ((uint16_t *)data)[i] = value;
    return DR_OK;
}

static dr_status create_matmul(bench_ceilings *c, product_job *job) {
    const bench_product *p = &job->shape;
    dnnl_dims_t a = {p->m, p->k}, b = {p->k, p->n}, y = {p->m, p->n};
    dnnl_memory_desc_t src, weights, dst;
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd = NULL;
    DR_TRY(dnnl_try(dnnl_memory_desc_init_by_tag(&src, 2, a, dnnl_bf16, p->trans_a ? dnnl_ba : dnnl_ab),
                    "source"));
    DR_TRY(dnnl_try(dnnl_memory_desc_init_by_tag(&weights, 2, b, dnnl_bf16, dnnl_format_tag_any), "weights"));
    DR_TRY(dnnl_try(dnnl_memory_desc_init_by_tag(&dst, 2, y, dnnl_f32, dnnl_ab), "result"));
    DR_TRY(dnnl_try(dnnl_matmul_desc_init(&desc, &src, &weights, NULL, &dst), "matmul"));
    DR_TRY(dnnl_try(dnnl_primitive_desc_create(&pd, &desc, NULL, c->engine, NULL), "bf16 matmul"));
    dr_status status;
    const dnnl_memory_desc_t *chosen = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    enum { BF16_ONE = 0x3F80 };
    DR_TRY_GOTO(status, dnnl_try(dnnl_primitive_create(&job->primitive, pd), "bf16 matmul"), release);
    DR_TRY_GOTO(status, matmul_memory(c, &src, BF16_ONE, &job->src), release);
    DR_TRY_GOTO(status, matmul_memory(c, chosen, BF16_ONE, &job->weights), release);
    DR_TRY_GOTO(status, matmul_memory(c, &dst, 0, &job->dst), release);
release:
    dnnl_primitive_desc_destroy(pd);
    return status;
}

static dr_status measure_matmul(bench_ceilings *c, product_job *job, double *out_seconds) {
    job->stream = c->stream;
    dr_status status = create_matmul(c, job);
    if (status == DR_OK) status = bench_median(matmul_run, job, c->seconds, out_seconds);
    if (job->primitive) dnnl_primitive_destroy(job->primitive);
    dnnl_memory_t owned[] = {job->src, job->weights, job->dst};
    for (int i = 0; i < 3; i++)
        if (owned[i]) dnnl_memory_destroy(owned[i]);
    return status;
}

static bool same_shape(const bench_product *a, const bench_product *b) {
    return a->m == b->m && a->n == b->n && a->k == b->k && a->trans_a == b->trans_a &&
           a->trans_b == b->trans_b && a->is_fp32 == b->is_fp32;
}

static dr_status product_seconds(bench_ceilings *c, const bench_product *shape, double *out_seconds) {
    for (int32_t i = 0; i < c->n_products; i++)
        if (same_shape(&c->products[i].shape, shape)) {
            *out_seconds = c->products[i].seconds;
            return DR_OK;
        }
    product_job job = {.shape = *shape};
    job.shape.count = 1;
    double flops = bench_product_flops(&job.shape, 1);
    job.repeats = flops < 2e7 ? (int64_t)(2e7 / flops) : 1;
    DR_TRY(measure_sgemm(c, &job, out_seconds));
    if (c->bf16 && !shape->is_fp32) { // units for bf16 may still be slower than those for fp32
        double seconds = 0;
        DR_TRY(measure_matmul(c, &job, &seconds));
        if (seconds < *out_seconds) *out_seconds = seconds;
    }
    if (c->n_products < MOST_RATES)
        c->products[c->n_products++] = (measured_product){job.shape, *out_seconds};
    return DR_OK;
}

dr_status bench_products_seconds(bench_ceilings *c, const bench_product *products, int32_t n,
                                 double *out_seconds) {
    double total = 0;
    if (c->device) {
        DR_TRY(device_rates(c));
        *out_seconds = bench_product_flops(products, n) / c->flops_rate;
        return DR_OK;
    }
    for (int32_t i = 0; i < n; i++) {
        double seconds = 0;
        DR_TRY(product_seconds(c, &products[i], &seconds));
        total += seconds * (double)products[i].count;
    }
    *out_seconds = total;
    return DR_OK;
}

dr_status bench_roofline(bench_ceilings *c, const bench_work *work, double *out_seconds,
                         const char **out_bound) {
    double rate = 0, compute = 0;
    DR_TRY(bench_read_rate(c, (size_t)work->bytes, &rate));
    DR_TRY(bench_products_seconds(c, work->products, work->n_products, &compute));
    double flops = bench_product_flops(work->products, work->n_products);
    if (flops > 0) compute *= 1 + work->other_flops / flops;
    double memory = work->bytes / rate;
    *out_seconds = memory > compute ? memory : compute;
    *out_bound = memory > compute ? "memory" : "compute";
    return DR_OK;
}
