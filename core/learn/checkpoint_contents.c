// What rank files of a checkpoint hold, and the view of them: flat arrays in shards, one shard a part.
#include <stdio.h>
#include <string.h>

#include "core/base/file.h"
#include "core/learn/checkpoint_internal.h"
#include "core/model/lm_shard.h"
#include "core/store/h5.h"

enum { PARAMETERS, FIRST_MOMENT, SECOND_MOMENT, N_FLAT };
static const char *const flat_names[N_FLAT] = {"parameters", "first_moment", "second_moment"};
enum { PIECE = 1 << 20 }; // values read at a time

static void tensor_path(const char *tensor, char out[160]) {
    snprintf(out, 160, "weights/%s", tensor);
}

static int32_t tensor_shape(const dr_lm_tensor *t, int64_t shape[2]) {
    bool vector = strstr(t->name, "norm.weight") || strstr(t->name, ".bias");
    shape[0] = vector ? t->cols : t->rows;
    shape[1] = t->cols;
    return vector ? 1 : 2;
}

// ---- writing ----

static dr_status write_values(dr_h5 *file, dr_backend *b, const char *name, int64_t n, float *memory) {
    float *values;
    DR_TRY(dr_host_open(b, memory, n, DR_HOST_READS, &values));
    dr_status status = dr_h5_write(file, name, DR_H5_F32, 1, &n, values,
                                   "this part's share of the flat parameters, from global_offset on", "");
    dr_host_close(b, memory, n, DR_HOST_READS, values);
    return status;
}

static dr_status write_contents(dr_h5 *file, dr_lm *lm, dr_optimizer *optimizer, int32_t part,
                                int32_t n_parts) {
    dr_shard shard = dr_optimizer_shard(optimizer);
    float *sources[] = {dr_lm_master(lm, shard), dr_optimizer_first(optimizer),
                        dr_optimizer_second(optimizer)};
    for (int f = 0; f < N_FLAT && shard.begin < shard.end; f++) {
        DR_TRY(write_values(file, dr_lm_backend(lm), flat_names[f], shard.end - shard.begin, sources[f]));
        DR_TRY(dr_h5_set_i64(file, flat_names[f], "global_offset", shard.begin));
    }
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
    dr_free(path);
    if (status == DR_OK) {
        status = write_contents(file, lm, optimizer, part, n_parts);
        if (status == DR_OK)
            status = dr_h5_commit(file);
        else
            dr_h5_abort(file);
    }
    if (status == DR_OK) status = dr_checkpoint_digest(dir, &written);
    if (status == DR_OK) *out_file = written;
    return status;
}

// ---- the view ----

// Room for n_parts of everything; empty shards, the last ones, are in no file.
typedef struct view_parts {
    int32_t n;
    dr_shard *shards;
    char (*names)[32];
    dr_h5_part *parts;
    dr_h5_run *runs;
} view_parts;

static void view_parts_reset(view_parts *p) {
    dr_free(p->shards);
    dr_free(p->names);
    dr_free(p->parts);
    dr_free(p->runs);
}

static dr_status view_parts_make(view_parts *p, int32_t n_parts, int64_t n_params) {
    DR_TRY(dr_alloc(&p->shards, "parts of a view", n_parts, sizeof *p->shards));
    DR_TRY(dr_alloc(&p->names, "parts of a view", n_parts, sizeof *p->names));
    DR_TRY(dr_alloc(&p->parts, "parts of a view", n_parts, sizeof *p->parts));
    DR_TRY(dr_alloc(&p->runs, "parts of a view", n_parts, sizeof *p->runs));
    for (int32_t i = 0; i < n_parts; i++) {
        dr_shard shard = dr_shard_of(n_params, i, n_parts);
        if (shard.begin == shard.end) continue;
        snprintf(p->names[p->n], sizeof p->names[p->n], "rank_%d.h5", i);
        p->shards[p->n++] = shard;
    }
    return DR_OK;
}

static dr_status view_flat(dr_h5 *view, const view_parts *p, int64_t n_params) {
    for (int f = 0; f < N_FLAT; f++) {
        for (int32_t i = 0; i < p->n; i++)
            p->parts[i] = (dr_h5_part){p->names[i], flat_names[f], p->shards[i].end - p->shards[i].begin};
        DR_TRY(dr_h5_write_view(view, flat_names[f], DR_H5_F32, 1, &n_params, p->parts, p->n));
    }
    return DR_OK;
}

