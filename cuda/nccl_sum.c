// The NCCL collective's sum: chunk by chunk to the rank that owns it, which copies and adds in rank order, on
// a stream of its own. NCCL's own sum would be faster, but its order depends on topology and size.
//
// Order. A sum of n values over `size` ranks is one sequence of exchanges, the same on every rank: chunks
// from the end of the values to their beginning, as a backward pass makes them, each for its one owner. Each
// rank queues them as far as they are final, behind the events that say so; begin and sum go on with it where
// the other one stopped. A chunk for each owner at once, which is faster, cannot begin before all values are
// there. So with each exchange each rank tells all others whether all of its values were there when it queued
// it: the first exchange i in which all ranks say so has all others read it before they queue number i +
// window, and from that number on chunks of what is left go to all owners at once. That is agreed on by what
// was exchanged: no bit of the sum depends on when it happens.
//
// Waits. At most `window` exchanges are under way, so that a launch never finds its queue full, where it
// would wait for other ranks without a deadline. The window moves on as the oldest exchange is seen to have
// ended, which begin only looks for and sum waits for, with its deadline. Between begin and sum a rank may
// still be held up by the device where a call waits for all of its work (a kernel that is loaded at its first
// use; memory is not given back meanwhile, see held_memory.h). Such a wait is for exchanges that this rank
// has queued, and so are all waits within a sum; none is for another rank to come to some place. So of the
// ranks that wait the one that has queued fewest exchanges goes on: all the others have queued these too. For
// that, nothing here may wait for the other ranks through `host` while a sum is under way.
#include "cuda/collective_nccl.h"
#include "cuda/nccl_group.h"

#ifdef DR_HAVE_NCCL

#include "core/base/alloc.h"
#include "core/base/log.h"
#include "cuda/cuda_internal.h"
#include "cuda/held_memory.h"

#ifndef DR_NCCL_CHUNK // a build on an emulated device has smaller ones
#define DR_NCCL_CHUNK (4 << 20)
#endif
enum {
    CHUNK = DR_NCCL_CHUNK,    // values of one rank that are added at a time, at most
    MOST_GATHERED = 64 << 20, // values of all ranks in scratch, at most
    MOST_OPS = 256            // on the stream, of exchanges under way; a launch waits behind about 1000
};

static int64_t chunk_of(int size) { // values; a multiple of 16 bytes
    int64_t most = MOST_GATHERED / size / 4 * 4;
    return most < CHUNK ? most : CHUNK;
}

// Of an exchange's ops: a wait, the exchange, three copies, an addition for each other rank, an event.
static int window_of(int size) {
    int most = MOST_OPS / (size + 5);
    return most > 1 ? most : 1;
}

// ---- one exchange ----

// sum.parts of `values` to the other ranks, and theirs of the own one into sum.gathered, as long ones in
// turn; with them whether all of this rank's values are made, to the words at `slot` of the others.
static ncclResult_t queue_transfers(const dr_nccl_group *g, const float *values, int64_t slot, bool is_made) {
    const dr_nccl_sum *s = &g->sum;
    const int size = g->base.size, rank = g->base.rank;
    const int64_t own = s->parts[rank].end - s->parts[rank].begin;
    float *words = s->words + 2 + slot * size;
    ncclResult_t result = g->nccl.group_start();
    for (int r = 0; r < size && result == ncclSuccess; r++) {
        dr_shard theirs = s->parts[r];
        ncclResult_t results[4] = {ncclSuccess, ncclSuccess, ncclSuccess, ncclSuccess};
        if (r == rank) continue;
        if (theirs.begin < theirs.end)
            results[0] = g->nccl.send(values + theirs.begin, (size_t)(theirs.end - theirs.begin), ncclFloat32,
                                      r, g->comm, g->stream);
        if (own > 0)
            results[1] =
                g->nccl.receive(s->gathered + r * own, (size_t)own, ncclFloat32, r, g->comm, g->stream);
        results[2] = g->nccl.send(s->words + is_made, 1, ncclFloat32, r, g->comm, g->stream);
        results[3] = g->nccl.receive(words + r, 1, ncclFloat32, r, g->comm, g->stream);
        for (int i = 0; i < 4 && result == ncclSuccess; i++)
            if (results[i] != ncclInProgress)
                result = results[i]; // the group's end settles what is under way
    }
    ncclResult_t ended = g->nccl.group_end();
    return result == ncclSuccess ? ended : result;
}

