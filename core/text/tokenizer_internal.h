// Shared inside the tokenizer: the tables that encode, decode, load, save and training work on.
#ifndef DR_CORE_TEXT_TOKENIZER_INTERNAL_H
#define DR_CORE_TEXT_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/text/tokenizer.h"

// One vocabulary entry: its raw bytes (added tokens: their text).
typedef struct bpe_token {
    char *bytes;
    int32_t length; // -1: the id is unused
} bpe_token;

typedef struct bpe_merge {
    int32_t left, right, merged;
} bpe_merge;

typedef struct added_token {
    char *text;
    int32_t length, id;
    bool is_special, lstrip, rstrip, single_word;
} added_token;

// Open addressing; slot -1 is empty.
typedef struct index_table {
    int32_t *slots;
    int64_t size; // power of two
} index_table;

struct dr_tokenizer {
    bpe_token *tokens; // [n_tokens] by id
    int32_t n_tokens, tokens_capacity;
    bpe_merge *merges; // by rank
    int32_t n_merges, merges_capacity;
    added_token *added;
    int32_t n_added, added_capacity;
    index_table by_bytes;  // BPE tokens by their bytes (added tokens are not in it)
    index_table by_pair;   // merges by (left, right)
    int32_t byte_ids[256]; // -1: the byte has no token
    char *pattern;         // of the pre-tokeniser; NULL: no split
    pcre2_code *regex;
    bool ignore_merges;
};

// The split of fresh tokenizers and of pre-tokeniser ByteLevel with use_regex (GPT-2's).
extern const char dr_bpe_catalogue_pattern[], dr_bpe_gpt2_pattern[];

// Sets token `id`; bytes are copied. DR_ERR_FORMAT when the id is taken by other bytes.
dr_status dr_bpe_set_token(dr_tokenizer *t, int32_t id, const char *bytes, int32_t length);
dr_status dr_bpe_add_merge(dr_tokenizer *t, int32_t left, int32_t right, int32_t merged);
dr_status dr_bpe_add_special(dr_tokenizer *t, const added_token *token);
// Rebuilds the indexes of tokens and merges.
dr_status dr_bpe_index_tokens(dr_tokenizer *t);
// Builds the indexes and compiles the pattern; `where` begins error texts. May be called again after changes.
dr_status dr_bpe_finish(dr_tokenizer *t, const char *where);
int32_t dr_bpe_find(const dr_tokenizer *t, const char *bytes, int32_t length);
int32_t dr_bpe_find_merge(const dr_tokenizer *t, int32_t left, int32_t right); // rank or -1
// Calls `visit` for each pre-token of the text, in order; bytes between matches are pieces of their own.
typedef dr_status (*piece_visitor)(void *context, const char *piece, size_t length);
dr_status dr_bpe_split(const dr_tokenizer *t, const char *text, size_t length, piece_visitor visit,
                       void *context);

// GPT-2's printable alphabet: the character that stands for a byte, and the byte of a character (-1: none).
uint32_t dr_bpe_byte_character(int byte);
int dr_bpe_character_byte(uint32_t character);

#endif
