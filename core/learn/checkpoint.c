// Bodies of checkpoint.h.
#include "core/learn/checkpoint.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/store/h5.h"

#define STEP_NAME "step_%lld"
enum { MANIFEST_VERSION = 4, MAX_STEPS = 100000 };
static const char VIEW[] = "view.h5";
static const char *const moments[] = {"first_moment", "second_moment"};

void dr_checkpoint_info_reset(dr_checkpoint_info *info) {
    dr_free(info->files);
    *info = (dr_checkpoint_info){0};
}

dr_status dr_checkpoint_dir(const char *run_dir, int64_t step, char **out_dir) {
    dr_buf path = {0};
    DR_TRY(dr_buf_printf(&path, "%s/checkpoints/step_%06lld", run_dir, (long long)step));
    *out_dir = path.data;
    return DR_OK;
}

static dr_status file_digest(const char *path, int64_t *out_bytes, char out[24]) {
    dr_buf bytes = {0};
    dr_status status = dr_file_read(path, 0, &bytes);
    if (status == DR_OK) {
        *out_bytes = (int64_t)bytes.length;
        snprintf(out, 24, "%016llx", (unsigned long long)XXH3_64bits(bytes.data, bytes.length));
    }
    dr_buf_reset(&bytes);
    return status;
}

static void tensor_path(const char *tensor, char out[160]) {
    snprintf(out, 160, "weights/%s", tensor);
}

static int32_t tensor_shape(const dr_lm_tensor *t, int64_t shape[2]) {
    bool vector = strstr(t->name, "norm.weight") || strstr(t->name, ".bias");
    shape[0] = vector ? t->cols : t->rows;
    shape[1] = t->cols;
    return vector ? 1 : 2;
}

static dr_status write_values(dr_h5 *file, dr_backend *b, const char *name, int32_t n_dims,
                              const int64_t *shape, float *memory, const char *description) {
    int64_t n = shape[0] * (n_dims == 2 ? shape[1] : 1);
    float *values;
    DR_TRY(dr_host_open(b, memory, n, DR_HOST_READS, &values));
    dr_status status = dr_h5_write(file, name, DR_H5_F32, n_dims, shape, values, description, "");
    dr_host_close(b, memory, n, DR_HOST_READS, values);
    return status;
}

static dr_status write_weights(dr_h5 *file, dr_lm *lm, int32_t part, int32_t n_parts) {
    const dr_lm_tensor *tensors;
    int32_t n = dr_lm_tensors(lm, &tensors);
    for (int32_t i = part; i < n; i += n_parts) {
        int64_t shape[2];
        int32_t n_dims = tensor_shape(&tensors[i], shape);
        char name[160];
        tensor_path(tensors[i].name, name);
        DR_TRY(write_values(file, dr_lm_backend(lm), name, n_dims, shape,
                            dr_lm_params(lm) + tensors[i].offset,
                            "whole tensor; flat_offset is its place in the moments"));
        DR_TRY(dr_h5_set_i64(file, name, "flat_offset", tensors[i].offset));
    }
    return DR_OK;
}

static dr_status write_moments(dr_h5 *file, dr_lm *lm, dr_optimizer *optimizer) {
    float *sources[] = {dr_optimizer_first(optimizer), dr_optimizer_second(optimizer)};
    dr_shard shard = dr_optimizer_shard(optimizer);
    int64_t count = shard.end - shard.begin;
    for (int g = 0; g < 2 && count > 0; g++) {
        DR_TRY(write_values(file, dr_lm_backend(lm), moments[g], 1, &count, sources[g],
                            "this part's share of the flat parameters, from global_offset on"));
        DR_TRY(dr_h5_set_i64(file, moments[g], "global_offset", shard.begin));
    }
    return DR_OK;
}

static dr_status write_contents(dr_h5 *file, dr_lm *lm, dr_optimizer *optimizer, int32_t part,
                                int32_t n_parts) {
    DR_TRY(write_weights(file, lm, part, n_parts));
    DR_TRY(write_moments(file, lm, optimizer));
    DR_TRY(dr_h5_set_string(file, "/", "format", "deeprec-checkpoint"));
    DR_TRY(dr_h5_set_i64(file, "/", "part", part));
    DR_TRY(dr_h5_set_i64(file, "/", "n_parts", n_parts));
    DR_TRY(dr_h5_set_i64(file, "/", "updates", dr_optimizer_updates(optimizer)));
    return dr_h5_set_i64(file, "/", "updates_since_restart", dr_optimizer_age(optimizer));
}

