// Bodies of checkpoint.h: folders, manifests and digests. What the files hold is checkpoint_contents.c's.
#include "core/learn/checkpoint_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/alive.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"

#define STEP_NAME "step_%lld"
enum { MANIFEST_VERSION = 5, MAX_STEPS = 100000 };

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

enum { DIGEST_PIECE = 1 << 20 }; // bytes read at a time: files are larger than memory may be

static dr_status digest_open(int fd, const char *path, XXH3_state_t *state, char *piece, int64_t *out_bytes) {
    int64_t total = 0;
    for (;;) {
        ssize_t got = read(fd, piece, DIGEST_PIECE);
        if (got < 0 && errno == EINTR) continue;
        DR_CHECK(got >= 0, DR_ERR_IO, "%s: cannot read: %s", path, strerror(errno));
        if (got == 0) break;
        XXH3_64bits_update(state, piece, (size_t)got);
        total += got;
        DR_TRY(dr_alive_work());
    }
    *out_bytes = total;
    return DR_OK;
}

static dr_status file_digest(const char *path, int64_t *out_bytes, char out[24]) {
    char *piece = NULL;
    XXH3_state_t state;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    DR_CHECK(fd >= 0, DR_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    XXH3_64bits_reset(&state);
    dr_status status = dr_alloc_unset(&piece, "piece of a file", DIGEST_PIECE, 1);
    if (status == DR_OK) status = digest_open(fd, path, &state, piece, out_bytes);
    if (status == DR_OK) snprintf(out, 24, "%016llx", (unsigned long long)XXH3_64bits_digest(&state));
    dr_free(piece);
    close(fd);
    return status;
}

dr_status dr_checkpoint_digest(const char *dir, dr_checkpoint_file *file) {
    char *path = NULL;
    DR_TRY(dr_path_join(&path, dir, file->name));
    dr_status status = file_digest(path, &file->bytes, file->digest);
    dr_free(path);
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
    if (status == DR_OK) status = dr_checkpoint_write_view(dir, info->n_files, shape);
    dr_lm_destroy(shape);
    dr_backend_cpu_destroy(backend);
    DR_TRY(status);
    dr_checkpoint_file view = {.name = DR_CHECKPOINT_VIEW};
    DR_TRY(dr_checkpoint_digest(dir, &view));
    json_t *files = json_array();
    for (int32_t i = 0; i < info->n_files; i++) json_array_append_new(files, file_entry(&info->files[i]));
    json_t *root =
        json_pack("{s:s, s:i, s:I, s:I, s:s, s:s, s:o, s:o}", "format", "deeprec-checkpoint", "version",
                  MANIFEST_VERSION, "step", (json_int_t)info->step, "updates", (json_int_t)info->updates,
                  "layout", "parameters and moments are in equal flat shards, one a rank file", "config_hash",
                  info->config_hash, "files", files, "view", file_entry(&view));
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
    DR_TRY(dr_checkpoint_digest(dir, &found));
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

dr_status dr_checkpoint_read(const char *dir, dr_checkpoint_info *out_info) {
    dr_checkpoint_info info = {0};
    dr_status status = read_manifest(dir, &info);
    if (status == DR_OK) status = check_step(dir, info.step);
    if (status != DR_OK) {
        dr_checkpoint_info_reset(&info);
        return status;
    }
    *out_info = info;
    return DR_OK;
}

dr_status dr_checkpoint_verify(const char *dir, dr_checkpoint_info *out_info) {
    dr_checkpoint_info info = {0};
    dr_status status = dr_checkpoint_read(dir, &info);
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
