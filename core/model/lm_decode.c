// The cached pass: paged keys and values with shared prefixes, decode and chunked prefill in one batch.
#include "core/base/alloc.h"
#include "core/model/lm_internal.h"

typedef struct kv_sequence {
    bool is_open;
    int32_t length;
    int32_t n_pages, capacity;
    int32_t *pages;
    int64_t call; // the last call of dr_lm_decode that named it
} kv_sequence;

struct dr_kv_cache {
    dr_lm *lm;
    int32_t n_pages, max_seqs;
    void **k, **v;       // one block a layer: (n_pages, DR_KV_PAGE, G, d), laid out as the backend likes
    int32_t *references; // of each page
    int32_t *free_pages; // stack
    int32_t n_free;
    kv_sequence *sequences;
    dr_attention_chunk *chunks; // of the running call
    int32_t chunks_capacity;
    int64_t calls;
};

static size_t page_bytes(const dr_lm *lm) { // of keys, and of values, in one layer
    return (size_t)DR_KV_PAGE * (size_t)lm->config.n_kv_heads * (size_t)lm->config.head_size *
           dr_kv_bytes(lm->backend);
}

int64_t dr_kv_memory(const dr_lm *lm, int64_t n_pages) {
    return 2 * lm->config.n_layers * n_pages * (int64_t)page_bytes(lm);
}

static dr_status kv_allocate(dr_kv_cache *kv) {
    dr_backend *b = kv->lm->backend;
    int32_t n_layers = kv->lm->config.n_layers;
    DR_TRY(dr_alloc(&kv->k, "key blocks", n_layers, sizeof *kv->k));
    DR_TRY(dr_alloc(&kv->v, "value blocks", n_layers, sizeof *kv->v));
    DR_TRY(dr_alloc(&kv->references, "page references", kv->n_pages, sizeof *kv->references));
    DR_TRY(dr_alloc(&kv->free_pages, "free pages", kv->n_pages, sizeof *kv->free_pages));
    DR_TRY(dr_alloc(&kv->sequences, "sequences", kv->max_seqs, sizeof *kv->sequences));
    for (int32_t i = 0; i < n_layers; i++) {
        DR_TRY(dr_memory_create(b, &kv->k[i], "keys", kv->n_pages, page_bytes(kv->lm)));
        DR_TRY(dr_memory_create(b, &kv->v[i], "values", kv->n_pages, page_bytes(kv->lm)));
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
    kv->n_pages = n_pages;
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
    dr_free(kv->sequences);
    dr_free(kv->chunks);
    dr_free(kv);
}

int32_t dr_kv_free_pages(const dr_kv_cache *kv) {
    return kv->n_free;
}

static kv_sequence *sequence_of(const dr_kv_cache *kv, int32_t seq) {
    DR_ASSERT(seq >= 0 && seq < kv->max_seqs && kv->sequences[seq].is_open);
    return &kv->sequences[seq];
}

int32_t dr_kv_length(const dr_kv_cache *kv, int32_t seq) {
    return sequence_of(kv, seq)->length;
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
    kv_sequence *from = sequence_of(kv, seq);
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
    kv_sequence *s = sequence_of(kv, seq);
    for (int32_t i = 0; i < s->n_pages; i++) drop_page(kv, s->pages[i]);
    s->is_open = false;
    s->n_pages = s->length = 0;
}

// Not negative, though a call that failed half-way leaves pages behind for the next one.
static int32_t pages_needed(const kv_sequence *s, int32_t n_new) {
    int32_t needed = (s->length + n_new + DR_KV_PAGE - 1) / DR_KV_PAGE - s->n_pages;
    return needed > 0 ? needed : 0;
}

// Pages for every chunk, or nothing at all.
static dr_status reserve_pages(dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks) {
    int64_t needed = 0;
    for (int32_t c = 0; c < n_chunks; c++) {
        kv_sequence *s = sequence_of(kv, chunks[c].seq);
        needed += pages_needed(s, chunks[c].n);
        DR_TRY(reserve_page_list(s, s->n_pages + pages_needed(s, chunks[c].n)));
    }
    DR_CHECK(needed <= kv->n_free, DR_ERR_MEMORY, "key/value cache: %lld pages needed, %d free",
             (long long)needed, kv->n_free);
    for (int32_t c = 0; c < n_chunks; c++) {
        kv_sequence *s = sequence_of(kv, chunks[c].seq);
        for (int32_t n = pages_needed(s, chunks[c].n); n > 0; n--) s->pages[s->n_pages++] = take_page(kv);
    }
    return DR_OK;
}

// Scratch of T tokens carved from one block; legend as in lm_train.c.
typedef struct decode_scratch {
    float *x, *norm, *qkv, *att, *out, *gate_up, *act;
    float *top; // rows of x that go on after the last layer's attention
} decode_scratch;

static int64_t scratch_floats(const dr_lm *lm, int64_t T) {
    const dr_lm_config *c = &lm->config;
    return T * (4 * (int64_t)c->hidden + lm_qkv_width(c) + (int64_t)c->n_heads * c->head_size +
                3 * (int64_t)c->intermediate);
}

int64_t dr_lm_decode_memory(const dr_lm *lm, int64_t tokens) {
    int64_t floats = scratch_floats(lm, tokens);
    return (floats + floats / 4) * (int64_t)sizeof(float) + dr_lm_numbers_memory(2 * tokens);
}

static dr_status scratch_reserve(dr_lm *lm, int64_t T, decode_scratch *s) {
    const dr_lm_config *c = &lm->config;
    int64_t D = c->hidden, Q = lm_qkv_width(c), A = (int64_t)c->n_heads * c->head_size, F = c->intermediate;
    int64_t need = scratch_floats(lm, T);
    dr_backend *b = lm->backend;
    if (need > lm->scratch_count) {
        b->ops->memory_destroy(b, lm->scratch);
        lm->scratch = NULL;
        lm->scratch_count = 0;
        DR_TRY(dr_memory_create(b, &lm->scratch, "decode scratch", need + need / 4, sizeof(float)));
        lm->scratch_count = need + need / 4;
    }
    if (T > lm->numbers.capacity) {
        dr_lm_numbers_destroy(b, &lm->numbers);
        DR_TRY(dr_lm_numbers_create(b, 2 * T, &lm->numbers));
    }
    float *at = lm->scratch;
    s->x = at;
    s->norm = s->x + T * D;
    s->out = s->norm + T * D;
    s->qkv = s->out + T * D;
    s->att = s->qkv + T * Q;
    s->gate_up = s->att + T * A;
    s->act = s->gate_up + T * 2 * F;
    s->top = s->act + T * F;
    return DR_OK;
}

// Queries, keys and values of a layer from its normalised input s->norm, the latter two into the cache.
static dr_status layer_store(dr_lm *lm, const lm_layer *layer, void *k_cache, void *v_cache,
                             const dr_attention_chunk *chunks, int32_t n_chunks, int64_t T,
                             const decode_scratch *s) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    lm_qkv at = dr_lm_qkv_at(c, s->qkv, T);
    DR_TRY(dr_lm_qkv_forward(lm, layer, s->norm, lm->numbers.positions, T, s->qkv, NULL, NULL));
    b->ops->kv_store(b, at.k, at.v, at.kv_stride, chunks, n_chunks, DR_KV_PAGE, c->n_kv_heads, c->head_size,
                     k_cache, v_cache);
    return DR_OK;
}