dr_status dr_checkpoint_write_part(dr_lm *lm, dr_optimizer *optimizer, const char *dir, int32_t part,
                                   int32_t n_parts, dr_checkpoint_file *out_file) {
    char *path = NULL;
    dr_h5 *file = NULL;
    dr_checkpoint_file written = {0};
    dr_shard shard = dr_optimizer_shard(optimizer), want = dr_shard_of(dr_lm_n_params(lm), part, n_parts);
    DR_CHECK(shard.begin == want.begin && shard.end == want.end, DR_ERR_ARGUMENT,
             "checkpoint part %d of %d: expected moments %lld to %lld, the optimizer has %lld to %lld", part,
             n_parts, (long long)want.begin, (long long)want.end, (long long)shard.begin,
             (long long)shard.end);
    snprintf(written.name, sizeof written.name, "rank_%d.h5", part);
    DR_TRY(dr_dir_make(dir));
    DR_TRY(dr_path_join(&path, dir, written.name));
    dr_status status = dr_h5_create(path, &file);
    if (status == DR_OK) {
        status = write_contents(file, lm, optimizer, part, n_parts);
        if (status == DR_OK)
            status = dr_h5_commit(file);
        else
            dr_h5_abort(file);
    }
    if (status == DR_OK) status = file_digest(path, &written.bytes, written.digest);
    dr_free(path);
    if (status == DR_OK) *out_file = written;
    return status;
}

static dr_status digest_file(const char *dir, dr_checkpoint_file *file) {
    char *path = NULL;
    DR_TRY(dr_path_join(&path, dir, file->name));
    dr_status status = file_digest(path, &file->bytes, file->digest);
    dr_free(path);
    return status;
}

static dr_status view_weights(dr_h5 *view, int32_t n_parts, const dr_lm_tensor *tensors, int32_t n_tensors) {
    for (int32_t i = 0; i < n_tensors; i++) {
        int64_t shape[2];
        int32_t n_dims = tensor_shape(&tensors[i], shape);
        char name[160], source[32];
        tensor_path(tensors[i].name, name);
        snprintf(source, sizeof source, "rank_%d.h5", i % n_parts);
        DR_TRY(dr_h5_write_virtual(view, name, DR_H5_F32, n_dims, shape, source, name));
        DR_TRY(dr_h5_set_i64(view, name, "flat_offset", tensors[i].offset));
    }
    return DR_OK;
}

// names: room for n_parts; empty shards, the last ones, are in no file.
static dr_status view_moments(dr_h5 *view, int32_t n_parts, int64_t n_params, dr_h5_part *parts,
                              char (*names)[32]) {
    for (int g = 0; g < 2; g++) {
        int32_t n = 0;
        for (int32_t i = 0; i < n_parts; i++) {
            dr_shard shard = dr_shard_of(n_params, i, n_parts);
            if (shard.begin == shard.end) continue;
            snprintf(names[n], sizeof names[n], "rank_%d.h5", i);
            parts[n] = (dr_h5_part){names[n], moments[g], shard.end - shard.begin};
            n++;
        }
        DR_TRY(dr_h5_write_view(view, moments[g], DR_H5_F32, 1, &n_params, parts, n));
    }
    return DR_OK;
}

// Every tensor of every rank file under the same name, and the flat moments put together.
static dr_status write_view(const char *dir, int32_t n_parts, const dr_lm *shape) {
    const dr_lm_tensor *tensors;
    int32_t n_tensors = dr_lm_tensors(shape, &tensors);
    char *path = NULL, (*names)[32] = NULL;
    dr_h5_part *parts = NULL;
    dr_h5 *view = NULL;
    DR_TRY(dr_path_join(&path, dir, VIEW));
    dr_status status = dr_alloc(&parts, "parts of a view", n_parts, sizeof *parts);
    if (status == DR_OK) status = dr_alloc(&names, "parts of a view", n_parts, sizeof *names);
    if (status == DR_OK) status = dr_h5_create(path, &view);
    if (status == DR_OK) {
        status = view_weights(view, n_parts, tensors, n_tensors);
        if (status == DR_OK) status = view_moments(view, n_parts, dr_lm_n_params(shape), parts, names);
        if (status == DR_OK)
            status = dr_h5_commit(view);
        else
            dr_h5_abort(view);
    }
    dr_free(path);
    dr_free(parts);
    dr_free(names);
    return status;
}

