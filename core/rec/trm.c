// The retrieval model as an object: parameter layout under the authors' names, folders.
#include "core/rec/trm.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/model/text_encoders.h"
#include "core/rec/trm_internal.h"
#include "core/store/safetensors.h"

static int64_t place(dr_trm *trm, int64_t *at, const char *name, int32_t n_dims, int64_t a, int64_t b,
                     int64_t c, int64_t d) {
    DR_ASSERT(trm->n_tensors < TRM_MAX_TENSORS);
    trm_tensor *t = &trm->tensors[trm->n_tensors++];
    int64_t shape[4] = {a, b, c, d}, n = 1;
    snprintf(t->name, sizeof t->name, "%s", name);
    t->offset = *at;
    t->n_dims = n_dims;
    for (int i = 0; i < n_dims; i++) {
        t->shape[i] = shape[i];
        n *= shape[i];
    }
    *at += n;
    return t->offset;
}

// A linear layer's or norm's "prefix.part.weight" or ".bias".
static int64_t place_part(dr_trm *trm, int64_t *at, int32_t layer, const char *part, int64_t rows,
                          int64_t cols) {
    char name[96];
    snprintf(name, sizeof name, "trm_encoder.layer.%d.%s", layer, part);
    return rows ? place(trm, at, name, 2, rows, cols, 0, 0) : place(trm, at, name, 1, cols, 0, 0, 0);
}

static void place_layer(dr_trm *trm, int64_t *at, int32_t i) {
    int64_t D = trm->config.hidden, I = trm->config.inner;
    trm_layer *l = &trm->layers[i];
    l->qkv = place_part(trm, at, i, "multi_head_attention.query.weight", D, D);
    place_part(trm, at, i, "multi_head_attention.key.weight", D, D);
    place_part(trm, at, i, "multi_head_attention.value.weight", D, D);
    l->qkv_bias = place_part(trm, at, i, "multi_head_attention.query.bias", 0, D);
    place_part(trm, at, i, "multi_head_attention.key.bias", 0, D);
    place_part(trm, at, i, "multi_head_attention.value.bias", 0, D);
    l->out = place_part(trm, at, i, "multi_head_attention.out_linear.weight", D, D);
    l->out_bias = place_part(trm, at, i, "multi_head_attention.out_linear.bias", 0, D);
    l->norm1 = place_part(trm, at, i, "multi_head_attention.LayerNorm.weight", 0, D);
    l->norm1_bias = place_part(trm, at, i, "multi_head_attention.LayerNorm.bias", 0, D);
    l->up = place_part(trm, at, i, "feed_forward.linear_1.weight", I, D);
    l->up_bias = place_part(trm, at, i, "feed_forward.linear_1.bias", 0, I);
    l->down = place_part(trm, at, i, "feed_forward.linear_2.weight", D, I);
    l->down_bias = place_part(trm, at, i, "feed_forward.linear_2.bias", 0, D);
    l->norm2 = place_part(trm, at, i, "feed_forward.LayerNorm.weight", 0, D);
    l->norm2_bias = place_part(trm, at, i, "feed_forward.LayerNorm.bias", 0, D);
}

