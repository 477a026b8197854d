// The tables of a tokenizer, and decoding: whole texts, and id by id.
#include "core/text/tokenizer.h"

#include <string.h>

#include "core/text/normalize.h"
#include "core/text/tokenizer_internal.h"

uint32_t dr_bpe_byte_character(int byte) {
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174) return (uint32_t)byte;
    if (byte <= 32) return 256 + (uint32_t)byte;
    if (byte <= 160) return 256 + 33 + (uint32_t)(byte - 127);
    return 256 + 67; // byte 173
}

int dr_bpe_character_byte(uint32_t character) {
    if (character < 256) return dr_bpe_byte_character((int)character) == character ? (int)character : -1;
    if (character <= 288) return (int)character - 256;
    if (character <= 322) return (int)character - 289 + 127;
    return character == 323 ? 173 : -1;
}

static uint64_t load(const char *bytes, size_t n) {
    uint64_t word = 0;
    memcpy(&word, bytes, n);
    return word;
}

static uint64_t hash_long(const char *bytes, size_t n) {
    uint64_t h = n * 0x9E3779B97F4A7C15u;
    for (size_t at = 0; at + 8 <= n; at += 8) {
        h = (h ^ load(bytes + at, 8)) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    h = (h ^ load(bytes + n - 8, 8)) * 0xD6E8FEB86659FD93u; // the end, part of it again
    return h ^ h >> 32;
}

piece_key dr_bpe_key(const char *bytes, size_t n) {
    piece_key key = {0, (uint64_t)n << 56};
    if (n > 15) return (piece_key){hash_long(bytes, n), (uint64_t)0xFF << 56 | (uint32_t)n};
    if (n > 8) {
        key.low = load(bytes, 8);
        key.high |= load(bytes + n - 8, 8) >> 8 * (16 - n);
    } else if (n == 8) {
        key.low = load(bytes, 8);
    } else if (n >= 4) {
        key.low = load(bytes, 4) | load(bytes + n - 4, 4) << 8 * (n - 4);
    } else {
        for (size_t i = 0; i < n; i++) key.low |= (uint64_t)(unsigned char)bytes[i] << 8 * i;
    }
    return key;
}

static uint64_t hash_pair(int32_t left, int32_t right) {
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 31;
}

dr_status dr_bpe_set_token(dr_tokenizer *t, const char *where, int32_t id, const char *bytes, int32_t length,
                           bool in_model) {
    if (id >= t->tokens_capacity) {
        int32_t capacity = id + id / 2 + 1024;
        DR_TRY(dr_grow(&t->tokens, "vocabulary", t->tokens_capacity, capacity, sizeof *t->tokens));
        for (int32_t i = t->tokens_capacity; i < capacity; i++) t->tokens[i].length = -1;
        t->tokens_capacity = capacity;
    }
    bpe_token *token = &t->tokens[id];
    if (token->length >= 0) {
        DR_CHECK(token->length == length && memcmp(token->bytes, bytes, (size_t)length) == 0, DR_ERR_FORMAT,
                 "%s: id %d stands for two tokens, \"%s\" and \"%.*s\"", where, id, token->bytes, length,
                 bytes);
        token->in_model = token->in_model || in_model;
        return DR_OK;
    }
    DR_TRY(dr_strndup(&token->bytes, bytes, (size_t)length));
    token->length = length;
    token->in_model = in_model;
    if (id >= t->n_tokens) t->n_tokens = id + 1;
    return DR_OK;
}

dr_status dr_bpe_add_merge(dr_tokenizer *t, int32_t left, int32_t right, int32_t merged) {
    if (t->n_merges == t->merges_capacity) {
        int32_t capacity = t->merges_capacity ? 2 * t->merges_capacity : 4096;
        DR_TRY(dr_grow(&t->merges, "merges", t->merges_capacity, capacity, sizeof *t->merges));
        t->merges_capacity = capacity;
    }
    t->merges[t->n_merges++] = (bpe_merge){left, right, merged};
    return DR_OK;
}

dr_status dr_bpe_add_special(dr_tokenizer *t, const char *where, const added_token *token) {
    if (t->n_added == t->added_capacity) {
        int32_t capacity = t->added_capacity ? 2 * t->added_capacity : 32;
        DR_TRY(dr_grow(&t->added, "added tokens", t->added_capacity, capacity, sizeof *t->added));
        t->added_capacity = capacity;
    }
    added_token copy = *token;
    DR_TRY(dr_strndup(&copy.text, token->text, (size_t)token->length));
    t->added[t->n_added++] = copy;
    DR_TRY(dr_bpe_set_token(t, where, token->id, token->text, token->length, false));
    t->tokens[token->id].is_special = t->tokens[token->id].is_special || token->is_special;
    return DR_OK;
}

static dr_status index_bytes(dr_tokenizer *t) {
    key_index *index = &t->by_bytes;
    dr_free(index->slots);
    index->slots = NULL;
    for (index->size = 64; index->size < 2 * (int64_t)t->n_tokens;) index->size *= 2;
    DR_TRY(dr_alloc(&index->slots, "tokenizer index", index->size, sizeof *index->slots));
    for (int64_t at = 0; at < index->size; at++) index->slots[at].id = -1;
    for (int32_t id = 0; id < t->n_tokens; id++) {
        const bpe_token *token = &t->tokens[id];
        if (token->length < 0 || !token->in_model) continue;
        piece_key key = dr_bpe_key(token->bytes, (size_t)token->length);
        int64_t at = dr_bpe_key_hash(key) & (index->size - 1);
        while (index->slots[at].id >= 0) at = (at + 1) & (index->size - 1);
        index->slots[at] = (key_slot){key, id};
    }
    return DR_OK;
}

static pair_slot *slot_of(const pair_index *index, int32_t left, int32_t right) {
    int64_t at = (int64_t)(hash_pair(left, right) & (uint64_t)(index->size - 1));
    while (index->slots[at].rank >= 0 && (index->slots[at].left != left || index->slots[at].right != right))
        at = (at + 1) & (index->size - 1);
    return &index->slots[at];
}

static dr_status index_merges(dr_tokenizer *t) {
    pair_index *index = &t->by_pair;
    dr_free(index->slots);
    index->slots = NULL;
    for (index->size = 64; index->size < 2 * (int64_t)t->n_merges;) index->size *= 2;
    DR_TRY(dr_alloc(&index->slots, "tokenizer index", index->size, sizeof *index->slots));
    memset(index->slots, 0xFF, (size_t)index->size * sizeof *index->slots);
    for (int32_t rank = 0; rank < t->n_merges; rank++) {
        const bpe_merge *m = &t->merges[rank];
        *slot_of(index, m->left, m->right) = (pair_slot){m->left, m->right, rank, m->merged};
    }
    return DR_OK;
}

int32_t dr_bpe_find_key(const dr_tokenizer *t, piece_key key, const char *bytes, size_t length) {
    int64_t mask = t->by_bytes.size - 1;
    for (int64_t at = dr_bpe_key_hash(key) & mask;; at = (at + 1) & mask) {
        const key_slot *slot = &t->by_bytes.slots[at];
        if (slot->id < 0) return -1;
        if (slot->key.low != key.low || slot->key.high != key.high) continue;
        const bpe_token *token = &t->tokens[slot->id];
        if (dr_bpe_key_is_exact(key) ||
            ((size_t)token->length == length && memcmp(token->bytes, bytes, length) == 0))
            return slot->id;
    }
}

int32_t dr_bpe_find(const dr_tokenizer *t, const char *bytes, size_t length) {
    return dr_bpe_find_key(t, dr_bpe_key(bytes, length), bytes, length);
}

const pair_slot *dr_bpe_find_merge(const dr_tokenizer *t, int32_t left, int32_t right) {
    const pair_slot *slot = slot_of(&t->by_pair, left, right);
    return slot->rank >= 0 ? slot : NULL;
}

dr_status dr_bpe_index_tokens(dr_tokenizer *t) {
    DR_TRY(index_bytes(t));
    DR_TRY(index_merges(t));
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        t->byte_ids[byte] = dr_bpe_find(t, &c, 1);
    }
    return DR_OK;
}

