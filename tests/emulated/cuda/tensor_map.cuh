// cuda/tensor_map.cuh for an emulated device.
#ifndef DR_CUDA_TENSOR_MAP_CUH
#define DR_CUDA_TENSOR_MAP_CUH

#include <cuda.h>

#include "cuda/launch.cuh"
#include "cuda/wgmma_index.h"

// Refused as the driver refuses it: an address or a stride that is no multiple of 16 bytes, a box of more
// than 256.
static inline dr_status dr_tensor_map_of(const char *op, const void *rows, int64_t T, int32_t n_heads,
                                         int32_t d, int32_t box_heads, int32_t box_rows,
                                         CUtensorMap *out_map) {
    const bool is_fine = (uintptr_t)rows % 16 == 0 && d * sizeof(uint16_t) % 16 == 0 && T > 0 &&
                         n_heads > 0 && box_heads > 0 && box_heads <= 256 && box_rows > 0 && box_rows <= 256;
    *out_map = CUtensorMap();
    DR_CHECK(is_fine, DR_ERR_INTERNAL, "cuda %s: no tensor map of %lld rows of %d heads of %d", op,
             (long long)T, n_heads, d);
    *out_map = {(const uint16_t *)rows, T, n_heads, d, box_heads, box_rows};
    return DR_OK;
}

#endif
