// Several ranks sum up and gather through NCCL on ONE device, for tests/gpu.sh and, emulated, for
// tests/emulated/nccl.sh: each rank says that it is a machine of its own (unless NCCL_HOSTID is set), because
// NCCL refuses two ranks of one machine on one device. The sum of fractions must have the bits of the sum in
// rank order, whether it is begun while they are written or not, and a rank that gives memory back in between
// must not wait for ever. Run under mpirun, with the deadline of an operation in seconds (30 by default), and
// seconds that the last rank works, and says so, before it does its part (0 by default; longer than the
// deadline: it is waited for). Exit status 0 only when it has, on every rank.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "cuda/backend_cuda.h"
#include "cuda/collective_nccl.h"
#include "mpi/world.h"
#include "tests/small_cases.h"

enum {
    N = sized(20 << 20, 25 << 10),        // more than one chunk of a rank
    LONG_N = sized(272 << 20, 340 << 10), // more chunks than may be under way
    LAYERS = 100,                         // of a slow backward pass
    LAYER_N = 2 * 5120,                   // of chunks as small as an emulated device's
    MOST_RANKS = 16
};

static double late_s; // that the last rank works before its part of a sum

static dr_status work_late(dr_collective *group) {
    double end = dr_clock_seconds() + late_s;
    if (group->rank < group->size - 1) return DR_OK;
    while (dr_clock_seconds() < end) {
        DR_TRY(group->ops->alive(group));
        dr_clock_sleep(0.05);
    }
    return DR_OK;
}

static float value_of(int rank, int64_t i) {
    return (float)(i % 1013 + 1) / (float)(rank + 3);
}

// What a backward pass does whose scratch grows. A device gives memory back once all of its work is done, the
// chunks that were begun included, and rank 1 sends its part of these with its sum alone, or never.
static dr_status grow_scratch(dr_backend *b) {
    float *scratch = NULL;
    DR_TRY(dr_memory_create(b, &scratch, "scratch", 1 << 20, sizeof *scratch));
    b->ops->memory_destroy(b, scratch);
    return DR_OK;
}

// Values [n] go to the device from the end to the start, in steps of another size on every rank; rank 1
// begins nothing.
static dr_status write_and_begin(dr_backend *b, dr_collective *group, const float *host, float *memory,
                                 int64_t n) {
    int64_t step = n / (3 + group->rank) + 1;
    DR_TRY(work_late(group));
    for (int64_t end = n; end > 0; end -= step) {
        int64_t from = end > step ? end - step : 0;
        b->ops->copy_in(b, memory + from, host + from, (size_t)(end - from) * sizeof *host);
        if (group->rank != 1) DR_TRY(group->ops->reduce_scatter_begin(group, memory, n, from));
    }
    return group->rank == 0 ? grow_scratch(b) : DR_OK;
}

// Values [n], each from the rank that has their sum.
static dr_status gather(dr_collective *group, float *memory, int64_t n) {
    dr_shard parts[MOST_RANKS];
    for (int rank = 0; rank < group->size; rank++) {
        dr_shard shard = dr_shard_of(n, rank, group->size);
        parts[rank] = (dr_shard){shard.begin * (int64_t)sizeof *memory, shard.end * (int64_t)sizeof *memory};
    }
    return group->ops->all_gather(group, memory, parts);
}

