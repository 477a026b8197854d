// Bursts: a pass with draws behind it, and more passes of the rows that drew, without the host in between.
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/model/lm_cache.h"

// Host memory for n_rows rows, idle ones among them, and the n_steps - 1 passes behind the first one.
static dr_status reserve_later(dr_kv_cache *kv, int32_t n_rows, int32_t n_steps) {
    DR_CHECK(n_steps >= 1 && (int64_t)n_steps * n_rows <= INT32_MAX, DR_ERR_ARGUMENT,
             "burst of %d rows, %d steps", n_rows, n_steps);
    int32_t n_later = n_rows * (n_steps - 1);
    if (n_later > kv->later_capacity) {
        DR_TRY(dr_grow(&kv->later, "chunks of a burst", kv->later_capacity, n_later, sizeof *kv->later));
        kv->later_capacity = n_later;
    }
    if (n_steps > kv->passes_capacity) {
        DR_TRY(dr_grow(&kv->passes, "passes of a burst", kv->passes_capacity, n_steps, sizeof *kv->passes));
        kv->passes_capacity = n_steps;
    }
    if (n_rows > kv->rows_capacity) {
        DR_TRY(dr_grow(&kv->row_ids, "rows of a burst", kv->rows_capacity, n_rows, sizeof(int32_t)));
        DR_TRY(dr_grow(&kv->row_positions, "rows of a burst", kv->rows_capacity, n_rows, sizeof(int32_t)));
        DR_TRY(dr_grow(&kv->row_n_pages, "rows of a burst", kv->rows_capacity, n_rows, sizeof(int32_t)));
        DR_TRY(dr_grow(&kv->row_pages, "rows of a burst", kv->rows_capacity, n_rows, sizeof(int32_t *)));
        kv->rows_capacity = n_rows;
    }
    return DR_OK;
}

static int32_t rows_of(const dr_lm_burst *burst) {
    int32_t n = 0;
    for (int32_t c = 0; c < burst->n_chunks; c++) n += burst->chunks[c].want_logits;
    return n;
}

int32_t dr_lm_burst_rows(const dr_lm *lm, int32_t n_rows) {
    return lm->backend->ops->pass_rows(lm->backend, n_rows);
}

static dr_burst draws_of(const dr_lm *lm, const dr_kv_cache *kv, const dr_lm_burst *burst, int32_t n_rows) {
    return (dr_burst){.n_rows = n_rows,
                      .V = lm->config.vocab,
                      .n_steps = burst->n_steps,
                      .settings = burst->sampling,
                      .keys = burst->keys,
                      .limits = burst->limits,
                      .ids = kv->row_ids,
                      .positions = kv->row_positions,
                      .states = burst->states,
                      .stops = burst->stops,
                      .passes = kv->passes};
}

// The rows, from the prepared first pass, and where each stands in the n_pass_rows of the passes behind it. A
// row at its limit runs its last token again.
static void describe_later(dr_kv_cache *kv, const dr_lm_burst *burst, int32_t n_pass_rows) {
    int32_t r = 0;
    for (int32_t c = 0; c < burst->n_chunks; c++) {
        const dr_lm_chunk *chunk = &burst->chunks[c];
        if (!chunk->want_logits) continue;
        const kv_sequence *s = dr_kv_sequence(kv, chunk->seq);
        const int32_t last = s->length + chunk->n - 1;
        kv->row_ids[r] = chunk->ids[chunk->n - 1];
        kv->row_positions[r] = last;
        for (int32_t step = 1; step < burst->n_steps; step++) {
            int32_t ahead = step < burst->limits[r] ? step : burst->limits[r] - 1;
            kv->later[(int64_t)(step - 1) * n_pass_rows + r] =
                (dr_attention_chunk){r, 1, last + ahead, s->pages};
        }
        r++;
    }
    for (; r < n_pass_rows; r++)
        for (int32_t step = 1; step < burst->n_steps; step++)
            kv->later[(int64_t)(step - 1) * n_pass_rows + r] = dr_kv_idle_chunk(kv, r);
}

