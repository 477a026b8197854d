// Body of h5.h. The library's own error printing is off: its text goes into our one error line. H5dont_atexit
// keeps its exit handler away, which crashes after a failed write.
#include <errno.h>
#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/alive.h"
#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/store/h5_internal.h"

_Static_assert(sizeof(hid_t) == sizeof(int64_t), "h5_internal.h keeps identifiers as int64_t");

static void library_init(void) {
    static bool done;
    if (done) return;
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    done = true;
}

static herr_t keep_innermost(unsigned n, const H5E_error2_t *error, void *text) {
    if (n == 0) snprintf(text, 1024, "%s", error->desc ? error->desc : "");
    return 0;
}

// Of the system's errors the library tells time, descriptor and addresses; its first words and the system's
// text are enough.
void dr_h5_note_reason(dr_h5 *file) {
    static const char mark[] = "error message = '";
    char text[1024] = "";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_innermost, text);
    H5Eclear2(H5E_DEFAULT);
    const char *system = strstr(text, mark);
    if (system) {
        system += strlen(mark);
        snprintf(file->reason, sizeof file->reason, "%.*s: %.*s", (int)strcspn(text, ":"), text,
                 (int)strcspn(system, "'"), system);
    } else if (text[0]) {
        snprintf(file->reason, sizeof file->reason, "%.*s", (int)strcspn(text, "\n"), text);
    }
}

dr_status dr_h5_fail(dr_h5 *file, const char *what, const char *name) {
    dr_h5_note_reason(file);
    dr_status status = DR_FAIL(file->temp ? DR_ERR_IO : DR_ERR_FORMAT, "%s: %s %s: %s", file->path, what,
                               name, file->reason[0] ? file->reason : "HDF5 gives no reason");
    file->reason[0] = '\0';
    if (file->first_error == DR_OK) file->first_error = status;
    return status;
}

hid_t dr_h5_native_type(dr_h5_type type) {
    switch (type) {
    case DR_H5_F32:
        return H5T_NATIVE_FLOAT;
    case DR_H5_F64:
        return H5T_NATIVE_DOUBLE;
    case DR_H5_I32:
        return H5T_NATIVE_INT32;
    case DR_H5_I64:
        return H5T_NATIVE_INT64;
    case DR_H5_U8:
        return H5T_NATIVE_UINT8;
    case DR_H5_U16:
        return H5T_NATIVE_UINT16;
    case DR_H5_U64:
        return H5T_NATIVE_UINT64;
    }
    return -1;
}

static size_t type_size(dr_h5_type type) {
    static const size_t sizes[] = {4, 8, 4, 8, 1, 2, 8};
    return sizes[type];
}

static const char *type_text(dr_h5_type type) {
    static const char *const names[] = {"float32", "float64", "int32", "int64", "uint8", "uint16", "uint64"};
    return names[type];
}

static dr_status file_new(const char *path, dr_h5 **out) {
    dr_h5 *file = NULL;
    library_init();
    DR_TRY(dr_alloc(&file, "hdf5 file", 1, sizeof *file));
    file->id = -1;
    dr_status status = dr_strdup(&file->path, path);
    if (status != DR_OK) {
        dr_free(file);
        return status;
    }
    *out = file;
    return DR_OK;
}

static void file_free(dr_h5 *file) {
    dr_free(file->path);
    dr_free(file->temp);
    dr_free(file);
}

dr_status dr_h5_create(const char *path, dr_h5 **out_file) {
    dr_h5 *file = NULL;
    dr_buf temp = {0};
    DR_TRY(file_new(path, &file));
    dr_status status = dr_buf_printf(&temp, "%s.tmp.%d", path, (int)getpid());
    file->temp = temp.data;
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
    if (status == DR_OK) {
        hid_t creation = H5Pcreate(H5P_FILE_CREATE);
        H5Pset_obj_track_times(creation, 0);
        file->id = H5Fcreate(file->temp, H5F_ACC_TRUNC, creation, access);
        if (file->id < 0) dr_h5_note_reason(file);
        H5Pclose(creation);
        if (file->id < 0) status = dr_h5_fail(file, "cannot create", file->temp);
    }
    H5Pclose(access);
    if (status != DR_OK) {
        if (file->temp) unlink(file->temp); // a full disk leaves an empty file behind
        file_free(file);
        return status;
    }
    *out_file = file;
    return DR_OK;
}

