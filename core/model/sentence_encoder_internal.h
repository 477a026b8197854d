// Shared inside the sentence encoder: shapes, where weights stand in the flat buffer, what a pass computes
// in. Legend: T = rows (tokens) of a pass, D = hidden, I = inner.
#ifndef DR_CORE_MODEL_SENTENCE_ENCODER_INTERNAL_H
#define DR_CORE_MODEL_SENTENCE_ENCODER_INTERNAL_H

#include "core/base/alloc.h"
#include "core/model/sentence_encoder.h"
#include "core/text/tokenizer.h"

typedef struct sentence_config {
    int32_t vocab, hidden, n_layers, n_heads, inner, n_positions, n_types;
    float eps;
    dr_pooling pooling;
    int32_t max_tokens;           // of a text
    bool says_max_tokens, lowers; // sentence_bert_config.json: it has a limit; texts are made lower case
} sentence_config;

// Offsets in floats; query, key and value stand one after another, so do their biases.
typedef struct sentence_layer {
    int64_t qkv, qkv_bias, out, out_bias, norm1, norm1_bias, up, up_bias, down, down_bias, norm2, norm2_bias;
    dr_weight *w_qkv, *w_out, *w_up, *w_down;
} sentence_layer;

typedef struct sentence_tensor {
    char name[96];
    int64_t offset, rows, cols; // rows 0: a vector
} sentence_tensor;

typedef struct sentence_encoder {
    dr_backend *backend;
    sentence_config config;
    dr_tokenizer *tokenizer;
    sentence_tensor *tensors;
    int32_t n_tensors;
    sentence_layer *layers;
    int64_t n_params, words, positions, norm, norm_bias;
    float *params; // backend memory; the row of token type 0 is added to every position's
    // a pass
    int64_t capacity;           // rows of a pass, and texts
    float *x, *y, *wide, *side; // (T, D) twice, (T, max(3D, I)), (T, max(D, I))
    float *mean, *inv_std;      // (T): what LayerNorm keeps, read by nobody
    float *pooled, *unit;       // (texts, D)
    int32_t *ids, *places;      // (T): tokens and their positions
    // the host's side of it
    int32_t *host_ids, *host_places, *ends; // (T), (T), (texts + 1)
    int64_t n_rows, n_texts;
    int32_t *text_ids; // of the text at hand, grown
    int64_t n_text_ids, text_capacity;
} sentence_encoder;

// Ids and positions of a pass's texts on the host.
typedef struct sentence_tokens {
    int32_t *ids, *places;
    dr_transfer *transfer; // that they stand in; NULL: they are copied before anything goes on
} sentence_tokens;

// config.json and what sentence-transformers puts beside it, into zeros. out_instruction: a new string.
dr_status dr_sentence_config_read(const char *dir, sentence_config *out, char **out_instruction);
// Lays out tensors and layers of s->config; no weights yet.
dr_status dr_sentence_outline(sentence_encoder *s);
// Weights into s->params and their packed forms. digest [20]: of weights, shapes and tokenizer.json.
dr_status dr_sentence_weights_read(sentence_encoder *s, const char *dir, char *out_digest);

#endif
