// Shared inside the model room: where each weight of a layer stands in the flat buffer, and the packed forms
// the linear ops read.
#ifndef DR_CORE_MODEL_LM_INTERNAL_H
#define DR_CORE_MODEL_LM_INTERNAL_H

#include <string.h>

#include "core/model/lm_shard.h"

// Offsets in floats, -1: none. q, k, v stand one after another, so do their biases, and gate and up: each of
// the two is one product.
typedef struct lm_layer {
    int64_t norm1, qkv, qkv_bias, q_norm, k_norm, o, norm2, gate_up, down;
    dr_weight *w_qkv, *w_o, *w_gate_up, *w_down;
} lm_layer;

// A weight matrix and where its values stand in the flat buffer: one tensor there, or several in a row.
typedef struct lm_product {
    dr_weight **w; // in the layer or the model
    int64_t at, rows, cols;
} lm_product;

// Ids, positions and row numbers of one pass, written on the host and sent to the backend; [capacity] each.
typedef struct lm_numbers {
    int32_t *ids, *positions, *rows;                // backend memory
    int32_t *host_ids, *host_positions, *host_rows; // to be written before they are sent
    int64_t capacity;
} lm_numbers;

struct dr_lm {
    dr_backend *backend;
    dr_lm_config config;
    int64_t n_params;
    dr_shard own;   // the parameters whose fp32 values are here: all, a learner's shard, or none
    bool is_frozen; // none
    int n_learners; // that share them out; 1: nothing is shared
    float *params;  // [own], backend memory
    // Where own is not everything (lm_shard.c); else NULL.
    float *vectors;    // all of them, one behind the other, backend memory
    float *passing;    // fp32 values on their way to products, backend memory
    uint16_t *rounded; // [n_rounded] rounded ones, backend memory: [n_learners, piece]
    int64_t n_rounded, piece;
    dr_lm_tensor *tensors;
    int64_t *vectors_before; // [n_tensors] values of vectors that stand before each tensor
    int32_t n_tensors;
    lm_layer *layers;
    int64_t embed, final_norm, head; // head == embed when tied
    lm_product *products;
    int32_t n_products;
    dr_weight *w_head, *w_embed;   // the same one when tied
    float *inv_freq, *frequencies; // [head_size / 2] each: backend memory, and the same for the host
    uint64_t version;
    // scratch of the cached pass, grow-only
    float *scratch; // backend memory
    int64_t scratch_count;
    lm_numbers numbers;
};

static inline bool dr_lm_is_vector(const dr_lm_tensor *tensor) {
    return strstr(tensor->name, "norm.weight") || strstr(tensor->name, ".bias");
}

// Width of the merged q, k, v row: (H + 2G) · d.
static inline int64_t lm_qkv_width(const dr_lm_config *c) {
    return (int64_t)(c->n_heads + 2 * c->n_kv_heads) * c->head_size;
}

// Where q, k and v stand in rows of (H + 2G) d floats, their stride.
typedef struct lm_qkv {
    float *q, *k, *v; // (T, H, d), (T, G, d), (T, G, d)
    int64_t stride;
} lm_qkv;
lm_qkv dr_lm_qkv_at(const dr_lm_config *config, float *base);
// Width of queries and keys as their norms read them, (H + G) d; as many inverse sizes as heads.
static inline int64_t lm_qk_width(const dr_lm_config *c) {
    return (int64_t)(c->n_heads + c->n_kv_heads) * c->head_size;
}
// x (T, D) -> projections, norms by head where the model has them, rotation, into qkv. With norms, raw
// (T (H + G) d) keeps what they read and inv (T (H + G)) their inverse sizes for the backward; both NULL: not
// kept. Row-exact; the bits do not depend on whether they are kept. On b, which has the model's weights.
dr_status dr_lm_qkv_forward(const dr_lm *lm, dr_backend *b, const lm_layer *layer, const float *x,
                            const int32_t *positions, int64_t T, float *qkv, float *raw, float *inv);
// dqkv, laid out like qkv, holds the gradient after rotation and is used up. dx (T, D) is overwritten,
// gradient [n_params] +=. raw and inv matter with norms only.
dr_status dr_lm_qkv_backward(dr_lm *lm, const lm_layer *layer, const float *x, const int32_t *positions,
                             int64_t T, float *dqkv, const float *raw, const float *inv, float *dx,
                             float *gradient);

// Floats of memory that n values of gate and up take, n even.
static inline int64_t lm_gated_floats(const dr_lm *lm, int64_t n) {
    return n * (int64_t)dr_gated_bytes(lm->backend) / (int64_t)sizeof(float);
}

// Multiply-adds of a row of a pass, without attention.
int64_t dr_lm_row_macs(const dr_lm *lm);

dr_status dr_lm_numbers_create(dr_backend *backend, int64_t capacity, lm_numbers *out);
int64_t dr_lm_numbers_memory(int64_t capacity); // bytes
void dr_lm_numbers_destroy(dr_backend *backend, lm_numbers *numbers);
static inline void lm_send(dr_backend *b, int32_t *to_backend, const int32_t *from_host, int64_t n) {
    b->ops->copy_in(b, to_backend, from_host, (size_t)n * sizeof *from_host);
}

// inv_freq [head_size / 2] of the rotary embedding (lm_rope.c).
void dr_lm_rope_frequencies(const dr_lm_config *config, float *out_inv_freq);

// Memory for the weights of an outline, zeroed, and their packed forms (lm.c); own, is_frozen and n_learners
// say what it is for.
dr_status dr_lm_allocate(dr_lm *lm);
// The part of it for a model whose own is not everything, and the end of what only dr_lm_put and dr_lm_share
// use (lm_shard.c).
dr_status dr_lm_parts_create(dr_lm *lm);
void dr_lm_passing_destroy(dr_lm *lm);
// Whether a group of n shares the fp32 values out.
bool dr_lm_is_shared(const dr_backend *b, int n_learners);
// Values of vectors among the flat parameters before `at`.
int64_t dr_lm_vectors_before(const dr_lm *lm, int64_t at);
// Where the passes find the vector, or the vectors in a row, that begin at `at` of the flat parameters;
// backend memory.
const float *dr_lm_vector(const dr_lm *lm, int64_t at);
// Threads that make or read values of weights on the host: the backend's, and all where it is a device, whose
// host idles (lm.c).
int dr_lm_host_threads(const dr_lm *lm);

// config.json and back, generation_config.json beside it (lm_config.c).
dr_status dr_lm_config_read(const char *dir, dr_lm_config *out);
dr_status dr_lm_config_write(const dr_lm_config *config, dr_dtype dtype, const char *dir);
dr_status dr_lm_config_check(const dr_lm_config *config, const char *where);

#endif
