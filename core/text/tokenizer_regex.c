// Oniguruma's regular expressions, which tokenizer.json holds, as PCRE2's. Both read most patterns alike;
// what differs is rewritten (white space, word characters, line borders, \v, \h) or refused by name.
#include <string.h>

#include "core/text/tokenizer_internal.h"

// Members of character classes. PCRE2's own \s has U+180E too, and its \w lacks marks and connectors.
#define SPACES                                                                                               \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{" \
    "3000}"
#define NO_SPACES                                                                                            \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}"          \
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
#define CIRCLED "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
#define WORDS "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}" CIRCLED

// What single_word and pre-tokeniser Whitespace take for a part of a word: \w of Rust's regular expressions.
#define RUST_WORDS "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}" CIRCLED
const char dr_bpe_word_pattern[] = "[" RUST_WORDS "]";

typedef struct translation {
    const char *where, *pattern, *at;
    dr_buf *out;
} translation;

static dr_status refuse(const translation *x, const char *what) {
    return DR_FAIL(DR_ERR_UNSUPPORTED, "%s: pre_tokenizer: pattern \"%.200s\", byte %d: %s is not supported",
                   x->where, x->pattern, (int)(x->at - x->pattern), what);
}

typedef struct escape_row {
    char letter;
    const char *outside, *inside; // NULL: not supported there
} escape_row;
static const escape_row escapes[] = {
    {'s', "[" SPACES "]", SPACES},
    {'S', "[^" SPACES "]", NO_SPACES},
    {'w', "[" WORDS "]", WORDS},
    {'W', "[^" WORDS "]", NULL},
    {'d', "[\\p{Nd}]", "\\p{Nd}"},
    {'D', "[^\\p{Nd}]", NULL},
    {'h', "[0-9a-fA-F]", "0-9a-fA-F"},
    {'H', "[^0-9a-fA-F]", NULL},
    {'v', "\\x{b}", "\\x{b}"},
    {'r', "\\r", "\\r"},
    {'n', "\\n", "\\n"},
    {'t', "\\t", "\\t"},
    {'f', "\\f", "\\f"},
    {'a', "\\a", "\\a"},
    {'e', "\\e", "\\e"},
    {'A', "\\A", NULL},
    {'z', "\\z", NULL},
};

static bool is_hex(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

// Copies members of a class; each \p{X} of a general category gets the characters that PCRE2's edition of
// Unicode lacks.
static dr_status put_members(translation *x, const char *text, size_t n) {
    for (size_t at = 0; at < n;) {
        const char *end = memchr(text + at, '}', n - at);
        size_t part = end ? (size_t)(end - text) + 1 - at : n - at;
        DR_TRY(dr_buf_append(x->out, text + at, part));
        const char *name = end;
        while (name && name > text + at && name[-1] != '{') name--;
        size_t length = name ? (size_t)(end - name) : 0;
        bool is_category = length >= 1 && length <= 2 && name - text >= 3 && name[-2] == 'p';
        for (int32_t k = 0; is_category && k < dr_bpe_n_late; k++)
            if (strncmp(dr_bpe_late[k].category, name, length) == 0)
                DR_TRY(dr_buf_printf(x->out, "\\x{%x}-\\x{%x}", dr_bpe_late[k].first, dr_bpe_late[k].last));
        at += part;
    }
    return DR_OK;
}

// \xHH is a character only below 0x80, a byte above; \uHHHH is one always.
static dr_status put_number(translation *x, size_t digits) {
    const char *begin = x->at + 2;
    for (size_t i = 0; i < digits; i++)
        if (!is_hex(begin[i])) return refuse(x, "a character number of other length");
    if (digits == 2 && begin[0] > '7') return refuse(x, "\\x of a byte above 7F");
    x->at += 2 + digits;
    return dr_buf_printf(x->out, "\\x{%.*s}", (int)digits, begin);
}

// \p{..}, \P{..}, \x{..}
static dr_status put_braced(translation *x, bool is_inside) {
    const char *begin = x->at;
    char kind = begin[1];
    size_t n = 3;
    if (kind == 'u' || (kind == 'x' && begin[2] != '{')) return put_number(x, kind == 'u' ? 4 : 2);
    if (begin[2] != '{') return refuse(x, "\\p without braces");
    for (; begin[n] && begin[n] != '}'; n++)
        if (!is_hex(begin[n]) && kind == 'x') return refuse(x, "more than one number in \\x{}");
    if (!begin[n]) return refuse(x, "an open brace");
    x->at += ++n;
    if (kind == 'x' || (kind == 'P' && is_inside) || begin[3] == '^') return dr_buf_append(x->out, begin, n);
    if (!is_inside) DR_TRY(dr_buf_text(x->out, kind == 'P' ? "[^" : "["));
    dr_buf name = {0};
    dr_status status = dr_buf_printf(&name, "\\p%.*s", (int)(n - 2), begin + 2);
    if (status == DR_OK) status = put_members(x, name.data, name.length);
    dr_buf_reset(&name);
    return status == DR_OK && !is_inside ? dr_buf_text(x->out, "]") : status;
}

static dr_status put_escape(translation *x, bool is_inside) {
    char c = x->at[1];
    if (!c) return refuse(x, "a backslash at the end");
    if (c == 'p' || c == 'P' || c == 'x' || c == 'u') return put_braced(x, is_inside);
    for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++) {
        const char *text = is_inside ? escapes[i].inside : escapes[i].outside;
        if (escapes[i].letter != c) continue;
        if (!text) return refuse(x, "this escape");
        x->at += 2;
        return put_members(x, text, strlen(text));
    }
    bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (is_letter) return refuse(x, "this escape");
    x->at += 2;
    if ((unsigned char)c >= 0x80) return dr_buf_append(x->out, &c, 1);
    return dr_buf_printf(x->out, "\\%c", c);
}

