// Shared inside the retrieval model: flat parameters with views, and one batch's pass with its activations.
// Legend: B requests, L history length, D hidden, P = B·L rows, X text dimension, E experts, N items + 1, K =
// L/2 + 1.
#ifndef DR_CORE_REC_TRM_INTERNAL_H
#define DR_CORE_REC_TRM_INTERNAL_H

#include "core/base/alloc.h"
#include "core/base/rng.h"
#include "core/rec/trm.h"
#include "core/store/safetensors.h"

enum {
    TRM_MAX_LAYERS = 8,
    TRM_MAX_HISTORY = DR_FUSION_POSITIONS,
    TRM_MAX_HIDDEN = DR_FUSION_COLUMNS,
    TRM_MAX_EXPERTS = DR_MIXTURE_MOST,
    TRM_MAX_TENSORS = 256
};

static inline size_t trm_bytes(int64_t n_floats) {
    return (size_t)n_floats * sizeof(float);
}

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

// Adaptor activations of R rows, backend memory.
typedef struct trm_adaptor {
    dr_backend *backend;
    int64_t capacity, rows;
    float *x, *x_dropped;  // (R, X); equal pointers without dropout
    float *z;              // (R, E·D)
    float *gate;           // (R, E) softmax
    float *noise, *spread; // (R, E): the normal draw and x·Wn (training only)
    float *y;              // (R, D)
    float *dz;             // (R, E·D)
    bool is_noisy;         // the last pass: with noise
} trm_adaptor;

// Backend memory that grows to what is asked for.
typedef struct trm_grown {
    void *data;
    int64_t bytes;
} trm_grown;

// What serving computes in, backend memory. All retrievals share it: one reads it before the next one writes
// it, because a backend's ops run in order.
typedef struct trm_serving {
    int64_t rows; // requests of one pass
    struct trm_batch *batch;
    trm_adaptor adaptor;
    float *unit, *scores;  // (rows, D), (rows, N)
    trm_grown places;      // int64_t: of scores that are left out
    trm_grown hits;        // dr_hit (rows, k)
    trm_grown embeddings;  // (most, X) of a retrieval's preferences, where the encoder is on the backend
    dr_trm_retrieval *own; // of the calls that wait
} trm_serving;

// Backend memory unless said.
struct dr_trm {
    dr_backend *backend;
    dr_trm_config config;
    dr_text_encoder *encoder; // NULL: external
    float *text;              // (N, X) frozen, host memory
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
    float *unit_items;    // (N, D) normalised rows
    float *host_items;    // the same, host memory: unit_items itself where the host can use it
    float *unit_text;     // (N, X), host memory
    float *adapted;       // (N, D) adaptor outputs of the catalogue
    float *dft, *inverse; // (2K, L): real rows, then imaginary; (L, 2K)
    trm_serving serving;
    int64_t queued; // of an outline: what its encoder's `queue` would want of a transfer for a text; 0: none
};

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

// What a pass reads of its requests, in one block: backend memory, or the host's before it goes there.
typedef struct trm_inputs {
    int32_t *ids;     // (B, L) right-padded
    int32_t *lengths; // (B)
    int32_t *last;    // (B) row of each request's last item
} trm_inputs;

static inline int64_t trm_inputs_size(int64_t B, int64_t L) { // elements of the block
    return B * (L + 2);
}

static inline trm_inputs trm_inputs_of(int32_t *block, int64_t B, int64_t L) {
    return (trm_inputs){block, block + B * L, block + B * (L + 1)};
}