dr_status dr_h5_commit(dr_h5 *file) {
    dr_status status = file->first_error;
    if (status == DR_OK && H5Fflush(file->id, H5F_SCOPE_GLOBAL) < 0)
        status = dr_h5_fail(file, "cannot flush", file->temp);
    if (H5Fclose(file->id) < 0 && status == DR_OK) status = dr_h5_fail(file, "cannot close", file->temp);
    if (status == DR_OK)
        status = dr_file_commit(file->temp, file->path);
    else
        unlink(file->temp);
    file_free(file);
    return status;
}

void dr_h5_abort(dr_h5 *file) {
    if (!file) return;
    H5Fclose(file->id);
    unlink(file->temp);
    file_free(file);
}

dr_status dr_h5_open(const char *path, dr_h5 **out_file) {
    DR_CHECK(access(path, R_OK) == 0, DR_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    dr_h5 *file = NULL;
    DR_TRY(file_new(path, &file));
    file->id = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (file->id < 0) {
        dr_status status = dr_h5_fail(file, "cannot read", "as an HDF5 file");
        file_free(file);
        return status;
    }
    *out_file = file;
    return DR_OK;
}

void dr_h5_close(dr_h5 *file) {
    if (!file) return;
    H5Fclose(file->id);
    file_free(file);
}

const char *dr_h5_path(const dr_h5 *file) {
    return file->path;
}

static dr_status set_attribute(dr_h5 *file, const char *object, const char *name, hid_t type,
                               const void *value) {
    hid_t at = H5Oopen(file->id, object, H5P_DEFAULT);
    if (at < 0) return dr_h5_fail(file, "no object", object);
    hid_t space = H5Screate(H5S_SCALAR),
          attribute = H5Acreate2(at, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    bool ok = attribute >= 0 && H5Awrite(attribute, type, value) >= 0;
    if (!ok) dr_h5_note_reason(file);
    if (attribute >= 0) H5Aclose(attribute);
    H5Sclose(space);
    H5Oclose(at);
    return ok ? DR_OK : dr_h5_fail(file, "cannot write attribute", name);
}

// Text of `width` bytes, or of variable length (H5T_VARIABLE).
static hid_t string_type(size_t width, H5T_cset_t set) {
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, width);
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    H5Tset_cset(type, set);
    return type;
}

dr_status dr_h5_set_string(dr_h5 *file, const char *object, const char *name, const char *value) {
    size_t length = strlen(value);
    hid_t type = string_type(length ? length : 1, H5T_CSET_UTF8);
    dr_status status = set_attribute(file, object, name, type, value);
    H5Tclose(type);
    return status;
}

dr_status dr_h5_set_i64(dr_h5 *file, const char *object, const char *name, int64_t value) {
    return set_attribute(file, object, name, H5T_NATIVE_INT64, &value);
}

dr_status dr_h5_set_f64(dr_h5 *file, const char *object, const char *name, double value) {
    return set_attribute(file, object, name, H5T_NATIVE_DOUBLE, &value);
}

static hid_t attribute_open(dr_h5 *file, const char *object, const char *name) {
    hid_t attribute = H5Aopen_by_name(file->id, object, name, H5P_DEFAULT, H5P_DEFAULT);
    H5Eclear2(H5E_DEFAULT);
    return attribute;
}

static dr_status attribute_missing(const dr_h5 *file, const char *object, const char *name) {
    return DR_FAIL(DR_ERR_FORMAT, "%s: attribute \"%s\" of %s is missing", file->path, name, object);
}

static bool attribute_is(hid_t attribute, H5T_class_t class) {
    hid_t stored = H5Aget_type(attribute), space = H5Aget_space(attribute);
    bool fits = H5Tget_class(stored) == class && H5Sget_simple_extent_npoints(space) == 1;
    H5Sclose(space);
    H5Tclose(stored);
    return fits;
}

static dr_status get_number(dr_h5 *file, const char *object, const char *name, H5T_class_t class, hid_t type,
                            void *out) {
    hid_t attribute = attribute_open(file, object, name);
    if (attribute < 0) return attribute_missing(file, object, name);
    dr_status status = DR_OK;
    if (!attribute_is(attribute, class))
        status = DR_FAIL(DR_ERR_FORMAT, "%s: attribute \"%s\" of %s has another type, expected one %s",
                         file->path, name, object, class == H5T_FLOAT ? "real number" : "integer");
    else if (H5Aread(attribute, type, out) < 0)
        status = dr_h5_fail(file, "cannot read attribute", name);
    H5Aclose(attribute);
    return status;
}

static dr_status read_text(dr_h5 *file, const char *name, hid_t attribute, char **out) {
    hid_t stored = H5Aget_type(attribute);
    bool is_variable = H5Tis_variable_str(stored) > 0; // of another writer
    size_t width = H5Tget_size(stored);
    hid_t type = string_type(is_variable ? H5T_VARIABLE : width, H5Tget_cset(stored));
    char *text = NULL;
    dr_status status = DR_OK;
    if (!is_variable) status = dr_alloc(&text, "attribute", (int64_t)width + 1, 1);
    if (status == DR_OK && H5Aread(attribute, type, is_variable ? (void *)&text : text) < 0)
        status = dr_h5_fail(file, "cannot read attribute", name);
    if (status == DR_OK) status = dr_strdup(out, text ? text : "");
    if (is_variable)
        H5free_memory(text);
    else
        dr_free(text);
    H5Tclose(type);
    H5Tclose(stored);
    return status;
}

dr_status dr_h5_get_string(dr_h5 *file, const char *object, const char *name, char **out_value) {
    hid_t attribute = attribute_open(file, object, name);
    if (attribute < 0) return attribute_missing(file, object, name);
    dr_status status =
        attribute_is(attribute, H5T_STRING)
            ? read_text(file, name, attribute, out_value)
            : DR_FAIL(DR_ERR_FORMAT, "%s: attribute \"%s\" of %s has another type, expected one text",
                      file->path, name, object);
    H5Aclose(attribute);
    return status;
}

dr_status dr_h5_get_i64(dr_h5 *file, const char *object, const char *name, int64_t *out_value) {
    return get_number(file, object, name, H5T_INTEGER, H5T_NATIVE_INT64, out_value);
}

dr_status dr_h5_get_f64(dr_h5 *file, const char *object, const char *name, double *out_value) {
    return get_number(file, object, name, H5T_FLOAT, H5T_NATIVE_DOUBLE, out_value);
}

// Chunks of about one MiB, cut along the first dimension.
static hid_t creation_list(int32_t n_dims, const int64_t *shape, size_t size, int32_t deflate,
                           int64_t *out_rows) {
    hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_obj_track_times(list, 0); // equal contents give equal bytes
    hsize_t chunk[DR_H5_MAX_DIMS];
    size_t row = size;
    int64_t total = 1;
    for (int32_t i = 0; i < n_dims; i++) {
        chunk[i] = (hsize_t)shape[i];
        total *= shape[i];
        if (i > 0) row *= (size_t)shape[i];
    }
    if (total == 0) return list; // an empty dataset has no chunks
    hsize_t rows = row >= DR_H5_CHUNK_BYTES ? 1 : DR_H5_CHUNK_BYTES / row;
    if (chunk[0] > rows) chunk[0] = rows;
    if (out_rows) *out_rows = (int64_t)chunk[0];
    H5Pset_chunk(list, n_dims, chunk);
    if (deflate > 0) H5Pset_deflate(list, (unsigned)deflate);
    H5Pset_fletcher32(list);
    return list;
}

// Makes the groups on the way to `name`; without times, so that equal contents give equal bytes.
bool dr_h5_make_groups(dr_h5 *file, const char *name) {
    char part[256];
    for (const char *slash = strchr(name, '/'); slash; slash = strchr(slash + 1, '/')) {
        if (slash == name) continue;
        snprintf(part, sizeof part, "%.*s", (int)(slash - name), name);
        if (H5Lexists(file->id, part, H5P_DEFAULT) > 0) continue;
        hid_t list = H5Pcreate(H5P_GROUP_CREATE);
        H5Pset_obj_track_times(list, 0);
        hid_t group = H5Gcreate2(file->id, part, H5P_DEFAULT, list, H5P_DEFAULT);
        H5Pclose(list);
        if (group < 0 || H5Gclose(group) < 0) return false;
    }
    return true;
}

int64_t dr_h5_dataset_create(dr_h5 *file, const char *name, int64_t type, int32_t n_dims,
                             const int64_t *shape, size_t size, int32_t deflate, int64_t *out_chunk_rows) {
    hsize_t dims[DR_H5_MAX_DIMS] = {0};
    for (int32_t i = 0; i < n_dims; i++) dims[i] = (hsize_t)shape[i];
    hid_t space = H5Screate_simple(n_dims, dims, NULL),
          list = creation_list(n_dims, shape, size, deflate, out_chunk_rows);
    hid_t dataset = dr_h5_make_groups(file, name)
                        ? H5Dcreate2(file->id, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT)
                        : -1;
    if (dataset < 0) dr_h5_note_reason(file);
    H5Pclose(list);
    H5Sclose(space);
    return dataset;
}

dr_status dr_h5_notes_write(dr_h5 *file, const char *name, uint64_t digest, const char *description,
                            const char *unit) {
    char text[24];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)digest);
    DR_TRY(dr_h5_set_string(file, name, "xxh3", text));
    DR_TRY(dr_h5_set_string(file, name, "description", description));
    return dr_h5_set_string(file, name, "unit", unit);
}