// Into s->att, at the rows that the chunks name.
static dr_status layer_attend(dr_lm *lm, const void *k_cache, const void *v_cache,
                              const dr_attention_chunk *chunks, int32_t n_chunks, int64_t T,
                              const decode_scratch *s) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    lm_qkv at = dr_lm_qkv_at(c, s->qkv, T);
    return b->ops->attention_cached(b, at.q, at.q_stride, k_cache, v_cache, chunks, n_chunks, DR_KV_PAGE,
                                    c->n_heads, c->n_kv_heads, c->head_size, s->att);
}

// x (n, D) += s->out; s->norm = x under the norm whose weight is at `weight` in the parameters.
static void add_and_norm(dr_lm *lm, int64_t weight, int64_t n, float *x, const decode_scratch *s) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    b->ops->rmsnorm_residual_forward(b, s->out, lm->params + weight, n, c->hidden, c->rms_eps, x, s->norm,
                                     NULL);
}

// What follows attention in layer i, on n rows: x (n, D) is the residual stream, att (n, A) may lie in
// s->qkv. s->norm becomes what the next layer, or the head, reads.
static dr_status layer_finish(dr_lm *lm, int32_t i, const float *att, int64_t n, float *x,
                              const decode_scratch *s) {
    dr_backend *b = lm->backend;
    const dr_lm_config *c = &lm->config;
    const lm_layer *layer = &lm->layers[i];
    DR_TRY(b->ops->linear_forward(b, layer->w_o, att, n, NULL, s->out));
    add_and_norm(lm, layer->norm2, n, x, s);
    DR_TRY(b->ops->linear_forward(b, layer->w_gate_up, s->norm, n, NULL, s->gate_up));
    b->ops->swiglu_forward(b, s->gate_up, n, c->intermediate, s->act);
    DR_TRY(b->ops->linear_forward(b, layer->w_down, s->act, n, NULL, s->out));
    add_and_norm(lm, i + 1 < c->n_layers ? lm->layers[i + 1].norm1 : lm->final_norm, n, x, s);
    return DR_OK;
}