// What merging looks up by bytes.
static dr_status index_byte_pairs(dr_tokenizer *t, const char *where) {
    for (int byte = 0; byte < 256; byte++)
        DR_CHECK(t->byte_ids[byte] >= 0, DR_ERR_FORMAT, "%s: the vocabulary has no token for byte 0x%02X",
                 where, byte);
    dr_free(t->byte_pairs);
    t->byte_pairs = NULL;
    DR_TRY(dr_alloc(&t->byte_pairs, "tokenizer index", 65536, sizeof *t->byte_pairs));
    for (int32_t two = 0; two < 65536; two++)
        t->byte_pairs[two] = *slot_of(&t->by_pair, t->byte_ids[two >> 8], t->byte_ids[two & 255]);
    dr_free((void *)t->whole);
    t->whole = NULL;
    return dr_alloc(&t->whole, "vocabulary", t->n_tokens, sizeof *t->whole);
}

dr_status dr_bpe_finish(dr_tokenizer *t, const char *where) {
    DR_TRY(dr_bpe_index_tokens(t));
    if (!t->is_wordpiece) DR_TRY(index_byte_pairs(t, where));
    return dr_bpe_build_added(t);
}

void dr_tokenizer_destroy(dr_tokenizer *t) {
    if (!t) return;
    dr_bpe_free_added(t);
    for (int32_t i = 0; i < t->tokens_capacity; i++) dr_free(t->tokens[i].bytes);
    for (int32_t i = 0; i < t->n_added; i++) dr_free(t->added[i].text);
    for (int32_t i = 0; i < t->n_stages; i++) {
        dr_free(t->stages[i].pattern);
        if (t->stages[i].regex) pcre2_code_free(t->stages[i].regex);
    }
    for (int32_t i = 0; i < t->n_normal; i++) {
        dr_free(t->normal[i].from);
        dr_free(t->normal[i].to);
    }
    dr_wordpiece_free(t);
    dr_free(t->tokens);
    dr_free(t->merges);
    dr_free(t->added);
    dr_free(t->by_bytes.slots);
    dr_free(t->by_pair.slots);
    dr_free(t->byte_pairs);
    dr_free((void *)t->whole);
    dr_free(t->frame);
    dr_buf_reset(&t->sources.tokenizer);
    dr_buf_reset(&t->sources.config);
    dr_buf_reset(&t->sources.chat_template);
    dr_free(t);
}

