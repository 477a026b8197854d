// The choice is greedy: sets of devices that overlap in odd ways may share where another choice would not.
#include "core/comm/device_binding.h"

#include <stdbool.h>

#include "core/base/alloc.h"

static int64_t id_of(const dr_seen_devices *seen, const dr_device_binding *bound, int w) {
    return seen[w].bus_id[bound[w].device];
}

// Workers of w's node that have taken a device.
static int32_t count_takers(const dr_seen_devices *seen, const dr_device_binding *bound, int n, int w,
                            int64_t bus_id) {
    int32_t takers = 0;
    for (int other = 0; other < n; other++)
        takers += seen[other].node == seen[w].node && bound[other].device >= 0 &&
                  id_of(seen, bound, other) == bus_id;
    return takers;
}

// To the collective library, which takes a bus id of a machine for one device.
static bool is_same_device(const dr_seen_devices *seen, const dr_device_binding *bound, int a, int b) {
    int64_t told = seen[a].told_machine;
    if (bound[a].device < 0 || bound[b].device < 0) return false;
    return told == seen[b].told_machine && (told || seen[a].node == seen[b].node) &&
           id_of(seen, bound, a) == id_of(seen, bound, b);
}

static bool clashes(const dr_seen_devices *seen, const dr_device_binding *bound, int n, int w) {
    for (int other = 0; other < n; other++)
        if (other != w && is_same_device(seen, bound, w, other)) return true;
    return false;
}

static int32_t choose(const dr_seen_devices *seen, const dr_device_binding *bound, int n, int w) {
    int32_t best = -1, fewest = INT32_MAX;
    for (int32_t d = 0; d < seen[w].n; d++) {
        int32_t takers = count_takers(seen, bound, n, w, seen[w].bus_id[d]);
        if (takers < fewest) {
            fewest = takers;
            best = d;
        }
    }
    return best;
}

// Whether a worker before w, or a device of w before d, is this device.
static bool is_counted(const dr_seen_devices *seen, int w, int32_t d) {
    for (int other = 0; other <= w; other++) {
        int32_t end = other < w ? seen[other].n : d;
        for (int32_t i = 0; i < end && seen[other].node == seen[w].node; i++)
            if (seen[other].bus_id[i] == seen[w].bus_id[d]) return true;
    }
    return false;
}

static void count_node(const dr_seen_devices *seen, int n, int w, dr_device_binding *out) {
    for (int other = 0; other < n; other++) {
        if (seen[other].node != seen[w].node) continue;
        out->n_here++;
        for (int32_t d = 0; d < seen[other].n; d++) out->n_devices_here += !is_counted(seen, other, d);
    }
}

void dr_devices_bind(const dr_seen_devices *seen, int n, dr_device_binding *out) {
    int32_t n_without = 0, n_shared = 0, n_clashing = 0;
    for (int w = 0; w < n; w++) out[w] = (dr_device_binding){.device = -1};
    for (int32_t sees = 1; sees <= DR_SEEN_DEVICES; sees++)
        for (int w = 0; w < n; w++)
            if (seen[w].n == sees) out[w].device = choose(seen, out, n, w);
    for (int w = 0; w < n; w++) {
        count_node(seen, n, w, &out[w]);
        if (out[w].device >= 0) out[w].n_sharing = count_takers(seen, out, n, w, id_of(seen, out, w));
        n_without += out[w].device < 0;
        n_shared += out[w].n_sharing > 1;
        n_clashing += clashes(seen, out, n, w);
    }
    for (int w = 0; w < n; w++) {
        out[w].n_without = n_without;
        out[w].n_shared = n_shared;
        out[w].n_clashing = n_clashing;
    }
}

// As a sum in which each row has one term that is not zero: doubles hold these numbers exactly.
dr_status dr_devices_exchange(dr_collective *c, dr_seen_devices *all) {
    enum { HEAD = 3, ROW = HEAD + DR_SEEN_DEVICES };
    double *rows = NULL;
    DR_TRY(dr_alloc(&rows, "devices of all workers", (int64_t)c->size * ROW, sizeof *rows));
    double *own = rows + (int64_t)c->rank * ROW;
    own[0] = all[c->rank].node;
    own[1] = all[c->rank].n;
    own[2] = (double)all[c->rank].told_machine;
    for (int i = 0; i < DR_SEEN_DEVICES; i++) own[HEAD + i] = (double)all[c->rank].bus_id[i];
    dr_status status = c->ops->allreduce_sum_double(c, rows, (int64_t)c->size * ROW);
    for (int r = 0; r < c->size && status == DR_OK; r++) {
        const double *row = rows + (int64_t)r * ROW;
        all[r].node = (int32_t)row[0];
        all[r].n = (int32_t)row[1];
        all[r].told_machine = (int64_t)row[2];
        for (int i = 0; i < DR_SEEN_DEVICES; i++) all[r].bus_id[i] = (int64_t)row[HEAD + i];
    }
    dr_free(rows);
    return status;
}
