// The paged cache: which pages a sequence stands on, shared prefixes, what is free.
#include "core/model/lm_cache.h"

#include "core/base/alloc.h"

static size_t page_bytes(const dr_lm *lm) { // of keys, and of values, in one layer
    return (size_t)DR_KV_PAGE * (size_t)lm->config.n_kv_heads * (size_t)lm->config.head_size *
           dr_kv_bytes(lm->backend);
}

int64_t dr_kv_memory(const dr_lm *lm, int64_t n_pages) {
    return 2 * lm->config.n_layers * (n_pages + 1) * (int64_t)page_bytes(lm);
}

static dr_status kv_allocate(dr_kv_cache *kv) {
    dr_backend *b = kv->lm->backend;
    int32_t n_layers = kv->lm->config.n_layers;
    DR_TRY(dr_alloc(&kv->k, "key blocks", n_layers, sizeof *kv->k));
    DR_TRY(dr_alloc(&kv->v, "value blocks", n_layers, sizeof *kv->v));
    DR_TRY(dr_alloc(&kv->references, "page references", kv->n_pages, sizeof *kv->references));
    DR_TRY(dr_alloc(&kv->free_pages, "free pages", kv->n_pages, sizeof *kv->free_pages));
    DR_TRY(dr_alloc(&kv->pool, "pool of a burst", kv->n_pages, sizeof *kv->pool));
    DR_TRY(dr_alloc(&kv->sequences, "sequences", kv->max_seqs, sizeof *kv->sequences));
    for (int32_t i = 0; i < n_layers; i++) {
        DR_TRY(dr_memory_create(b, &kv->k[i], "keys", (int64_t)kv->n_pages + 1, page_bytes(kv->lm)));
        DR_TRY(dr_memory_create(b, &kv->v[i], "values", (int64_t)kv->n_pages + 1, page_bytes(kv->lm)));
    }
    for (int32_t i = 0; i < kv->n_pages; i++) kv->free_pages[kv->n_free++] = kv->n_pages - 1 - i;
    return DR_OK;
}

dr_status dr_kv_create(dr_lm *lm, int32_t n_pages, int32_t max_seqs, dr_kv_cache **out_kv) {
    DR_CHECK(n_pages > 0 && max_seqs > 0, DR_ERR_ARGUMENT, "key/value cache of %d pages for %d sequences",
             n_pages, max_seqs);
    dr_kv_cache *kv = NULL;
    DR_TRY(dr_alloc(&kv, "key/value cache", 1, sizeof *kv));
    kv->lm = lm;
    kv->n_pages = kv->idle_page = n_pages;
    kv->max_seqs = max_seqs;
    dr_status status = kv_allocate(kv);
    if (status != DR_OK) {
        dr_kv_destroy(kv);
        return status;
    }
    *out_kv = kv;
    return DR_OK;
}

void dr_kv_destroy(dr_kv_cache *kv) {
    if (!kv) return;
    dr_backend *b = kv->lm->backend;
    for (int32_t i = 0; i < kv->lm->config.n_layers; i++) {
        if (kv->k) b->ops->memory_destroy(b, kv->k[i]);
        if (kv->v) b->ops->memory_destroy(b, kv->v[i]);
    }
    for (int32_t i = 0; kv->sequences && i < kv->max_seqs; i++) dr_free(kv->sequences[i].pages);
    dr_free(kv->k);
    dr_free(kv->v);
    dr_free(kv->references);
    dr_free(kv->free_pages);
    dr_free(kv->pool);
    dr_free(kv->sequences);
    void *blocks[] = {kv->chunks,        kv->later,     kv->passes,     kv->row_ids,
                      kv->row_positions, kv->row_pages, kv->row_n_pages};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dr_free(blocks[i]);
    dr_free(kv);
}

int32_t dr_kv_free_pages(const dr_kv_cache *kv) {
    return kv->n_free;
}

int32_t dr_kv_length(const dr_kv_cache *kv, int32_t seq) {
    return dr_kv_sequence(kv, seq)->length;
}

dr_status dr_kv_open(dr_kv_cache *kv, int32_t *out_seq) {
    for (int32_t i = 0; i < kv->max_seqs; i++) {
        if (kv->sequences[i].is_open) continue;
        kv->sequences[i].is_open = true;
        kv->sequences[i].length = kv->sequences[i].n_pages = 0;
        *out_seq = i;
        return DR_OK;
    }
    return DR_FAIL(DR_ERR_RANGE, "key/value cache: all %d sequences are in use", kv->max_seqs);
}

static dr_status reserve_page_list(kv_sequence *s, int32_t n) {
    if (n <= s->capacity) return DR_OK;
    int32_t capacity = s->capacity ? s->capacity : 16;
    while (capacity < n) capacity *= 2;
    DR_TRY(dr_grow(&s->pages, "page list", s->capacity, capacity, sizeof *s->pages));
    s->capacity = capacity;
    return DR_OK;
}

static int32_t take_page(dr_kv_cache *kv) {
    int32_t page = kv->free_pages[--kv->n_free];
    kv->references[page] = 1;
    return page;
}

static void drop_page(dr_kv_cache *kv, int32_t page) {
    if (--kv->references[page] == 0) kv->free_pages[kv->n_free++] = page;
}

static void copy_page(dr_kv_cache *kv, void *block, int32_t from, int32_t to) {
    dr_backend *b = kv->lm->backend;
    size_t bytes = page_bytes(kv->lm);
    b->ops->copy(b, (char *)block + (size_t)to * bytes, (char *)block + (size_t)from * bytes, bytes);
}

