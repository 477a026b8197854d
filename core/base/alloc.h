// The house's only allocator for host memory, and the growable byte buffer built on it. Memory is zeroed and
// 64-byte aligned; sizes are overflow-checked; the label names the buffer in errors. Raw malloc fails the
// lint.
#ifndef DR_CORE_BASE_ALLOC_H
#define DR_CORE_BASE_ALLOC_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Allocates count * size zeroed bytes (count 0 gives one byte) and stores the address through `out_pointer`,
// the address of a pointer of any type. DR_ERR_RANGE: negative count or overflow; DR_ERR_MEMORY.
dr_status dr_alloc(void *out_pointer, const char *label, int64_t count, size_t size);

// The same with contents that are not set, for blocks that several threads are to touch first.
dr_status dr_alloc_unset(void *out_pointer, const char *label, int64_t count, size_t size);

// Grows *pointer_inout from old_count to new_count elements (new_count >= old_count), keeping contents and
// zeroing the rest. On failure the old block is untouched.
dr_status dr_grow(void *pointer_inout, const char *label, int64_t old_count, int64_t new_count, size_t size);

// Frees a block of dr_alloc/dr_grow/dr_strdup; NULL is fine.
void dr_free(void *pointer);

// Copies `length` bytes plus a final NUL into a new block owned by the caller.
dr_status dr_strndup(char **out_copy, const char *text, size_t length);
dr_status dr_strdup(char **out_copy, const char *text);

// Calls of dr_alloc and dr_grow so far in this process; tests use it to show that a hot loop allocates
// nothing.
int64_t dr_alloc_calls(void);

// A growable byte string. `data` is NUL-terminated after any append. Zero-initialise, then dr_buf_reset to
// free.
typedef struct dr_buf {
    char *data;
    size_t length;   // bytes, without the final NUL
    size_t capacity; // bytes
} dr_buf;

dr_status dr_buf_append(dr_buf *buf, const void *bytes, size_t length);
dr_status dr_buf_text(dr_buf *buf, const char *text);
dr_status dr_buf_printf(dr_buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
void dr_buf_clear(dr_buf *buf); // length 0, memory kept
void dr_buf_reset(dr_buf *buf); // memory freed

#ifdef __cplusplus
}
#endif
#endif
