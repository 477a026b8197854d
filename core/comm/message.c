// Bodies of message.h.
#include "core/comm/message.h"

#include <assert.h>
#include <string.h>

static_assert(sizeof(dr_message_header) == 40, "header size");
static_assert(offsetof(dr_message_header, type) == 6, "header layout");
static_assert(offsetof(dr_message_header, bytes) == 8, "header layout");
static_assert(offsetof(dr_message_header, step) == 24, "header layout");
static_assert(offsetof(dr_message_header, policy_version) == 32, "header layout");

const char *dr_message_name(uint16_t type) {
    static const char *const names[] = {"?",          "heartbeat", "load",   "plan",  "expect",
                                        "trajectory", "scored",    "credit", "train", "trained",
                                        "save",       "saved",     "export", "done",  "stop"};
    return type > 0 && type < DR_MSG_TYPES ? names[type] : "unknown";
}

dr_status dr_message_begin(dr_buf *out, dr_message_type type, uint32_t step) {
    dr_message_header header = {
        .magic = DR_MESSAGE_MAGIC, .version = DR_MESSAGE_VERSION, .type = (uint16_t)type, .step = step};
    dr_buf_clear(out);
    return dr_buf_append(out, &header, sizeof header);
}

void dr_message_finish(dr_buf *out, uint64_t sequence, uint64_t policy_version) {
    dr_message_header header;
    memcpy(&header, out->data, sizeof header);
    header.bytes = out->length - sizeof header;
    header.sequence = sequence;
    header.policy_version = policy_version;
    memcpy(out->data, &header, sizeof header);
}

dr_status dr_put_u32(dr_buf *out, uint32_t value) {
    return dr_buf_append(out, &value, sizeof value);
}

dr_status dr_put_u64(dr_buf *out, uint64_t value) {
    return dr_buf_append(out, &value, sizeof value);
}

dr_status dr_put_f32(dr_buf *out, float value) {
    return dr_buf_append(out, &value, sizeof value);
}

dr_status dr_put_f64(dr_buf *out, double value) {
    return dr_buf_append(out, &value, sizeof value);
}

dr_status dr_put_text(dr_buf *out, const char *text) {
    size_t length = strlen(text);
    DR_TRY(dr_put_u32(out, (uint32_t)length));
    return dr_buf_append(out, text, length);
}

dr_status dr_message_open(const void *bytes, size_t length, dr_message_header *out_header,
                          dr_reader *out_reader) {
    dr_message_header header;
    DR_CHECK(length >= sizeof header, DR_ERR_FORMAT, "message of %zu bytes, a header has %zu", length,
             sizeof header);
    memcpy(&header, bytes, sizeof header);
    DR_CHECK(header.magic == DR_MESSAGE_MAGIC && header.version == DR_MESSAGE_VERSION, DR_ERR_FORMAT,
             "message: magic 0x%08X version %u, expected 0x%08X version %d", header.magic, header.version,
             DR_MESSAGE_MAGIC, DR_MESSAGE_VERSION);
    DR_CHECK(header.type > 0 && header.type < DR_MSG_TYPES, DR_ERR_FORMAT, "message: unknown type %u",
             header.type);
    DR_CHECK(header.reserved == 0, DR_ERR_FORMAT, "message %s: its reserved field is %u, expected 0",
             dr_message_name(header.type), (unsigned)header.reserved);
    DR_CHECK(header.bytes == length - sizeof header, DR_ERR_FORMAT,
             "message %s: %zu payload bytes, its header says %llu", dr_message_name(header.type),
             length - sizeof header, (unsigned long long)header.bytes);
    *out_header = header;
    *out_reader = (dr_reader){bytes, length, sizeof header, dr_message_name(header.type)};
    return DR_OK;
}

static dr_status take(dr_reader *r, void *out, size_t n) {
    DR_CHECK(n <= r->length - r->at, DR_ERR_FORMAT, "message %s: ends at byte %zu, %zu more were expected",
             r->what, r->length, n - (r->length - r->at));
    memcpy(out, r->bytes + r->at, n);
    r->at += n;
    return DR_OK;
}

dr_status dr_get_u32(dr_reader *reader, uint32_t *out) {
    return take(reader, out, sizeof *out);
}

dr_status dr_get_u64(dr_reader *reader, uint64_t *out) {
    return take(reader, out, sizeof *out);
}

dr_status dr_get_f32(dr_reader *reader, float *out) {
    return take(reader, out, sizeof *out);
}

dr_status dr_get_f64(dr_reader *reader, double *out) {
    return take(reader, out, sizeof *out);
}

dr_status dr_get_count(dr_reader *reader, size_t least_bytes, uint32_t *out) {
    uint32_t count = 0;
    DR_TRY(dr_get_u32(reader, &count));
    DR_CHECK(count <= (reader->length - reader->at) / least_bytes, DR_ERR_FORMAT,
             "message %s: a count of %u with %zu bytes left", reader->what, count,
             reader->length - reader->at);
    *out = count;
    return DR_OK;
}

dr_status dr_get_text(dr_reader *reader, dr_buf *out) {
    uint32_t length = 0;
    DR_TRY(dr_get_count(reader, 1, &length));
    dr_buf_clear(out);
    DR_TRY(dr_buf_append(out, reader->bytes + reader->at, length));
    reader->at += length;
    return DR_OK;
}

dr_status dr_reader_end(const dr_reader *reader) {
    DR_CHECK(reader->at == reader->length, DR_ERR_FORMAT, "message %s: %zu bytes too many", reader->what,
             reader->length - reader->at);
    return DR_OK;
}
