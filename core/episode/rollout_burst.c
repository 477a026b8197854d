// What a tick runs: one pass of all chunks, and passes and draws behind it of the episodes that got logits,
// as many as a burst has. Everything but who gets which page is decided before; then each episode is given
// what it drew, in order, and says itself where it stops.
#include <stdatomic.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/episode/rollout_internal.h"

// Most tokens that live may draw: what its caps leave, and what fits if it gets all pages that are free
// behind this tick's chunks. Who gets them is decided as rows come to them: no page of these is promised to
// anybody, and an older episode that finds none left has the younger ones' in the next tick.
static int32_t limit_of(const dr_rollout *r, const rollout_live *live) {
    int32_t room = dr_episode_room(&live->episode, &r->rules), most = r->fitting;
    if (room < most) most = room;
    int64_t length = live->episode.trajectory.n_tokens, // in the cache after the first pass
        inside = (length + DR_KV_PAGE - 1) / DR_KV_PAGE * DR_KV_PAGE - length,
            fits = 1 + inside + (dr_kv_free_pages(r->kv) - r->reserved_pages) * DR_KV_PAGE;
    return fits < most ? (int32_t)fits : most;
}

// Returns the number of steps.
static int32_t decide_limits(dr_rollout *r) {
    int32_t n_steps = 1;
    for (int32_t i = 0; i < r->n_rows; i++) {
        r->limits[i] = limit_of(r, r->rows[i]);
        if (r->limits[i] > n_steps) n_steps = r->limits[i];
    }
    return n_steps;
}

static void decide_draws(dr_rollout *r) {
    for (int32_t i = 0; i < r->n_rows; i++) {
        const dr_episode *e = &r->rows[i]->episode;
        r->keys[i] = dr_episode_draw_key(e);
        r->sampling[i] = r->rows[i]->sampling;
        r->states[i] = dr_stops_state(r->stops, e->turn_text.data, e->turn_text.length);
    }
}

// The cache never holds more than what stands before an episode's last token.
static dr_status give_tokens(dr_rollout *r, int32_t i) {
    rollout_live *live = r->rows[i];
    dr_episode *e = &live->episode;
    for (int32_t step = 0; step < r->counts[i] && e->state == DR_EPISODE_RUNNING; step++) {
        DR_TRY(dr_episode_token(e, &r->rules, &r->drawn[(int64_t)step * r->n_rows + i]));
        r->stats.sampled_tokens++;
    }
    if (dr_kv_length(r->kv, live->seq) >= e->trajectory.n_tokens)
        dr_kv_truncate(r->kv, live->seq, e->trajectory.n_tokens - 1);
    return DR_OK;
}

static void warn_once(const dr_rollout *r, const dr_burst_room *room, int32_t n_steps) {
    static atomic_flag is_said = ATOMIC_FLAG_INIT; // a run makes an engine for each of its steps
    if (atomic_flag_test_and_set(&is_said)) return;
    dr_warn("rollout: what top-p left of %d rows found room for %d of a burst's %d steps; such bursts are "
            "shortened from now on (the policy is flat, or rollout.burst is long)",
            r->n_rows, room->n_fitted, n_steps);
}

// How long the next bursts may be: as long as kept sets of the size that they have now find room, and where
// some did not, no longer than those were that did. Only speed depends on it.
static void look_at_room(dr_rollout *r, const dr_burst_room *room, int32_t n_steps) {
    int64_t n_draws = 0, n_kept = 0;
    for (int32_t i = 0; i < r->n_rows; i++) {
        n_draws += r->counts[i];
        for (int32_t step = 0; step < r->counts[i]; step++)
            n_kept += r->drawn[(int64_t)step * r->n_rows + i].kept.n;
    }
    r->stats.idle_rows += (int64_t)n_steps * r->n_rows - n_draws;
    double fits = r->parts.burst;
    if (n_kept > 0) fits = (double)room->n_ids * (double)n_draws / ((double)n_kept * r->n_rows);
    if (room->n_fitted < n_steps) {
        r->stats.short_bursts++;
        warn_once(r, room, n_steps);
        if (room->n_fitted < fits) fits = room->n_fitted;
    }
    r->fitting = fits >= r->parts.burst ? r->parts.burst : fits >= 1 ? (int32_t)fits : 1;
}

dr_status dr_rollout_burst(dr_rollout *r) {
    double begun = dr_clock_seconds();
    const int32_t n_steps = decide_limits(r);
    decide_draws(r);
    const dr_lm_burst burst = {.chunks = r->chunks,
                               .n_chunks = r->n_chunks,
                               .n_steps = n_steps,
                               .sampling = r->sampling,
                               .keys = r->keys,
                               .limits = r->limits,
                               .stops = dr_stops_table(r->stops),
                               .states = r->states,
                               .logits = r->logits};
    dr_lm_drawn drawn = {.tokens = r->drawn, .counts = r->counts};
    DR_TRY(dr_lm_decode_burst(r->parts.lm, r->kv, &burst, &drawn));
    double ended = dr_clock_seconds();
    for (int32_t i = 0; i < r->n_chunks; i++) r->stats.decode_rows += r->chunks[i].n;
    r->stats.decode_rows += (int64_t)(n_steps - 1) * r->n_rows;
    r->stats.passes += n_steps;
    if (r->n_rows > 0) look_at_room(r, &drawn.room, n_steps);
    for (int32_t i = 0; i < r->n_rows; i++) DR_TRY(give_tokens(r, i));
    r->stats.decode_s += ended - begun - drawn.draw_s;
    r->stats.sample_s += dr_clock_seconds() - ended + drawn.draw_s;
    return DR_OK;
}
