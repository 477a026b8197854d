// Any HDF5 file: its own description of itself (attributes), then what it holds.
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/store/h5_describe.h"
#include "launch/inspect.h"

typedef struct listing {
    int64_t stored_bytes;
    int32_t n_datasets, n_groups;
    bool has_trajectories;
} listing;

static dr_status print_object(void *context, const dr_h5_object *object) {
    listing *l = context;
    if (!object->is_dataset) {
        l->n_groups++;
        if (strcmp(object->path, "/") != 0) printf("  %s/\n", object->path);
        return DR_OK;
    }
    l->n_datasets++;
    l->stored_bytes += object->stored_bytes;
    char shape[128] = "one value";
    int used = 0;
    for (int32_t i = 0; i < object->n_dims; i++)
        used += snprintf(shape + used, sizeof shape - (size_t)used, "%s%lld", i ? " x " : "",
                         (long long)object->shape[i]);
    printf("  %-32s %-10s %-18s %10lld bytes, %s\n", object->path, object->type, shape,
           (long long)object->stored_bytes, object->layout);
    return DR_OK;
}

static dr_status print_attribute(void *context, const char *path, const char *name, const char *text) {
    listing *l = context;
    if (strcmp(path, "/") == 0 && strcmp(name, "format") == 0 && strstr(text, "deeprec-trajectories"))
        l->has_trajectories = true;
    printf("%s%s = %s\n", strcmp(path, "/") == 0 ? "  " : "      ", name, text);
    return DR_OK;
}

dr_status dr_inspect_hdf5(const char *path, int lists_all) {
    (void)lists_all;
    listing l = {0};
    dr_h5_visitor visitor = {.context = &l, .object = print_object, .attribute = print_attribute};
    printf("%s: HDF5\n", path);
    DR_TRY(dr_h5_describe(path, &visitor));
    printf("  %d data sets in %d groups, %lld bytes of data\n", l.n_datasets, l.n_groups,
           (long long)l.stored_bytes);
    return l.has_trajectories ? dr_inspect_trajectories(path) : DR_OK;
}
