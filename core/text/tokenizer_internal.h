// Shared inside the tokenizer: the tables that encode, decode, load, save and training work on.
#ifndef DR_CORE_TEXT_TOKENIZER_INTERNAL_H
#define DR_CORE_TEXT_TOKENIZER_INTERNAL_H

#include <stdatomic.h>

#include <jansson.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/text/tokenizer.h"

enum { MAX_STAGES = 16 };

// One vocabulary entry: its raw bytes (added tokens: their text).
typedef struct bpe_token {
    char *bytes;
    int32_t length;  // -1: the id is unused
    bool in_model;   // of the model's vocabulary, and of BPE made of the byte alphabet: text can become it
    bool is_special; // an added token that is special: no piece of text becomes it as a whole
    const dr_buf *shown; // of WordPiece: what an added token is decoded as, borrowed; NULL: its bytes
} bpe_token;

typedef struct bpe_merge {
    int32_t left, right, merged;
} bpe_merge;

typedef struct added_token {
    char *text;
    int32_t length, id;
    bool is_special, lstrip, rstrip, single_word, normalized;
} added_token;

// A short piece of text (15 bytes at most) as two numbers; of a longer one, a hash and its length, so equal
// keys of long pieces must be compared.
typedef struct piece_key {
    uint64_t low, high;
} piece_key;

// Open addressing; id or rank -1 is empty.
typedef struct key_slot {
    piece_key key;
    int32_t id;
} key_slot;
typedef struct byte_slot {
    uint32_t hash;
    int32_t id;
} byte_slot;
typedef struct pair_slot {
    int32_t left, right, rank, merged;
} pair_slot;

typedef struct key_index {
    key_slot *slots;
    int64_t size; // power of two
} key_index;
typedef struct byte_index {
    byte_slot *slots;
    int64_t size;
} byte_index;
typedef struct pair_index {
    pair_slot *slots;
    int64_t size;
} pair_index;

// Added tokens that are looked for together, by their bytes: in the text as it is, or in the normalised text.
typedef struct added_set {
    byte_index index;   // of rows of `added`
    dr_buf *texts;      // [n_added] what is looked for; empty where the token is of the other set
    int32_t n, n_texts; // tokens in the set; texts
    size_t max_length;
    uint8_t begins[8192]; // bit of the first two bytes; one-byte tokens set all with their first
} added_set;

typedef enum bpe_behaviour {
    BPE_ISOLATED,
    BPE_REMOVED,
    BPE_CONTIGUOUS,
    BPE_MERGED_WITH_PREVIOUS,
    BPE_MERGED_WITH_NEXT
} bpe_behaviour;

// One step of the normaliser.
typedef enum normal_kind {
    NORMAL_NFC,
    NORMAL_NFD,
    NORMAL_CLEAN,            // controls are removed, white space becomes spaces
    NORMAL_SPACE_IDEOGRAPHS, // a space on both sides of each
    NORMAL_STRIP_ACCENTS,    // non-spacing marks are removed
    NORMAL_STRIP_MARKS,      // all marks are
    NORMAL_LOWER,
    NORMAL_REPLACE,
    NORMAL_UTF8 // each byte that is no UTF-8 becomes U+FFFD
} normal_kind;
typedef struct normal_step {
    normal_kind kind;
    char *from, *to; // of NORMAL_REPLACE
} normal_step;

// What a WordPiece model has beside the vocabulary.
typedef struct wordpiece {
    char *prefix;             // in front of what goes on with a word
    size_t n_prefix, longest; // its length; that of the longest token; bytes
    int64_t max_characters;   // a longer word is unknown
    int32_t unknown;
    char *decoder_prefix; // NULL: no decoder, tokens are joined by spaces
    bool cleans_up;
} wordpiece;

// One step of the pre-tokeniser: a split by a pattern, or ByteLevel's space in front.
typedef struct bpe_stage {
    bool is_prefix_space;
    bpe_behaviour behaviour;
    bool invert;
    char *pattern; // as PCRE2 reads it
    pcre2_code *regex;
    bool has_jit;
} bpe_stage;

// What the file was, so that saving gives it back byte by byte; empty for a learned vocabulary.
typedef struct bpe_sources {
    dr_buf tokenizer, config, chat_template;
} bpe_sources;

