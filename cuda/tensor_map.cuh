// Tensor maps: what the copy engine of compute capability 9.0 goes by. They are made on the host, a call of
// the driver each that touches no device, and handed to a kernel by value.
#ifndef DR_CUDA_TENSOR_MAP_CUH
#define DR_CUDA_TENSOR_MAP_CUH

#include <cuda.h>

#include "cuda/launch.cuh"
#include "cuda/wgmma_index.h"

typedef decltype(&cuTensorMapEncodeTiled) dr_tensor_map_encode;

// The driver's function, found at run time: the program links no driver.
static inline dr_status dr_tensor_map_encoder(dr_tensor_map_encode *out_encode) {
    void *found = NULL;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                         cudaEnableDefault, &result);
#else
    cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    if (error != cudaSuccess) cudaGetLastError(); // clears it
    DR_CHECK(error == cudaSuccess && result == cudaDriverEntryPointSuccess && found, DR_ERR_UNSUPPORTED,
             "cuda: a driver with tensor maps expected: %s", cudaGetErrorString(error));
    *out_encode = (dr_tensor_map_encode)found;
    return DR_OK;
}

// The map of dense bf16 rows [T, n_heads, d], at a multiple of 16 bytes, whose boxes are 64 columns of
// box_heads heads of box_rows rows, at most 256 each: in shared memory one panel of box_rows · box_heads rows.
static inline dr_status dr_tensor_map_of(const char *op, const void *rows, int64_t T, int32_t n_heads,
                                         int32_t d, int32_t box_heads, int32_t box_rows,
                                         CUtensorMap *out_map) {
    const cuuint64_t sizes[] = {(cuuint64_t)d, (cuuint64_t)n_heads, (cuuint64_t)T},
                     strides[] = {(cuuint64_t)d * sizeof(uint16_t),
                                  (cuuint64_t)n_heads * (cuuint64_t)d * sizeof(uint16_t)};
    const cuuint32_t box[] = {DR_WGMMA_PANEL, (cuuint32_t)box_heads, (cuuint32_t)box_rows},
                     steps[] = {1, 1, 1};
    dr_tensor_map_encode encode = NULL;
    DR_TRY(dr_tensor_map_encoder(&encode));
    CUresult result = encode(out_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void *)rows, sizes, strides, box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    DR_CHECK(result == CUDA_SUCCESS, DR_ERR_INTERNAL,
             "cuda %s: no tensor map of %lld rows of %d heads of %d, boxes of %d heads of %d rows: error %d",
             op, (long long)T, n_heads, d, box_heads, box_rows, (int)result);
    return DR_OK;
}

#endif
