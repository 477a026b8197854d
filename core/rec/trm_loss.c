// One training batch: requests to the backend, the model's pass, cross-entropy over the whole catalogue and
// the gradient. The host lists which texts a batch needs and reads the losses; all else is the backend's.
#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/rec/trm_internal.h"
#include "core/rec/trm_train.h"

// Lists of one batch, in one block: the host's, or the backend's copy.
typedef struct batch_lists {
    int32_t *rows;    // (B, L) adaptor rows of the histories' items
    int32_t *targets; // (B)
    int32_t *texted;  // (n_texts) requests with a preference text
    int32_t *used;    // (n_used) items of this batch in order of appearance, padding first
} batch_lists;

struct trm_trainer {
    dr_trm *trm;
    int64_t capacity, distinct; // requests and items of a batch, at most
    trm_batch *batch;
    trm_adaptor adaptor;
    // host
    int32_t *host_inputs, *host_lists;
    int32_t *slots; // [N] adaptor row of an item in this batch, -1: not there
    double *host_losses;
    int64_t n_used, n_texts;
    // backend
    int32_t *lists;
    const float *texts; // (N, X): the model's own where the backend's memory is the host's
    float *own_texts;
    double *losses;                  // (B)
    float *query_text;               // (B, D)
    float *unit, *lengths;           // (B, D) û, (B) |u|
    float *item_unit, *item_lengths; // (N, D), (N)
    float *logits;                   // (B, N)
    float *dunit, *dfused, *ditems, *dx_text, *dquery, *dadapted;
};

static int64_t lists_size(const trm_trainer *t) {
    return t->capacity * (t->trm->config.max_history + 2) + t->distinct;
}

static batch_lists lists_of(int32_t *block, int64_t B, int64_t L) {
    int32_t *targets = block + B * L;
    return (batch_lists){block, targets, targets + B, targets + 2 * B};
}

void dr_trm_trainer_destroy(trm_trainer *t) {
    if (!t) return;
    dr_backend *b = t->trm->backend;
    void *owned[] = {t->lists,   t->own_texts,    t->losses,  t->query_text, t->unit,
                     t->lengths, t->item_unit,    t->logits,  t->dunit,      t->dfused,
                     t->ditems,  t->item_lengths, t->dx_text, t->dquery,     t->dadapted};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) b->ops->memory_destroy(b, owned[i]);
    dr_free(t->host_inputs);
    dr_free(t->host_lists);
    dr_free(t->slots);
    dr_free(t->host_losses);
    dr_trm_adaptor_reset(&t->adaptor);
    dr_trm_batch_destroy(t->batch);
    dr_free(t);
}

// The catalogue's texts as backend memory.
static dr_status place_texts(trm_trainer *t) {
    const dr_trm *trm = t->trm;
    dr_backend *b = trm->backend;
    int64_t n = ((int64_t)trm->config.n_items + 1) * trm->config.text_dim;
    t->texts = trm->text;
    if (b->ops->host_view(b, t->query_text)) return DR_OK;
    DR_TRY(dr_memory_create(b, &t->own_texts, "item text vectors", n, sizeof(float)));
    b->ops->copy_in(b, t->own_texts, trm->text, trm_bytes(n));
    t->texts = t->own_texts;
    return DR_OK;
}

static dr_status take_host(trm_trainer *t) {
    const dr_trm_config *c = &t->trm->config;
    DR_TRY(dr_alloc(&t->host_inputs, "batch inputs", trm_inputs_size(t->capacity, c->max_history),
                    sizeof *t->host_inputs));
    DR_TRY(dr_alloc(&t->host_lists, "batch lists", lists_size(t), sizeof *t->host_lists));
    DR_TRY(dr_alloc(&t->slots, "batch slots", (int64_t)c->n_items + 1, sizeof *t->slots));
    return dr_alloc(&t->host_losses, "losses", t->capacity, sizeof *t->host_losses);
}

static dr_status take_backend(trm_trainer *t) {
    const dr_trm *trm = t->trm;
    dr_backend *b = trm->backend;
    int64_t N = (int64_t)trm->config.n_items + 1, D = trm->config.hidden, B = t->capacity,
            P = B * trm->config.max_history, rows = t->distinct + B;
    struct {
        float **pointer;
        int64_t count;
    } plan[] = {{&t->query_text, B * D}, {&t->unit, B * D},    {&t->lengths, B},    {&t->item_unit, N * D},
                {&t->item_lengths, N},   {&t->logits, B * N},  {&t->dunit, B * D},  {&t->dfused, B * D},
                {&t->ditems, N * D},     {&t->dx_text, P * D}, {&t->dquery, B * D}, {&t->dadapted, rows * D}};
    DR_TRY(dr_trm_batch_create(trm, B, true, &t->batch));
    DR_TRY(dr_trm_adaptor_create(trm, rows, true, &t->adaptor));
    for (size_t i = 0; i < sizeof plan / sizeof *plan; i++)
        DR_TRY(dr_memory_create(b, plan[i].pointer, "retrieval training", plan[i].count, sizeof(float)));
    DR_TRY(dr_memory_create(b, &t->lists, "batch lists", lists_size(t), sizeof *t->lists));
    DR_TRY(dr_memory_create(b, &t->losses, "losses", B, sizeof *t->losses));
    return place_texts(t);
}

