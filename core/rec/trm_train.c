// The training loop: samples, preference texts, epochs.
#include "core/rec/trm_train.h"

#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/model/text_encoders.h"
#include "core/rec/metrics.h"
#include "core/rec/trm_internal.h"
#include "core/text/normalize.h"

enum { EVAL_CHUNK = 512, EVAL_ITEMS = 10 };

dr_trm_train_options dr_trm_train_defaults(void) {
    return (dr_trm_train_options){.config = {.hidden = 128,
                                             .text_dim = 1024,
                                             .max_history = 20,
                                             .n_layers = 2,
                                             .n_heads = 2,
                                             .inner = 512,
                                             .n_experts = 8,
                                             .dropout = 0.2f,
                                             .adaptor_dropout = 0.2f,
                                             .layernorm_eps = 1e-12f,
                                             .temperature = 0.07f,
                                             .text_encoder = "hashed-ngram",
                                             .query_instruction = DR_QUERY_INSTRUCTION_AUTO,
                                             .max_text_tokens = 256},
                                  .leave_last = 1,
                                  .max_epochs = 30,
                                  .batch = 512,
                                  .patience = 4,
                                  .learning_rate = 1e-3f,
                                  .text_dropout = 0.5f,
                                  .word_dropout = 0.3f,
                                  .title_words = 0.25f,
                                  .seed = 1};
}

int64_t dr_trm_n_params(const dr_trm *trm) {
    return trm->n_params;
}

float *dr_trm_params(dr_trm *trm) {
    return trm->params;
}

bool dr_trm_find_param(const dr_trm *trm, const char *name, int64_t *out_offset, int64_t *out_count) {
    for (int32_t i = 0; i < trm->n_tensors; i++) {
        const trm_tensor *t = &trm->tensors[i];
        if (strcmp(t->name, name) != 0) continue;
        *out_offset = t->offset;
        *out_count = 1;
        for (int32_t d = 0; d < t->n_dims; d++) *out_count *= t->shape[d];
        return true;
    }
    return false;
}

static dr_status draw_weights(dr_trm *trm, uint64_t seed) {
    float *params = NULL;
    DR_TRY(dr_host_open(trm->backend, trm->params, trm->n_params, DR_HOST_WRITES, &params));
    for (int32_t i = 0; i < trm->n_tensors; i++) {
        const trm_tensor *t = &trm->tensors[i];
        int64_t n = 1;
        for (int32_t d = 0; d < t->n_dims; d++) n *= t->shape[d];
        float *values = params + t->offset;
        bool norm = strstr(t->name, "LayerNorm.weight") != NULL;
        bool zero = strstr(t->name, "bias") || strstr(t->name, "w_gate") || strstr(t->name, "w_noise");
        dr_rng rng = dr_rng_make(seed, 2000 + (uint64_t)i);
        for (int64_t j = 0; j < n; j++)
            values[j] = norm ? 1.0f : zero ? 0.0f : 0.02f * (float)dr_rng_normal(&rng);
    }
    memset(params + trm->items, 0, (size_t)trm->config.hidden * sizeof(float)); // padding
    dr_host_close(trm->backend, trm->params, trm->n_params, DR_HOST_WRITES, params);
    return DR_OK;
}

typedef struct train_sample {
    int32_t user, position; // target is sequence[offset[user] + position]
} train_sample;

int64_t dr_trm_count_samples(const dr_dataset *d, int32_t leave_last) {
    int64_t n = 0;
    for (int32_t u = 0; u < d->n_users; u++) {
        int64_t length = d->offsets[u + 1] - d->offsets[u] - 2 - leave_last;
        if (length > 1) n += length - 1;
    }
    return n;
}