static void place_all(dr_trm *trm) {
    const dr_trm_config *c = &trm->config;
    int64_t at = 0, D = c->hidden, L = c->max_history, X = c->text_dim, E = c->n_experts;
    char name[96];
    trm->items = place(trm, &at, "item_embedding.weight", 2, c->n_items + 1, D, 0, 0);
    trm->positions = place(trm, &at, "position_embedding.weight", 2, L, D, 0, 0);
    trm->filter = place(trm, &at, "complex_weight", 4, 1, L / 2 + 1, D, 2);
    trm->item_gate = place(trm, &at, "item_gating.weight", 2, 1, D, 0, 0);
    trm->item_gate_bias = place(trm, &at, "item_gating.bias", 1, 1, 0, 0, 0);
    trm->fusion_gate = place(trm, &at, "fusion_gating.weight", 2, 1, D, 0, 0);
    trm->fusion_gate_bias = place(trm, &at, "fusion_gating.bias", 1, 1, 0, 0, 0);
    for (int32_t e = 0; e < E; e++) {
        snprintf(name, sizeof name, "moe_adaptor.experts.%d.lin.weight", e);
        int64_t offset = place(trm, &at, name, 2, D, X, 0, 0);
        if (e == 0) trm->experts = offset;
    }
    trm->gate = place(trm, &at, "moe_adaptor.w_gate", 2, X, E, 0, 0);
    trm->noise = place(trm, &at, "moe_adaptor.w_noise", 2, X, E, 0, 0);
    trm->norm = place(trm, &at, "LayerNorm.weight", 1, D, 0, 0, 0);
    trm->norm_bias = place(trm, &at, "LayerNorm.bias", 1, D, 0, 0, 0);
    trm->out_norm = place(trm, &at, "OutLayerNorm.weight", 1, D, 0, 0, 0);
    trm->out_norm_bias = place(trm, &at, "OutLayerNorm.bias", 1, D, 0, 0, 0);
    for (int32_t i = 0; i < c->n_layers; i++) place_layer(trm, &at, i);
    trm->n_params = at;
}

static dr_status check_config(const dr_trm_config *c, const char *where) {
    DR_CHECK(c->n_items > 0 && c->n_items < 1 << 28 && c->hidden > 0 && c->hidden <= TRM_MAX_HIDDEN &&
                 c->text_dim > 0 && c->text_dim <= 65536 && c->max_history >= 2 &&
                 c->max_history <= TRM_MAX_HISTORY && c->max_history % 2 == 0 && c->n_layers >= 1 &&
                 c->n_layers <= TRM_MAX_LAYERS && c->n_heads >= 1 && c->hidden % c->n_heads == 0 &&
                 c->inner > 0 && c->inner <= 65536 && c->n_experts >= 1 && c->n_experts <= TRM_MAX_EXPERTS,
             DR_ERR_FORMAT,
             "%s: sizes out of range: %d items, hidden %d (at most %d), text %d, history %d (even, at most "
             "%d), %d layers, "
             "%d heads, inner %d, %d experts",
             where, c->n_items, c->hidden, TRM_MAX_HIDDEN, c->text_dim, c->max_history, TRM_MAX_HISTORY,
             c->n_layers, c->n_heads, c->inner, c->n_experts);
    DR_CHECK(c->dropout >= 0 && c->dropout < 1 && c->adaptor_dropout >= 0 && c->adaptor_dropout < 1 &&
                 c->temperature > 0 && c->layernorm_eps > 0,
             DR_ERR_FORMAT, "%s: dropout rates must be in [0, 1), temperature and layer_norm_eps positive",
             where);
    return DR_OK;
}

// Orthonormal real DFT over L positions and its inverse as dense matrices.
static void make_dft(int32_t L, float *dft, float *inverse) {
    int32_t K = L / 2 + 1;
    double norm = 1.0 / sqrt((double)L);
    for (int32_t k = 0; k < K; k++)
        for (int32_t l = 0; l < L; l++) {
            double angle = 2.0 * 3.14159265358979323846 * (double)((int64_t)k * l % L) / L;
            double twice = k == 0 || k == K - 1 ? 1.0 : 2.0;
            dft[k * L + l] = (float)(cos(angle) * norm);
            dft[(K + k) * L + l] = (float)(-sin(angle) * norm);
            inverse[l * 2 * K + k] = (float)(twice * cos(angle) * norm);
            inverse[l * 2 * K + K + k] = twice == 1.0 ? 0.0f : (float)(-twice * sin(angle) * norm);
        }
}

static dr_status create_dft(dr_trm *trm) {
    dr_backend *b = trm->backend;
    int64_t L = trm->config.max_history, n = 2 * (L / 2 + 1) * L;
    float *dft = NULL, *inverse = NULL;
    DR_TRY(dr_memory_create(b, &trm->dft, "Fourier transform", n, sizeof(float)));
    DR_TRY(dr_memory_create(b, &trm->inverse, "Fourier transform", n, sizeof(float)));
    dr_status status = dr_host_open(b, trm->dft, n, DR_HOST_WRITES, &dft);
    if (status == DR_OK) status = dr_host_open(b, trm->inverse, n, DR_HOST_WRITES, &inverse);
    if (status == DR_OK) make_dft((int32_t)L, dft, inverse);
    dr_host_close(b, trm->dft, n, DR_HOST_WRITES, dft);
    dr_host_close(b, trm->inverse, n, DR_HOST_WRITES, inverse);
    return status;
}

