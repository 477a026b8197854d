// Unicode normalisation forms C and D (UAX 15) of UTF-8 text. Bytes that are no UTF-8 pass through and end a
// cluster.
#ifndef DR_CORE_TEXT_NFC_H
#define DR_CORE_TEXT_NFC_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/alloc.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// True when the text is in NFC for sure, by a look at its bytes: every character is below U+0300.
bool dr_nfc_is_plain(const char *text, size_t length);

// Appends the NFC form, or the NFD form, of text[0..length) to out. Linear in the length, whatever the text.
dr_status dr_nfc_append(const char *text, size_t length, dr_buf *out);
dr_status dr_nfd_append(const char *text, size_t length, dr_buf *out);

#ifdef __cplusplus
}
#endif
#endif
