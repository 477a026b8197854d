// Encoding and decoding: added tokens, pre-tokenisation by regex, byte-level merges by rank.
#include "core/text/tokenizer.h"

#include <string.h>

#include "core/text/normalize.h"
#include "core/text/tokenizer_internal.h"

const char dr_bpe_gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
// List numbers with their line break and bracketed years are one piece each: catalogues are full of them.
const char dr_bpe_catalogue_pattern[] =
    "\\n?\\p{N}+\\.(?= )| ?\\(\\p{N}+\\)| ?[\\p{L}\\p{M}]+(?:['’]\\p{L}+)?| ?\\p{N}+|"
    " ?[^\\s\\p{L}\\p{M}\\p{N}]+|\\s+(?!\\S)|\\s+";

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

static uint64_t hash_bytes(const char *bytes, int32_t n) {
    uint64_t h = 0xCBF29CE484222325u;
    for (int32_t i = 0; i < n; i++) h = (h ^ (unsigned char)bytes[i]) * 0x100000001B3u;
    return h ^ h >> 29;
}

static uint64_t hash_pair(int32_t left, int32_t right) {
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 31;
}

dr_status dr_bpe_set_token(dr_tokenizer *t, int32_t id, const char *bytes, int32_t length) {
    if (id >= t->tokens_capacity) {
        int32_t capacity = id + id / 2 + 1024;
        DR_TRY(dr_grow(&t->tokens, "vocabulary", t->tokens_capacity, capacity, sizeof *t->tokens));
        for (int32_t i = t->tokens_capacity; i < capacity; i++) t->tokens[i].length = -1;
        t->tokens_capacity = capacity;
    }
    bpe_token *token = &t->tokens[id];
    if (token->length >= 0) {
        DR_CHECK(token->length == length && memcmp(token->bytes, bytes, (size_t)length) == 0, DR_ERR_FORMAT,
                 "tokenizer: id %d stands for two tokens, \"%s\" and \"%.*s\"", id, token->bytes, length,
                 bytes);
        return DR_OK;
    }
    DR_TRY(dr_strndup(&token->bytes, bytes, (size_t)length));
    token->length = length;
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

dr_status dr_bpe_add_special(dr_tokenizer *t, const added_token *token) {
    if (t->n_added == t->added_capacity) {
        int32_t capacity = t->added_capacity ? 2 * t->added_capacity : 32;
        DR_TRY(dr_grow(&t->added, "added tokens", t->added_capacity, capacity, sizeof *t->added));
        t->added_capacity = capacity;
    }
    added_token copy = *token;
    DR_TRY(dr_strndup(&copy.text, token->text, (size_t)token->length));
    t->added[t->n_added++] = copy;
    return dr_bpe_set_token(t, token->id, token->text, token->length);
}

static dr_status table_create(index_table *table, int64_t n) {
    table->size = 64;
    while (table->size < 2 * n) table->size *= 2;
    DR_TRY(dr_alloc(&table->slots, "tokenizer index", table->size, sizeof *table->slots));
    memset(table->slots, 0xFF, (size_t)table->size * sizeof *table->slots);
    return DR_OK;
}

int32_t dr_bpe_find(const dr_tokenizer *t, const char *bytes, int32_t length) {
    for (uint64_t i = hash_bytes(bytes, length);; i++) {
        int32_t id = t->by_bytes.slots[i & (uint64_t)(t->by_bytes.size - 1)];
        if (id < 0) return -1;
        if (t->tokens[id].length == length && memcmp(t->tokens[id].bytes, bytes, (size_t)length) == 0)
            return id;
    }
}

int32_t dr_bpe_find_merge(const dr_tokenizer *t, int32_t left, int32_t right) {
    for (uint64_t i = hash_pair(left, right);; i++) {
        int32_t rank = t->by_pair.slots[i & (uint64_t)(t->by_pair.size - 1)];
        if (rank < 0) return -1;
        if (t->merges[rank].left == left && t->merges[rank].right == right) return rank;
    }
}

static bool is_added(const dr_tokenizer *t, int32_t id) {
    for (int32_t i = 0; i < t->n_added; i++)
        if (t->added[i].id == id) return true;
    return false;
}

dr_status dr_bpe_index_tokens(dr_tokenizer *t) {
    dr_free(t->by_bytes.slots);
    dr_free(t->by_pair.slots);
    t->by_bytes.slots = t->by_pair.slots = NULL;
    DR_TRY(table_create(&t->by_bytes, t->n_tokens));
    DR_TRY(table_create(&t->by_pair, t->n_merges));
    for (int32_t id = 0; id < t->n_tokens; id++) {
        const bpe_token *token = &t->tokens[id];
        if (token->length < 0 || is_added(t, id)) continue;
        uint64_t i = hash_bytes(token->bytes, token->length);
        while (t->by_bytes.slots[i & (uint64_t)(t->by_bytes.size - 1)] >= 0) i++;
        t->by_bytes.slots[i & (uint64_t)(t->by_bytes.size - 1)] = id;
    }
    for (int32_t rank = 0; rank < t->n_merges; rank++) { // the first of equal pairs counts
        if (rank > 0 && dr_bpe_find_merge(t, t->merges[rank].left, t->merges[rank].right) >= 0) continue;
        uint64_t i = hash_pair(t->merges[rank].left, t->merges[rank].right);
        while (t->by_pair.slots[i & (uint64_t)(t->by_pair.size - 1)] >= 0) i++;
        t->by_pair.slots[i & (uint64_t)(t->by_pair.size - 1)] = rank;
    }
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        t->byte_ids[byte] = dr_bpe_find(t, &c, 1);
    }
    return DR_OK;
}

