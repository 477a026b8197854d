// Writing the weights of a folder, in one file or in shards with an index. New shards are written beside
// their names and take them at the end.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/store/safetensors_folder.h"

static const char SINGLE[] = "model.safetensors", INDEX[] = "model.safetensors.index.json";

// Shard i holds tensors first[i] to first[i + 1] - 1.
typedef struct shard_plan {
    const char *dir;
    const dr_safetensor_source *tensors;
    int32_t *first, n;
    int64_t total_bytes;
} shard_plan;

static dr_status plan_shards(shard_plan *plan, int32_t n_tensors, int64_t max_bytes) {
    DR_TRY(dr_alloc(&plan->first, "shards", (int64_t)n_tensors + 1, sizeof *plan->first));
    int64_t filled = 0;
    for (int32_t i = 0; i < n_tensors; i++) {
        int64_t bytes = dr_safetensor_source_bytes(&plan->tensors[i]);
        if (i == 0 || filled + bytes > max_bytes) {
            plan->first[plan->n++] = i;
            filled = 0;
        }
        filled += bytes;
        plan->total_bytes += bytes;
    }
    plan->first[plan->n] = n_tensors;
    return DR_OK;
}

static dr_status path_of(const shard_plan *plan, int32_t shard, const char *ending, char **out_path) {
    char name[64];
    snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors%s", shard + 1, plan->n, ending);
    return dr_path_join(out_path, plan->dir, name);
}

static dr_status write_new_shards(const shard_plan *plan) {
    for (int32_t i = 0; i < plan->n; i++) {
        char *path = NULL;
        DR_TRY(path_of(plan, i, ".new", &path));
        dr_status status =
            dr_safetensors_write(path, plan->tensors + plan->first[i], plan->first[i + 1] - plan->first[i]);
        dr_free(path);
        DR_TRY(status);
    }
    return DR_OK;
}

static void remove_new_shards(const shard_plan *plan) {
    for (int32_t i = 0; i < plan->n; i++) {
        char *path = NULL;
        if (path_of(plan, i, ".new", &path) != DR_OK) continue;
        unlink(path);
        dr_free(path);
    }
}

static dr_status name_shards(const shard_plan *plan) {
    for (int32_t i = 0; i < plan->n; i++) {
        char *from = NULL, *to = NULL;
        dr_status status = path_of(plan, i, ".new", &from);
        if (status == DR_OK) status = path_of(plan, i, "", &to);
        if (status == DR_OK) status = dr_file_commit(from, to);
        dr_free(from);
        dr_free(to);
        DR_TRY(status);
    }
    return DR_OK;
}

static dr_status write_index(const shard_plan *plan) {
    json_t *map = json_object(), *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size",
                                                   (json_int_t)plan->total_bytes, "weight_map", map);
    char name[64];
    bool ok = root;
    for (int32_t i = 0; i < plan->n; i++) {
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, plan->n);
        for (int32_t t = plan->first[i]; ok && t < plan->first[i + 1]; t++)
            ok = json_object_set_new(map, plan->tensors[t].name, json_string(name)) == 0;
    }
    if (!ok) {
        json_decref(root);
        root = NULL; // which is refused
    }
    return dr_json_save_in(root, plan->dir, INDEX);
}

// A file of `dir` that need not be there; what is removed stays removed after a crash.
static dr_status remove_file(const char *dir, const char *name) {
    char *path = NULL;
    DR_TRY(dr_path_join(&path, dir, name));
    dr_status status = DR_OK;
    if (unlink(path) != 0 && errno != ENOENT)
        status = DR_FAIL(DR_ERR_IO, "%s: cannot remove: %s", path, strerror(errno));
    dr_free(path);
    if (status == DR_OK) {
        int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0) {
            fsync(fd);
            close(fd);
        }
    }
    return status;
}

// Shards of the scheme that are not among `n_kept`.
static dr_status remove_other_shards(const char *dir, int32_t n_kept) {
    DIR *list = opendir(dir);
    DR_CHECK(list, DR_ERR_IO, "%s: cannot list: %s", dir, strerror(errno));
    dr_status status = DR_OK;
    for (struct dirent *entry; status == DR_OK && (entry = readdir(list));) {
        int shard = 0, n = 0, length = 0;
        if (sscanf(entry->d_name, "model-%5d-of-%5d.safetensors%n", &shard, &n, &length) == 2 && length > 0 &&
            !entry->d_name[length] && n != n_kept)
            status = remove_file(dir, entry->d_name);
    }
    closedir(list);
    return status;
}

static dr_status write_single(const shard_plan *plan, int32_t n_tensors) {
    char *path = NULL;
    DR_TRY(dr_path_join(&path, plan->dir, SINGLE));
    dr_status status = dr_safetensors_write(path, plan->tensors, n_tensors);
    dr_free(path);
    DR_TRY(status);
    DR_TRY(remove_file(plan->dir, INDEX)); // model.safetensors came first for readers already
    return remove_other_shards(plan->dir, 0);
}

static dr_status write_shards(const shard_plan *plan) {
    dr_status status = write_new_shards(plan);
    if (status == DR_OK) status = remove_file(plan->dir, INDEX);
    if (status == DR_OK) status = name_shards(plan);
    if (status == DR_OK) status = write_index(plan);
    if (status != DR_OK) {
        remove_new_shards(plan);
        return status;
    }
    DR_TRY(remove_file(plan->dir, SINGLE));
    return remove_other_shards(plan->dir, plan->n);
}

dr_status dr_safetensors_folder_write(const char *dir, const dr_safetensor_source *tensors, int32_t n_tensors,
                                      int64_t max_shard_bytes) {
    DR_CHECK(max_shard_bytes > 0, DR_ERR_ARGUMENT, "%s: shards of %lld bytes", dir,
             (long long)max_shard_bytes);
    shard_plan plan = {.dir = dir, .tensors = tensors};
    dr_status status = plan_shards(&plan, n_tensors, max_shard_bytes);
    if (status == DR_OK) status = plan.n <= 1 ? write_single(&plan, n_tensors) : write_shards(&plan);
    dr_free(plan.first);
    return status;
}