typedef struct trm_batch {
    dr_backend *backend;
    int64_t capacity, B;
    int32_t *inputs; // the block of `in`
    trm_inputs in;
    float *x_id, *x_text;   // (P, D)
    float *f_id, *f_text;   // (B, 2K, D)
    float *a, *b;           // (P, D)
    float *gate_a, *gate_b; // (P)
    float *h, *normed;      // (P, D): before and after LayerNorm
    float *mean, *inv;      // (P)
    uint32_t drop;
    trm_layer_pass layers[TRM_MAX_LAYERS];
    float *residual;           // (B, D) the last items' inputs of the last layer
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
// Bytes of the backend that the two take.
int64_t dr_trm_batch_memory(const dr_trm_config *config, int64_t capacity, bool trains);
int64_t dr_trm_adaptor_memory(const dr_trm_config *config, int64_t capacity, bool trains);

// y = A(x) for rows already in adaptor->x. rng NULL: no dropout, no noise.
dr_status dr_trm_adapt(dr_trm *trm, trm_adaptor *adaptor, int64_t rows, dr_rng *rng);
// Gradient of the adaptor's weights from dy (R, D).
dr_status dr_trm_adapt_backward(dr_trm *trm, trm_adaptor *adaptor, const float *dy, float *gradient);

// Checks requests and writes what a pass reads of them to host memory.
dr_status dr_trm_lay_out(const dr_trm *trm, const dr_trm_query *queries, int64_t B, trm_inputs out);
// Begins a pass of B requests whose block lies in batch->inputs: gathers x_id, and x_text from `adapted` (row
// per item, or those of `rows` (B, L), backend memory).
void dr_trm_batch_gather(const dr_trm *trm, trm_batch *batch, int64_t B, const float *adapted,
                         const int32_t *rows);
// From x_id, x_text to the user vectors before normalisation in batch->fused; query_text (B, D) adapted
// preference or NULL. rng NULL: no dropout.
dr_status dr_trm_batch_forward(dr_trm *trm, trm_batch *batch, const float *query_text, dr_rng *rng);
// From dfused (B, D): parameter gradients, dx_text (P, D) and dquery (B, D; same buffer rules) for the
// adaptor.
dr_status dr_trm_batch_backward(dr_trm *trm, trm_batch *batch, const float *dfused, float *gradient,
                                float *dx_text, float *dquery);

// One training batch of at most `capacity` requests (trm_loss.c). The model's texts are complete before.
typedef struct trm_trainer trm_trainer;
dr_status dr_trm_trainer_create(dr_trm *trm, int64_t capacity, trm_trainer **out);
void dr_trm_trainer_destroy(trm_trainer *trainer); // NULL is fine
// Bytes that one takes, of the backend and on the host, the catalogue's texts left out; rows that its ops
// see.
void dr_trm_trainer_memory(const dr_trm_config *config, int64_t capacity, int64_t *out_backend,
                           int64_t *out_host);
int64_t dr_trm_trainer_rows(const dr_trm_config *config, int64_t capacity);
// Mean loss of a batch; `gradient` (n_params, backend memory) is overwritten. rng NULL: no dropout, no noise.
// Waits for the backend.
dr_status dr_trm_trainer_gradient(trm_trainer *trainer, const dr_trm_query *queries, const int32_t *targets,
                                  int64_t B, dr_rng *rng, double *out_loss, float *gradient);

// The object without weights; then either loaded or drawn.
// encoder: NULL for external texts; owned by the model when it is made, by the caller when not.
dr_status dr_trm_allocate(dr_backend *backend, const dr_trm_config *config, dr_text_encoder *encoder,
                          dr_trm **out);

// A model's sizes without its memory: config, n_params, tensors and serving.rows are what dr_trm_allocate
// gives them, all else is zero; dr_free.
dr_status dr_trm_outline(dr_backend *backend, const dr_trm_config *config, dr_trm **out);
// What a folder says of its model, whose tensors are in `file` at `path`.
dr_status dr_trm_read_sizes(const dr_safetensors *file, const char *path, const char *dir,
                            dr_trm_config *out);
// The largest shapes that the ops of passes of B requests see; rows of its largest product.
dr_pass_shape dr_trm_pass_shape(const dr_trm_config *config, int64_t B, int64_t rows);
// Training targets of a data set (trm_train.c).
int64_t dr_trm_count_samples(const dr_dataset *dataset, int32_t leave_last);

// The encoder that a configuration names, NULL for external texts (trm_text.c).
dr_status dr_trm_open_encoder(dr_backend *backend, const dr_trm_config *config, dr_text_encoder **out);
// What it will take; text_dim of a fresh model's configuration becomes its.
dr_status dr_trm_encoder_memory(dr_backend *backend, dr_trm_config *config, dr_text_encoder_memory *out);
// What it is goes into the configuration of a fresh model: whoever loads it must find the same one.
dr_status dr_trm_note_encoder(const dr_text_encoder *encoder, dr_trm_config *config);
// Where the encoder of a model in folder `dir` is goes into `config`; as dr_trm_load_with.
dr_status dr_trm_locate_encoder(const char *dir, const char *encoder_dir, dr_trm_config *config);
// That encoder.
dr_status dr_trm_load_encoder(dr_backend *backend, const char *dir, const char *encoder_dir,
                              dr_trm_config *config, dr_text_encoder **out);
dr_status dr_trm_encode_catalogue(dr_trm *trm, const dr_dataset *d); // title and categories of every item
dr_status dr_trm_weights_changed(dr_trm *trm);                       // packs
int64_t dr_trm_packed_memory(const dr_trm *trm);                     // bytes of the packed weights
dr_status dr_trm_prepare_serving(dr_trm *trm); // packs, normalises, adapts the catalogue
dr_status dr_trm_serving_create(dr_trm *trm);
int64_t dr_trm_serving_rows(const dr_trm_config *config);   // requests of one pass
int64_t dr_trm_serving_memory(const dr_trm_config *config); // bytes of the backend, retrievals left out
void dr_trm_serving_destroy(dr_trm *trm);                   // also of a part of it

#endif
