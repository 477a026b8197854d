// Typed messages between roles: a fixed little-endian header and a payload with explicit counts. Decoding any
// byte string gives either a message or a clear error.
#ifndef DR_CORE_COMM_MESSAGE_H
#define DR_CORE_COMM_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dr_message_type {
    DR_MSG_HEARTBEAT = 1, // any → any: I am alive
    DR_MSG_LOAD,          // coordinator → worker: load a checkpoint; answer DR_MSG_DONE
    DR_MSG_PLAN,          // coordinator → worker: prompts to roll out
    DR_MSG_EXPECT,        // coordinator → reward shard: groups that will come
    DR_MSG_TRAJECTORY,    // worker → reward shard: one finished trajectory
    DR_MSG_SCORED,        // reward shard → coordinator: records of one complete group
    DR_MSG_CREDIT,  // coordinator → reward shard: final advantages; the shard writes its file, answers
                    // DR_MSG_DONE
    DR_MSG_TRAIN,   // coordinator → worker: credits of all its trajectories, update by update
    DR_MSG_TRAINED, // worker → coordinator: sums for the metrics
    DR_MSG_SAVE,    // coordinator → worker: write your part of a checkpoint; answer DR_MSG_SAVED
    DR_MSG_SAVED,   // worker → coordinator: file, size, digest
    DR_MSG_EXPORT,  // coordinator → first worker: write a policy folder of the step, whose checkpoint is
                    // there; answer DR_MSG_DONE
    DR_MSG_DONE,    // answer without content
    DR_MSG_STOP,    // coordinator → all: orderly end
    DR_MSG_TYPES
} dr_message_type;
const char *dr_message_name(uint16_t type);

enum { DR_MESSAGE_MAGIC = 0x314D5244, DR_MESSAGE_VERSION = 1 };

typedef struct dr_message_header {
    uint32_t magic;
    uint16_t version, type;
    uint64_t bytes;          // of the payload
    uint64_t sequence;       // of this sender
    uint32_t step, reserved; // reserved is 0
    uint64_t policy_version;
} dr_message_header;

// Starts a message in `out` (cleared first); append the payload with dr_put_*, then finish.
dr_status dr_message_begin(dr_buf *out, dr_message_type type, uint32_t step);
void dr_message_finish(dr_buf *out, uint64_t sequence, uint64_t policy_version);
dr_status dr_put_u32(dr_buf *out, uint32_t value);
dr_status dr_put_u64(dr_buf *out, uint64_t value);
dr_status dr_put_f32(dr_buf *out, float value);
dr_status dr_put_f64(dr_buf *out, double value);
dr_status dr_put_text(dr_buf *out, const char *text); // u32 length, bytes

// Reads a payload; every getter checks the bounds (DR_ERR_FORMAT names the message and the offset).
typedef struct dr_reader {
    const unsigned char *bytes;
    size_t length, at;
    const char *what;
} dr_reader;
// Checks the header against the length and leaves the reader at the payload.
dr_status dr_message_open(const void *bytes, size_t length, dr_message_header *out_header,
                          dr_reader *out_reader);
dr_status dr_get_u32(dr_reader *reader, uint32_t *out);
dr_status dr_get_u64(dr_reader *reader, uint64_t *out);
dr_status dr_get_f32(dr_reader *reader, float *out);
dr_status dr_get_f64(dr_reader *reader, double *out);
dr_status dr_get_text(dr_reader *reader, dr_buf *out); // cleared first
// A count that cannot be larger than what the rest of the payload holds at `least_bytes` each.
dr_status dr_get_count(dr_reader *reader, size_t least_bytes, uint32_t *out);
dr_status dr_reader_end(const dr_reader *reader); // nothing may be left

#ifdef __cplusplus
}
#endif
#endif