static dr_status copy_on_device(const dr_nccl_group *g, float *to, const float *from, int64_t count,
                                const dr_nccl_call *k) {
    DR_CUDA_TRY(DR_ERR_INTERNAL,
                cudaMemcpyAsync(to, from, (size_t)count * sizeof *to, cudaMemcpyDeviceToDevice, g->stream),
                "NCCL %s", k->what);
    return DR_OK;
}

// The own part becomes the sum over the ranks.
static dr_status add_parts(const dr_nccl_group *g, const dr_nccl_call *k) {
    const dr_nccl_sum *s = &g->sum;
    const dr_shard own = s->parts[g->base.rank];
    const int64_t count = own.end - own.begin;
    float *total = s->values + own.begin;
    if (count == 0) return DR_OK;
    DR_TRY(copy_on_device(g, s->gathered + g->base.rank * count, total, count, k));
    DR_TRY(copy_on_device(g, total, s->gathered, count, k));
    for (int r = 1; r < g->base.size; r++)
        DR_TRY(dr_cuda_add(s->gathered + r * count, count, total, g->stream));
    return DR_OK;
}

// sum.parts go to their owners, are added there, and what was said with them goes to the host; waits only for
// NCCL to have queued its part, before which nothing else may go on that stream.
static dr_status queue_exchange(dr_nccl_group *g, const dr_nccl_call *k) {
    dr_nccl_sum *s = &g->sum;
    const int64_t slot = s->n_queued % s->window, size = g->base.size;
    dr_nccl_exchange *exchange = &s->exchanges[slot];
    exchange->is_made = s->is_made;
    ncclResult_t result = queue_transfers(g, s->values, slot, s->is_made);
    DR_TRY(dr_nccl_judge(g, k, dr_nccl_settle(g, result, k->end)));
    DR_TRY(add_parts(g, k));
    DR_CUDA_TRY(DR_ERR_INTERNAL,
                cudaMemcpyAsync(s->said + slot * size, s->words + 2 + slot * size,
                                (size_t)size * sizeof *s->said, cudaMemcpyDeviceToHost, g->stream),
                "NCCL %s", k->what);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventRecord(exchange->done, g->stream), "NCCL %s", k->what);
    s->n_queued++;
    return DR_OK;
}

// ---- what is final ----

// All values from sum.final on are, behind what is on the backend's stream so far.
static dr_status mark_final(dr_nccl_group *g, const dr_nccl_call *k) {
    enum { MORE = 64 }; // two a layer
    dr_nccl_sum *s = &g->sum;
    const dr_cuda_state *state = g->backend->state;
    if (s->n_marks == s->capacity) {
        DR_TRY(dr_grow(&s->marks, "NCCL marks", s->capacity, s->capacity + MORE, sizeof *s->marks));
        s->capacity += MORE;
    }
    dr_nccl_mark *mark = &s->marks[s->n_marks];
    if (!mark->made)
        DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventCreateWithFlags(&mark->made, cudaEventDisableTiming),
                    "NCCL %s: event", k->what);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventRecord(mark->made, state->stream), "NCCL %s", k->what);
    mark->from = s->final;
    s->n_marks++;
    return DR_OK;
}

// What goes on the stream of sums from now on comes behind the work that makes values from `from` on.
static dr_status follow_marks(dr_nccl_group *g, int64_t from, const dr_nccl_call *k) {
    dr_nccl_sum *s = &g->sum;
    if (s->n_followed > 0 && s->marks[s->n_followed - 1].from <= from) return DR_OK;
    do {
        s->n_followed++;
    } while (s->marks[s->n_followed - 1].from > from);
    DR_CUDA_TRY(DR_ERR_INTERNAL, cudaStreamWaitEvent(g->stream, s->marks[s->n_followed - 1].made, 0),
                "NCCL %s", k->what);
    return DR_OK;
}

static dr_status look_at_marks(dr_nccl_group *g, const dr_nccl_call *k) {
    dr_nccl_sum *s = &g->sum;
    if (s->is_made || s->final > 0) return DR_OK;
    return dr_nccl_is_done(g, s->marks[s->n_marks - 1].made, k, &s->is_made);
}

// ---- the sequence ----

static bool all_made(const dr_nccl_group *g, int64_t slot) {
    const dr_nccl_sum *s = &g->sum;
    bool all = s->exchanges[slot].is_made;
    for (int r = 0; r < g->base.size; r++)
        if (r != g->base.rank && s->said[slot * g->base.size + r] == 0.0f) all = false;
    return all;
}

