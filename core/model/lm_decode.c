// The cached pass: decode and chunked prefill in one batch.
#include "core/model/lm_cache.h"

#include "core/base/alloc.h"

static int64_t scratch_floats(const dr_lm *lm, int64_t T) {
    const dr_lm_config *c = &lm->config;
    return T * (4 * (int64_t)c->hidden + lm_qkv_width(c) + (int64_t)c->n_heads * c->head_size) +
           lm_gated_floats(lm, T * 2 * c->intermediate);
}

int64_t dr_lm_decode_memory(const dr_lm *lm, int64_t tokens) {
    int64_t floats = scratch_floats(lm, tokens);
    return (floats + floats / 4) * (int64_t)sizeof(float) + dr_lm_numbers_memory(2 * tokens);
}

static void carve(const dr_lm *lm, int64_t T, lm_pass_scratch *s) {
    const dr_lm_config *c = &lm->config;
    int64_t D = c->hidden, Q = lm_qkv_width(c), A = (int64_t)c->n_heads * c->head_size, F = c->intermediate;
    s->x = lm->scratch;
    s->norm = s->x + T * D;
    s->out = s->norm + T * D;
    s->qkv = s->out + T * D;
    s->att = s->qkv + T * Q;
    float *gate_up = s->att + T * A;
    s->gate_up = gate_up;
    s->top = gate_up + lm_gated_floats(lm, T * 2 * F);
}

static dr_status scratch_reserve(dr_lm *lm, int64_t T) {
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
    return DR_OK;
}

// Where q, k and v of the pass's rows stand, counted as its chunks count them.
static lm_qkv qkv_of(const lm_pass *pass) {
    lm_qkv at = dr_lm_qkv_at(&pass->lm->config, pass->s.qkv);
    at.q -= pass->first * at.stride;
    at.k -= pass->first * at.stride;
    at.v -= pass->first * at.stride;
    return at;
}

// Queries, keys and values of layer i from its normalised input s.norm, the latter two into the cache.
static dr_status layer_store(const lm_pass *pass, int32_t i) {
    dr_lm *lm = pass->lm;
    dr_backend *b = pass->backend;
    const dr_lm_config *c = &lm->config;
    lm_qkv at = qkv_of(pass);
    DR_TRY(dr_lm_qkv_forward(lm, b, &lm->layers[i], pass->s.norm, lm->numbers.positions + pass->first,
                             pass->T, pass->s.qkv, NULL, NULL));
    b->ops->kv_store(b, at.k, at.v, at.stride, pass->chunks, pass->n_chunks, DR_KV_PAGE, c->n_kv_heads,
                     c->head_size, pass->kv->k[i], pass->kv->v[i]);
    return DR_OK;
}

// Into s.att, at the rows that the chunks name.
static dr_status layer_attend(const lm_pass *pass, int32_t i, const dr_attention_chunk *chunks,
                              int32_t n_chunks) {
    dr_backend *b = pass->backend;
    const dr_lm_config *c = &pass->lm->config;
    lm_qkv at = qkv_of(pass);
    float *att = pass->s.att - pass->first * c->n_heads * c->head_size;
    return b->ops->attention_cached(b, at.q, at.stride, pass->kv->k[i], pass->kv->v[i], chunks, n_chunks,
                                    DR_KV_PAGE, c->n_heads, c->n_kv_heads, c->head_size, att);
}

// x (n, D) += s.out; s.norm = x under the norm whose weight is at `weight` in the parameters.
static void add_and_norm(const lm_pass *pass, int64_t weight, int64_t n, float *x) {
    dr_backend *b = pass->backend;
    const dr_lm_config *c = &pass->lm->config;
    b->ops->rmsnorm_residual_forward(b, pass->s.out, dr_lm_vector(pass->lm, weight), n, c->hidden, c->rms_eps,
                                     x, pass->s.norm, NULL);
}

// What follows attention in layer i, on n rows: x (n, D) is the residual stream, att (n, A) may lie in
// s.qkv. s.norm becomes what the next layer, or the head, reads.
static dr_status layer_finish(const lm_pass *pass, int32_t i, const float *att, int64_t n, float *x) {
    dr_lm *lm = pass->lm;
    dr_backend *b = pass->backend;
    const dr_lm_config *c = &lm->config;
    const lm_pass_scratch *s = &pass->s;
    const lm_layer *layer = &lm->layers[i];
    DR_TRY(b->ops->linear_forward(b, layer->w_o, att, n, NULL, s->out));
    add_and_norm(pass, layer->norm2, n, x);
    DR_TRY(b->ops->gate_up_forward(b, layer->w_gate_up, s->norm, n, s->gate_up));
    DR_TRY(b->ops->swiglu_linear_forward(b, layer->w_down, s->gate_up, n, s->out));
    add_and_norm(pass, i + 1 < c->n_layers ? lm->layers[i + 1].norm1 : lm->final_norm, n, x);
    return DR_OK;
}