// Items of a batch at most, padding among them.
static int64_t most_distinct(const dr_trm_config *c, int64_t capacity) {
    int64_t N = (int64_t)c->n_items + 1, P = capacity * c->max_history;
    return P + 1 < N ? P + 1 : N;
}

dr_status dr_trm_trainer_create(dr_trm *trm, int64_t capacity, trm_trainer **out) {
    trm_trainer *t = NULL;
    DR_TRY(dr_alloc(&t, "retrieval training", 1, sizeof *t));
    t->trm = trm;
    t->capacity = capacity;
    t->distinct = most_distinct(&trm->config, capacity);
    dr_status status = take_host(t);
    if (status == DR_OK) status = take_backend(t);
    if (status != DR_OK) {
        dr_trm_trainer_destroy(t);
        return status;
    }
    *out = t;
    return DR_OK;
}

// The lists of take_backend and take_host, added up.
void dr_trm_trainer_memory(const dr_trm_config *c, int64_t B, int64_t *out_backend, int64_t *out_host) {
    int64_t N = (int64_t)c->n_items + 1, D = c->hidden, L = c->max_history, distinct = most_distinct(c, B);
    int64_t rows = distinct + B, lists = B * (L + 2) + distinct;
    int64_t floats = B * (6 * D + 1) + N * (2 * D + 1) + B * N + B * L * D + rows * D;
    *out_backend = dr_trm_batch_memory(c, B, true) + dr_trm_adaptor_memory(c, rows, true) +
                   floats * (int64_t)sizeof(float) + lists * (int64_t)sizeof(int32_t) +
                   B * (int64_t)sizeof(double);
    *out_host = (trm_inputs_size(B, L) + lists + N) * (int64_t)sizeof(int32_t) + B * (int64_t)sizeof(double);
}

int64_t dr_trm_trainer_rows(const dr_trm_config *c, int64_t B) {
    int64_t rows = most_distinct(c, B) + B, P = B * c->max_history;
    return rows > P ? rows : P;
}

// Adaptor rows: every item of the batch once (padding first), then the preference texts.
static void list_items(trm_trainer *t, const int32_t *ids, int64_t P, const batch_lists *lists) {
    memset(t->slots, 0xFF, ((size_t)t->trm->config.n_items + 1) * sizeof *t->slots);
    t->n_used = 0;
    t->slots[0] = 0;
    lists->used[t->n_used++] = 0;
    for (int64_t p = 0; p < P; p++) {
        int32_t item = ids[p];
        if (t->slots[item] < 0) {
            t->slots[item] = (int32_t)t->n_used;
            lists->used[t->n_used++] = item;
        }
        lists->rows[p] = t->slots[item];
    }
}

static dr_status put_texts(trm_trainer *t, const dr_trm_query *queries, const int32_t *texted) {
    int64_t X = t->trm->config.text_dim, n = t->n_texts * X;
    float *at = t->adaptor.x + t->n_used * X, *host = NULL;
    if (n == 0) return DR_OK;
    DR_TRY(dr_host_open(t->trm->backend, at, n, DR_HOST_WRITES, &host));
    for (int64_t i = 0; i < t->n_texts; i++) memcpy(host + i * X, queries[texted[i]].text, trm_bytes(X));
    dr_host_close(t->trm->backend, at, n, DR_HOST_WRITES, host);
    return DR_OK;
}

// What the pass reads goes to the backend; `there`: where its lists stand then.
static dr_status send_batch(trm_trainer *t, const dr_trm_query *queries, const int32_t *targets, int64_t B,
                            const batch_lists *there) {
    const dr_trm_config *c = &t->trm->config;
    dr_backend *b = t->trm->backend;
    int64_t L = c->max_history;
    const trm_inputs in = trm_inputs_of(t->host_inputs, B, L);
    const batch_lists lists = lists_of(t->host_lists, B, L);
    DR_TRY(dr_trm_lay_out(t->trm, queries, B, in));
    list_items(t, in.ids, B * L, &lists);
    t->n_texts = 0;
    for (int64_t q = 0; q < B; q++) {
        DR_CHECK(targets[q] >= 1 && targets[q] <= c->n_items, DR_ERR_RANGE,
                 "retrieval training: request %lld has target %d, expected 1 to %d", (long long)q, targets[q],
                 c->n_items);
        lists.targets[q] = targets[q];
        if (queries[q].text) lists.texted[t->n_texts++] = (int32_t)q;
    }
    b->ops->copy_in(b, t->batch->inputs, t->host_inputs,
                    (size_t)trm_inputs_size(B, L) * sizeof *t->host_inputs);
    b->ops->copy_in(b, t->lists, t->host_lists, (size_t)(B * (L + 2) + t->n_used) * sizeof *t->host_lists);
    b->ops->embedding_forward(b, t->texts, there->used, t->n_used, c->text_dim, t->adaptor.x);
    return put_texts(t, queries, lists.texted);
}

