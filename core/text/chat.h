// Chat templates: turns of a conversation as the text that a chat model was trained on. Two forms are built
// in, ChatML (Qwen2, Qwen2.5, Qwen3) and Llama 3's; which one, and its default system text, is read from the
// model's folder. Any other form is a file of the user. The result equals transformers' apply_chat_template
// for system, user and assistant turns, Qwen3's blocks of thoughts included; tools are left out.
#ifndef DR_CORE_TEXT_CHAT_H
#define DR_CORE_TEXT_CHAT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"
#include "core/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_chat dr_chat;

typedef struct dr_chat_turn {
    const char *role; // "system", "user" or "assistant"
    const char *text;
} dr_chat_turn;

// The template of a model's folder: `chat_template` of tokenizer_config.json, or chat_template.jinja. Its
// text is not run as a program: it is recognised by its tags, and from it are taken the system text it puts
// in when no system turn comes first (Qwen2 and Qwen2.5 have one, Qwen3 has none) and, of Llama 3.1 and
// later, the two lines of dates in front of every system text (a template that would ask the clock gets the
// fixed date it holds as well). Without a template the tags among the tokenizer's added tokens decide:
// <|im_start|> and <|im_end|>: ChatML without a default system text; <|start_header_id|> and <|eot_id|>:
// Llama 3. DR_ERR_UNSUPPORTED when nothing is recognised.
dr_status dr_chat_load(const char *model_dir, const dr_tokenizer *tokenizer, dr_chat **out_chat);

// A template file. Lines before the first section that begin with '#' are comments; a section is begun by its
// name in brackets on a line of its own. The lines of a section are put together without their line ends; \n,
// \t and \\ are written so.
//   [begin]           what comes first, once (optional)
//   [system] [user] [assistant]   a turn, with {text} once; a role without a section is refused
//   [generation]      what invites the assistant's answer
//   [default_system]  the system text when the first turn is no system turn (optional)
//   [settings]        trim = yes: white space at both ends of a turn's text is left out (optional)
dr_status dr_chat_load_file(const char *path, dr_chat **out_chat);
void dr_chat_destroy(dr_chat *chat); // NULL is fine

const char *dr_chat_name(const dr_chat *chat);           // "chatml", "llama3" or the file's path
const char *dr_chat_default_system(const dr_chat *chat); // NULL: none

// What stands before and after the text of a user's turn that comes first and is to be answered: the default
// system text, if there is one, and the tags. A template that trims wants the text without white space at its
// ends.
dr_status dr_chat_around_user(const dr_chat *chat, dr_buf *before, dr_buf *after);
// Appends the turns' text; with_generation adds what invites the answer. At least one turn.
dr_status dr_chat_render(const dr_chat *chat, const dr_chat_turn *turns, int64_t n_turns,
                         bool with_generation, dr_buf *out);
// The same as token ids, appended as dr_tokenizer_encode does. A turn's text never becomes a control token;
// otherwise the ids are those of the whole text.
dr_status dr_chat_encode(const dr_chat *chat, const dr_tokenizer *tokenizer, const dr_chat_turn *turns,
                         int64_t n_turns, bool with_generation, int32_t **ids, int64_t *n_ids,
                         int64_t *capacity);

#ifdef __cplusplus
}
#endif
#endif
