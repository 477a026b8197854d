// The preference-aware retrieval model (TRM) of DeepRec (arXiv 2505.16810, §3.2): an id embedding and a
// mixture-of-experts text adaptor, frequency-domain fusion over the last L items, a small bidirectional
// transformer, and a query fusion with the preference text. Score = cosine between the user vector and the
// item embedding.
#ifndef DR_CORE_REC_TRM_H
#define DR_CORE_REC_TRM_H

#include <stdbool.h>
#include <stdint.h>

#include "core/compute/backend.h"
#include "core/store/dataset.h"
#include "core/text/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_trm_config {
    int32_t n_items, hidden /*128*/, text_dim /*1024*/, max_history /*20*/, n_layers /*2*/, n_heads /*2*/,
        inner /*512*/, n_experts /*8*/;
    float dropout /*0.5*/, adaptor_dropout /*0.2*/, layernorm_eps /*1e-12*/, temperature /*0.07*/;
    // "hashed-ngram", the folder of a sentence encoder, or "external" when the text vectors came from
    // elsewhere
    char text_encoder[1024];
    char text_digest[20];            // the folder's, of what its embeddings depend on; "": not said
    char query_instruction[512];     // in front of preference texts; "auto": the encoder's own
    int32_t max_text_tokens /*256*/; // of a text, for a folder
} dr_trm_config;

typedef struct dr_trm dr_trm;

// A folder with config.json and model.safetensors under the authors' tensor names. The model computes on
// `backend`, which it borrows, in the order of its ops. A sentence encoder is on the same backend;
// DR_ERR_ARGUMENT when its folder is not there, or holds another one than the model was trained with.
dr_status dr_trm_load(dr_backend *backend, const char *dir, dr_trm **out_trm);
// The same where the sentence encoder's folder is elsewhere by now; "": where it was.
dr_status dr_trm_load_with(dr_backend *backend, const char *dir, const char *encoder_dir, dr_trm **out_trm);
// What loading a model takes, in bytes, its encoder included; beside it are only dr_trm_retrieval's own.
typedef struct dr_trm_memory {
    int64_t backend;
    int64_t
        host; // beside a backend whose memory is not the host's, copies of the weights for a moment included
} dr_trm_memory;
// The model of a folder without its memory, for dr_trm_config_of, dr_trm_retrieval_memory and dr_trm_destroy
// alone. Errors are those of dr_trm_load_with, but for what only weights show.
dr_status dr_trm_outline_of(dr_backend *backend, const char *dir, const char *encoder_dir,
                            dr_trm **out_outline, dr_trm_memory *out_memory);
dr_status dr_trm_save(const dr_trm *trm, const char *dir);
void dr_trm_destroy(dr_trm *trm);
const dr_trm_config *dr_trm_config_of(const dr_trm *trm);
// The encoder that the preference texts go through; NULL when the TRM's text vectors are external. Owned by
// the TRM.
const dr_text_encoder *dr_trm_text_encoder(const dr_trm *trm);
// L2-normalised rows: item vectors [n_items + 1, hidden] and text vectors [n_items + 1, text_dim]; row 0 is
// zero. Host.
const float *dr_trm_item_vectors(const dr_trm *trm);
const float *dr_trm_text_vectors(const dr_trm *trm);

// One request: the last max_history items of `history` count; text [text_dim] is the encoded preference or
// NULL.
typedef struct dr_trm_query {
    const int32_t *history;
    int32_t n_history;
    const float *text;
} dr_trm_query;

// Scores [n, n_items + 1]; column 0 (padding) is -inf. Row-exact. DR_ERR_RANGE: an item outside 1 … n_items,
// empty history.
dr_status dr_trm_score(dr_trm *trm, const dr_trm_query *queries, int64_t n, float *out_scores);
// The k best of each, best first; equal scores go to the smaller id; items of the history left out when
// asked. out_hits [n, k], k at most DR_TOP_MOST. DR_ERR_RANGE if fewer than k items remain.
dr_status dr_trm_top_k(dr_trm *trm, const dr_trm_query *queries, int64_t n, int32_t k, bool exclude_history,
                       dr_hit *out_hits);

// dr_trm_top_k in two parts, so that the host goes on while a device computes: at most `most` requests at a
// time. Several retrievals of a model may be under way; they are done in the order in which they were begun.
typedef struct dr_trm_retrieval dr_trm_retrieval;
dr_status dr_trm_retrieval_create(dr_trm *trm, int64_t most, int32_t k, dr_trm_retrieval **out_retrieval);
// Bytes that it takes, where no history is longer than `longest` (0: histories are not left out): on the
// host, and of the backend, which all retrievals of a model share.
void dr_trm_retrieval_memory(const dr_trm *trm, int64_t most, int32_t k, int64_t longest, int64_t *out_host,
                             int64_t *out_backend);
void dr_trm_retrieval_destroy(dr_trm_retrieval *retrieval); // waits for what is under way; NULL is fine
// preferences [n]: texts that go through the model's encoder as queries, in the place of the requests' own
// `text`; NULL: none. An encoder on the backend runs there without being waited for. Queries, histories and
// texts may be changed or freed on return. One that is under way may not be begun again before its end.
dr_status dr_trm_retrieval_begin(dr_trm_retrieval *retrieval, const dr_trm_query *queries,
                                 const char *const *preferences, int64_t n, bool exclude_history);
// Whether another one can be begun without waiting for what the backend has not done yet of this one's
// preferences; does not wait.
dr_status dr_trm_retrieval_is_encoded(dr_trm_retrieval *retrieval, bool *out_encoded);
// Whether the hits are there; does not wait.
dr_status dr_trm_retrieval_done(dr_trm_retrieval *retrieval, bool *out_done);
// The hits [n, k] of the one that is under way, valid until it is begun again. Waits, asleep between looks,
// for at most `deadline_s`: then DR_ERR_TIMEOUT, and it is still under way.
dr_status dr_trm_retrieval_finish(dr_trm_retrieval *retrieval, double deadline_s, const dr_hit **out_hits);
// The embeddings [n, text_dim] of the preferences of the one that was finished, valid until it is begun
// again.
const float *dr_trm_retrieval_embeddings(const dr_trm_retrieval *retrieval);

#ifdef __cplusplus
}
#endif
#endif