// Every position but the first of the training part, without its last `leave_last` ones.
static dr_status list_samples(const dr_dataset *d, int32_t leave_last, train_sample **out, int64_t *out_n) {
    int64_t n = dr_trm_count_samples(d, leave_last), at = 0;
    DR_CHECK(
        n > 0, DR_ERR_ARGUMENT,
        "retrieval training: no user has two items before the held-out ones and the %d left to the policy",
        leave_last);
    train_sample *samples = NULL;
    DR_TRY(dr_alloc(&samples, "training samples", n, sizeof *samples));
    for (int32_t u = 0; u < d->n_users; u++)
        for (int64_t p = 1; p < d->offsets[u + 1] - d->offsets[u] - 2 - leave_last; p++)
            samples[at++] = (train_sample){u, (int32_t)p};
    *out = samples;
    *out_n = n;
    return DR_OK;
}

// A preference text as a policy would write it: some of the target's categories in any order, at times words
// of its title.
static dr_status write_preference(const dr_dataset *d, int32_t item, const dr_trm_train_options *o,
                                  dr_rng *rng, dr_buf *out) {
    const char *parts[32];
    int32_t lengths[32], order[32], n = 0;
    for (const char *at = d->categories[item]; *at && n < 32;) {
        const char *comma = strstr(at, ", ");
        lengths[n] = comma ? (int32_t)(comma - at) : (int32_t)strlen(at);
        parts[n++] = at;
        at = comma ? comma + 2 : at + strlen(at);
    }
    for (int32_t i = 0; i < n; i++) order[i] = i;
    dr_rng_shuffle(rng, order, n);
    const char *joint = dr_rng_float(rng) < 0.5f ? ", " : " ";
    dr_buf_clear(out);
    DR_TRY(dr_buf_text(out, ""));
    for (int32_t i = 0; i < n; i++) {
        bool keep = dr_rng_float(rng) >= o->word_dropout || (i + 1 == n && out->length == 0);
        if (keep)
            DR_TRY(
                dr_buf_printf(out, "%s%.*s", out->length ? joint : "", lengths[order[i]], parts[order[i]]));
    }
    if (dr_rng_float(rng) >= o->title_words && n > 0) return DR_OK;
    for (const char *at = d->titles[item]; *at;) {
        const char *space = strchr(at, ' ');
        int32_t length = space ? (int32_t)(space - at) : (int32_t)strlen(at);
        if (dr_rng_float(rng) < 0.5f)
            DR_TRY(dr_buf_printf(out, "%s%.*s", out->length ? " " : "", length, at));
        at = space ? space + 1 : at + length;
    }
    return DR_OK;
}

// One of n positions, each with 0.85 of the weight of the next later one.
static int32_t draw_recent(dr_rng *rng, int32_t n) {
    int32_t position = n - 1;
    while (position > 0 && dr_rng_float(rng) < 0.85f) position--;
    return position;
}

typedef struct batch_input {
    dr_trm_query *queries;
    int32_t *targets;
    float *texts;  // (B, X)
    dr_buf joined; // those texts, each with its final NUL
} batch_input;

static dr_status make_batch(const dr_trm *trm, const dr_dataset *d, const train_sample *samples, int64_t B,
                            const dr_trm_train_options *o, dr_rng *rng, dr_buf *text, batch_input *in) {
    int64_t X = trm->config.text_dim, n_texts = 0;
    dr_buf_clear(&in->joined);
    for (int64_t q = 0; q < B; q++) {
        const int32_t *sequence = d->sequence + d->offsets[samples[q].user];
        in->queries[q] = (dr_trm_query){.history = sequence, .n_history = samples[q].position};
        in->targets[q] = sequence[samples[q].position];
        if (!trm->encoder || dr_rng_float(rng) < o->text_dropout) continue;
        int32_t described = in->targets[q];
        if (o->text_noise > 0 && dr_rng_float(rng) < o->text_noise)
            described = sequence[draw_recent(rng, samples[q].position)];
        DR_TRY(write_preference(d, described, o, rng, text));
        DR_TRY(dr_buf_append(&in->joined, text->data, strlen(text->data) + 1));
        in->queries[q].text = in->texts + n_texts++ * X;
    }
    return n_texts > 0
               ? dr_text_encode_joined(trm->encoder, dr_text_encode_queries, &in->joined, n_texts, in->texts)
               : DR_OK;
}

