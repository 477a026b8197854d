// The retrieval model at work: requests go to the backend as one copy, are scored against the whole catalogue
// and come back as the best items. Nothing between begin and finish waits for the backend, but for buffers
// that have to grow, and where texts take several of an encoder's passes for what these hand to each other.
#include <math.h>
#include <string.h>

#include "core/base/alive.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/rec/trm_internal.h"

enum { SERVE_BATCH = 128, MOST_SCORES = 1 << 24 /* floats of one pass: 64 MiB */ };
static const double DEADLINE_S = 600; // of the calls that wait

// The host's side of a call of n requests: blocks of inputs, texts (embeddings, or for an encoder on the
// backend what it queues), then places of scores. What comes back: hits, then that encoder's embeddings.
struct dr_trm_retrieval {
    dr_trm *trm;
    int64_t most, n; // n 0: not under way
    bool has_failed; // its begin has, half-way: what was sent may still be on its way
    int32_t k;
    dr_transfer *input, *output;
    size_t texts, places; // where they begin in the input
    size_t embeddings;    // in the output
};

// ---- what serving computes in ----

int64_t dr_trm_serving_rows(const dr_trm_config *c) {
    int64_t rows = MOST_SCORES / ((int64_t)c->n_items + 1);
    return rows < 1 ? 1 : rows < SERVE_BATCH ? rows : SERVE_BATCH;
}

int64_t dr_trm_serving_memory(const dr_trm_config *c) {
    int64_t rows = dr_trm_serving_rows(c);
    return dr_trm_batch_memory(c, rows, false) + dr_trm_adaptor_memory(c, rows, false) +
           rows * (c->hidden + (int64_t)c->n_items + 1) * (int64_t)sizeof(float);
}

dr_status dr_trm_serving_create(dr_trm *trm) {
    dr_backend *b = trm->backend;
    trm_serving *s = &trm->serving;
    int64_t N = (int64_t)trm->config.n_items + 1;
    DR_TRY(dr_trm_batch_create(trm, s->rows, false, &s->batch));
    DR_TRY(dr_trm_adaptor_create(trm, s->rows, false, &s->adaptor));
    DR_TRY(dr_memory_create(b, &s->unit, "unit user vectors", s->rows * trm->config.hidden, sizeof(float)));
    DR_TRY(dr_memory_create(b, &s->scores, "retrieval scores", s->rows * N, sizeof(float)));
    return dr_trm_retrieval_create(trm, s->rows, 1, &s->own);
}

void dr_trm_serving_destroy(dr_trm *trm) {
    dr_backend *b = trm->backend;
    trm_serving *s = &trm->serving;
    dr_trm_retrieval_destroy(s->own);
    dr_trm_batch_destroy(s->batch);
    dr_trm_adaptor_reset(&s->adaptor);
    void *owned[] = {s->unit, s->scores, s->places.data, s->hits.data, s->embeddings.data};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) b->ops->memory_destroy(b, owned[i]);
    *s = (trm_serving){0};
}

// Room for `need` bytes; where there is less, `capacity` are taken, and what was there is lost.
static dr_status reserve(dr_backend *b, const char *label, int64_t need, int64_t capacity,
                         trm_grown *memory) {
    if (need <= memory->bytes) return DR_OK;
    b->ops->memory_destroy(b, memory->data);
    *memory = (trm_grown){0};
    DR_TRY(dr_memory_create(b, &memory->data, label, capacity, 1));
    memory->bytes = capacity;
    return DR_OK;
}

static int64_t hits_bytes(const dr_trm *trm, int32_t k) {
    return trm->serving.rows * k * (int64_t)sizeof(dr_hit);
}

static int64_t places_bytes(int64_t n) {
    return n * (int64_t)sizeof(int64_t);
}

static int64_t places_capacity(int64_t n) {
    return places_bytes(n + n / 2);
}

// Whether preferences are encoded there, and not on the host.
static bool encodes_on_backend(const dr_trm *trm) {
    return trm->encoder ? trm->encoder->ops->queue != NULL : trm->queued > 0;
}

