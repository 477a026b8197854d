// Shared inside the retrieval model: flat parameters with views, and one batch's pass with its activations.
// Legend: B requests, L history length, D hidden, P = B·L rows, X text dimension, E experts, N items + 1, K =
// L/2 + 1.
#ifndef DR_CORE_REC_TRM_INTERNAL_H
#define DR_CORE_REC_TRM_INTERNAL_H

#include "core/base/rng.h"
#include "core/rec/trm.h"

enum { TRM_MAX_LAYERS = 8, TRM_MAX_HISTORY = 64, TRM_MAX_EXPERTS = 64, TRM_MAX_TENSORS = 256 };

typedef struct trm_layer {
    int64_t qkv, qkv_bias, out, out_bias, norm1, norm1_bias, up, up_bias, down, down_bias, norm2, norm2_bias;
    dr_weight *w_qkv, *w_out, *w_up, *w_down;
} trm_layer;

typedef struct trm_tensor {
    char name[96];
    int64_t offset;
    int32_t n_dims;
    int64_t shape[4];
} trm_tensor;

struct dr_trm {
    dr_backend *backend;
    dr_trm_config config;
    dr_text_encoder *encoder; // NULL: external
    float *text;              // (N, X) frozen
    int64_t n_params;
    float *params; // everything that is trained
    trm_tensor tensors[TRM_MAX_TENSORS];
    int32_t n_tensors;
    // offsets in params
    int64_t items, positions, filter, item_gate, item_gate_bias, fusion_gate, fusion_gate_bias, experts, gate,
        noise, norm, norm_bias, out_norm, out_norm_bias;
    trm_layer layers[TRM_MAX_LAYERS];
    dr_weight *w_experts;
    // serving
    float *unit_items; // (N, D) normalised rows
    float *unit_text;  // (N, X)
    float *adapted;    // (N, D) adaptor outputs of the catalogue
    struct trm_batch *batch;
    float dft[2 * (TRM_MAX_HISTORY / 2 + 1) * TRM_MAX_HISTORY];     // (2K, L): real rows, then imaginary
    float inverse[TRM_MAX_HISTORY * 2 * (TRM_MAX_HISTORY / 2 + 1)]; // (L, 2K)
};

// Adaptor activations of R rows.
typedef struct trm_adaptor {
    int64_t capacity, rows;
    float *x, *x_dropped;  // (R, X); equal pointers without dropout
    float *z;              // (R, E·D)
    float *gate;           // (R, E) softmax
    float *noise, *spread; // (R, E): the normal draw and x·Wn (training only)
    float *y;              // (R, D)
    float *dz;             // (R, E·D)
} trm_adaptor;

typedef struct trm_layer_pass {
    float *x;              // (P, D) input
    float *qkv;            // (P, 3D)
    float *weights;        // (B, heads, Lq, L) attention
    float *mixed;          // (Q, D)
    float *projected;      // (Q, D) after the output projection and dropout, plus the residual
    float *mean1, *inv1;   // (Q)
    float *middle;         // (Q, D) after the first LayerNorm
    float *up, *act;       // (Q, inner)
    float *summed;         // (Q, D) before the second LayerNorm
    float *mean2, *inv2;   // (Q)
    uint32_t drop1, drop2; // keys of the dropout masks
    int64_t rows;          // Q: P, or B in the last layer, where only the last item's output is needed
} trm_layer_pass;

typedef struct trm_batch {
    int64_t capacity, B;
    const dr_trm_query *queries;
    int32_t *ids, *lengths; // (B, L) right-padded, (B)
    float *x_id, *x_text;   // (P, D)
    float *f_id, *f_text;   // (B, 2K, D)
    float *a, *b;           // (P, D)
    float *gate_a, *gate_b; // (P)
    float *h, *normed;      // (P, D): before and after LayerNorm
    float *mean, *inv;      // (P)
    uint32_t drop;
    trm_layer_pass layers[TRM_MAX_LAYERS];
    float *last;               // (B, D) output of the last layer
    float *query, *fused;      // (B, D): o + A(text), and u
    float *out_mean, *out_inv; // (B)
    // gradients
    float *d1, *d2, *d3, *d4; // (P, max(3D, inner))
} trm_batch;

dr_status dr_trm_batch_create(const dr_trm *trm, int64_t capacity, bool trains, trm_batch **out);
void dr_trm_batch_destroy(trm_batch *batch);
dr_status dr_trm_adaptor_create(const dr_trm *trm, int64_t capacity, bool trains, trm_adaptor *out);
void dr_trm_adaptor_reset(trm_adaptor *adaptor);

// y = A(x) for rows already in adaptor->x. rng NULL: no dropout, no noise.
dr_status dr_trm_adapt(dr_trm *trm, trm_adaptor *adaptor, int64_t rows, dr_rng *rng);
// Gradient of the adaptor's weights from dy (R, D).
dr_status dr_trm_adapt_backward(dr_trm *trm, trm_adaptor *adaptor, const float *dy, float *gradient);

// Checks and lays out requests, gathers x_id; x_text rows come from `adapted` (row per item, or per slot
// through `slots`).
dr_status dr_trm_batch_fill(const dr_trm *trm, trm_batch *batch, const dr_trm_query *queries, int64_t B,
                            const float *adapted, const int32_t *slots);
// From x_id, x_text to the user vectors before normalisation in batch->fused; query_text (B, D) adapted
// preference or NULL. rng NULL: no dropout.
dr_status dr_trm_batch_forward(dr_trm *trm, trm_batch *batch, const float *query_text, dr_rng *rng);
// From dfused (B, D): parameter gradients, dx_text (P, D) and dquery (B, D; same buffer rules) for the
// adaptor.
dr_status dr_trm_batch_backward(dr_trm *trm, trm_batch *batch, const float *dfused, float *gradient,
                                float *dx_text, float *dquery);

// The object without weights; then either loaded or drawn.
dr_status dr_trm_allocate(dr_backend *backend, const dr_trm_config *config, dr_trm **out);
dr_status dr_trm_weights_changed(dr_trm *trm); // packs
dr_status dr_trm_prepare_serving(dr_trm *trm); // packs, normalises, adapts the catalogue

#endif
