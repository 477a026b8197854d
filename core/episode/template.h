// Prompt templates: plain text files a user can edit. The full and the compact one are built into the
// program.
#ifndef DR_CORE_EPISODE_TEMPLATE_H
#define DR_CORE_EPISODE_TEMPLATE_H

#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"
#include "core/store/dataset.h"
#include "core/text/chat.h"
#include "core/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_template dr_template;

// name_or_path: "full", "compact", or a file. A file has sections, each begun by its name in brackets on a
// line of its own; lines before the first one that begin with '#' are comments; blank lines at a section's
// ends are left out.
//   [settings]      max_history = N: how many items of the history, the latest ones, are shown (default 20)
//   [prompt]        the prompt, with {history}, {k}, {k_retrieve}; must end with <think>
//   [history_item]  one item of the history, with {n}, {title}, {categories}
//   [list_item]     one item of a retrieved list, likewise
//   [forbidden]     phrases that a policy must not copy out, one a line (optional)
// For an item without categories, a line that has {categories} but no {title} is left out; elsewhere "-"
// stands for them. Unknown sections, settings and placeholders are named with file and line.
dr_status dr_template_load(const char *name_or_path, dr_template **out_template);
void dr_template_destroy(dr_template *t);
// From now on the prompt, but for its last <think>, stands as a user's turn in the form of a chat model, and
// <think> opens the answer. NULL: plain text again.
dr_status dr_template_in_chat(dr_template *t, const dr_chat *chat);
int32_t dr_template_max_history(const dr_template *t);

// The prompt of one history (its last max_history items), ending with an opened <think>. Appends to out.
dr_status dr_template_prompt(const dr_template *t, const dr_dataset *dataset, const int32_t *history,
                             int32_t n_history, int32_t k, int32_t k_retrieve, dr_buf *out);
// The tool's text for one retrieval: blank line, begin tag, newline, one numbered item a line, end tag, blank
// line.
dr_status dr_template_item_list(const dr_template *t, const dr_dataset *dataset, const int32_t *items,
                                int32_t n_items, dr_buf *out);

// A rendered text with the ranges that came from the data set, and room to work. Zero-initialise; grow-only.
typedef struct dr_rendering {
    dr_buf text;
    size_t *foreign; // [2 * n_foreign] begin and end of each range, ascending
    int32_t n_foreign, capacity;
} dr_rendering;
void dr_rendering_reset(dr_rendering *rendering);
void dr_rendering_clear(dr_rendering *rendering);                      // empty, memory kept
dr_status dr_rendering_own(dr_rendering *rendering, const char *text); // text of the program or its files
// Text of the data set, as one line: control characters become spaces.
dr_status dr_rendering_foreign(dr_rendering *rendering, const char *text);
dr_status dr_rendering_foreign_bytes(dr_rendering *rendering, const char *text, size_t length); // as they are
// Appends the token ids of a rendering as dr_tokenizer_encode does. Only the program's own text can become
// special tokens.
dr_status dr_rendering_ids(const dr_rendering *rendering, const dr_tokenizer *tokenizer, int32_t **ids,
                           int64_t *n_ids, int64_t *capacity);

// The same two as token ids, appended as dr_tokenizer_encode does. Special tokens come only from the
// template's own text (and the list's tags): a title or category that spells one is encoded as plain text.
dr_status dr_template_prompt_ids(const dr_template *t, const dr_tokenizer *tokenizer,
                                 const dr_dataset *dataset, const int32_t *history, int32_t n_history,
                                 int32_t k, int32_t k_retrieve, dr_rendering *scratch, int32_t **ids,
                                 int64_t *n_ids, int64_t *capacity);
dr_status dr_template_item_list_ids(const dr_template *t, const dr_tokenizer *tokenizer,
                                    const dr_dataset *dataset, const int32_t *items, int32_t n_items,
                                    dr_rendering *scratch, int32_t **ids, int64_t *n_ids, int64_t *capacity);

// Phrases of the template that a policy must not copy out (format rule); NULL-terminated.
const char *const *dr_template_forbidden(const dr_template *t);

#ifdef __cplusplus
}
#endif
#endif
