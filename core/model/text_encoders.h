// Text encoders by name: the one place where every body of core/text/encoder.h is in sight.
#ifndef DR_CORE_MODEL_TEXT_ENCODERS_H
#define DR_CORE_MODEL_TEXT_ENCODERS_H

#include <stdbool.h>

#include "core/compute/backend.h"
#include "core/text/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

// What queries begin with when nobody says it: nothing for hashed-ngram, what a folder says of itself.
#define DR_QUERY_INSTRUCTION_AUTO "auto"

typedef struct dr_text_encoder_choice {
    const char *name;              // "hashed-ngram", or the folder of a sentence encoder
    int32_t dim;                   // of hashed-ngram; a folder has its own
    int32_t max_tokens;            // of a text, for a folder
    const char *query_instruction; // or DR_QUERY_INSTRUCTION_AUTO
} dr_text_encoder_choice;

bool dr_text_encoder_is_folder(const char *name);
// backend: borrowed by a sentence encoder, not looked at by hashed-ngram. Names that are neither known nor a
// folder are refused with those that are known.
dr_status dr_text_encoder_open(dr_backend *backend, const dr_text_encoder_choice *choice,
                               dr_text_encoder **out_encoder);

// What opening one will take, before it is opened.
dr_status dr_text_encoder_memory_of(dr_backend *backend, const dr_text_encoder_choice *choice,
                                    dr_text_encoder_memory *out);

#ifdef __cplusplus
}
#endif
#endif
