// safetensors: 8 bytes of header length, a JSON header, then the data. Everything in the header is
// distrusted: ranges must tile the data exactly, sizes are computed with checked products, names must be
// unique.
#include "core/store/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/base/json.h"

enum { MAX_HEADER = 100000000, MAX_DIMS = 8 };

struct dr_safetensors {
    char *path;
    void *mapping;
    size_t mapped_bytes;
    json_t *header;
    dr_safetensor *tensors;
    int64_t *begin, *end; // byte ranges inside the data part
    int32_t count;
};

static const struct {
    const char *name;
    dr_dtype dtype;
    int64_t bytes;
} dtypes[] = {{"F32", DR_DTYPE_F32, 4},       {"BF16", DR_DTYPE_BF16, 2},    {"F16", DR_DTYPE_F16, 2},
              {"F64", DR_DTYPE_OTHER, 8},     {"I64", DR_DTYPE_OTHER, 8},    {"U64", DR_DTYPE_OTHER, 8},
              {"I32", DR_DTYPE_OTHER, 4},     {"U32", DR_DTYPE_OTHER, 4},    {"I16", DR_DTYPE_OTHER, 2},
              {"U16", DR_DTYPE_OTHER, 2},     {"I8", DR_DTYPE_OTHER, 1},     {"U8", DR_DTYPE_OTHER, 1},
              {"BOOL", DR_DTYPE_OTHER, 1},    {"C64", DR_DTYPE_OTHER, 8},    {"F8_E4M3", DR_DTYPE_OTHER, 1},
              {"F8_E5M2", DR_DTYPE_OTHER, 1}, {"F8_E8M0", DR_DTYPE_OTHER, 1}};

static dr_status map_file(const char *path, void **out_mapping, size_t *out_bytes) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    DR_CHECK(fd >= 0, DR_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return DR_FAIL(DR_ERR_IO, "%s: not a regular file", path);
    }
    if (info.st_size < 8) {
        close(fd);
        return DR_FAIL(DR_ERR_FORMAT, "%s: %lld bytes, a safetensors file has at least 8", path,
                       (long long)info.st_size);
    }
    void *mapping = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int error = errno;
    close(fd);
    DR_CHECK(mapping != MAP_FAILED, DR_ERR_IO, "%s: cannot map: %s", path, strerror(error));
    *out_mapping = mapping;
    *out_bytes = (size_t)info.st_size;
    return DR_OK;
}

// The JSON parser takes "-0" for 0. No number of a header is negative, so a minus outside strings is refused.
static dr_status refuse_minus(const char *path, const unsigned char *header, uint64_t length) {
    bool is_text = false;
    for (uint64_t i = 0; i < length; i++) {
        if (is_text && header[i] == '\\')
            i++;
        else if (header[i] == '"')
            is_text = !is_text;
        else if (header[i] == '-' && !is_text)
            return DR_FAIL(DR_ERR_FORMAT, "%s: header, byte %llu: a negative number", path,
                           (unsigned long long)i);
    }
    return DR_OK;
}