static dr_status check_chunks(const dr_lm *lm, dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks,
                              int64_t *out_tokens) {
    int64_t T = 0, call = ++kv->calls;
    for (int32_t c = 0; c < n_chunks; c++) {
        DR_CHECK(chunks[c].n > 0, DR_ERR_ARGUMENT, "decode: chunk %d has no tokens", c);
        DR_CHECK(sequence_of(kv, chunks[c].seq)->call != call, DR_ERR_ARGUMENT,
                 "decode: sequence %d stands in two chunks", chunks[c].seq);
        kv->sequences[chunks[c].seq].call = call;
        DR_CHECK(sequence_of(kv, chunks[c].seq)->length + (int64_t)chunks[c].n <= lm->config.max_positions,
                 DR_ERR_RANGE, "decode: sequence of %d + %d positions, the model allows %d",
                 dr_kv_length(kv, chunks[c].seq), chunks[c].n, lm->config.max_positions);
        for (int32_t i = 0; i < chunks[c].n; i++)
            DR_CHECK(chunks[c].ids[i] >= 0 && chunks[c].ids[i] < lm->config.vocab, DR_ERR_RANGE,
                     "decode: token %d outside the vocabulary of %d", chunks[c].ids[i], lm->config.vocab);
        T += chunks[c].n;
    }
    *out_tokens = T;
    return DR_OK;
}

static dr_status describe_chunks(dr_lm *lm, dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks) {
    if (2 * n_chunks > kv->chunks_capacity) { // and as many for the last layer
        DR_TRY(
            dr_grow(&kv->chunks, "attention chunks", kv->chunks_capacity, 4 * n_chunks, sizeof *kv->chunks));
        kv->chunks_capacity = 4 * n_chunks;
    }
    int64_t row = 0;
    for (int32_t c = 0; c < n_chunks; c++) {
        kv_sequence *s = sequence_of(kv, chunks[c].seq);
        kv->chunks[c] = (dr_attention_chunk){row, chunks[c].n, s->length, s->pages};
        for (int32_t i = 0; i < chunks[c].n; i++) {
            lm->numbers.host_ids[row + i] = chunks[c].ids[i];
            lm->numbers.host_positions[row + i] = s->length + i;
        }
        row += chunks[c].n;
    }
    lm_send(lm->backend, lm->numbers.ids, lm->numbers.host_ids, row);
    lm_send(lm->backend, lm->numbers.positions, lm->numbers.host_positions, row);
    return DR_OK;
}

// Of the last layer only rows whose logits are wanted go on after its keys and values: the last one of such
// chunks. Their numbers go to lm->numbers.rows, a chunk of one row for each behind the n_chunks of the call.
static int32_t wanted_rows(dr_lm *lm, dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks) {
    int32_t n = 0;
    for (int32_t c = 0; c < n_chunks; c++) {
        if (!chunks[c].want_logits) continue;
        const dr_attention_chunk *whole = &kv->chunks[c];
        int64_t row = whole->row + whole->n_new - 1;
        kv->chunks[n_chunks + n] =
            (dr_attention_chunk){row, 1, whole->n_past + whole->n_new - 1, whole->pages};
        lm->numbers.host_rows[n++] = (int32_t)row;
    }
    lm_send(lm->backend, lm->numbers.rows, lm->numbers.host_rows, n);
    return n;
}

static dr_status last_layer(dr_lm *lm, dr_kv_cache *kv, int32_t n_chunks, int32_t n_rows, int64_t T,
                            const decode_scratch *s) {
    dr_backend *b = lm->backend;
    int32_t last = lm->config.n_layers - 1;
    int64_t A = (int64_t)lm->config.n_heads * lm->config.head_size;
    DR_TRY(layer_attend(lm, kv->k[last], kv->v[last], kv->chunks + n_chunks, n_rows, T, s));
    const int32_t *rows = lm->numbers.rows;
    b->ops->embedding_forward(b, s->att, rows, n_rows, A, s->qkv); // gathers of rows; Q is more than A
    b->ops->embedding_forward(b, s->x, rows, n_rows, lm->config.hidden, s->top);
    return layer_finish(lm, last, s->qkv, n_rows, s->top, s);
}

