// Kinds of characters and lower cases, as the normalisers of the `tokenizers` library know them;
// character_tables.c is made by tests/golden/make_characters.py.
#ifndef DR_CORE_TEXT_CHARACTER_TABLES_H
#define DR_CORE_TEXT_CHARACTER_TABLES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    DR_CHARACTER_CONTROL = 1,  // control, format and private characters and U+FFFD, which clean_text removes
    DR_CHARACTER_ACCENT = 2,   // non-spacing marks, which strip_accents removes
    DR_CHARACTER_MARK = 4,     // marks of all three categories, which StripAccents removes
    DR_CHARACTER_IDEOGRAPH = 8 // what handle_chinese_chars makes a word of its own
};

extern const uint32_t dr_character_kinds[][3]; // {first, last, bits of the above}, ascending, not 0
// {first, last, step, difference}, ascending: every step-th character of the range has a lower case. U+0130
// is left out: its lower case is two characters.
extern const int32_t dr_character_lower[][4];
extern const int32_t dr_character_n_kinds, dr_character_n_lower;

#ifdef __cplusplus
}
#endif
#endif
