// bench_ops: each op of core/compute/backend.h at the shapes of models, beside the ceilings measured in the
// same run. An op is first run on a slice of the shape, and its results held against the CPU body's in fp32.
// Exit status 0 only when every check held and every figure was written.
#include <getopt.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/engine_parts.h"
#include "bench/ops_parts.h"
#include "core/base/clock.h"
#include "core/base/log.h"

enum { CHECK_ROWS = 37 };

static const bench_ops_part *const parts[] = {&bench_ops_products, &bench_ops_rows, &bench_ops_attention,
                                              &bench_ops_head};
enum { N_PARTS = sizeof parts / sizeof *parts };

typedef struct settings {
    const char *backend, *json_path, *part, *shape, *only; // part, shape, only NULL: all
    dr_precision precision;
    int n_threads;
    int64_t rows, batch; // of the pack (0: 4,096 on a device, 512 on the processor), of decoding
    double seconds;
} settings;

typedef struct bencher {
    dr_backend *backend, *reference;
    bench_ceilings *ceilings;
    bench_report *report;
    const settings *s;
} bencher;

static const char usage[] =
    "bench_ops [--backend cpu|cuda|cuda-wgmma|cuda-reference] [--precision fp32|bf16] [--part NAME] [--only "
    "NAME,NAME]\n"
    "          [--shape tiny|small|0.5b|1.5b|7b] [--rows N] [--batch N] [--threads N] [--seconds S] [--json "
    "FILE]\n"
    "  --backend    the processor, or device 0 (default cpu); cuda-wgmma: there with packed attention by "
    "wgmma\n"
    "               in bf16 (compute capability 9.0), cuda-reference with the simple kernels\n"
    "  --precision  of the products (default fp32)\n"
    "  --part       products, rows, attention or head alone\n"
    "  --only       these figures alone, adamw.7b.t4096 say\n"
    "  --shape      sizes of one model alone (default: small and 0.5b, on a device 7b too)\n"
    "  --rows       of a training pack (default 512, on a device 4096); --batch of decoding (default 32)\n"
    "  --seconds    aimed at for one figure, of which at least five repeats are taken (default 0.2)\n"
    "  --json       file for one JSON line a figure\n";

// ---- the check ----

// Σ(got - want)² ≤ limit² Σwant²: 1e-4 in fp32, 2 % in bf16.
static dr_status compare(const char *name, const float *got, const float *want, int64_t n, double limit) {
    double gap = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        double difference = (double)got[i] - want[i];
        gap += difference * difference;
        size += (double)want[i] * want[i];
    }
    DR_CHECK(sqrt(gap) <= limit * sqrt(size), DR_ERR_INTERNAL,
             "check: %s: %lld values of length %g differ from the CPU body's in fp32 by %g, limit %g", name,
             (long long)n, sqrt(size), sqrt(gap), limit * sqrt(size));
    return DR_OK;
}

static dr_status compare_calls(const char *name, bench_call *got, bench_call *want, double limit) {
    for (int i = 0; i < BENCH_OP_OUTPUTS && got->out[i].values; i++) {
        int64_t n = got->out[i].n;
        float *mine = NULL, *theirs = NULL;
        dr_status status = dr_host_open(got->b, got->out[i].values, n, DR_HOST_READS, &mine);
        if (status == DR_OK) status = dr_host_open(want->b, want->out[i].values, n, DR_HOST_READS, &theirs);
        if (status == DR_OK) status = compare(name, mine, theirs, n, limit);
        dr_host_close(want->b, want->out[i].values, n, DR_HOST_READS, theirs);
        dr_host_close(got->b, got->out[i].values, n, DR_HOST_READS, mine);
        DR_TRY(status);
    }
    return got->out_host ? compare(name, got->out_host, want->out_host, got->n_out_host, limit) : DR_OK;
}

static dr_status run_once(const bench_op *op, bench_call *c) {
    DR_TRY(op->prepare(c));
    DR_TRY(op->run(c));
    return op->finish ? op->finish(c) : DR_OK;
}

// The shape's width and heads; few rows, a short vocabulary, a narrow middle.
static dr_status check_op(bencher *t, const bench_op *op, const dr_lm_config *shape) {
    dr_lm_config slice = *shape;
    slice.vocab = 1003;
    slice.intermediate = 384;
    bench_call got = {.b = t->backend, .m = &slice, .T = CHECK_ROWS},
               want = {.b = t->reference, .m = &slice, .T = CHECK_ROWS};
    dr_status status = run_once(op, &got);
    if (status == DR_OK) status = run_once(op, &want);
    if (status == DR_OK)
        status = compare_calls(op->name, &got, &want, t->backend->precision == DR_BF16 ? 0.02 : 1e-4);
    bench_call_reset(&got);
    bench_call_reset(&want);
    return status;
}