// Which exchanges have ended, and what was said in them; does not wait.
static dr_status look_at_exchanges(dr_nccl_group *g, const dr_nccl_call *k) {
    dr_nccl_sum *s = &g->sum;
    for (; s->n_ended < s->n_queued; s->n_ended++) {
        const int64_t slot = s->n_ended % s->window;
        bool is_done = false;
        DR_TRY(dr_nccl_is_done(g, s->exchanges[slot].done, k, &is_done));
        if (!is_done) return DR_OK;
        if (s->together == INT64_MAX && all_made(g, slot)) s->together = s->n_ended + s->window;
    }
    return DR_OK;
}

// What is left of rank r's shard once exchanges are for all owners at once.
static dr_shard left_of(const dr_nccl_group *g, int r) {
    const dr_nccl_sum *s = &g->sum;
    dr_shard left = dr_shard_of(s->n, r, g->base.size);
    if (left.end > s->begin) left.end = left.begin < s->begin ? s->begin : left.begin;
    return left;
}

static bool is_all_queued(const dr_nccl_group *g) {
    dr_shard longest = left_of(g, 0);
    return g->sum.n_pieces * chunk_of(g->base.size) >= longest.end - longest.begin;
}

// sum.parts of the next exchange; *out_from is where they begin.
static void next_parts(const dr_nccl_group *g, bool is_together, int64_t *out_from) {
    const dr_nccl_sum *s = &g->sum;
    const int size = g->base.size, owner = dr_shard_owner(s->n, s->begin - 1, size);
    for (int r = 0; r < size; r++) {
        dr_shard part = dr_shard_piece(left_of(g, r), s->n_pieces, chunk_of(size));
        s->parts[r] = is_together || r == owner ? part : (dr_shard){0, 0};
    }
    *out_from = is_together ? 0 : s->parts[owner].begin;
}

// Queues exchanges of what is final, in their order, as far as the window goes; waits for no other rank.
static dr_status advance(dr_nccl_group *g, const dr_nccl_call *k) {
    dr_nccl_sum *s = &g->sum;
    DR_TRY(look_at_exchanges(g, k));
    while (!is_all_queued(g) && s->n_queued - s->n_ended < s->window) {
        const bool is_together = s->n_queued >= s->together;
        int64_t from = 0;
        next_parts(g, is_together, &from);
        if (from < s->final) break;
        DR_TRY(look_at_marks(g, k));
        DR_TRY(follow_marks(g, from, k));
        DR_TRY(queue_exchange(g, k));
        if (is_together)
            s->n_pieces++;
        else
            s->begin = from;
    }
    return DR_OK;
}

// ---- calls ----

void dr_nccl_sum_end(dr_nccl_group *g) {
    if (g->sum.n == 0) return;
    g->sum.n = 0;
    dr_cuda_let_memory_go();
}

static void start(dr_nccl_sum *s, float *values, int64_t n) {
    dr_cuda_hold_memory();
    s->values = values;
    s->n = s->final = s->begin = n;
    s->n_pieces = s->n_queued = s->n_ended = 0;
    s->n_marks = s->n_followed = 0;
    s->together = INT64_MAX;
    s->is_made = false;
}

// A sum of these values, which is under way or begins here, is final from `from` on.
static dr_status note_final(dr_nccl_group *g, float *values, int64_t n, int64_t from) {
    dr_nccl_sum *s = &g->sum;
    DR_TRY(dr_nccl_check_connected(g, "sum", n, "values"));
    bool is_first = s->n == 0;
    bool fits = is_first ? from <= n : n == s->n && values == s->values && from <= s->final;
    DR_CHECK(fits && from >= 0, DR_ERR_ARGUMENT,
             "learner %d of %d: NCCL sum of %lld values from %lld on, under way is one of %lld from %lld on",
             g->base.rank, g->base.size, (long long)n, (long long)from, (long long)s->n, (long long)s->final);
    if (is_first) start(s, values, n);
    return DR_OK;
}

static dr_status go_on(dr_nccl_group *g, int64_t from, const dr_nccl_call *k) {
    dr_cuda_state *state;
    DR_TRY(dr_cuda_enter(g->backend, &state));
    if (from < g->sum.final) {
        g->sum.final = from;
        DR_TRY(mark_final(g, k));
    }
    return advance(g, k);
}

static dr_status finish(dr_nccl_group *g, dr_nccl_call *k) {
    dr_nccl_sum *s = &g->sum;
    DR_TRY(go_on(g, 0, k));
    while (s->n_ended < s->n_queued) { // where all is final the window is full, or all is queued
        DR_TRY(dr_nccl_wait_for_event(g, s->exchanges[s->n_ended % s->window].done, k));
        DR_TRY(advance(g, k));
    }
    return DR_OK;
}

