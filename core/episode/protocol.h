// The tags of the trajectory protocol (algorithm: DeepRec, arXiv 2505.16810, §3.1), the caps, and how a text is read:
// one parser for rewards, evaluation and the rollout, so that they can never disagree.
#ifndef DR_CORE_EPISODE_PROTOCOL_H
#define DR_CORE_EPISODE_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"
#include "core/episode/trajectory.h"
#include "core/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define DR_TAG_THINK "<think>"
#define DR_TAG_THINK_END "</think>"
#define DR_TAG_PREFERENCE "<|begin_of_preference|>"
#define DR_TAG_PREFERENCE_END "<|end_of_preference|>"
#define DR_TAG_ITEMS "<|begin_of_item_list|>"
#define DR_TAG_ITEMS_END "<|end_of_item_list|>"
#define DR_TAG_ANSWER "<recommendation_list>"
#define DR_TAG_ANSWER_END "</recommendation_list>"
enum { DR_N_TAGS = 8 };
extern const char *const dr_protocol_tags[DR_N_TAGS]; // in the order above; `deeprec init` makes them single tokens

typedef struct dr_protocol {
    int32_t k;              // items in the answer (10)
    int32_t k_retrieve;     // items of one retrieval (20)
    int32_t max_retrievals; // 8
    int32_t max_turn_tokens; // new tokens of one turn (2048)
    int32_t max_total_tokens; // 16384
    bool exclude_history;   // retrieval leaves out items of the history
} dr_protocol;

// A piece of a completion: what the policy wrote, or what the tool put in.
typedef struct dr_segment {
    const char *text; // borrowed, not NUL-terminated
    size_t length;
    bool from_tool;
} dr_segment;

// A completion as segments, with the text they point into. Zero-initialise; dr_completion_reset frees.
typedef struct dr_completion {
    dr_buf text;
    dr_segment *segments;
    int32_t n_segments, capacity;
} dr_completion;
void dr_completion_reset(dr_completion *completion);
// By provenance: exact.
dr_status dr_completion_from_trajectory(const dr_tokenizer *tokenizer, const dr_trajectory *trajectory,
                                        dr_completion *out);
// From bare text (no provenance): an item list counts as the tool's only when it directly follows an end-of-preference
// tag (white space between); any other list tag is the policy's own writing.
dr_status dr_completion_from_text(const char *text, size_t length, dr_completion *out);

// The preference text of a turn: after the last begin tag of `turn_text`, before the end tag; double quotes dropped, white
// space collapsed. Empty when there is none.
dr_status dr_preference_extract(const char *turn_text, size_t length, dr_buf *out_preference);

// Lines of the answer block (text after an optional "n. "), in order. Each points into the completion's text.
typedef struct dr_answer_line {
    const char *text;
    size_t length;
} dr_answer_line;
// The last policy-written answer block; n lines (at most capacity stored, the true count returned through out_n).
// False when there is no complete block.
bool dr_answer_find(const dr_completion *completion, dr_answer_line *out_lines, int32_t capacity, int32_t *out_n);

#ifdef __cplusplus
}
#endif
#endif