void dr_h5_set_deflate(dr_h5 *file, int32_t level) {
    file->deflate = level;
}

// Rows of `row` values, whole chunks as dr_h5_dataset_create makes them, so that those who wait hear of it.
static dr_status move_values(dr_h5 *file, const char *name, hid_t dataset, dr_h5_type type, int64_t row,
                             int64_t first, int64_t count, void *memory, bool is_write) {
    enum { CHUNKS = 16 };
    int64_t bytes = row * (int64_t)type_size(type), rows = CHUNKS * (int64_t)DR_H5_CHUNK_BYTES / bytes;
    if (bytes < DR_H5_CHUNK_BYTES) rows = CHUNKS * (DR_H5_CHUNK_BYTES / bytes);
    if (rows < 1) rows = 1;
    for (int64_t at = 0; at < count; at += rows) {
        int64_t n = count - at < rows ? count - at : rows;
        if (dr_h5_dataset_move(file, dataset, dr_h5_native_type(type), first + at, n,
                               (char *)memory + at * bytes, is_write) != 0)
            return dr_h5_fail(file, is_write ? "cannot write dataset" : "cannot read dataset", name);
        DR_TRY(dr_alive_work());
    }
    return DR_OK;
}

dr_status dr_h5_write(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims, const int64_t *shape,
                      const void *data, const char *description, const char *unit) {
    DR_ASSERT(n_dims >= 1 && n_dims <= DR_H5_MAX_DIMS);
    int64_t row = 1;
    for (int32_t i = 1; i < n_dims; i++) row *= shape[i];
    size_t bytes = (size_t)(shape[0] * row) * type_size(type);
    hid_t dataset = dr_h5_dataset_create(file, name, dr_h5_native_type(type), n_dims, shape, type_size(type),
                                         file->deflate, NULL);
    if (dataset < 0) return dr_h5_fail(file, "cannot create dataset", name);
    dr_status status =
        bytes > 0 ? move_values(file, name, dataset, type, row, 0, shape[0], (void *)data, true) : DR_OK;
    if (H5Dclose(dataset) < 0 && status == DR_OK) status = dr_h5_fail(file, "cannot close dataset", name);
    DR_TRY(status);
    return dr_h5_notes_write(file, name, XXH3_64bits(data, bytes), description, unit);
}