static dr_status put_class(translation *x) {
    DR_TRY(dr_buf_append(x->out, x->at++, 1));
    if (*x->at == '^') DR_TRY(dr_buf_append(x->out, x->at++, 1));
    if (*x->at == ']') return refuse(x, "] as the first member of a class");
    while (*x->at && *x->at != ']') {
        if (*x->at == '[') return refuse(x, "a class inside a class");
        if (x->at[0] == '&' && x->at[1] == '&') return refuse(x, "an intersection of classes");
        if (*x->at == '\\')
            DR_TRY(put_escape(x, true));
        else
            DR_TRY(dr_buf_append(x->out, x->at++, 1));
    }
    if (!*x->at) return refuse(x, "an open class");
    return dr_buf_append(x->out, x->at++, 1);
}

static dr_status put_group(translation *x) {
    static const char *const openings[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    if (x->at[1] == '*') return refuse(x, "(*");
    if (x->at[1] != '?') return dr_buf_append(x->out, x->at++, 1);
    for (size_t i = 0; i < sizeof openings / sizeof *openings; i++) {
        size_t n = strlen(openings[i]);
        if (strncmp(x->at, openings[i], n) != 0) continue;
        x->at += n;
        return dr_buf_append(x->out, openings[i], n);
    }
    if (strncmp(x->at, "(?i)", 4) == 0 && x->at == x->pattern) {
        x->at += 4;
        return dr_buf_text(x->out, "(?i)");
    }
    return refuse(x, "this kind of group");
}

// "{2}", "{1,3}", "{2,}", "{,3}"; another brace is a character.
static dr_status put_brace(translation *x) {
    size_t n = 1, low, high = 0;
    while (x->at[n] >= '0' && x->at[n] <= '9') n++;
    low = n - 1;
    bool has_comma = x->at[n] == ',';
    if (has_comma) n++;
    for (; has_comma && x->at[n] >= '0' && x->at[n] <= '9'; n++) high++;
    if (x->at[n] != '}' || low + high == 0) {
        x->at++;
        return dr_buf_text(x->out, "\\{");
    }
    char behind = x->at[n + 1];
    if (behind == '+' || (behind == '?' && !has_comma)) return refuse(x, "a sign behind a counted repeat");
    if (low == 0)
        DR_TRY(dr_buf_printf(x->out, "{0%.*s", (int)n, x->at + 1));
    else
        DR_TRY(dr_buf_append(x->out, x->at, n + 1));
    x->at += n + 1;
    return DR_OK;
}

dr_status dr_bpe_translate_regex(const char *where, const char *pattern, dr_buf *out) {
    translation x = {where, pattern, pattern, out};
    while (*x.at) {
        switch (*x.at) {
        case '\\':
            DR_TRY(put_escape(&x, false));
            break;
        case '[':
            DR_TRY(put_class(&x));
            break;
        case '(':
            DR_TRY(put_group(&x));
            break;
        case '{':
            DR_TRY(put_brace(&x));
            break;
        case '^':
        case '$': // borders of lines, always
            DR_TRY(dr_buf_printf(out, "(?m:%c)", *x.at++));
            break;
        default:
            DR_TRY(dr_buf_append(out, x.at++, 1));
        }
    }
    return dr_buf_append(out, "", 0);
}

dr_status dr_bpe_whitespace_pattern(dr_buf *out) {
    static const char runs[] = "[" RUST_WORDS "]+|[^" RUST_WORDS SPACES "]+";
    translation x = {.out = out};
    return put_members(&x, runs, sizeof runs - 1);
}
