// `deeprec trm score`: full score rows for given histories and query vectors.
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/rec/trm.h"
#include "core/store/h5.h"
#include "launch/cli.h"
#include "launch/policy_parts.h"

static const dr_setting options[] = {
    DR_TEXT("trm", NULL, "FOLDER", "retrieval model: config.json (optional) and model.safetensors"),
    DR_TEXT_ENCODER_OPTION,
    DR_TEXT("histories", NULL, "FILE",
            "JSON lines: [item, …] or {\"history\": [item, …]}, items from 1, 0 pads at the end"),
    DR_TEXT("queries", "", "FILE",
            "HDF5 with \"queries\" (lines, text dimension); a zero row or no file: no preference"),
    DR_TEXT("out", NULL, "FILE", "HDF5 with \"scores\" (lines, items + 1); column 0, padding, is -inf"),
    DR_INT("threads", "0", 0, 1024, "", "processor threads, 0: all"),
};

// All histories in one array with offsets.
typedef struct histories {
    int32_t *items;
    int64_t n_items, items_capacity;
    int64_t *offsets; // [n + 1]
    int64_t n, capacity;
} histories;

static void histories_reset(histories *h) {
    dr_free(h->items);
    dr_free(h->offsets);
}

static dr_status push_item(histories *h, int32_t item) {
    if (h->n_items == h->items_capacity) {
        DR_TRY(dr_grow(&h->items, "histories", h->items_capacity, 2 * h->items_capacity + 1024,
                       sizeof *h->items));
        h->items_capacity = 2 * h->items_capacity + 1024;
    }
    h->items[h->n_items++] = item;
    return DR_OK;
}

static dr_status push_history(histories *h, const char *where, const json_t *list) {
    DR_CHECK(json_is_array(list), DR_ERR_FORMAT, "%s: expected a list of items, found %s", where,
             dr_json_type_name(list));
    if (h->n + 1 >= h->capacity) {
        DR_TRY(dr_grow(&h->offsets, "histories", h->capacity, 2 * h->capacity + 256, sizeof *h->offsets));
        h->capacity = 2 * h->capacity + 256;
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *value = json_array_get(list, i);
        DR_CHECK(
            json_is_integer(value) && json_integer_value(value) >= 0 && json_integer_value(value) < 1 << 28,
            DR_ERR_FORMAT, "%s: entry %zu: expected an item, found %s", where, i, dr_json_type_name(value));
        if (json_integer_value(value) > 0) DR_TRY(push_item(h, (int32_t)json_integer_value(value)));
    }
    h->offsets[++h->n] = h->n_items;
    return DR_OK;
}

static dr_status read_histories(const char *path, histories *h) {
    dr_buf text = {0};
    dr_status status = dr_file_read(path, 0, &text);
    int64_t number = 0;
    for (size_t at = 0; status == DR_OK && at < text.length;) {
        const char *end = memchr(text.data + at, '\n', text.length - at);
        size_t length = end ? (size_t)(end - text.data) - at : text.length - at;
        char where[512];
        json_t *root = NULL;
        snprintf(where, sizeof where, "%s:%lld", path, (long long)++number);
        if (length > 0) {
            status = dr_json_parse(where, text.data + at, length, &root);
            if (status == DR_OK)
                status =
                    push_history(h, where, json_is_object(root) ? json_object_get(root, "history") : root);
            json_decref(root);
        }
        at += length + 1;
    }
    dr_buf_reset(&text);
    DR_TRY(status);
    DR_CHECK(h->n > 0, DR_ERR_FORMAT, "%s: no histories", path);
    return DR_OK;
}

static dr_status read_queries(const char *path, int64_t n, int32_t dim, float **out) {
    dr_h5 *file = NULL;
    int64_t shape[2] = {n, dim};
    if (!path[0]) return DR_OK;
    DR_TRY(dr_h5_open(path, &file));
    dr_status status = dr_h5_read(file, "queries", DR_H5_F32, 2, shape, out);
    dr_h5_close(file);
    return status;
}

static dr_status write_scores(const char *path, const float *scores, int64_t n, int64_t columns) {
    dr_h5 *file = NULL;
    int64_t shape[2] = {n, columns};
    DR_TRY(dr_h5_create(path, &file));
    dr_status status =
        dr_h5_write(file, "scores", DR_H5_F32, 2, shape, scores,
                    "cosine of the user vector and each item's embedding; column 0 is padding", "");
    if (status == DR_OK) return dr_h5_commit(file);
    dr_h5_abort(file);
    return status;
}

static dr_status score(const dr_config *o, dr_trm *trm, const histories *h) {
    int32_t dim = dr_trm_config_of(trm)->text_dim;
    int64_t columns = (int64_t)dr_trm_config_of(trm)->n_items + 1;
    float *queries = NULL, *scores = NULL;
    dr_trm_query *requests = NULL;
    dr_status status = read_queries(dr_config_string(o, "queries"), h->n, dim, &queries);
    if (status == DR_OK) status = dr_alloc(&requests, "requests", h->n, sizeof *requests);
    if (status == DR_OK) status = dr_alloc(&scores, "scores", h->n * columns, sizeof *scores);
    for (int64_t i = 0; i < h->n && status == DR_OK; i++) {
        bool any = false;
        for (int32_t d = 0; queries && d < dim && !any; d++) any = queries[i * dim + d] != 0.0f;
        requests[i] = (dr_trm_query){h->items + h->offsets[i], (int32_t)(h->offsets[i + 1] - h->offsets[i]),
                                     any ? queries + i * dim : NULL};
    }
    if (status == DR_OK) status = dr_trm_score(trm, requests, h->n, scores);
    if (status == DR_OK) status = write_scores(dr_config_string(o, "out"), scores, h->n, columns);
    dr_free(queries);
    dr_free(requests);
    dr_free(scores);
    return status;
}

static dr_status trm_score_command(const dr_cli *cli) {
    const dr_config *o = cli->options;
    histories h = {0};
    dr_backend *backend = NULL;
    dr_trm *trm = NULL;
    dr_status status = read_histories(dr_config_string(o, "histories"), &h);
    if (status == DR_OK) status = dr_backend_cpu_create(DR_FP32, (int)dr_config_int(o, "threads"), &backend);
    if (status == DR_OK)
        status =
            dr_trm_load_with(backend, dr_config_string(o, "trm"), dr_config_string(o, "text-encoder"), &trm);
    if (status == DR_OK) status = score(o, trm, &h);
    dr_trm_destroy(trm);
    dr_backend_cpu_destroy(backend);
    histories_reset(&h);
    return status;
}

const dr_command dr_command_trm_score = {
    .name = "trm score",
    .summary = "full score rows for given histories and query vectors",
    .help = "Histories longer than the model's are cut to their last items. Each row of scores covers the "
            "whole catalogue.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = trm_score_command,
};
