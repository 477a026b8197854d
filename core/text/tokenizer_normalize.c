// The normaliser of a tokenizer.json: its steps, read and run one after the other. BertNormalizer is the
// steps that it names.
#include <jansson.h>
#include <string.h>

#include "core/base/json.h"
#include "core/text/character_tables.h"
#include "core/text/nfc.h"
#include "core/text/normalize.h"
#include "core/text/tokenizer_internal.h"

static dr_status add_step(dr_tokenizer *t, const char *where, normal_kind kind) {
    DR_CHECK(t->n_normal < MAX_STAGES, DR_ERR_UNSUPPORTED, "%s: normalizer: more than %d steps", where,
             MAX_STAGES);
    t->normal[t->n_normal++] = (normal_step){.kind = kind};
    return DR_OK;
}

static dr_status read_bert(dr_tokenizer *t, json_t *node, const char *where) {
    int cleans = 0, spaces = 0, lowers = 0, strips = 0;
    DR_TRY(dr_json_bool(node, where, "clean_text", &cleans));
    DR_TRY(dr_json_bool(node, where, "handle_chinese_chars", &spaces));
    DR_TRY(dr_json_bool(node, where, "lowercase", &lowers));
    DR_TRY(dr_json_bool_or(node, where, "strip_accents", lowers, &strips));
    if (cleans) DR_TRY(add_step(t, where, NORMAL_CLEAN));
    if (spaces) DR_TRY(add_step(t, where, NORMAL_SPACE_IDEOGRAPHS));
    if (strips) {
        DR_TRY(add_step(t, where, NORMAL_NFD));
        DR_TRY(add_step(t, where, NORMAL_STRIP_ACCENTS));
    }
    return lowers ? add_step(t, where, NORMAL_LOWER) : DR_OK;
}

static dr_status read_replace(dr_tokenizer *t, json_t *node, const char *where) {
    json_t *pattern = NULL;
    const char *from = NULL, *to = NULL;
    DR_TRY(dr_json_object(node, where, "pattern", &pattern));
    DR_CHECK(!json_object_get(pattern, "Regex"), DR_ERR_UNSUPPORTED,
             "%s: normalizer \"Replace\" with a Regex is not supported (String)", where);
    DR_TRY(dr_json_string(pattern, where, "String", &from));
    DR_TRY(dr_json_string(node, where, "content", &to));
    DR_CHECK(from[0], DR_ERR_UNSUPPORTED, "%s: normalizer \"Replace\" of an empty text", where);
    DR_TRY(add_step(t, where, NORMAL_REPLACE));
    normal_step *step = &t->normal[t->n_normal - 1];
    DR_TRY(dr_strdup(&step->from, from));
    return dr_strdup(&step->to, to);
}

dr_status dr_bpe_read_normalizer(dr_tokenizer *t, json_t *node, const char *type, const char *where) {
    static const struct {
        const char *type;
        normal_kind kind;
    } simple[] = {{"NFC", NORMAL_NFC},
                  {"NFD", NORMAL_NFD},
                  {"Lowercase", NORMAL_LOWER},
                  {"StripAccents", NORMAL_STRIP_MARKS}};
    for (size_t i = 0; i < sizeof simple / sizeof *simple; i++)
        if (strcmp(type, simple[i].type) == 0) return add_step(t, where, simple[i].kind);
    if (strcmp(type, "BertNormalizer") == 0) return read_bert(t, node, where);
    DR_CHECK(strcmp(type, "Replace") == 0, DR_ERR_UNSUPPORTED, "%s: normalizer \"%s\" is not supported",
             where, type);
    return read_replace(t, node, where);
}

bool dr_tokenizer_lowers(const dr_tokenizer *t) {
    for (int32_t i = 0; i < t->n_normal; i++)
        if (t->normal[i].kind == NORMAL_LOWER) return true;
    return false;
}

// ---- running the steps ----