static int64_t embeddings_bytes(const dr_trm *trm, int64_t n) {
    return encodes_on_backend(trm) ? n * trm->config.text_dim * (int64_t)sizeof(float) : 0;
}

// ---- one pass: up to trm->serving.rows requests ----

static int64_t count_places(const dr_trm_query *queries, int64_t n, bool exclude_history) {
    int64_t count = n;
    for (int64_t q = 0; q < n && exclude_history; q++) count += queries[q].n_history;
    return count;
}

// Places in the scores of one pass that no answer names: padding, and the history when asked.
static dr_status list_places(const dr_trm *trm, const dr_trm_query *queries, int64_t rows,
                             bool exclude_history, int64_t *out) {
    int64_t N = (int64_t)trm->config.n_items + 1;
    for (int64_t r = 0; r < rows; r++) {
        *out++ = r * N;
        for (int32_t i = 0; exclude_history && i < queries[r].n_history; i++) {
            int32_t item = queries[r].history[i];
            DR_CHECK(item >= 1 && item < N, DR_ERR_RANGE,
                     "retrieval: request %lld names item %d, expected 1 to %d", (long long)r, item,
                     trm->config.n_items);
            *out++ = r * N + item;
        }
    }
    return DR_OK;
}

// Rows of zeros for those without one: they adapt to zeros.
static bool put_texts(const dr_trm_query *queries, int64_t rows, int64_t X, float *out) {
    bool any = false;
    for (int64_t r = 0; r < rows; r++, out += X) {
        any |= queries[r].text != NULL;
        if (queries[r].text)
            memcpy(out, queries[r].text, (size_t)X * sizeof *out);
        else
            memset(out, 0, (size_t)X * sizeof *out);
    }
    return any;
}

// A part of a retrieval that one pass serves: its requests from `q` on, whose places begin at `place`.
typedef struct pass {
    const dr_trm_query *queries; // of this part
    int64_t q, rows, place, n_places;
} pass;

// The next part; false behind the last. The first call wants a part of nothing.
static bool next_pass(const dr_trm_retrieval *r, const dr_trm_query *queries, int64_t n, bool exclude_history,
                      pass *p) {
    int64_t left = n - p->q - p->rows, most = r->trm->serving.rows;
    p->q += p->rows;
    p->place += p->n_places;
    p->queries = queries + p->q;
    p->rows = left < most ? left : most;
    p->n_places = count_places(p->queries, p->rows, exclude_history);
    return left > 0;
}

// Where the parts of a pass's input begin in the transfer.
static size_t inputs_at(const dr_trm_retrieval *r, const pass *p) {
    return (size_t)trm_inputs_size(p->q, r->trm->config.max_history) * sizeof(int32_t);
}

static size_t texts_at(const dr_trm_retrieval *r, const pass *p) {
    return r->texts + (size_t)(p->q * r->trm->config.text_dim) * sizeof(float);
}

static size_t places_at(const dr_trm_retrieval *r, const pass *p) {
    return r->places + (size_t)p->place * sizeof(int64_t);
}

// Writes a pass's input on the host. any_text: texts are there already, or, when they are written here, some
// request has one.
static dr_status lay_pass(dr_trm_retrieval *r, const pass *p, bool exclude_history, bool are_there,
                          bool *any_text) {
    const dr_trm *trm = r->trm;
    char *host = r->input->host;
    int32_t *inputs = (int32_t *)(void *)(host + inputs_at(r, p));
    int64_t *places = (int64_t *)(void *)(host + places_at(r, p));
    DR_TRY(dr_trm_lay_out(trm, p->queries, p->rows, trm_inputs_of(inputs, p->rows, trm->config.max_history)));
    DR_TRY(list_places(trm, p->queries, p->rows, exclude_history, places));
    *any_text |= are_there || put_texts(p->queries, p->rows, trm->config.text_dim,
                                        (float *)(void *)(host + texts_at(r, p)));
    return DR_OK;
}