// Validation Recall@10 and NDCG@10 without text, items of the history left out.
static dr_status validate(dr_trm *trm, const dr_dataset *d, double *out_recall, double *out_ndcg) {
    DR_TRY(dr_trm_prepare_serving(trm));
    dr_trm_query queries[EVAL_CHUNK];
    int32_t targets[EVAL_CHUNK];
    dr_hit *hits = NULL;
    int64_t total = 0;
    int32_t k = trm->config.n_items > EVAL_ITEMS ? EVAL_ITEMS : 1, n = 0;
    double recall = 0, ndcg = 0;
    DR_TRY(dr_alloc(&hits, "validation hits", (int64_t)EVAL_CHUNK * k, sizeof *hits));
    dr_status status = DR_OK;
    for (int32_t u = 0; u < d->n_users && status == DR_OK; u++) {
        dr_example e;
        if (dr_dataset_example(d, u, DR_SPLIT_VALID, &e)) {
            queries[n] = (dr_trm_query){e.history, e.n_history, NULL};
            targets[n++] = e.target;
        }
        if (n < EVAL_CHUNK && u + 1 < d->n_users) continue;
        if (n > 0) status = dr_trm_top_k(trm, queries, n, k, true, hits);
        for (int32_t q = 0; q < n && status == DR_OK; q++)
            for (int32_t i = 0; i < k; i++)
                if (hits[q * k + i].item == targets[q]) {
                    recall += 1;
                    ndcg += dr_ndcg_at(i, k);
                }
        total += n;
        n = 0;
    }
    dr_free(hits);
    *out_recall = total ? recall / (double)total : 0;
    *out_ndcg = total ? ndcg / (double)total : 0;
    return status;
}

typedef struct training {
    dr_trm *trm;
    trm_trainer *trainer;
    train_sample *samples;
    int64_t n_samples;
    batch_input in;
    dr_buf text;
    float *gradient, *m, *v, *best; // backend memory
    int64_t updates;
} training;

static dr_status train_epoch(training *w, dr_trm *trm, const dr_dataset *d, const dr_trm_train_options *o,
                             int32_t epoch, double *out_loss) {
    dr_backend *b = trm->backend;
    dr_rng order = dr_rng_make(o->seed, 3000 + (uint64_t)epoch);
    for (int64_t i = w->n_samples - 1; i > 0; i--) {
        int64_t j = (int64_t)dr_rng_below(&order, (uint32_t)(i + 1));
        train_sample kept = w->samples[i];
        w->samples[i] = w->samples[j];
        w->samples[j] = kept;
    }
    int64_t total =
        o->samples_per_epoch > 0 && o->samples_per_epoch < w->n_samples ? o->samples_per_epoch : w->n_samples;
    double sum = 0;
    for (int64_t at = 0; at < total; at += o->batch) {
        int64_t B = total - at < o->batch ? total - at : o->batch;
        dr_rng rng = dr_rng_make(o->seed, 1000000 + (uint64_t)w->updates);
        DR_TRY(make_batch(trm, d, w->samples + at, B, o, &rng, &w->text, &w->in));
        double loss = 0;
        DR_TRY(
            dr_trm_trainer_gradient(w->trainer, w->in.queries, w->in.targets, B, &rng, &loss, w->gradient));
        dr_adamw_settings settings = {o->learning_rate, 0.9f, 0.999f, 1e-8f, o->weight_decay, ++w->updates};
        b->ops->adamw(b, trm->params, w->gradient, w->m, w->v, trm->n_params, 1.0f, &settings);
        DR_TRY(dr_trm_weights_changed(trm));
        sum += loss * (double)B;
        if (o->on_batch) o->on_batch(o->context, at + B, total);
    }
    *out_loss = sum / (double)total;
    return DR_OK;
}