static dr_status create_weights(dr_trm *trm) {
    dr_backend *b = trm->backend;
    int64_t D = trm->config.hidden, I = trm->config.inner;
    DR_TRY(b->ops->weight_create(b, trm->config.n_experts * D, trm->config.text_dim, &trm->w_experts));
    for (int32_t i = 0; i < trm->config.n_layers; i++) {
        DR_TRY(b->ops->weight_create(b, 3 * D, D, &trm->layers[i].w_qkv));
        DR_TRY(b->ops->weight_create(b, D, D, &trm->layers[i].w_out));
        DR_TRY(b->ops->weight_create(b, I, D, &trm->layers[i].w_up));
        DR_TRY(b->ops->weight_create(b, D, I, &trm->layers[i].w_down));
    }
    return DR_OK;
}

int64_t dr_trm_packed_memory(const dr_trm *trm) {
    dr_backend *b = trm->backend;
    int64_t D = trm->config.hidden, I = trm->config.inner;
    int64_t layer = b->ops->weight_memory(b, 3 * D, D) + b->ops->weight_memory(b, D, D) +
                    b->ops->weight_memory(b, I, D) + b->ops->weight_memory(b, D, I);
    return trm->config.n_layers * layer +
           b->ops->weight_memory(b, trm->config.n_experts * D, trm->config.text_dim);
}

dr_status dr_trm_outline(dr_backend *backend, const dr_trm_config *config, dr_trm **out) {
    dr_trm *trm = NULL;
    DR_TRY(check_config(config, "retrieval model"));
    DR_TRY(dr_alloc(&trm, "retrieval model", 1, sizeof *trm));
    trm->backend = backend;
    trm->config = *config;
    trm->serving.rows = dr_trm_serving_rows(config);
    place_all(trm);
    *out = trm;
    return DR_OK;
}

dr_status dr_trm_allocate(dr_backend *backend, const dr_trm_config *config, dr_text_encoder *encoder,
                          dr_trm **out) {
    dr_trm *trm = NULL;
    DR_TRY(dr_trm_outline(backend, config, &trm));
    int64_t N = (int64_t)config->n_items + 1, D = config->hidden, X = config->text_dim;
    dr_status status;
    DR_TRY_GOTO(status, create_dft(trm), destroy);
    DR_TRY_GOTO(status,
                dr_memory_create(backend, &trm->params, "retrieval parameters", trm->n_params, sizeof(float)),
                destroy);
    DR_TRY_GOTO(status,
                dr_memory_create(backend, &trm->unit_items, "unit item vectors", N * D, sizeof(float)),
                destroy);
    DR_TRY_GOTO(status,
                dr_memory_create(backend, &trm->adapted, "adapted text vectors", N * D, sizeof(float)),
                destroy);
    trm->host_items = backend->ops->host_view(backend, trm->unit_items);
    if (!trm->host_items)
        DR_TRY_GOTO(status, dr_alloc(&trm->host_items, "unit item vectors", N * D, sizeof(float)), destroy);
    DR_TRY_GOTO(status, dr_alloc(&trm->text, "item text vectors", N * X, sizeof(float)), destroy);
    DR_TRY_GOTO(status, dr_alloc(&trm->unit_text, "unit text vectors", N * X, sizeof(float)), destroy);
    DR_TRY_GOTO(status, create_weights(trm), destroy);
    DR_TRY_GOTO(status, dr_trm_serving_create(trm), destroy);
    trm->encoder = encoder;
    *out = trm;
    return DR_OK;
destroy:
    dr_trm_destroy(trm);
    return status;
}