// Parts of odd lengths, of which rank 1 has none, with bytes between them that stay; then the same in the
// host's memory.
static dr_status check_bytes(dr_backend *b, dr_collective *group) {
    enum { EACH = 1001, ROOM = EACH + 3 };
    unsigned char host[MOST_RANKS * ROOM], got[MOST_RANKS * ROOM];
    dr_shard parts[MOST_RANKS];
    void *memory = NULL;
    DR_TRY(b->ops->memory_create(b, "bytes", sizeof host, &memory));
    memset(host, 255, sizeof host);
    for (int rank = 0; rank < group->size; rank++) {
        int64_t begin = (int64_t)rank * ROOM;
        parts[rank] = (dr_shard){begin, rank == 1 ? begin : begin + EACH - rank};
    }
    for (int64_t i = parts[group->rank].begin; i < parts[group->rank].end; i++)
        host[i] = (unsigned char)(i % 251);
    b->ops->copy_in(b, memory, host, sizeof host);
    dr_status status = group->ops->all_gather(group, memory, parts);
    if (status == DR_OK) status = group->ops->all_gather_host(group, host, parts);
    if (status == DR_OK) b->ops->copy_out(b, got, memory, sizeof got);
    b->ops->memory_destroy(b, memory);
    DR_TRY(status);
    for (int64_t i = 0; i < (int64_t)sizeof host; i++) {
        unsigned char want = 255;
        for (int rank = 0; rank < group->size; rank++)
            if (i >= parts[rank].begin && i < parts[rank].end) want = (unsigned char)(i % 251);
        DR_CHECK(got[i] == want && host[i] == want, DR_ERR_INTERNAL,
                 "byte %lld is %d, on the host %d, not %d", (long long)i, got[i], host[i], want);
    }
    return DR_OK;
}

// host [n] is overwritten.
static dr_status check_sum(dr_backend *b, dr_collective *group, float *host, int64_t n, bool is_begun) {
    float *memory = NULL;
    dr_status status = DR_OK;
    const size_t bytes = (size_t)n * sizeof *host;
    DR_TRY(dr_memory_create(b, &memory, "gradient", n, sizeof *memory));
    for (int64_t i = 0; i < n; i++) host[i] = value_of(group->rank, i);
    if (is_begun)
        status = write_and_begin(b, group, host, memory, n);
    else
        b->ops->copy_in(b, memory, host, bytes);
    if (status == DR_OK) status = group->ops->reduce_scatter_sum(group, memory, n);
    if (status == DR_OK) status = gather(group, memory, n);
    if (status == DR_OK) b->ops->copy_out(b, host, memory, bytes);
    b->ops->memory_destroy(b, memory);
    DR_TRY(status);
    for (int64_t i = 0; i < n; i++) {
        float want = value_of(0, i);
        for (int rank = 1; rank < group->size; rank++) want += value_of(rank, i);
        DR_CHECK(memcmp(&host[i], &want, sizeof want) == 0, DR_ERR_INTERNAL,
                 "value %lld of %lld is %.9g, expected %.9g%s", (long long)i, (long long)n, (double)host[i],
                 (double)want, is_begun ? ", the sum was begun early" : "");
    }
    return DR_OK;
}

typedef size_t queued_function(void);

// Of the emulated library; NULL: the library is a real one, which does not say what was queued.
static queued_function *find_queued(void) {
    queued_function *found = NULL;
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_NOLOAD);
    void *symbol = library ? dlsym(library, "emulatedNcclQueued") : NULL;
    memcpy(&found, &symbol, sizeof found);
    if (library) dlclose(library);
    return found;
}

// What this rank sends and receives for values `from` … n - 1.
static int64_t traffic(const dr_collective *group, int64_t n, int64_t from) {
    dr_shard shard = dr_shard_of(n, group->rank, group->size);
    int64_t begin = shard.begin > from ? shard.begin : from, own = shard.end > begin ? shard.end - begin : 0;
    return n - from - own + own * (group->size - 1);
}

// A layer's values go to the device, and the host is busy until all whole chunks of what is final are queued,
// or a bound has come.
static dr_status make_layer(dr_backend *b, dr_collective *group, const float *host, float *memory,
                            int64_t from, queued_function *queued, size_t first, double bound) {
    const int64_t n = (int64_t)LAYERS * LAYER_N, wanted = traffic(group, n, from) - LAYER_N / 2 * group->size;
    b->ops->copy_in(b, memory + from, host + from, LAYER_N * sizeof *host);
    do {
        DR_TRY(group->ops->reduce_scatter_begin(group, memory, n, from));
        dr_clock_sleep(100e-6);
    } while ((int64_t)(queued() - first) < wanted && dr_clock_seconds() < bound);
    return DR_OK;
}

