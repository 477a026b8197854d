// The MPI body of the channel: non-blocking sends with copied bytes, matched probes, one queue per endpoint
// of this process. Both endpoints travel in the tag. No call blocks.
#include <mpi.h>
#include <string.h>

#include "mpi/mpi_check.h"
#include "mpi/world.h"

typedef struct outgoing {
    struct outgoing *next;
    MPI_Request request;
    char *bytes;
} outgoing;

typedef struct incoming {
    struct incoming *next;
    int from, to;
    MPI_Request request; // MPI_REQUEST_NULL once here
    char *bytes;
    int length;
} incoming;

// Shared by the endpoints of one process.
typedef struct hub {
    const int *process_of;
    int n_endpoints, open;
    outgoing *sends;
    int64_t n_sends;
    incoming *first, *last; // in order of arrival; a message is handed out once it and all before it from its
                            // sender are here
} hub;

// Of a message from one endpoint to another.
static int tag_of(const hub *h, int from, int to) {
    return DR_FIRST_CHANNEL_TAG + from * h->n_endpoints + to;
}

static dr_status progress_sends(hub *h) {
    for (outgoing **at = &h->sends; *at;) {
        int done = 0;
        outgoing *o = *at;
        DR_MPI(MPI_Test(&o->request, &done, MPI_STATUS_IGNORE));
        if (!done) {
            at = &o->next;
            continue;
        }
        *at = o->next;
        h->n_sends--;
        dr_free(o->bytes);
        dr_free(o);
    }
    return DR_OK;
}

static dr_status mpi_send(dr_channel *c, int to, const void *bytes, size_t length) {
    hub *h = c->state;
    DR_CHECK(to >= 0 && to < h->n_endpoints, DR_ERR_ARGUMENT, "channel: no endpoint %d of %d", to,
             h->n_endpoints);
    DR_CHECK(length <= INT32_MAX, DR_ERR_RANGE, "channel: a message of %zu bytes, at most 2 GiB", length);
    outgoing *o = NULL;
    DR_TRY(dr_alloc(&o, "message", 1, sizeof *o));
    dr_status status = dr_alloc(&o->bytes, "message", (int64_t)length, 1);
    if (status == DR_OK) {
        memcpy(o->bytes, bytes, length);
        status = dr_mpi_check(MPI_Isend(o->bytes, (int)length, MPI_BYTE, h->process_of[to],
                                        tag_of(h, c->rank, to), MPI_COMM_WORLD, &o->request),
                              "MPI_Isend");
    }
    if (status != DR_OK) {
        dr_free(o->bytes);
        dr_free(o);
        return status;
    }
    o->next = h->sends;
    h->sends = o;
    h->n_sends++;
    return progress_sends(h);
}

static dr_status accept_messages(hub *h) {
    for (;;) {
        int found = 0;
        MPI_Message message;
        MPI_Status info;
        DR_MPI(MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &found, &message, &info));
        if (!found) return DR_OK;
        incoming *in = NULL;
        int length = 0;
        DR_MPI(MPI_Get_count(&info, MPI_BYTE, &length));
        DR_TRY(dr_alloc(&in, "message", 1, sizeof *in));
        DR_TRY(dr_alloc(&in->bytes, "message", length, 1));
        in->from = (info.MPI_TAG - DR_FIRST_CHANNEL_TAG) / h->n_endpoints;
        in->to = (info.MPI_TAG - DR_FIRST_CHANNEL_TAG) % h->n_endpoints;
        in->length = length;
        DR_MPI(MPI_Imrecv(in->bytes, length, MPI_BYTE, &message, &in->request));
        if (h->last)
            h->last->next = in;
        else
            h->first = in;
        h->last = in;
    }
}

static dr_status mpi_poll(dr_channel *c, int *out_from, dr_buf *out_bytes) {
    hub *h = c->state;
    *out_from = -1;
    DR_TRY(progress_sends(h));
    DR_TRY(accept_messages(h));
    incoming *before = NULL;
    for (incoming *in = h->first; in; before = in, in = in->next) {
        if (in->to != c->rank) continue;
        int done = 0;
        DR_MPI(MPI_Test(&in->request, &done, MPI_STATUS_IGNORE));
        if (!done) return DR_OK; // keeps the order
        dr_buf_clear(out_bytes);
        DR_TRY(dr_buf_append(out_bytes, in->bytes, (size_t)in->length));
        *out_from = in->from;
        if (before)
            before->next = in->next;
        else
            h->first = in->next;
        if (h->last == in) h->last = before;
        dr_free(in->bytes);
        dr_free(in);
        return DR_OK;
    }
    return DR_OK;
}

static int64_t mpi_pending(const dr_channel *c) {
    return ((const hub *)c->state)->n_sends;
}

static void mpi_destroy(dr_channel *c) {
    hub *h = c->state;
    dr_free(c);
    if (--h->open > 0) return;
    for (incoming *in = h->first; in;) { // arrived and never asked for
        incoming *next = in->next;
        if (in->request == MPI_REQUEST_NULL) dr_free(in->bytes);
        dr_free(in);
        in = next;
    }
    dr_free(h);
}

static const dr_channel_ops mpi_ops = {mpi_send, mpi_poll, mpi_pending, mpi_destroy};

// n endpoints want n² tags; the standard promises 32767, UCX has 2^23, shared memory and TCP have 2^31.
static dr_status check_tags(int n_endpoints) {
    int *largest = NULL, is_set = 0;
    DR_MPI(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest, &is_set));
    int64_t room = (int64_t)(is_set ? *largest : 32767) - DR_FIRST_CHANNEL_TAG + 1;
    int64_t need = (int64_t)n_endpoints * n_endpoints;
    DR_CHECK(need <= room, DR_ERR_RANGE,
             "channel: %d endpoints take %lld tags, one for every two, and this MPI has %lld", n_endpoints,
             (long long)need, (long long)room);
    return DR_OK;
}

dr_status dr_channel_mpi_create(const int *process_of, int n_endpoints, dr_channel **out_channels) {
    int rank = 0;
    hub *h = NULL;
    DR_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    DR_TRY(check_tags(n_endpoints));
    DR_TRY(dr_alloc(&h, "channel hub", 1, sizeof *h));
    h->process_of = process_of;
    h->n_endpoints = n_endpoints;
    for (int e = 0; e < n_endpoints; e++) {
        out_channels[e] = NULL;
        if (process_of[e] != rank) continue;
        DR_TRY(dr_alloc(&out_channels[e], "channel", 1, sizeof **out_channels));
        *out_channels[e] = (dr_channel){&mpi_ops, e, n_endpoints, h};
        h->open++;
    }
    if (h->open == 0) dr_free(h);
    return DR_OK;
}
