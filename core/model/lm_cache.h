// The paged cache's state, shared by what keeps its pages (lm_cache.c) and what runs passes over it
// (lm_decode.c, lm_burst.c).
#ifndef DR_CORE_MODEL_LM_CACHE_H
#define DR_CORE_MODEL_LM_CACHE_H

#include "core/model/lm_internal.h"

typedef struct kv_sequence {
    bool is_open;
    int32_t length;
    int32_t n_pages, capacity;
    int32_t *pages;
    int64_t call; // the last call of a pass that named it
} kv_sequence;

struct dr_kv_cache {
    dr_lm *lm;
    int32_t n_pages, max_seqs;
    void **k, **v;       // one block a layer: (n_pages + 1, DR_KV_PAGE, G, d), laid out as the backend likes
    int32_t idle_page;   // the last one: no sequence's, for idle rows
    int32_t *references; // of each page
    int32_t *free_pages; // stack
    int32_t n_free;
    kv_sequence *sequences;
    dr_attention_chunk *chunks; // of the running pass
    int32_t chunks_capacity;
    // of the passes behind the first one of a burst (lm_burst.c)
    dr_attention_chunk *later;
    dr_cached_pass *passes;
    int32_t *row_ids, *row_positions, *row_n_pages, **row_pages;
    int32_t *pool; // [n_pages]
    int32_t later_capacity, passes_capacity, rows_capacity;
    int64_t calls;
};

static inline kv_sequence *dr_kv_sequence(const dr_kv_cache *kv, int32_t seq) {
    DR_ASSERT(seq >= 0 && seq < kv->max_seqs && kv->sequences[seq].is_open);
    return &kv->sequences[seq];
}

// Pages for every chunk, or nothing at all (DR_ERR_MEMORY), and room in page lists for limits[i] - 1 more
// positions of the i-th chunk that wants logits (NULL: for none).
dr_status dr_kv_reserve(dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks, const int32_t *limits);
// What a burst of these chunks may take, behind dr_kv_reserve with the same arguments: as many of the free
// pages as its rows can come to need. They stay free until they are kept. Page lists must not grow before
// that; lists and counts are kv->row_pages and kv->row_n_pages.
dr_burst_pages dr_kv_offer(dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks,
                           const int32_t *limits);
void dr_kv_keep(dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks); // what the rows took is theirs

// Row `row` of a pass is idle: token 0, alone in its context. All idle rows write the same to the same place,
// and nobody else reads it.
static inline dr_attention_chunk dr_kv_idle_chunk(const dr_kv_cache *kv, int64_t row) {
    return (dr_attention_chunk){row, 1, 0, &kv->idle_page};
}

// Scratch of T tokens carved from one block; legend as in lm_train.c.
typedef struct lm_pass_scratch {
    float *x, *norm, *qkv, *att, *out;
    void *gate_up; // values of dr_gated_bytes
    float *top;    // rows of x that go on after the last layer's attention
} lm_pass_scratch;

// One pass over the cache, of the ids and positions that stand in lm->numbers from `first` on. Rows that go
// on to the head: every one, or those that lm->numbers.rows names, the last one of each chunk that wants
// logits.
typedef struct lm_pass {
    dr_lm *lm;
    dr_kv_cache *kv;
    dr_backend *backend;              // that its ops run on
    const dr_attention_chunk *chunks; // [n_chunks]; unless every_row, n_rows of one row each behind them
    int64_t first;                    // row that the chunks count from 0 on and the scratch begins behind
    int32_t n_chunks, n_rows;
    int32_t least_rows; // of a pass of single rows: idle ones stand behind its chunks' own; 0: no matter
    bool every_row;
    int64_t T;
    lm_pass_scratch s;
    float *logits; // [n_rows, vocab]
} lm_pass;

// Everything that the host decides about a pass whose lm, kv, least_rows, every_row and logits are filled in:
// after it the pass is ops alone, and there is scratch for least_rows rows. limits: as in dr_kv_reserve.
dr_status dr_lm_pass_prepare(lm_pass *pass, const dr_lm_chunk *chunks, int32_t n_chunks,
                             const int32_t *limits);
// A pass of a row for each of n_rows chunks, which need no preparation, in the scratch of an earlier one.
void dr_lm_pass_of_rows(lm_pass *pass, const dr_attention_chunk *chunks, int32_t n_rows);
dr_cached_pass dr_lm_cached_pass(const lm_pass *pass); // for one of single rows, all with logits
// Runs it; the sequences' lengths are the caller's to move on.
dr_status dr_lm_pass_run(lm_pass *pass);

#endif
