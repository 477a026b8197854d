// Outlines of both models in the places of the models.
#include "launch/policy_memory.h"

#include "core/base/host_memory.h"
#include "core/base/log.h"

dr_status dr_policy_memory_place(const dr_policy_choice *choice, const dr_policy_parts *parts,
                                 dr_memory_place *out) {
    dr_backend *b = parts->backend;
    int64_t host_total = 0;
    *out = (dr_memory_place){.n_workers = dr_backend_sharers(&choice->backend, b),
                             .n_on_host = choice->backend.binding ? choice->backend.binding->n_here : 1};
    DR_TRY(b->ops->memory_free(b, &out->free, &out->total));
    return dr_host_memory(&out->host_free, &host_total);
}

static dr_status say(const dr_memory_needs *needs, const dr_memory_place *place, const char *who) {
    dr_memory_plan plan;
    dr_buf line = {0};
    DR_TRY(dr_memory_plan_make(needs, &plan));
    dr_status status = dr_memory_plan_print(&plan, place, &line);
    if (status == DR_OK) dr_info("memory of %s: %s", who, line.data);
    dr_buf_reset(&line);
    return status == DR_OK ? dr_memory_plan_check(&plan, place) : status;
}

dr_status dr_policy_memory_plan(const dr_policy_choice *choice, const dr_policy_parts *parts,
                                const char *model_dir, const dr_memory_needs *needs,
                                const dr_memory_place *place, const char *who) {
    dr_rollout_parts rollout = *needs->rollout;
    dr_memory_needs all = *needs;
    dr_trm_memory retrieval;
    DR_TRY(dr_lm_outline_of(parts->backend, model_dir, &rollout.lm));
    dr_status status =
        dr_trm_outline_of(parts->trm_backend, choice->trm, choice->text_encoder, &rollout.trm, &retrieval);
    if (status == DR_OK) {
        all.rollout = &rollout;
        all.retrieval = &retrieval;
        status = say(&all, place, who);
        dr_trm_destroy(rollout.trm);
    }
    dr_lm_destroy(rollout.lm);
    return status;
}
