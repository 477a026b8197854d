// Packing and the losses. Trajectories go into micro-batches in the order they come, so the sum's order is
// fixed.
#include "core/learn/learner.h"

#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/learn/micro_batch.h"

struct dr_learner {
    dr_lm *lm, *reference;
    int64_t pack_tokens;
    dr_lm_workspace *workspace, *reference_workspace;
    dr_micro_batch batch;
    float *logprob, *entropy, *reference_logprob, *ignored, *dlogprob; // [rows]
};

void dr_learn_stats_add(dr_learn_stats *sum, const dr_learn_stats *part) {
    sum->tokens += part->tokens;
    sum->run_tokens += part->run_tokens;
    sum->loss += part->loss;
    sum->entropy += part->entropy;
    sum->ratio += part->ratio;
    sum->clipped += part->clipped;
    sum->kl += part->kl;
    sum->logprob_gap += part->logprob_gap;
    if (part->largest_gap > sum->largest_gap) sum->largest_gap = part->largest_gap;
}

dr_status dr_learner_create(dr_lm *lm, dr_lm *reference, int64_t pack_tokens, int64_t longest,
                            dr_activations activations, dr_learner **out_learner) {
    dr_learner *l = NULL;
    int64_t n = pack_tokens > longest ? pack_tokens : longest;
    DR_TRY(dr_alloc(&l, "learner", 1, sizeof *l));
    l->lm = lm;
    l->reference = reference;
    l->pack_tokens = pack_tokens;
    float **real[] = {&l->logprob, &l->entropy, &l->reference_logprob, &l->ignored, &l->dlogprob};
    dr_status status = dr_lm_workspace_create(lm, n, activations, &l->workspace);
    if (status == DR_OK && reference)
        status = dr_lm_workspace_create(reference, n, DR_RECOMPUTE, &l->reference_workspace);
    if (status == DR_OK) status = dr_micro_batch_create(n, &l->batch);
    for (size_t i = 0; i < sizeof real / sizeof *real && status == DR_OK; i++)
        status = dr_alloc(real[i], "micro-batch", n, sizeof(float));
    if (status != DR_OK) {
        dr_learner_destroy(l);
        return status;
    }
    *out_learner = l;
    return DR_OK;
}

int64_t dr_learner_memory(const dr_lm *lm, bool has_reference, int64_t pack_tokens, int64_t longest,
                          dr_activations activations) {
    enum { NUMBERS = 5 }; // of a row, in the learner
    int64_t n = pack_tokens > longest ? pack_tokens : longest;
    return dr_lm_workspace_memory(lm, n, activations) +
           (has_reference ? dr_lm_workspace_memory(lm, n, DR_RECOMPUTE) : 0) + dr_micro_batch_memory(n) +
           n * (int64_t)(NUMBERS * sizeof(float));
}

void dr_learner_destroy(dr_learner *l) {
    if (!l) return;
    dr_lm_workspace_destroy(l->workspace);
    dr_lm_workspace_destroy(l->reference_workspace);
    dr_micro_batch_reset(&l->batch);
    float *real[] = {l->logprob, l->entropy, l->reference_logprob, l->ignored, l->dlogprob};
    for (size_t i = 0; i < sizeof real / sizeof *real; i++) dr_free(real[i]);
    dr_free(l);
}

static float context_weight(const dr_loss_settings *settings) {
    return settings->kind == DR_LOSS_POLICY ? 0.0f : settings->context_weight;
}

static float row_weight(const dr_loss_settings *settings, const dr_trajectory *t, int32_t i) {
    return t->provenance[i] == DR_FROM_POLICY ? 1.0f : context_weight(settings);
}

static bool has_weight(const void *settings, const dr_trajectory *t, int32_t i) {
    return row_weight(settings, t, i) != 0.0f;
}

// The distribution that a token was drawn from; supervised: the whole softmax. A prompt that is trained on
// itself is not shared: its rows belong to one trajectory each.
static bool batch_add(dr_learner *l, const dr_trajectory *t, int32_t item, const dr_loss_settings *settings) {
    const dr_loss_rows rows = {has_weight, settings, settings->kind == DR_LOSS_POLICY,
                               context_weight(settings) == 0.0f};
    int64_t budget = l->batch.pack.n_seqs == 0 ? l->batch.max_tokens : l->pack_tokens;
    return dr_micro_batch_add(&l->batch, t, item, &rows, budget);
}