// Embeddings of the pass's requests into the adaptor; encoded: the backend has made them.
static dr_status bring_texts(dr_trm_retrieval *r, const pass *p, bool encoded) {
    trm_serving *s = &r->trm->serving;
    dr_backend *b = r->trm->backend;
    int64_t X = r->trm->config.text_dim;
    size_t bytes = (size_t)(p->rows * X) * sizeof(float);
    if (!encoded) return b->ops->transfer_in(b, r->input, texts_at(r, p), s->adaptor.x, bytes);
    b->ops->copy(b, s->adaptor.x, (const float *)s->embeddings.data + p->q * X, bytes);
    return DR_OK;
}

// Sends a pass's input and leaves its scores in serving->scores, -inf at the places.
static dr_status score_pass(dr_trm_retrieval *r, const pass *p, bool any_text, bool encoded) {
    dr_trm *trm = r->trm;
    trm_serving *s = &trm->serving;
    dr_backend *b = trm->backend;
    int64_t L = trm->config.max_history, D = trm->config.hidden;
    int64_t N = (int64_t)trm->config.n_items + 1, rows = p->rows;
    DR_TRY(reserve(b, "items left out", places_bytes(p->n_places), places_capacity(p->n_places), &s->places));
    DR_TRY(b->ops->transfer_in(b, r->input, inputs_at(r, p), s->batch->inputs,
                               (size_t)trm_inputs_size(rows, L) * sizeof(int32_t)));
    DR_TRY(
        b->ops->transfer_in(b, r->input, places_at(r, p), s->places.data, (size_t)places_bytes(p->n_places)));
    if (any_text) {
        DR_TRY(bring_texts(r, p, encoded));
        DR_TRY(dr_trm_adapt(trm, &s->adaptor, rows, NULL));
    }
    dr_trm_batch_gather(trm, s->batch, rows, trm->adapted, NULL);
    DR_TRY(dr_trm_batch_forward(trm, s->batch, any_text ? s->adaptor.y : NULL, NULL));
    b->ops->unit_rows(b, s->batch->fused, rows, D, s->unit);
    DR_TRY(b->ops->gemm(b, false, true, rows, N, D, 1.0f, s->unit, trm->unit_items, 0.0f, s->scores));
    b->ops->fill_places(b, s->scores, s->places.data, p->n_places, -INFINITY);
    return DR_OK;
}

static size_t input_capacity(size_t bytes) {
    return bytes + bytes / 4;
}

// Room for n requests with these places on the host. Nothing of it is in use by the backend.
static dr_status reserve_input(dr_trm_retrieval *r, int64_t n_places) {
    dr_backend *b = r->trm->backend;
    size_t need = r->places + (size_t)n_places * sizeof(int64_t);
    if (r->input && need <= r->input->bytes) return DR_OK;
    b->ops->transfer_destroy(b, r->input);
    r->input = NULL;
    return b->ops->transfer_create(b, "retrieval inputs", input_capacity(need), &r->input);
}

// ---- retrievals ----

static size_t rounded_up(size_t bytes) {
    return (bytes + sizeof(int64_t) - 1) / sizeof(int64_t) * sizeof(int64_t);
}

// Where texts and places of a call of n requests begin in its input.
static void lay_input(const dr_trm *trm, int64_t n, size_t *out_texts, size_t *out_places) {
    const dr_trm_config *c = &trm->config;
    size_t texts = (size_t)(n * c->text_dim) * sizeof(float);
    if (encodes_on_backend(trm)) {
        size_t queued =
            trm->encoder ? trm->encoder->ops->queue_bytes(trm->encoder, n) : (size_t)(n * trm->queued);
        texts = queued > texts ? queued : texts;
    }
    *out_texts = rounded_up((size_t)trm_inputs_size(n, c->max_history) * sizeof(int32_t));
    *out_places = *out_texts + rounded_up(texts);
}

void dr_trm_retrieval_memory(const dr_trm *trm, int64_t most, int32_t k, int64_t longest, int64_t *out_host,
                             int64_t *out_backend) {
    size_t texts, places;
    int64_t rows = trm->serving.rows < most ? trm->serving.rows : most, each = longest > 0 ? longest + 1 : 2;
    lay_input(trm, most, &texts, &places);
    *out_host = (int64_t)(sizeof(dr_trm_retrieval) +
                          input_capacity(places + (size_t)(most * each) * sizeof(int64_t)) +
                          (size_t)(most * k) * sizeof(dr_hit)) +
                embeddings_bytes(trm, most);
    *out_backend = hits_bytes(trm, k) + places_capacity(rows * each) + embeddings_bytes(trm, most);
}

