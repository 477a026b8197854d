// The model object: layout of the flat parameter buffer, fresh weights, packed forms. Folders are
// lm_files.c's.
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alive.h"
#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "core/model/lm_internal.h"

typedef struct layout {
    dr_lm *lm;
    int64_t at, vectors; // values placed; those of vectors among them
} layout;

static int64_t place(layout *l, int32_t layer, const char *name, int64_t rows, int64_t cols) {
    dr_lm_tensor *tensor = &l->lm->tensors[l->lm->n_tensors++];
    if (layer < 0)
        snprintf(tensor->name, sizeof tensor->name, "%s", name);
    else
        snprintf(tensor->name, sizeof tensor->name, "model.layers.%d.%s", layer, name);
    l->lm->vectors_before[tensor - l->lm->tensors] = l->vectors;
    tensor->offset = l->at;
    tensor->rows = rows;
    tensor->cols = cols;
    l->at += rows * cols;
    if (dr_lm_is_vector(tensor)) l->vectors += cols;
    return tensor->offset;
}

static void place_layer(layout *l, int32_t i) {
    const dr_lm_config *c = &l->lm->config;
    lm_layer *layer = &l->lm->layers[i];
    int64_t q = (int64_t)c->n_heads * c->head_size, kv = (int64_t)c->n_kv_heads * c->head_size;
    layer->norm1 = place(l, i, "input_layernorm.weight", 1, c->hidden);
    layer->qkv = place(l, i, "self_attn.q_proj.weight", q, c->hidden);
    place(l, i, "self_attn.k_proj.weight", kv, c->hidden);
    place(l, i, "self_attn.v_proj.weight", kv, c->hidden);
    layer->qkv_bias = layer->q_norm = layer->k_norm = -1;
    if (c->qkv_bias) {
        layer->qkv_bias = place(l, i, "self_attn.q_proj.bias", 1, q);
        place(l, i, "self_attn.k_proj.bias", 1, kv);
        place(l, i, "self_attn.v_proj.bias", 1, kv);
    }
    if (c->qk_norm) {
        layer->q_norm = place(l, i, "self_attn.q_norm.weight", 1, c->head_size);
        layer->k_norm = place(l, i, "self_attn.k_norm.weight", 1, c->head_size);
    }
    layer->o = place(l, i, "self_attn.o_proj.weight", c->hidden, q);
    layer->norm2 = place(l, i, "post_attention_layernorm.weight", 1, c->hidden);
    layer->gate_up = place(l, i, "mlp.gate_proj.weight", c->intermediate, c->hidden);
    place(l, i, "mlp.up_proj.weight", c->intermediate, c->hidden);
    layer->down = place(l, i, "mlp.down_proj.weight", c->hidden, c->intermediate);
}

static void place_all(dr_lm *lm) {
    layout l = {lm, 0, 0};
    const dr_lm_config *c = &lm->config;
    lm->embed = place(&l, -1, "model.embed_tokens.weight", c->vocab, c->hidden);
    for (int32_t i = 0; i < c->n_layers; i++) place_layer(&l, i);
    lm->final_norm = place(&l, -1, "model.norm.weight", 1, c->hidden);
    lm->head = c->tied_head ? lm->embed : place(&l, -1, "lm_head.weight", c->vocab, c->hidden);
    lm->n_params = l.at;
    lm->own = (dr_shard){0, l.at};
}

static void add_product(dr_lm *lm, dr_weight **w, int64_t at, int64_t rows, int64_t cols) {
    lm->products[lm->n_products++] = (lm_product){w, at, rows, cols};
}

