// Thin typed layer over HDF5's serial library: whole datasets in and out, attributes, safe replacement of
// files. Every dataset is chunked with Fletcher32 and carries an XXH3-64 digest of its values, which reading
// verifies: the library's own checksum misses pages of zeros turned to ones, and contiguous data has none.
// Strings are written with a fixed width: those of variable length live outside every checksum, and damaged
// ones crash or hang the library.
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
// Datasets of numbers written from now on are compressed (1 … 9; 0: not, as at first).
void dr_h5_set_deflate(dr_h5 *file, int32_t level);
// One-dimensional datasets of UTF-8 strings (h5py: dataset.asstr()), as wide as the longest, compressed. NULL
// counts as "". DR_ERR_UNSUPPORTED: one of more than 16 MiB.
dr_status dr_h5_write_strings(dr_h5 *file, const char *name, const char *const *strings, int64_t n,
                              const char *description);

bool dr_h5_has(dr_h5 *file, const char *name);
// Shape of a dataset; *out_n_dims <= 4.
dr_status dr_h5_shape(dr_h5 *file, const char *name, int32_t *out_n_dims, int64_t out_shape[4]);
// Reads a whole dataset into a new array owned by the caller. shape[i] >= 0 is expected, -1 takes what is
// there and is filled in. DR_ERR_FORMAT names file, dataset, expected and found; a wrong digest is an error.
dr_status dr_h5_read(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims, int64_t *shape,
                     void *out_pointer);
// Rows `first` to `first` + `count` - 1 of the first dimension into a new array owned by the caller; shape as
// above. Fletcher32 guards these; the digest covers whole datasets only. DR_ERR_RANGE: no such rows.
dr_status dr_h5_read_rows(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims, int64_t *shape,
                          int64_t first, int64_t count, void *out_pointer);
// Strings of fixed or variable length, 16 MiB at most.
dr_status dr_h5_read_strings(dr_h5 *file, const char *name, int64_t *n, char ***out_strings);
void dr_h5_free_strings(char **strings, int64_t n);

// A virtual dataset that shows datasets of other files (paths relative to this file's folder): their rows
// follow each other along the first dimension and must add up to shape[0]. Reading one whose files are
// missing is an error here; other readers see NaN, or zeros in integers.
typedef struct dr_h5_part {
    const char *file, *name;
    int64_t rows;
} dr_h5_part;
dr_status dr_h5_write_view(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims,
                           const int64_t *shape, const dr_h5_part *parts, int32_t n_parts);
// The same of one or two dimensions, made of runs of flat datasets: their values follow each other, row after
// row, wherever a row is cut.
typedef struct dr_h5_run {
    const char *file, *name;
    int64_t length, first, count; // of the flat dataset; values first … first + count - 1 of it
} dr_h5_run;
dr_status dr_h5_write_runs(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims,
                           const int64_t *shape, const dr_h5_run *runs, int32_t n_runs);

#ifdef __cplusplus
}
#endif
#endif