// The manifest carries a digest of its own members, so that a flipped digit in a step or a hash is not
// believed.
static dr_status manifest_digest(const json_t *root, char out[24]) {
    json_t *rest = json_copy((json_t *)root);
    json_object_del(rest, "manifest_xxh3");
    char *text = json_dumps(rest, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(rest);
    DR_CHECK(text, DR_ERR_MEMORY, "cannot build the digest of a manifest");
    snprintf(out, 24, "%016llx", (unsigned long long)XXH3_64bits(text, strlen(text)));
    dr_free(text); // jansson hands out plain blocks, which is what dr_free frees
    return DR_OK;
}

static json_t *file_entry(const dr_checkpoint_file *file) {
    return json_pack("{s:s, s:I, s:s}", "name", file->name, "bytes", (json_int_t)file->bytes, "xxh3",
                     file->digest);
}

dr_status dr_checkpoint_commit(const dr_lm_config *config, const char *dir, const dr_checkpoint_info *info) {
    // the layout of the tensors follows from the configuration alone
    dr_backend *backend = NULL;
    dr_lm *shape = NULL;
    DR_TRY(dr_backend_cpu_create(DR_FP32, 1, &backend));
    dr_status status = dr_lm_outline(backend, config, &shape);
    if (status == DR_OK) status = write_view(dir, info->n_files, shape);
    dr_lm_destroy(shape);
    dr_backend_cpu_destroy(backend);
    DR_TRY(status);
    dr_checkpoint_file view = {.name = "view.h5"};
    DR_TRY(digest_file(dir, &view));
    json_t *files = json_array();
    for (int32_t i = 0; i < info->n_files; i++) json_array_append_new(files, file_entry(&info->files[i]));
    json_t *root =
        json_pack("{s:s, s:i, s:I, s:I, s:s, s:s, s:o, s:o}", "format", "deeprec-checkpoint", "version",
                  MANIFEST_VERSION, "step", (json_int_t)info->step, "updates", (json_int_t)info->updates,
                  "layout", "tensor i of the model is in rank file i mod n, moments are in equal flat shards",
                  "config_hash", info->config_hash, "files", files, "view", file_entry(&view));
    DR_CHECK(root, DR_ERR_MEMORY, "%s: cannot build the manifest", dir);
    char digest[24];
    status = manifest_digest(root, digest);
    if (status != DR_OK) {
        json_decref(root);
        return status;
    }
    json_object_set_new(root, "manifest_xxh3", json_string(digest));
    return dr_json_save_in(root, dir, "manifest.json");
}

static int by_step(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x > y ? -1 : x < y; // newest first
}

// Steps of the folders step_N, newest first.
static dr_status list_steps(const char *run_dir, int64_t **out_steps, int32_t *out_n) {
    char *path = NULL;
    int64_t *steps = NULL;
    int32_t n = 0;
    DR_TRY(dr_path_join(&path, run_dir, "checkpoints"));
    DIR *dir = opendir(path);
    dr_free(path);
    dr_status status = dr_alloc(&steps, "checkpoint steps", MAX_STEPS, sizeof *steps);
    if (status != DR_OK) {
        if (dir) closedir(dir);
        return status;
    }
    for (struct dirent *entry; dir && (entry = readdir(dir)) && n < MAX_STEPS;) {
        long long step = 0;
        char rest = 0;
        if (sscanf(entry->d_name, STEP_NAME "%c", &step, &rest) == 1) steps[n++] = step;
    }
    if (dir) closedir(dir);
    qsort(steps, (size_t)n, sizeof *steps, by_step);
    *out_steps = steps;
    *out_n = n;
    return DR_OK;
}

static dr_status check_manifest(const json_t *root, const char *path) {
    const char *said = NULL;
    char found[24];
    DR_TRY(dr_json_string(root, path, "manifest_xxh3", &said));
    DR_TRY(manifest_digest(root, found));
    DR_CHECK(strcmp(said, found) == 0, DR_ERR_FORMAT, "%s is damaged: its digest is %s, it says %s", path,
             found, said);
    return DR_OK;
}

static dr_status read_file_entry(const json_t *entry, const char *path, dr_checkpoint_file *out) {
    const char *text = NULL;
    DR_TRY(dr_json_string(entry, path, "name", &text));
    DR_CHECK(!strchr(text, '/') && strlen(text) < sizeof out->name, DR_ERR_FORMAT, "%s: bad name \"%s\"",
             path, text);
    snprintf(out->name, sizeof out->name, "%s", text);
    DR_TRY(dr_json_i64(entry, path, "bytes", 0, (int64_t)1 << 50, &out->bytes));
    DR_TRY(dr_json_string(entry, path, "xxh3", &text));
    snprintf(out->digest, sizeof out->digest, "%s", text);
    return DR_OK;
}

static dr_status read_manifest(const char *dir, dr_checkpoint_info *info) {
    char *path = NULL;
    json_t *root = NULL, *files = NULL, *entry;
    size_t i;
    DR_TRY(dr_path_join(&path, dir, "manifest.json"));
    dr_status status;
    DR_TRY_GOTO(status, dr_json_load(path, &root), free_path);
    const char *text = NULL;
    int64_t version = 0;
    status = dr_json_i64(root, path, "version", MANIFEST_VERSION, MANIFEST_VERSION, &version);
    if (status == DR_OK) status = dr_json_i64(root, path, "step", 0, (int64_t)1 << 40, &info->step);
    if (status == DR_OK) status = dr_json_i64(root, path, "updates", 0, (int64_t)1 << 40, &info->updates);
    if (status == DR_OK) status = dr_json_string(root, path, "config_hash", &text);
    if (status == DR_OK) snprintf(info->config_hash, sizeof info->config_hash, "%s", text);
    if (status == DR_OK) status = dr_json_array(root, path, "files", &files);
    if (status == DR_OK)
        status =
            dr_alloc(&info->files, "checkpoint files", (int64_t)json_array_size(files), sizeof *info->files);
    if (status == DR_OK) {
        json_array_foreach(files, i, entry) {
            if ((status = read_file_entry(entry, path, &info->files[i])) != DR_OK) break;
            info->n_files++;
        }
    }
    if (status == DR_OK) status = read_file_entry(json_object_get(root, "view"), path, &info->view);
    if (status == DR_OK) status = check_manifest(root, path);
    json_decref(root);
free_path:
    dr_free(path);
    return status;
}

static dr_status check_file(const char *dir, const dr_checkpoint_file *said) {
    dr_checkpoint_file found = *said;
    DR_TRY(digest_file(dir, &found));
    DR_CHECK(found.bytes == said->bytes && strcmp(found.digest, said->digest) == 0, DR_ERR_FORMAT,
             "%s/%s is damaged: %lld bytes with digest %s, the manifest says %lld with %s", dir, said->name,
             (long long)found.bytes, found.digest, (long long)said->bytes, said->digest);
    return DR_OK;
}

// A folder that is called step_N must hold step N: one that was copied or renamed would resume elsewhere.
static dr_status check_step(const char *dir, int64_t step) {
    const char *slash = strrchr(dir, '/');
    long long named = 0;
    if (sscanf(slash ? slash + 1 : dir, STEP_NAME, &named) == 1)
        DR_CHECK(named == step, DR_ERR_FORMAT, "%s: the manifest says step %lld, the folder's name %lld", dir,
                 (long long)step, named);
    return DR_OK;
}

dr_status dr_checkpoint_verify(const char *dir, dr_checkpoint_info *out_info) {
    dr_checkpoint_info info = {0};
    dr_status status = read_manifest(dir, &info);
    if (status == DR_OK) status = check_step(dir, info.step);
    for (int32_t i = 0; i < info.n_files && status == DR_OK; i++) status = check_file(dir, &info.files[i]);
    if (status == DR_OK) status = check_file(dir, &info.view);
    if (status != DR_OK) {
        dr_checkpoint_info_reset(&info);
        return status;
    }
    *out_info = info;
    return DR_OK;
}

dr_status dr_checkpoint_find(const char *run_dir, int64_t *out_step) {
    int64_t *steps = NULL, found = -1;
    int32_t n = 0, n_manifests = 0;
    DR_TRY(list_steps(run_dir, &steps, &n));
    dr_status status = DR_OK;
    for (int32_t i = 0; i < n && found < 0 && status == DR_OK; i++) {
        char *dir = NULL, *manifest = NULL;
        dr_checkpoint_info info;
        status = dr_checkpoint_dir(run_dir, steps[i], &dir);
        if (status == DR_OK) status = dr_path_join(&manifest, dir, "manifest.json");
        if (status == DR_OK && dr_file_exists(manifest)) {
            n_manifests++;
            if (dr_checkpoint_verify(dir, &info) == DR_OK) {
                found = steps[i];
                dr_checkpoint_info_reset(&info);
            } else {
                dr_warn("checkpoint %s is not usable: %s; looking for an older one", dir, dr_last_error());
            }
        }
        dr_free(dir);
        dr_free(manifest);
    }
    dr_free(steps);
    DR_TRY(status);
    DR_CHECK(found >= 0 || n_manifests == 0, DR_ERR_FORMAT, "%s: none of its %d checkpoints is usable",
             run_dir, n_manifests);
    *out_step = found;
    return DR_OK;
}

static void remove_checkpoint(const char *dir) {
    char path[1200];
    snprintf(path, sizeof path, "%s/manifest.json", dir);
    unlink(path); // first: from here on it is no checkpoint
    DIR *d = opendir(dir);
    for (struct dirent *entry; d && (entry = readdir(d));) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%.200s", dir, entry->d_name);
        unlink(path);
    }
    if (d) closedir(d);
    rmdir(dir);
}