static bool is_kind(uint32_t code, uint32_t bits) {
    int32_t low = 0, high = dr_character_n_kinds;
    if (code >= ' ' && code < 0x7F) return false;
    while (low < high) { // the first range that ends at the character or behind it
        int32_t middle = (low + high) / 2;
        if (dr_character_kinds[middle][1] < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < dr_character_n_kinds && dr_character_kinds[low][0] <= code &&
           (dr_character_kinds[low][2] & bits);
}

static dr_status append_lower(uint32_t code, dr_buf *out) {
    int32_t low = 0, high = dr_character_n_lower, c = (int32_t)code;
    if (code < 0x80) return dr_utf8_append(out, code >= 'A' && code <= 'Z' ? code + 32 : code);
    if (code == 0x130) return dr_buf_text(out, "i\xCC\x87"); // the one character whose lower case is two
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (dr_character_lower[middle][1] < c)
            low = middle + 1;
        else
            high = middle;
    }
    const int32_t *row = dr_character_lower[low < dr_character_n_lower ? low : 0];
    bool has_lower = c >= row[0] && c <= row[1] && (c - row[0]) % row[2] == 0;
    return dr_utf8_append(out, has_lower ? (uint32_t)(c + row[3]) : code);
}

static dr_status append_changed(normal_kind kind, uint32_t code, dr_buf *out) {
    switch (kind) {
    case NORMAL_CLEAN:
        if (is_kind(code, DR_CHARACTER_CONTROL)) return DR_OK;
        return dr_utf8_append(out, dr_bpe_is_white(code) ? ' ' : code);
    case NORMAL_SPACE_IDEOGRAPHS:
        if (!is_kind(code, DR_CHARACTER_IDEOGRAPH)) return dr_utf8_append(out, code);
        DR_TRY(dr_buf_text(out, " "));
        DR_TRY(dr_utf8_append(out, code));
        return dr_buf_text(out, " ");
    case NORMAL_STRIP_ACCENTS:
        return is_kind(code, DR_CHARACTER_ACCENT) ? DR_OK : dr_utf8_append(out, code);
    case NORMAL_STRIP_MARKS:
        return is_kind(code, DR_CHARACTER_MARK) ? DR_OK : dr_utf8_append(out, code);
    case NORMAL_LOWER:
        return append_lower(code, out);
    default: // no step of single characters but making a text UTF-8, where what is UTF-8 stays
        return dr_utf8_append(out, code);
    }
}

// A step that looks at one character after the other. Bytes that are no UTF-8 stay, or become U+FFFD each.
static dr_status each_character(normal_kind kind, const char *text, size_t length, dr_buf *out) {
    for (size_t at = 0; at < length;) {
        size_t here = at;
        uint32_t code = dr_utf8_next(text, length, &at);
        bool is_broken = code == 0xFFFD && at - here == 1;
        if (is_broken && kind != NORMAL_UTF8)
            DR_TRY(dr_buf_append(out, text + here, 1));
        else
            DR_TRY(append_changed(kind, code, out));
    }
    return DR_OK;
}

dr_status dr_bpe_replace(const char *text, size_t length, const char *from, const char *to, dr_buf *out) {
    size_t n = strlen(from), done = 0;
    for (size_t at = 0; at + n <= length;) {
        if (text[at] != from[0] || memcmp(text + at, from, n) != 0) {
            at++;
            continue;
        }
        DR_TRY(dr_buf_append(out, text + done, at - done));
        DR_TRY(dr_buf_text(out, to));
        done = at += n;
    }
    return dr_buf_append(out, text + done, length - done);
}

// Is the text below U+00C0, where nothing decomposes?
static bool is_decomposed(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] >= 0xC3) return false;
    return true;
}

static dr_status run_step(const normal_step *step, dr_buf room[2], const char **text, size_t *length) {
    dr_buf *out = room[0].data == *text ? &room[1] : &room[0];
    if (step->kind == NORMAL_NFC && dr_nfc_is_plain(*text, *length)) return DR_OK;
    if (step->kind == NORMAL_NFD && is_decomposed(*text, *length)) return DR_OK;
    dr_buf_clear(out);
    if (step->kind == NORMAL_NFC)
        DR_TRY(dr_nfc_append(*text, *length, out));
    else if (step->kind == NORMAL_NFD)
        DR_TRY(dr_nfd_append(*text, *length, out));
    else if (step->kind == NORMAL_REPLACE)
        DR_TRY(dr_bpe_replace(*text, *length, step->from, step->to, out));
    else
        DR_TRY(each_character(step->kind, *text, *length, out));
    DR_TRY(dr_buf_append(out, "", 0));
    *text = out->data;
    *length = out->length;
    return DR_OK;
}

dr_status dr_bpe_normalise(const dr_tokenizer *t, dr_buf room[2], const char **text, size_t *length) {
    const char *before = *text;
    size_t n_before = *length;
    // A model of words has no token for a byte alone.
    if (t->is_wordpiece && !dr_utf8_valid(*text, *length))
        DR_TRY(run_step(&(normal_step){.kind = NORMAL_UTF8}, room, text, length));
    for (int32_t k = 0; k < t->n_normal; k++) DR_TRY(run_step(&t->normal[k], room, text, length));
    if (*length == n_before && memcmp(*text, before, n_before) == 0) *text = before; // places are kept
    return DR_OK;
}
