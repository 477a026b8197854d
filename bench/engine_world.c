// The catalogue and the retrieval model that retrieval and rollout are measured on.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/engine_parts.h"
#include "core/rec/trm_train.h"
#include "datasets/builder.h"
#include "datasets/source.h"

enum { ITEMS = 3700, USERS = 100, MEAN_LENGTH = 60, COVER_LENGTH = 50 };

// Users who together have seen everything: the builder leaves out items that nobody saw.
static dr_status cover_items(dr_builder *builder) {
    for (int i = 0; i < ITEMS; i++) {
        char user[16], item[16];
        snprintf(user, sizeof user, "c%d", i / COVER_LENGTH);
        snprintf(item, sizeof item, "i%d", i + 1);
        DR_TRY(dr_builder_event(builder, user, item, 5, i));
        dr_builder_good_row(builder);
    }
    return DR_OK;
}

static dr_status create_dataset(dr_dataset **out) {
    const dr_source_input input = {.dir = "",
                                   .interactions = "",
                                   .item_file = "",
                                   .users = USERS,
                                   .items = ITEMS,
                                   .mean_length = MEAN_LENGTH,
                                   .seed = 1};
    const dr_build_options options = {.bad_rows = -1};
    dr_builder *builder = NULL;
    DR_TRY(dr_builder_create(&builder));
    dr_status status = dr_source_synthetic(&input, builder);
    if (status == DR_OK) status = cover_items(builder);
    if (status == DR_OK) status = dr_builder_finish(builder, &options, "bench", "synthetic", "", out);
    dr_builder_destroy(builder);
    return status;
}

dr_status bench_world_create(dr_precision precision, int n_threads, bench_world *out) {
    dr_trm_train_options options = dr_trm_train_defaults();
    bench_world world = {0};
    options.max_epochs = 1;
    options.samples_per_epoch = options.batch = 64; // one update: only sizes matter here
    dr_status status = dr_backend_cpu_create(precision, n_threads, &world.backend);
    if (status == DR_OK) status = create_dataset(&world.dataset);
    if (status == DR_OK) status = dr_trm_train(world.backend, world.dataset, &options, &world.trm);
    if (status == DR_OK && world.dataset->n_items != ITEMS)
        status = DR_FAIL(DR_ERR_INTERNAL, "the catalogue has %d items, expected %d", world.dataset->n_items,
                         ITEMS);
    if (status != DR_OK) {
        bench_world_reset(&world);
        return status;
    }
    *out = world;
    return DR_OK;
}

// Through a folder: that is how a retrieval model gets to another backend.
static dr_status load_again(const dr_trm *trm, const char *dir, dr_backend *backend, dr_trm **out) {
    static const char *const names[] = {"config.json", "model.safetensors"};
    dr_status status = dr_trm_save(trm, dir);
    if (status == DR_OK) status = dr_trm_load(backend, dir, out);
    for (int i = 0; i < 2; i++) {
        char path[300];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
    return status;
}

dr_status bench_world_to_device(bench_world *world) {
    char dir[256];
    const char *base = getenv("TMPDIR");
    dr_backend *device = NULL;
    dr_trm *trm = NULL;
    bench_device about;
    dr_status status;
    int length = snprintf(dir, sizeof dir, "%s/deeprec-bench-XXXXXX", base && base[0] ? base : "/tmp");
    DR_CHECK(length < (int)sizeof dir, DR_ERR_ARGUMENT, "TMPDIR is longer than expected: %s", base);
    DR_TRY(bench_backend_open("cuda", DR_FP32, 0, &device, &about));
    DR_CHECK_GOTO(mkdtemp(dir), status, DR_ERR_IO, destroy_device, "%s: no folder can be made", dir);
    DR_TRY_GOTO(status, load_again(world->trm, dir, device, &trm), destroy_device);
    dr_trm_destroy(world->trm);
    dr_backend_destroy(world->backend);
    world->trm = trm;
    world->backend = device;
    return DR_OK;
destroy_device:
    dr_backend_destroy(device);
    return status;
}

void bench_world_reset(bench_world *world) {
    dr_trm_destroy(world->trm);
    dr_dataset_destroy(world->dataset);
    dr_backend_destroy(world->backend);
    memset(world, 0, sizeof *world);
}