dr_status dr_nccl_reduce_scatter_begin(dr_collective *c, float *values, int64_t n, int64_t from) {
    dr_nccl_group *g = c->state;
    if (n <= 0) return DR_OK;
    DR_TRY(note_final(g, values, n, from));
    const dr_nccl_call k = dr_nccl_call_begin(g, "sum", n, "values");
    dr_status status = go_on(g, from, &k);
    if (status != DR_OK) dr_nccl_give_up(g);
    return status;
}

dr_status dr_nccl_reduce_scatter_sum(dr_collective *c, float *values, int64_t n) {
    dr_nccl_group *g = c->state;
    if (n <= 0) return DR_OK;
    DR_TRY(note_final(g, values, n, 0));
    dr_nccl_call k = dr_nccl_call_begin(g, "sum", n, "values");
    dr_status status = finish(g, &k);
    if (status == DR_OK)
        dr_nccl_sum_end(g);
    else
        dr_nccl_give_up(g);
    return status;
}

// ---- start and end ----

static dr_status take_memory(dr_nccl_group *g, const char *label, size_t bytes, float **out) {
    void *memory = NULL;
    DR_TRY(g->backend->ops->memory_create(g->backend, label, bytes, &memory));
    *out = memory;
    g->base.memory += (int64_t)bytes;
    return DR_OK;
}

int64_t dr_collective_nccl_memory(int size) {
    return (chunk_of(size) * size + 2 + (int64_t)window_of(size) * size) * (int64_t)sizeof(float);
}

dr_status dr_nccl_sum_open(dr_nccl_group *g) {
    static const float one = 1.0f;
    dr_nccl_sum *s = &g->sum;
    const int size = g->base.size;
    void *said = NULL;
    s->window = window_of(size);
    const size_t n_words = (size_t)s->window * (size_t)size;
    DR_TRY(dr_alloc(&s->parts, "NCCL parts", size, sizeof *s->parts));
    DR_TRY(dr_alloc(&s->exchanges, "NCCL exchanges", s->window, sizeof *s->exchanges));
    for (int i = 0; i < s->window; i++)
        DR_CUDA_TRY(DR_ERR_INTERNAL, cudaEventCreateWithFlags(&s->exchanges[i].done, cudaEventDisableTiming),
                    "event of exchange %d", i);
    DR_TRY(
        take_memory(g, "NCCL chunks", (size_t)chunk_of(size) * (size_t)size * sizeof(float), &s->gathered));
    DR_TRY(take_memory(g, "NCCL words", (2 + n_words) * sizeof(float), &s->words));
    g->backend->ops->copy_in(g->backend, s->words + 1, &one, sizeof one);
    DR_CUDA_TRY(DR_ERR_MEMORY, cudaMallocHost(&said, n_words * sizeof(float)), "NCCL words: %zu, pinned",
                n_words);
    s->said = said;
    return DR_OK;
}

void dr_nccl_sum_close(dr_nccl_group *g) {
    dr_nccl_sum *s = &g->sum;
    const dr_backend *b = g->backend;
    dr_nccl_sum_end(g);
    if (s->gathered) b->ops->memory_destroy(g->backend, s->gathered);
    if (s->words) b->ops->memory_destroy(g->backend, s->words);
    if (s->said) dr_cuda_free_host(((dr_cuda_state *)b->state)->device, s->said);
    for (int i = 0; s->exchanges && i < s->window; i++)
        if (s->exchanges[i].done) cudaEventDestroy(s->exchanges[i].done);
    for (int64_t i = 0; i < s->capacity; i++)
        if (s->marks[i].made) cudaEventDestroy(s->marks[i].made);
    dr_free(s->marks);
    dr_free(s->exchanges);
    dr_free(s->parts);
}

dr_status dr_nccl_greet(dr_nccl_group *g, dr_nccl_call *k) {
    const dr_nccl_sum *s = &g->sum;
    const int size = g->base.size;
    for (int r = 0; r < size; r++) s->parts[r] = (dr_shard){size + r, size + r + 1};
    DR_TRY(dr_nccl_judge(g, k, dr_nccl_settle(g, queue_transfers(g, s->gathered, 0, false), k->end)));
    DR_TRY(dr_cuda_add(s->gathered + size, 1, s->gathered, g->stream));
    return dr_nccl_wait_for_stream(g, g->stream, k);
}

#endif