static dr_status forward(trm_trainer *t, const batch_lists *lists, int64_t B, dr_rng *rng) {
    dr_trm *trm = t->trm;
    dr_backend *b = trm->backend;
    int64_t N = (int64_t)trm->config.n_items + 1, D = trm->config.hidden;
    DR_TRY(dr_trm_adapt(trm, &t->adaptor, t->n_used + t->n_texts, rng));
    b->ops->zero(b, t->query_text, trm_bytes(B * D));
    b->ops->embedding_backward(b, t->adaptor.y + t->n_used * D, lists->texted, t->n_texts, D, t->query_text);
    dr_trm_batch_gather(trm, t->batch, B, t->adaptor.y, lists->rows);
    DR_TRY(dr_trm_batch_forward(trm, t->batch, t->query_text, rng));
    b->ops->normalize_rows_forward(b, t->batch->fused, B, D, t->unit, t->lengths);
    b->ops->normalize_rows_forward(b, trm->params + trm->items, N, D, t->item_unit, t->item_lengths);
    DR_TRY(b->ops->gemm(b, false, true, B, N, D, 1.0f, t->unit, t->item_unit, 0.0f, t->logits));
    b->ops->cross_entropy(b, t->logits, lists->targets, B, N, 1.0f / trm->config.temperature, t->losses);
    return DR_OK;
}

static dr_status backward(trm_trainer *t, const batch_lists *lists, int64_t B, float *gradient) {
    dr_trm *trm = t->trm;
    dr_backend *b = trm->backend;
    int64_t N = (int64_t)trm->config.n_items + 1, D = trm->config.hidden, P = B * trm->config.max_history;
    DR_TRY(b->ops->gemm(b, false, false, B, D, N, 1.0f, t->logits, t->item_unit, 0.0f, t->dunit));
    DR_TRY(b->ops->gemm(b, true, false, N, D, B, 1.0f, t->logits, t->unit, 0.0f, t->ditems));
    b->ops->zero(b, gradient, trm_bytes(trm->n_params));
    b->ops->normalize_rows_backward(b, t->ditems, t->item_unit, t->item_lengths, N, D, gradient + trm->items);
    b->ops->zero(b, t->dfused, trm_bytes(B * D));
    b->ops->normalize_rows_backward(b, t->dunit, t->unit, t->lengths, B, D, t->dfused);
    DR_TRY(dr_trm_batch_backward(trm, t->batch, t->dfused, gradient, t->dx_text, t->dquery));
    b->ops->zero(b, t->dadapted, trm_bytes(t->n_used * D));
    b->ops->embedding_backward(b, t->dx_text, lists->rows, P, D, t->dadapted);
    b->ops->embedding_forward(b, t->dquery, lists->texted, t->n_texts, D, t->dadapted + t->n_used * D);
    return dr_trm_adapt_backward(trm, &t->adaptor, t->dadapted, gradient);
}

// Waits for the backend: the only number of a step that the host sees.
static dr_status read_loss(trm_trainer *t, int64_t B, double *out_loss) {
    dr_backend *b = t->trm->backend;
    double loss = 0;
    for (int64_t q = 0; q < B; q++) t->host_losses[q] = NAN; // should the copy fail
    b->ops->copy_out(b, t->host_losses, t->losses, (size_t)B * sizeof *t->losses);
    for (int64_t q = 0; q < B; q++) loss += t->host_losses[q] / (double)B;
    DR_CHECK(isfinite(loss), DR_ERR_NUMERIC, "retrieval training: the loss is %g", loss);
    *out_loss = loss;
    return DR_OK;
}

dr_status dr_trm_trainer_gradient(trm_trainer *t, const dr_trm_query *queries, const int32_t *targets,
                                  int64_t B, dr_rng *rng, double *out_loss, float *gradient) {
    const batch_lists lists = lists_of(t->lists, B, t->trm->config.max_history);
    DR_ASSERT(B <= t->capacity);
    DR_TRY(send_batch(t, queries, targets, B, &lists));
    DR_TRY(forward(t, &lists, B, rng));
    DR_TRY(backward(t, &lists, B, gradient));
    return read_loss(t, B, out_loss); // behind everything: the backend does not stand still for it
}

dr_status dr_trm_loss(dr_trm *trm, const dr_trm_query *queries, const int32_t *targets, int64_t n,
                      double *out_loss, float *gradient) {
    trm_trainer *t = NULL;
    DR_TRY(dr_trm_trainer_create(trm, n, &t));
    dr_status status = dr_trm_trainer_gradient(t, queries, targets, n, NULL, out_loss, gradient);
    dr_trm_trainer_destroy(t);
    return status;
}
