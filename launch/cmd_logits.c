// `deeprec logits`: a model's logits after each of the given tokens, to compare engines by. The ids go
// through the cached pass some rows at a time, so memory holds the keys and values of all positions and the
// logits of one chunk only.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/model/lm.h"
#include "core/store/h5.h"
#include "launch/cli.h"

static const dr_setting options[] = {
    DR_TEXT("model", NULL, "FOLDER", "Hugging Face folder"),
    DR_TEXT("ids-file", NULL, "FILE", "token ids, separated by white space"),
    DR_CHOICE("dtype", "fp32", "fp32|bf16", "operands of the matrix products"),
    DR_TEXT("out", NULL, "FILE", "HDF5 with \"logits\" (ids, vocabulary)"),
    DR_INT("threads", "0", 0, 1024, "", "processor threads, 0: all"),
};

enum { MAX_ROWS = 256, CHUNK_FLOATS = 1 << 24 };

typedef struct id_list {
    int32_t *ids;
    int64_t n, capacity;
} id_list;

static dr_status push_id(id_list *list, int32_t id) {
    if (list->n == list->capacity) {
        int64_t capacity = 2 * list->capacity + 1024;
        DR_TRY(dr_grow(&list->ids, "token ids", list->capacity, capacity, sizeof *list->ids));
        list->capacity = capacity;
    }
    list->ids[list->n++] = id;
    return DR_OK;
}

static dr_status parse_ids(const char *path, char *text, const dr_lm_config *c, id_list *list) {
    char *rest = NULL;
    for (char *word = strtok_r(text, " \t\r\n\v\f", &rest); word;
         word = strtok_r(NULL, " \t\r\n\v\f", &rest)) {
        char *end = NULL;
        errno = 0;
        long long id = strtoll(word, &end, 10);
        DR_CHECK(!*end && errno == 0, DR_ERR_FORMAT, "%s: id %lld is \"%.40s\", expected a whole number",
                 path, (long long)list->n + 1, word);
        DR_CHECK(id >= 0 && id < c->vocab, DR_ERR_RANGE,
                 "%s: id %lld is %lld, outside the vocabulary of %d (0 to %d)", path, (long long)list->n + 1,
                 id, c->vocab, c->vocab - 1);
        DR_CHECK(list->n < c->max_positions, DR_ERR_RANGE,
                 "%s: more than %d ids, the model's max_position_embeddings", path, c->max_positions);
        DR_TRY(push_id(list, (int32_t)id));
    }
    DR_CHECK(list->n > 0, DR_ERR_FORMAT, "%s: no token ids", path);
    return DR_OK;
}

static dr_status read_ids(const char *path, const dr_lm_config *c, id_list *list) {
    dr_buf text = {0};
    dr_status status = dr_file_read(path, 0, &text);
    if (status == DR_OK && text.length > 0 && strlen(text.data) != text.length)
        status = DR_FAIL(DR_ERR_FORMAT, "%s: byte %zu is NUL, expected text", path, strlen(text.data));
    if (status == DR_OK) status = parse_ids(path, text.data ? text.data : (char[]){""}, c, list);
    dr_buf_reset(&text);
    return status;
}

// More than one chunk: each is a dataset of its own, and "logits" shows them one after another.
typedef struct output {
    dr_h5 *file;
    dr_h5_part *parts;
    char (*names)[32];
    int32_t n_parts;
} output;

static const char DESCRIPTION[] = "logits after each of the given tokens";

static dr_status write_chunk(output *out, const float *logits, int64_t rows, int64_t n_ids, int64_t vocab) {
    int64_t shape[2] = {rows, vocab};
    if (rows == n_ids) return dr_h5_write(out->file, "logits", DR_H5_F32, 2, shape, logits, DESCRIPTION, "");
    char *name = out->names[out->n_parts];
    snprintf(name, sizeof *out->names, "logits_parts/%06d", out->n_parts);
    out->parts[out->n_parts++] = (dr_h5_part){".", name, rows}; // of this file itself
    return dr_h5_write(out->file, name, DR_H5_F32, 2, shape, logits, "some rows of the dataset logits", "");
}

