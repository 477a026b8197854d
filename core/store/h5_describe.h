// What is inside any HDF5 file: groups, data sets with type, shape and filters, attributes as text. For tools
// and people; the formats' own readers and writers are elsewhere.
#ifndef DR_CORE_STORE_H5_DESCRIBE_H
#define DR_CORE_STORE_H5_DESCRIBE_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_h5_object {
    const char *path; // "/" for the root, "/items/title"
    int is_dataset;   // 0: a group
    char type[24];    // "float32", "int64", "text", "other"; "" for groups
    int32_t n_dims;
    int64_t shape[8];     // 0 dimensions: one value
    int64_t stored_bytes; // in the file, after the filters
    char layout[64];      // "contiguous", "chunks of 1024, deflate, fletcher32", "virtual"
} dr_h5_object;

// Both are called in order: an object, then its attributes, then what is below it by name. Text is borrowed
// until the function returns; a status other than DR_OK ends the walk and is passed on.
typedef struct dr_h5_visitor {
    void *context;
    dr_status (*object)(void *context, const dr_h5_object *object);
    dr_status (*attribute)(void *context, const char *path, const char *name, const char *text);
} dr_h5_visitor;

// Walks the file, opened read-only. DR_ERR_IO: not there or not readable; DR_ERR_FORMAT: not HDF5, damaged,
// or deeper or larger than 16 levels and 100,000 objects.
dr_status dr_h5_describe(const char *path, const dr_h5_visitor *visitor);

// True when the file begins as HDF5 files do (a file that cannot be read is not one).
int dr_h5_is_hdf5(const char *path);

#ifdef __cplusplus
}
#endif
#endif