// Derivative of the loss for one token by its log-probability; notes what metrics want.
static float token_gradient(const dr_loss_settings *s, const dr_learn_item *item, float now, float stored,
                            float reference, dr_learn_stats *stats) {
    float weight = item->token_weight;
    if (s->kind == DR_LOSS_SUPERVISED) {
        return -weight;
    }
    float a = item->advantage, ratio = expf(now - stored), low = 1.0f - s->clip_low,
          high = 1.0f + s->clip_high;
    bool clipped = (a > 0 && ratio > high) || (a < 0 && ratio < low);
    float kept = ratio < low ? low : ratio > high ? high : ratio;
    float objective = ratio * a < kept * a ? ratio * a : kept * a;
    float gradient = clipped ? 0.0f : -weight * a * ratio;
    stats->loss -= (double)weight * objective;
    stats->ratio += ratio;
    stats->clipped += clipped;
    double gap = fabs((double)now - stored);
    stats->logprob_gap += gap;
    if (gap > stats->largest_gap) stats->largest_gap = gap;
    if (s->kl == DR_KL_OFF) return gradient;
    float d = reference - now; // k1: -d; k3: e^d - d - 1 (Schulman, "Approximating KL divergence", 2020)
    double kl = s->kl == DR_KL_K1 ? -d : expf(d) - d - 1.0f;
    stats->kl += kl;
    stats->loss += (double)weight * s->kl_weight * kl;
    return gradient + weight * s->kl_weight * (s->kl == DR_KL_K1 ? 1.0f : 1.0f - expf(d));
}

static dr_status pack_run(dr_learner *l, const dr_pack *pack, const dr_learn_item *items,
                          const dr_loss_settings *settings, float *gradient, const dr_gradient_ready *ready,
                          dr_learn_stats *stats) {
    bool has_kl = settings->kind == DR_LOSS_POLICY && settings->kl != DR_KL_OFF;
    DR_CHECK(!has_kl || l->reference, DR_ERR_ARGUMENT, "learner: a KL penalty needs a reference model");
    DR_TRY(dr_lm_forward(l->lm, l->workspace, pack, settings->temperature, l->logprob, l->entropy));
    if (has_kl)
        DR_TRY(dr_lm_forward(l->reference, l->reference_workspace, pack, settings->temperature,
                             l->reference_logprob, l->ignored));
    for (int64_t r = 0; r < pack->n_rows; r++) {
        const dr_learn_item *item = &items[l->batch.number_of[r]];
        const dr_trajectory *t = item->trajectory;
        float row = row_weight(settings, t, l->batch.token_of[r]);
        DR_CHECK(isfinite(l->logprob[r]), DR_ERR_NUMERIC,
                 "learner: log-probability %g at step %u, prompt %u, sample %u: no update is made",
                 (double)l->logprob[r], t->step, t->prompt, t->sample);
        l->dlogprob[r] =
            token_gradient(settings, item, l->logprob[r], dr_micro_batch_recorded(&l->batch, t, r),
                           has_kl ? l->reference_logprob[r] : 0.0f, stats);
        l->dlogprob[r] *= row;
        if (row != 1.0f) continue; // statistics are of the policy's tokens
        stats->entropy += l->entropy[r];
        stats->tokens += 1;
        if (settings->kind == DR_LOSS_SUPERVISED) stats->loss -= (double)item->token_weight * l->logprob[r];
    }
    stats->run_tokens += (double)pack->n_tokens;
    return dr_lm_backward(l->lm, l->workspace, pack, settings->temperature, l->dlogprob, gradient, ready);
}

dr_status dr_learner_accumulate(dr_learner *l, const dr_learn_item *items, int32_t n,
                                const dr_loss_settings *settings, float *gradient,
                                const dr_gradient_ready *ready, dr_learn_stats *stats) {
    const dr_pack *pack = &l->batch.pack; // never of sequences without a loss row
    dr_micro_batch_clear(&l->batch);
    for (int32_t i = 0; i < n; i++) {
        const dr_trajectory *t = items[i].trajectory;
        if (items[i].token_weight == 0.0f || t->n_tokens < 2) continue;
        if (batch_add(l, t, i, settings)) continue;
        if (pack->n_seqs > 0) DR_TRY(pack_run(l, pack, items, settings, gradient, NULL, stats));
        dr_micro_batch_clear(&l->batch);
        DR_CHECK(batch_add(l, t, i, settings), DR_ERR_RANGE,
                 "learner: a trajectory of %d tokens, at most %lld were planned", t->n_tokens,
                 (long long)l->batch.max_tokens);
    }
    return pack->n_seqs > 0 ? pack_run(l, pack, items, settings, gradient, ready, stats) : DR_OK;
}
