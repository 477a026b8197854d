// Tokenizers, byte-level BPE and WordPiece: reads and writes Hugging Face tokenizer.json, and learns a BPE
// vocabulary from text.
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

// dir/tokenizer.json as the `tokenizers` library reads it, with the same ids: byte-level BPE (GPT-2, Qwen,
// Llama 3) or WordPiece (BERT, MiniLM, bge, e5). Of both: normalisers NFC, NFD, Lowercase, StripAccents,
// Replace of a String and BertNormalizer; pre-tokenisers Split, Digits, Punctuation, Whitespace,
// WhitespaceSplit, BertPreTokenizer and, last and of BPE alone, ByteLevel; added tokens with all their flags;
// `truncation` and `padding` are left out. Every malformed part is named (which key, expected, found), and so
// is what is well formed but not supported: other models and normalisers, byte_fallback, of BPE prefixes and
// suffixes of words, dropout. A BPE vocabulary must have a token for each of the 256 bytes, one of WordPiece
// its unk_token. Loaded objects are immutable and may be used by several threads.
dr_status dr_tokenizer_load(const char *dir, dr_tokenizer **out_tokenizer);
// The same from the bytes of a tokenizer.json; `where` begins error texts.
dr_status dr_tokenizer_parse(const char *where, const char *bytes, size_t length,
                             dr_tokenizer **out_tokenizer);
// Writes tokenizer.json and tokenizer_config.json so that transformers' AutoTokenizer opens the folder. What
// was loaded is written as it was, byte by byte, tokenizer_config.json and chat_template.jinja included when
// they were there.
dr_status dr_tokenizer_save(const dr_tokenizer *tokenizer, const char *dir);
void dr_tokenizer_destroy(dr_tokenizer *tokenizer);

// Learns byte-level BPE with the GPT-2/Qwen2 pre-tokenisation. texts: n documents (bytes, UTF-8 expected,
// invalid bytes kept). specials become single added tokens (the ids after the learned vocabulary, in order).
// vocab counts all of them. Ties between pairs go to the pair that sorts first, so the result is
// deterministic. A corpus too small to reach `vocab` gives a smaller vocabulary.
dr_status dr_tokenizer_train(const char *const *texts, int64_t n_texts, int32_t vocab,
                             const char *const *specials, int32_t n_specials, dr_tokenizer **out_tokenizer);

int32_t dr_tokenizer_size(const dr_tokenizer *tokenizer); // largest id + 1
// Whether the bytes of tokens in a row are the text that they stand for: of byte-level BPE, not of WordPiece.
bool dr_tokenizer_is_of_bytes(const dr_tokenizer *tokenizer);
bool dr_tokenizer_lowers(const dr_tokenizer *tokenizer); // its normaliser makes text lower case
// Id of an added token by its exact text, or -1.
int32_t dr_tokenizer_special(const dr_tokenizer *tokenizer, const char *text);

// Appends the ids of text[0..length) to *ids (grown with dr_grow; *n_ids and *capacity are updated). Added
// tokens inside the text become single ids when parse_special, else they are encoded as plain text: untrusted
// text (titles) must never become a control token. Any bytes are a text. With BPE those that are no UTF-8
// become the tokens of these bytes, a run of them being a word of its own, and the text on both sides is
// encoded as if it ended there; so nothing is lost (unless the file's pre-tokeniser removes text or its
// normaliser changes it). With WordPiece each is read as U+FFFD, which BertNormalizer removes; and unlike the
// library's, no word becomes a special token whose text it happens to be.
dr_status dr_tokenizer_encode(const dr_tokenizer *tokenizer, const char *text, size_t length,
                              bool parse_special, int32_t **ids, int64_t *n_ids, int64_t *capacity);
// The same with parse_special, but no added token is found that touches a foreign range: a text of control
// tokens and untrusted parts becomes the ids it would have as a whole, and the untrusted parts stay plain
// text.
//   foreign [2 * n_foreign] begin and end of each range, ascending
dr_status dr_tokenizer_encode_guarded(const dr_tokenizer *tokenizer, const char *text, size_t length,
                                      const size_t *foreign, int64_t n_foreign, int32_t **ids, int64_t *n_ids,
                                      int64_t *capacity);
// The ids of a whole text as a model of sentences reads it: those of dr_tokenizer_encode between those that
// the file's post-processor puts around a text ([CLS] and [SEP]). Where they are more than max_ids the last
// ids of the text are left out; what stands around it stays. DR_ERR_RANGE when max_ids has no room for that.
dr_status dr_tokenizer_encode_framed(const dr_tokenizer *tokenizer, const char *text, size_t length,
                                     bool parse_special, int64_t max_ids, int32_t **ids, int64_t *n_ids,
                                     int64_t *capacity);
// The ids that the file's post-processor puts in front of a text and behind it; none for most. Borrowed.
void dr_tokenizer_frame(const dr_tokenizer *tokenizer, const int32_t **out_before, int32_t *out_n_before,
                        const int32_t **out_after, int32_t *out_n_after);
// Appends the exact bytes of the ids (added tokens as their text); with WordPiece, the text that the file's
// decoder makes of them, words with a space between and added tokens of normalised text normalised.
// DR_ERR_RANGE for an id outside the vocabulary.
dr_status dr_tokenizer_decode(const dr_tokenizer *tokenizer, const int32_t *ids, int64_t n_ids,
                              dr_buf *out_bytes);

// Decoding id by id, for showing a text while it grows: what may still become a character is held back. All
// that comes out, flush included, is what dr_tokenizer_decode gives. Zero-initialise.
typedef struct dr_decode_stream {
    char held[4];
    int32_t n_held;
    bool has_begun; // a token was there: WordPiece writes the first without a space
} dr_decode_stream;
// Appends what is whole after this id: characters, and bytes that cannot become one.
dr_status dr_tokenizer_stream(const dr_tokenizer *tokenizer, dr_decode_stream *stream, int32_t id,
                              dr_buf *out);
// Appends the bytes held back, as they are, and makes the stream new.
dr_status dr_tokenizer_stream_flush(dr_decode_stream *stream, dr_buf *out);

#ifdef __cplusplus
}
#endif
#endif