// A tensor under its name, whose values may stand in several files.
static dr_status view_tensor(dr_h5 *view, const view_parts *p, const dr_lm_tensor *t) {
    int64_t shape[2], end = t->offset + t->rows * t->cols;
    int32_t n_dims = tensor_shape(t, shape), n = 0;
    char name[160];
    tensor_path(t->name, name);
    for (int32_t i = 0; i < p->n; i++) {
        dr_shard shard = p->shards[i];
        int64_t first = t->offset > shard.begin ? t->offset : shard.begin,
                last = end < shard.end ? end : shard.end;
        if (first < last)
            p->runs[n++] = (dr_h5_run){p->names[i], flat_names[PARAMETERS], shard.end - shard.begin,
                                       first - shard.begin, last - first};
    }
    DR_TRY(dr_h5_write_runs(view, name, DR_H5_F32, n_dims, shape, p->runs, n));
    return dr_h5_set_i64(view, name, "flat_offset", t->offset);
}

static dr_status view_all(dr_h5 *view, int32_t n_parts, const dr_lm *shape) {
    const dr_lm_tensor *tensors;
    int32_t n = dr_lm_tensors(shape, &tensors);
    view_parts parts = {0};
    dr_status status = view_parts_make(&parts, n_parts, dr_lm_n_params(shape));
    for (int32_t i = 0; i < n && status == DR_OK; i++) status = view_tensor(view, &parts, &tensors[i]);
    if (status == DR_OK) status = view_flat(view, &parts, dr_lm_n_params(shape));
    view_parts_reset(&parts);
    return status;
}

dr_status dr_checkpoint_write_view(const char *dir, int32_t n_parts, const dr_lm *shape) {
    char *path = NULL;
    dr_h5 *view = NULL;
    DR_TRY(dr_path_join(&path, dir, DR_CHECKPOINT_VIEW));
    dr_status status = dr_h5_create(path, &view);
    dr_free(path);
    DR_TRY(status);
    status = view_all(view, n_parts, shape);
    if (status == DR_OK) return dr_h5_commit(view);
    dr_h5_abort(view);
    return status;
}

// ---- reading ----

static dr_status open_view(const char *dir, dr_h5 **out_view) {
    char *path = NULL;
    DR_TRY(dr_path_join(&path, dir, DR_CHECKPOINT_VIEW));
    dr_status status = dr_h5_open(path, out_view);
    dr_free(path);
    return status;
}

// Another model's checkpoint shows in the first tensor that is not the same.
static dr_status check_tensors(dr_h5 *view, const dr_lm *lm) {
    const dr_lm_tensor *tensors;
    int32_t n = dr_lm_tensors(lm, &tensors);
    for (int32_t i = 0; i < n; i++) {
        int64_t shape[2], found[4], offset = -1;
        int32_t n_dims = tensor_shape(&tensors[i], shape), n_found = 0;
        char name[160];
        tensor_path(tensors[i].name, name);
        DR_CHECK(dr_h5_has(view, name), DR_ERR_FORMAT, "%s: tensor %s is missing", dr_h5_path(view),
                 tensors[i].name);
        DR_TRY(dr_h5_shape(view, name, &n_found, found));
        DR_TRY(dr_h5_get_i64(view, name, "flat_offset", &offset));
        bool is_same = n_found == n_dims && found[0] == shape[0] && (n_dims == 1 || found[1] == shape[1]);
        DR_CHECK(is_same && offset == tensors[i].offset, DR_ERR_FORMAT,
                 "%s: tensor %s has another shape or place than in this model", dr_h5_path(view),
                 tensors[i].name);
    }
    return DR_OK;
}

typedef struct loading {
    dr_lm *lm;
    dr_optimizer *optimizer; // or NULL: weights only
    int64_t at[N_FLAT];      // where the files before ended
} loading;

// Values first … of a flat array to where they belong: all of the parameters, the optimizer's own moments.
static dr_status take(const loading *l, int f, int64_t first, int64_t n, const float *values) {
    if (f == PARAMETERS) return dr_lm_put(l->lm, first, n, values);
    dr_backend *b = dr_lm_backend(l->lm);
    dr_shard own = dr_optimizer_shard(l->optimizer);
    float *memory = f == FIRST_MOMENT ? dr_optimizer_first(l->optimizer) : dr_optimizer_second(l->optimizer);
    int64_t begin = own.begin > first ? own.begin : first, end = own.end < first + n ? own.end : first + n;
    if (begin < end)
        b->ops->copy_in(b, memory + (begin - own.begin), values + (begin - first),
                        (size_t)(end - begin) * sizeof *values);
    return DR_OK;
}

