// Text embedding seam: a table with several bodies. The default body hashes word and character n-grams and
// needs no download; a transformer sentence encoder is another body of the same table.
#ifndef DR_CORE_TEXT_ENCODER_H
#define DR_CORE_TEXT_ENCODER_H

#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_text_encoder dr_text_encoder;

typedef struct dr_text_encoder_ops {
    const char *name; // stored with a TRM so that queries meet the embedding they were trained on
    // out [n, dim]: L2-normalised row per text; a text without any feature gives the zero row. Row-exact.
    dr_status (*encode)(const dr_text_encoder *encoder, const char *const *texts, int64_t n, float *out);
    void (*destroy)(dr_text_encoder *encoder);
} dr_text_encoder_ops;

struct dr_text_encoder {
    const dr_text_encoder_ops *ops;
    int32_t dim;
    void *state;
};

// name: "hashed-ngram". dim > 0 (1024 matches the authors' width). Unknown names are refused with the known
// ones listed.
dr_status dr_text_encoder_create(const char *name, int32_t dim, dr_text_encoder **out_encoder);
void dr_text_encoder_destroy(dr_text_encoder *encoder); // NULL is fine

#ifdef __cplusplus
}
#endif
#endif
