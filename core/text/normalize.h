// Small text services: UTF-8 checks, title normalisation for exact matching, encodings and entities of old
// data sets.
#ifndef DR_CORE_TEXT_NORMALIZE_H
#define DR_CORE_TEXT_NORMALIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Decodes one character at text[*at] and moves *at behind it. An invalid byte gives U+FFFD and moves by one.
uint32_t dr_utf8_next(const char *text, size_t length, size_t *at);
dr_status dr_utf8_append(dr_buf *out, uint32_t code);
// Well-formed UTF-8 (no overlong forms, no surrogates, at most U+10FFFF)?
bool dr_utf8_valid(const char *text, size_t length);
// Length of the longest prefix that ends on a character border: what a terminal may be shown of a growing
// text.
size_t dr_utf8_complete(const char *text, size_t length);
// Any Han, Hiragana, Katakana, Hangul or Bopomofo character?
bool dr_utf8_has_cjk(const char *text, size_t length);

// What two titles must share to be the same: white space trimmed and collapsed (no-break space included),
// letters folded (ASCII, Latin-1, Latin Extended-A, Greek, Cyrillic). strip_number also removes a leading "n.
// ". Appends to out.
dr_status dr_title_normalize(const char *line, size_t length, bool strip_number, dr_buf *out);

// Appends the UTF-8 form of latin-1 bytes.
dr_status dr_latin1_to_utf8(const char *text, size_t length, dr_buf *out);
// Appends the text with HTML entities replaced: the HTML 4 names that occur in catalogues, decimal and
// hexadecimal numbers. One pass: "&amp;lt;" gives "&lt;". What is no entity stays.
dr_status dr_html_unescape(const char *text, size_t length, dr_buf *out);

#ifdef __cplusplus
}
#endif
#endif
