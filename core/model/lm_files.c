// Loading and saving of Hugging Face folders: the weights on either side of the flat buffer, their names and
// shapes checked before memory is taken. config.json is lm_config.c's, the shards are the store's.
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alive.h"
#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/model/lm_internal.h"
#include "core/store/safetensors_folder.h"

enum {
    SLICE = 1 << 16, // values that one thread reads at a time
    PIECE = 1 << 22  // of a model that does not keep them all, at a time
};

static void tensor_shape(const dr_lm_tensor *t, int64_t shape[2], int32_t *n_dims) {
    bool vector = dr_lm_is_vector(t);
    *n_dims = vector ? 1 : 2;
    shape[0] = vector ? t->cols : t->rows;
    shape[1] = t->cols;
}

// Before any memory is taken: every tensor is there in its shape, and none that this model would not use.
static dr_status check_weights(const dr_lm *lm, const dr_safetensors_folder *weights) {
    for (int32_t i = 0; i < lm->n_tensors; i++) {
        int64_t shape[2];
        int32_t n_dims;
        tensor_shape(&lm->tensors[i], shape, &n_dims);
        DR_TRY(dr_safetensors_folder_check(weights, lm->tensors[i].name, shape, n_dims));
    }
    for (int32_t i = 0; i < dr_safetensors_folder_count(weights); i++) {
        const char *name = dr_safetensors_folder_at(weights, i)->name;
        bool known = strstr(name, "rotary_emb.inv_freq") || // computed from rope_theta
                     (lm->config.tied_head && strcmp(name, "lm_head.weight") == 0);
        for (int32_t j = 0; j < lm->n_tensors && !known; j++) known = strcmp(name, lm->tensors[j].name) == 0;
        DR_CHECK(known, DR_ERR_UNSUPPORTED, "%s: tensor %s has no place in a %s of this config.json",
                 dr_safetensors_folder_path(weights), name, lm->config.architecture);
    }
    return DR_OK;
}

// Values first … first + n - 1; the first of them that is no finite number, INT64_MAX: none.
static int64_t read_slice(const dr_safetensor *tensor, int64_t first, int64_t n, float *out) {
    bool is_bad = false;
    dr_safetensor_values(tensor, first, n, out);
    for (int64_t j = 0; j < n; j++) is_bad |= !(fabsf(out[j]) <= FLT_MAX);
    for (int64_t j = 0; j < n && is_bad; j++)
        if (!isfinite(out[j])) return first + j;
    return INT64_MAX;
}

// Values begin … begin + n - 1.
static dr_status read_values(const dr_safetensor *tensor, const char *path, int64_t begin, int64_t n,
                             int n_threads, float *out) {
    int64_t bad = INT64_MAX;
#pragma omp parallel for num_threads(n_threads) schedule(static) reduction(min : bad) if (n > 4 * SLICE)
    for (int64_t i = 0; i < n; i += SLICE) {
        int64_t found = read_slice(tensor, begin + i, n - i < SLICE ? n - i : SLICE, out + i);
        bad = found < bad ? found : bad;
    }
    if (begin + n == tensor->n_values) dr_safetensor_release(tensor);
    DR_CHECK(bad == INT64_MAX, DR_ERR_NUMERIC, "%s: tensor %s: value %lld is %g", path, tensor->name,
             (long long)bad, (double)out[bad - begin]);
    return DR_OK;
}

// memory: [rows * cols] of the backend; check_weights has passed.
static dr_status read_tensor(dr_lm *lm, dr_lm_tensor *t, const dr_safetensors_folder *weights,
                             float *memory) {
    const dr_safetensor *tensor = dr_safetensors_folder_find(weights, t->name);
    float *values;
    DR_TRY(dr_host_open(lm->backend, memory, tensor->n_values, DR_HOST_WRITES, &values));
    dr_status status = read_values(tensor, dr_safetensors_folder_path(weights), 0, tensor->n_values,
                                   dr_lm_host_threads(lm), values);
    dr_host_close(lm->backend, memory, tensor->n_values, DR_HOST_WRITES, values);
    t->dtype = tensor->dtype;
    return status == DR_OK ? dr_alive_work() : status;
}

static dr_status read_tensors(dr_lm *lm, const dr_safetensors_folder *weights) {
    for (int32_t i = 0; i < lm->n_tensors; i++)
        DR_TRY(read_tensor(lm, &lm->tensors[i], weights, lm->params + lm->tensors[i].offset));
    return dr_lm_weights_changed(lm);
}

// Piece by piece, rounded as they come.
static dr_status put_tensors(dr_lm *lm, const dr_safetensors_folder *weights, float *piece) {
    for (int32_t i = 0; i < lm->n_tensors; i++) {
        dr_lm_tensor *t = &lm->tensors[i];
        const dr_safetensor *tensor = dr_safetensors_folder_find(weights, t->name);
        for (int64_t at = 0; at < tensor->n_values; at += PIECE) {
            int64_t n = tensor->n_values - at < PIECE ? tensor->n_values - at : PIECE;
            DR_TRY(read_values(tensor, dr_safetensors_folder_path(weights), at, n, dr_lm_host_threads(lm),
                               piece));
            DR_TRY(dr_lm_put(lm, t->offset + at, n, piece));
            DR_TRY(dr_alive_work());
        }
        t->dtype = tensor->dtype;
    }
    return DR_OK;
}

static dr_status read_in_pieces(dr_lm *lm, const dr_safetensors_folder *weights) {
    float *piece = NULL;
    DR_TRY(dr_alloc_unset(&piece, "weights on their way", PIECE, sizeof *piece));
    dr_status status = put_tensors(lm, weights, piece);
    dr_free(piece);
    if (lm->is_frozen) dr_lm_passing_destroy(lm); // nothing will be put any more
    lm->version++;
    return status;
}

