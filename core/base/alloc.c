// The only file with raw allocation calls.
#include "core/base/alloc.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64, HUGE_PAGE = 2 << 20, LARGE = 2 * HUGE_PAGE };

static atomic_llong allocation_calls;

// Large blocks stand in huge pages where the system gives them on request: with small ones a walk through the
// page tables costs as much as the line that it leads to. What is left over by whole ones stays in small
// ones, so that no more memory is taken than was asked for. A hint: where it is refused nothing else changes.
static void *aligned_block(size_t bytes) {
    if (bytes < LARGE) return aligned_alloc(ALIGNMENT, bytes);
    void *block = NULL; // not aligned_alloc, which wants whole huge pages
    if (posix_memalign(&block, HUGE_PAGE, bytes) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    (void)madvise(block, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return block;
}

static dr_status block_create(void **out_block, const char *label, int64_t count, size_t size,
                              bool is_zeroed) {
    size_t bytes = 0;
    if (count < 0 || __builtin_mul_overflow((size_t)count, size, &bytes) || bytes > SIZE_MAX - ALIGNMENT)
        return DR_FAIL(DR_ERR_RANGE, "%s: %lld elements of %zu bytes do not fit in memory", label,
                       (long long)count, size);
    size_t rounded = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    void *block = aligned_block(rounded);
    if (!block) return DR_FAIL(DR_ERR_MEMORY, "%s: cannot allocate %zu bytes", label, rounded);
    if (is_zeroed) memset(block, 0, rounded);
    atomic_fetch_add(&allocation_calls, 1);
    *out_block = block;
    return DR_OK;
}

dr_status dr_alloc(void *out_pointer, const char *label, int64_t count, size_t size) {
    void *block = NULL;
    DR_TRY(block_create(&block, label, count, size, true));
    memcpy(out_pointer, &block, sizeof block);
    return DR_OK;
}

dr_status dr_alloc_unset(void *out_pointer, const char *label, int64_t count, size_t size) {
    void *block = NULL;
    DR_TRY(block_create(&block, label, count, size, false));
    memcpy(out_pointer, &block, sizeof block);
    return DR_OK;
}

dr_status dr_grow(void *pointer_inout, const char *label, int64_t old_count, int64_t new_count, size_t size) {
    DR_ASSERT(new_count >= old_count && old_count >= 0);
    void *block = NULL, *old = NULL;
    memcpy(&old, pointer_inout, sizeof old);
    DR_TRY(block_create(&block, label, new_count, size, true));
    if (old) memcpy(block, old, (size_t)old_count * size);
    free(old);
    memcpy(pointer_inout, &block, sizeof block);
    return DR_OK;
}

void dr_free(void *pointer) {
    free(pointer);
}

dr_status dr_strndup(char **out_copy, const char *text, size_t length) {
    char *copy = NULL;
    DR_TRY(dr_alloc(&copy, "string", (int64_t)length + 1, 1));
    memcpy(copy, text, length);
    *out_copy = copy;
    return DR_OK;
}

dr_status dr_strdup(char **out_copy, const char *text) {
    return dr_strndup(out_copy, text, strlen(text));
}

int64_t dr_alloc_calls(void) {
    return atomic_load(&allocation_calls);
}

static dr_status buf_reserve(dr_buf *buf, size_t extra) {
    size_t need = 0;
    if (__builtin_add_overflow(buf->length, extra, &need) || need > (size_t)1 << 46)
        return DR_FAIL(DR_ERR_RANGE, "buffer: %zu more bytes do not fit", extra);
    if (need + 1 <= buf->capacity) return DR_OK;
    size_t capacity = buf->capacity ? buf->capacity : 64;
    while (capacity < need + 1) capacity *= 2;
    DR_TRY(dr_grow(&buf->data, "buffer", (int64_t)buf->capacity, (int64_t)capacity, 1));
    buf->capacity = capacity;
    return DR_OK;
}

dr_status dr_buf_append(dr_buf *buf, const void *bytes, size_t length) {
    DR_TRY(buf_reserve(buf, length));
    if (length) memcpy(buf->data + buf->length, bytes, length);
    buf->length += length;
    buf->data[buf->length] = '\0';
    return DR_OK;
}

dr_status dr_buf_text(dr_buf *buf, const char *text) {
    return dr_buf_append(buf, text, strlen(text));
}

dr_status dr_buf_printf(dr_buf *buf, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    dr_status status =
        length < 0 ? DR_FAIL(DR_ERR_ARGUMENT, "buffer: bad format string") : buf_reserve(buf, (size_t)length);
    if (status == DR_OK) {
        vsnprintf(buf->data + buf->length, (size_t)length + 1, format, again);
        buf->length += (size_t)length;
    }
    va_end(again);
    return status;
}

void dr_buf_clear(dr_buf *buf) {
    buf->length = 0;
    if (buf->data) buf->data[0] = '\0';
}

void dr_buf_reset(dr_buf *buf) {
    dr_free(buf->data);
    *buf = (dr_buf){0};
}
