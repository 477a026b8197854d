// String datasets of h5.h. Ours have a fixed width, so that checksums cover the letters and no pointer of the
// file is followed; those of other writers may be of variable length.
#include <hdf5.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/alloc.h"
#include "core/store/h5_internal.h"

enum { MOST_BYTES = 1 << 24, DEFLATE = 1 };

static uint64_t strings_digest(const char *const *strings, int64_t n) {
    uint64_t h = (uint64_t)n;
    for (int64_t i = 0; i < n; i++)
        h = XXH3_64bits_withSeed(strings[i] ? strings[i] : "", strings[i] ? strlen(strings[i]) + 1 : 1, h);
    return h;
}

static hid_t text_type(size_t width, H5T_cset_t set) {
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, width);
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    H5Tset_cset(type, set);
    return type;
}

// The rows a chunk at a time.
static dr_status write_rows(dr_h5 *file, const char *name, hid_t dataset, hid_t type,
                            const char *const *strings, int64_t n, size_t width, int64_t rows) {
    char *block = NULL;
    dr_status status = dr_alloc(&block, "strings", rows, width);
    for (int64_t first = 0; first < n && status == DR_OK; first += rows) {
        int64_t count = n - first < rows ? n - first : rows;
        memset(block, 0, (size_t)rows * width);
        for (int64_t i = 0; i < count; i++) {
            const char *text = strings[first + i];
            if (text) memcpy(block + (size_t)i * width, text, strlen(text));
        }
        if (dr_h5_dataset_move(file, dataset, type, first, count, block, 1) != 0)
            status = dr_h5_fail(file, "cannot write dataset", name);
    }
    dr_free(block);
    return status;
}

dr_status dr_h5_write_strings(dr_h5 *file, const char *name, const char *const *strings, int64_t n,
                              const char *description) {
    size_t width = 1;
    int64_t rows = 1;
    for (int64_t i = 0; i < n; i++) {
        size_t length = strings[i] ? strlen(strings[i]) : 0;
        if (length > width) width = length;
    }
    DR_CHECK(width <= MOST_BYTES, DR_ERR_UNSUPPORTED, "%s: dataset \"%s\": a text of %zu bytes, at most %d",
             file->path, name, width, MOST_BYTES);
    hid_t type = text_type(width, H5T_CSET_UTF8);
    hid_t dataset = dr_h5_dataset_create(file, name, type, 1, &n, width, DEFLATE, &rows);
    dr_status status = dataset < 0 ? dr_h5_fail(file, "cannot create dataset", name)
                                   : write_rows(file, name, dataset, type, strings, n, width, rows);
    if (dataset >= 0 && H5Dclose(dataset) < 0 && status == DR_OK)
        status = dr_h5_fail(file, "cannot close dataset", name);
    H5Tclose(type);
    DR_TRY(status);
    return dr_h5_notes_write(file, name, strings_digest(strings, n), description, "");
}

void dr_h5_free_strings(char **strings, int64_t n) {
    for (int64_t i = 0; strings && i < n; i++) dr_free(strings[i]);
    dr_free(strings);
}

static dr_status read_fixed(dr_h5 *file, const char *name, hid_t dataset, size_t width, H5T_cset_t set,
                            int64_t n, char **strings) {
    int64_t rows = width >= DR_H5_CHUNK_BYTES ? 1 : DR_H5_CHUNK_BYTES / (int64_t)width;
    char *block = NULL;
    if (rows > n) rows = n;
    DR_TRY(dr_alloc(&block, "strings", rows, width));
    hid_t type = text_type(width, set);
    dr_status status = DR_OK;
    for (int64_t first = 0; first < n && status == DR_OK; first += rows) {
        int64_t count = n - first < rows ? n - first : rows;
        if (dr_h5_dataset_move(file, dataset, type, first, count, block, 0) != 0)
            status = dr_h5_fail(file, "cannot read dataset", name);
        for (int64_t i = 0; i < count && status == DR_OK; i++) {
            const char *text = block + (size_t)i * width;
            status = dr_strndup(&strings[first + i], text, strnlen(text, width));
        }
    }
    H5Tclose(type);
    dr_free(block);
    return status;
}

static dr_status read_variable(dr_h5 *file, const char *name, hid_t dataset, H5T_cset_t set, int64_t n,
                               char **strings) {
    char **raw = NULL;
    DR_TRY(dr_alloc(&raw, name, n, sizeof *raw));
    hid_t type = text_type(H5T_VARIABLE, set), space = H5Dget_space(dataset);
    dr_status status = DR_OK;
    if (n > 0 && H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, raw) < 0)
        status = dr_h5_fail(file, "cannot read dataset", name);
    else {
        for (int64_t i = 0; i < n && status == DR_OK; i++)
            status = dr_strdup(&strings[i], raw[i] ? raw[i] : "");
        if (n > 0) H5Dvlen_reclaim(type, space, H5P_DEFAULT, raw);
    }
    H5Sclose(space);
    H5Tclose(type);
    dr_free(raw);
    return status;
}

static dr_status read_strings(dr_h5 *file, const char *name, hid_t dataset, int64_t *n, char ***out) {
    DR_TRY(dr_h5_dataset_check_shape(file, name, dataset, 1, n));
    hid_t stored = H5Dget_type(dataset);
    bool is_text = H5Tget_class(stored) == H5T_STRING, is_variable = H5Tis_variable_str(stored) > 0;
    size_t width = H5Tget_size(stored);
    H5T_cset_t set = is_text ? H5Tget_cset(stored) : H5T_CSET_ASCII;
    H5Tclose(stored);
    DR_CHECK(is_text, DR_ERR_FORMAT, "%s: dataset \"%s\" does not hold strings", file->path, name);
    DR_CHECK(width > 0 && width <= MOST_BYTES, DR_ERR_UNSUPPORTED,
             "%s: dataset \"%s\": texts of %zu bytes, at most %d", file->path, name, width, MOST_BYTES);
    DR_TRY(dr_h5_dataset_check_size(file, name, dataset, *n, width));
    char **strings = NULL;
    DR_TRY(dr_alloc(&strings, "strings", *n, sizeof *strings));
    dr_status status = is_variable ? read_variable(file, name, dataset, set, *n, strings)
                                   : read_fixed(file, name, dataset, width, set, *n, strings);
    if (status == DR_OK)
        status = dr_h5_digest_check(file, name, strings_digest((const char *const *)strings, *n));
    if (status == DR_OK)
        *out = strings;
    else
        dr_h5_free_strings(strings, *n);
    return status;
}

dr_status dr_h5_read_strings(dr_h5 *file, const char *name, int64_t *n, char ***out_strings) {
    hid_t dataset;
    DR_TRY(dr_h5_dataset_open(file, name, &dataset));
    dr_status status = read_strings(file, name, dataset, n, out_strings);
    H5Dclose(dataset);
    return status;
}
