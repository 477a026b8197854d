// Thin typed layer over HDF5's serial library: whole datasets in and out, attributes, safe replacement of
// files. Every dataset is chunked with Fletcher32 and carries an XXH3-64 digest of its values, which reading
// verifies: the library's own checksum misses pages of zeros turned to ones, and contiguous data has none.
#ifndef DR_CORE_STORE_H5_H
#define DR_CORE_STORE_H5_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_h5 dr_h5;
typedef enum dr_h5_type {
    DR_H5_F32,
    DR_H5_F64,
    DR_H5_I32,
    DR_H5_I64,
    DR_H5_U8,
    DR_H5_U16,
    DR_H5_U64
} dr_h5_type;

// A new file under a temporary name beside `path`. commit flushes, closes, fsyncs, renames to `path` and
// fsyncs the folder; it fails if any write before it failed, and leaves the old file then. Both commit and
// abort end the object.
dr_status dr_h5_create(const char *path, dr_h5 **out_file);
dr_status dr_h5_commit(dr_h5 *file);
void dr_h5_abort(dr_h5 *file); // removes the temporary file; NULL is fine

dr_status dr_h5_open(const char *path, dr_h5 **out_file); // read-only
void dr_h5_close(dr_h5 *file);                            // of dr_h5_open; NULL is fine
const char *dr_h5_path(const dr_h5 *file);

// Attributes of the file (object "/") or of a dataset.
dr_status dr_h5_set_string(dr_h5 *file, const char *object, const char *name, const char *value);
dr_status dr_h5_set_i64(dr_h5 *file, const char *object, const char *name, int64_t value);
dr_status dr_h5_set_f64(dr_h5 *file, const char *object, const char *name, double value);
dr_status dr_h5_get_string(dr_h5 *file, const char *object, const char *name,
                           char **out_value); // owned by the caller
dr_status dr_h5_get_i64(dr_h5 *file, const char *object, const char *name, int64_t *out_value);
dr_status dr_h5_get_f64(dr_h5 *file, const char *object, const char *name, double *out_value);

// Writes a whole dataset; missing groups in its name are made. description and unit become attributes.
dr_status dr_h5_write(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims, const int64_t *shape,
                      const void *data, const char *description, const char *unit);
// One-dimensional datasets of UTF-8 strings of any length (what h5py shows as str).
dr_status dr_h5_write_strings(dr_h5 *file, const char *name, const char *const *strings, int64_t n,
                              const char *description);

bool dr_h5_has(dr_h5 *file, const char *name);
// Shape of a dataset; *out_n_dims <= 4.
dr_status dr_h5_shape(dr_h5 *file, const char *name, int32_t *out_n_dims, int64_t out_shape[4]);
// Reads a whole dataset into a new array owned by the caller. shape[i] >= 0 is expected, -1 takes what is
// there and is filled in. DR_ERR_FORMAT names file, dataset, expected and found; a wrong digest is an error.
dr_status dr_h5_read(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims, int64_t *shape,
                     void *out_pointer);
dr_status dr_h5_read_strings(dr_h5 *file, const char *name, int64_t *n, char ***out_strings);
void dr_h5_free_strings(char **strings, int64_t n);

// A virtual dataset that shows `source` of another file (path relative to this file's folder) as `name`.
dr_status dr_h5_write_virtual(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims,
                              const int64_t *shape, const char *source_file, const char *source);

#ifdef __cplusplus
}
#endif
#endif
