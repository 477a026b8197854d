// Training tokens per second: forward, backward and AdamW on one pack, as the learner runs them.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/model/optimizer.h"

typedef struct trainer {
    dr_lm *lm;
    dr_lm_workspace *workspace;
    dr_optimizer *optimizer;
    int32_t n, length, n_rows;              // tokens of the pack and of a sequence, loss rows
    int32_t *ids, *bounds, *rows, *targets; // [n], [n / length + 1], [n_rows], [n_rows]
    float *logprob, *entropy, *dlogprob;    // [n_rows]
    float rate; // smaller for a wide model: a step of each weight moves a logit by width times as much
    dr_pack pack;
    float *gradient;                        // [n_params], backend memory
    double loss, norm;                      // of the last step: mean -log p, gradient norm
    double forward_s, backward_s, update_s; // of the last step
} trainer;

// Every token of a sequence but the last predicts its successor.
static dr_status create_pack(trainer *t, int32_t vocab, int32_t n_seqs, int32_t length) {
    int32_t n = 0;
    t->n = n_seqs * length;
    t->length = length;
    t->n_rows = n_seqs * (length - 1);
    DR_TRY(dr_alloc(&t->ids, "ids", t->n, sizeof *t->ids));
    DR_TRY(dr_alloc(&t->bounds, "bounds", n_seqs + 1, sizeof *t->bounds));
    int32_t **integers[] = {&t->rows, &t->targets};
    float **floats[] = {&t->logprob, &t->entropy, &t->dlogprob};
    for (int i = 0; i < 2; i++) DR_TRY(dr_alloc(integers[i], "rows", t->n_rows, sizeof(int32_t)));
    for (int i = 0; i < 3; i++) DR_TRY(dr_alloc(floats[i], "rows", t->n_rows, sizeof(float)));
    bench_fill_ids(4, vocab, t->n, t->ids);
    for (int32_t s = 0; s <= n_seqs; s++) t->bounds[s] = s * length;
    for (int32_t at = 0; at < t->n; at++)
        if (at % length != length - 1) {
            t->rows[n] = at;
            t->dlogprob[n] = -1.0f / (float)t->n_rows;
            t->targets[n++] = t->ids[at + 1];
        }
    t->pack = (dr_pack){.n_tokens = t->n,
                        .ids = t->ids,
                        .cu_seqlens = t->bounds,
                        .n_seqs = n_seqs,
                        .n_rows = t->n_rows,
                        .rows = t->rows,
                        .targets = t->targets};
    return DR_OK;
}

static void release_pack(trainer *t) {
    void *arrays[] = {t->ids, t->bounds, t->rows, t->targets, t->logprob, t->entropy, t->dlogprob};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) dr_free(arrays[i]);
}

static double mean_loss(const trainer *t) {
    double loss = 0;
    for (int r = 0; r < t->n_rows; r++) loss -= t->logprob[r] / (double)t->n_rows;
    return loss;
}

static void zero_gradient(trainer *t) {
    dr_backend *b = dr_lm_backend(t->lm);
    b->ops->zero(b, t->gradient, (size_t)dr_lm_n_params(t->lm) * sizeof(float));
}

static dr_status train_step(void *context, double *out_seconds) {
    trainer *t = context;
    double begun = dr_clock_seconds();
    zero_gradient(t);
    DR_TRY(dr_lm_forward(t->lm, t->workspace, &t->pack, 1.0f, t->logprob, t->entropy));
    double forward = dr_clock_seconds();
    DR_TRY(dr_lm_backward(t->lm, t->workspace, &t->pack, 1.0f, t->dlogprob, t->gradient, NULL));
    DR_TRY(bench_wait(dr_lm_backend(t->lm), t->gradient));
    double backward = dr_clock_seconds();
    DR_TRY(dr_optimizer_step(t->optimizer, t->gradient, t->rate, &t->norm));
    DR_TRY(bench_wait(dr_lm_backend(t->lm), t->gradient));
    double end = dr_clock_seconds();
    t->loss = mean_loss(t);
    t->forward_s = forward - begun;
    t->backward_s = backward - forward;
    t->update_s = end - backward;
    *out_seconds = end - begun;
    return DR_OK;
}

// The weights by `move` times the gradient.
static dr_status move_weights(trainer *t, float move) {
    dr_backend *b = dr_lm_backend(t->lm);
    int64_t n = dr_lm_n_params(t->lm);
    float *w = NULL, *g = NULL;
    DR_TRY(dr_host_open(b, dr_lm_params(t->lm), n, DR_HOST_CHANGES, &w));
    dr_status status = dr_host_open(b, t->gradient, n, DR_HOST_READS, &g);
    for (int64_t i = 0; i < n && status == DR_OK; i++) w[i] += move * g[i];
    dr_host_close(b, t->gradient, n, DR_HOST_READS, g);
    dr_host_close(b, dr_lm_params(t->lm), n, DR_HOST_CHANGES, w);
    return status == DR_OK ? dr_lm_weights_changed(t->lm) : status;
}

// The loss's slope along its gradient is the gradient's norm; by central differences, a short way to each
// side. fp32 only: so short a way is lost when weights are rounded to bf16.
static dr_status check_slope(bench_engine *engine, trainer *t) {
    double step = 0.02, loss[2];
    int64_t n = dr_lm_n_params(t->lm);
    zero_gradient(t);
    DR_TRY(dr_lm_forward(t->lm, t->workspace, &t->pack, 1.0f, t->logprob, t->entropy));
    DR_TRY(dr_lm_backward(t->lm, t->workspace, &t->pack, 1.0f, t->dlogprob, t->gradient, NULL));
    double norm = sqrt(dr_sum_of_squares(engine->backend, t->gradient, n));
    for (int side = 0; side < 2; side++) {
        float move = (float)((side == 0 ? -1 : 2) * step / norm); // to -step, then to +step
        DR_TRY(move_weights(t, move));
        DR_TRY(dr_lm_forward(t->lm, t->workspace, &t->pack, 1.0f, t->logprob, t->entropy));
        loss[side] = mean_loss(t);
    }
    double slope = (loss[1] - loss[0]) / (2 * step);
    DR_CHECK(fabs(slope - norm) <= 0.02 * norm, DR_ERR_INTERNAL,
             "check: the loss's slope along the gradient is %g, the gradient's norm %g", slope, norm);
    return DR_OK;
}