dr_status dr_lm_outline_of(dr_backend *backend, const char *dir, dr_lm **out_lm) {
    dr_lm_config config;
    DR_TRY(dr_lm_config_read(dir, &config));
    return dr_lm_outline(backend, &config, out_lm);
}

typedef enum load_kind { WHOLE, FROZEN, SHARD } load_kind;

// rank, size: of a shard.
static dr_status load(dr_backend *backend, const char *dir, load_kind kind, int rank, int size,
                      dr_lm **out_lm) {
    dr_lm_config config;
    DR_TRY(dr_lm_config_read(dir, &config));
    dr_safetensors_folder *weights = NULL;
    dr_lm *lm = NULL;
    DR_TRY(dr_safetensors_folder_open(dir, &weights));
    dr_status status;
    DR_TRY_GOTO(status, dr_lm_outline(backend, &config, &lm), close_weights);
    DR_TRY_GOTO(status, check_weights(lm, weights), destroy_lm);
    lm->is_frozen = kind == FROZEN;
    if (kind == FROZEN) lm->own = (dr_shard){0, 0};
    if (kind == SHARD) lm->own = dr_shard_of(lm->n_params, rank, size);
    lm->n_learners = size;
    DR_TRY_GOTO(status, dr_lm_allocate(lm), destroy_lm);
    DR_TRY_GOTO(status, (kind == WHOLE ? read_tensors : read_in_pieces)(lm, weights), destroy_lm);
    *out_lm = lm;
    lm = NULL;
destroy_lm:
    dr_lm_destroy(lm);
close_weights:
    dr_safetensors_folder_close(weights);
    return status;
}

dr_status dr_lm_load(dr_backend *backend, const char *dir, dr_lm **out_lm) {
    return load(backend, dir, WHOLE, 0, 1, out_lm);
}

dr_status dr_lm_load_frozen(dr_backend *backend, const char *dir, dr_lm **out_lm) {
    return load(backend, dir, dr_rounds_to_bf16(backend->precision) ? FROZEN : WHOLE, 0, 1, out_lm);
}

dr_status dr_lm_load_shard(dr_backend *backend, const char *dir, int rank, int size, dr_lm **out_lm) {
    if (!dr_lm_is_shared(backend, size)) return dr_lm_load(backend, dir, out_lm);
    return load(backend, dir, SHARD, rank, size, out_lm);
}

// What config.json says: the type of all tensors, F32 where they differ.
static dr_dtype common_dtype(const dr_lm *lm) {
    for (int32_t i = 1; i < lm->n_tensors; i++)
        if (lm->tensors[i].dtype != lm->tensors[0].dtype) return DR_DTYPE_F32;
    return lm->tensors[0].dtype;
}

// config.json, then the weights: a folder with weights is a whole one. params or source has the values.
static dr_status save(const dr_lm *lm, const char *dir, dr_save_type type, const float *params,
                      const dr_lm_source *source, int64_t max_shard_bytes) {
    dr_safetensor_source *sources = NULL;
    dr_safetensor_feed *feeds = NULL;
    DR_TRY(dr_dir_make(dir));
    DR_TRY(dr_lm_config_write(&lm->config, type == DR_SAVE_FP32 ? DR_DTYPE_F32 : common_dtype(lm), dir));
    DR_TRY(dr_alloc(&sources, "tensors to save", lm->n_tensors, sizeof *sources));
    dr_status status = dr_alloc(&feeds, "tensors to save", lm->n_tensors, sizeof *feeds);
    for (int32_t i = 0; i < lm->n_tensors && status == DR_OK; i++) {
        const dr_lm_tensor *t = &lm->tensors[i];
        sources[i].name = t->name;
        sources[i].dtype = type == DR_SAVE_FP32 ? DR_DTYPE_F32 : t->dtype;
        tensor_shape(t, sources[i].shape, &sources[i].n_dims);
        if (params) sources[i].data = params + t->offset;
        if (!source) continue;
        feeds[i] = (dr_safetensor_feed){source->read, source->context, t->offset};
        sources[i].feed = &feeds[i];
    }
    if (status == DR_OK) status = dr_safetensors_folder_write(dir, sources, lm->n_tensors, max_shard_bytes);
    dr_free(sources);
    dr_free(feeds);
    return status;
}

dr_status dr_lm_save_in_shards(const dr_lm *lm, const char *dir, dr_save_type type, int64_t max_shard_bytes) {
    DR_CHECK(!lm->is_frozen, DR_ERR_UNSUPPORTED,
             "%s: a model that was loaded for reading cannot be saved: its values are rounded", dir);
    DR_CHECK(!lm->vectors, DR_ERR_UNSUPPORTED,
             "%s: a learner's share of a model cannot be saved: the other learners have the rest", dir);
    float *params = NULL;
    DR_TRY(dr_host_open(lm->backend, lm->params, lm->n_params, DR_HOST_READS, &params));
    dr_status status = save(lm, dir, type, params, NULL, max_shard_bytes);
    dr_host_close(lm->backend, lm->params, lm->n_params, DR_HOST_READS, params);
    return status;
}

dr_status dr_lm_save_from(const dr_lm *lm, const char *dir, dr_save_type type, const dr_lm_source *source) {
    return save(lm, dir, type, NULL, source, DR_LM_SHARD_BYTES);
}

int64_t dr_lm_copy_memory(const dr_lm *lm) {
    return lm->n_params * (int64_t)sizeof(float);
}

dr_status dr_lm_save(const dr_lm *lm, const char *dir, dr_save_type type) {
    return dr_lm_save_in_shards(lm, dir, type, DR_LM_SHARD_BYTES);
}
