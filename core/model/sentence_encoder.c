// The passes of the sentence encoder: texts become ids, are packed one behind the other without padding, and
// go through all layers together. Every op is row-exact and attention stays within a text, so a text's
// embedding has the same bits whatever else is in its pass.
#include "core/model/sentence_encoder_internal.h"

#include <string.h>

enum { PASS_ROWS = 2048 }; // enough for full products, and little memory

// ---- texts ----

// The ids of a text between its special tokens ([CLS], [SEP]), at most max_ids in all, into s->text_ids.
static dr_status tokenize(sentence_encoder *s, const char *text, int64_t max_ids) {
    s->n_text_ids = 0;
    return dr_tokenizer_encode_framed(s->tokenizer, text, strlen(text), false, max_ids, &s->text_ids,
                                      &s->n_text_ids, &s->text_capacity);
}

// The text at hand becomes the pass's last.
static void append_text(sentence_encoder *s, const sentence_tokens *tokens) {
    memcpy(tokens->ids + s->n_rows, s->text_ids, (size_t)s->n_text_ids * sizeof *tokens->ids);
    for (int64_t i = 0; i < s->n_text_ids; i++) tokens->places[s->n_rows + i] = (int32_t)i;
    s->n_rows += s->n_text_ids;
    s->ends[++s->n_texts] = (int32_t)s->n_rows;
}

// ---- a pass ----

// x = LayerNorm(y + x)
static void add_and_norm(sentence_encoder *s, int64_t T, int64_t weight, int64_t bias) {
    dr_backend *b = s->backend;
    b->ops->add(b, s->x, T * s->config.hidden, s->y);
    b->ops->layernorm_forward(b, s->y, s->params + weight, s->params + bias, T, s->config.hidden,
                              s->config.eps, s->x, s->mean, s->inv_std);
}

static dr_status run_layer(sentence_encoder *s, const sentence_layer *l, const dr_sequences *texts) {
    dr_backend *b = s->backend;
    int64_t T = s->n_rows, D = s->config.hidden, I = s->config.inner;
    int32_t H = s->config.n_heads, d = (int32_t)(D / H);
    const float *p = s->params;
    DR_TRY(b->ops->linear_forward(b, l->w_qkv, s->x, T, p + l->qkv_bias, s->wide));
    DR_TRY(b->ops->attention_bidirectional(b, s->wide, s->wide + D, s->wide + 2 * D, 3 * D, 3 * D, texts, H,
                                           H, d, s->side));
    DR_TRY(b->ops->linear_forward(b, l->w_out, s->side, T, p + l->out_bias, s->y));
    add_and_norm(s, T, l->norm1, l->norm1_bias);
    DR_TRY(b->ops->linear_forward(b, l->w_up, s->x, T, p + l->up_bias, s->wide));
    b->ops->gelu_forward(b, s->wide, T * I, s->side);
    DR_TRY(b->ops->linear_forward(b, l->w_down, s->side, T, p + l->down_bias, s->y));
    add_and_norm(s, T, l->norm2, l->norm2_bias);
    return DR_OK;
}

static dr_status send(sentence_encoder *s, const sentence_tokens *tokens, const int32_t *from, int32_t *to) {
    dr_backend *b = s->backend;
    dr_transfer *transfer = tokens->transfer;
    size_t bytes = (size_t)s->n_rows * sizeof *from;
    if (transfer)
        return b->ops->transfer_in(b, transfer, (size_t)((const char *)from - transfer->host), to, bytes);
    b->ops->copy_in(b, to, from, bytes);
    return DR_OK;
}

static dr_status embed(sentence_encoder *s, const sentence_tokens *tokens) {
    dr_backend *b = s->backend;
    int64_t T = s->n_rows, D = s->config.hidden;
    DR_TRY(send(s, tokens, tokens->ids, s->ids));
    DR_TRY(send(s, tokens, tokens->places, s->places));
    b->ops->embedding_forward(b, s->params + s->words, s->ids, T, D, s->x);
    b->ops->embedding_forward(b, s->params + s->positions, s->places, T, D, s->y);
    add_and_norm(s, T, s->norm, s->norm_bias);
    return DR_OK;
}

