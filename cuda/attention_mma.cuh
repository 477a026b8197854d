// What the bf16 attention kernels share: tiles of 64 rows of a head in shared memory, swizzled, and their
// products on the tensor cores. A block has four warps; a warp owns 16 rows of what is summed up in
// registers. D is the head size that the kernel is made for, 64 or 128; smaller heads are filled up with
// zeros.
#ifndef DR_CUDA_ATTENTION_MMA_CUH
#define DR_CUDA_ATTENTION_MMA_CUH

#include "cuda/launch.cuh"
#include "cuda/tensor_core.cuh"

enum {
    ROWS = DR_CUDA_MMA_ROWS,
    KEYS = DR_CUDA_MMA_KEYS,
    THREADS = DR_CUDA_MMA_THREADS,
    STRIP = DR_CUDA_MMA_STRIP,
    BLOCKS = 2 // on a multiprocessor at a time: the compiler may take the registers that this leaves
};

// The 16 bytes that are `column` of a row.
template <int D>
static __device__ __forceinline__ __nv_bfloat16 *at_tile(__nv_bfloat16 *tile, int row, int column) {
    return tile + dr_swizzled(row, column, D / 8) * 8;
}

template <int D>
static __device__ __forceinline__ const __nv_bfloat16 *at_tile(const __nv_bfloat16 *tile, int row,
                                                               int column) {
    return tile + dr_swizzled(row, column, D / 8) * 8;
}

// Keys and values are bf16 rows: the cache's, or [T, G, d] of a packed batch.
static __device__ __forceinline__ int64_t key_offset(const dr_cuda_attention &a, const dr_span &span,
                                                     int32_t g, int32_t position) {
    return a.pages ? dr_cache_offset(a.pages + span.first_page, position, a.G, g, a.d)
                   : dr_head_offset(dr_span_key_row(&span, position), (int64_t)a.G * a.d, g, a.d);
}

// Rows at positions first … first + n - 1 of what the span sees, 0 behind them, of each of N: a.k, a.v. The
// copies are on their way when this returns.
template <int D, int N>
static __device__ __forceinline__ void
load_positions(const dr_cuda_attention &a, const dr_span &span, int32_t g, int32_t first, int32_t n,
               const void *const (&from)[N], __nv_bfloat16 *const (&to)[N]) {
    const int column = dr_copy_column(threadIdx.x, D / 8);
    const bool is_column = column * 8 < a.d;
#pragma unroll
    for (int i = 0; i < dr_copies_of(KEYS, D / 8); i++) {
        const int j = dr_copy_row(threadIdx.x, i, D / 8);
        const bool is_there = is_column && j < n;
        const int64_t offset = is_there ? key_offset(a, span, g, first + j) + column * 8 : 0;
#pragma unroll
        for (int side = 0; side < N; side++)
            dr_copy_async_16(at_tile<D>(to[side], j, column), (const __nv_bfloat16 *)from[side] + offset,
                             is_there);
    }
}

template <int D>
static __device__ __forceinline__ void load_keys(const dr_cuda_attention &a, const dr_span &span, int32_t g,
                                                 int32_t first, int32_t n, __nv_bfloat16 *keys,
                                                 __nv_bfloat16 *values) {
    load_positions<D, 2>(a, span, g, first, n, {a.k, a.v}, {keys, values});
}

// out [16, 8 N] += rows a_row … of a times rows b_row … of b, over the head.
template <int D, int N>
static __device__ __forceinline__ void dot_rows(const __nv_bfloat16 *a, int a_row, const __nv_bfloat16 *b,
                                                int b_row, float (&out)[N][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t left[4];
        dr_ldmatrix(left, at_tile<D>(a, a_row + dr_matrix_row(lane), 2 * k + dr_matrix_piece(lane)));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t right[4];
            dr_ldmatrix(
                right, at_tile<D>(b, b_row + 8 * n + dr_matrices_row(lane), 2 * k + dr_matrices_piece(lane)));
            dr_mma(out[n], left, right[0], right[1]);
            dr_mma(out[n + 1], left, right[2], right[3]);
        }
    }
}

// out [16, 8 N] += weights [16, 16 K], rounded to bf16, times rows b_row … of b, its columns from 8 piece on.
template <int D, int K, int N>
static __device__ __forceinline__ void weigh_rows(const float (&weights)[2 * K][4], const __nv_bfloat16 *b,
                                                  int b_row, int piece, float (&out)[N][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < K; k++) {
        const float(&low)[4] = weights[2 * k], (&high)[4] = weights[2 * k + 1];
        const uint32_t left[4] = {dr_pack_bf16(low[0], low[1]), dr_pack_bf16(low[2], low[3]),
                                  dr_pack_bf16(high[0], high[1]), dr_pack_bf16(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t right[4];
            dr_ldmatrix_transposed(right, at_tile<D>(b, b_row + 16 * k + dr_matrix_row(lane),
                                                     piece + n + dr_matrix_piece(lane)));
            dr_mma(out[n], left, right[0], right[1]);
            dr_mma(out[n + 1], left, right[2], right[3]);
        }
    }
}

#endif
