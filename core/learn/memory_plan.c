// Bodies of memory_plan.h: sums of what each module says of itself.
#include "core/learn/memory_plan.h"

#include "core/learn/learner.h"
#include "core/model/lm_shard.h"
#include "core/model/optimizer.h"

static const char RESERVE[] = "reserve for the device's libraries";

// Of a training pass at most, loss rows too: a sequence longer than a pack has one of its own.
static int64_t pass_tokens(const dr_memory_needs *needs) {
    const int64_t pack = needs->pack_tokens, longest = needs->rollout->protocol.max_total_tokens;
    return pack > longest ? pack : longest;
}

static int64_t scratch_of(const dr_memory_needs *needs, int64_t *out_host) {
    dr_lm *lm = needs->rollout->lm;
    dr_backend *b = dr_lm_backend(lm);
    dr_pass_shape shape = dr_lm_pass_shape(lm, pass_tokens(needs));
    if (needs->is_warm_up) return b->ops->pass_memory(b, &shape, out_host);
    shape.n_draws = needs->rollout->max_live;
    shape.n_cached = shape.n_draws + needs->rollout->prefill_tokens;
    shape.longest = needs->rollout->protocol.max_total_tokens;
    shape.n_steps = needs->rollout->burst > 0 ? needs->rollout->burst : DR_ROLLOUT_BURST;
    shape.n_sharing = needs->n_samples + 1;
    return b->ops->pass_memory(b, &shape, out_host);
}

// The frozen policy is loaded while there is no learner: only where the pieces on their way are larger than
// the activations that follow does it need room of its own.
static int64_t reference_of(const dr_memory_needs *needs, int64_t activations) {
    int64_t loading = 0;
    if (!needs->has_reference) return 0;
    int64_t bytes = dr_lm_frozen_memory(needs->rollout->lm, &loading);
    return bytes + (loading > activations ? loading - activations : 0);
}

// Sums of all parts.
static void add_up(dr_memory_plan *plan) {
    for (int i = 0; i < DR_MEMORY_PARTS; i++)
        *(plan->parts[i].on_host ? &plan->host : &plan->bytes) += plan->parts[i].bytes;
}

dr_status dr_memory_plan_make(const dr_memory_needs *needs, dr_memory_plan *out_plan) {
    dr_lm *lm = needs->rollout->lm;
    dr_backend *b = dr_lm_backend(lm);
    const dr_lm_config *c = dr_lm_config_of(lm);
    int64_t cache = 0, passes = 0, products = dr_lm_products_memory(lm);
    int64_t lists = 0, lists_on_host = 0, scratch_on_host = 0;
    const dr_trm_memory model = needs->retrieval ? *needs->retrieval : (dr_trm_memory){0};
    bool is_host = false;
    if (!needs->is_warm_up) DR_TRY(dr_rollout_memory(needs->rollout, &cache, &passes));
    DR_TRY(dr_memory_is_host(b, &is_host));
    if (!needs->is_warm_up) dr_rollout_retrieval_memory(needs->rollout, &lists_on_host, &lists);
    int64_t scratch = scratch_of(needs, &scratch_on_host),
            head = b->ops->head_memory(b, pass_tokens(needs), c->vocab, c->hidden);
    int64_t activations = dr_learner_memory(lm, needs->has_reference, needs->pack_tokens,
                                            needs->rollout->protocol.max_total_tokens, needs->activations);
    dr_memory_plan plan = {
        .advice = needs->is_warm_up ? "Smaller pack-tokens or max-total-tokens, or recompute, take less"
                                    : "Smaller learn.pack_tokens, rollout.max_live or "
                                      "protocol.max_total_tokens, or learn.recompute, take less",
        .parts = {{.name = "weights", .bytes = dr_lm_weights_memory(lm, needs->n_learners)},
                  {.name = "weights in bf16", .bytes = products},
                  {.name = "gradient", .bytes = dr_lm_n_params(lm) * (int64_t)sizeof(float)},
                  {.name = "moments", .bytes = dr_optimizer_memory(lm, needs->n_learners)},
                  {.name = "frozen policy", .bytes = reference_of(needs, activations)},
                  {.name = "activations", .bytes = activations},
                  {.name = "loss head", .bytes = head},
                  {.name = "keys and values", .bytes = cache},
                  {.name = "decoding", .bytes = passes},
                  {.name = "scratch of operations", .bytes = scratch},
                  {.name = "collective", .bytes = needs->collective},
                  {.name = "retrievals", .bytes = is_host ? lists + lists_on_host : lists},
                  {.name = "retrievals on the host", .bytes = is_host ? 0 : lists_on_host, .on_host = true},
                  {.name = "scratch of operations on the host", .bytes = scratch_on_host, .on_host = true},
                  {.name = "copy of weights on the host",
                   .bytes = is_host ? 0 : dr_lm_copy_memory(lm),
                   .on_host = true},
                  {.name = "retrieval model", .bytes = model.backend},
                  {.name = "retrieval model on the host", .bytes = model.host, .on_host = true},
                  {.name = RESERVE, .bytes = needs->reserve}}};
    add_up(&plan);
    *out_plan = plan;
    return DR_OK;
}