static dr_status train_all(training *w, dr_trm *trm, const dr_dataset *d, const dr_trm_train_options *o) {
    double best = -1;
    int32_t since = 0;
    dr_backend *b = trm->backend;
    size_t bytes = trm_bytes(trm->n_params);
    for (int32_t epoch = 0; epoch < o->max_epochs && since < o->patience; epoch++) {
        double start = dr_clock_seconds(), loss = 0, recall = 0, ndcg = 0;
        DR_TRY(train_epoch(w, trm, d, o, epoch, &loss));
        DR_TRY(validate(trm, d, &recall, &ndcg));
        bool is_best = ndcg > best;
        if (is_best) {
            best = ndcg;
            since = 0;
            b->ops->copy(b, w->best, trm->params, bytes);
        } else {
            since++;
        }
        if (o->on_epoch)
            o->on_epoch(o->context, epoch + 1, loss, recall, ndcg, dr_clock_seconds() - start, is_best);
    }
    b->ops->copy(b, trm->params, w->best, bytes);
    return dr_trm_prepare_serving(trm);
}

static dr_status training_init(training *w, dr_trm *trm, const dr_dataset *d, const dr_trm_train_options *o) {
    float **kept[] = {&w->gradient, &w->m, &w->v, &w->best};
    w->trm = trm;
    DR_TRY(dr_trm_trainer_create(trm, o->batch, &w->trainer));
    DR_TRY(list_samples(d, o->leave_last, &w->samples, &w->n_samples));
    DR_TRY(dr_alloc(&w->in.queries, "batch requests", o->batch, sizeof *w->in.queries));
    DR_TRY(dr_alloc(&w->in.targets, "batch targets", o->batch, sizeof *w->in.targets));
    DR_TRY(dr_alloc(&w->in.texts, "batch texts", (int64_t)o->batch * trm->config.text_dim, sizeof(float)));
    for (int i = 0; i < 4; i++) // gradient, moments, best weights
        DR_TRY(dr_memory_create(trm->backend, kept[i], "retrieval training", trm->n_params, sizeof(float)));
    return DR_OK;
}

static void training_reset(training *w) {
    if (!w->trm) return;
    dr_backend *b = w->trm->backend;
    float *kept[] = {w->gradient, w->m, w->v, w->best};
    for (int i = 0; i < 4; i++) b->ops->memory_destroy(b, kept[i]);
    dr_trm_trainer_destroy(w->trainer);
    dr_free(w->samples);
    dr_free(w->in.queries);
    dr_free(w->in.targets);
    dr_free(w->in.texts);
    dr_buf_reset(&w->in.joined);
    dr_buf_reset(&w->text);
}

// They go into config.json once the model is trained: what that cannot hold is refused before.
static dr_status check_texts(const dr_trm_config *c) {
    DR_CHECK(dr_utf8_valid(c->text_encoder, strlen(c->text_encoder)), DR_ERR_ARGUMENT,
             "retrieval training: the text encoder's name \"%s\" is no UTF-8", c->text_encoder);
    DR_CHECK(dr_utf8_valid(c->query_instruction, strlen(c->query_instruction)), DR_ERR_ARGUMENT,
             "retrieval training: the instruction of queries \"%s\" is no UTF-8", c->query_instruction);
    return DR_OK;
}

static dr_status create_fresh(dr_backend *backend, dr_trm_config *config, dr_trm **out_trm) {
    dr_text_encoder *encoder = NULL;
    DR_TRY(dr_trm_open_encoder(backend, config, &encoder));
    dr_status status = encoder ? dr_trm_note_encoder(encoder, config) : DR_OK;
    if (status == DR_OK) status = dr_trm_allocate(backend, config, encoder, out_trm);
    if (status != DR_OK) dr_text_encoder_destroy(encoder);
    return status;
}

static dr_status check_options(const dr_trm_train_options *o) {
    DR_CHECK(o->batch > 0 && o->max_epochs > 0 && o->patience > 0, DR_ERR_ARGUMENT,
             "retrieval training: batch %d, epochs %d and patience %d must be positive", o->batch,
             o->max_epochs, o->patience);
    return check_texts(&o->config);
}

// Its own retrievals: that of the last call and a wider one, with validation's lists, while one takes the
// other's place.
static void count_retrievals(const dr_trm *trm, int64_t longest, const dr_text_encoder_memory *encoder,
                             dr_trm_train_memory *m) {
    int64_t rows = trm->serving.rows, embedding = trm->config.text_dim * (int64_t)sizeof(float);
    int64_t k = trm->config.n_items > EVAL_ITEMS ? EVAL_ITEMS : 1, host = 0, backend = 0;
    dr_trm_retrieval_memory(trm, rows, (int32_t)k, longest, &host, &backend);
    if (encoder->queued > 0) {
        backend += rows * embedding;
        host += rows * (embedding + encoder->queued);
    }
    m->serving += backend;
    m->host_batch += 2 * host;
}

