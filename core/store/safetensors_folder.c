// Reading the weights of a folder, in one file or in shards with an index.
#include "core/store/safetensors_folder.h"

#include <jansson.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/json.h"

struct dr_safetensors_folder {
    char *path;             // model.safetensors or the index
    dr_safetensors **files; // [n_files]
    char **names;           // [n_files] of the shards; NULL for a single file
    int32_t n_files;
    json_t *index; // NULL for a single file; weight_map has been checked
};

// The file that holds `name`, -1: none.
static int32_t file_of(const dr_safetensors_folder *folder, const char *name) {
    for (int32_t i = 0; i < folder->n_files; i++)
        if (dr_safetensors_find(folder->files[i], name)) return i;
    return -1;
}

static int32_t shard_named(const dr_safetensors_folder *folder, const char *name) {
    for (int32_t i = 0; i < folder->n_files; i++)
        if (strcmp(folder->names[i], name) == 0) return i;
    return -1;
}

static dr_status open_shard(dr_safetensors_folder *folder, const char *dir, const char *name) {
    char *path = NULL;
    DR_TRY(dr_path_join(&path, dir, name));
    dr_status status = DR_OK;
    if (!dr_file_exists(path))
        status =
            DR_FAIL(DR_ERR_IO, "%s: shard %s is missing: no such file in the folder", folder->path, name);
    if (status == DR_OK) status = dr_safetensors_open(path, &folder->files[folder->n_files]);
    dr_free(path);
    DR_TRY(status);
    folder->n_files++; // the file is closed even if the next line fails
    return dr_strdup(&folder->names[folder->n_files - 1], name);
}

static dr_status check_shard_name(const dr_safetensors_folder *folder, const char *tensor, json_t *value) {
    const char *name = json_string_value(value);
    DR_CHECK(name, DR_ERR_FORMAT, "%s: weight_map: tensor %s: expected a file name, found %s", folder->path,
             tensor, dr_json_type_name(value));
    DR_CHECK(name[0] && name[0] != '.' && !strpbrk(name, "/\\"), DR_ERR_FORMAT,
             "%s: weight_map: tensor %s: \"%s\" is not the name of a file in this folder", folder->path,
             tensor, name);
    return DR_OK;
}

// Every tensor of the index stands in the shard it says.
static dr_status check_places(const dr_safetensors_folder *folder, json_t *map) {
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value) {
        const char *name = json_string_value(value);
        if (dr_safetensors_find(folder->files[shard_named(folder, name)], tensor)) continue;
        int32_t other = file_of(folder, tensor);
        DR_CHECK(other >= 0, DR_ERR_FORMAT, "%s: tensor %s is in no shard, expected in %s", folder->path,
                 tensor, name);
        return DR_FAIL(DR_ERR_FORMAT, "%s: tensor %s is in shard %s, the index says %s", folder->path, tensor,
                       folder->names[other], name);
    }
    return DR_OK;
}

// And every tensor of a shard is what the index has there.
static dr_status check_contents(const dr_safetensors_folder *folder, json_t *map) {
    for (int32_t f = 0; f < folder->n_files; f++)
        for (int32_t i = 0; i < dr_safetensors_count(folder->files[f]); i++) {
            const char *tensor = dr_safetensors_at(folder->files[f], i)->name;
            const char *name = json_string_value(json_object_get(map, tensor));
            DR_CHECK(name, DR_ERR_FORMAT, "%s: tensor %s of shard %s is not in weight_map", folder->path,
                     tensor, folder->names[f]);
            DR_CHECK(strcmp(name, folder->names[f]) == 0, DR_ERR_FORMAT,
                     "%s: tensor %s is in shard %s too, the index says %s", folder->path, tensor,
                     folder->names[f], name);
        }
    return DR_OK;
}

