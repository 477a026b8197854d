// The tags of the trajectory protocol (algorithm: DeepRec, arXiv 2505.16810, §3.1), the caps, and how a text
// is read: one parser for rewards, evaluation and the rollout, so that they can never disagree.
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
extern const char
    *const dr_protocol_tags[DR_N_TAGS]; // in the order above; `deeprec init` makes them single tokens

// Position in dr_protocol_tags.
typedef enum dr_tag {
    DR_TAG_NONE = -1,
    DR_TAG_AT_THINK,
    DR_TAG_AT_THINK_END,
    DR_TAG_AT_PREFERENCE,
    DR_TAG_AT_PREFERENCE_END,
    DR_TAG_AT_ITEMS,
    DR_TAG_AT_ITEMS_END,
    DR_TAG_AT_ANSWER,
    DR_TAG_AT_ANSWER_END
} dr_tag;
// The first protocol tag at or after *at; moves *at behind it and gives its place through out_begin (NULL
// allowed). DR_TAG_NONE (and *at = length) when there is none.
dr_tag dr_tag_next(const char *text, size_t length, size_t *at, size_t *out_begin);

typedef struct dr_protocol {
    int32_t k;                // items in the answer (10)
    int32_t k_retrieve;       // items of one retrieval (20)
    int32_t max_retrievals;   // 8
    int32_t max_turn_tokens;  // new tokens of one turn (2048)
    int32_t max_total_tokens; // 16384
    bool exclude_history;     // retrieval leaves out items of the history
} dr_protocol;

// A piece of a completion: what the policy wrote, or what the tool put in.
typedef struct dr_segment {
    const char *text; // borrowed, not NUL-terminated
    size_t length;
    bool from_tool;
} dr_segment;

// A completion as segments, with the text they point into. Zero-initialise; dr_completion_reset frees.
typedef struct dr_completion {
    dr_buf text; // all segments, one after the other
    dr_segment *segments;
    int32_t n_segments, capacity;
} dr_completion;
void dr_completion_reset(dr_completion *completion);
// Appends the bytes of ids the way all of this room reads them: an id outside the vocabulary (a model may
// have more rows than its tokenizer has tokens) gives U+FFFD.
dr_status dr_protocol_decode(const dr_tokenizer *tokenizer, const int32_t *ids, int64_t n_ids,
                             dr_buf *out_bytes);
// By provenance: exact. The prompt is left out; tokens forced by the program count as the policy's.
dr_status dr_completion_from_trajectory(const dr_tokenizer *tokenizer, const dr_trajectory *trajectory,
                                        dr_completion *out);
// From bare text (no provenance): an item list counts as the tool's only when it directly follows an
// end-of-preference tag (white space between) and is closed before the next list begins; the white space
// before it and up to two newlines behind it are the tool's too. Any other list tag is the policy's own
// writing.
dr_status dr_completion_from_text(const char *text, size_t length, dr_completion *out);

// The preference text of a turn: after the last begin tag of `turn_text`, before the end tag that follows it
// (or the end of the text); double quotes dropped, white space and NUL bytes collapsed. Appends nothing when
// there is none.
dr_status dr_preference_extract(const char *turn_text, size_t length, dr_buf *out_preference);

// Lines of the answer block (text after an optional "n. "), in order, blank ones left out, trimmed. Each
// points into the completion's text.
typedef struct dr_answer_line {
    const char *text;
    size_t length;
} dr_answer_line;
// The last policy-written answer block; n lines (at most capacity stored, the true count returned through
// out_n). False when there is no complete block within one of the policy's segments.
bool dr_answer_find(const dr_completion *completion, dr_answer_line *out_lines, int32_t capacity,
                    int32_t *out_n);
// The text between the tags of that block; false as above.
bool dr_answer_block(const dr_completion *completion, const char **out_text, size_t *out_length);

#ifdef __cplusplus
}
#endif
#endif