bool dr_h5_has(dr_h5 *file, const char *name) {
    char part[256];
    for (const char *slash = strchr(name, '/'); slash;
         slash = strchr(slash + 1, '/')) { // groups on the way must exist
        if (slash == name) continue;
        snprintf(part, sizeof part, "%.*s", (int)(slash - name), name);
        if (H5Lexists(file->id, part, H5P_DEFAULT) <= 0) return false;
    }
    bool found = H5Lexists(file->id, name, H5P_DEFAULT) > 0;
    H5Eclear2(H5E_DEFAULT);
    return found;
}

dr_status dr_h5_dataset_open(dr_h5 *file, const char *name, int64_t *out_dataset) {
    DR_CHECK(dr_h5_has(file, name), DR_ERR_FORMAT, "%s: dataset \"%s\" is missing", file->path, name);
    hid_t dataset = H5Dopen2(file->id, name, H5P_DEFAULT);
    if (dataset < 0) return dr_h5_fail(file, "cannot open dataset", name);
    *out_dataset = dataset;
    return DR_OK;
}

static int32_t shape_of(hid_t dataset, int64_t shape[DR_H5_MAX_DIMS]) {
    hid_t space = H5Dget_space(dataset);
    hsize_t dims[H5S_MAX_RANK];
    int n = H5Sget_simple_extent_dims(space, dims, NULL);
    H5Sclose(space);
    for (int i = 0; i < n && i < DR_H5_MAX_DIMS; i++) shape[i] = (int64_t)dims[i];
    return n;
}