bool dr_tokenizer_is_of_bytes(const dr_tokenizer *t) {
    return !t->is_wordpiece;
}

int32_t dr_tokenizer_size(const dr_tokenizer *t) {
    return t->n_tokens;
}

int32_t dr_tokenizer_special(const dr_tokenizer *t, const char *text) {
    for (int32_t i = 0; i < t->n_added; i++)
        if (strcmp(t->added[i].text, text) == 0) return t->added[i].id;
    return -1;
}

void dr_tokenizer_frame(const dr_tokenizer *t, const int32_t **out_before, int32_t *out_n_before,
                        const int32_t **out_after, int32_t *out_n_after) {
    *out_before = t->frame;
    *out_n_before = t->n_before;
    *out_after = t->frame ? t->frame + t->n_before : NULL;
    *out_n_after = t->n_after;
}

static dr_status append_token(const dr_tokenizer *t, const bpe_token *token, bool is_first, dr_buf *out) {
    return t->is_wordpiece ? dr_wordpiece_decode(t, token, is_first, out)
                           : dr_buf_append(out, token->bytes, (size_t)token->length);
}

dr_status dr_tokenizer_decode(const dr_tokenizer *t, const int32_t *ids, int64_t n_ids, dr_buf *out_bytes) {
    for (int64_t i = 0; i < n_ids; i++)
        DR_CHECK(ids[i] >= 0 && ids[i] < t->n_tokens, DR_ERR_RANGE,
                 "decode: id %d outside the vocabulary of %d", ids[i], t->n_tokens);
    bool is_first = true;
    for (int64_t i = 0; i < n_ids; i++) {
        const bpe_token *token = &t->tokens[ids[i]];
        if (token->length <= 0) continue;
        DR_TRY(append_token(t, token, is_first, out_bytes));
        is_first = false;
    }
    return dr_buf_append(out_bytes, "", 0);
}

dr_status dr_tokenizer_stream(const dr_tokenizer *t, dr_decode_stream *stream, int32_t id, dr_buf *out) {
    DR_CHECK(id >= 0 && id < t->n_tokens, DR_ERR_RANGE, "decode: id %d outside the vocabulary of %d", id,
             t->n_tokens);
    const bpe_token *token = &t->tokens[id];
    size_t before = out->length;
    if (token->length <= 0) return DR_OK;
    DR_TRY(dr_buf_append(out, stream->held, (size_t)stream->n_held));
    dr_status status = append_token(t, token, !stream->has_begun, out);
    if (status != DR_OK) {
        out->length = before;
        return status;
    }
    stream->has_begun = true;
    size_t length = out->length - before, whole = dr_utf8_complete(out->data + before, length);
    stream->n_held = (int32_t)(length - whole);
    memcpy(stream->held, out->data + before + whole, length - whole);
    out->length = before + whole;
    out->data[out->length] = 0;
    return DR_OK;
}

dr_status dr_tokenizer_stream_flush(dr_decode_stream *stream, dr_buf *out) {
    DR_TRY(dr_buf_append(out, stream->held, (size_t)stream->n_held));
    *stream = (dr_decode_stream){0};
    return DR_OK;
}
