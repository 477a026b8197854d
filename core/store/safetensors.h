// safetensors files: a validated reader (memory-mapped, read-only) and an atomic writer.
#ifndef DR_CORE_STORE_SAFETENSORS_H
#define DR_CORE_STORE_SAFETENSORS_H

#include <stdint.h>

#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_safetensors dr_safetensors;

typedef enum dr_dtype { DR_DTYPE_F32, DR_DTYPE_BF16, DR_DTYPE_F16, DR_DTYPE_OTHER } dr_dtype;

typedef struct dr_safetensor {
    const char *name; // borrowed from the file object
    char dtype_name[8];
    dr_dtype dtype;
    int32_t n_dims;
    int64_t shape[8];
    int64_t n_values;
    const void *data; // inside the mapping, possibly unaligned
} dr_safetensor;

// Refuses a header that is too long, not JSON, has duplicate names, ranges that overlap, leave holes or pass
// the end, or sizes that do not match shape and dtype; the error names the tensor, expected and found.
dr_status dr_safetensors_open(const char *path, dr_safetensors **out_file);
void dr_safetensors_close(dr_safetensors *file);
int32_t dr_safetensors_count(const dr_safetensors *file);
const dr_safetensor *dr_safetensors_at(const dr_safetensors *file, int32_t index);
const dr_safetensor *dr_safetensors_find(const dr_safetensors *file, const char *name); // NULL when absent
// What dr_safetensors_read demands, without reading.
dr_status dr_safetensors_check(const dr_safetensors *file, const char *name, const int64_t *shape,
                               int32_t n_dims);
// Converts to fp32 into out [n_values]. DR_ERR_FORMAT when the tensor is missing or its shape differs (both
// printed).
dr_status dr_safetensors_read(const dr_safetensors *file, const char *name, const int64_t *shape,
                              int32_t n_dims, float *out);

// Values first … first + n - 1 of a tensor that dr_safetensors_check lets pass, as fp32: for several threads.
void dr_safetensor_values(const dr_safetensor *tensor, int64_t first, int64_t n, float *out);
// The pages that only this tensor fills leave our memory; the system's cache keeps them, and whoever looks
// again gets them from there. So a file that is read through never stands in memory beside what was made of
// it. dr_safetensors_read does it by itself.
void dr_safetensor_release(const dr_safetensor *tensor);

// Gives values that are not in memory, in pieces: of a tensor, `at` more than the number within it.
typedef struct dr_safetensor_feed {
    dr_status (*read)(void *context, int64_t first, int64_t n, float *out);
    void *context;
    int64_t at;
} dr_safetensor_feed;

// One tensor to write, in F32, BF16 or F16 (rounded to nearest, ties to even); data and feed borrowed until
// the call returns.
typedef struct dr_safetensor_source {
    const char *name;
    int32_t n_dims;
    int64_t shape[8];
    const float *data;
    dr_dtype dtype;
    const dr_safetensor_feed *feed; // NULL: data has the values
} dr_safetensor_source;
int64_t dr_safetensor_source_bytes(const dr_safetensor_source *tensor); // in the file
// Temporary name, fsync, rename, fsync of the folder. A failure leaves the old file as it was.
// DR_ERR_NUMERIC: a value that its type does not hold. A feed's error is passed on.
dr_status dr_safetensors_write(const char *path, const dr_safetensor_source *tensors, int32_t n_tensors);

#ifdef __cplusplus
}
#endif
#endif