dr_status dr_trm_retrieval_create(dr_trm *trm, int64_t most, int32_t k, dr_trm_retrieval **out_retrieval) {
    dr_backend *b = trm->backend;
    dr_trm_retrieval *r = NULL;
    dr_status status;
    DR_CHECK(most >= 1 && k >= 1 && k <= trm->config.n_items && k <= DR_TOP_MOST, DR_ERR_RANGE,
             "retrieval: top %d of %d items, at most %d", k, trm->config.n_items, DR_TOP_MOST);
    DR_TRY(reserve(b, "retrieved items", hits_bytes(trm, k), hits_bytes(trm, k), &trm->serving.hits));
    DR_TRY(reserve(b, "preference embeddings", embeddings_bytes(trm, most), embeddings_bytes(trm, most),
                   &trm->serving.embeddings));
    DR_TRY(dr_alloc(&r, "retrieval", 1, sizeof *r));
    *r = (dr_trm_retrieval){
        .trm = trm, .most = most, .k = k, .embeddings = (size_t)(most * k) * sizeof(dr_hit)};
    lay_input(trm, most, &r->texts, &r->places);
    DR_TRY_GOTO(status, reserve_input(r, 2 * most), destroy);
    DR_TRY_GOTO(status,
                b->ops->transfer_create(b, "retrieved items",
                                        r->embeddings + (size_t)embeddings_bytes(trm, most), &r->output),
                destroy);
    *out_retrieval = r;
    return DR_OK;
destroy:
    dr_trm_retrieval_destroy(r);
    return status;
}

void dr_trm_retrieval_destroy(dr_trm_retrieval *r) {
    if (!r) return;
    dr_backend *b = r->trm->backend;
    b->ops->transfer_destroy(b, r->input);
    b->ops->transfer_destroy(b, r->output);
    dr_free(r);
}

dr_status dr_trm_retrieval_done(dr_trm_retrieval *r, bool *out_done) {
    dr_backend *b = r->trm->backend;
    return b->ops->transfer_done(b, r->output, out_done);
}

// The requests' other inputs go to the backend behind the encoder's passes.
dr_status dr_trm_retrieval_is_encoded(dr_trm_retrieval *r, bool *out_encoded) {
    dr_backend *b = r->trm->backend;
    *out_encoded = true;
    return encodes_on_backend(r->trm) ? b->ops->transfer_done(b, r->input, out_encoded) : DR_OK;
}

const float *dr_trm_retrieval_embeddings(const dr_trm_retrieval *r) {
    const char *at = encodes_on_backend(r->trm) ? r->output->host + r->embeddings : r->input->host + r->texts;
    return (const float *)(const void *)at;
}

// Sleeps between looks, longer each time: a retrieval takes well under a millisecond or the device is busy.
static dr_status wait_done(dr_trm_retrieval *r, dr_transfer *transfer, double deadline_s) {
    dr_backend *b = r->trm->backend;
    bool is_done = false;
    DR_TRY(b->ops->transfer_done(b, transfer, &is_done));
    double end = dr_clock_seconds() + deadline_s;
    for (double pause = 2e-5; !is_done; pause = pause < 5e-4 ? 2 * pause : 1e-3) {
        DR_CHECK(dr_clock_seconds() < end, DR_ERR_TIMEOUT, "retrieval of %lld requests: not done after %g s",
                 (long long)r->n, deadline_s);
        DR_TRY(dr_alive_wait());
        dr_clock_sleep(pause);
        DR_TRY(b->ops->transfer_done(b, transfer, &is_done));
    }
    return DR_OK;
}

