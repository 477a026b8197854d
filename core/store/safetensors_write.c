// The writer of safetensors files: values in the type asked for, the file whole or not there.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "core/base/alive.h"
#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/store/safetensors.h"

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Rounding to nearest, ties to even; a NaN stays one.
static uint16_t to_bf16(float value) {
    uint32_t bits = bits_of(value);
    if (isnan(value)) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

static uint16_t to_half(float value) {
    uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFFu;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (isnan(value)) return sign | 0x7E00u;
    if (magnitude >= 0x47800000u) return sign | 0x7C00u; // 65536 and more
    if (magnitude < 0x38800000u)                         // less than 2^-14: a multiple of 2^-24
        return sign | (uint16_t)nearbyintf(fabsf(value) * 0x1p24f);
    magnitude += 0xFFFu + (magnitude >> 13 & 1u);
    return sign | (uint16_t)((magnitude >> 13) - (112u << 10));
}

static int64_t value_bytes(const dr_safetensor_source *tensor) {
    return tensor->dtype == DR_DTYPE_F32 ? 4 : 2;
}

int64_t dr_safetensor_source_bytes(const dr_safetensor_source *tensor) {
    int64_t n = 1;
    for (int32_t d = 0; d < tensor->n_dims; d++) n *= tensor->shape[d];
    return n * value_bytes(tensor);
}

static const char *const dtype_names[] = {"F32", "BF16", "F16"}; // by dr_dtype
enum {
    BLOCK = 4096,    // values converted at a time
    PIECE = 1 << 20, // values of a feed at a time
    MOST = 16 << 20  // bytes written at a time
};

static dr_status check_names(const dr_safetensor_source *tensors, int32_t n_tensors) {
    for (int32_t i = 0; i < n_tensors; i++) {
        DR_CHECK(tensors[i].dtype < DR_DTYPE_OTHER, DR_ERR_ARGUMENT, "tensor %s: a type that is not written",
                 tensors[i].name);
        for (const char *c = tensors[i].name; *c; c++)
            DR_CHECK((unsigned char)*c >= ' ' && *c != '"' && *c != '\\', DR_ERR_ARGUMENT,
                     "tensor name %s: a character that JSON would escape", tensors[i].name);
        for (int32_t j = 0; j < i; j++)
            DR_CHECK(strcmp(tensors[i].name, tensors[j].name) != 0, DR_ERR_ARGUMENT,
                     "tensor name %s is given twice", tensors[i].name);
    }
    return DR_OK;
}

static dr_status build_header(const dr_safetensor_source *tensors, int32_t n_tensors, dr_buf *out) {
    int64_t at = 0;
    DR_TRY(check_names(tensors, n_tensors));
    DR_TRY(dr_buf_text(out, "{\"__metadata__\":{\"format\":\"pt\"}"));
    for (int32_t i = 0; i < n_tensors; i++) {
        int64_t bytes = dr_safetensor_source_bytes(&tensors[i]);
        DR_TRY(dr_buf_printf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensors[i].name,
                             dtype_names[tensors[i].dtype]));
        for (int32_t d = 0; d < tensors[i].n_dims; d++)
            DR_TRY(dr_buf_printf(out, "%s%lld", d ? "," : "", (long long)tensors[i].shape[d]));
        DR_TRY(dr_buf_printf(out, "],\"data_offsets\":[%lld,%lld]}", (long long)at, (long long)(at + bytes)));
        at += bytes;
    }
    DR_TRY(dr_buf_text(out, "}"));
    while (out->length % 8) DR_TRY(dr_buf_text(out, " "));
    return DR_OK;
}

static dr_status write_all(int fd, const void *bytes, size_t length, const char *path) {
    const char *at = bytes;
    while (length > 0) {
        ssize_t wrote = write(fd, at, length < MOST ? length : MOST);
        if (wrote < 0 && errno == EINTR) continue;
        DR_CHECK(wrote > 0, DR_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
        at += wrote;
        length -= (size_t)wrote;
        DR_TRY(dr_alive_work());
    }
    return DR_OK;
}

// Values from number `first` of the tensor on.
static dr_status write_piece(int fd, const dr_safetensor_source *tensor, const char *path, int64_t first,
                             int64_t n, const float *values) {
    if (tensor->dtype == DR_DTYPE_F32) return write_all(fd, values, (size_t)n * sizeof *values, path);
    uint16_t block[BLOCK];
    for (int64_t at = 0; at < n; at += BLOCK) {
        int64_t count = n - at < BLOCK ? n - at : BLOCK;
        for (int64_t i = 0; i < count; i++) {
            float value = values[at + i];
            block[i] = tensor->dtype == DR_DTYPE_BF16 ? to_bf16(value) : to_half(value);
            DR_CHECK(!isfinite(value) ||
                         (block[i] & 0x7FFF) < (tensor->dtype == DR_DTYPE_BF16 ? 0x7F80 : 0x7C00),
                     DR_ERR_NUMERIC, "%s: tensor %s: value %lld, %g, is too large for %s", path, tensor->name,
                     (long long)(first + at + i), (double)value, dtype_names[tensor->dtype]);
        }
        DR_TRY(write_all(fd, block, (size_t)count * sizeof *block, path));
    }
    return DR_OK;
}

static dr_status write_fed(int fd, const dr_safetensor_source *tensor, const char *path, int64_t n,
                           float *piece) {
    const dr_safetensor_feed *feed = tensor->feed;
    for (int64_t at = 0; at < n; at += PIECE) {
        int64_t count = n - at < PIECE ? n - at : PIECE;
        DR_TRY(feed->read(feed->context, feed->at + at, count, piece));
        DR_TRY(write_piece(fd, tensor, path, at, count, piece));
    }
    return DR_OK;
}

static dr_status write_values(int fd, const dr_safetensor_source *tensor, const char *path) {
    int64_t n = dr_safetensor_source_bytes(tensor) / value_bytes(tensor);
    float *piece = NULL;
    if (!tensor->feed) return write_piece(fd, tensor, path, 0, n, tensor->data);
    DR_TRY(dr_alloc_unset(&piece, "values on their way", n < PIECE ? n : PIECE, sizeof *piece));
    dr_status status = write_fed(fd, tensor, path, n, piece);
    dr_free(piece);
    return status;
}

dr_status dr_safetensors_write(const char *path, const dr_safetensor_source *tensors, int32_t n_tensors) {
    dr_buf header = {0}, temp = {0};
    dr_status status;
    DR_TRY_GOTO(status, build_header(tensors, n_tensors, &header), reset_buffers);
    DR_TRY_GOTO(status, dr_buf_printf(&temp, "%s.tmp.%d", path, (int)getpid()), reset_buffers);
    int fd = open(temp.data, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    DR_CHECK_GOTO(fd >= 0, status, DR_ERR_IO, reset_buffers, "%s: cannot create: %s", temp.data,
                  strerror(errno));
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)header.length >> (8 * i));
    status = write_all(fd, length, 8, temp.data);
    if (status == DR_OK) status = write_all(fd, header.data, header.length, temp.data);
    for (int32_t i = 0; i < n_tensors && status == DR_OK; i++)
        status = write_values(fd, &tensors[i], temp.data);
    if (close(fd) != 0 && status == DR_OK)
        status = DR_FAIL(DR_ERR_IO, "%s: cannot close: %s", temp.data, strerror(errno));
    if (status == DR_OK) status = dr_file_commit(temp.data, path);
    if (status != DR_OK) unlink(temp.data);
reset_buffers:
    dr_buf_reset(&header);
    dr_buf_reset(&temp);
    return status;
}