// ---- figures ----

typedef struct timed_op {
    const bench_op *op;
    bench_call *call;
    int64_t n; // calls between two waits
} timed_op;

static dr_status calls_run(void *context, double *out_seconds) {
    timed_op *t = context;
    DR_TRY(bench_wait(t->call->b, t->call->out[0].values));
    double begun = dr_clock_seconds();
    for (int64_t i = 0; i < t->n; i++) DR_TRY(t->op->run(t->call));
    DR_TRY(bench_wait(t->call->b, t->call->out[0].values));
    *out_seconds = (dr_clock_seconds() - begun) / (double)t->n;
    return DR_OK;
}

static dr_status time_op(bencher *t, const bench_op *op, bench_call *call, double *out_seconds) {
    const double least = 3e-3; // of a repeat, so that a wait does not show
    timed_op timed = {op, call, 1};
    double once = 0;
    DR_TRY(calls_run(&timed, &once)); // does not count
    DR_TRY(calls_run(&timed, &once));
    if (once < least) timed.n = (int64_t)ceil(least / once);
    if (timed.n > 1000) timed.n = 1000;
    return bench_median(calls_run, &timed, t->s->seconds, out_seconds);
}

static dr_status add_figure(bencher *t, const bench_op *op, const char *shape, const bench_call *call,
                            double seconds) {
    bench_work work = {.bytes = call->bytes, .products = &call->product, .n_products = 1};
    double flops = bench_product_flops(&call->product, 1), least = 0;
    char name[96], note[96];
    if (flops == 0) work.n_products = 0;
    bench_figure figure = {.name = name, .note = note, .seconds = seconds};
    DR_TRY(bench_roofline(t->ceilings, &work, &least, &figure.bound));
    bool is_memory = strcmp(figure.bound, "memory") == 0;
    double amount = is_memory ? work.bytes * 1e-9 : flops * 1e-12;
    figure.unit = is_memory ? "GB/s" : "TFLOP/s";
    figure.value = amount / seconds;
    figure.ceiling = amount / least;
    snprintf(name, sizeof name, "%s.%s.t%lld", op->name, shape, (long long)call->T);
    snprintf(note, sizeof note, "%.4g us", seconds * 1e6);
    return bench_report_add(t->report, &figure);
}

static bool is_wanted(const bencher *t, const bench_op *op, const char *shape, int64_t rows) {
    char name[96];
    snprintf(name, sizeof name, "%s.%s.t%lld", op->name, shape, (long long)rows);
    return bench_report_wants(t->report, name);
}

static dr_status measure(bencher *t, const bench_op *op, const char *shape, const dr_lm_config *model,
                         int64_t rows) {
    bench_call call = {.b = t->backend, .m = model, .T = rows};
    double seconds = 0;
    dr_status status = op->prepare(&call);
    if (status == DR_OK) status = time_op(t, op, &call, &seconds);
    if (status == DR_OK) status = add_figure(t, op, shape, &call, seconds);
    bench_call_reset(&call);
    return status;
}

// All ops of a part at one shape. A failure ends the run: what follows could not be trusted.
static dr_status run_part(bencher *t, const bench_ops_part *part, const char *shape) {
    dr_lm_config model;
    char title[160];
    int64_t rows = t->s->rows > 0 ? t->s->rows : bench_is_cpu(t->backend) ? 512 : 4096;
    DR_TRY(bench_model_shape(shape, &model));
    snprintf(title, sizeof title, "%s, sizes of %s, t rows", part->title, shape);
    bench_report_section(t->report, title);
    for (int i = 0; i < part->n; i++) {
        const bench_op *op = &part->ops[i];
        bool decodes = op->decodes && is_wanted(t, op, shape, t->s->batch),
             trains = op->trains && is_wanted(t, op, shape, rows);
        if (!decodes && !trains) continue;
        DR_TRY(check_op(t, op, &model));
        if (decodes) DR_TRY(measure(t, op, shape, &model, t->s->batch));
        if (trains) DR_TRY(measure(t, op, shape, &model, rows));
    }
    return DR_OK;
}