static bool is_sound(const char *dir) {
    dr_checkpoint_info info = {0};
    bool sound = dr_checkpoint_verify(dir, &info) == DR_OK;
    if (!sound) dr_warn("checkpoint %s is not usable: %s; older ones are kept", dir, dr_last_error());
    dr_checkpoint_info_reset(&info);
    return sound;
}

dr_status dr_checkpoint_prune(const char *run_dir, int32_t keep) {
    int64_t *steps = NULL;
    int32_t n = 0, complete = 0, n_checked = 0;
    bool sound = false; // one of the newer ones was read back and is undamaged
    char **complete_dirs = NULL;
    DR_TRY(list_steps(run_dir, &steps, &n));
    dr_status status = dr_alloc(&complete_dirs, "complete checkpoints", n, sizeof *complete_dirs);
    for (int32_t i = 0; i < n && status == DR_OK; i++) {
        char *dir = NULL, *manifest = NULL;
        status = dr_checkpoint_dir(run_dir, steps[i], &dir);
        if (status == DR_OK) status = dr_path_join(&manifest, dir, "manifest.json");
        if (status == DR_OK && complete >= keep)
            for (; !sound && n_checked < complete; n_checked++) sound = is_sound(complete_dirs[n_checked]);
        if (status == DR_OK) {
            if (complete >= keep && sound) {
                remove_checkpoint(dir);
            } else if (dr_file_exists(manifest)) {
                complete_dirs[complete++] = dir;
                dir = NULL;
            }
        }
        dr_free(dir);
        dr_free(manifest);
    }
    for (int32_t i = 0; i < complete; i++) dr_free(complete_dirs[i]);
    dr_free(complete_dirs);
    dr_free(steps);
    return status;
}