// limits: of the chunks that want logits, or NULL.
static dr_status check_chunks(const dr_lm *lm, dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks,
                              const int32_t *limits, int64_t *out_tokens) {
    int64_t T = 0, call = ++kv->calls;
    for (int32_t c = 0; c < n_chunks; c++) {
        DR_CHECK(chunks[c].n > 0, DR_ERR_ARGUMENT, "decode: chunk %d has no tokens", c);
        kv_sequence *s = dr_kv_sequence(kv, chunks[c].seq);
        DR_CHECK(s->call != call, DR_ERR_ARGUMENT, "decode: sequence %d stands in two chunks", chunks[c].seq);
        s->call = call;
        int64_t n = chunks[c].n;
        if (limits && chunks[c].want_logits) n += *limits++ - 1;
        DR_CHECK(s->length + n <= lm->config.max_positions, DR_ERR_RANGE,
                 "decode: sequence of %d + %lld positions, the model allows %d", s->length, (long long)n,
                 lm->config.max_positions);
        for (int32_t i = 0; i < chunks[c].n; i++)
            DR_CHECK(chunks[c].ids[i] >= 0 && chunks[c].ids[i] < lm->config.vocab, DR_ERR_RANGE,
                     "decode: token %d outside the vocabulary of %d", chunks[c].ids[i], lm->config.vocab);
        T += chunks[c].n;
    }
    *out_tokens = T;
    return DR_OK;
}

