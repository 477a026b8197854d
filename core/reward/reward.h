// The six hierarchical rewards of DeepRec (arXiv 2505.16810, §3.3) as pure functions of one completion.
#ifndef DR_CORE_REWARD_REWARD_H
#define DR_CORE_REWARD_REWARD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/episode/protocol.h"
#include "core/episode/template.h"
#include "core/episode/trajectory.h"
#include "core/rec/trm.h"
#include "core/store/dataset.h"
#include "core/text/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const char *const dr_reward_names[DR_REWARD_PARTS]; // "format", "invocation", …

// Weight 0 turns a part off. A stage's total is Σ weight · part.
typedef struct dr_reward_settings {
    float weight[DR_REWARD_PARTS];
    bool forbid_cjk;
    int32_t k;
    float invocation_step;  // 0.5
    int32_t invocation_cap; // 3
    float diversity_scale;  // 0.2
    float rank_step;        // 0.2
    float similarity_scale; // 10
} dr_reward_settings;

typedef enum dr_stage { DR_STAGE_COLD, DR_STAGE_REC } dr_stage;
// The values of the paper: cold = format + invocation + diversity; rec = format + hit + rank + similarity.
dr_reward_settings dr_reward_defaults(dr_stage stage);

// Title look-up, text and item vectors of one data set. dataset, trm and prompt_template (NULL allowed) are
// borrowed; without a TRM the similarity uses text vectors alone, made by `encoder` (needed then; the result
// says so).
typedef struct dr_reward_context dr_reward_context;
dr_status dr_reward_context_create(const dr_dataset *dataset, dr_trm *trm, const dr_text_encoder *encoder,
                                   const dr_template *prompt_template, dr_reward_context **out_context);
void dr_reward_context_destroy(dr_reward_context *context);

typedef struct dr_reward_result {
    float parts[DR_REWARD_PARTS]; // all six are computed; outcome parts are 0 unless the format holds
    float total;                  // by the settings' weights
    bool valid;                   // the format holds
    char reason[96];              // first broken format rule, "" when valid
    int32_t n_retrievals, n_lines;
    int32_t hit_position; // 0-based, -1 when the target isn't among the first k distinct lines
    int32_t
        items[64]; // item of each answer line (0 unknown, -1 duplicate of an earlier line), n_lines of them
} dr_reward_result;

// embeddings [n_embeddings, dim]: the preference vectors that retrieval used, or NULL to encode the
// preferences found in the text. target 1 … n_items.
dr_status dr_reward_score(const dr_reward_context *context, const dr_reward_settings *settings,
                          const dr_completion *completion, int32_t target, const float *embeddings,
                          int32_t n_embeddings, int32_t dim, dr_reward_result *out_result);

// Ranked items of the answer (unknown titles as 0, duplicates dropped) for evaluation; 0 when there is no
// valid answer.
int32_t dr_answer_items(const dr_reward_context *context, const dr_completion *completion, int32_t *out_items,
                        int32_t capacity);

#ifdef __cplusplus
}
#endif
#endif
