// Byte-level BPE tokenizer: reads and writes Hugging Face tokenizer.json, and learns a vocabulary from text.
#ifndef DR_CORE_TEXT_TOKENIZER_H
#define DR_CORE_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_tokenizer dr_tokenizer;

// dir/tokenizer.json. Every malformed part is named (which key, expected, found). Loaded objects are
// immutable and may be used by several threads (encode keeps no state).
dr_status dr_tokenizer_load(const char *dir, dr_tokenizer **out_tokenizer);
// Writes tokenizer.json and tokenizer_config.json so that transformers' AutoTokenizer opens the folder.
dr_status dr_tokenizer_save(const dr_tokenizer *tokenizer, const char *dir);
void dr_tokenizer_destroy(dr_tokenizer *tokenizer);

// Learns byte-level BPE with the GPT-2/Qwen2 pre-tokenisation. texts: n documents (bytes, UTF-8 expected,
// invalid bytes kept). specials become single added tokens (the ids after the learned vocabulary, in order).
// vocab counts all of them. Ties between pairs go to the pair that sorts first, so the result is
// deterministic. A corpus too small to reach `vocab` gives a smaller vocabulary.
dr_status dr_tokenizer_train(const char *const *texts, int64_t n_texts, int32_t vocab,
                             const char *const *specials, int32_t n_specials, dr_tokenizer **out_tokenizer);

int32_t dr_tokenizer_size(const dr_tokenizer *tokenizer); // largest id + 1
// Id of an added token by its exact text, or -1.
int32_t dr_tokenizer_special(const dr_tokenizer *tokenizer, const char *text);

// Appends the ids of text[0..length) to *ids (grown with dr_grow; *n_ids and *capacity are updated). Added
// tokens inside the text become single ids when parse_special, else they are encoded as plain text: untrusted
// text (titles) must never become a control token.
dr_status dr_tokenizer_encode(const dr_tokenizer *tokenizer, const char *text, size_t length,
                              bool parse_special, int32_t **ids, int64_t *n_ids, int64_t *capacity);
// Appends the exact bytes of the ids (added tokens as their text). DR_ERR_RANGE for an id outside the
// vocabulary.
dr_status dr_tokenizer_decode(const dr_tokenizer *tokenizer, const int32_t *ids, int64_t n_ids,
                              dr_buf *out_bytes);

#ifdef __cplusplus
}
#endif
#endif