static void list_products(dr_lm *lm) {
    const dr_lm_config *c = &lm->config;
    for (int32_t i = 0; i < c->n_layers; i++) {
        lm_layer *layer = &lm->layers[i];
        add_product(lm, &layer->w_qkv, layer->qkv, lm_qkv_width(c), c->hidden);
        add_product(lm, &layer->w_o, layer->o, c->hidden, (int64_t)c->n_heads * c->head_size);
        add_product(lm, &layer->w_gate_up, layer->gate_up, 2 * (int64_t)c->intermediate, c->hidden);
        add_product(lm, &layer->w_down, layer->down, c->hidden, c->intermediate);
    }
    add_product(lm, &lm->w_head, lm->head, c->vocab, c->hidden);
    if (!c->tied_head) add_product(lm, &lm->w_embed, lm->embed, c->vocab, c->hidden);
}

static dr_status create_weights(dr_lm *lm) {
    dr_backend *b = lm->backend;
    for (int32_t p = 0; p < lm->n_products; p++)
        DR_TRY(b->ops->weight_create(b, lm->products[p].rows, lm->products[p].cols, lm->products[p].w));
    if (lm->config.tied_head) lm->w_embed = lm->w_head;
    return DR_OK;
}

dr_status dr_lm_outline(dr_backend *backend, const dr_lm_config *config, dr_lm **out_lm) {
    const int64_t most_tensors = 14 * (int64_t)config->n_layers + 3;
    dr_lm *lm = NULL;
    DR_TRY(dr_lm_config_check(config, "model"));
    DR_TRY(dr_alloc(&lm, "model", 1, sizeof *lm));
    lm->backend = backend;
    lm->config = *config;
    lm->n_learners = 1;
    dr_status status;
    DR_TRY_GOTO(status, dr_alloc(&lm->layers, "layers", config->n_layers, sizeof *lm->layers), destroy_lm);
    DR_TRY_GOTO(status, dr_alloc(&lm->tensors, "tensor names", most_tensors, sizeof *lm->tensors),
                destroy_lm);
    DR_TRY_GOTO(status,
                dr_alloc(&lm->vectors_before, "tensor places", most_tensors, sizeof *lm->vectors_before),
                destroy_lm);
    DR_TRY_GOTO(status,
                dr_alloc(&lm->products, "matrices", 4 * (int64_t)config->n_layers + 2, sizeof *lm->products),
                destroy_lm);
    DR_TRY_GOTO(status,
                dr_alloc(&lm->frequencies, "rotary frequencies", config->head_size / 2, sizeof(float)),
                destroy_lm);
    dr_lm_rope_frequencies(config, lm->frequencies);
    place_all(lm);
    list_products(lm);
    *out_lm = lm;
    return DR_OK;
destroy_lm:
    dr_lm_destroy(lm);
    return status;
}

dr_status dr_lm_allocate(dr_lm *lm) {
    dr_backend *b = lm->backend;
    int64_t half = lm->config.head_size / 2;
    DR_TRY(dr_memory_create(b, &lm->params, "parameters", lm->own.end - lm->own.begin, sizeof(float)));
    if (lm->is_frozen || lm->n_learners > 1) DR_TRY(dr_lm_parts_create(lm));
    DR_TRY(dr_memory_create(b, &lm->inv_freq, "rotary frequencies", half, sizeof(float)));
    b->ops->copy_in(b, lm->inv_freq, lm->frequencies, (size_t)half * sizeof(float));
    return create_weights(lm);
}

// A draw takes two words of the tensor's stream, so a slice can start anywhere in it: the same values for
// any number of threads.
static void fill_normal(const dr_rng *stream, float std, float scale, int64_t n, int n_threads,
                        float *values) {
    enum { SLICE = 1 << 16 };
#pragma omp parallel for num_threads(n_threads) schedule(static) if (n > 4 * SLICE)
    for (int64_t first = 0; first < n; first += SLICE) {
        dr_rng rng = *stream;
        dr_rng_skip(&rng, 2 * (uint64_t)first);
        for (int64_t j = first; j < n && j < first + SLICE; j++)
            values[j] = std * (float)dr_rng_normal(&rng) * scale;
    }
}