// Embeddings [n_texts, D] of the texts that were appended, backend memory; forgets them.
static dr_status run_pass(sentence_encoder *s, sentence_tokens *tokens, float *out) {
    dr_backend *b = s->backend;
    int64_t n = s->n_texts, D = s->config.hidden, T = s->n_rows;
    dr_sequences texts = {(int32_t)n, s->ends, NULL};
    if (T > 0) DR_TRY(embed(s, tokens));
    for (int32_t i = 0; T > 0 && i < s->config.n_layers; i++) DR_TRY(run_layer(s, &s->layers[i], &texts));
    DR_TRY(b->ops->pool_rows(b, s->x, &texts, s->config.pooling, D, s->pooled));
    b->ops->unit_rows(b, s->pooled, n, D, out);
    s->n_rows = s->n_texts = 0;
    if (tokens->transfer) { // these are on their way: the next pass's stand behind them
        tokens->ids += T;
        tokens->places += T;
    }
    return DR_OK;
}

// The texts from *first on that one pass has room for, 0 for none; moves *first behind them.
static dr_status fill_pass(sentence_encoder *s, const char *const *texts, int64_t n,
                           const sentence_tokens *tokens, int64_t *first) {
    s->n_rows = s->n_texts = 0;
    for (; *first < n; ++*first) {
        DR_TRY(tokenize(s, texts[*first], s->config.max_tokens));
        if (s->n_rows + s->n_text_ids > s->capacity || s->n_texts == s->capacity) break;
        append_text(s, tokens);
    }
    return DR_OK;
}

static dr_status encode(const dr_text_encoder *encoder, const char *const *texts, int64_t n, float *out) {
    sentence_encoder *s = encoder->state;
    sentence_tokens tokens = {s->host_ids, s->host_places, NULL};
    for (int64_t first = 0, end = 0; end < n; first = end) {
        DR_TRY(fill_pass(s, texts, n, &tokens, &end));
        DR_TRY(run_pass(s, &tokens, s->unit));
        s->backend->ops->copy_out(s->backend, out + first * encoder->dim, s->unit,
                                  (size_t)((end - first) * encoder->dim) * sizeof *out);
    }
    return DR_OK;
}

static size_t queue_bytes(const dr_text_encoder *encoder, int64_t n) {
    const sentence_encoder *s = encoder->state;
    return (size_t)(2 * n * s->config.max_tokens) * sizeof(int32_t);
}

static dr_status queue(const dr_text_encoder *encoder, const char *const *texts, int64_t n,
                       dr_transfer *transfer, size_t from, float *out) {
    sentence_encoder *s = encoder->state;
    int32_t *ids = (int32_t *)(void *)(transfer->host + from);
    sentence_tokens tokens = {ids, ids + n * s->config.max_tokens, transfer};
    DR_CHECK(from + queue_bytes(encoder, n) <= transfer->bytes, DR_ERR_ARGUMENT,
             "text encoder: %lld texts want %zu bytes of a transfer of %zu from %zu on", (long long)n,
             queue_bytes(encoder, n), transfer->bytes, from);
    for (int64_t first = 0, end = 0; end < n; first = end) {
        DR_TRY(fill_pass(s, texts, n, &tokens, &end));
        DR_TRY(run_pass(s, &tokens, out + first * encoder->dim));
    }
    return DR_OK;
}

// ---- the object ----

static int64_t pass_rows(const sentence_config *c) {
    return c->max_tokens > PASS_ROWS ? c->max_tokens : PASS_ROWS;
}

