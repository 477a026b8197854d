// The weights of a sentence encoder's folder, where they stand in the flat buffer, and their digest.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/file.h"
#include "core/model/sentence_encoder_internal.h"
#include "core/store/safetensors_folder.h"

enum { TENSORS_OF_LAYER = 16, TENSORS_OF_EMBEDDING = 4 };

// ---- where weights stand ----

// Lays a tensor behind those before it; rows 0: a vector of cols.
static int64_t place(sentence_encoder *s, const char *name, int64_t rows, int64_t cols) {
    sentence_tensor *t = &s->tensors[s->n_tensors++];
    snprintf(t->name, sizeof t->name, "%s", name);
    t->offset = s->n_params;
    t->rows = rows;
    t->cols = cols;
    s->n_params += (rows > 0 ? rows : 1) * cols;
    return t->offset;
}

static int64_t place_part(sentence_encoder *s, int32_t layer, const char *part, int64_t rows, int64_t cols) {
    char name[96];
    snprintf(name, sizeof name, "encoder.layer.%d.%s", layer, part);
    return place(s, name, rows, cols);
}

static void place_layer(sentence_encoder *s, int32_t i) {
    int64_t D = s->config.hidden, I = s->config.inner;
    sentence_layer *l = &s->layers[i];
    l->qkv = place_part(s, i, "attention.self.query.weight", D, D);
    place_part(s, i, "attention.self.key.weight", D, D);
    place_part(s, i, "attention.self.value.weight", D, D);
    l->qkv_bias = place_part(s, i, "attention.self.query.bias", 0, D);
    place_part(s, i, "attention.self.key.bias", 0, D);
    place_part(s, i, "attention.self.value.bias", 0, D);
    l->out = place_part(s, i, "attention.output.dense.weight", D, D);
    l->out_bias = place_part(s, i, "attention.output.dense.bias", 0, D);
    l->norm1 = place_part(s, i, "attention.output.LayerNorm.weight", 0, D);
    l->norm1_bias = place_part(s, i, "attention.output.LayerNorm.bias", 0, D);
    l->up = place_part(s, i, "intermediate.dense.weight", I, D);
    l->up_bias = place_part(s, i, "intermediate.dense.bias", 0, I);
    l->down = place_part(s, i, "output.dense.weight", D, I);
    l->down_bias = place_part(s, i, "output.dense.bias", 0, D);
    l->norm2 = place_part(s, i, "output.LayerNorm.weight", 0, D);
    l->norm2_bias = place_part(s, i, "output.LayerNorm.bias", 0, D);
}

dr_status dr_sentence_outline(sentence_encoder *s) {
    const sentence_config *c = &s->config;
    DR_TRY(dr_alloc(&s->layers, "layers", c->n_layers, sizeof *s->layers));
    DR_TRY(dr_alloc(&s->tensors, "tensors", TENSORS_OF_EMBEDDING + (int64_t)TENSORS_OF_LAYER * c->n_layers,
                    sizeof *s->tensors));
    s->words = place(s, "embeddings.word_embeddings.weight", c->vocab, c->hidden);
    s->positions = place(s, "embeddings.position_embeddings.weight", c->n_positions, c->hidden);
    s->norm = place(s, "embeddings.LayerNorm.weight", 0, c->hidden);
    s->norm_bias = place(s, "embeddings.LayerNorm.bias", 0, c->hidden);
    for (int32_t i = 0; i < c->n_layers; i++) place_layer(s, i);
    return DR_OK;
}

// ---- weights ----

static const char TYPES[] = "embeddings.token_type_embeddings.weight";

// "bert." where the file's names begin with it.
static const char *prefix_of(const dr_safetensors_folder *weights) {
    return dr_safetensors_folder_find(weights, "bert.embeddings.word_embeddings.weight") ? "bert." : "";
}

// A tensor of the file that the embeddings do not depend on: buffers, the pooler, a head of pretraining.
static bool is_left_out(const char *name) {
    return strcmp(name, "embeddings.position_ids") == 0 || strncmp(name, "pooler.", 7) == 0 ||
           strncmp(name, "cls.", 4) == 0;
}

static dr_status check_names(const sentence_encoder *s, const dr_safetensors_folder *weights,
                             const char *prefix) {
    for (int32_t i = 0; i < dr_safetensors_folder_count(weights); i++) {
        const char *whole = dr_safetensors_folder_at(weights, i)->name,
                   *name = strncmp(whole, prefix, strlen(prefix)) == 0 ? whole + strlen(prefix) : whole;
        bool is_known = is_left_out(name) || strcmp(name, TYPES) == 0;
        for (int32_t j = 0; j < s->n_tensors && !is_known; j++)
            is_known = strcmp(name, s->tensors[j].name) == 0;
        DR_CHECK(is_known, DR_ERR_UNSUPPORTED,
                 "%s: tensor %s has no place in a BertModel of this config.json",
                 dr_safetensors_folder_path(weights), whole);
    }
    return DR_OK;
}

static dr_status check_shapes(const sentence_encoder *s, const dr_safetensors_folder *weights,
                              const char *prefix) {
    char name[112];
    int64_t types[2] = {s->config.n_types, s->config.hidden};
    for (int32_t i = 0; i < s->n_tensors; i++) {
        const sentence_tensor *t = &s->tensors[i];
        int64_t shape[2] = {t->rows > 0 ? t->rows : t->cols, t->cols};
        snprintf(name, sizeof name, "%s%s", prefix, t->name);
        DR_TRY(dr_safetensors_folder_check(weights, name, shape, t->rows > 0 ? 2 : 1));
    }
    snprintf(name, sizeof name, "%s%s", prefix, TYPES);
    return dr_safetensors_folder_check(weights, name, types, 2);
}

