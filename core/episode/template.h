// Prompt templates: plain text files a user can edit. The full and the compact one are built into the
// program.
#ifndef DR_CORE_EPISODE_TEMPLATE_H
#define DR_CORE_EPISODE_TEMPLATE_H

#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"
#include "core/store/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_template dr_template;

// name_or_path: "full", "compact", or a file. Sections of the file: [prompt] with {history} {k} {k_retrieve}
// placeholders, [history_item] and [list_item] with {n} {title} {categories}, [settings] max_history. Unknown
// sections or placeholders are named with file and line.
dr_status dr_template_load(const char *name_or_path, dr_template **out_template);
void dr_template_destroy(dr_template *t);

// The prompt of one history (its last max_history items), ending with an opened <think>. Appends to out.
dr_status dr_template_prompt(const dr_template *t, const dr_dataset *dataset, const int32_t *history,
                             int32_t n_history, int32_t k, int32_t k_retrieve, dr_buf *out);
// The tool's text for one retrieval: blank line, begin tag, newline, one numbered item a line, end tag, blank
// line.
dr_status dr_template_item_list(const dr_template *t, const dr_dataset *dataset, const int32_t *items,
                                int32_t n_items, dr_buf *out);
// Phrases of the template that a policy must not copy out (format rule); NULL-terminated.
const char *const *dr_template_forbidden(const dr_template *t);

#ifdef __cplusplus
}
#endif
#endif