static dr_status create_pass(sentence_encoder *s) {
    const sentence_config *c = &s->config;
    dr_backend *b = s->backend;
    int64_t T = pass_rows(c), D = c->hidden, I = c->inner;
    struct {
        float **memory;
        int64_t width;
    } parts[] = {{&s->x, D},
                 {&s->y, D},
                 {&s->wide, 3 * D > I ? 3 * D : I},
                 {&s->side, D > I ? D : I},
                 {&s->mean, 1},
                 {&s->inv_std, 1},
                 {&s->pooled, D},
                 {&s->unit, D}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        DR_TRY(dr_memory_create(b, parts[i].memory, "sentence encoder's rows", T * parts[i].width,
                                sizeof(float)));
    DR_TRY(dr_memory_create(b, &s->ids, "sentence encoder's ids", T, sizeof *s->ids));
    DR_TRY(dr_memory_create(b, &s->places, "sentence encoder's positions", T, sizeof *s->places));
    DR_TRY(dr_alloc(&s->host_ids, "ids of texts", T, sizeof *s->host_ids));
    DR_TRY(dr_alloc(&s->host_places, "positions of texts", T, sizeof *s->host_places));
    DR_TRY(dr_alloc(&s->ends, "ends of texts", T + 1, sizeof *s->ends));
    DR_TRY(dr_alloc(&s->text_ids, "ids of a text", c->max_tokens, sizeof *s->text_ids));
    s->text_capacity = c->max_tokens;
    s->capacity = T;
    return DR_OK;
}

static void destroy_state(sentence_encoder *s) {
    dr_backend *b = s->backend;
    for (int32_t i = 0; s->layers && i < s->config.n_layers; i++) {
        dr_weight *weights[] = {s->layers[i].w_qkv, s->layers[i].w_out, s->layers[i].w_up,
                                s->layers[i].w_down};
        for (int j = 0; j < 4; j++) b->ops->weight_destroy(b, weights[j]);
    }
    void *theirs[] = {s->params,  s->x,      s->y,    s->wide, s->side,  s->mean,
                      s->inv_std, s->pooled, s->unit, s->ids,  s->places};
    for (size_t i = 0; i < sizeof theirs / sizeof *theirs; i++) b->ops->memory_destroy(b, theirs[i]);
    void *ours[] = {s->tensors, s->layers, s->host_ids, s->host_places, s->ends, s->text_ids};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) dr_free(ours[i]);
    dr_tokenizer_destroy(s->tokenizer);
    dr_free(s);
}

static void destroy(dr_text_encoder *encoder) {
    destroy_state(encoder->state);
}

// The tokenizer fits the model, and a text has room between its special tokens.
static dr_status check_tokenizer(const sentence_encoder *s, const char *dir) {
    const int32_t *before, *after;
    int32_t n_before = 0, n_after = 0;
    DR_CHECK(dr_tokenizer_size(s->tokenizer) <= s->config.vocab, DR_ERR_FORMAT,
             "%s: the tokenizer has %d ids, the model's vocabulary %d", dir, dr_tokenizer_size(s->tokenizer),
             s->config.vocab);
    DR_CHECK(
        !s->config.lowers || dr_tokenizer_lowers(s->tokenizer), DR_ERR_UNSUPPORTED,
        "%s: sentence_bert_config.json: do_lower_case is true, and the tokenizer does not make text lower "
        "case: not supported",
        dir);
    dr_tokenizer_frame(s->tokenizer, &before, &n_before, &after, &n_after);
    DR_CHECK(n_before + n_after < s->config.max_tokens, DR_ERR_ARGUMENT,
             "%s: texts of at most %d tokens, of which %d are special ones", dir, s->config.max_tokens,
             n_before + n_after);
    return DR_OK;
}

// Queries that are nothing but their instruction would all be one.
static dr_status check_instruction(sentence_encoder *s, const char *dir, const char *instruction) {
    DR_TRY(tokenize(s, instruction, INT64_MAX));
    DR_CHECK(s->n_text_ids < s->config.max_tokens, DR_ERR_ARGUMENT,
             "%s: the instruction of queries takes %lld of at most %d tokens: \"%s\"", dir,
             (long long)s->n_text_ids, s->config.max_tokens, instruction);
    return DR_OK;
}

// config.json and its neighbours, and the limit that was asked for.
static dr_status read_config(const char *dir, int32_t max_tokens, sentence_config *c,
                             char **out_instruction) {
    DR_TRY(dr_sentence_config_read(dir, c, out_instruction));
    if (max_tokens < c->max_tokens) c->max_tokens = max_tokens;
    return DR_OK;
}