dr_status dr_memory_plan_make_retrieval(dr_backend *b, const dr_dataset *dataset,
                                        const dr_trm_train_options *options, int64_t reserve,
                                        dr_memory_plan *out_plan) {
    dr_trm_train_memory m;
    DR_TRY(dr_trm_train_memory_of(b, dataset, options, &m));
    bool apart = !m.is_host;
    *out_plan =
        (dr_memory_plan){.parts = {{.name = "text encoder", .bytes = m.encoder},
                                   {.name = "weights", .bytes = m.weights},
                                   {.name = "gradient, moments and best weights", .bytes = m.updates},
                                   {.name = "items", .bytes = m.items},
                                   {.name = "activations", .bytes = m.batch},
                                   {.name = "lists", .bytes = m.serving},
                                   {.name = "scratch of operations", .bytes = m.scratch},
                                   {.name = "item texts", .bytes = m.host_items, .on_host = apart},
                                   {.name = "batches", .bytes = m.host_batch, .on_host = apart},
                                   {.name = "copies of weights", .bytes = m.host_copies, .on_host = apart},
                                   {.name = "stages", .bytes = m.host_scratch, .on_host = apart},
                                   {.name = RESERVE, .bytes = reserve}},
                         .advice = "A smaller batch, max-history, hidden or text-dim, or a smaller text "
                                   "encoder, takes less"};
    add_up(out_plan);
    return DR_OK;
}

static dr_status print_sum(int64_t bytes, int n_workers, dr_buf *out) {
    DR_TRY(dr_buf_printf(out, "in all %.1f MB", (double)bytes * 1e-6));
    if (n_workers < 2) return DR_OK;
    return dr_buf_printf(out, ", of %d workers here %.1f MB", n_workers, (double)bytes * n_workers * 1e-6);
}

static dr_status print_parts(const dr_memory_plan *plan, bool on_host, dr_buf *out) {
    for (int i = 0; i < DR_MEMORY_PARTS; i++)
        if (plan->parts[i].on_host == on_host && plan->parts[i].bytes > 0)
            DR_TRY(dr_buf_printf(out, "%s %.1f, ", plan->parts[i].name, (double)plan->parts[i].bytes * 1e-6));
    return DR_OK;
}

dr_status dr_memory_plan_print(const dr_memory_plan *plan, const dr_memory_place *place, dr_buf *out) {
    DR_TRY(print_parts(plan, false, out));
    DR_TRY(print_sum(plan->bytes, place->n_workers, out));
    DR_TRY(dr_buf_printf(out, "; free are %.1f of %.1f MB", (double)place->free * 1e-6,
                         (double)place->total * 1e-6));
    if (plan->host == 0) return DR_OK;
    DR_TRY(dr_buf_printf(out, "; "));
    DR_TRY(print_parts(plan, true, out));
    DR_TRY(print_sum(plan->host, place->n_on_host, out));
    return dr_buf_printf(out, "; free are %.1f MB", (double)place->host_free * 1e-6);
}

static bool fits(int64_t bytes, int64_t free, int n_workers) {
    return bytes <= free / n_workers;
}

dr_status dr_memory_plan_check(const dr_memory_plan *plan, const dr_memory_place *place) {
    if (fits(plan->bytes, place->free, place->n_workers) &&
        (plan->host == 0 || fits(plan->host, place->host_free, place->n_on_host)))
        return DR_OK;
    dr_buf line = {0};
    dr_status status = dr_memory_plan_print(plan, place, &line);
    if (status == DR_OK)
        status = DR_FAIL(DR_ERR_MEMORY, "memory: the plan does not fit: %s. %s", line.data, plan->advice);
    dr_buf_reset(&line);
    return status;
}