// metadata.total_size is not looked at: published folders have it wrong, and the shards' headers say it
// better.
static dr_status open_shards(dr_safetensors_folder *folder, const char *dir) {
    json_t *map = NULL, *value;
    const char *tensor;
    DR_TRY(dr_json_load(folder->path, &folder->index));
    DR_TRY(dr_json_object(folder->index, folder->path, "weight_map", &map));
    DR_CHECK(json_object_size(map) > 0, DR_ERR_FORMAT, "%s: weight_map is empty", folder->path);
    int64_t most = (int64_t)json_object_size(map);
    DR_TRY(dr_alloc(&folder->files, "shards", most, sizeof *folder->files));
    DR_TRY(dr_alloc(&folder->names, "shard names", most, sizeof *folder->names));
    json_object_foreach(map, tensor, value) DR_TRY(check_shard_name(folder, tensor, value));
    json_object_foreach(map, tensor, value) if (shard_named(folder, json_string_value(value)) < 0)
        DR_TRY(open_shard(folder, dir, json_string_value(value)));
    DR_TRY(check_places(folder, map));
    return check_contents(folder, map);
}

static dr_status open_files(dr_safetensors_folder *folder, const char *dir) {
    DR_TRY(dr_path_join(&folder->path, dir, "model.safetensors"));
    char *index = NULL;
    DR_TRY(dr_path_join(&index, dir, "model.safetensors.index.json"));
    if (!dr_file_exists(folder->path) && dr_file_exists(index)) {
        dr_free(folder->path);
        folder->path = index;
        return open_shards(folder, dir);
    }
    dr_free(index);
    DR_TRY(dr_alloc(&folder->files, "weights file", 1, sizeof *folder->files));
    DR_TRY(dr_safetensors_open(folder->path, &folder->files[0]));
    folder->n_files = 1;
    return DR_OK;
}

dr_status dr_safetensors_folder_open(const char *dir, dr_safetensors_folder **out_folder) {
    dr_safetensors_folder *folder = NULL;
    DR_TRY(dr_alloc(&folder, "weights of a folder", 1, sizeof *folder));
    dr_status status = open_files(folder, dir);
    if (status == DR_OK)
        *out_folder = folder;
    else
        dr_safetensors_folder_close(folder);
    return status;
}

void dr_safetensors_folder_close(dr_safetensors_folder *folder) {
    if (!folder) return;
    for (int32_t i = 0; i < folder->n_files; i++) {
        dr_safetensors_close(folder->files[i]);
        if (folder->names) dr_free(folder->names[i]);
    }
    json_decref(folder->index);
    dr_free(folder->files);
    dr_free(folder->names);
    dr_free(folder->path);
    dr_free(folder);
}

const char *dr_safetensors_folder_path(const dr_safetensors_folder *folder) {
    return folder->path;
}

int32_t dr_safetensors_folder_count(const dr_safetensors_folder *folder) {
    int32_t n = 0;
    for (int32_t i = 0; i < folder->n_files; i++) n += dr_safetensors_count(folder->files[i]);
    return n;
}

const dr_safetensor *dr_safetensors_folder_at(const dr_safetensors_folder *folder, int32_t index) {
    int32_t i = 0;
    for (; i < folder->n_files && index >= dr_safetensors_count(folder->files[i]); i++)
        index -= dr_safetensors_count(folder->files[i]);
    DR_ASSERT(i < folder->n_files);
    return dr_safetensors_at(folder->files[i], index);
}

dr_status dr_safetensors_folder_check(const dr_safetensors_folder *folder, const char *name,
                                      const int64_t *shape, int32_t n_dims) {
    int32_t file = file_of(folder, name);
    DR_CHECK(file >= 0, DR_ERR_FORMAT, "%s: tensor %s is missing", folder->path, name);
    return dr_safetensors_check(folder->files[file], name, shape, n_dims);
}

const dr_safetensor *dr_safetensors_folder_find(const dr_safetensors_folder *folder, const char *name) {
    int32_t file = file_of(folder, name);
    return file < 0 ? NULL : dr_safetensors_find(folder->files[file], name);
}

dr_status dr_safetensors_folder_read(const dr_safetensors_folder *folder, const char *name,
                                     const int64_t *shape, int32_t n_dims, float *out) {
    int32_t file = file_of(folder, name);
    DR_CHECK(file >= 0, DR_ERR_FORMAT, "%s: tensor %s is missing", folder->path, name);
    return dr_safetensors_read(folder->files[file], name, shape, n_dims, out);
}