// n_idle: idle rows behind those of the chunks.
static dr_status describe_chunks(dr_lm *lm, dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks,
                                 int32_t n_idle) {
    const int32_t n = n_chunks + n_idle;
    if (2 * n > kv->chunks_capacity) { // and as many for the last layer
        DR_TRY(dr_grow(&kv->chunks, "attention chunks", kv->chunks_capacity, 4 * n, sizeof *kv->chunks));
        kv->chunks_capacity = 4 * n;
    }
    int64_t row = 0;
    for (int32_t c = 0; c < n_chunks; c++) {
        kv_sequence *s = dr_kv_sequence(kv, chunks[c].seq);
        kv->chunks[c] = (dr_attention_chunk){row, chunks[c].n, s->length, s->pages};
        for (int32_t i = 0; i < chunks[c].n; i++) {
            lm->numbers.host_ids[row + i] = chunks[c].ids[i];
            lm->numbers.host_positions[row + i] = s->length + i;
        }
        row += chunks[c].n;
    }
    for (int32_t c = n_chunks; c < n; c++, row++) {
        kv->chunks[c] = dr_kv_idle_chunk(kv, row);
        lm->numbers.host_ids[row] = lm->numbers.host_positions[row] = 0;
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

static dr_status last_layer(const lm_pass *pass) {
    dr_lm *lm = pass->lm;
    dr_backend *b = pass->backend;
    const lm_pass_scratch *s = &pass->s;
    int32_t last = lm->config.n_layers - 1, n = pass->n_rows;
    int64_t A = (int64_t)lm->config.n_heads * lm->config.head_size;
    DR_TRY(layer_attend(pass, last, pass->chunks + pass->n_chunks, n));
    const int32_t *rows = lm->numbers.rows;
    b->ops->embedding_forward(b, s->att, rows, n, A, s->qkv); // gathers of rows; Q is more than A
    b->ops->embedding_forward(b, s->x, rows, n, lm->config.hidden, s->top);
    return layer_finish(pass, last, s->qkv, n, s->top);
}

static bool are_single_rows(const dr_lm_chunk *chunks, int32_t n_chunks, int64_t T) {
    bool all = T == n_chunks;
    for (int32_t c = 0; c < n_chunks && all; c++) all = chunks[c].want_logits;
    return all;
}

dr_status dr_lm_pass_prepare(lm_pass *pass, const dr_lm_chunk *chunks, int32_t n_chunks,
                             const int32_t *limits) {
    dr_lm *lm = pass->lm;
    DR_TRY(check_chunks(lm, pass->kv, chunks, n_chunks, limits, &pass->T));
    const bool is_single = are_single_rows(chunks, n_chunks, pass->T);
    const int32_t n_idle = is_single && pass->least_rows > n_chunks ? pass->least_rows - n_chunks : 0;
    DR_TRY(scratch_reserve(lm, pass->T > pass->least_rows ? pass->T : pass->least_rows));
    pass->T += n_idle;
    carve(lm, pass->T, &pass->s);
    DR_TRY(dr_kv_reserve(pass->kv, chunks, n_chunks, limits));
    DR_TRY(describe_chunks(lm, pass->kv, chunks, n_chunks, n_idle));
    pass->chunks = pass->kv->chunks;
    pass->n_chunks = n_chunks + n_idle;
    pass->every_row = pass->every_row || is_single;
    pass->n_rows = pass->every_row ? (int32_t)pass->T : wanted_rows(lm, pass->kv, chunks, n_chunks);
    return DR_OK;
}

void dr_lm_pass_of_rows(lm_pass *pass, const dr_attention_chunk *chunks, int32_t n_rows) {
    DR_ASSERT(n_rows <= pass->T || n_rows <= pass->least_rows);
    pass->chunks = chunks;
    pass->n_chunks = pass->n_rows = n_rows;
    pass->T = n_rows;
    pass->every_row = true;
    carve(pass->lm, n_rows, &pass->s);
}

// All layers over the chunks, appended to the cache, then the head of the rows wanted.
static dr_status run_ops(const lm_pass *pass) {
    dr_lm *lm = pass->lm;
    dr_backend *b = pass->backend;
    const lm_pass_scratch *s = &pass->s;
    DR_TRY(b->ops->weight_rows(b, lm->w_embed, lm->numbers.ids + pass->first, pass->T, s->x));
    b->ops->rmsnorm_forward(b, s->x, dr_lm_vector(lm, lm->layers[0].norm1), pass->T, lm->config.hidden,
                            lm->config.rms_eps, s->norm, NULL);
    for (int32_t i = 0; i < lm->config.n_layers; i++) {
        DR_TRY(layer_store(pass, i));
        if (i + 1 == lm->config.n_layers && !pass->every_row) {
            if (pass->n_rows > 0) DR_TRY(last_layer(pass));
            break;
        }
        DR_TRY(layer_attend(pass, i, pass->chunks, pass->n_chunks));
        DR_TRY(layer_finish(pass, i, s->att, pass->T, s->x));
    }
    if (pass->n_rows == 0) return DR_OK;
    return b->ops->linear_forward(b, lm->w_head, s->norm, pass->n_rows, NULL, pass->logits);
}

// A pass's n rows from `first` on, one a chunk; their scratch is their part of the pass's.
static lm_pass part_of(const lm_pass *pass, int32_t first, int32_t n) {
    const dr_lm_config *c = &pass->lm->config;
    const int64_t D = c->hidden, F = c->intermediate, r = first;
    const lm_pass_scratch *s = &pass->s;
    lm_pass part = *pass;
    DR_ASSERT(pass->every_row && pass->T == pass->n_chunks && first + n <= pass->n_chunks);
    part.chunks += first;
    part.first += first;
    part.T = part.n_chunks = part.n_rows = n;
    part.s = (lm_pass_scratch){.x = s->x + r * D,
                               .norm = s->norm + r * D,
                               .qkv = s->qkv + r * lm_qkv_width(c),
                               .att = s->att + r * c->n_heads * c->head_size,
                               .out = s->out + r * D,
                               .gate_up = (float *)s->gate_up + lm_gated_floats(pass->lm, r * 2 * F),
                               .top = s->top + r * D};
    part.logits += r * c->vocab;
    return part;
}

static dr_status pass_ops(void *context, dr_backend *b, int32_t first, int32_t n) {
    const lm_pass *pass = context;
    lm_pass part = n == pass->n_chunks ? *pass : part_of(pass, first, n);
    part.backend = b;
    return run_ops(&part);
}

dr_cached_pass dr_lm_cached_pass(const lm_pass *pass) {
    const dr_lm_config *c = &pass->lm->config;
    return (dr_cached_pass){.chunks = pass->chunks,
                            .n_chunks = pass->n_chunks,
                            .group = c->n_heads / c->n_kv_heads,
                            .head_size = c->head_size,
                            .row_macs = dr_lm_row_macs(pass->lm),
                            .position_macs = 2 * (int64_t)c->n_layers * c->n_heads * c->head_size,
                            .places = {pass->kv, pass->s.x, pass->logits}};
}

dr_status dr_lm_pass_run(lm_pass *pass) {
    dr_backend *b = pass->lm->backend;
    const dr_cached_pass cached = dr_lm_cached_pass(pass);
    bool is_repeatable = pass->every_row && pass->T == pass->n_chunks;
    return is_repeatable ? b->ops->cached_pass(b, &cached, pass_ops, pass)
                         : pass_ops(pass, b, 0, pass->n_chunks);
}

static dr_status decode(lm_pass *pass, const dr_lm_chunk *chunks, int32_t n_chunks) {
    DR_TRY(dr_lm_pass_prepare(pass, chunks, n_chunks, NULL));
    DR_TRY(dr_lm_pass_run(pass));
    for (int32_t c = 0; c < n_chunks; c++) dr_kv_sequence(pass->kv, chunks[c].seq)->length += chunks[c].n;
    return DR_OK;
}

dr_status dr_lm_decode(dr_lm *lm, dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks,
                       float *out_logits) {
    lm_pass pass = {.lm = lm, .kv = kv, .logits = out_logits};
    return decode(&pass, chunks, n_chunks);
}

dr_status dr_lm_decode_rows(dr_lm *lm, dr_kv_cache *kv, int32_t seq, const int32_t *ids, int32_t n,
                            float *out_logits) {
    const dr_lm_chunk chunk = {seq, n, ids, true};
    lm_pass pass = {.lm = lm, .kv = kv, .every_row = true, .logits = out_logits};
    return decode(&pass, &chunk, 1);
}
