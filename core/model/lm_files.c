// Loading and saving of Hugging Face folders: the weights on either side of the flat buffer, their names and
// shapes checked before memory is taken. config.json is lm_config.c's, the shards are the store's.
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/model/lm_internal.h"
#include "core/store/safetensors_folder.h"

enum { SLICE = 1 << 16 }; // values that one thread reads at a time

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

static dr_status read_values(const dr_safetensor *tensor, const char *path, int n_threads, float *out) {
    int64_t n = tensor->n_values, bad = INT64_MAX;
#pragma omp parallel for num_threads(n_threads) schedule(static) reduction(min : bad) if (n > 4 * SLICE)
    for (int64_t first = 0; first < n; first += SLICE) {
        int64_t found = read_slice(tensor, first, n - first < SLICE ? n - first : SLICE, out + first);
        bad = found < bad ? found : bad;
    }
    dr_safetensor_release(tensor);
    DR_CHECK(bad == INT64_MAX, DR_ERR_NUMERIC, "%s: tensor %s: value %lld is %g", path, tensor->name,
             (long long)bad, (double)out[bad]);
    return DR_OK;
}

// memory: [rows * cols] of the backend; check_weights has passed.
static dr_status read_tensor(dr_lm *lm, dr_lm_tensor *t, const dr_safetensors_folder *weights,
                             float *memory) {
    const dr_safetensor *tensor = dr_safetensors_folder_find(weights, t->name);
    float *values;
    DR_TRY(dr_host_open(lm->backend, memory, tensor->n_values, DR_HOST_WRITES, &values));
    dr_status status =
        read_values(tensor, dr_safetensors_folder_path(weights), lm->backend->n_threads, values);
    dr_host_close(lm->backend, memory, tensor->n_values, DR_HOST_WRITES, values);
    t->dtype = tensor->dtype;
    return status;
}

static dr_status read_tensors(dr_lm *lm, const dr_safetensors_folder *weights) {
    for (int32_t i = 0; i < lm->n_tensors; i++)
        DR_TRY(read_tensor(lm, &lm->tensors[i], weights, lm->params + lm->tensors[i].offset));
    return dr_lm_weights_changed(lm);
}

// The tensors of one matrix after the other through the same memory: it holds one matrix at a time.
static dr_status read_product(dr_lm *lm, const lm_product *p, const dr_safetensors_folder *weights,
                              float *memory) {
    for (int32_t i = 0; i < lm->n_tensors; i++) {
        dr_lm_tensor *t = &lm->tensors[i];
        if (dr_lm_is_vector(t) || t->offset < p->at || t->offset >= p->at + p->rows * p->cols) continue;
        DR_TRY(read_tensor(lm, t, weights, memory + (t->offset - p->at)));
    }
    return lm->backend->ops->weight_pack(lm->backend, *p->w, memory);
}

static dr_status read_frozen(dr_lm *lm, const dr_safetensors_folder *weights) {
    int64_t largest = 0;
    float *memory = NULL;
    for (int32_t p = 0; p < lm->n_products; p++) {
        int64_t n = lm->products[p].rows * lm->products[p].cols;
        largest = n > largest ? n : largest;
    }
    for (int32_t i = 0; i < lm->n_tensors; i++)
        if (dr_lm_is_vector(&lm->tensors[i]))
            DR_TRY(read_tensor(lm, &lm->tensors[i], weights, lm->params + lm->tensors[i].offset));
    DR_TRY(dr_memory_create(lm->backend, &memory, "a matrix on its way", largest, sizeof(float)));
    dr_status status = DR_OK;
    for (int32_t p = 0; p < lm->n_products && status == DR_OK; p++)
        status = read_product(lm, &lm->products[p], weights, memory);
    lm->backend->ops->memory_destroy(lm->backend, memory);
    lm->version++;
    return status;
}