// What a begin that failed has sent: its memory is written to again only behind it.
static dr_status forget_failed(dr_trm_retrieval *r) {
    if (!r->has_failed) return DR_OK;
    DR_TRY(wait_done(r, r->input, DEADLINE_S));
    DR_TRY(wait_done(r, r->output, DEADLINE_S));
    r->has_failed = false;
    return DR_OK;
}

// Through an encoder on the host, into the input.
static dr_status encode_here(dr_trm_retrieval *r, const char *const *preferences, int64_t n) {
    const dr_trm *trm = r->trm;
    DR_CHECK(trm->encoder, DR_ERR_ARGUMENT, "retrieval: preference texts, and the model's are %s",
             trm->config.text_encoder);
    if (encodes_on_backend(trm)) return DR_OK;
    return dr_text_encode_queries(trm->encoder, preferences, n, (float *)(void *)(r->input->host + r->texts));
}

// Through an encoder on the backend; its embeddings stay there, and go to the host for the caller.
static dr_status encode_there(dr_trm_retrieval *r, const char *const *preferences, int64_t n) {
    dr_backend *b = r->trm->backend;
    float *embeddings = r->trm->serving.embeddings.data;
    DR_TRY(dr_text_queue_queries(r->trm->encoder, preferences, n, r->input, r->texts, embeddings));
    return b->ops->transfer_out(b, r->output, r->embeddings, embeddings, (size_t)embeddings_bytes(r->trm, n));
}

dr_status dr_trm_retrieval_begin(dr_trm_retrieval *r, const dr_trm_query *queries,
                                 const char *const *preferences, int64_t n, bool exclude_history) {
    trm_serving *s = &r->trm->serving;
    dr_backend *b = r->trm->backend;
    bool any_text = false, encoded = preferences && encodes_on_backend(r->trm);
    DR_CHECK(n >= 1 && n <= r->most && r->n == 0, DR_ERR_ARGUMENT,
             "retrieval: %lld requests, at most %lld, %lld are under way", (long long)n, (long long)r->most,
             (long long)r->n);
    DR_TRY(forget_failed(r));
    DR_TRY(reserve_input(r, count_places(queries, n, exclude_history)));
    if (preferences) DR_TRY(encode_here(r, preferences, n));
    for (pass p = {0}; next_pass(r, queries, n, exclude_history, &p);) // refused before anything is sent
        DR_TRY(lay_pass(r, &p, exclude_history, preferences != NULL, &any_text));
    r->has_failed = true;
    if (encoded) DR_TRY(encode_there(r, preferences, n));
    for (pass p = {0}; next_pass(r, queries, n, exclude_history, &p);) {
        DR_TRY(score_pass(r, &p, any_text, encoded));
        DR_TRY(b->ops->top_k(b, s->scores, p.rows, (int64_t)r->trm->config.n_items + 1, r->k, s->hits.data));
        DR_TRY(b->ops->transfer_out(b, r->output, (size_t)(p.q * r->k) * sizeof(dr_hit), s->hits.data,
                                    (size_t)(p.rows * r->k) * sizeof(dr_hit)));
    }
    r->has_failed = false;
    r->n = n;
    return DR_OK;
}

dr_status dr_trm_retrieval_finish(dr_trm_retrieval *r, double deadline_s, const dr_hit **out_hits) {
    const dr_hit *hits = (const dr_hit *)(void *)r->output->host;
    DR_CHECK(r->n > 0, DR_ERR_ARGUMENT, "retrieval: finished, and none of at most %lld is under way",
             (long long)r->most);
    DR_TRY(wait_done(r, r->output, deadline_s));
    int64_t n = r->n;
    r->n = 0;
    for (int64_t i = 0; i < n * r->k; i++)
        DR_CHECK(hits[i].item >= 0, DR_ERR_RANGE, "retrieval: only %lld of %d items remain for request %lld",
                 (long long)(i % r->k), r->k, (long long)(i / r->k));
    *out_hits = hits;
    return DR_OK;
}

// ---- calls that wait ----