static dr_status run_parts(bencher *t) {
    static const char *const shapes[] = {"small", "0.5b", "7b"};
    int n = bench_is_cpu(t->backend) ? 2 : 3;
    for (int s = 0; s < n; s++)
        for (int p = 0; p < N_PARTS; p++) {
            if (t->s->part && strcmp(t->s->part, parts[p]->name) != 0) continue;
            const char *shape = t->s->shape ? t->s->shape : shapes[s];
            if (t->s->shape && s > 0) continue;
            DR_TRY(run_part(t, parts[p], shape));
        }
    return DR_OK;
}

// ---- options ----

static bool is_part(const char *name) {
    for (int i = 0; i < N_PARTS; i++)
        if (strcmp(parts[i]->name, name) == 0) return true;
    return false;
}

static bool read_option(int option, settings *s) {
    dr_lm_config unused;
    char *end = NULL;
    if (option == 'b') {
        s->backend = optarg;
        return bench_is_kind(optarg) && strcmp(optarg, "cuda-graphs") != 0;
    } else if (option == 'p') {
        s->precision = strcmp(optarg, "bf16") == 0 ? DR_BF16 : DR_FP32;
        return s->precision == DR_BF16 || strcmp(optarg, "fp32") == 0;
    } else if (option == 'a') {
        s->part = optarg;
        return is_part(optarg);
    } else if (option == 'm') {
        s->shape = optarg;
        return bench_model_shape(optarg, &unused) == DR_OK;
    } else if (option == 'j' || option == 'o') {
        *(option == 'j' ? &s->json_path : &s->only) = optarg;
        return true;
    } else if (option == 's') {
        s->seconds = strtod(optarg, &end);
        return *optarg && !*end && s->seconds > 0 && s->seconds <= 3600;
    }
    long value = strtol(optarg, &end, 10);
    if (option == 'r')
        s->rows = value;
    else if (option == 'd')
        s->batch = value;
    else
        s->n_threads = (int)value;
    return *optarg && !*end && value >= 1 && value <= (option == 'r' ? 1 << 20 : option == 'd' ? 4096 : 256);
}

static dr_status read_options(int argc, char **argv, settings *s) {
    static const struct option options[] = {{"backend", required_argument, NULL, 'b'},
                                            {"precision", required_argument, NULL, 'p'},
                                            {"part", required_argument, NULL, 'a'},
                                            {"shape", required_argument, NULL, 'm'},
                                            {"rows", required_argument, NULL, 'r'},
                                            {"batch", required_argument, NULL, 'd'},
                                            {"only", required_argument, NULL, 'o'},
                                            {"threads", required_argument, NULL, 't'},
                                            {"seconds", required_argument, NULL, 's'},
                                            {"json", required_argument, NULL, 'j'},
                                            {0}};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
        if (option == '?' || !read_option(option, s)) {
            fputs(usage, stderr);
            return DR_FAIL(DR_ERR_ARGUMENT, "%s", option == '?' ? "unknown option" : optarg);
        }
    DR_CHECK(optind == argc, DR_ERR_ARGUMENT, "unexpected argument %s", argv[optind]);
    return DR_OK;
}

static dr_status run(int argc, char **argv) {
    settings s = {.backend = "cpu", .seconds = 0.2, .batch = 32};
    bencher t = {.s = &s};
    bench_device device;
    dr_status status;
    DR_TRY(read_options(argc, argv, &s));
    if (s.n_threads > 0) omp_set_num_threads(s.n_threads); // oneDNN's threads, too
    DR_TRY(bench_backend_open(s.backend, s.precision, s.n_threads, &t.backend, &device));
    DR_TRY_GOTO(status, dr_backend_cpu_create(DR_FP32, s.n_threads, &t.reference), release);
    DR_TRY_GOTO(status, bench_ceilings_create(t.backend, 0.5 * s.seconds, &t.ceilings), release);
    DR_TRY_GOTO(status, bench_report_open(s.json_path, t.backend, s.backend, device.name, &t.report),
                release);
    bench_report_only(t.report, s.only);
    status = run_parts(&t);
    if (status == DR_OK) status = bench_report_complete(t.report);
    dr_status closed = bench_report_close(t.report);
    if (status == DR_OK) status = closed;
release:
    bench_ceilings_destroy(t.ceilings);
    dr_backend_cpu_destroy(t.reference);
    dr_backend_destroy(t.backend);
    return status;
}

int main(int argc, char **argv) {
    dr_log_set_level(DR_LOG_WARN);
    dr_status status = run(argc, argv);
    if (status != DR_OK) fprintf(stderr, "bench_ops: %s: %s\n", dr_status_name(status), dr_last_error());
    return status == DR_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