void dr_trm_destroy(dr_trm *trm) {
    if (!trm) return;
    dr_backend *b = trm->backend;
    for (int32_t i = 0; i < trm->config.n_layers; i++) {
        b->ops->weight_destroy(b, trm->layers[i].w_qkv);
        b->ops->weight_destroy(b, trm->layers[i].w_out);
        b->ops->weight_destroy(b, trm->layers[i].w_up);
        b->ops->weight_destroy(b, trm->layers[i].w_down);
    }
    b->ops->weight_destroy(b, trm->w_experts);
    dr_trm_serving_destroy(trm);
    dr_text_encoder_destroy(trm->encoder);
    if (trm->host_items != trm->unit_items) dr_free(trm->host_items);
    float *owned[] = {trm->params, trm->unit_items, trm->adapted, trm->dft, trm->inverse};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) b->ops->memory_destroy(b, owned[i]);
    dr_free(trm->text);
    dr_free(trm->unit_text);
    dr_free(trm);
}

dr_status dr_trm_weights_changed(dr_trm *trm) {
    dr_backend *b = trm->backend;
    DR_TRY(b->ops->weight_pack(b, trm->w_experts, trm->params + trm->experts));
    for (int32_t i = 0; i < trm->config.n_layers; i++) {
        const trm_layer *l = &trm->layers[i];
        DR_TRY(b->ops->weight_pack(b, l->w_qkv, trm->params + l->qkv));
        DR_TRY(b->ops->weight_pack(b, l->w_out, trm->params + l->out));
        DR_TRY(b->ops->weight_pack(b, l->w_up, trm->params + l->up));
        DR_TRY(b->ops->weight_pack(b, l->w_down, trm->params + l->down));
    }
    return DR_OK;
}

const dr_trm_config *dr_trm_config_of(const dr_trm *trm) {
    return &trm->config;
}

const dr_text_encoder *dr_trm_text_encoder(const dr_trm *trm) {
    return trm->encoder;
}

const float *dr_trm_item_vectors(const dr_trm *trm) {
    return trm->host_items;
}

const float *dr_trm_text_vectors(const dr_trm *trm) {
    return trm->unit_text;
}

// config.json is optional: a converted state dict of the authors has none, its sizes follow from the shapes.
static dr_status sizes_from_tensors(const dr_safetensors *file, const char *path, dr_trm_config *c) {
    const dr_safetensor *items = dr_safetensors_find(file, "item_embedding.weight");
    const dr_safetensor *text = dr_safetensors_find(file, "item_plm_embedding.weight");
    const dr_safetensor *positions = dr_safetensors_find(file, "position_embedding.weight");
    const dr_safetensor *gate = dr_safetensors_find(file, "moe_adaptor.w_gate");
    const dr_safetensor *up = dr_safetensors_find(file, "trm_encoder.layer.0.feed_forward.linear_1.weight");
    DR_CHECK(items && text && positions && gate && up && items->n_dims == 2 && text->n_dims == 2 &&
                 positions->n_dims == 2 && gate->n_dims == 2 && up->n_dims == 2 && items->shape[0] > 1 &&
                 items->shape[0] < 1 << 28,
             DR_ERR_FORMAT,
             "%s: not a retrieval model: expected item_embedding, item_plm_embedding, position_embedding, "
             "moe_adaptor and "
             "trm_encoder tensors",
             path);
    const dr_safetensor *shapes[] = {items, text, positions, gate, up};
    for (int i = 0; i < 5; i++)
        DR_CHECK(shapes[i]->shape[1] < 1 << 20, DR_ERR_FORMAT, "%s: %s is too wide", path, shapes[i]->name);
    c->n_items = (int32_t)items->shape[0] - 1;
    c->hidden = (int32_t)items->shape[1];
    c->text_dim = (int32_t)text->shape[1];
    c->max_history = (int32_t)positions->shape[0];
    c->n_experts = (int32_t)gate->shape[1];
    c->inner = (int32_t)up->shape[0];
    char name[96];
    for (c->n_layers = 0; c->n_layers < TRM_MAX_LAYERS; c->n_layers++) {
        snprintf(name, sizeof name, "trm_encoder.layer.%d.feed_forward.linear_1.weight", c->n_layers);
        if (!dr_safetensors_find(file, name)) break;
    }
    return DR_OK;
}