// What idle rows run; draws write the ids and positions before theirs only.
static void place_idle_rows(dr_lm *lm, int32_t n_rows, int32_t n_pass_rows) {
    const size_t bytes = (size_t)(n_pass_rows - n_rows) * sizeof(int32_t);
    if (bytes == 0) return;
    lm->backend->ops->zero(lm->backend, lm->numbers.ids + n_rows, bytes);
    lm->backend->ops->zero(lm->backend, lm->numbers.positions + n_rows, bytes);
}

// Draws and passes in turn; pass: the first one, which has run.
static dr_status run_steps(lm_pass *pass, const dr_burst *draws, dr_lm_drawn *out) {
    dr_kv_cache *kv = pass->kv;
    dr_lm *lm = pass->lm;
    dr_backend *b = lm->backend;
    const int32_t n = draws->pages->n_chunks;
    for (int32_t step = 1; step < draws->n_steps; step++) {
        dr_lm_pass_of_rows(pass, kv->later + (int64_t)(step - 1) * n, n);
        kv->passes[step - 1] = dr_lm_cached_pass(pass);
    }
    if (draws->n_steps > 1) place_idle_rows(lm, (int32_t)draws->n_rows, n);
    double begun = dr_clock_seconds();
    DR_TRY(b->ops->burst_begin(b, draws));
    for (int32_t step = 0; step < draws->n_steps; step++) {
        if (step > 0) {
            out->draw_s += dr_clock_seconds() - begun;
            dr_lm_pass_of_rows(pass, kv->later + (int64_t)(step - 1) * n, n);
            DR_TRY(dr_lm_pass_run(pass));
            begun = dr_clock_seconds();
        }
        DR_TRY(b->ops->burst_draw(b, pass->logits, lm->numbers.ids, lm->numbers.positions));
    }
    DR_TRY(b->ops->burst_end(b, out->tokens, out->counts, &out->room));
    out->draw_s += dr_clock_seconds() - begun;
    return DR_OK;
}

// Sequences grow by what they ran and was consumed, and keep the pages for that.
static void settle(dr_kv_cache *kv, const dr_lm_burst *burst, const int32_t *counts) {
    dr_kv_keep(kv, burst->chunks, burst->n_chunks);
    for (int32_t c = 0; c < burst->n_chunks; c++) {
        const dr_lm_chunk *chunk = &burst->chunks[c];
        kv_sequence *s = dr_kv_sequence(kv, chunk->seq);
        s->length += chunk->n + (chunk->want_logits ? *counts++ - 1 : 0);
        dr_kv_truncate(kv, chunk->seq, s->length);
    }
}

dr_status dr_lm_decode_burst(dr_lm *lm, dr_kv_cache *kv, const dr_lm_burst *burst, dr_lm_drawn *out) {
    const int32_t n_rows = rows_of(burst), n_pass_rows = dr_lm_burst_rows(lm, n_rows);
    lm_pass pass = {.lm = lm, .kv = kv, .least_rows = n_pass_rows, .logits = burst->logits};
    DR_TRY(reserve_later(kv, n_pass_rows, burst->n_steps));
    dr_burst draws = draws_of(lm, kv, burst, n_rows);
    if (n_rows > 0) DR_TRY(dr_burst_check(&draws));
    DR_TRY(dr_lm_pass_prepare(&pass, burst->chunks, burst->n_chunks, burst->limits));
    dr_burst_pages pages = dr_kv_offer(kv, burst->chunks, burst->n_chunks, burst->limits);
    pages.chunks = kv->later;
    pages.n_chunks = n_pass_rows;
    draws.pages = &pages;
    describe_later(kv, burst, n_pass_rows);
    DR_TRY(dr_lm_pass_run(&pass));
    out->draw_s = 0;
    out->room = (dr_burst_room){burst->n_steps, INT64_MAX};
    if (n_rows > 0) DR_TRY(run_steps(&pass, &draws, out));
    settle(kv, burst, out->counts);
    return DR_OK;
}
