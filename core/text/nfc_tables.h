// The Unicode data that NFC needs; nfc_tables.c is made by tests/golden/make_nfc.py.
#ifndef DR_CORE_TEXT_NFC_TABLES_H
#define DR_CORE_TEXT_NFC_TABLES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

extern const uint32_t dr_nfc_decompositions[][3]; // {character, first, second or 0}, ascending
extern const uint16_t dr_nfc_compositions[];      // rows of the above, ascending by (first, second)
extern const uint32_t dr_nfc_classes[][3];        // {first, last, combining class}, ascending, class not 0
extern const int32_t dr_nfc_n_decompositions, dr_nfc_n_compositions, dr_nfc_n_classes;

#ifdef __cplusplus
}
#endif
#endif