// A text of config.json into `out` [size]; what is there stays where the key is missing.
static dr_status read_text(const json_t *root, const char *path, const char *key, size_t size, char *out) {
    const char *text = NULL;
    DR_TRY(dr_json_string_or(root, path, key, out, &text));
    DR_CHECK(strlen(text) < size, DR_ERR_RANGE, "%s: %s has %zu bytes, at most %zu", path, key, strlen(text),
             size - 1);
    memmove(out, text, strlen(text) + 1);
    return DR_OK;
}

static dr_status read_text_encoder(const json_t *root, const char *path, dr_trm_config *c) {
    int64_t most = c->max_text_tokens;
    DR_TRY(read_text(root, path, "text_encoder", sizeof c->text_encoder, c->text_encoder));
    DR_TRY(read_text(root, path, "text_encoder_digest", sizeof c->text_digest, c->text_digest));
    DR_TRY(read_text(root, path, "query_instruction", sizeof c->query_instruction, c->query_instruction));
    DR_TRY(dr_json_i64_or(root, path, "max_text_tokens", 1, 1 << 20, most, &most));
    c->max_text_tokens = (int32_t)most;
    return DR_OK;
}

static dr_status read_config(const char *dir, dr_trm_config *c) {
    char *path = NULL;
    json_t *root = NULL;
    DR_TRY(dr_path_join(&path, dir, "config.json"));
    dr_status status = DR_OK;
    if (!dr_file_exists(path)) goto free_path; // defaults stay
    DR_TRY_GOTO(status, dr_json_load(path, &root), free_path);
    int64_t heads = c->n_heads;
    double values[4] = {c->dropout, c->adaptor_dropout, c->layernorm_eps, c->temperature};
    static const char *const keys[] = {"dropout", "adaptor_dropout", "layer_norm_eps", "temperature"};
    status = dr_json_i64_or(root, path, "num_heads", 1, 256, heads, &heads);
    for (int i = 0; i < 4 && status == DR_OK; i++)
        status = dr_json_f64_or(root, path, keys[i], 0, 1, values[i], &values[i]);
    if (status == DR_OK) status = read_text_encoder(root, path, c);
    if (status == DR_OK) {
        c->n_heads = (int32_t)heads;
        c->dropout = (float)values[0];
        c->adaptor_dropout = (float)values[1];
        c->layernorm_eps = (float)values[2];
        c->temperature = (float)values[3];
    }
    json_decref(root);
free_path:
    dr_free(path);
    return status;
}

static dr_status read_params(const dr_safetensors *file, const char *path, const dr_trm *trm, float *out) {
    for (int32_t i = 0; i < trm->n_tensors; i++)
        DR_TRY(dr_safetensors_read(file, trm->tensors[i].name, trm->tensors[i].shape, trm->tensors[i].n_dims,
                                   out + trm->tensors[i].offset));
    for (int64_t i = 0; i < trm->n_params; i++)
        DR_CHECK(isfinite(out[i]), DR_ERR_NUMERIC, "%s: a weight is not a finite number", path);
    return DR_OK;
}

static dr_status read_tensors(const dr_safetensors *file, const char *path, dr_trm *trm) {
    float *params = NULL;
    DR_TRY(dr_host_open(trm->backend, trm->params, trm->n_params, DR_HOST_WRITES, &params));
    dr_status status = read_params(file, path, trm, params);
    dr_host_close(trm->backend, trm->params, trm->n_params, DR_HOST_WRITES, params);
    int64_t shape[2] = {(int64_t)trm->config.n_items + 1, trm->config.text_dim};
    if (status == DR_OK) status = dr_safetensors_read(file, "item_plm_embedding.weight", shape, 2, trm->text);
    for (int64_t i = 0; status == DR_OK && i < shape[0] * shape[1]; i++)
        DR_CHECK(isfinite(trm->text[i]), DR_ERR_NUMERIC, "%s: a text vector is not finite", path);
    return status;
}

dr_status dr_trm_read_sizes(const dr_safetensors *file, const char *path, const char *dir,
                            dr_trm_config *out) {
    *out = (dr_trm_config){.n_heads = 2,
                           .dropout = 0.5f,
                           .adaptor_dropout = 0.2f,
                           .layernorm_eps = 1e-12f,
                           .temperature = 0.07f,
                           .text_encoder = "external",
                           .query_instruction = DR_QUERY_INSTRUCTION_AUTO,
                           .max_text_tokens = 256};
    DR_TRY(sizes_from_tensors(file, path, out));
    DR_TRY(read_config(dir, out));
    return check_config(out, path);
}