static dr_status load_weights(dr_h5 *file, dr_lm *lm, uint8_t *seen) {
    dr_backend *b = dr_lm_backend(lm);
    const dr_lm_tensor *tensors;
    int32_t n = dr_lm_tensors(lm, &tensors);
    for (int32_t i = 0; i < n; i++) {
        int64_t shape[2];
        int32_t n_dims = tensor_shape(&tensors[i], shape);
        char name[160];
        float *values = NULL;
        tensor_path(tensors[i].name, name);
        if (!dr_h5_has(file, name)) continue;
        DR_TRY(dr_h5_read(file, name, DR_H5_F32, n_dims, shape, &values));
        b->ops->copy_in(b, dr_lm_params(lm) + tensors[i].offset, values,
                        (size_t)(tensors[i].rows * tensors[i].cols) * sizeof(float));
        dr_free(values);
        seen[i] = 1;
    }
    return DR_OK;
}

// What a file's share of a moment has of the optimizer's own; *at is where the files before ended.
static dr_status load_moment(dr_h5 *file, dr_lm *lm, dr_shard own, const char *name, float *memory,
                             int64_t *at) {
    dr_backend *b = dr_lm_backend(lm);
    int64_t offset = 0, shape[4], count = -1;
    int32_t n_dims = 0;
    float *values = NULL;
    if (!dr_h5_has(file, name)) return DR_OK;
    DR_TRY(dr_h5_get_i64(file, name, "global_offset", &offset));
    DR_TRY(dr_h5_shape(file, name, &n_dims, shape));
    DR_CHECK(n_dims == 1 && offset == *at && shape[0] <= dr_lm_n_params(lm) - offset, DR_ERR_FORMAT,
             "%s: %lld values of %s from %lld on, expected them from %lld on and %lld in all",
             dr_h5_path(file), (long long)shape[0], name, (long long)offset, (long long)*at,
             (long long)dr_lm_n_params(lm));
    *at += shape[0];
    int64_t begin = own.begin > offset ? own.begin : offset, end = own.end < *at ? own.end : *at;
    if (begin >= end) return DR_OK;
    DR_TRY(dr_h5_read_rows(file, name, DR_H5_F32, 1, &count, begin - offset, end - begin, &values));
    b->ops->copy_in(b, memory + (begin - own.begin), values, (size_t)(end - begin) * sizeof(float));
    dr_free(values);
    return DR_OK;
}