struct dr_tokenizer {
    bpe_token *tokens; // [n_tokens] by id
    int32_t n_tokens, tokens_capacity;
    bpe_merge *merges; // by rank
    int32_t n_merges, merges_capacity;
    added_token *added;
    int32_t n_added, added_capacity;
    key_index by_bytes;      // BPE tokens by their bytes
    pair_index by_pair;      // merges by (left, right); of equal pairs the last counts
    int32_t byte_ids[256];   // -1: the byte has no token
    pair_slot *byte_pairs;   // [256 * 256] the merge of two bytes' tokens; rank -1: none
    _Atomic(uint8_t) *whole; // [n_tokens] 1: merging a token's bytes gives the token; 0: not known to
    bpe_stage stages[MAX_STAGES];
    int32_t n_stages;
    pcre2_code *word_character; // for single_word; NULL when no token asks
    added_set sets[2];          // 0: in the text, 1: in the normalised text
    normal_step normal[MAX_STAGES];
    int32_t n_normal;
    bool is_wordpiece; // else byte-level BPE
    wordpiece wordpiece;
    bool ignore_merges, has_byte_level;
    int32_t *frame; // ids of the post-processor: n_before in front of a text, n_after behind it
    int32_t n_before, n_after, frame_capacity;
    bpe_sources sources;
};

// The split of fresh tokenizers and of pre-tokeniser ByteLevel with use_regex (GPT-2's).
extern const char dr_bpe_catalogue_pattern[], dr_bpe_gpt2_pattern[];
// What single_word takes for a part of a word: one character.
extern const char dr_bpe_word_pattern[];

piece_key dr_bpe_key(const char *bytes, size_t length);
static inline uint32_t dr_bpe_key_hash(piece_key key) {
    uint64_t h = (key.low ^ key.high * 0xD6E8FEB86659FD93u) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(h ^ h >> 32);
}
static inline bool dr_bpe_key_is_exact(piece_key key) {
    return key.high >> 56 != 0xFF;
}
// Sets token `id`; bytes are copied. DR_ERR_FORMAT when the id is taken by other bytes;
// `where` begins the error's text.
dr_status dr_bpe_set_token(dr_tokenizer *t, const char *where, int32_t id, const char *bytes, int32_t length,
                           bool in_model);
dr_status dr_bpe_add_merge(dr_tokenizer *t, int32_t left, int32_t right, int32_t merged);
dr_status dr_bpe_add_special(dr_tokenizer *t, const char *where, const added_token *token);
// Adds a pre-tokeniser step. `pattern` NULL: ByteLevel's space in front; else PCRE2's form of the pattern.
dr_status dr_bpe_add_stage(dr_tokenizer *t, const char *where, const char *pattern, bpe_behaviour behaviour,
                           bool invert);
// Rebuilds the index of tokens and that of merges.
dr_status dr_bpe_index_tokens(dr_tokenizer *t);
// Builds the indexes; `where` begins error texts. May be called again after changes.
dr_status dr_bpe_finish(dr_tokenizer *t, const char *where);
int32_t dr_bpe_find(const dr_tokenizer *t, const char *bytes, size_t length); // of the BPE vocabulary, or -1
int32_t dr_bpe_find_key(const dr_tokenizer *t, piece_key key, const char *bytes, size_t length); // the same
const pair_slot *dr_bpe_find_merge(const dr_tokenizer *t, int32_t left, int32_t right);          // or NULL

// WordPiece (tokenizer_wordpiece.c): the model but for its vocabulary, and what needs that; the decoder.
dr_status dr_wordpiece_read_model(dr_tokenizer *t, json_t *model, const char *where);
dr_status dr_wordpiece_finish(dr_tokenizer *t, json_t *model, json_t *vocabulary, const char *where);
dr_status dr_wordpiece_read_decoder(dr_tokenizer *t, json_t *node, const char *type, const char *where);
void dr_wordpiece_free(dr_tokenizer *t);
// The tokens of one word, of valid UTF-8, length > 0: at most `length` ids. `room` is any buffer.
dr_status dr_wordpiece_encode(const dr_tokenizer *t, dr_buf *room, const char *word, size_t length,
                              int32_t *ids, int64_t *out_n);
