// Opens what every command that runs a policy needs (data set, backend, TRM, model, tokenizer, template) and
// hands it out as the rollout engine's parts. One place, so that eval, recommend and train open the same
// things the same way.
#ifndef DR_LAUNCH_POLICY_PARTS_H
#define DR_LAUNCH_POLICY_PARTS_H

#include "core/base/setting.h"
#include "core/episode/rollout.h"
#include "launch/backend_choice.h"
#include "launch/cli.h"

// Of every command that opens a retrieval model.
#define DR_TEXT_ENCODER_OPTION                                                                               \
    DR_TEXT("text-encoder", "", "FOLDER",                                                                    \
            "the retrieval model's sentence encoder, where it is not where it was in training")

// Options that choose the parts; a command puts these rows into its table.
#define DR_POLICY_PARTS_OPTIONS                                                                              \
    DR_TEXT("dataset", NULL, "FILE", "prepared data set (.h5)"),                                             \
        DR_TEXT("trm", NULL, "FOLDER", "retrieval model"), DR_TEXT_ENCODER_OPTION,                           \
        DR_TEXT("template", "compact", "NAME", "prompt template: compact, full, or a file"),                 \
        DR_TEXT("chat", "off", "FORM",                                                                       \
                "chat form of the prompt: off, auto (the model folder's own), or a file"),                   \
        DR_INT("k", "10", 1, 64, "items", "length of the answer"),                                           \
        DR_INT("k-retrieve", "20", 1, 1000, "items", "items of one retrieval"),                              \
        DR_INT("max-retrievals", "8", 1, 64, "", "retrievals of one trajectory"),                            \
        DR_INT("max-turn-tokens", "256", 1, 65536, "tokens", "new tokens of one turn"),                      \
        DR_INT("max-total-tokens", "2048", 16, 1048576, "tokens", "length of one trajectory"),               \
        DR_BOOL("exclude-history", "true", "retrieval leaves out items of the history"),                     \
        DR_INT("max-live", "64", 1, 4096, "", "episodes decoded together"),                                  \
        DR_CHOICE("precision", "fp32", "fp32|bf16", "operands of the policy's matrix products"),             \
        DR_CHOICE("backend", "cpu", DR_BACKEND_CHOICES, "what computes the policy"),                         \
        DR_INT("threads", "0", 0, 1024, "", "processor threads, 0: all")

// What is done with the policy: it learns (dr_lm_load_shard); it only answers (dr_lm_load_frozen); other
// ranks run it (dr_lm_outline).
typedef enum dr_policy_use { DR_POLICY_LEARNS, DR_POLICY_ANSWERS, DR_POLICY_IS_ELSEWHERE } dr_policy_use;

typedef struct dr_policy_parts {
    dr_backend *backend;     // of the policy, in the chosen precision
    dr_backend *trm_backend; // where the policy's is; fp32: retrieval does not change with its precision
    dr_dataset *dataset;
    dr_trm *trm;
    dr_template *prompt_template;
    char *chat; // off, auto or a file; taken up with the model
    dr_policy_use use;
    int learner, n_learners; // of a policy that learns: which of how many (lm_shard.h); 0 of 1 unless set
    dr_lm *lm;               // NULL until dr_policy_parts_model
    dr_tokenizer *tokenizer; // likewise
    dr_protocol protocol;
    int32_t max_live;
} dr_policy_parts;

// What to open; text is borrowed for the call.
typedef struct dr_policy_choice {
    const char *dataset, *trm, *text_encoder, *prompt_template, *chat;
    dr_backend_choice backend;
    dr_policy_use use;
    dr_protocol protocol;
    int32_t max_live;
} dr_policy_choice;

// Opens everything but the model, in this order: data set and template into empty parts, of which nothing
// stays open on failure; backends; the retrieval model. What a later one has opened the caller closes.
dr_status dr_policy_parts_data(const dr_policy_choice *choice, dr_policy_parts *out);
dr_status dr_policy_parts_backends(const dr_policy_choice *choice, dr_policy_parts *parts);
dr_status dr_policy_parts_retrieval(const dr_policy_choice *choice, dr_policy_parts *parts);
// What a command's options choose; borrows from them.
dr_policy_choice dr_policy_choice_of(const dr_config *options, dr_policy_use use);
// All three of it; on failure nothing stays open.
dr_status dr_policy_parts_open(const dr_config *options, dr_policy_use use, dr_policy_parts *out);
// Opens a model folder, closing the one before; puts the prompt into its chat form where that is asked for.
dr_status dr_policy_parts_model(dr_policy_parts *parts, const char *model_dir);
void dr_policy_parts_close(dr_policy_parts *parts);
// The engine's view; borrowed from `parts`.
dr_rollout_parts dr_policy_parts_rollout(const dr_policy_parts *parts);

#endif