static dr_status load_model(dr_backend *backend, const char *dir, const char *encoder_dir,
                            const dr_safetensors *file, const char *path, dr_trm **out_trm) {
    dr_trm_config config;
    dr_text_encoder *encoder = NULL;
    dr_trm *trm = NULL;
    DR_TRY(dr_trm_read_sizes(file, path, dir, &config));
    DR_TRY(dr_trm_load_encoder(backend, dir, encoder_dir, &config, &encoder));
    dr_status status = dr_trm_allocate(backend, &config, encoder, &trm);
    if (status != DR_OK) {
        dr_text_encoder_destroy(encoder);
        return status;
    }
    status = read_tensors(file, path, trm);
    if (status == DR_OK) status = dr_trm_prepare_serving(trm);
    if (status == DR_OK)
        *out_trm = trm;
    else
        dr_trm_destroy(trm);
    return status;
}

dr_status dr_trm_load_with(dr_backend *backend, const char *dir, const char *encoder_dir, dr_trm **out_trm) {
    char *path = NULL;
    dr_safetensors *file = NULL;
    DR_TRY(dr_path_join(&path, dir, "model.safetensors"));
    dr_status status = dr_safetensors_open(path, &file);
    if (status == DR_OK) {
        status = load_model(backend, dir, encoder_dir, file, path, out_trm);
        dr_safetensors_close(file);
    }
    dr_free(path);
    return status;
}

dr_status dr_trm_load(dr_backend *backend, const char *dir, dr_trm **out_trm) {
    return dr_trm_load_with(backend, dir, "", out_trm);
}

static dr_status save_config(const dr_trm_config *c, const char *dir) {
    json_t *root = json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:s, s:s, s:s, s:i}", "model_type",
        "deeprec-trm", "num_items", c->n_items, "hidden_size", c->hidden, "text_dim", c->text_dim,
        "max_history", c->max_history, "num_layers", c->n_layers, "num_heads", c->n_heads, "inner_size",
        c->inner, "num_experts", c->n_experts, "dropout", (double)c->dropout, "adaptor_dropout",
        (double)c->adaptor_dropout, "layer_norm_eps", (double)c->layernorm_eps, "temperature",
        (double)c->temperature, "text_encoder", c->text_encoder, "text_encoder_digest", c->text_digest,
        "query_instruction", c->query_instruction, "max_text_tokens", c->max_text_tokens);
    return dr_json_save_in(root, dir, "config.json");
}

static dr_status save_tensors(const dr_trm *trm, const float *params, const char *path) {
    dr_safetensor_source sources[TRM_MAX_TENSORS + 1];
    for (int32_t i = 0; i < trm->n_tensors; i++) {
        const trm_tensor *t = &trm->tensors[i];
        sources[i] = (dr_safetensor_source){.name = t->name, .n_dims = t->n_dims, .data = params + t->offset};
        memcpy(sources[i].shape, t->shape, sizeof t->shape);
    }
    sources[trm->n_tensors] =
        (dr_safetensor_source){.name = "item_plm_embedding.weight",
                               .n_dims = 2,
                               .shape = {(int64_t)trm->config.n_items + 1, trm->config.text_dim},
                               .data = trm->text};
    return dr_safetensors_write(path, sources, trm->n_tensors + 1);
}

dr_status dr_trm_save(const dr_trm *trm, const char *dir) {
    char *path = NULL;
    float *params = NULL;
    DR_TRY(dr_dir_make(dir));
    DR_TRY(save_config(&trm->config, dir));
    DR_TRY(dr_path_join(&path, dir, "model.safetensors"));
    dr_status status = dr_host_open(trm->backend, trm->params, trm->n_params, DR_HOST_READS, &params);
    if (status == DR_OK) status = save_tensors(trm, params, path);
    dr_host_close(trm->backend, trm->params, trm->n_params, DR_HOST_READS, params);
    dr_free(path);
    return status;
}