static dr_status read_values(const dr_safetensors_folder *weights, const char *prefix, const char *own_name,
                             const int64_t *shape, int32_t n_dims, float *out) {
    char name[112];
    int64_t n = shape[0] * (n_dims == 2 ? shape[1] : 1);
    snprintf(name, sizeof name, "%s%s", prefix, own_name);
    DR_TRY(dr_safetensors_folder_read(weights, name, shape, n_dims, out));
    for (int64_t i = 0; i < n; i++)
        DR_CHECK(isfinite(out[i]), DR_ERR_NUMERIC, "%s: tensor %s: value %lld is %g",
                 dr_safetensors_folder_path(weights), name, (long long)i, (double)out[i]);
    return DR_OK;
}

// Texts are all of token type 0: its row becomes a part of every position's.
static dr_status add_type(const sentence_encoder *s, const dr_safetensors_folder *weights, const char *prefix,
                          float *positions) {
    float *types = NULL;
    int64_t D = s->config.hidden, shape[2] = {s->config.n_types, D};
    DR_TRY(dr_alloc(&types, "token types", shape[0] * D, sizeof *types));
    dr_status status = read_values(weights, prefix, TYPES, shape, 2, types);
    for (int64_t i = 0; status == DR_OK && i < s->config.n_positions * D; i++) positions[i] += types[i % D];
    dr_free(types);
    return status;
}

static dr_status read_params(const sentence_encoder *s, const dr_safetensors_folder *weights,
                             const char *prefix, float *params) {
    for (int32_t i = 0; i < s->n_tensors; i++) {
        const sentence_tensor *t = &s->tensors[i];
        int64_t shape[2] = {t->rows > 0 ? t->rows : t->cols, t->cols};
        DR_TRY(read_values(weights, prefix, t->name, shape, t->rows > 0 ? 2 : 1, params + t->offset));
    }
    return add_type(s, weights, prefix, params + s->positions);
}

// All that an embedding depends on but the limit of tokens: values, however they are stored, shapes, the
// tokenizer's file.
static dr_status make_digest(const sentence_encoder *s, const char *dir, const float *params,
                             char *out_digest) {
    const sentence_config *c = &s->config;
    const int32_t shape[] = {c->vocab, c->hidden,      c->n_layers,        c->n_heads,
                             c->inner, c->n_positions, (int32_t)c->pooling};
    char *path = NULL;
    dr_buf tokenizer = {0};
    DR_TRY(dr_path_join(&path, dir, "tokenizer.json"));
    dr_status status = dr_file_read(path, 0, &tokenizer);
    dr_free(path);
    if (status == DR_OK) {
        uint64_t h = XXH3_64bits(shape, sizeof shape);
        h = XXH3_64bits_withSeed(&c->eps, sizeof c->eps, h);
        h = XXH3_64bits_withSeed(tokenizer.data, tokenizer.length, h);
        h = XXH3_64bits_withSeed(params, (size_t)s->n_params * sizeof *params, h);
        snprintf(out_digest, 20, "%016llx", (unsigned long long)h);
    }
    dr_buf_reset(&tokenizer);
    return status;
}

static dr_status pack(sentence_encoder *s) {
    dr_backend *b = s->backend;
    int64_t D = s->config.hidden, I = s->config.inner;
    for (int32_t i = 0; i < s->config.n_layers; i++) {
        sentence_layer *l = &s->layers[i];
        const struct {
            dr_weight **w;
            int64_t n_out, n_in, at;
        } products[] = {{&l->w_qkv, 3 * D, D, l->qkv},
                        {&l->w_out, D, D, l->out},
                        {&l->w_up, I, D, l->up},
                        {&l->w_down, D, I, l->down}};
        for (int j = 0; j < 4; j++) {
            DR_TRY(b->ops->weight_create(b, products[j].n_out, products[j].n_in, products[j].w));
            DR_TRY(b->ops->weight_pack(b, *products[j].w, s->params + products[j].at));
        }
    }
    return DR_OK;
}

static dr_status read_weights(sentence_encoder *s, const char *dir, const dr_safetensors_folder *weights,
                              char *out_digest) {
    const char *prefix = prefix_of(weights);
    float *params = NULL;
    DR_TRY(check_shapes(s, weights, prefix));
    DR_TRY(check_names(s, weights, prefix));
    DR_TRY(
        dr_memory_create(s->backend, &s->params, "sentence encoder's weights", s->n_params, sizeof(float)));
    DR_TRY(dr_host_open(s->backend, s->params, s->n_params, DR_HOST_WRITES, &params));
    dr_status status = read_params(s, weights, prefix, params);
    if (status == DR_OK) status = make_digest(s, dir, params, out_digest);
    dr_host_close(s->backend, s->params, s->n_params, DR_HOST_WRITES, params);
    return status == DR_OK ? pack(s) : status;
}

dr_status dr_sentence_weights_read(sentence_encoder *s, const char *dir, char *out_digest) {
    dr_safetensors_folder *weights = NULL;
    DR_TRY(dr_safetensors_folder_open(dir, &weights));
    dr_status status = read_weights(s, dir, weights, out_digest);
    dr_safetensors_folder_close(weights);
    return status;
}