static bool is_wanted(const loading *l, int f, int64_t first, int64_t n) {
    if (f == PARAMETERS) return true;
    dr_shard own = dr_optimizer_shard(l->optimizer);
    return own.begin < first + n && own.end > first;
}

// A file's share of a flat array, in pieces.
static dr_status load_flat(dr_h5 *file, loading *l, int f) {
    const char *name = flat_names[f];
    int64_t offset = 0, shape[4];
    int32_t n_dims = 0;
    if (!dr_h5_has(file, name)) return DR_OK;
    DR_TRY(dr_h5_get_i64(file, name, "global_offset", &offset));
    DR_TRY(dr_h5_shape(file, name, &n_dims, shape));
    DR_CHECK(n_dims == 1 && offset == l->at[f] && shape[0] <= dr_lm_n_params(l->lm) - offset, DR_ERR_FORMAT,
             "%s: %lld values of %s from %lld on, expected them from %lld on and %lld in all",
             dr_h5_path(file), (long long)shape[0], name, (long long)offset, (long long)l->at[f],
             (long long)dr_lm_n_params(l->lm));
    for (int64_t at = 0; at < shape[0]; at += PIECE) {
        int64_t count = -1, n = shape[0] - at < PIECE ? shape[0] - at : PIECE;
        float *values = NULL;
        if (!is_wanted(l, f, offset + at, n)) continue;
        DR_TRY(dr_h5_read_rows(file, name, DR_H5_F32, 1, &count, at, n, &values));
        dr_status status = take(l, f, offset + at, n, values);
        dr_free(values);
        DR_TRY(status);
    }
    l->at[f] += shape[0];
    return DR_OK;
}

static dr_status load_file(const char *dir, const char *name, loading *l) {
    char *path = NULL;
    dr_h5 *file = NULL;
    int64_t updates = 0, age = 0;
    DR_TRY(dr_path_join(&path, dir, name));
    dr_status status = dr_h5_open(path, &file);
    dr_free(path);
    DR_TRY(status);
    status = dr_h5_get_i64(file, "/", "updates", &updates);
    if (status == DR_OK) status = dr_h5_get_i64(file, "/", "updates_since_restart", &age);
    for (int f = 0; f < (l->optimizer ? N_FLAT : FIRST_MOMENT) && status == DR_OK; f++)
        status = load_flat(file, l, f);
    if (l->optimizer && status == DR_OK) dr_optimizer_set_updates(l->optimizer, updates, age);
    dr_h5_close(file);
    return status;
}

static dr_status load_files(const char *dir, const dr_checkpoint_info *info, loading *l) {
    dr_h5 *view = NULL;
    DR_TRY(open_view(dir, &view));
    dr_status status = check_tensors(view, l->lm);
    dr_h5_close(view);
    for (int32_t i = 0; i < info->n_files && status == DR_OK; i++)
        status = load_file(dir, info->files[i].name, l);
    DR_TRY(status);
    for (int f = 0; f < (l->optimizer ? N_FLAT : FIRST_MOMENT); f++)
        DR_CHECK(l->at[f] == dr_lm_n_params(l->lm), DR_ERR_FORMAT, "%s: %lld values of %s, expected %lld",
                 dir, (long long)l->at[f], flat_names[f], (long long)dr_lm_n_params(l->lm));
    return DR_OK;
}

dr_status dr_checkpoint_load(dr_lm *lm, dr_optimizer *optimizer, const char *dir) {
    dr_checkpoint_info info = {0};
    loading l = {.lm = lm, .optimizer = optimizer};
    DR_TRY(dr_checkpoint_verify(dir, &info));
    dr_status status = load_files(dir, &info, &l);
    dr_checkpoint_info_reset(&info);
    DR_TRY(status);
    return dr_lm_weights_changed(lm);
}

// ---- export ----

static dr_status read_parameters(void *context, int64_t first, int64_t n, float *out) {
    int64_t count = -1;
    float *values = NULL;
    DR_TRY(dr_h5_read_rows(context, flat_names[PARAMETERS], DR_H5_F32, 1, &count, first, n, &values));
    memcpy(out, values, (size_t)n * sizeof *values);
    dr_free(values);
    return DR_OK;
}

dr_status dr_checkpoint_export(const dr_lm *lm, const char *dir, const char *out_dir) {
    dr_h5 *view = NULL;
    DR_TRY(open_view(dir, &view));
    const dr_lm_source source = {read_parameters, view};
    dr_status status = check_tensors(view, lm);
    if (status == DR_OK) status = dr_lm_save_from(lm, out_dir, DR_SAVE_FP32, &source);
    dr_h5_close(view);
    return status;
}
