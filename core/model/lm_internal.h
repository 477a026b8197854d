// Shared inside the model room: where each weight of a layer stands in the flat buffer, and the packed forms
// the linear ops read.
#ifndef DR_CORE_MODEL_LM_INTERNAL_H
#define DR_CORE_MODEL_LM_INTERNAL_H

#include "core/model/lm.h"

// Offsets in floats. q, k, v stand one after another (one merged product), so do their biases, and gate and
// up.
typedef struct lm_layer {
    int64_t norm1, qkv, qkv_bias /* -1: none */, o, norm2, gate_up, down;
    dr_weight *w_qkv, *w_o, *w_gate_up, *w_down;
} lm_layer;

struct dr_lm {
    dr_backend *backend;
    dr_lm_config config;
    int64_t n_params;
    float *params;
    dr_lm_tensor *tensors;
    int32_t n_tensors;
    lm_layer *layers;
    int64_t embed, final_norm, head; // head == embed when tied
    dr_weight *w_head;
    float *inv_freq; // [head_size / 2]
    uint64_t version;
    // scratch of the cached pass, grow-only
    float *scratch;
    int64_t scratch_count;
    int32_t *ids, *positions;
    int64_t ids_count;
};

// Width of the merged q, k, v row: (H + 2G) · d.
static inline int64_t lm_qkv_width(const dr_lm_config *c) {
    return (int64_t)(c->n_heads + 2 * c->n_kv_heads) * c->head_size;
}

// config.json and back, generation_config.json beside it (lm_config.c).
dr_status dr_lm_config_read(const char *dir, dr_lm_config *out);
dr_status dr_lm_config_write(const dr_lm_config *config, const char *dir);
dr_status dr_lm_config_check(const dr_lm_config *config, const char *where);

#endif
