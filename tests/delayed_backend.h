// A backend for tests that is late, as a device is: the CPU body with transfers that are done only after some
// looks. Until then the host finds poison where bytes are to come, and may not have touched those that go.
#ifndef DR_TESTS_DELAYED_BACKEND_H
#define DR_TESTS_DELAYED_BACKEND_H

#include "tests/check.h"

#include <string.h>

#include "core/base/alloc.h"
#include "core/compute/backend.h"

enum { DELAYED_COPIES = 1024 };

// A copy that was begun and is not done: what was there then.
typedef struct delayed_copy {
    dr_transfer *transfer;
    size_t at, bytes;
    char *kept;
    bool comes; // to the host
} delayed_copy;

static dr_backend *delayed_inner; // the CPU body
static delayed_copy delayed_copies[DELAYED_COPIES];
static int delayed_n_copies;
static int delayed_looks_needed, delayed_looks_left; // of the oldest transfer to the host
static int64_t delayed_looks, delayed_rounds;        // answered no; transfers done
static int delayed_most_under_way;
// Not 0: one look in so many finds that everything begun so far is done, the others find nothing new; which
// ones is drawn from delayed_seed.
static int delayed_odds;
static uint64_t delayed_seed;
static int delayed_caught_up; // copies that are done then and not delivered

// Transfers to the host that are not done.
static inline int delayed_under_way(void) {
    int n = 0;
    for (int i = 0; i < delayed_n_copies; i++) n += delayed_copies[i].comes;
    return n;
}

static inline void delayed_begin(dr_transfer *transfer, size_t at, size_t bytes, bool comes) {
    assert_true(delayed_n_copies < DELAYED_COPIES && at + bytes <= transfer->bytes);
    delayed_copy *copy = &delayed_copies[delayed_n_copies++];
    *copy = (delayed_copy){.transfer = transfer, .at = at, .bytes = bytes, .comes = comes};
    check_ok(dr_alloc(&copy->kept, "delayed bytes", (int64_t)bytes, 1));
    memcpy(copy->kept, transfer->host + at, bytes);
    if (comes) memset(transfer->host + at, 0xA5, bytes);
    if (comes && delayed_under_way() == 1) delayed_looks_left = delayed_looks_needed;
    if (delayed_under_way() > delayed_most_under_way) delayed_most_under_way = delayed_under_way();
}

static dr_status d_transfer_in(dr_backend *b, dr_transfer *transfer, size_t from, void *to_backend,
                               size_t bytes) {
    (void)b;
    delayed_begin(transfer, from, bytes, false);
    return delayed_inner->ops->transfer_in(delayed_inner, transfer, from, to_backend, bytes);
}

static dr_status d_transfer_out(dr_backend *b, dr_transfer *transfer, size_t to, const void *from_backend,
                                size_t bytes) {
    (void)b;
    DR_TRY(delayed_inner->ops->transfer_out(delayed_inner, transfer, to, from_backend, bytes));
    delayed_begin(transfer, to, bytes, true);
    return DR_OK;
}

// All copies up to the last one of this transfer, in order.
static inline void delayed_deliver(const dr_transfer *transfer) {
    int n = 0;
    for (int i = 0; i < delayed_n_copies; i++)
        if (delayed_copies[i].transfer == transfer) n = i + 1;
    for (int i = 0; i < n; i++) {
        delayed_copy *copy = &delayed_copies[i];
        char *host = copy->transfer->host + copy->at;
        if (copy->comes)
            memcpy(host, copy->kept, copy->bytes);
        else if (memcmp(host, copy->kept, copy->bytes) != 0)
            fail_msg("bytes on their way to the backend were changed");
        dr_free(copy->kept);
    }
    delayed_n_copies -= n;
    delayed_caught_up -= n < delayed_caught_up ? n : delayed_caught_up;
    memmove(delayed_copies, delayed_copies + n, (size_t)delayed_n_copies * sizeof *delayed_copies);
    delayed_looks_left = delayed_looks_needed;
}

// The backend has fallen behind and catches up with all at once.
static bool is_caught_up(const dr_transfer *transfer) {
    int last = -1;
    for (int i = 0; i < delayed_n_copies; i++)
        if (delayed_copies[i].transfer == transfer) last = i;
    delayed_seed = delayed_seed * 6364136223846793005u + 1442695040888963407u;
    if ((int)(delayed_seed >> 33) % delayed_odds == 0) delayed_caught_up = delayed_n_copies;
    return last < delayed_caught_up;
}

static dr_status d_transfer_done(dr_backend *b, dr_transfer *transfer, bool *out_done) {
    (void)b;
    bool is_oldest = false, is_under_way = false;
    for (int i = 0, seen = 0; i < delayed_n_copies; i++) {
        is_under_way |= delayed_copies[i].transfer == transfer;
        if (delayed_copies[i].comes && seen++ == 0) is_oldest = delayed_copies[i].transfer == transfer;
    }
    bool is_over =
        delayed_odds > 0 ? is_under_way && is_caught_up(transfer) : is_oldest && delayed_looks_left == 0;
    *out_done = !is_under_way || is_over;
    if (!*out_done) {
        delayed_looks++;
        delayed_looks_left -= is_oldest;
    } else if (is_under_way) {
        delayed_deliver(transfer);
        delayed_rounds++;
    }
    return DR_OK;
}

static void d_transfer_destroy(dr_backend *b, dr_transfer *transfer) {
    (void)b;
    if (transfer) delayed_deliver(transfer);
    delayed_inner->ops->transfer_destroy(delayed_inner, transfer);
}

// inner: a CPU backend, borrowed. It is asked `looks` times in vain before a transfer is done.
static inline dr_backend delayed_backend(dr_backend *inner, int looks) {
    static dr_backend_ops ops;
    ops = *inner->ops;
    ops.name = "delayed";
    ops.transfer_in = d_transfer_in;
    ops.transfer_out = d_transfer_out;
    ops.transfer_done = d_transfer_done;
    ops.transfer_destroy = d_transfer_destroy;
    delayed_inner = inner;
    delayed_looks_needed = delayed_looks_left = looks;
    delayed_looks = delayed_rounds = 0;
    delayed_n_copies = delayed_most_under_way = delayed_caught_up = delayed_odds = 0;
    dr_backend b = *inner;
    b.ops = &ops;
    return b;
}

#endif