static dr_status read_header(const char *path, const unsigned char *bytes, size_t total, uint64_t *out_length,
                             json_t **out_header) {
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | bytes[i];
    DR_CHECK(length <= MAX_HEADER, DR_ERR_FORMAT, "%s: header of %llu bytes, at most %d are allowed", path,
             (unsigned long long)length, MAX_HEADER);
    DR_CHECK(length <= total - 8, DR_ERR_FORMAT, "%s: header of %llu bytes in a file of %zu", path,
             (unsigned long long)length, total);
    DR_CHECK(length > 0 && bytes[8] == '{', DR_ERR_FORMAT, "%s: the header does not begin with '{'", path);
    DR_TRY(refuse_minus(path, bytes + 8, length));
    json_error_t error;
    json_t *header = json_loadb((const char *)bytes + 8, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    DR_CHECK(header, DR_ERR_FORMAT, "%s: header, byte %d: %s", path, error.position, error.text);
    if (!json_is_object(header)) {
        json_decref(header);
        return DR_FAIL(DR_ERR_FORMAT, "%s: the header is not a JSON object", path);
    }
    *out_length = length;
    *out_header = header;
    return DR_OK;
}

static dr_status read_metadata(const char *path, json_t *metadata) {
    const char *key;
    json_t *value;
    DR_CHECK(json_is_object(metadata), DR_ERR_FORMAT, "%s: __metadata__ is not an object", path);
    json_object_foreach(metadata, key, value)
        DR_CHECK(json_is_string(value), DR_ERR_FORMAT, "%s: __metadata__.%s is not a string", path, key);
    return DR_OK;
}

// Shape, type and byte range of one entry, checked against each other.
static dr_status read_entry(const char *path, const char *name, json_t *entry, int64_t data_bytes,
                            dr_safetensor *out, int64_t *out_begin, int64_t *out_end) {
    DR_CHECK(json_is_object(entry), DR_ERR_FORMAT, "%s: tensor %s: not an object", path, name);
    json_t *dtype = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape"),
           *offsets = json_object_get(entry, "data_offsets");
    DR_CHECK(json_is_string(dtype) && json_is_array(shape) && json_is_array(offsets) &&
                 json_array_size(offsets) == 2,
             DR_ERR_FORMAT, "%s: tensor %s: expected dtype, shape and two data_offsets", path, name);
    int64_t size = 0;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(dtypes[i].name, json_string_value(dtype)) == 0) {
            size = dtypes[i].bytes;
            out->dtype = dtypes[i].dtype;
            snprintf(out->dtype_name, sizeof out->dtype_name, "%s", dtypes[i].name);
        }
    DR_CHECK(size, DR_ERR_UNSUPPORTED, "%s: tensor %s: unknown dtype \"%s\"", path, name,
             json_string_value(dtype));
    DR_CHECK(json_array_size(shape) <= MAX_DIMS, DR_ERR_UNSUPPORTED,
             "%s: tensor %s: %zu dimensions, at most %d", path, name, json_array_size(shape), MAX_DIMS);
    out->n_dims = (int32_t)json_array_size(shape);
    out->n_values = 1;
    for (int32_t i = 0; i < out->n_dims; i++) {
        json_t *dim = json_array_get(shape, (size_t)i);
        DR_CHECK(json_is_integer(dim) && json_integer_value(dim) >= 0, DR_ERR_FORMAT,
                 "%s: tensor %s: dimension %d is not a whole number", path, name, i);
        out->shape[i] = json_integer_value(dim);
        DR_CHECK(!__builtin_mul_overflow(out->n_values, out->shape[i], &out->n_values), DR_ERR_FORMAT,
                 "%s: tensor %s: the shape overflows", path, name);
    }
    int64_t bytes = 0;
    DR_CHECK(!__builtin_mul_overflow(out->n_values, size, &bytes), DR_ERR_FORMAT,
             "%s: tensor %s: the shape overflows", path, name);
    json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    DR_CHECK(json_is_integer(begin) && json_is_integer(end), DR_ERR_FORMAT,
             "%s: tensor %s: data_offsets are not whole numbers", path, name);
    *out_begin = json_integer_value(begin);
    *out_end = json_integer_value(end);
    DR_CHECK(*out_begin >= 0 && *out_begin <= *out_end && *out_end <= data_bytes, DR_ERR_FORMAT,
             "%s: tensor %s: bytes [%lld, %lld) in data of %lld bytes", path, name, (long long)*out_begin,
             (long long)*out_end, (long long)data_bytes);
    DR_CHECK(*out_end - *out_begin == bytes, DR_ERR_FORMAT, "%s: tensor %s: %lld bytes, its shape needs %lld",
             path, name, (long long)(*out_end - *out_begin), (long long)bytes);
    return DR_OK;
}

typedef struct byte_range {
    int64_t begin, end;
    const char *name;
} byte_range;

static int by_begin(const void *a, const void *b) {
    const byte_range *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

// Sorted ranges must tile [0, data_bytes): no hole, no overlap, nothing after the last one.
static dr_status check_tiling(const dr_safetensors *file, int64_t data_bytes) {
    byte_range *ranges = NULL;
    DR_TRY(dr_alloc(&ranges, "tensor ranges", file->count, sizeof *ranges));
    for (int32_t i = 0; i < file->count; i++)
        ranges[i] = (byte_range){file->begin[i], file->end[i], file->tensors[i].name};
    qsort(ranges, (size_t)file->count, sizeof *ranges, by_begin);
    int64_t at = 0;
    dr_status status = DR_OK;
    for (int32_t i = 0; i < file->count && status == DR_OK; i++) {
        if (ranges[i].begin != at)
            status = DR_FAIL(DR_ERR_FORMAT, "%s: tensor %s begins at data byte %lld, expected %lld (%s)",
                             file->path, ranges[i].name, (long long)ranges[i].begin, (long long)at,
                             ranges[i].begin > at ? "a hole" : "an overlap");
        at = ranges[i].end;
    }
    if (status == DR_OK && at != data_bytes)
        status = DR_FAIL(DR_ERR_FORMAT, "%s: %lld data bytes, the tensors cover %lld", file->path,
                         (long long)data_bytes, (long long)at);
    dr_free(ranges);
    return status;
}

static dr_status read_entries(dr_safetensors *file, uint64_t header_length) {
    int64_t data_bytes = (int64_t)(file->mapped_bytes - 8 - (size_t)header_length);
    const char *data = (const char *)file->mapping + 8 + header_length, *name;
    json_t *entry;
    int64_t n = (int64_t)json_object_size(file->header);
    DR_TRY(dr_alloc(&file->tensors, "tensors", n, sizeof *file->tensors));
    DR_TRY(dr_alloc(&file->begin, "tensor begins", n, sizeof *file->begin));
    DR_TRY(dr_alloc(&file->end, "tensor ends", n, sizeof *file->end));
    json_object_foreach(file->header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) {
            DR_TRY(read_metadata(file->path, entry));
            continue;
        }
        dr_safetensor *tensor = &file->tensors[file->count];
        tensor->name = name;
        DR_TRY(read_entry(file->path, name, entry, data_bytes, tensor, &file->begin[file->count],
                          &file->end[file->count]));
        tensor->data = data + file->begin[file->count];
        file->count++;
    }
    return check_tiling(file, data_bytes);
}

