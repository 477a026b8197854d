// The catalogue and the retrieval model that retrieval and rollout are measured on.
#include <stdio.h>
#include <string.h>

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

void bench_world_reset(bench_world *world) {
    dr_trm_destroy(world->trm);
    dr_dataset_destroy(world->dataset);
    dr_backend_cpu_destroy(world->backend);
    memset(world, 0, sizeof *world);
}