dr_status dr_trm_score(dr_trm *trm, const dr_trm_query *queries, int64_t n, float *out_scores) {
    dr_backend *b = trm->backend;
    trm_serving *s = &trm->serving;
    int64_t N = (int64_t)trm->config.n_items + 1;
    DR_CHECK(s->own->n == 0, DR_ERR_ARGUMENT,
             "retrieval: scores, and a retrieval of %lld requests is under way", (long long)s->own->n);
    DR_TRY(forget_failed(s->own));
    for (int64_t q = 0; q < n; q += s->rows) {
        pass p = {0};
        bool any_text = false;
        next_pass(s->own, queries + q, n - q < s->rows ? n - q : s->rows, false, &p);
        DR_TRY(lay_pass(s->own, &p, false, false, &any_text));
        DR_TRY(score_pass(s->own, &p, any_text, false));
        b->ops->copy_out(b, out_scores + q * N, s->scores, (size_t)(p.rows * N) * sizeof(float));
    }
    return DR_OK;
}

// A retrieval of k items for the calls that wait, kept for the next call.
static dr_status own_retrieval(dr_trm *trm, int32_t k) {
    trm_serving *s = &trm->serving;
    dr_trm_retrieval *wider = NULL;
    if (s->own->k == k) return DR_OK;
    DR_TRY(dr_trm_retrieval_create(trm, s->rows, k, &wider));
    dr_trm_retrieval_destroy(s->own);
    s->own = wider;
    return DR_OK;
}

dr_status dr_trm_top_k(dr_trm *trm, const dr_trm_query *queries, int64_t n, int32_t k, bool exclude_history,
                       dr_hit *out_hits) {
    trm_serving *s = &trm->serving;
    const dr_hit *hits = NULL;
    DR_TRY(own_retrieval(trm, k));
    for (int64_t q = 0; q < n; q += s->rows) {
        int64_t rows = n - q < s->rows ? n - q : s->rows;
        DR_TRY(dr_trm_retrieval_begin(s->own, queries + q, NULL, rows, exclude_history));
        DR_TRY(dr_trm_retrieval_finish(s->own, DEADLINE_S, &hits));
        memcpy(out_hits + q * k, hits, (size_t)(rows * k) * sizeof *hits);
    }
    return DR_OK;
}

// ---- the catalogue ----

// A piece of the catalogue's texts: adapted, and normalised for the host. unit: backend memory, a piece.
static dr_status prepare_piece(dr_trm *trm, int64_t first, int64_t rows, float *unit) {
    dr_backend *b = trm->backend;
    trm_adaptor *a = &trm->serving.adaptor;
    int64_t D = trm->config.hidden, X = trm->config.text_dim;
    size_t bytes = (size_t)(rows * X) * sizeof(float);
    b->ops->copy_in(b, a->x, trm->text + first * X, bytes);
    DR_TRY(dr_trm_adapt(trm, a, rows, NULL));
    b->ops->copy(b, trm->adapted + first * D, a->y, (size_t)(rows * D) * sizeof(float));
    b->ops->unit_rows(b, a->x, rows, X, unit);
    b->ops->copy_out(b, trm->unit_text + first * X, unit, bytes);
    return DR_OK;
}

dr_status dr_trm_prepare_serving(dr_trm *trm) {
    dr_backend *b = trm->backend;
    int64_t N = (int64_t)trm->config.n_items + 1, D = trm->config.hidden, X = trm->config.text_dim,
            rows = trm->serving.rows;
    float *unit = NULL;
    DR_TRY(dr_trm_weights_changed(trm));
    b->ops->unit_rows(b, trm->params + trm->items, N, D, trm->unit_items);
    b->ops->zero(b, trm->unit_items, (size_t)D * sizeof(float));
    if (trm->host_items != trm->unit_items)
        b->ops->copy_out(b, trm->host_items, trm->unit_items, (size_t)(N * D) * sizeof(float));
    DR_TRY(dr_memory_create(b, &unit, "unit text vectors", rows * X, sizeof(float)));
    dr_status status = DR_OK;
    for (int64_t r = 0; r < N && status == DR_OK; r += rows)
        status = prepare_piece(trm, r, N - r < rows ? N - r : rows, unit);
    b->ops->memory_destroy(b, unit);
    memset(trm->unit_text, 0, (size_t)X * sizeof(float));
    return status;
}
