// Retrievals of a rollout: episodes that ask are served together, a few batches at a time, while the policy
// goes on with the others. An episode that waits keeps its cache and gets no row; what it is given does not
// depend on when it is given it, so neither does its trajectory.
#include "core/base/clock.h"
#include "core/episode/rollout_internal.h"

static const double DEADLINE_S = 600; // where the caller has none

dr_status dr_rollout_retrievals_create(dr_rollout *r) {
    int64_t n = r->parts.max_live, k = r->parts.protocol.k_retrieve;
    DR_TRY(dr_alloc(&r->texts, "preference texts", n, sizeof *r->texts));
    DR_TRY(dr_alloc(&r->queries, "queries", n, sizeof *r->queries));
    DR_TRY(dr_alloc(&r->items, "items of one list", k, sizeof *r->items));
    for (int i = 0; i < ROLLOUT_RETRIEVALS; i++) {
        rollout_retrieval *retrieval = &r->retrievals[i];
        DR_TRY(dr_trm_retrieval_create(r->parts.trm, n, (int32_t)k, &retrieval->work));
        DR_TRY(dr_alloc(&retrieval->asking, "asking episodes", n, sizeof *retrieval->asking));
    }
    return DR_OK;
}

void dr_rollout_retrieval_memory(const dr_rollout_parts *p, int64_t *out_host, int64_t *out_backend) {
    int64_t n = p->max_live, k = p->protocol.k_retrieve, host = 0;
    int64_t longest = p->protocol.exclude_history ? dr_dataset_longest(p->dataset) : 0;
    dr_trm_retrieval_memory(p->trm, n, (int32_t)k, longest, &host, out_backend);
    host += n * (int64_t)sizeof(rollout_live *);
    *out_host = ROLLOUT_RETRIEVALS * host + n * (int64_t)(sizeof(char *) + sizeof(dr_trm_query)) +
                k * (int64_t)sizeof(int32_t);
}

void dr_rollout_retrievals_destroy(dr_rollout *r) {
    for (int i = 0; i < ROLLOUT_RETRIEVALS; i++) {
        dr_trm_retrieval_destroy(r->retrievals[i].work);
        dr_free(r->retrievals[i].asking);
    }
    dr_free(r->texts);
    dr_free(r->queries);
    dr_free(r->items);
}

// A batch whose preferences are still being encoded on the backend is not joined by another: what an encoder
// hands to its passes may have to wait for theirs.
static dr_status can_begin(dr_rollout *r, bool *out) {
    *out = r->n_retrievals < ROLLOUT_RETRIEVALS;
    if (r->n_retrievals == 0 || !*out) return DR_OK;
    int32_t last = (r->first_retrieval + r->n_retrievals - 1) % ROLLOUT_RETRIEVALS;
    return dr_trm_retrieval_is_encoded(r->retrievals[last].work, out);
}

// All that ask and are not served yet, oldest first, in one batch.
static dr_status begin(dr_rollout *r) {
    rollout_retrieval *next = &r->retrievals[(r->first_retrieval + r->n_retrievals) % ROLLOUT_RETRIEVALS];
    int32_t n = 0;
    bool may_begin = false;
    DR_TRY(can_begin(r, &may_begin));
    if (!may_begin) return DR_OK;
    for (int32_t i = 0; i < r->n_live; i++) {
        rollout_live *live = r->live[i];
        if (live->episode.state != DR_EPISODE_ASKS || live->is_served) continue;
        next->asking[n] = live;
        r->texts[n] = live->episode.preference.data;
        r->queries[n++] = (dr_trm_query){.history = live->history, .n_history = live->n_history};
    }
    if (n == 0) return DR_OK;
    DR_TRY(dr_trm_retrieval_begin(next->work, r->queries, r->texts, n, r->rules.protocol.exclude_history));
    for (int32_t i = 0; i < n; i++) next->asking[i]->is_served = true;
    next->n = n;
    r->n_retrievals++;
    return DR_OK;
}

// Waits for the oldest batch and hands out its lists.
static dr_status finish_oldest(dr_rollout *r) {
    rollout_retrieval *done = &r->retrievals[r->first_retrieval];
    double deadline_s = r->parts.retrieval_deadline_s > 0 ? r->parts.retrieval_deadline_s : DEADLINE_S;
    int32_t k = r->rules.protocol.k_retrieve;
    const dr_hit *hits = NULL;
    DR_TRY(dr_trm_retrieval_finish(done->work, deadline_s, &hits));
    const float *embeddings = dr_trm_retrieval_embeddings(done->work);
    for (int32_t i = 0; i < done->n; i++) {
        dr_episode *e = &done->asking[i]->episode;
        int32_t before = e->trajectory.n_tokens;
        for (int32_t j = 0; j < k; j++) r->items[j] = hits[(int64_t)i * k + j].item;
        DR_TRY(dr_episode_items(e, &r->rules, embeddings + (int64_t)i * r->text_dim, r->text_dim, r->items, k,
                                &r->scratch));
        done->asking[i]->is_served = false;
        r->stats.tool_tokens += e->trajectory.n_tokens - before;
    }
    r->stats.retrievals += done->n;
    r->first_retrieval = (r->first_retrieval + 1) % ROLLOUT_RETRIEVALS;
    r->n_retrievals--;
    return DR_OK;
}

// Batches are done in the order in which they were begun.
static dr_status finish_done(dr_rollout *r) {
    while (r->n_retrievals > 0) {
        bool is_done = false;
        DR_TRY(dr_trm_retrieval_done(r->retrievals[r->first_retrieval].work, &is_done));
        if (!is_done) return DR_OK;
        DR_TRY(finish_oldest(r));
    }
    return DR_OK;
}

dr_status dr_rollout_retrieve(dr_rollout *r, bool wait) {
    double begun = dr_clock_seconds();
    dr_status status = wait && r->n_retrievals > 0 ? finish_oldest(r) : DR_OK;
    if (status == DR_OK) status = finish_done(r);
    if (status == DR_OK) status = begin(r);
    if (status == DR_OK) status = finish_done(r); // where nothing runs beside the host, it is done already
    r->stats.retrieve_s += dr_clock_seconds() - begun;
    return status;
}
