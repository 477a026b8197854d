// The message seam between roles: non-blocking, point to point, ordered per pair of ranks. Bodies: loopback
// (all roles in one process) and MPI. No call here blocks; every wait is a loop of the caller with a
// deadline.
#ifndef DR_CORE_COMM_CHANNEL_H
#define DR_CORE_COMM_CHANNEL_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_channel dr_channel;

typedef struct dr_channel_ops {
    // Queues one message (bytes are copied). Progress happens in poll. DR_ERR_PEER when the peer is known to
    // be gone.
    dr_status (*send)(dr_channel *channel, int to, const void *bytes, size_t length);
    // Takes one arrived message, if any: *out_from = sender and out_bytes filled (cleared first), else
    // *out_from = -1.
    dr_status (*poll)(dr_channel *channel, int *out_from, dr_buf *out_bytes);
    // Messages queued here and not yet handed to the transport.
    int64_t (*pending_sends)(const dr_channel *channel);
    void (*destroy)(dr_channel *channel);
} dr_channel_ops;

struct dr_channel {
    const dr_channel_ops *ops;
    int rank, size;
    void *state;
};

// n endpoints in one process: out_channels[r] is rank r. Destroy each with its ops->destroy.
dr_status dr_loopback_create(int size, dr_channel **out_channels);

#ifdef __cplusplus
}
#endif
#endif
