// What h5.c, h5_strings.c and h5_view.c share. Identifiers of the library are int64_t here, so that this
// header does not need <hdf5.h>.
#ifndef DR_CORE_STORE_H5_INTERNAL_H
#define DR_CORE_STORE_H5_INTERNAL_H

#include <stddef.h>

#include "core/store/h5.h"

enum { DR_H5_CHUNK_BYTES = 1 << 20, DR_H5_MAX_DIMS = 4 };

struct dr_h5 {
    int64_t id;
    char *path, *temp; // temp NULL: open for reading
    int32_t deflate;   // level for datasets of numbers
    char reason[256];  // what the library said about the last failed call, "" once told
    dr_status first_error;
};

// Keeps what the library says about a call that failed just now; every other call of the library forgets it.
void dr_h5_note_reason(dr_h5 *file);
// One line for a failed library call; the first one of a file being written makes its commit fail.
dr_status dr_h5_fail(dr_h5 *file, const char *what, const char *name);

int64_t dr_h5_native_type(dr_h5_type type);
bool dr_h5_make_groups(dr_h5 *file, const char *name); // of a dataset's name

// An open, empty dataset, chunked with Fletcher32; *out_chunk_rows (may be NULL) is the length of its chunks.
// type: the library's id; size: bytes of one value. Negative on failure.
int64_t dr_h5_dataset_create(dr_h5 *file, const char *name, int64_t type, int32_t n_dims,
                             const int64_t *shape, size_t size, int32_t deflate, int64_t *out_chunk_rows);
dr_status dr_h5_dataset_open(dr_h5 *file, const char *name, int64_t *out_dataset);
// Compares with shape (-1: any, filled in).
dr_status dr_h5_dataset_check_shape(dr_h5 *file, const char *name, int64_t dataset, int32_t n_dims,
                                    int64_t *shape);
// Refuses a dataset that claims far more values than its bytes in the file can hold.
dr_status dr_h5_dataset_check_size(dr_h5 *file, const char *name, int64_t dataset, int64_t count,
                                   size_t size);
// Reads or writes `count` rows from row `first` on; memory holds just these rows. 0 on success.
int dr_h5_dataset_move(dr_h5 *file, int64_t dataset, int64_t type, int64_t first, int64_t count, void *memory,
                       int is_write);

dr_status dr_h5_notes_write(dr_h5 *file, const char *name, uint64_t digest, const char *description,
                            const char *unit);
dr_status dr_h5_digest_check(dr_h5 *file, const char *name, uint64_t digest);

#endif
