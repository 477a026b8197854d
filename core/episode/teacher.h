// The scripted teacher: writes warm-up trajectories in the policy's place, with the retrieval model's real
// lists. It looks at the history only, asks for categories (sometimes a word or a decade) of what the user
// chose, and answers with one of the lists, chosen blindly: the protocol is kept exactly, and there is much
// that training can improve on.
#ifndef DR_CORE_EPISODE_TEACHER_H
#define DR_CORE_EPISODE_TEACHER_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"
#include "core/episode/episode.h"
#include "core/rec/trm.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DR_TEACHER_MOST = 3 }; // retrievals of one trajectory

typedef struct dr_teacher_settings {
    float retrievals[DR_TEACHER_MOST]; // relative frequency of 1, 2, 3 retrievals
    // Shares of preferences that ask for something alike, that name an item of the history, and that name the
    // history's strongest categories; the others describe one item of the history by its categories.
    float open, title, common;
    float second_category; // chance of a second category in a preference
    float decade, word;    // chance of a decade, of a title word
    float recency;         // weight of a history item, relative to the next later one
} dr_teacher_settings;
dr_teacher_settings dr_teacher_defaults(void); // 0.25 0.45 0.30, 0.12, 0.02, 0.25, 0.4, 0.2, 0.15, 0.96

// The teacher's fixed phrases, NULL-terminated: what a fresh tokenizer should know.
const char *const *dr_teacher_phrases(void);

typedef struct dr_teacher dr_teacher;
// rules is copied; its parts and the trm are borrowed.
dr_status dr_teacher_create(const dr_episode_rules *rules, dr_trm *trm, const dr_teacher_settings *settings,
                            dr_teacher **out_teacher);
void dr_teacher_destroy(dr_teacher *teacher);

// One trajectory. The same (seed, stream) and history give the same one. `target` is only noted in it, never
// looked at. Tokens written in the policy's place have the provenance DR_FROM_POLICY; it ends with
// </recommendation_list> and, where the vocabulary has one, an end-of-sequence token. A trajectory over the
// token cap is written again with fewer retrievals; DR_ERR_RANGE when not even one fits.
dr_status dr_teacher_write(dr_teacher *teacher, const int32_t *history, int32_t n_history, int32_t user,
                           int32_t target, uint64_t seed, uint64_t stream, dr_trajectory *out);

// A trajectory from a user's own completion: the template's prompt, then the text as dr_completion_from_text
// divides it, then an end-of-sequence token. The policy's text has the provenance DR_FROM_POLICY, lists
// DR_FROM_TOOL. DR_ERR_RANGE when it is longer than the token cap.
dr_status dr_trajectory_from_text(const dr_episode_rules *rules, const int32_t *history, int32_t n_history,
                                  int32_t user, int32_t target, const char *text, size_t length,
                                  dr_trajectory *out);

#ifdef __cplusplus
}
#endif
#endif
