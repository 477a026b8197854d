// Text embedding seam: a table with several bodies. The default body hashes word and character n-grams and
// needs no download; core/model/sentence_encoder.h is a transformer.
#ifndef DR_CORE_TEXT_ENCODER_H
#define DR_CORE_TEXT_ENCODER_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_text_encoder dr_text_encoder;
typedef dr_status dr_text_encode(const dr_text_encoder *encoder, const char *const *texts, int64_t n,
                                 float *out);
struct dr_transfer; // core/compute/backend.h

typedef struct dr_text_encoder_ops {
    const char *name;
    // out [n, dim], host memory: L2-normalised row per text as it is (items); a text of which nothing is left
    // gives the zero row. Row-exact: a text has the same bits alone and in any batch.
    dr_text_encode *encode;
    // The same without waiting, by a body that computes on a backend; NULL: it computes on the host. out [n,
    // dim]: backend memory, written in the order of the backend's ops. Ids of texts go there from queue_bytes
    // of `transfer`, from the multiple of 4 `from` on, which the host leaves alone until they are done; texts
    // may be changed on return. By an error a part may be on its way.
    dr_status (*queue)(const dr_text_encoder *encoder, const char *const *texts, int64_t n,
                       struct dr_transfer *transfer, size_t from, float *out);
    size_t (*queue_bytes)(const dr_text_encoder *encoder, int64_t n);
    void (*destroy)(dr_text_encoder *encoder);
} dr_text_encoder_ops;

// One thread at a time uses it.
struct dr_text_encoder {
    const dr_text_encoder_ops *ops;
    int32_t dim;
    char digest[20];         // of all that an embedding depends on; "" where name and dim say it
    char *query_instruction; // stands in front of each query; NULL or "": nothing does; owned
    void *state;
};

// Bytes that a body takes: of its backend, of the ops there, of the host while it is opened and of the ops
// there; what `queue` wants of a transfer for a text.
typedef struct dr_text_encoder_memory {
    int32_t dim;
    int64_t backend, scratch, host, scratch_on_host, queued;
} dr_text_encoder_memory;

// "hashed-ngram". dim > 0 (1024 matches the authors' width). By name, and with every body in sight:
// core/model/text_encoders.h.
dr_status dr_hashed_encoder_create(int32_t dim, dr_text_encoder **out_encoder);
// `encode`, and `queue`, of what is searched with: the instruction, then the text.
dr_status dr_text_encode_queries(const dr_text_encoder *encoder, const char *const *texts, int64_t n,
                                 float *out);
// `encode`, the encoder's own or the one of queries, of n texts that stand in `joined`, each with its final
// NUL: together, as an encoder of products likes it.
dr_status dr_text_encode_joined(const dr_text_encoder *encoder, dr_text_encode *encode, const dr_buf *joined,
                                int64_t n, float *out);
dr_status dr_text_queue_queries(const dr_text_encoder *encoder, const char *const *texts, int64_t n,
                                struct dr_transfer *transfer, size_t from, float *out);
void dr_text_encoder_destroy(dr_text_encoder *encoder); // NULL is fine

#ifdef __cplusplus
}
#endif
#endif
