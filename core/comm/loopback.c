// The in-process bodies of both seams: queues between endpoints, and the collective of one rank.
#include <string.h>

#include "core/comm/channel.h"
#include "core/comm/collective.h"

typedef struct parcel {
    struct parcel *next;
    int from;
    size_t length;
    char *bytes;
} parcel;

typedef struct hub {
    int size, open;
    parcel **first, **last; // of each endpoint
} hub;

static dr_status loopback_send(dr_channel *c, int to, const void *bytes, size_t length) {
    hub *h = c->state;
    DR_CHECK(to >= 0 && to < h->size, DR_ERR_ARGUMENT, "loopback: no endpoint %d of %d", to, h->size);
    parcel *p = NULL;
    DR_TRY(dr_alloc(&p, "message", 1, sizeof *p));
    dr_status status = dr_alloc(&p->bytes, "message", (int64_t)length, 1);
    if (status != DR_OK) {
        dr_free(p);
        return status;
    }
    memcpy(p->bytes, bytes, length);
    p->from = c->rank;
    p->length = length;
    if (h->last[to])
        h->last[to]->next = p;
    else
        h->first[to] = p;
    h->last[to] = p;
    return DR_OK;
}

static dr_status loopback_poll(dr_channel *c, int *out_from, dr_buf *out_bytes) {
    hub *h = c->state;
    parcel *p = h->first[c->rank];
    *out_from = -1;
    if (!p) return DR_OK;
    dr_buf_clear(out_bytes);
    DR_TRY(dr_buf_append(out_bytes, p->bytes, p->length));
    h->first[c->rank] = p->next;
    if (!p->next) h->last[c->rank] = NULL;
    *out_from = p->from;
    dr_free(p->bytes);
    dr_free(p);
    return DR_OK;
}

static int64_t loopback_pending(const dr_channel *c) {
    (void)c;
    return 0;
}

static void hub_destroy(hub *h) {
    for (int r = 0; h->first && r < h->size; r++)
        while (h->first[r]) {
            parcel *p = h->first[r];
            h->first[r] = p->next;
            dr_free(p->bytes);
            dr_free(p);
        }
    dr_free(h->first);
    dr_free(h->last);
    dr_free(h);
}

static void loopback_destroy(dr_channel *c) {
    hub *h = c->state;
    dr_free(c);
    if (--h->open == 0) hub_destroy(h);
}

static const dr_channel_ops loopback_ops = {loopback_send, loopback_poll, loopback_pending, loopback_destroy};

dr_status dr_loopback_create(int size, dr_channel **out_channels) {
    DR_CHECK(size > 0, DR_ERR_ARGUMENT, "loopback of %d endpoints", size);
    hub *h = NULL;
    DR_TRY(dr_alloc(&h, "loopback", 1, sizeof *h));
    h->size = size;
    dr_status status = dr_alloc(&h->first, "loopback queues", size, sizeof *h->first);
    if (status == DR_OK) status = dr_alloc(&h->last, "loopback queues", size, sizeof *h->last);
    for (int r = 0; r < size && status == DR_OK; r++) {
        status = dr_alloc(&out_channels[r], "channel", 1, sizeof **out_channels);
        if (status == DR_OK) {
            *out_channels[r] = (dr_channel){&loopback_ops, r, size, h};
            h->open++;
        }
    }
    if (status == DR_OK) return DR_OK;
    for (int r = 0; r < h->open; r++) dr_free(out_channels[r]);
    hub_destroy(h);
    return status;
}

static dr_status alone_exchange(dr_collective *c, float *values, int64_t n) {
    (void)c, (void)values, (void)n;
    return DR_OK;
}

static dr_status alone_gather(dr_collective *c, void *bytes, const dr_shard *parts) {
    (void)c, (void)bytes, (void)parts;
    return DR_OK;
}

static dr_status alone_begin(dr_collective *c, float *values, int64_t n, int64_t begin) {
    (void)c, (void)values, (void)n, (void)begin;
    return DR_OK;
}

static dr_status alone_sum_double(dr_collective *c, double *values, int64_t n) {
    (void)c, (void)values, (void)n;
    return DR_OK;
}

static dr_status alone_alive(dr_collective *c) {
    (void)c;
    return DR_OK;
}

static dr_status alone_heard(dr_collective *c, double *out_when) {
    (void)c;
    *out_when = 0;
    return DR_OK;
}

static dr_status alone_broadcast(dr_collective *c, void *bytes, int64_t n_bytes, int root) {
    (void)c, (void)bytes, (void)n_bytes, (void)root;
    return DR_OK;
}

static void alone_destroy(dr_collective *c) {
    dr_free(c);
}

static const dr_collective_ops alone_ops = {.reduce_scatter_sum = alone_exchange,
                                            .reduce_scatter_begin = alone_begin,
                                            .all_gather = alone_gather,
                                            .all_gather_host = alone_gather,
                                            .allreduce_sum_double = alone_sum_double,
                                            .alive = alone_alive,
                                            .heard = alone_heard,
                                            .broadcast = alone_broadcast,
                                            .destroy = alone_destroy};

dr_status dr_collective_alone_create(dr_collective **out_collective) {
    dr_collective *c = NULL;
    DR_TRY(dr_alloc(&c, "collective", 1, sizeof *c));
    *c = (dr_collective){.ops = &alone_ops, .size = 1, .deadline_s = 60.0};
    *out_collective = c;
    return DR_OK;
}
