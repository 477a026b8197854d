// The format rules of a completion (algorithm: DeepRec, arXiv 2505.16810, §3.3), one function each, in a
// fixed order. The first broken one gives the reason.
#ifndef DR_CORE_REWARD_FORMAT_H
#define DR_CORE_REWARD_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/status.h"
#include "core/episode/protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DR_REASON_BYTES = 96 };

// What the rules need to know beside the text.
typedef struct dr_format_settings {
    int32_t k; // answer lines
    bool forbid_cjk;
    const char *const *forbidden; // phrases of the prompt, NULL-terminated, or NULL
    // Answer lines that are titles of the catalogue, [2 * n_titles] begin and end offsets into the
    // completion's text, ascending. What a title contains is the catalogue's doing: role words and CJK in it
    // are no breach.
    const size_t *titles;
    int32_t n_titles;
} dr_format_settings;

// out_valid: all rules hold. out_reason: "" or the first broken rule. out_retrievals: lists put in by the
// tool.
dr_status dr_format_check(const dr_completion *completion, const dr_format_settings *settings,
                          bool *out_valid, char out_reason[DR_REASON_BYTES], int32_t *out_retrievals);

#ifdef __cplusplus
}
#endif
#endif
