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

// Title look-up, text and item vectors of one data set. dataset, trm, encoder and prompt_template are
// borrowed; the last three may be NULL. Without a TRM the similarity uses text vectors alone, made by
// `encoder` from titles and categories (without either it is 0). The context is read-only once made: several
// threads may score with it.
typedef struct dr_reward_context dr_reward_context;
dr_status dr_reward_context_create(const dr_dataset *dataset, dr_trm *trm, const dr_text_encoder *encoder,
                                   const dr_template *prompt_template, dr_reward_context **out_context);
void dr_reward_context_destroy(dr_reward_context *context);
// Item by title (normalised: trimmed, case folded, white space collapsed, leading "n. " removed), or 0.
int32_t dr_reward_context_find(const dr_reward_context *context, const char *title);

typedef struct dr_reward_result {
    float parts[DR_REWARD_PARTS];  // all six are computed; outcome parts are 0 unless the format holds
    float total;                   // by the settings' weights
    bool valid;                    // the format holds
    char reason[96];               // first broken format rule, "" when valid
    int32_t n_retrievals, n_lines; // n_lines: at most 64
    int32_t hit_position;          // 0-based, -1 when the target isn't among the first k distinct lines
    int32_t items[64];             // item of each of the n_lines lines: 0 unknown, -1 repeats an earlier line
} dr_reward_result;

// Scores one completion.
//   target      1 … n_items; 0 when unknown: outcome parts are 0 then
//   embeddings  [n_embeddings, dim] the preference vectors that retrieval used, or NULL to encode the
//   preferences found in
//               the text (DR_ERR_UNSUPPORTED when the settings weigh diversity and there is nothing to encode
//               with)
// A line that repeats an earlier one is no second chance: for hit and rank it is dropped (later lines move
// up), for the similarity it keeps its place and counts as the zero vector, like an unknown title.
dr_status dr_reward_score(const dr_reward_context *context, const dr_reward_settings *settings,
                          const dr_completion *completion, int32_t target, const float *embeddings,
                          int32_t n_embeddings, int32_t dim, dr_reward_result *out_result);

// Ranked items of the answer (unknown titles as 0, duplicates dropped) for evaluation, at most `capacity`; 0
// when there is no complete answer block. Whether the format holds is dr_reward_score's to say.
int32_t dr_answer_items(const dr_reward_context *context, const dr_completion *completion, int32_t *out_items,
                        int32_t capacity);

#ifdef __cplusplus
}
#endif
#endif