// given: the instruction of queries, or NULL.
static dr_status fill(sentence_encoder *s, const char *dir, int32_t max_tokens, const char *given,
                      dr_text_encoder *encoder) {
    DR_TRY(read_config(dir, max_tokens, &s->config, &encoder->query_instruction));
    encoder->dim = s->config.hidden;
    if (given) {
        dr_free(encoder->query_instruction);
        encoder->query_instruction = NULL;
        DR_TRY(dr_strdup(&encoder->query_instruction, given));
    }
    DR_TRY(dr_tokenizer_load(dir, &s->tokenizer));
    DR_TRY(check_tokenizer(s, dir));
    DR_TRY(dr_sentence_outline(s));
    DR_TRY(dr_sentence_weights_read(s, dir, encoder->digest));
    DR_TRY(create_pass(s));
    return check_instruction(s, dir, encoder->query_instruction);
}

dr_status dr_sentence_encoder_create(dr_backend *backend, const char *dir, int32_t max_tokens,
                                     const char *query_instruction, dr_text_encoder **out_encoder) {
    static const dr_text_encoder_ops body = {
        .name = "bert", .encode = encode, .queue = queue, .queue_bytes = queue_bytes, .destroy = destroy};
    dr_text_encoder *encoder = NULL;
    sentence_encoder *s = NULL;
    DR_CHECK(backend && backend->precision == DR_FP32, DR_ERR_UNSUPPORTED,
             "%s: a sentence encoder computes in fp32 only", dir);
    DR_CHECK(max_tokens >= 1, DR_ERR_ARGUMENT, "%s: texts of at most %d tokens", dir, max_tokens);
    DR_TRY(dr_alloc(&encoder, "text encoder", 1, sizeof *encoder));
    encoder->ops = &body;
    dr_status status = dr_alloc(&s, "sentence encoder", 1, sizeof *s);
    if (status != DR_OK) {
        dr_free(encoder);
        return status;
    }
    encoder->state = s;
    s->backend = backend;
    status = fill(s, dir, max_tokens, query_instruction, encoder);
    if (status == DR_OK)
        *out_encoder = encoder;
    else
        dr_text_encoder_destroy(encoder);
    return status;
}

// As create_pass, weights_read and pack take it.
static void count_memory(dr_backend *b, const sentence_encoder *s, bool is_host,
                         dr_text_encoder_memory *out) {
    const sentence_config *c = &s->config;
    int64_t T = pass_rows(c), D = c->hidden, I = c->inner, wide = 3 * D > I ? 3 * D : I, host = 0;
    int64_t rows = T * (4 * D + wide + (D > I ? D : I) + 4); // four of D, ids, places and what a norm keeps
    int64_t packed = b->ops->weight_memory(b, 3 * D, D) + b->ops->weight_memory(b, D, D) +
                     b->ops->weight_memory(b, I, D) + b->ops->weight_memory(b, D, I);
    const dr_pass_shape shape = {.is_plain = true,
                                 .T = T,
                                 .n_out = wide,
                                 .n_in = D > I ? D : I,
                                 .longest = c->max_tokens,
                                 .H = c->n_heads,
                                 .G = c->n_heads,
                                 .d = c->hidden / c->n_heads};
    out->dim = c->hidden;
    out->backend = (s->n_params + rows) * (int64_t)sizeof(float) + c->n_layers * packed;
    out->scratch = b->ops->pass_memory(b, &shape, &host);
    out->scratch_on_host = host;
    out->host = (is_host ? 0 : s->n_params * (int64_t)sizeof(float)) + 3 * T * (int64_t)sizeof(int32_t);
    out->queued = 2 * c->max_tokens * (int64_t)sizeof(int32_t);
}

dr_status dr_sentence_encoder_memory(dr_backend *backend, const char *dir, int32_t max_tokens,
                                     dr_text_encoder_memory *out) {
    sentence_encoder *s = NULL;
    char *instruction = NULL;
    bool is_host = false;
    DR_TRY(dr_memory_is_host(backend, &is_host));
    DR_TRY(dr_alloc(&s, "sentence encoder", 1, sizeof *s));
    s->backend = backend;
    dr_status status = read_config(dir, max_tokens, &s->config, &instruction);
    if (status == DR_OK) status = dr_sentence_outline(s);
    if (status == DR_OK) count_memory(backend, s, is_host, out);
    dr_free(instruction);
    destroy_state(s);
    return status;
}
