// Bodies of tensorboard.h.
#include "core/store/tensorboard.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"

enum { VARINT = 0, BITS64 = 1, BYTES = 2, BITS32 = 5 }; // wire types of protocol buffers

struct dr_tensorboard {
    FILE *file;
    char *path;
    dr_buf value, summary, event;
};

// CRC-32C (Castagnoli, reflected), bit by bit: events are a few hundred bytes a step.
static uint32_t crc32c(const void *bytes, size_t n) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < n; i++) {
        crc ^= ((const uint8_t *)bytes)[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

static uint32_t masked_crc(const void *bytes, size_t n) {
    uint32_t crc = crc32c(bytes, n);
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

static dr_status put_varint(dr_buf *out, uint64_t value) {
    uint8_t bytes[10];
    size_t n = 0;
    for (; value >= 0x80; value >>= 7) bytes[n++] = (uint8_t)(value | 0x80);
    bytes[n++] = (uint8_t)value;
    return dr_buf_append(out, bytes, n);
}

static dr_status put_key(dr_buf *out, uint32_t field, uint32_t wire_type) {
    return put_varint(out, (uint64_t)field << 3 | wire_type);
}

static dr_status put_bytes(dr_buf *out, uint32_t field, const void *bytes, size_t n) {
    DR_TRY(put_key(out, field, BYTES));
    DR_TRY(put_varint(out, n));
    return dr_buf_append(out, bytes, n);
}

static dr_status begin_event(dr_buf *event, double wall_time) {
    dr_buf_clear(event);
    DR_TRY(put_key(event, 1, BITS64));
    return dr_buf_append(event, &wall_time, sizeof wall_time);
}

static dr_status write_event(dr_tensorboard *b) {
    uint64_t length = b->event.length;
    uint32_t of_length = masked_crc(&length, sizeof length), of_data = masked_crc(b->event.data, length);
    bool written = fwrite(&length, sizeof length, 1, b->file) == 1 &&
                   fwrite(&of_length, sizeof of_length, 1, b->file) == 1 &&
                   fwrite(b->event.data, 1, length, b->file) == length &&
                   fwrite(&of_data, sizeof of_data, 1, b->file) == 1 && fflush(b->file) == 0;
    DR_CHECK(written, DR_ERR_IO, "%s: cannot write: %s", b->path, strerror(errno));
    return DR_OK;
}

dr_status dr_tensorboard_create(const char *path, double wall_time, dr_tensorboard **out_board) {
    static const char version[] = "brain.Event:2";
    dr_tensorboard *b = NULL;
    dr_buf name = {0};
    DR_TRY(dr_buf_text(&name, path));
    dr_status status = dr_alloc(&b, "TensorBoard file", 1, sizeof *b);
    if (status != DR_OK) {
        dr_buf_reset(&name);
        return status;
    }
    b->path = name.data;
    b->file = fopen(path, "wb");
    if (!b->file) status = DR_FAIL(DR_ERR_IO, "%s: cannot create: %s", path, strerror(errno));
    if (status == DR_OK) status = begin_event(&b->event, wall_time);
    if (status == DR_OK) status = put_bytes(&b->event, 3, version, sizeof version - 1);
    if (status == DR_OK) status = write_event(b);
    if (status != DR_OK) {
        dr_tensorboard_close(b);
        return status;
    }
    *out_board = b;
    return DR_OK;
}

dr_status dr_tensorboard_scalars(dr_tensorboard *b, int64_t step, double wall_time, const char *const *tags,
                                 const float *values, int32_t n) {
    dr_buf_clear(&b->summary);
    for (int32_t i = 0; i < n; i++) {
        dr_buf_clear(&b->value);
        DR_TRY(put_bytes(&b->value, 1, tags[i], strlen(tags[i])));
        DR_TRY(put_key(&b->value, 2, BITS32));
        DR_TRY(dr_buf_append(&b->value, &values[i], sizeof values[i]));
        DR_TRY(put_bytes(&b->summary, 1, b->value.data, b->value.length));
    }
    DR_TRY(begin_event(&b->event, wall_time));
    DR_TRY(put_key(&b->event, 2, VARINT));
    DR_TRY(put_varint(&b->event, (uint64_t)step));
    if (n > 0) DR_TRY(put_bytes(&b->event, 5, b->summary.data, b->summary.length));
    return write_event(b);
}

void dr_tensorboard_close(dr_tensorboard *b) {
    if (!b) return;
    if (b->file) fclose(b->file);
    dr_free(b->path);
    dr_buf_reset(&b->value);
    dr_buf_reset(&b->summary);
    dr_buf_reset(&b->event);
    dr_free(b);
}