// During a slow backward pass more than 80 % of what this rank sends and receives for the sum is queued
// before the sum is asked for.
static dr_status check_share(dr_backend *b, dr_collective *group) {
    const int64_t n = (int64_t)LAYERS * LAYER_N;
    queued_function *queued = find_queued();
    float *memory = NULL, *host = NULL;
    dr_status status = DR_OK;
    if (!queued) {
        printf("rank %d of %d: share of a sum begun early: skipped, the library does not say it\n",
               group->rank, group->size);
        return DR_OK;
    }
    DR_TRY(dr_memory_create(b, &memory, "gradient", n, sizeof *memory));
    DR_TRY_GOTO(status, dr_alloc(&host, "values", n, sizeof *host), release);
    for (int64_t i = 0; i < n; i++) host[i] = value_of(group->rank, i);
    const size_t first = queued();
    const double bound = dr_clock_seconds() + 10;
    for (int64_t from = n - LAYER_N; from >= 0 && status == DR_OK; from -= LAYER_N)
        status = make_layer(b, group, host, memory, from, queued, first, bound);
    const size_t early = queued() - first;
    if (status == DR_OK) status = group->ops->reduce_scatter_sum(group, memory, n);
    const double share = (double)early / (double)(queued() - first);
    if (status == DR_OK)
        printf("rank %d of %d: %.0f %% queued early\n", group->rank, group->size, 100 * share);
    if (status == DR_OK && !(share > 0.8))
        status = DR_FAIL(DR_ERR_INTERNAL, "%.0f %% of a sum were queued early, expected more than 80 %%",
                         100 * share);
release:
    dr_free(host);
    b->ops->memory_destroy(b, memory);
    return status;
}

static bool has_long(const dr_world *world) {
    return sized(world->size == 2, true); // keeps a device's check on more ranks short
}

static dr_status sum_up(const dr_world *world, double deadline_s) {
    int processes[MOST_RANKS];
    dr_backend *backend = NULL;
    dr_collective *host = NULL, *devices = NULL;
    float *values = NULL;
    dr_status status;
    const bool is_long = has_long(world);
    DR_CHECK(world->size <= MOST_RANKS, DR_ERR_ARGUMENT, "%d ranks, expected up to %d", world->size,
             MOST_RANKS);
    for (int rank = 0; rank < world->size; rank++) processes[rank] = rank;
    DR_TRY(dr_collective_mpi_create(processes, world->size, deadline_s, &host));
    DR_TRY_GOTO(status, dr_backend_cuda_create(DR_FP32, 0, &backend), release);
    DR_TRY_GOTO(status, dr_collective_nccl_create(backend, host, &devices), release);
    DR_TRY_GOTO(status, dr_alloc(&values, "values", is_long ? LONG_N : N, sizeof *values), release);
    DR_TRY_GOTO(status, check_sum(backend, devices, values, N, false), release);
    DR_TRY_GOTO(status, check_bytes(backend, devices), release);
    DR_TRY_GOTO(status, check_sum(backend, devices, values, N, true), release);
    for (int is_begun = 0; is_long && is_begun < 2; is_begun++)
        DR_TRY_GOTO(status, check_sum(backend, devices, values, LONG_N, is_begun), release);
    status = check_share(backend, devices);
release:
    if (devices) devices->ops->destroy(devices);
    dr_free(values);
    dr_backend_destroy(backend);
    host->ops->destroy(host);
    return status;
}

int main(int argc, char **argv) {
    dr_world world;
    char name[32];
    if (dr_world_init(&argc, &argv, 60, &world) != DR_OK) return EXIT_FAILURE;
    snprintf(name, sizeof name, "rank%d", world.rank);
    late_s = argc > 2 ? atof(argv[2]) : 0;
    setenv("NCCL_HOSTID", name, 0);
    dr_status status = sum_up(&world, argc > 1 ? atof(argv[1]) : 30.0);
    if (status == DR_OK) {
        printf("rank %d of %d: %d values summed up in rank order\n", world.rank, world.size,
               has_long(&world) ? LONG_N : N);
        dr_world_finalize(60);
        return EXIT_SUCCESS;
    }
    fprintf(stderr, "rank %d of %d: %s: %s\n", world.rank, world.size, dr_status_name(status),
            dr_last_error());
    dr_clock_sleep(
        2.0); // the other ranks tell theirs; one may wait for this one in a call without a deadline
    dr_world_abort(EXIT_FAILURE);
    return EXIT_FAILURE;
}