dr_status dr_h5_shape(dr_h5 *file, const char *name, int32_t *out_n_dims, int64_t out_shape[4]) {
    hid_t dataset;
    DR_TRY(dr_h5_dataset_open(file, name, &dataset));
    int64_t shape[DR_H5_MAX_DIMS] = {0};
    int32_t n = shape_of(dataset, shape);
    H5Dclose(dataset);
    DR_CHECK(n >= 0 && n <= DR_H5_MAX_DIMS, DR_ERR_FORMAT, "%s: dataset \"%s\" has %d dimensions, at most %d",
             file->path, name, n, DR_H5_MAX_DIMS);
    memcpy(out_shape, shape, sizeof shape);
    *out_n_dims = n;
    return DR_OK;
}

dr_status dr_h5_dataset_check_shape(dr_h5 *file, const char *name, int64_t dataset, int32_t n_dims,
                                    int64_t *shape) {
    int64_t found[DR_H5_MAX_DIMS] = {0};
    int32_t n = shape_of(dataset, found);
    DR_CHECK(n == n_dims, DR_ERR_FORMAT, "%s: dataset \"%s\" has %d dimensions, expected %d", file->path,
             name, n, n_dims);
    for (int32_t i = 0; i < n; i++)
        DR_CHECK(shape[i] < 0 || shape[i] == found[i], DR_ERR_FORMAT,
                 "%s: dataset \"%s\": dimension %d is %lld, expected %lld", file->path, name, i,
                 (long long)found[i], (long long)shape[i]);
    memcpy(shape, found, (size_t)n * sizeof *shape);
    return DR_OK;
}

// Deflate shrinks at most about 1032 : 1.
dr_status dr_h5_dataset_check_size(dr_h5 *file, const char *name, int64_t dataset, int64_t count,
                                   size_t size) {
    int64_t bytes;
    DR_CHECK(!__builtin_mul_overflow(count, (int64_t)size, &bytes) && bytes >= 0, DR_ERR_FORMAT,
             "%s: dataset \"%s\" is too large", file->path, name);
    hid_t list = H5Dget_create_plist(dataset);
    H5D_layout_t layout = H5Pget_layout(list);
    H5Pclose(list);
    if (layout == H5D_VIRTUAL) return DR_OK;
    uint64_t stored = H5Dget_storage_size(dataset);
    DR_CHECK((uint64_t)bytes / 1100 <= stored, DR_ERR_FORMAT,
             "%s: dataset \"%s\": %lld bytes of values expected, the file holds %llu for them", file->path,
             name, (long long)bytes, (unsigned long long)stored);
    return DR_OK;
}

dr_status dr_h5_digest_check(dr_h5 *file, const char *name, uint64_t digest) {
    char *stored = NULL, text[24];
    if (H5Aexists_by_name(file->id, name, "xxh3", H5P_DEFAULT) <= 0) return DR_OK; // a file of another writer
    DR_TRY(dr_h5_get_string(file, name, "xxh3", &stored));
    snprintf(text, sizeof text, "%016llx", (unsigned long long)digest);
    dr_status status = DR_OK;
    if (strcmp(stored, text) != 0)
        status = DR_FAIL(DR_ERR_FORMAT, "%s: dataset \"%s\" is damaged: digest %s, expected %s", file->path,
                         name, text, stored);
    dr_free(stored);
    return status;
}

int dr_h5_dataset_move(dr_h5 *file, int64_t dataset, int64_t type, int64_t first, int64_t count, void *memory,
                       int is_write) {
    int64_t shape[DR_H5_MAX_DIMS] = {0};
    hsize_t start[DR_H5_MAX_DIMS] = {(hsize_t)first}, rows[DR_H5_MAX_DIMS] = {(hsize_t)count};
    int32_t n = shape_of(dataset, shape);
    for (int32_t i = 1; i < n; i++) rows[i] = (hsize_t)shape[i];
    hid_t there = H5Dget_space(dataset), here = H5Screate_simple(n, rows, NULL);
    herr_t result = H5Sselect_hyperslab(there, H5S_SELECT_SET, start, NULL, rows, NULL);
    if (result >= 0)
        result = is_write ? H5Dwrite(dataset, type, here, there, H5P_DEFAULT, memory)
                          : H5Dread(dataset, type, here, there, H5P_DEFAULT, memory);
    if (result < 0) dr_h5_note_reason(file);
    H5Sclose(here);
    H5Sclose(there);
    return result < 0 ? -1 : 0;
}