dr_status dr_bpe_finish(dr_tokenizer *t, const char *where) {
    DR_TRY(dr_bpe_index_tokens(t));
    for (int byte = 0; byte < 256; byte++)
        DR_CHECK(t->byte_ids[byte] >= 0, DR_ERR_FORMAT, "%s: the vocabulary has no token for byte 0x%02X",
                 where, byte);
    if (!t->pattern || t->regex) return DR_OK;
    int code = 0;
    PCRE2_SIZE at = 0;
    t->regex = pcre2_compile((PCRE2_SPTR)t->pattern, PCRE2_ZERO_TERMINATED,
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &code, &at, NULL);
    if (!t->regex) {
        PCRE2_UCHAR text[128];
        pcre2_get_error_message(code, text, sizeof text);
        return DR_FAIL(DR_ERR_FORMAT, "%s: pre-tokeniser pattern, character %zu: %s", where, (size_t)at,
                       (char *)text);
    }
    pcre2_jit_compile(t->regex, PCRE2_JIT_COMPLETE);
    return DR_OK;
}

void dr_tokenizer_destroy(dr_tokenizer *t) {
    if (!t) return;
    for (int32_t i = 0; i < t->tokens_capacity; i++) dr_free(t->tokens[i].bytes);
    for (int32_t i = 0; i < t->n_added; i++) dr_free(t->added[i].text);
    dr_free(t->tokens);
    dr_free(t->merges);
    dr_free(t->added);
    dr_free(t->by_bytes.slots);
    dr_free(t->by_pair.slots);
    dr_free(t->pattern);
    if (t->regex) pcre2_code_free(t->regex);
    dr_free(t);
}

int32_t dr_tokenizer_size(const dr_tokenizer *t) {
    return t->n_tokens;
}

int32_t dr_tokenizer_special(const dr_tokenizer *t, const char *text) {
    for (int32_t i = 0; i < t->n_added; i++)
        if (strcmp(t->added[i].text, text) == 0) return t->added[i].id;
    return -1;
}

dr_status dr_bpe_split(const dr_tokenizer *t, const char *text, size_t length, piece_visitor visit,
                       void *context) {
    if (length == 0) return DR_OK;
    if (!t->regex) return visit(context, text, length);
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(t->regex, NULL);
    DR_CHECK(match, DR_ERR_MEMORY, "tokenizer: no memory for a match");
    size_t at = 0;
    dr_status status = DR_OK;
    while (at < length && status == DR_OK) {
        int found = pcre2_match(t->regex, (PCRE2_SPTR)text, length, at, 0, match, NULL);
        size_t begin = length, end = length;
        if (found >= 0) {
            const PCRE2_SIZE *range = pcre2_get_ovector_pointer(match);
            begin = range[0];
            end = range[1];
        } else if (found != PCRE2_ERROR_NOMATCH) {
            status = DR_FAIL(DR_ERR_INTERNAL, "tokenizer: the pattern failed with code %d", found);
            break;
        }
        if (begin > at)
            status = visit(context, text + at, begin - at); // what no alternative matches stands alone
        if (status == DR_OK && end > begin) status = visit(context, text + begin, end - begin);
        at = end > at ? end : at + 1;
    }
    pcre2_match_data_free(match);
    return status;
}

typedef struct id_sink {
    const dr_tokenizer *t;
    int32_t **ids;
    int64_t *n, *capacity;
    int32_t *work; // symbols of the piece being merged
    int64_t work_capacity;
} id_sink;

static dr_status push(id_sink *sink, int32_t id) {
    if (*sink->n == *sink->capacity) {
        int64_t capacity = *sink->capacity ? 2 * *sink->capacity : 256;
        DR_TRY(dr_grow(sink->ids, "token ids", *sink->capacity, capacity, sizeof **sink->ids));
        *sink->capacity = capacity;
    }
    (*sink->ids)[(*sink->n)++] = id;
    return DR_OK;
}