dr_status dr_safetensors_open(const char *path, dr_safetensors **out_file) {
    dr_safetensors *file = NULL;
    DR_TRY(dr_alloc(&file, "safetensors", 1, sizeof *file));
    uint64_t header_length = 0;
    dr_status status;
    DR_TRY_GOTO(status, dr_strdup(&file->path, path), close_file);
    DR_TRY_GOTO(status, map_file(path, &file->mapping, &file->mapped_bytes), close_file);
    DR_TRY_GOTO(status, read_header(path, file->mapping, file->mapped_bytes, &header_length, &file->header),
                close_file);
    DR_TRY_GOTO(status, read_entries(file, header_length), close_file);
    *out_file = file;
    return DR_OK;
close_file:
    dr_safetensors_close(file);
    return status;
}

void dr_safetensors_close(dr_safetensors *file) {
    if (!file) return;
    if (file->mapping) munmap(file->mapping, file->mapped_bytes);
    if (file->header) json_decref(file->header);
    dr_free(file->tensors);
    dr_free(file->begin);
    dr_free(file->end);
    dr_free(file->path);
    dr_free(file);
}

int32_t dr_safetensors_count(const dr_safetensors *file) {
    return file->count;
}

const dr_safetensor *dr_safetensors_at(const dr_safetensors *file, int32_t index) {
    DR_ASSERT(index >= 0 && index < file->count);
    return &file->tensors[index];
}

const dr_safetensor *dr_safetensors_find(const dr_safetensors *file, const char *name) {
    for (int32_t i = 0; i < file->count; i++)
        if (strcmp(file->tensors[i].name, name) == 0) return &file->tensors[i];
    return NULL;
}

static void shape_text(const int64_t *shape, int32_t n_dims, char out[128]) {
    size_t used = (size_t)snprintf(out, 128, "[");
    for (int32_t i = 0; i < n_dims && used < 100; i++)
        used += (size_t)snprintf(out + used, 128 - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    snprintf(out + used, 128 - used, "]");
}

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// IEEE half precision to single, subnormals and infinities included.
static float from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3FFu;
    if (exponent == 31) return from_bits(sign | 0x7F800000u | mantissa << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float value = (float)mantissa * 0x1p-24f;
    return sign ? -value : value;
}

dr_status dr_safetensors_check(const dr_safetensors *file, const char *name, const int64_t *shape,
                               int32_t n_dims) {
    const dr_safetensor *tensor = dr_safetensors_find(file, name);
    DR_CHECK(tensor, DR_ERR_FORMAT, "%s: tensor %s is missing", file->path, name);
    bool same = tensor->n_dims == n_dims;
    for (int32_t i = 0; same && i < n_dims; i++) same = tensor->shape[i] == shape[i];
    if (!same) {
        char expected[128], found[128];
        shape_text(shape, n_dims, expected);
        shape_text(tensor->shape, tensor->n_dims, found);
        return DR_FAIL(DR_ERR_FORMAT, "%s: tensor %s has shape %s, expected %s", file->path, name, found,
                       expected);
    }
    DR_CHECK(tensor->dtype != DR_DTYPE_OTHER, DR_ERR_UNSUPPORTED,
             "%s: tensor %s is %s, expected F32, BF16 or F16", file->path, name, tensor->dtype_name);
    return DR_OK;
}

void dr_safetensor_values(const dr_safetensor *tensor, int64_t first, int64_t n, float *out) {
    DR_ASSERT(first >= 0 && n >= 0 && first + n <= tensor->n_values);
    const char *bytes = (const char *)tensor->data + first * (tensor->dtype == DR_DTYPE_F32 ? 4 : 2);
    if (tensor->dtype == DR_DTYPE_F32) {
        memcpy(out, bytes, (size_t)n * 4);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, bytes + 2 * i, 2);
        out[i] = tensor->dtype == DR_DTYPE_BF16 ? from_bits((uint32_t)half << 16) : from_half(half);
    }
}

void dr_safetensor_release(const dr_safetensor *tensor) {
    int64_t bytes = tensor->n_values * (tensor->dtype == DR_DTYPE_F32 ? 4 : 2);
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)tensor->data;
    uintptr_t begin = (at + page - 1) / page * page, end = (at + (uintptr_t)bytes) / page * page;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

dr_status dr_safetensors_read(const dr_safetensors *file, const char *name, const int64_t *shape,
                              int32_t n_dims, float *out) {
    DR_TRY(dr_safetensors_check(file, name, shape, n_dims));
    const dr_safetensor *tensor = dr_safetensors_find(file, name);
    dr_safetensor_values(tensor, 0, tensor->n_values, out);
    dr_safetensor_release(tensor);
    return DR_OK;
}