// The library reads absent files of a virtual dataset as fill values and calls that success.
static dr_status check_parts(dr_h5 *file, const char *name, hid_t dataset) {
    hid_t list = H5Dget_create_plist(dataset);
    size_t n = 0;
    dr_status status = DR_OK;
    if (H5Pget_layout(list) == H5D_VIRTUAL) H5Pget_virtual_count(list, &n);
    const char *slash = strrchr(file->path, '/');
    for (size_t i = 0; i < n && status == DR_OK; i++) {
        char part[1024] = "";
        dr_buf path = {0};
        H5Pget_virtual_filename(list, i, part, sizeof part);
        status = slash && part[0] != '/'
                     ? dr_buf_printf(&path, "%.*s%s", (int)(slash + 1 - file->path), file->path, part)
                     : dr_buf_text(&path, part);
        if (status == DR_OK && access(path.data, R_OK) != 0)
            status = DR_FAIL(DR_ERR_IO, "%s: dataset \"%s\" shows %s: %s", file->path, name, path.data,
                             strerror(errno));
        dr_buf_reset(&path);
    }
    H5Pclose(list);
    return status;
}

// Shape, type and size as expected?
static dr_status check_values(dr_h5 *file, const char *name, hid_t dataset, dr_h5_type type, int32_t n_dims,
                              int64_t *shape, int64_t *out_row_values) {
    DR_TRY(dr_h5_dataset_check_shape(file, name, dataset, n_dims, shape));
    hid_t stored = H5Dget_type(dataset);
    bool same = H5Tget_class(stored) == (type <= DR_H5_F64 ? H5T_FLOAT : H5T_INTEGER) &&
                H5Tget_size(stored) == type_size(type);
    H5Tclose(stored);
    DR_CHECK(same, DR_ERR_FORMAT, "%s: dataset \"%s\" is not of type %s", file->path, name, type_text(type));
    int64_t count = 1;
    *out_row_values = 1;
    for (int32_t i = 0; i < n_dims; i++) {
        DR_CHECK(!__builtin_mul_overflow(count, shape[i], &count) && count < (int64_t)1 << 40, DR_ERR_FORMAT,
                 "%s: dataset \"%s\" is too large", file->path, name);
        if (i > 0) *out_row_values *= shape[i];
    }
    DR_TRY(dr_h5_dataset_check_size(file, name, dataset, count, type_size(type)));
    return check_parts(file, name, dataset);
}

// first < 0: everything, with its digest.
static dr_status read_values(dr_h5 *file, const char *name, hid_t dataset, dr_h5_type type, int32_t n_dims,
                             int64_t *shape, int64_t first, int64_t count, void **out) {
    int64_t row = 0;
    DR_TRY(check_values(file, name, dataset, type, n_dims, shape, &row));
    bool is_whole = first < 0;
    if (is_whole) {
        first = 0;
        count = shape[0];
    }
    DR_CHECK(count >= 0 && first + count <= shape[0], DR_ERR_RANGE,
             "%s: dataset \"%s\": rows %lld to %lld of %lld", file->path, name, (long long)first,
             (long long)(first + count), (long long)shape[0]);
    void *data = NULL;
    DR_TRY(dr_alloc(&data, name, count * row, type_size(type)));
    dr_status status =
        count * row > 0 ? move_values(file, name, dataset, type, row, first, count, data, false) : DR_OK;
    if (status == DR_OK && is_whole)
        status = dr_h5_digest_check(file, name, XXH3_64bits(data, (size_t)(count * row) * type_size(type)));
    if (status == DR_OK)
        *out = data;
    else
        dr_free(data);
    return status;
}

static dr_status read_into(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims, int64_t *shape,
                           int64_t first, int64_t count, void *out_pointer) {
    hid_t dataset;
    void *data = NULL;
    DR_TRY(dr_h5_dataset_open(file, name, &dataset));
    dr_status status = read_values(file, name, dataset, type, n_dims, shape, first, count, &data);
    H5Dclose(dataset);
    if (status == DR_OK) memcpy(out_pointer, &data, sizeof data);
    return status;
}

dr_status dr_h5_read(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims, int64_t *shape,
                     void *out_pointer) {
    return read_into(file, name, type, n_dims, shape, -1, 0, out_pointer);
}

dr_status dr_h5_read_rows(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims, int64_t *shape,
                          int64_t first, int64_t count, void *out_pointer) {
    DR_CHECK(first >= 0, DR_ERR_RANGE, "%s: dataset \"%s\": rows from %lld", file->path, name,
             (long long)first);
    return read_into(file, name, type, n_dims, shape, first, count, out_pointer);
}
