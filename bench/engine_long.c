// One trajectory of 16,384 tokens: forward and backward with activation recomputation, its speed and its
// memory.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"

enum {
    LONG = sized(16384, 256),
    CHECKED = sized(1024, 64),
    N_ROWS = sized(2048, 64)
}; // loss rows at the end: the policy's own tokens are few

typedef struct long_case {
    dr_lm *lm;
    int32_t *ids, rows[N_ROWS];
    float logprob[N_ROWS], entropy[N_ROWS], slope[N_ROWS];
    float *gradient, *other; // [n_params], backend memory
} long_case;

// One pass of the first n tokens, a loss on the last `n_rows` of them.
static dr_status run_pass(long_case *c, dr_activations activations, int32_t n, int32_t n_rows,
                          float *gradient, int64_t *out_bytes, double *out_seconds) {
    int32_t bounds[2] = {0, n};
    dr_lm_workspace *w = NULL;
    dr_status status;
    for (int32_t r = 0; r < n_rows; r++) {
        c->rows[r] = n - n_rows + r;
        c->slope[r] = -1.0f / (float)n_rows;
    }
    dr_pack pack = {.n_tokens = n,
                    .ids = c->ids,
                    .cu_seqlens = bounds,
                    .n_seqs = 1,
                    .n_rows = n_rows,
                    .rows = c->rows,
                    .targets = c->ids + 1 + n - n_rows};
    DR_TRY(dr_lm_workspace_create(c->lm, n, activations, &w));
    dr_backend *b = dr_lm_backend(c->lm);
    b->ops->zero(b, gradient, (size_t)dr_lm_n_params(c->lm) * sizeof *gradient);
    DR_TRY_GOTO(status, bench_wait(b, gradient), destroy);
    double begun = dr_clock_seconds();
    DR_TRY_GOTO(status, dr_lm_forward(c->lm, w, &pack, 1.0f, c->logprob, c->entropy), destroy);
    DR_TRY_GOTO(status, dr_lm_backward(c->lm, w, &pack, 1.0f, c->slope, gradient, NULL), destroy);
    DR_TRY_GOTO(status, bench_wait(b, gradient), destroy);
    *out_seconds = dr_clock_seconds() - begun;
    *out_bytes = dr_lm_workspace_bytes(w);
destroy:
    dr_lm_workspace_destroy(w);
    return status;
}

// Recomputed and kept activations give the same gradient.
static dr_status check_recomputed(long_case *c) {
    int64_t bytes = 0, kept = 0;
    double unused = 0;
    DR_TRY(run_pass(c, DR_RECOMPUTE, CHECKED, CHECKED / 2, c->gradient, &bytes, &unused));
    DR_TRY(run_pass(c, DR_KEEP_ACTIVATIONS, CHECKED, CHECKED / 2, c->other, &kept, &unused));
    int64_t n = dr_lm_n_params(c->lm);
    dr_backend *b = dr_lm_backend(c->lm);
    float *one = NULL, *two = NULL;
    dr_status status = dr_host_open(b, c->gradient, n, DR_HOST_READS, &one);
    if (status == DR_OK) status = dr_host_open(b, c->other, n, DR_HOST_READS, &two);
    bool is_same = status == DR_OK && memcmp(one, two, (size_t)n * sizeof *one) == 0;
    dr_host_close(b, c->gradient, n, DR_HOST_READS, one);
    dr_host_close(b, c->other, n, DR_HOST_READS, two);
    DR_TRY(status);
    DR_CHECK(
        is_same && bytes < kept, DR_ERR_INTERNAL,
        "check: the gradient with recomputation is another, or takes no less memory: %lld and %lld bytes",
        (long long)bytes, (long long)kept);
    return DR_OK;
}

static dr_status long_figure(bench_engine *engine, long_case *c) {
    const dr_lm_config *config = dr_lm_config_of(c->lm);
    int32_t V = config->vocab;
    bench_product products[BENCH_LM_PRODUCTS];
    char name[64], note[224], mfu[48];
    int64_t bytes = 0;
    double seconds = 0, least = 0, loss = 0;
    DR_TRY(run_pass(c, DR_RECOMPUTE, LONG, N_ROWS, c->gradient, &bytes, &seconds));
    for (int32_t r = 0; r < N_ROWS; r++) loss -= c->logprob[r] / (double)N_ROWS;
    double norm = sqrt(dr_sum_of_squares(engine->backend, c->gradient, dr_lm_n_params(c->lm)));
    DR_CHECK(fabs(loss - log(V)) < 1 && isfinite(norm) && norm > 0, DR_ERR_INTERNAL,
             "check: loss %g of a uniform guess %g, gradient norm %g", loss, log(V), norm);
    bench_lm_products(config, LONG, N_ROWS, products);
    DR_TRY(bench_products_seconds(engine->ceilings, products, BENCH_LM_PRODUCTS, &least));
    double linear = bench_product_flops(products, BENCH_LM_PRODUCTS), rate = linear / least;
    double attention =
        LONG * bench_attention_flops(config, LONG / 2.0); // half of the square, for it is causal
    // forward, backward, which is twice that, and once more all layers but the last, up to their third
    // product
    double again = (double)(config->n_layers - 1) / config->n_layers;
    double flops = 3 * (linear + attention) + again * (bench_product_flops(products, 1) + attention) +
                   bench_product_flops(products + 1, 2);
    bench_figure figure = {.name = name, .unit = "tokens/s", .bound = "GEMM", .note = note};
    figure.value = LONG / seconds;
    figure.ceiling = LONG / (flops / rate);
    snprintf(name, sizeof name, "train.p%d.c%d", LONG, LONG);
    bench_mfu_note(engine, flops / seconds, mfu, sizeof mfu);
    snprintf(note, sizeof note, "%.3g s once; activations %.0f MB recomputed, loss head %.1f MB%s", seconds,
             (double)bytes * 1e-6,
             (double)engine->backend->ops->head_memory(engine->backend, N_ROWS, V, config->hidden) * 1e-6,
             mfu);
    return bench_report_add(engine->report, &figure);
}

dr_status bench_long_figures(bench_engine *engine) {
    dr_lm_config config = engine->model;
    dr_backend *b = engine->backend;
    long_case *c = NULL;
    dr_status status;
    config.max_positions = LONG;
    DR_TRY(dr_alloc(&c, "long trajectory", 1, sizeof *c));
    DR_TRY_GOTO(status, dr_lm_create(engine->backend, &config, 1, &c->lm), release);
    DR_TRY_GOTO(status, dr_alloc(&c->ids, "ids", LONG + 1, sizeof *c->ids), release);
    DR_TRY_GOTO(status, dr_memory_create(b, &c->gradient, "gradient", dr_lm_n_params(c->lm), sizeof(float)),
                release);
    DR_TRY_GOTO(status, dr_memory_create(b, &c->other, "gradient", dr_lm_n_params(c->lm), sizeof(float)),
                release);
    bench_fill_ids(6, config.vocab, LONG + 1, c->ids);
    DR_TRY_GOTO(status, check_recomputed(c), release);
    bench_report_section(engine->report, "One long trajectory: forward and backward with recomputation");
    status = long_figure(engine, c);
release:
    dr_free(c->ids);
    if (c->gradient) b->ops->memory_destroy(b, c->gradient);
    if (c->other) b->ops->memory_destroy(b, c->other);
    dr_lm_destroy(c->lm);
    dr_free(c);
    return status;
}
