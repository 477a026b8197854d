// One trajectory of 16,384 tokens: forward and backward with activation recomputation, its speed and its
// memory.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"

enum { LONG = 16384, CHECKED = 1024, N_ROWS = 2048 }; // loss rows at the end: the policy's own tokens are few

typedef struct long_case {
    dr_lm *lm;
    int32_t *ids, rows[N_ROWS];
    float logprob[N_ROWS], entropy[N_ROWS], slope[N_ROWS];
    float *gradient, *other; // [n_params]
} long_case;

// One pass of the first n tokens, a loss on the last `n_rows` of them.
static dr_status run_pass(long_case *c, dr_activations activations, int32_t n, int32_t n_rows,
                          float *gradient, int64_t *out_bytes, double *out_seconds) {
    int32_t bounds[2] = {0, n};
    dr_lm_workspace *w = NULL;
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
    memset(gradient, 0, (size_t)dr_lm_n_params(c->lm) * sizeof *gradient);
    double begun = dr_clock_seconds();
    dr_status status = dr_lm_forward(c->lm, w, &pack, 1.0f, c->logprob, c->entropy);
    if (status == DR_OK) status = dr_lm_backward(c->lm, w, &pack, 1.0f, c->slope, gradient);
    *out_seconds = dr_clock_seconds() - begun;
    *out_bytes = dr_lm_workspace_bytes(w);
    dr_lm_workspace_destroy(w);
    return status;
}

// Recomputed and kept activations give the same gradient.
static dr_status check_recomputed(long_case *c) {
    int64_t bytes = 0, kept = 0;
    double unused = 0;
    DR_TRY(run_pass(c, DR_RECOMPUTE, CHECKED, CHECKED / 2, c->gradient, &bytes, &unused));
    DR_TRY(run_pass(c, DR_KEEP_ACTIVATIONS, CHECKED, CHECKED / 2, c->other, &kept, &unused));
    size_t size = (size_t)dr_lm_n_params(c->lm) * sizeof(float);
    DR_CHECK(
        memcmp(c->gradient, c->other, size) == 0 && bytes < kept, DR_ERR_INTERNAL,
        "check: the gradient with recomputation is another, or takes no less memory: %lld and %lld bytes",
        (long long)bytes, (long long)kept);
    return DR_OK;
}

static dr_status long_figure(bench_engine *engine, long_case *c) {
    const dr_lm_config *config = dr_lm_config_of(c->lm);
    bench_product products[BENCH_LM_PRODUCTS];
    char note[160];
    int64_t bytes = 0;
    double seconds = 0, least = 0, loss = 0;
    DR_TRY(run_pass(c, DR_RECOMPUTE, LONG, N_ROWS, c->gradient, &bytes, &seconds));
    for (int32_t r = 0; r < N_ROWS; r++) loss -= c->logprob[r] / (double)N_ROWS;
    double norm = sqrt(dr_sum_of_squares(engine->backend, c->gradient, dr_lm_n_params(c->lm)));
    DR_CHECK(fabs(loss - log(BENCH_VOCAB)) < 1 && isfinite(norm) && norm > 0, DR_ERR_INTERNAL,
             "check: loss %g of a uniform guess %g, gradient norm %g", loss, log(BENCH_VOCAB), norm);
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
    bench_figure figure = {.name = "train.p16384.c16384", .unit = "tokens/s", .bound = "GEMM", .note = note};
    figure.value = LONG / seconds;
    figure.ceiling = LONG / (flops / rate);
    snprintf(note, sizeof note, "%.0f s once; activations %.0f MB recomputed, loss head %.1f MB", seconds,
             (double)bytes * 1e-6,
             (double)engine->backend->ops->head_memory(engine->backend, BENCH_VOCAB, config->hidden) * 1e-6);
    return bench_report_add(engine->report, &figure);
}

dr_status bench_long_figures(bench_engine *engine) {
    dr_lm_config config;
    long_case *c = NULL;
    dr_status status;
    DR_TRY(dr_lm_preset("small", BENCH_VOCAB, &config));
    config.max_positions = LONG;
    DR_TRY(dr_alloc(&c, "long trajectory", 1, sizeof *c));
    DR_TRY_GOTO(status, dr_lm_create(engine->backend, &config, 1, &c->lm), release);
    DR_TRY_GOTO(status, dr_alloc(&c->ids, "ids", LONG + 1, sizeof *c->ids), release);
    DR_TRY_GOTO(status, dr_alloc(&c->gradient, "gradient", dr_lm_n_params(c->lm), sizeof(float)), release);
    DR_TRY_GOTO(status, dr_alloc(&c->other, "gradient", dr_lm_n_params(c->lm), sizeof(float)), release);
    bench_fill_ids(6, BENCH_VOCAB, LONG + 1, c->ids);
    DR_TRY_GOTO(status, check_recomputed(c), release);
    bench_report_section(engine->report, "One long trajectory: forward and backward with recomputation");
    status = long_figure(engine, c);
release:
    dr_free(c->ids);
    dr_free(c->gradient);
    dr_free(c->other);
    dr_lm_destroy(c->lm);
    dr_free(c);
    return status;
}