// Normal with 0.02 at width 1024 and the same size of sums at any other; the residual stream's writers
// smaller by the root of their number (Radford et al., "Language Models are Unsupervised Multitask Learners",
// §2.3).
static void fill_tensor(const dr_lm *lm, int32_t i, uint64_t seed, int n_threads, float *values) {
    const dr_lm_tensor *t = &lm->tensors[i];
    int64_t n = t->rows * t->cols;
    float std = 0.02f * sqrtf(1024.0f / (float)lm->config.hidden);
    float output_scale = 1.0f / sqrtf(2.0f * (float)lm->config.n_layers);
    bool is_output = strstr(t->name, "o_proj") || strstr(t->name, "down_proj");
    bool is_norm = strstr(t->name, "norm.weight"), is_bias = strstr(t->name, ".bias");
    dr_rng stream = dr_rng_make(seed, 1000 + (uint64_t)i);
    if (is_norm || is_bias)
        for (int64_t j = 0; j < n; j++) values[j] = is_norm ? 1.0f : 0.0f;
    else
        fill_normal(&stream, std, is_output ? output_scale : 1.0f, n, n_threads, values);
}

int dr_lm_host_threads(const dr_lm *lm) {
    bool is_host = lm->backend->ops->host_view(lm->backend, lm->inv_freq) != NULL;
    return is_host ? lm->backend->n_threads : omp_get_max_threads();
}

dr_status dr_lm_create(dr_backend *backend, const dr_lm_config *config, uint64_t seed, dr_lm **out_lm) {
    dr_lm *lm = NULL;
    dr_status status;
    DR_TRY(dr_lm_outline(backend, config, &lm));
    DR_TRY_GOTO(status, dr_lm_allocate(lm), destroy_lm);
    int n_threads = dr_lm_host_threads(lm);
    for (int32_t i = 0; i < lm->n_tensors; i++) {
        float *memory = lm->params + lm->tensors[i].offset, *values;
        int64_t n = lm->tensors[i].rows * lm->tensors[i].cols;
        DR_TRY_GOTO(status, dr_host_open(backend, memory, n, DR_HOST_WRITES, &values), destroy_lm);
        fill_tensor(lm, i, seed, n_threads, values);
        dr_host_close(backend, memory, n, DR_HOST_WRITES, values);
    }
    DR_TRY_GOTO(status, dr_lm_weights_changed(lm), destroy_lm);
    *out_lm = lm;
    return DR_OK;
destroy_lm:
    dr_lm_destroy(lm);
    return status;
}

void dr_lm_destroy(dr_lm *lm) {
    if (!lm) return;
    dr_backend *b = lm->backend;
    for (int32_t p = 0; p < lm->n_products; p++) b->ops->weight_destroy(b, *lm->products[p].w);
    dr_free(lm->products);
    b->ops->memory_destroy(b, lm->params);
    b->ops->memory_destroy(b, lm->vectors);
    dr_lm_passing_destroy(lm);
    dr_free(lm->layers);
    dr_free(lm->tensors);
    dr_free(lm->vectors_before);
    b->ops->memory_destroy(b, lm->inv_freq);
    b->ops->memory_destroy(b, lm->scratch);
    dr_lm_numbers_destroy(b, &lm->numbers);
    dr_free(lm->frequencies);
    dr_free(lm);
}

void dr_lm_numbers_destroy(dr_backend *b, lm_numbers *numbers) {
    b->ops->memory_destroy(b, numbers->ids);
    b->ops->memory_destroy(b, numbers->positions);
    b->ops->memory_destroy(b, numbers->rows);
    dr_free(numbers->host_ids);
    dr_free(numbers->host_positions);
    dr_free(numbers->host_rows);
    *numbers = (lm_numbers){0};
}