// A fresh model knows nothing, and updates on one pack bring its loss down.
static dr_status check_training(bench_engine *engine, trainer *t) {
    double unused = 0, before = 0;
    for (int step = 0; step < 2; step++) {
        DR_TRY(train_step(t, &unused));
        DR_CHECK(isfinite(t->loss) && isfinite(t->norm) && t->norm > 0, DR_ERR_INTERNAL,
                 "check: step %d has loss %g and gradient norm %g", step, t->loss, t->norm);
        DR_CHECK(step == 0 ? fabs(t->loss - log(engine->model.vocab)) < 1 : t->loss < before, DR_ERR_INTERNAL,
                 "check: loss %g at step %d, before %g, of a uniform guess %g", t->loss, step, before,
                 log(engine->model.vocab));
        before = t->loss;
    }
    return engine->backend->precision == DR_FP32 ? check_slope(engine, t) : DR_OK;
}

static void train_products(const trainer *t, const dr_lm_config *c,
                           bench_product out[3 * BENCH_LM_PRODUCTS]) {
    bench_lm_products(c, t->n, t->n_rows, out);
    for (int i = 0; i < BENCH_LM_PRODUCTS; i++) {
        bench_product p = out[i], *input = &out[BENCH_LM_PRODUCTS + i],
                      *weight = &out[2 * BENCH_LM_PRODUCTS + i];
        *input = (bench_product){.m = p.m, .n = p.k, .k = p.n, .count = p.count};                   // dy · W
        *weight = (bench_product){.m = p.n, .n = p.k, .k = p.m, .trans_a = true, .count = p.count}; // dyᵀ · x
    }
}

static dr_status train_figure(bench_engine *engine, trainer *t) {
    const dr_lm_config *c = dr_lm_config_of(t->lm);
    bench_product products[3 * BENCH_LM_PRODUCTS];
    char name[64], note[192], mfu[48];
    double seconds = 0, least = 0;
    train_products(t, c, products);
    // Causal attention: half of the 2 · 2 · L · H · d · T of a full square forward, twice that backward.
    double attention = 6.0 * c->n_layers * c->n_heads * c->head_size * t->length * t->n;
    double linear = bench_product_flops(products, 3 * BENCH_LM_PRODUCTS);
    DR_TRY(bench_products_seconds(engine->ceilings, products, 3 * BENCH_LM_PRODUCTS, &least));
    double rate = linear / least;
    DR_TRY(bench_median(train_step, t, engine->seconds, &seconds));
    bench_figure figure = {
        .name = name, .unit = "tokens/s", .bound = "GEMM", .note = note, .seconds = seconds};
    figure.mfu = bench_mfu(engine, (linear + attention) / seconds);
    figure.value = t->n / seconds;
    figure.ceiling = t->n / ((linear + attention) / rate);
    snprintf(name, sizeof name, "train.p%d.c%d", t->n, t->length);
    bench_mfu_note(engine, (linear + attention) / seconds, mfu, sizeof mfu);
    snprintf(note, sizeof note, "%.1f of %.1f GFLOP/s; forward %.4g s, backward %.4g s, AdamW %.4g s%s",
             (linear + attention) / seconds * 1e-9, rate * 1e-9, t->forward_s, t->backward_s, t->update_s,
             mfu);
    return bench_report_add(engine->report, &figure);
}

dr_status bench_train_figures(bench_engine *engine) {
    static const dr_optimizer_settings settings = {
        .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.01f, .clip_norm = 1.0f};
    trainer *t = NULL;
    dr_backend *b = engine->backend;
    dr_status status;
    DR_TRY(dr_alloc(&t, "trainer", 1, sizeof *t));
    dr_lm_config config = engine->model;
    t->rate = engine->is_large ? 1e-4f : 1e-3f;
    if (config.max_positions < engine->length) config.max_positions = engine->length;
    DR_TRY_GOTO(
        status,
        create_pack(t, config.vocab, engine->is_slow ? 1 : engine->pack / engine->length, engine->length),
        release);
    DR_TRY_GOTO(status, dr_lm_create(engine->backend, &config, 1, &t->lm), release);
    DR_TRY_GOTO(status, dr_lm_workspace_create(t->lm, t->n, DR_KEEP_ACTIVATIONS, &t->workspace), release);
    DR_TRY_GOTO(status, dr_optimizer_create(t->lm, &settings, NULL, &t->optimizer), release);
    DR_TRY_GOTO(status, dr_memory_create(b, &t->gradient, "gradient", dr_lm_n_params(t->lm), sizeof(float)),
                release);
    DR_TRY_GOTO(status, check_training(engine, t), release);
    bench_report_section(engine->report,
                         "Training: forward, backward and AdamW on a pack p of sequences of c");
    status = train_figure(engine, t);
release:
    if (t->gradient) b->ops->memory_destroy(b, t->gradient);
    dr_optimizer_destroy(t->optimizer);
    dr_lm_workspace_destroy(t->workspace);
    dr_lm_destroy(t->lm);
    release_pack(t);
    dr_free(t);
    return status;
}