dr_status dr_kv_fork(dr_kv_cache *kv, int32_t seq, int32_t *out_seq) {
    kv_sequence *from = dr_kv_sequence(kv, seq);
    bool partial = from->length % DR_KV_PAGE != 0;
    DR_CHECK(!partial || kv->n_free > 0, DR_ERR_MEMORY, "key/value cache: no free page for a fork");
    int32_t child = -1;
    DR_TRY(dr_kv_open(kv, &child));
    kv_sequence *to = &kv->sequences[child];
    dr_status status = reserve_page_list(to, from->n_pages);
    if (status != DR_OK) {
        to->is_open = false;
        return status;
    }
    int32_t shared = from->length / DR_KV_PAGE;
    for (int32_t i = 0; i < shared; i++) {
        to->pages[i] = from->pages[i];
        kv->references[from->pages[i]]++;
    }
    to->n_pages = shared;
    to->length = from->length;
    if (partial) {
        int32_t page = take_page(kv);
        for (int32_t i = 0; i < kv->lm->config.n_layers; i++) {
            copy_page(kv, kv->k[i], from->pages[shared], page);
            copy_page(kv, kv->v[i], from->pages[shared], page);
        }
        to->pages[to->n_pages++] = page;
    }
    *out_seq = child;
    return DR_OK;
}

void dr_kv_close(dr_kv_cache *kv, int32_t seq) {
    kv_sequence *s = dr_kv_sequence(kv, seq);
    for (int32_t i = 0; i < s->n_pages; i++) drop_page(kv, s->pages[i]);
    s->is_open = false;
    s->n_pages = s->length = 0;
}

// Not negative, though a call that failed half-way leaves pages behind for the next one.
static int32_t pages_needed(const kv_sequence *s, int32_t n_new) {
    int32_t needed = (s->length + n_new + DR_KV_PAGE - 1) / DR_KV_PAGE - s->n_pages;
    return needed > 0 ? needed : 0;
}

// Pages that a chunk may come to need in a burst; next_limit moves along.
static int32_t most_pages(const kv_sequence *s, const dr_lm_chunk *chunk, const int32_t **next_limit) {
    return pages_needed(s, chunk->n + (*next_limit && chunk->want_logits ? *(*next_limit)++ - 1 : 0));
}

dr_status dr_kv_reserve(dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks, const int32_t *limits) {
    int64_t needed = 0;
    const int32_t *next = limits;
    for (int32_t c = 0; c < n_chunks; c++) {
        kv_sequence *s = dr_kv_sequence(kv, chunks[c].seq);
        needed += pages_needed(s, chunks[c].n);
        DR_TRY(reserve_page_list(s, s->n_pages + most_pages(s, &chunks[c], &next)));
    }
    DR_CHECK(needed <= kv->n_free, DR_ERR_MEMORY, "key/value cache: %lld pages needed, %d free",
             (long long)needed, kv->n_free);
    for (int32_t c = 0; c < n_chunks; c++) {
        kv_sequence *s = dr_kv_sequence(kv, chunks[c].seq);
        for (int32_t n = pages_needed(s, chunks[c].n); n > 0; n--) s->pages[s->n_pages++] = take_page(kv);
    }
    return DR_OK;
}

// Until a page is taken the row's last one stands in its place: one that it shares with nobody.
dr_burst_pages dr_kv_offer(dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks,
                           const int32_t *limits) {
    int64_t most = 0;
    int32_t r = 0;
    for (int32_t c = 0; c < n_chunks; c++) {
        if (!chunks[c].want_logits) continue;
        kv_sequence *s = dr_kv_sequence(kv, chunks[c].seq);
        const int32_t n = most_pages(s, &chunks[c], &limits);
        for (int32_t i = 0; i < n; i++) s->pages[s->n_pages + i] = s->pages[s->n_pages - 1];
        kv->row_pages[r] = s->pages;
        kv->row_n_pages[r++] = s->n_pages;
        most += n;
    }
    const int32_t n_pool = most < kv->n_free ? (int32_t)most : kv->n_free;
    for (int32_t i = 0; i < n_pool; i++) kv->pool[i] = kv->free_pages[kv->n_free - 1 - i];
    return (dr_burst_pages){.page_size = DR_KV_PAGE,
                            .n_pool = n_pool,
                            .pool = kv->pool,
                            .lists = kv->row_pages,
                            .counts = kv->row_n_pages};
}

void dr_kv_keep(dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks) {
    int32_t n_taken = 0, r = 0;
    for (int32_t c = 0; c < n_chunks; c++) {
        if (!chunks[c].want_logits) continue;
        kv_sequence *s = dr_kv_sequence(kv, chunks[c].seq);
        const int32_t n = kv->row_n_pages[r++];
        for (; s->n_pages < n; s->n_pages++, n_taken++) kv->references[s->pages[s->n_pages]] = 1;
    }
    kv->n_free -= n_taken; // those at the end of the stack, where the pool began
}

void dr_kv_truncate(dr_kv_cache *kv, int32_t seq, int32_t length) {
    kv_sequence *s = dr_kv_sequence(kv, seq);
    DR_ASSERT(length >= 0 && length <= s->length);
    s->length = length;
    while (s->n_pages > (length + DR_KV_PAGE - 1) / DR_KV_PAGE) drop_page(kv, s->pages[--s->n_pages]);
    DR_ASSERT(length % DR_KV_PAGE == 0 || kv->references[s->pages[s->n_pages - 1]] == 1);
}
