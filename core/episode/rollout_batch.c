// Who runs in a tick. Invariants: an episode's cache is always a prefix of its token stream, so that
// everything an episode needs is "run the rest of your tokens"; the oldest live episode that does not wait
// for a retrieval can get its pages, if not now then once the older ones have their lists, so work ends.
#include "core/episode/rollout_internal.h"

int64_t dr_rollout_pages(int64_t length, int64_t n) {
    return (length + n + DR_KV_PAGE - 1) / DR_KV_PAGE - (length + DR_KV_PAGE - 1) / DR_KV_PAGE;
}

static int64_t free_pages(const dr_rollout *r) {
    return dr_kv_free_pages(r->kv) - r->reserved_pages;
}

static void close_seq(dr_rollout *r, int32_t *seq) {
    if (*seq >= 0) dr_kv_close(r->kv, *seq);
    *seq = -1;
}

// True when a live episode that is at least as old as live[rank] waits for this group, or the group runs in
// this tick.
static bool group_needed(const dr_rollout *r, const rollout_group *group, int32_t rank) {
    if (group->chunk_tick_tokens > 0) return true;
    for (int32_t i = 0; i <= rank; i++)
        if (r->live[i]->group == group) return true;
    return false;
}

// Frees pages of younger ones until `need` are free for live[rank]; false when they cannot be had in this
// tick.
static bool make_room(dr_rollout *r, int64_t need, int32_t rank) {
    for (int32_t i = r->n_groups - 1; i >= 0 && free_pages(r) < need; i--)
        if (r->groups[i]->seq >= 0 && !group_needed(r, r->groups[i], rank)) close_seq(r, &r->groups[i]->seq);
    for (int32_t i = r->n_live - 1; i > rank && free_pages(r) < need; i--) {
        rollout_live *victim = r->live[i];
        if (victim->seq < 0 || victim->in_batch) continue;
        close_seq(r, &victim->seq);
        r->stats.preemptions++;
    }
    return free_pages(r) >= need;
}

static void add_chunk(dr_rollout *r, int32_t seq, const int32_t *ids, int64_t n, bool want_logits) {
    r->chunks[r->n_chunks++] =
        (dr_lm_chunk){.seq = seq, .n = (int32_t)n, .ids = ids, .want_logits = want_logits};
    r->reserved_pages += dr_rollout_pages(dr_kv_length(r->kv, seq), n);
}

// The largest part of `n` tokens, at most `budget`, whose pages can be had.
static int64_t fitting(dr_rollout *r, int64_t length, int64_t n, int64_t budget, int32_t rank) {
    if (n > budget) n = budget;
    if (n <= 0) return 0;
    if (make_room(r, dr_rollout_pages(length, n), rank)) return n;
    int64_t inside = (length + DR_KV_PAGE - 1) / DR_KV_PAGE * DR_KV_PAGE - length; // room in the page begun
    int64_t most = inside + free_pages(r) * DR_KV_PAGE;
    return most < n ? most : n;
}

// Runs a part of the prompt, once a tick, for the first episode that waits for it.
static dr_status prefill_group(dr_rollout *r, rollout_group *group, int64_t *budget, int32_t rank) {
    if (group->chunk_tick_tokens > 0) return DR_OK;
    if (group->seq < 0) DR_TRY(dr_kv_open(r->kv, &group->seq));
    int64_t length = dr_kv_length(r->kv, group->seq);
    int64_t n = fitting(r, length, group->n_prompt - 1 - length, *budget, rank);
    if (n == 0) return DR_OK;
    add_chunk(r, group->seq, group->prompt + length, n, false);
    group->chunk_tick_tokens = (int32_t)n;
    *budget -= n;
    return DR_OK;
}

// Gives a waiting episode its copy of the prompt's cache once that is complete.
static dr_status fork_prompt(dr_rollout *r, rollout_live *live, int32_t rank) {
    rollout_group *group = live->group;
    if (group->n_prompt > 1) {
        if (group->seq < 0 || dr_kv_length(r->kv, group->seq) < group->n_prompt - 1) return DR_OK;
        bool copies = (group->n_prompt - 1) % DR_KV_PAGE != 0;
        if (copies && !make_room(r, 1, rank)) return DR_OK;
        DR_TRY(dr_kv_fork(r->kv, group->seq, &live->seq));
    } else {
        DR_TRY(dr_kv_open(r->kv, &live->seq));
    }
    live->group = NULL;
    group->n_waiting--;
    if (group->n_waiting == 0 && group->n_admitted == group->request.n_samples) close_seq(r, &group->seq);
    return DR_OK;
}

static dr_status schedule(dr_rollout *r, rollout_live *live, int64_t *budget, int32_t rank) {
    const dr_trajectory *t = &live->episode.trajectory;
    if (live->group) {
        DR_TRY(fork_prompt(r, live, rank));
        if (live->group) return prefill_group(r, live->group, budget, rank);
    }
    if (live->seq < 0) DR_TRY(dr_kv_open(r->kv, &live->seq)); // gave up its pages earlier
    int64_t length = dr_kv_length(r->kv, live->seq), rest = t->n_tokens - length;
    int64_t n = fitting(r, length, rest, rest == 1 ? 1 : *budget, rank);
    if (n == 0) return DR_OK;
    if (rest > 1) *budget -= n;
    add_chunk(r, live->seq, t->ids + length, n, n == rest);
    if (n == rest) r->rows[r->n_rows++] = live;
    live->in_batch = true;
    return DR_OK;
}

dr_status dr_rollout_batch(dr_rollout *r) {
    int64_t budget = r->parts.prefill_tokens;
    int32_t n_asking = 0;
    r->n_chunks = r->n_rows = 0;
    r->reserved_pages = 0;
    for (int32_t i = 0; i < r->n_groups; i++) r->groups[i]->chunk_tick_tokens = 0;
    for (int32_t i = 0; i < r->n_live; i++) r->live[i]->in_batch = false;
    for (int32_t i = 0; i < r->n_live; i++) {
        if (r->live[i]->episode.state == DR_EPISODE_ASKS)
            n_asking++;
        else
            DR_TRY(schedule(r, r->live[i], &budget, i));
    }
    DR_CHECK(r->n_chunks > 0 || n_asking > 0 || r->n_live == 0, DR_ERR_INTERNAL,
             "rollout: %d live episodes and none can run", r->n_live);
    return DR_OK;
}