dr_status dr_lm_numbers_create(dr_backend *b, int64_t capacity, lm_numbers *out) {
    lm_numbers n = {.capacity = capacity};
    dr_status status;
    DR_TRY_GOTO(status, dr_memory_create(b, &n.ids, "token ids", capacity, sizeof *n.ids), destroy);
    DR_TRY_GOTO(status, dr_memory_create(b, &n.positions, "positions", capacity, sizeof *n.ids), destroy);
    DR_TRY_GOTO(status, dr_memory_create(b, &n.rows, "row numbers", capacity, sizeof *n.ids), destroy);
    DR_TRY_GOTO(status, dr_alloc(&n.host_ids, "token ids", capacity, sizeof *n.ids), destroy);
    DR_TRY_GOTO(status, dr_alloc(&n.host_positions, "positions", capacity, sizeof *n.ids), destroy);
    DR_TRY_GOTO(status, dr_alloc(&n.host_rows, "row numbers", capacity, sizeof *n.ids), destroy);
    *out = n;
    return DR_OK;
destroy:
    dr_lm_numbers_destroy(b, &n);
    return status;
}

int64_t dr_lm_numbers_memory(int64_t capacity) {
    return capacity * (int64_t)(6 * sizeof(int32_t));
}

int64_t dr_lm_products_memory(const dr_lm *lm) {
    dr_backend *b = lm->backend;
    int64_t bytes = 0;
    for (int32_t p = 0; p < lm->n_products; p++)
        bytes += b->ops->weight_memory(b, lm->products[p].rows, lm->products[p].cols);
    return bytes;
}

int64_t dr_lm_row_macs(const dr_lm *lm) {
    int64_t macs = 0;
    for (int32_t p = 0; p < lm->n_products; p++) {
        const lm_product *product = &lm->products[p];
        bool is_table = product->w == &lm->w_embed; // where it is not the head's too
        macs += is_table ? 0 : product->rows * product->cols;
    }
    return macs;
}

dr_pass_shape dr_lm_pass_shape(const dr_lm *lm, int64_t T) {
    const dr_lm_config *c = &lm->config;
    int64_t heads = c->qk_norm ? (int64_t)c->n_heads * c->head_size : lm_qkv_width(c);
    dr_pass_shape shape = {.T = T,
                           .n_dy = heads > c->hidden ? heads : c->hidden,
                           .row_macs = dr_lm_row_macs(lm),
                           .V = c->vocab,
                           .H = c->n_heads,
                           .G = c->n_kv_heads,
                           .d = c->head_size};
    for (int32_t p = 0; p < lm->n_products; p++) {
        const lm_product *product = &lm->products[p];
        if (product->w == &lm->w_head || product->w == &lm->w_embed) continue;
        if (product->rows > shape.n_out) shape.n_out = product->rows;
        if (product->cols > shape.n_in) shape.n_in = product->cols;
    }
    return shape;
}

dr_status dr_lm_weights_changed(dr_lm *lm) {
    dr_backend *b = lm->backend;
    DR_CHECK(!lm->is_frozen, DR_ERR_UNSUPPORTED, "a model that was loaded for reading cannot be changed");
    for (int32_t p = 0; p < lm->n_products && !lm->vectors; p++) { // else products have taken what changed
        DR_TRY(b->ops->weight_pack(b, *lm->products[p].w, lm->params + lm->products[p].at));
        DR_TRY(dr_alive_work());
    }
    lm->version++;
    return DR_OK;
}

const dr_lm_config *dr_lm_config_of(const dr_lm *lm) {
    return &lm->config;
}

dr_backend *dr_lm_backend(dr_lm *lm) {
    return lm->backend;
}

void dr_lm_set_special_ids(dr_lm *lm, int32_t bos, int32_t eos, int32_t pad) {
    lm->config.bos_id = bos;
    lm->config.eos_id = eos;
    lm->config.pad_id = pad;
}

int64_t dr_lm_n_params(const dr_lm *lm) {
    return lm->n_params;
}

float *dr_lm_params(dr_lm *lm) {
    return lm->vectors ? NULL : lm->params;
}

int32_t dr_lm_tensors(const dr_lm *lm, const dr_lm_tensor **out_list) {
    *out_list = lm->tensors;
    return lm->n_tensors;
}

uint64_t dr_lm_weight_version(const dr_lm *lm) {
    return lm->version;
}