// Appends a token as the decoder writes it, at the begin of a text or later.
dr_status dr_wordpiece_decode(const dr_tokenizer *t, const bpe_token *token, bool is_first, dr_buf *out);

// One step of a normaliser (tokenizer_normalize.c).
dr_status dr_bpe_read_normalizer(dr_tokenizer *t, json_t *node, const char *type, const char *where);
// *text and *length become the normal form: it is the text itself, or lies in one of two buffers.
dr_status dr_bpe_normalise(const dr_tokenizer *t, dr_buf room[2], const char **text, size_t *length);
// Appends the text with `to` for each `from`, which is not empty.
dr_status dr_bpe_replace(const char *text, size_t length, const char *from, const char *to, dr_buf *out);
bool dr_bpe_is_white(uint32_t code); // Unicode's White_Space

// Reads normaliser, pre-tokeniser and decoder; the post-processor, once the tokens are there.
dr_status dr_bpe_read_pipeline(dr_tokenizer *t, json_t *root, const char *where);
dr_status dr_bpe_read_frame(dr_tokenizer *t, json_t *root, const char *where);

// Characters younger than PCRE2's edition of Unicode (late_tables.c).
typedef struct late_range {
    uint32_t first, last;
    char category[3];
} late_range;
extern const late_range dr_bpe_late[];
extern const int32_t dr_bpe_n_late;

// The regex of a tokenizer.json (Oniguruma's syntax) as one of PCRE2 that matches the same; what has another
// meaning there and is not translated is refused by name. Appends to out.
dr_status dr_bpe_translate_regex(const char *where, const char *pattern, dr_buf *out);
// Appends the pattern of pre-tokeniser Whitespace: runs of word characters, or of what is neither they nor
// white.
dr_status dr_bpe_whitespace_pattern(dr_buf *out);

// Calls `visit` for each pre-token of the text, in order. Bytes that are no UTF-8 are pieces of their own, a
// run of them one piece.
typedef dr_status (*piece_visitor)(void *context, const char *piece, size_t length);
typedef struct bpe_splitter {
    const dr_tokenizer *t;
    pcre2_match_data *match;
    dr_buf prefixed;
    piece_visitor visit;
    void *context;
    bool is_valid; // the texts are known to be UTF-8
} bpe_splitter;
dr_status dr_bpe_splitter_init(bpe_splitter *s, const dr_tokenizer *t, piece_visitor visit, void *context);
void dr_bpe_splitter_reset(bpe_splitter *s);
dr_status dr_bpe_splitter_run(bpe_splitter *s, const char *text, size_t length);

// Room for merging. Zero-initialise, then dr_bpe_merger_reset to free; grows to the longest piece.
typedef struct bpe_merger {
    int32_t *symbols; // [length] the result
    void *block;
    int64_t capacity;
} bpe_merger;
// Merges the bytes of one piece: the pair of lowest rank first, leftmost among equals. The ids are in
// m->symbols.
dr_status dr_bpe_merge_bytes(const dr_tokenizer *t, bpe_merger *m, const char *piece, size_t length,
                             int64_t *out_n);
void dr_bpe_merger_reset(bpe_merger *m);

// Sets of added tokens (tokenizer_added.c).
dr_status dr_bpe_build_added(dr_tokenizer *t);
void dr_bpe_free_added(dr_tokenizer *t);
// The longest token of the set that begins at text[at], or NULL.
const added_token *dr_bpe_added_at(const dr_tokenizer *t, const added_set *set, const char *text,
                                   size_t length, size_t at);
// Are the neighbours of text[begin..end) letters, digits or the like, as single_word asks?
bool dr_bpe_touches_word(const dr_tokenizer *t, const char *text, size_t length, size_t begin, size_t end);
// text[0..n) without the white space at its end: the new length; and the length of the white space it begins
// with.
size_t dr_bpe_before_blanks(const char *text, size_t n);
size_t dr_bpe_blanks(const char *text, size_t length);

// GPT-2's printable alphabet: the character that stands for a byte, and the byte of a character (-1: none).
uint32_t dr_bpe_byte_character(int byte);
int dr_bpe_character_byte(uint32_t character);

#endif
