// Opening and closing of the pieces in order; the reverse order on failure.
#include "launch/policy_parts.h"

#include <string.h>

#include "core/base/alloc.h"
#include "core/base/config.h"
#include "core/model/lm_shard.h"

dr_status dr_policy_parts_data(const dr_policy_choice *choice, dr_policy_parts *out) {
    dr_policy_parts parts = {
        .protocol = choice->protocol, .max_live = choice->max_live, .use = choice->use, .n_learners = 1};
    dr_status status;
    DR_TRY_GOTO(status, dr_dataset_load(choice->dataset, &parts.dataset), close_parts);
    DR_TRY_GOTO(status, dr_template_load(choice->prompt_template, &parts.prompt_template), close_parts);
    DR_TRY_GOTO(status, dr_strdup(&parts.chat, choice->chat), close_parts);
    *out = parts;
    return DR_OK;

close_parts:
    dr_policy_parts_close(&parts);
    return status;
}

dr_status dr_policy_parts_backends(const dr_policy_choice *choice, dr_policy_parts *parts) {
    DR_TRY(dr_backend_choose(&choice->backend, &parts->backend));
    return dr_backend_choose_beside(&choice->backend, parts->backend, &parts->trm_backend);
}

dr_status dr_policy_parts_retrieval(const dr_policy_choice *choice, dr_policy_parts *parts) {
    DR_TRY(dr_trm_load_with(parts->trm_backend, choice->trm, choice->text_encoder, &parts->trm));
    DR_CHECK(dr_trm_config_of(parts->trm)->n_items == parts->dataset->n_items, DR_ERR_ARGUMENT,
             "%s: the retrieval model knows %d items, the data set %s has %d", choice->trm,
             dr_trm_config_of(parts->trm)->n_items, choice->dataset, parts->dataset->n_items);
    return DR_OK;
}

dr_policy_choice dr_policy_choice_of(const dr_config *options, dr_policy_use use) {
    return (dr_policy_choice){
        .dataset = dr_config_string(options, "dataset"),
        .trm = dr_config_string(options, "trm"),
        .text_encoder = dr_config_string(options, "text-encoder"),
        .prompt_template = dr_config_string(options, "template"),
        .chat = dr_config_string(options, "chat"),
        .backend = dr_backend_choice_of(options, "precision"),
        .use = use,
        .protocol = {.k = (int32_t)dr_config_int(options, "k"),
                     .k_retrieve = (int32_t)dr_config_int(options, "k-retrieve"),
                     .max_retrievals = (int32_t)dr_config_int(options, "max-retrievals"),
                     .max_turn_tokens = (int32_t)dr_config_int(options, "max-turn-tokens"),
                     .max_total_tokens = (int32_t)dr_config_int(options, "max-total-tokens"),
                     .exclude_history = dr_config_bool(options, "exclude-history")},
        .max_live = (int32_t)dr_config_int(options, "max-live")};
}

dr_status dr_policy_parts_open(const dr_config *options, dr_policy_use use, dr_policy_parts *out) {
    const dr_policy_choice choice = dr_policy_choice_of(options, use);
    DR_TRY(dr_policy_parts_data(&choice, out));
    dr_status status = dr_policy_parts_backends(&choice, out);
    if (status == DR_OK) status = dr_policy_parts_retrieval(&choice, out);
    if (status != DR_OK) dr_policy_parts_close(out);
    return status;
}

static dr_status use_chat(dr_policy_parts *parts, const char *model_dir, const dr_tokenizer *tokenizer) {
    dr_chat *chat = NULL;
    if (strcmp(parts->chat, "auto") == 0)
        DR_TRY(dr_chat_load(model_dir, tokenizer, &chat));
    else if (strcmp(parts->chat, "off") != 0)
        DR_TRY(dr_chat_load_file(parts->chat, &chat));
    dr_status status = dr_template_in_chat(parts->prompt_template, chat);
    dr_chat_destroy(chat);
    return status;
}

static dr_status open_model(const dr_policy_parts *parts, const char *dir, dr_lm **out_lm) {
    switch (parts->use) {
    case DR_POLICY_LEARNS:
        return dr_lm_load_shard(parts->backend, dir, parts->learner, parts->n_learners, out_lm);
    case DR_POLICY_ANSWERS:
        return dr_lm_load_frozen(parts->backend, dir, out_lm);
    default:
        return dr_lm_outline_of(parts->backend, dir, out_lm);
    }
}

dr_status dr_policy_parts_model(dr_policy_parts *parts, const char *model_dir) {
    dr_lm *lm = NULL;
    dr_tokenizer *tokenizer = NULL;
    DR_TRY(open_model(parts, model_dir, &lm));
    dr_status status;
    DR_TRY_GOTO(status, dr_tokenizer_load(model_dir, &tokenizer), destroy_lm);
    DR_CHECK_GOTO(
        dr_tokenizer_is_of_bytes(tokenizer), status, DR_ERR_UNSUPPORTED, destroy_tokenizer,
        "%s: its tokenizer is WordPiece, whose tokens are not the bytes of a text; a policy's must be "
        "byte-level BPE",
        model_dir);
    DR_CHECK_GOTO(dr_tokenizer_size(tokenizer) <= dr_lm_config_of(lm)->vocab, status, DR_ERR_FORMAT,
                  destroy_tokenizer, "%s: the tokenizer has %d ids, the model's vocabulary %d", model_dir,
                  dr_tokenizer_size(tokenizer), dr_lm_config_of(lm)->vocab);
    DR_TRY_GOTO(status, use_chat(parts, model_dir, tokenizer), destroy_tokenizer);
    dr_lm_destroy(parts->lm);
    dr_tokenizer_destroy(parts->tokenizer);
    parts->lm = lm;
    parts->tokenizer = tokenizer;
    return DR_OK;

destroy_tokenizer:
    dr_tokenizer_destroy(tokenizer);
destroy_lm:
    dr_lm_destroy(lm);
    return status;
}

void dr_policy_parts_close(dr_policy_parts *parts) {
    dr_lm_destroy(parts->lm);
    dr_tokenizer_destroy(parts->tokenizer);
    dr_trm_destroy(parts->trm);
    dr_template_destroy(parts->prompt_template);
    dr_free(parts->chat);
    dr_backend_destroy(parts->trm_backend);
    dr_backend_destroy(parts->backend);
    dr_dataset_destroy(parts->dataset);
    *parts = (dr_policy_parts){0};
}

dr_rollout_parts dr_policy_parts_rollout(const dr_policy_parts *parts) {
    return (dr_rollout_parts){.lm = parts->lm,
                              .tokenizer = parts->tokenizer,
                              .trm = parts->trm,
                              .dataset = parts->dataset,
                              .prompt_template = parts->prompt_template,
                              .protocol = parts->protocol,
                              .max_live = parts->max_live,
                              .prefill_tokens = 1024};
}
