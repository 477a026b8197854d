// The retrieval model's text encoder: which one it is, whether it is the one of training, texts through it.
#include <stdio.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/progress.h"
#include "core/model/text_encoders.h"
#include "core/rec/trm_internal.h"

enum { ITEMS = 256 }; // encoded at a time: a transformer takes a while for them

static bool has_encoder(const dr_trm_config *config) {
    return strcmp(config->text_encoder, "external") != 0;
}

static dr_text_encoder_choice choice_of(const dr_trm_config *config) {
    return (dr_text_encoder_choice){.name = config->text_encoder,
                                    .dim = config->text_dim,
                                    .max_tokens = config->max_text_tokens,
                                    .query_instruction = config->query_instruction};
}

dr_status dr_trm_encoder_memory(dr_backend *backend, dr_trm_config *config, dr_text_encoder_memory *out) {
    const dr_text_encoder_choice choice = choice_of(config);
    *out = (dr_text_encoder_memory){.dim = config->text_dim};
    if (has_encoder(config)) DR_TRY(dr_text_encoder_memory_of(backend, &choice, out));
    config->text_dim = out->dim;
    return DR_OK;
}

dr_status dr_trm_open_encoder(dr_backend *backend, const dr_trm_config *config, dr_text_encoder **out) {
    const dr_text_encoder_choice choice = choice_of(config);
    *out = NULL;
    return has_encoder(config) ? dr_text_encoder_open(backend, &choice, out) : DR_OK;
}

dr_status dr_trm_note_encoder(const dr_text_encoder *encoder, dr_trm_config *c) {
    const char *instruction = encoder->query_instruction ? encoder->query_instruction : "";
    DR_CHECK(strlen(instruction) < sizeof c->query_instruction, DR_ERR_RANGE,
             "the instruction of queries has %zu bytes, at most %zu", strlen(instruction),
             sizeof c->query_instruction - 1);
    c->text_dim = encoder->dim;
    memcpy(c->text_digest, encoder->digest, sizeof c->text_digest);
    snprintf(c->query_instruction, sizeof c->query_instruction, "%s", instruction);
    return DR_OK;
}

// encoder_dir "": where the folder was in training.
dr_status dr_trm_locate_encoder(const char *dir, const char *encoder_dir, dr_trm_config *c) {
    bool is_folder = has_encoder(c) && dr_text_encoder_is_folder(c->text_encoder);
    DR_CHECK(is_folder || encoder_dir[0] == '\0', DR_ERR_ARGUMENT,
             "%s: the text encoder's folder was given as %s, and this retrieval model's texts are %s", dir,
             encoder_dir, c->text_encoder);
    DR_CHECK(strlen(encoder_dir) < sizeof c->text_encoder, DR_ERR_RANGE, "%s: longer than %zu bytes",
             encoder_dir, sizeof c->text_encoder - 1);
    if (encoder_dir[0] != '\0') snprintf(c->text_encoder, sizeof c->text_encoder, "%s", encoder_dir);
    DR_CHECK(!is_folder || dr_dir_exists(c->text_encoder), DR_ERR_ARGUMENT,
             "%s: this retrieval model's text encoder is not in %s; say where its folder is (text-encoder, "
             "or model.text_encoder of a run)",
             dir, c->text_encoder);
    return DR_OK;
}

// Preferences must meet the embeddings that the model was trained on.
static dr_status check_encoder(const char *dir, const dr_trm_config *c, const dr_text_encoder *encoder) {
    DR_CHECK(encoder->dim == c->text_dim, DR_ERR_ARGUMENT,
             "%s: its text vectors are %d wide, those of the text encoder %s %d", dir, c->text_dim,
             c->text_encoder, encoder->dim);
    DR_CHECK(c->text_digest[0] == '\0' || strcmp(c->text_digest, encoder->digest) == 0, DR_ERR_ARGUMENT,
             "%s: %s holds another text encoder than this retrieval model was trained with: weights, shapes "
             "and tokenizer have digest %s, expected %s",
             dir, c->text_encoder, encoder->digest, c->text_digest);
    if (c->text_digest[0] == '\0' && encoder->digest[0] != '\0')
        dr_warn("%s: config.json has no text_encoder_digest: that %s made its text vectors is not checked",
                dir, c->text_encoder);
    return DR_OK;
}

dr_status dr_trm_load_encoder(dr_backend *backend, const char *dir, const char *encoder_dir,
                              dr_trm_config *config, dr_text_encoder **out) {
    dr_text_encoder *encoder = NULL;
    DR_TRY(dr_trm_locate_encoder(dir, encoder_dir, config));
    DR_TRY(dr_trm_open_encoder(backend, config, &encoder));
    dr_status status = encoder ? check_encoder(dir, config, encoder) : DR_OK;
    if (status == DR_OK)
        *out = encoder;
    else
        dr_text_encoder_destroy(encoder);
    return status;
}

// Items first … end - 1.
static dr_status encode_some(dr_trm *trm, const dr_dataset *d, int32_t first, int32_t end, dr_buf *joined) {
    dr_buf_clear(joined);
    for (int32_t i = first; i < end; i++) {
        DR_TRY(dr_buf_printf(joined, "%s, %s", d->titles[i], d->categories[i]));
        DR_TRY(dr_buf_append(joined, "", 1));
    }
    return dr_text_encode_joined(trm->encoder, trm->encoder->ops->encode, joined, end - first,
                                 trm->text + (int64_t)first * trm->config.text_dim);
}

dr_status dr_trm_encode_catalogue(dr_trm *trm, const dr_dataset *d) {
    dr_buf joined = {0};
    dr_status status = DR_OK;
    dr_progress progress = dr_progress_start("encoding texts", "items", d->n_items);
    for (int32_t i = 1; i <= d->n_items && status == DR_OK; i += ITEMS) {
        int32_t end = d->n_items - i < ITEMS ? d->n_items + 1 : i + ITEMS;
        status = encode_some(trm, d, i, end, &joined);
        dr_progress_update(&progress, end - 1);
    }
    dr_progress_finish(&progress);
    dr_buf_reset(&joined);
    return status;
}
