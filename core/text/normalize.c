// Bodies of normalize.h; tables cover what catalogues of titles contain, the header says what.
#include "core/text/normalize.h"

#include <ctype.h>
#include <string.h>

static int sequence_length(unsigned char lead) {
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return 2;
    if (lead >= 0xE0 && lead <= 0xEF) return 3;
    if (lead >= 0xF0 && lead <= 0xF4) return 4;
    return 0;
}

// One well-formed character at text[at]: its length in bytes, or 0.
static int decode_strict(const char *text, size_t length, size_t at, uint32_t *out_code) {
    unsigned char lead = (unsigned char)text[at];
    int n = sequence_length(lead);
    if (n == 0 || at + (size_t)n > length) return 0;
    uint32_t code = n == 1 ? lead : lead & (0xFFu >> (n + 1));
    for (int i = 1; i < n; i++) {
        unsigned char next = (unsigned char)text[at + (size_t)i];
        if ((next & 0xC0) != 0x80) return 0;
        code = code << 6 | (next & 0x3F);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < least[n] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return 0;
    *out_code = code;
    return n;
}

uint32_t dr_utf8_next(const char *text, size_t length, size_t *at) {
    uint32_t code = 0xFFFD;
    int n = decode_strict(text, length, *at, &code);
    *at += n ? (size_t)n : 1;
    return code;
}

dr_status dr_utf8_append(dr_buf *out, uint32_t code) {
    char bytes[4];
    size_t n = 0;
    if (code < 0x80) {
        bytes[n++] = (char)code;
    } else if (code < 0x800) {
        bytes[n++] = (char)(0xC0 | code >> 6);
        bytes[n++] = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        bytes[n++] = (char)(0xE0 | code >> 12);
        bytes[n++] = (char)(0x80 | (code >> 6 & 0x3F));
        bytes[n++] = (char)(0x80 | (code & 0x3F));
    } else {
        bytes[n++] = (char)(0xF0 | code >> 18);
        bytes[n++] = (char)(0x80 | (code >> 12 & 0x3F));
        bytes[n++] = (char)(0x80 | (code >> 6 & 0x3F));
        bytes[n++] = (char)(0x80 | (code & 0x3F));
    }
    return dr_buf_append(out, bytes, n);
}

bool dr_utf8_valid(const char *text, size_t length) {
    for (size_t at = 0; at < length;) {
        uint32_t code;
        uint64_t eight = 0x80;
        if (at + 8 <= length) memcpy(&eight, text + at, 8);
        if ((eight & 0x8080808080808080u) == 0) { // all ASCII
            at += 8;
            continue;
        }
        int n = decode_strict(text, length, at, &code);
        if (n == 0) return false;
        at += (size_t)n;
    }
    return true;
}

size_t dr_utf8_complete(const char *text, size_t length) {
    for (size_t back = 1; back <= 3 && back <= length; back++) {
        unsigned char byte = (unsigned char)text[length - back];
        if ((byte & 0xC0) == 0x80) continue;
        return (size_t)sequence_length(byte) > back ? length - back : length;
    }
    return length;
}

bool dr_utf8_has_cjk(const char *text, size_t length) {
    static const uint32_t ranges[][2] = {{0x1100, 0x11FF}, {0x2E80, 0x2FDF}, {0x3040, 0x30FF},
                                         {0x3100, 0x318F}, {0x31A0, 0x31FF}, {0x3400, 0x4DBF},
                                         {0x4E00, 0x9FFF}, {0xA960, 0xA97F}, {0xAC00, 0xD7FF},
                                         {0xF900, 0xFAFF}, {0xFF66, 0xFFDC}, {0x20000, 0x323AF}};
    for (size_t at = 0; at < length;) {
        uint32_t code = dr_utf8_next(text, length, &at);
        for (size_t i = 0; code >= 0x1100 && i < sizeof ranges / sizeof *ranges; i++)
            if (code >= ranges[i][0] && code <= ranges[i][1]) return true;
    }
    return false;
}

static uint32_t fold(uint32_t c) {
    if (c < 0x80) return (uint32_t)tolower((int)c);
    if (c >= 0xC0 && c <= 0xDE && c != 0xD7) return c + 32;
    if (c >= 0x100 && c <= 0x137 && c != 0x130 && c != 0x131) return c | 1;
    if (c >= 0x139 && c <= 0x148) return c + (c & 1);
    if (c >= 0x14A && c <= 0x177) return c | 1;
    if (c == 0x178) return 0xFF;
    if (c >= 0x179 && c <= 0x17E) return c + (c & 1);
    if (c >= 0x391 && c <= 0x3A9 && c != 0x3A2) return c + 32;
    if (c >= 0x410 && c <= 0x42F) return c + 32;
    if (c >= 0x400 && c <= 0x40F) return c + 80;
    return c;
}

static bool is_space(uint32_t c) {
    return c == ' ' || (c >= 9 && c <= 13) || c == 0x85 || c == 0xA0 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Bytes of a leading "n. " (or "n." at the end).
static size_t number_length(const char *line, size_t length) {
    size_t at = 0;
    while (at < length && (line[at] == ' ' || line[at] == '\t')) at++;
    size_t digits = at;
    while (at < length && line[at] >= '0' && line[at] <= '9') at++;
    if (at == digits || at >= length || line[at] != '.') return 0;
    at++;
    if (at < length && line[at] != ' ' && line[at] != '\t') return 0;
    return at;
}

dr_status dr_title_normalize(const char *line, size_t length, bool strip_number, dr_buf *out) {
    size_t at = strip_number ? number_length(line, length) : 0;
    size_t begin = out->length;
    bool gap = false;
    while (at < length) {
        size_t here = at;
        uint32_t code = dr_utf8_next(line, length, &at);
        if (is_space(code)) {
            gap = true;
            continue;
        }
        if (gap && out->length > begin) DR_TRY(dr_buf_text(out, " "));
        gap = false;
        if (code == 0xFFFD && at - here == 1)
            DR_TRY(dr_buf_append(out, line + here, 1)); // a broken byte stays itself
        else
            DR_TRY(dr_utf8_append(out, fold(code)));
    }
    return dr_buf_append(out, "", 0);
}

dr_status dr_latin1_to_utf8(const char *text, size_t length, dr_buf *out) {
    for (size_t i = 0; i < length; i++) DR_TRY(dr_utf8_append(out, (unsigned char)text[i]));
    return dr_buf_append(out, "", 0);
}

static const struct {
    const char *name;
    uint32_t code;
} entities[] = {
    {"amp", '&'},      {"lt", '<'},       {"gt", '>'},        {"quot", '"'},     {"apos", '\''},
    {"nbsp", 0xA0},    {"copy", 0xA9},    {"reg", 0xAE},      {"trade", 0x2122}, {"deg", 0xB0},
    {"eacute", 0xE9},  {"Eacute", 0xC9},  {"egrave", 0xE8},   {"ecirc", 0xEA},   {"euml", 0xEB},
    {"aacute", 0xE1},  {"agrave", 0xE0},  {"acirc", 0xE2},    {"auml", 0xE4},    {"aring", 0xE5},
    {"aelig", 0xE6},   {"ccedil", 0xE7},  {"iacute", 0xED},   {"igrave", 0xEC},  {"icirc", 0xEE},
    {"iuml", 0xEF},    {"ntilde", 0xF1},  {"oacute", 0xF3},   {"ograve", 0xF2},  {"ocirc", 0xF4},
    {"ouml", 0xF6},    {"oslash", 0xF8},  {"uacute", 0xFA},   {"ugrave", 0xF9},  {"ucirc", 0xFB},
    {"uuml", 0xFC},    {"szlig", 0xDF},   {"Auml", 0xC4},     {"Ouml", 0xD6},    {"Uuml", 0xDC},
    {"ndash", 0x2013}, {"mdash", 0x2014}, {"lsquo", 0x2018},  {"rsquo", 0x2019}, {"ldquo", 0x201C},
    {"rdquo", 0x201D}, {"bull", 0x2022},  {"hellip", 0x2026}, {"euro", 0x20AC},  {"pound", 0xA3},
    {"cent", 0xA2},    {"yen", 0xA5},     {"frac12", 0xBD},   {"frac14", 0xBC},  {"frac34", 0xBE},
    {"times", 0xD7},   {"middot", 0xB7},  {"laquo", 0xAB},    {"raquo", 0xBB},   {"micro", 0xB5},
    {"plusmn", 0xB1},  {"sup2", 0xB2},    {"sup3", 0xB3},     {"iexcl", 0xA1},   {"iquest", 0xBF}};

// The character of the entity between '&' and ';', or 0.
static uint32_t entity_code(const char *name, size_t length) {
    if (length >= 2 && name[0] == '#') {
        bool hex = name[1] == 'x' || name[1] == 'X';
        uint32_t code = 0;
        size_t at = hex ? 2 : 1;
        if (at >= length || length > 9) return 0;
        for (; at < length; at++) {
            int c = tolower((unsigned char)name[at]);
            if (c >= '0' && c <= '9')
                code = code * (hex ? 16 : 10) + (uint32_t)(c - '0');
            else if (hex && c >= 'a' && c <= 'f')
                code = code * 16 + (uint32_t)(c - 'a' + 10);
            else
                return 0;
        }
        return code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF) ? 0 : code;
    }
    for (size_t i = 0; i < sizeof entities / sizeof *entities; i++)
        if (strlen(entities[i].name) == length && memcmp(entities[i].name, name, length) == 0)
            return entities[i].code;
    return 0;
}

dr_status dr_html_unescape(const char *text, size_t length, dr_buf *out) {
    size_t at = 0;
    while (at < length) {
        if (text[at] == '&') {
            const char *end = memchr(text + at, ';', length - at < 12 ? length - at : 12);
            uint32_t code = end ? entity_code(text + at + 1, (size_t)(end - text) - at - 1) : 0;
            if (code) {
                DR_TRY(dr_utf8_append(out, code));
                at = (size_t)(end - text) + 1;
                continue;
            }
        }
        DR_TRY(dr_buf_append(out, text + at, 1));
        at++;
    }
    return dr_buf_append(out, "", 0);
}