// optimizer NULL: weights only. at [2]: where the moments of the files before ended.
static dr_status load_file(const char *path, dr_lm *lm, dr_optimizer *optimizer, uint8_t *seen, int64_t *at) {
    dr_h5 *file = NULL;
    int64_t updates = 0, age = 0;
    DR_TRY(dr_h5_open(path, &file));
    dr_status status = dr_h5_get_i64(file, "/", "updates", &updates);
    if (status == DR_OK) status = dr_h5_get_i64(file, "/", "updates_since_restart", &age);
    if (status == DR_OK) status = load_weights(file, lm, seen);
    if (optimizer) {
        float *targets[] = {dr_optimizer_first(optimizer), dr_optimizer_second(optimizer)};
        for (int g = 0; g < 2 && status == DR_OK; g++)
            status = load_moment(file, lm, dr_optimizer_shard(optimizer), moments[g], targets[g], &at[g]);
        if (status == DR_OK) dr_optimizer_set_updates(optimizer, updates, age);
    }
    dr_h5_close(file);
    return status;
}

dr_status dr_checkpoint_load(dr_lm *lm, dr_optimizer *optimizer, const char *dir) {
    dr_checkpoint_info info = {0};
    const dr_lm_tensor *tensors;
    int32_t n = dr_lm_tensors(lm, &tensors);
    int64_t at[2] = {0};
    uint8_t *seen = NULL;
    DR_TRY(dr_checkpoint_verify(dir, &info));
    dr_status status = dr_alloc(&seen, "loaded tensors", n, 1);
    for (int32_t i = 0; i < info.n_files && status == DR_OK; i++) {
        char *path = NULL;
        status = dr_path_join(&path, dir, info.files[i].name);
        if (status == DR_OK) status = load_file(path, lm, optimizer, seen, at);
        dr_free(path);
    }
    for (int32_t i = 0; i < n && status == DR_OK; i++)
        if (!seen[i]) status = DR_FAIL(DR_ERR_FORMAT, "%s: tensor %s is missing", dir, tensors[i].name);
    for (int g = 0; optimizer && g < 2 && status == DR_OK; g++)
        if (at[g] != dr_lm_n_params(lm))
            status = DR_FAIL(DR_ERR_FORMAT, "%s: %lld values of %s, expected %lld", dir, (long long)at[g],
                             moments[g], (long long)dr_lm_n_params(lm));
    dr_free(seen);
    dr_checkpoint_info_reset(&info);
    DR_TRY(status);
    return dr_lm_weights_changed(lm);
}
