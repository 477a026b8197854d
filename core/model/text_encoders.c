// Choosing a body by its name.
#include "core/model/text_encoders.h"

#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/model/sentence_encoder.h"

static const char HASHED[] = "hashed-ngram";

bool dr_text_encoder_is_folder(const char *name) {
    return strcmp(name, HASHED) != 0;
}

static dr_status open_hashed(int32_t dim, const char *instruction, dr_text_encoder **out_encoder) {
    dr_text_encoder *encoder = NULL;
    DR_TRY(dr_hashed_encoder_create(dim, &encoder));
    dr_status status = instruction ? dr_strdup(&encoder->query_instruction, instruction) : DR_OK;
    if (status == DR_OK)
        *out_encoder = encoder;
    else
        dr_text_encoder_destroy(encoder);
    return status;
}

static dr_status check_folder(const char *name) {
    DR_CHECK(dr_dir_exists(name), DR_ERR_ARGUMENT,
             "text encoder \"%s\": there is no such folder; known by name: %s", name, HASHED);
    return DR_OK;
}

dr_status dr_text_encoder_open(dr_backend *backend, const dr_text_encoder_choice *choice,
                               dr_text_encoder **out_encoder) {
    const char *instruction = choice->query_instruction;
    if (strcmp(instruction, DR_QUERY_INSTRUCTION_AUTO) == 0) instruction = NULL;
    if (!dr_text_encoder_is_folder(choice->name)) return open_hashed(choice->dim, instruction, out_encoder);
    DR_TRY(check_folder(choice->name));
    return dr_sentence_encoder_create(backend, choice->name, choice->max_tokens, instruction, out_encoder);
}

dr_status dr_text_encoder_memory_of(dr_backend *backend, const dr_text_encoder_choice *choice,
                                    dr_text_encoder_memory *out) {
    *out = (dr_text_encoder_memory){.dim = choice->dim};
    if (!dr_text_encoder_is_folder(choice->name)) return DR_OK;
    DR_TRY(check_folder(choice->name));
    return dr_sentence_encoder_memory(backend, choice->name, choice->max_tokens, out);
}