static dr_status finish(output *out, int64_t n_ids, int64_t vocab) {
    if (out->n_parts == 0) return DR_OK;
    int64_t shape[2] = {n_ids, vocab};
    DR_TRY(dr_h5_write_view(out->file, "logits", DR_H5_F32, 2, shape, out->parts, out->n_parts));
    DR_TRY(dr_h5_set_string(out->file, "logits", "description", DESCRIPTION));
    return dr_h5_set_string(out->file, "logits", "unit", "");
}

static dr_status compute(dr_lm *lm, dr_kv_cache *kv, const id_list *list, int32_t rows, output *out) {
    int64_t vocab = dr_lm_config_of(lm)->vocab;
    int32_t seq = -1;
    dr_backend *b = dr_lm_backend(lm);
    float *logits = NULL, *host = NULL;
    DR_TRY(dr_kv_open(kv, &seq));
    DR_TRY(dr_memory_create(b, &logits, "logits of a chunk", rows * vocab, sizeof *logits));
    dr_status status = DR_OK;
    for (int64_t at = 0; at < list->n && status == DR_OK; at += rows) {
        int32_t n = list->n - at < rows ? (int32_t)(list->n - at) : rows;
        status = dr_lm_decode_rows(lm, kv, seq, list->ids + at, n, logits);
        if (status == DR_OK) status = dr_host_open(b, logits, n * vocab, DR_HOST_READS, &host);
        if (status == DR_OK) {
            status = write_chunk(out, host, n, list->n, vocab);
            dr_host_close(b, logits, n * vocab, DR_HOST_READS, host);
        }
    }
    if (status == DR_OK) status = finish(out, list->n, vocab);
    b->ops->memory_destroy(b, logits);
    return status;
}

static dr_status write_logits(dr_lm *lm, const id_list *list, const char *path) {
    int64_t rows = CHUNK_FLOATS / dr_lm_config_of(lm)->vocab;
    rows = rows < 1 ? 1 : rows > MAX_ROWS ? MAX_ROWS : rows;
    int64_t n_parts = (list->n + rows - 1) / rows, n_pages = (list->n + DR_KV_PAGE - 1) / DR_KV_PAGE;
    output out = {0};
    dr_kv_cache *kv = NULL;
    dr_status status = dr_alloc(&out.parts, "parts", n_parts, sizeof *out.parts);
    if (status == DR_OK) status = dr_alloc(&out.names, "names of parts", n_parts, sizeof *out.names);
    if (status == DR_OK) status = dr_kv_create(lm, (int32_t)n_pages, 1, &kv);
    if (status == DR_OK) status = dr_h5_create(path, &out.file);
    if (status == DR_OK) {
        status = compute(lm, kv, list, (int32_t)rows, &out);
        if (status == DR_OK)
            status = dr_h5_commit(out.file);
        else
            dr_h5_abort(out.file);
    }
    dr_kv_destroy(kv);
    dr_free(out.names);
    dr_free(out.parts);
    return status;
}

static dr_status logits_command(const dr_cli *cli) {
    const dr_config *o = cli->options;
    const char *out = dr_config_string(o, "out");
    dr_backend *backend = NULL;
    dr_lm *lm = NULL;
    id_list list = {0};
    DR_TRY(dr_backend_cpu_create((dr_precision)dr_config_choice(o, "dtype"), // rows in the enum's order
                                 (int)dr_config_int(o, "threads"), &backend));
    dr_status status = dr_lm_load_frozen(backend, dr_config_string(o, "model"), &lm);
    if (status == DR_OK) status = read_ids(dr_config_string(o, "ids-file"), dr_lm_config_of(lm), &list);
    if (status == DR_OK) status = write_logits(lm, &list, out);
    if (status == DR_OK)
        dr_info("%s: %lld rows of %d logits", out, (long long)list.n, dr_lm_config_of(lm)->vocab);
    dr_free(list.ids);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(backend);
    return status;
}

const dr_command dr_command_logits = {
    .name = "logits",
    .summary = "a model's logits for given token ids",
    .help =
        "Row i has the logits after id i, in fp32. The ids are one sequence, at most "
        "max_position_embeddings of them. Large results stand in parts, logits_parts/..., which the dataset "
        "\"logits\" shows as one (an HDF5 virtual dataset of the same file).",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = logits_command,
};
