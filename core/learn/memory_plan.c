// Bodies of memory_plan.h: sums of what each module says of itself.
#include "core/learn/memory_plan.h"

#include "core/learn/learner.h"
#include "core/model/optimizer.h"

static int64_t scratch_of(const dr_memory_needs *needs) {
    dr_lm *lm = needs->rollout->lm;
    dr_backend *b = dr_lm_backend(lm);
    int64_t longest = needs->rollout->protocol.max_total_tokens;
    dr_pass_shape shape = dr_lm_pass_shape(lm, needs->pack_tokens > longest ? needs->pack_tokens : longest);
    shape.n_draws = needs->rollout->max_live;
    shape.n_steps = needs->rollout->burst > 0 ? needs->rollout->burst : DR_ROLLOUT_BURST;
    shape.n_sharing = needs->n_samples + 1;
    return b->ops->pass_memory(b, &shape);
}

dr_status dr_memory_plan_make(const dr_memory_needs *needs, dr_memory_plan *out_plan) {
    dr_lm *lm = needs->rollout->lm;
    dr_backend *b = dr_lm_backend(lm);
    const dr_lm_config *c = dr_lm_config_of(lm);
    int64_t cache = 0, passes = 0, weights = dr_lm_weights_memory(lm), products = dr_lm_products_memory(lm);
    DR_TRY(dr_rollout_memory(needs->rollout, &cache, &passes));
    dr_memory_plan plan = {
        .parts = {
            {"weights", weights},
            {"weights in bf16", products},
            {"gradient", dr_lm_n_params(lm) * (int64_t)sizeof(float)},
            {"moments", dr_optimizer_memory(lm, needs->n_learners)},
            {"frozen policy", needs->has_reference ? weights + products : 0},
            {"activations", dr_learner_memory(lm, needs->has_reference, needs->pack_tokens,
                                              needs->rollout->protocol.max_total_tokens, needs->activations)},
            {"loss head", b->ops->head_memory(b, c->vocab, c->hidden)},
            {"keys and values", cache},
            {"decoding", passes},
            {"scratch of operations", scratch_of(needs)},
            {"collective", needs->collective}}};
    for (int i = 0; i < DR_MEMORY_PARTS; i++) plan.bytes += plan.parts[i].bytes;
    *out_plan = plan;
    return DR_OK;
}

dr_status dr_memory_plan_print(const dr_memory_plan *plan, const dr_memory_place *place, dr_buf *out) {
    for (int i = 0; i < DR_MEMORY_PARTS; i++)
        if (plan->parts[i].bytes > 0)
            DR_TRY(dr_buf_printf(out, "%s %.1f, ", plan->parts[i].name, (double)plan->parts[i].bytes * 1e-6));
    DR_TRY(dr_buf_printf(out, "in all %.1f MB", (double)plan->bytes * 1e-6));
    if (place->n_workers > 1)
        DR_TRY(dr_buf_printf(out, ", of %d workers here %.1f MB", place->n_workers,
                             (double)plan->bytes * place->n_workers * 1e-6));
    return dr_buf_printf(out, "; free are %.1f of %.1f MB", (double)place->free * 1e-6,
                         (double)place->total * 1e-6);
}

dr_status dr_memory_plan_check(const dr_memory_plan *plan, const dr_memory_place *place) {
    if (plan->bytes <= place->free / place->n_workers) return DR_OK;
    dr_buf line = {0};
    dr_status status = dr_memory_plan_print(plan, place, &line);
    if (status == DR_OK)
        status = DR_FAIL(DR_ERR_MEMORY,
                         "memory: the plan does not fit: %s. Smaller learn.pack_tokens, rollout.max_live or "
                         "protocol.max_total_tokens, or learn.recompute, take less",
                         line.data);
    dr_buf_reset(&line);
    return status;
}