// One call. Rows that go on to the head: all of them, or the last one of each chunk that wants logits.
typedef struct decode_call {
    dr_lm *lm;
    dr_kv_cache *kv;
    const dr_lm_chunk *chunks;
    int32_t n_chunks, n_rows;
    bool every_row;
    int64_t T;
    decode_scratch s;
    float *logits; // [n_rows, vocab]
} decode_call;

static bool are_single_rows(const decode_call *call) {
    bool all = call->T == call->n_chunks;
    for (int32_t c = 0; c < call->n_chunks && all; c++) all = call->chunks[c].want_logits;
    return all;
}

// Everything that the host decides: after it the call is ops alone.
static dr_status decode_prepare(decode_call *call) {
    dr_lm *lm = call->lm;
    DR_TRY(check_chunks(lm, call->kv, call->chunks, call->n_chunks, &call->T));
    DR_TRY(scratch_reserve(lm, call->T, &call->s));
    DR_TRY(reserve_pages(call->kv, call->chunks, call->n_chunks));
    DR_TRY(describe_chunks(lm, call->kv, call->chunks, call->n_chunks));
    call->every_row = call->every_row || are_single_rows(call);
    call->n_rows =
        call->every_row ? (int32_t)call->T : wanted_rows(lm, call->kv, call->chunks, call->n_chunks);
    return DR_OK;
}

// All layers over the chunks, appended to the cache, then the head of the rows wanted.
static dr_status decode_ops(void *context) {
    decode_call *call = context;
    dr_lm *lm = call->lm;
    dr_kv_cache *kv = call->kv;
    dr_backend *b = lm->backend;
    decode_scratch *s = &call->s;
    DR_TRY(b->ops->weight_rows(b, lm->w_embed, lm->numbers.ids, call->T, s->x));
    b->ops->rmsnorm_forward(b, s->x, lm->params + lm->layers[0].norm1, call->T, lm->config.hidden,
                            lm->config.rms_eps, s->norm, NULL);
    for (int32_t i = 0; i < lm->config.n_layers; i++) {
        DR_TRY(layer_store(lm, &lm->layers[i], kv->k[i], kv->v[i], kv->chunks, call->n_chunks, call->T, s));
        if (i + 1 == lm->config.n_layers && !call->every_row) {
            if (call->n_rows > 0) DR_TRY(last_layer(lm, kv, call->n_chunks, call->n_rows, call->T, s));
            break;
        }
        DR_TRY(layer_attend(lm, kv->k[i], kv->v[i], kv->chunks, call->n_chunks, call->T, s));
        DR_TRY(layer_finish(lm, i, s->att, call->T, s->x, s));
    }
    if (call->n_rows == 0) return DR_OK;
    return b->ops->linear_forward(b, lm->w_head, s->norm, call->n_rows, NULL, call->logits);
}

static dr_status decode(decode_call *call) {
    DR_TRY(decode_prepare(call));
    dr_backend *b = call->lm->backend;
    const dr_cached_pass pass = {.chunks = call->kv->chunks,
                                 .n_chunks = call->n_chunks,
                                 .group = call->lm->config.n_heads / call->lm->config.n_kv_heads,
                                 .head_size = call->lm->config.head_size,
                                 .places = {call->kv, call->s.x, call->logits}};
    if (call->T == call->n_chunks && call->every_row)
        DR_TRY(b->ops->cached_pass(b, &pass, decode_ops, call));
    else
        DR_TRY(decode_ops(call));
    for (int32_t c = 0; c < call->n_chunks; c++)
        call->kv->sequences[call->chunks[c].seq].length += call->chunks[c].n;
    return DR_OK;
}

dr_status dr_lm_decode(dr_lm *lm, dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks,
                       float *out_logits) {
    decode_call call = {.lm = lm, .kv = kv, .chunks = chunks, .n_chunks = n_chunks, .logits = out_logits};
    return decode(&call);
}

dr_status dr_lm_decode_rows(dr_lm *lm, dr_kv_cache *kv, int32_t seq, const int32_t *ids, int32_t n,
                            float *out_logits) {
    dr_lm_chunk chunk = {seq, n, ids, true};
    decode_call call = {
        .lm = lm, .kv = kv, .chunks = &chunk, .n_chunks = 1, .every_row = true, .logits = out_logits};
    return decode(&call);
}