dr_status dr_lm_outline_of(dr_backend *backend, const char *dir, dr_lm **out_lm) {
    dr_lm_config config;
    DR_TRY(dr_lm_config_read(dir, &config));
    return dr_lm_outline(backend, &config, out_lm);
}

static dr_status load(dr_backend *backend, const char *dir, bool is_frozen, dr_lm **out_lm) {
    dr_lm_config config;
    DR_TRY(dr_lm_config_read(dir, &config));
    dr_safetensors_folder *weights = NULL;
    dr_lm *lm = NULL;
    DR_TRY(dr_safetensors_folder_open(dir, &weights));
    dr_status status;
    DR_TRY_GOTO(status, (is_frozen ? dr_lm_outline_frozen : dr_lm_outline)(backend, &config, &lm),
                close_weights);
    DR_TRY_GOTO(status, check_weights(lm, weights), destroy_lm);
    DR_TRY_GOTO(status, dr_lm_allocate(lm), destroy_lm);
    DR_TRY_GOTO(status, (is_frozen ? read_frozen : read_tensors)(lm, weights), destroy_lm);
    *out_lm = lm;
    lm = NULL;
destroy_lm:
    dr_lm_destroy(lm);
close_weights:
    dr_safetensors_folder_close(weights);
    return status;
}

dr_status dr_lm_load(dr_backend *backend, const char *dir, dr_lm **out_lm) {
    return load(backend, dir, false, out_lm);
}

dr_status dr_lm_load_frozen(dr_backend *backend, const char *dir, dr_lm **out_lm) {
    return load(backend, dir, dr_rounds_to_bf16(backend->precision), out_lm);
}

// What config.json says: the type of all tensors, F32 where they differ.
static dr_dtype common_dtype(const dr_lm *lm) {
    for (int32_t i = 1; i < lm->n_tensors; i++)
        if (lm->tensors[i].dtype != lm->tensors[0].dtype) return DR_DTYPE_F32;
    return lm->tensors[0].dtype;
}

dr_status dr_lm_save_in_shards(const dr_lm *lm, const char *dir, dr_save_type type, int64_t max_shard_bytes) {
    DR_CHECK(!lm->is_frozen, DR_ERR_UNSUPPORTED,
             "%s: a model that was loaded for reading cannot be saved: its values are rounded", dir);
    DR_TRY(dr_dir_make(dir));
    DR_TRY(dr_lm_config_write(&lm->config, type == DR_SAVE_FP32 ? DR_DTYPE_F32 : common_dtype(lm), dir));
    dr_safetensor_source *sources = NULL;
    float *params = NULL;
    DR_TRY(dr_alloc(&sources, "tensors to save", lm->n_tensors, sizeof *sources));
    dr_status status = dr_host_open(lm->backend, lm->params, lm->n_params, DR_HOST_READS, &params);
    if (status != DR_OK) {
        dr_free(sources);
        return status;
    }
    for (int32_t i = 0; i < lm->n_tensors; i++) {
        sources[i].name = lm->tensors[i].name;
        sources[i].dtype = type == DR_SAVE_FP32 ? DR_DTYPE_F32 : lm->tensors[i].dtype;
        sources[i].data = params + lm->tensors[i].offset;
        tensor_shape(&lm->tensors[i], sources[i].shape, &sources[i].n_dims);
    }
    // last: a folder with weights is a whole one
    status = dr_safetensors_folder_write(dir, sources, lm->n_tensors, max_shard_bytes);
    dr_host_close(lm->backend, lm->params, lm->n_params, DR_HOST_READS, params);
    dr_free(sources);
    return status;
}

int64_t dr_lm_copy_memory(const dr_lm *lm) {
    return lm->n_params * (int64_t)sizeof(float);
}

dr_status dr_lm_save(const dr_lm *lm, const char *dir, dr_save_type type) {
    return dr_lm_save_in_shards(lm, dir, type, DR_LM_SHARD_BYTES);
}
