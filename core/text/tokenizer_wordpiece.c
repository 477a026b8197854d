// WordPiece (Schuster & Nakajima 2012, as in BERT): a word becomes the longest token that begins it, then the
// longest that goes on, and so on; a word that can't be made so is unknown as a whole.
#include <jansson.h>
#include <string.h>

#include "core/base/json.h"
#include "core/text/tokenizer_internal.h"

enum { MAX_WORD = 1 << 30 };

dr_status dr_wordpiece_read_model(dr_tokenizer *t, json_t *model, const char *where) {
    const char *prefix = NULL;
    t->is_wordpiece = true;
    DR_TRY(dr_json_string(model, where, "continuing_subword_prefix", &prefix));
    DR_TRY(dr_json_i64(model, where, "max_input_chars_per_word", 0, MAX_WORD, &t->wordpiece.max_characters));
    t->wordpiece.n_prefix = strlen(prefix);
    return dr_strdup(&t->wordpiece.prefix, prefix);
}

dr_status dr_wordpiece_finish(dr_tokenizer *t, json_t *model, json_t *vocabulary, const char *where) {
    const char *unknown = NULL;
    DR_TRY(dr_json_string(model, where, "unk_token", &unknown));
    json_t *id = json_object_get(vocabulary, unknown);
    DR_CHECK(id, DR_ERR_FORMAT, "%s: unk_token: \"%s\" is not in the vocabulary", where, unknown);
    t->wordpiece.unknown = (int32_t)json_integer_value(id);
    for (int32_t k = 0; k < t->n_tokens; k++) {
        const bpe_token *token = &t->tokens[k];
        if (token->in_model && (size_t)token->length > t->wordpiece.longest)
            t->wordpiece.longest = (size_t)token->length;
    }
    return DR_OK;
}

dr_status dr_wordpiece_read_decoder(dr_tokenizer *t, json_t *node, const char *type, const char *where) {
    const char *prefix = NULL;
    int cleans = 0;
    DR_CHECK(strcmp(type, "WordPiece") == 0, DR_ERR_UNSUPPORTED,
             "%s: decoder \"%s\" with a WordPiece model is not supported (WordPiece)", where, type);
    DR_CHECK(!t->wordpiece.decoder_prefix, DR_ERR_UNSUPPORTED, "%s: two decoders", where);
    DR_TRY(dr_json_string(node, where, "prefix", &prefix));
    DR_TRY(dr_json_bool(node, where, "cleanup", &cleans));
    t->wordpiece.cleans_up = cleans;
    return dr_strdup(&t->wordpiece.decoder_prefix, prefix);
}

void dr_wordpiece_free(dr_tokenizer *t) {
    dr_free(t->wordpiece.prefix);
    dr_free(t->wordpiece.decoder_prefix);
}

static bool is_too_long(const char *word, size_t length, int64_t most) {
    int64_t n = 0;
    for (size_t i = 0; i < length; i++) n += ((unsigned char)word[i] & 0xC0) != 0x80;
    return n > most;
}

// The longest token among the beginnings of text[0..length), at least `least` bytes long: its id and its
// length, or -1.
static int32_t longest_token(const dr_tokenizer *t, const char *text, size_t length, size_t least,
                             size_t *out_length) {
    size_t end = length < t->wordpiece.longest ? length : t->wordpiece.longest;
    for (; end > least; end--) {
        if (end < length && ((unsigned char)text[end] & 0xC0) == 0x80) continue; // inside a character
        int32_t id = dr_bpe_find(t, text, end);
        *out_length = end;
        if (id >= 0) return id;
    }
    return -1;
}

dr_status dr_wordpiece_encode(const dr_tokenizer *t, dr_buf *room, const char *word, size_t length,
                              int32_t *ids, int64_t *out_n) {
    const wordpiece *w = &t->wordpiece;
    size_t n_prefix = w->n_prefix;
    *out_n = 1;
    ids[0] = w->unknown;
    if (is_too_long(word, length, w->max_characters)) return DR_OK;
    dr_buf_clear(room);
    DR_TRY(dr_buf_append(room, w->prefix, n_prefix));
    DR_TRY(dr_buf_append(room, word, length));
    int64_t n = 0;
    for (size_t at = 0; at < length;) {
        // The prefix goes right in front of what is left, over what is done with.
        size_t lead = at > 0 ? n_prefix : 0, taken = 0;
        char *rest = room->data + n_prefix + at - lead;
        memcpy(rest, w->prefix, lead);
        int32_t id = longest_token(t, rest, length - at + lead, lead, &taken);
        if (id < 0) {
            ids[0] = w->unknown;
            return DR_OK;
        }
        ids[n++] = id;
        at += taken - lead;
    }
    *out_n = n;
    return DR_OK;
}

// What the decoder's cleanup writes without a space, in its order.
static dr_status clean_up(dr_buf *text) {
    static const char *const changes[][2] = {
        {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
        {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    dr_buf changed = {0};
    dr_status status = DR_OK;
    for (size_t k = 0; k < sizeof changes / sizeof *changes && status == DR_OK; k++) {
        dr_buf other = *text;
        dr_buf_clear(&changed);
        status = dr_bpe_replace(text->data, text->length, changes[k][0], changes[k][1], &changed);
        if (status != DR_OK) break;
        *text = changed;
        changed = other;
    }
    dr_buf_reset(&changed);
    return status;
}

dr_status dr_wordpiece_decode(const dr_tokenizer *t, const bpe_token *token, bool is_first, dr_buf *out) {
    const wordpiece *w = &t->wordpiece;
    const char *bytes = token->shown ? token->shown->data : token->bytes;
    size_t length = token->shown ? token->shown->length : (size_t)token->length;
    size_t n_prefix = w->decoder_prefix ? strlen(w->decoder_prefix) : 0;
    bool goes_on = w->decoder_prefix && length >= n_prefix && memcmp(bytes, w->decoder_prefix, n_prefix) == 0;
    if (is_first || !goes_on) n_prefix = 0;
    dr_buf text = {0};
    dr_status status = is_first || goes_on ? DR_OK : dr_buf_text(&text, " ");
    if (status == DR_OK) status = dr_buf_append(&text, bytes + n_prefix, length - n_prefix);
    if (status == DR_OK && w->cleans_up) status = clean_up(&text);
    if (status == DR_OK) status = dr_buf_append(out, text.data, text.length);
    dr_buf_reset(&text);
    return status;
}
