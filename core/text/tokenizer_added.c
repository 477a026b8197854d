// Added tokens: finding them in a text, and what stands around them.
#include <string.h>

#include "core/text/normalize.h"
#include "core/text/tokenizer_internal.h"

bool dr_bpe_is_white(uint32_t c) {
    return c == ' ' || (c >= 9 && c <= 13) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

// Begin of the character that ends at `end` (end > 0); a byte that is no UTF-8 is one of its own.
static size_t character_before(const char *text, size_t end) {
    for (size_t back = 1; back <= 4 && back <= end; back++) {
        if (((unsigned char)text[end - back] & 0xC0) == 0x80) continue;
        size_t at = end - back;
        dr_utf8_next(text, end, &at);
        return at == end ? end - back : end - 1;
    }
    return end - 1;
}

size_t dr_bpe_before_blanks(const char *text, size_t n) {
    while (n > 0) {
        size_t begin = character_before(text, n), at = begin;
        if (!dr_bpe_is_white(dr_utf8_next(text, n, &at))) break;
        n = begin;
    }
    return n;
}

size_t dr_bpe_blanks(const char *text, size_t length) {
    size_t n = 0;
    for (size_t at = 0; at < length && dr_bpe_is_white(dr_utf8_next(text, length, &at));) n = at;
    return n;
}

static bool is_word_character(const dr_tokenizer *t, const char *text, size_t length, size_t begin) {
    size_t end = begin;
    if (dr_utf8_next(text, length, &end) == 0xFFFD) return false;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (!match) return false;
    int found = pcre2_match(t->word_character, (PCRE2_SPTR)(text + begin), end - begin, 0, PCRE2_ANCHORED,
                            match, NULL);
    pcre2_match_data_free(match);
    return found >= 0;
}

bool dr_bpe_touches_word(const dr_tokenizer *t, const char *text, size_t length, size_t begin, size_t end) {
    return (begin > 0 && is_word_character(t, text, length, character_before(text, begin))) ||
           (end < length && is_word_character(t, text, length, end));
}

void dr_bpe_free_added(dr_tokenizer *t) {
    for (int k = 0; k < 2; k++) {
        added_set *set = &t->sets[k];
        for (int32_t i = 0; i < set->n_texts; i++) dr_buf_reset(&set->texts[i]);
        dr_free(set->texts);
        dr_free(set->index.slots);
        memset(set, 0, sizeof *set);
    }
    if (t->word_character) pcre2_code_free(t->word_character);
    t->word_character = NULL;
}

static bool may_begin(const added_set *set, const char *text, size_t left) {
    uint32_t two = (uint32_t)(unsigned char)text[0] << 8 | (left > 1 ? (unsigned char)text[1] : 0);
    return set->begins[two >> 3] >> (two & 7) & 1;
}

static void mark_begin(added_set *set, const dr_buf *text) {
    uint32_t first = (uint32_t)(unsigned char)text->data[0] << 8;
    uint32_t low = text->length > 1 ? (unsigned char)text->data[1] : 0, high = text->length > 1 ? low : 255;
    for (uint32_t two = first + low; two <= first + high; two++)
        set->begins[two >> 3] |= (uint8_t)(1 << (two & 7));
}

// The hash of growing prefixes, byte by byte.
static uint32_t grow_hash(uint32_t hash, char byte) {
    return (hash ^ (unsigned char)byte) * 0x01000193u;
}

static void insert(added_set *set, int32_t row) {
    const dr_buf *text = &set->texts[row];
    uint32_t hash = 0x811C9DC5u;
    for (size_t i = 0; i < text->length; i++) hash = grow_hash(hash, text->data[i]);
    int64_t mask = set->index.size - 1, at = hash & mask;
    for (; set->index.slots[at].id >= 0; at = (at + 1) & mask) {
        const dr_buf *other = &set->texts[set->index.slots[at].id];
        if (other->length == text->length && memcmp(other->data, text->data, text->length) == 0) return;
    }
    set->index.slots[at] = (byte_slot){hash, row};
    if (text->length > set->max_length) set->max_length = text->length;
    mark_begin(set, text);
}

static dr_status append_normal(const dr_tokenizer *t, const added_token *a, dr_buf *out) {
    dr_buf room[2] = {{0}, {0}};
    const char *text = a->text;
    size_t length = (size_t)a->length;
    dr_status status = dr_bpe_normalise(t, room, &text, &length);
    if (status == DR_OK) status = dr_buf_append(out, text, length);
    dr_buf_reset(&room[0]);
    dr_buf_reset(&room[1]);
    return status;
}

static dr_status build_set(dr_tokenizer *t, int k) {
    added_set *set = &t->sets[k];
    DR_TRY(dr_alloc(&set->texts, "added tokens", t->n_added, sizeof *set->texts));
    set->n_texts = t->n_added;
    for (set->index.size = 16; set->index.size < 2 * (int64_t)t->n_added;) set->index.size *= 2;
    DR_TRY(dr_alloc(&set->index.slots, "added tokens", set->index.size, sizeof *set->index.slots));
    memset(set->index.slots, 0xFF, (size_t)set->index.size * sizeof *set->index.slots);
    for (int pass = 0; pass < 2; pass++) { // special ones first: of two that look alike they count
        for (int32_t i = 0; i < t->n_added; i++) {
            const added_token *a = &t->added[i];
            if (a->normalized != (k == 1) || a->is_special != (pass == 0)) continue;
            DR_TRY(k == 1 ? append_normal(t, a, &set->texts[i])
                          : dr_buf_append(&set->texts[i], a->text, (size_t)a->length));
            if (k == 1 && t->is_wordpiece) t->tokens[a->id].shown = &set->texts[i];
            if (set->texts[i].length == 0) continue; // the normaliser leaves nothing to look for
            insert(set, i);
            set->n++;
        }
    }
    return DR_OK;
}

dr_status dr_bpe_build_added(dr_tokenizer *t) {
    dr_bpe_free_added(t);
    bool has_single_word = false;
    for (int k = 0; k < 2; k++) DR_TRY(build_set(t, k));
    for (int32_t i = 0; i < t->n_added; i++) has_single_word = has_single_word || t->added[i].single_word;
    if (!has_single_word) return DR_OK;
    int code = 0;
    PCRE2_SIZE at = 0;
    t->word_character =
        pcre2_compile((PCRE2_SPTR)dr_bpe_word_pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &at, NULL);
    DR_CHECK(t->word_character, DR_ERR_INTERNAL, "tokenizer: the pattern of a word character failed");
    return DR_OK;
}

const added_token *dr_bpe_added_at(const dr_tokenizer *t, const added_set *set, const char *text,
                                   size_t length, size_t at) {
    const added_token *best = NULL;
    size_t left = length - at, most = left < set->max_length ? left : set->max_length;
    if (!may_begin(set, text + at, left)) return NULL;
    uint32_t hash = 0x811C9DC5u;
    int64_t mask = set->index.size - 1;
    for (size_t n = 1; n <= most; n++) {
        hash = grow_hash(hash, text[at + n - 1]);
        for (int64_t i = hash & mask; set->index.slots[i].id >= 0; i = (i + 1) & mask) {
            const dr_buf *token = &set->texts[set->index.slots[i].id];
            if (set->index.slots[i].hash != hash || token->length != n) continue;
            if (memcmp(token->data, text + at, n) == 0) best = &t->added[set->index.slots[i].id];
        }
    }
    return best;
}