// Byte-pair merging of one pre-token: the pair of lowest rank first, leftmost among equals.
static dr_status encode_piece(void *context, const char *piece, size_t length) {
    id_sink *sink = context;
    const dr_tokenizer *t = sink->t;
    if (t->ignore_merges && length <= INT32_MAX) {
        int32_t whole = dr_bpe_find(t, piece, (int32_t)length);
        if (whole >= 0) return push(sink, whole);
    }
    if ((int64_t)length > sink->work_capacity) {
        DR_TRY(dr_grow(&sink->work, "merge buffer", sink->work_capacity, (int64_t)length + 64,
                       sizeof *sink->work));
        sink->work_capacity = (int64_t)length + 64;
    }
    int32_t *symbols = sink->work;
    int64_t n = (int64_t)length;
    for (int64_t i = 0; i < n; i++) symbols[i] = t->byte_ids[(unsigned char)piece[i]];
    while (n > 1) {
        int32_t best = INT32_MAX;
        for (int64_t i = 0; i + 1 < n; i++) {
            int32_t rank = dr_bpe_find_merge(t, symbols[i], symbols[i + 1]);
            if (rank >= 0 && rank < best) best = rank;
        }
        if (best == INT32_MAX) break;
        bpe_merge merge = t->merges[best];
        int64_t to = 0;
        for (int64_t i = 0; i < n; i++) {
            bool joins = i + 1 < n && symbols[i] == merge.left && symbols[i + 1] == merge.right;
            symbols[to++] = joins ? merge.merged : symbols[i];
            if (joins) i++;
        }
        n = to;
    }
    for (int64_t i = 0; i < n; i++) DR_TRY(push(sink, symbols[i]));
    return DR_OK;
}

static bool is_word_at(const char *text, size_t length, size_t at) {
    if (at >= length) return false;
    unsigned char c = (unsigned char)text[at];
    return ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
            c >= 0x80);
}

// The longest added token that begins at `at`, or NULL.
static const added_token *added_at(const dr_tokenizer *t, const char *text, size_t length, size_t at) {
    const added_token *best = NULL;
    for (int32_t i = 0; i < t->n_added; i++) {
        const added_token *a = &t->added[i];
        size_t n = (size_t)a->length;
        if (n == 0 || n > length - at || memcmp(text + at, a->text, n) != 0) continue;
        if (a->single_word &&
            ((at > 0 && is_word_at(text, length, at - 1)) || is_word_at(text, length, at + n)))
            continue;
        if (!best || a->length > best->length) best = a;
    }
    return best;
}

static bool is_blank(char c) {
    return c == ' ' || (c >= 9 && c <= 13);
}

dr_status dr_tokenizer_encode(const dr_tokenizer *t, const char *text, size_t length, bool parse_special,
                              int32_t **ids, int64_t *n_ids, int64_t *capacity) {
    id_sink sink = {t, ids, n_ids, capacity, NULL, 0};
    int64_t before = *n_ids;
    size_t begin = 0;
    dr_status status = DR_OK;
    for (size_t at = 0; parse_special && at < length && status == DR_OK;) {
        const added_token *a = added_at(t, text, length, at);
        if (!a) {
            at++;
            continue;
        }
        size_t end = at, next = at + (size_t)a->length;
        while (a->lstrip && end > begin && is_blank(text[end - 1])) end--;
        while (a->rstrip && next < length && is_blank(text[next])) next++;
        status = dr_bpe_split(t, text + begin, end - begin, encode_piece, &sink);
        if (status == DR_OK) status = push(&sink, a->id);
        begin = at = next;
    }
    if (status == DR_OK) status = dr_bpe_split(t, text + begin, length - begin, encode_piece, &sink);
    dr_free(sink.work);
    if (status != DR_OK) *n_ids = before;
    return status;
}

dr_status dr_tokenizer_decode(const dr_tokenizer *t, const int32_t *ids, int64_t n_ids, dr_buf *out_bytes) {
    for (int64_t i = 0; i < n_ids; i++)
        DR_CHECK(ids[i] >= 0 && ids[i] < t->n_tokens, DR_ERR_RANGE,
                 "decode: id %d outside the vocabulary of %d", ids[i], t->n_tokens);
    for (int64_t i = 0; i < n_ids; i++) {
        const bpe_token *token = &t->tokens[ids[i]];
        if (token->length > 0) DR_TRY(dr_buf_append(out_bytes, token->bytes, (size_t)token->length));
    }
    return dr_buf_append(out_bytes, "", 0);
}