static int64_t largest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// As dr_trm_allocate, training_init and what they call take it.
static void count_memory(const dr_trm *trm, const dr_dataset *d, const dr_trm_train_options *o,
                         const dr_text_encoder_memory *encoder, bool is_host, dr_trm_train_memory *m) {
    const dr_trm_config *c = &trm->config;
    dr_backend *b = trm->backend;
    int64_t N = (int64_t)c->n_items + 1, D = c->hidden, X = c->text_dim, B = o->batch, on_host = 0;
    int64_t params = (int64_t)trm_bytes(trm->n_params), dft = 4 * (c->max_history / 2 + 1) * c->max_history;
    const dr_pass_shape shape = dr_trm_pass_shape(c, B, dr_trm_trainer_rows(c, B));
    dr_trm_trainer_memory(c, B, &m->batch, &m->host_batch);
    m->encoder = encoder->backend;
    m->weights = params + (int64_t)trm_bytes(dft) + dr_trm_packed_memory(trm);
    m->updates = 4 * params; // gradient, two moments, the best weights
    m->items = (int64_t)trm_bytes(2 * N * D + (is_host ? 0 : N * X));
    m->serving = dr_trm_serving_memory(c) + (int64_t)trm_bytes(trm->serving.rows * X); // and a piece's texts
    m->scratch = encoder->scratch + b->ops->pass_memory(b, &shape, &on_host);
    m->host_items = (int64_t)trm_bytes(2 * N * X + (is_host ? 0 : N * D));
    m->host_batch += dr_trm_count_samples(d, o->leave_last) * (int64_t)sizeof(train_sample) +
                     B * (int64_t)(sizeof(dr_trm_query) + sizeof(int32_t) + trm_bytes(X));
    m->host_copies = encoder->host + (is_host ? 0 : largest(params, (int64_t)trm_bytes(B * X)));
    m->host_scratch = encoder->scratch_on_host + on_host;
    count_retrievals(trm, dr_dataset_longest(d), encoder, m);
}

dr_status dr_trm_train_memory_of(dr_backend *backend, const dr_dataset *dataset,
                                 const dr_trm_train_options *options, dr_trm_train_memory *out) {
    dr_trm_config config = options->config;
    dr_text_encoder_memory encoder;
    dr_trm *outline = NULL;
    bool is_host = false;
    config.n_items = dataset->n_items;
    DR_TRY(check_options(options));
    DR_TRY(dr_memory_is_host(backend, &is_host));
    DR_TRY(dr_trm_encoder_memory(backend, &config, &encoder));
    DR_TRY(dr_trm_outline(backend, &config, &outline));
    *out = (dr_trm_train_memory){.is_host = is_host};
    count_memory(outline, dataset, options, &encoder, is_host, out);
    dr_free(outline);
    return DR_OK;
}

dr_status dr_trm_train(dr_backend *backend, const dr_dataset *dataset, const dr_trm_train_options *options,
                       dr_trm **out_trm) {
    dr_trm_config config = options->config;
    config.n_items = dataset->n_items;
    dr_trm *trm = NULL;
    training w = {0};
    DR_TRY(check_options(options));
    DR_TRY(create_fresh(backend, &config, &trm));
    dr_status status = draw_weights(trm, options->seed);
    if (status == DR_OK && trm->encoder) status = dr_trm_encode_catalogue(trm, dataset);
    if (status == DR_OK) status = dr_trm_weights_changed(trm);
    if (status == DR_OK) status = training_init(&w, trm, dataset, options);
    if (status == DR_OK) status = train_all(&w, trm, dataset, options);
    training_reset(&w);
    if (status != DR_OK) {
        dr_trm_destroy(trm);
        return status;
    }
    *out_trm = trm;
    return DR_OK;
}
