// What the attention kernels share: tiles of 32 flat query rows and 32 keys in shared memory, and the
// products of two such tiles. A block has eight warps; a warp owns four rows of what is summed up in
// registers.
#ifndef DR_CUDA_ATTENTION_CUH
#define DR_CUDA_ATTENTION_CUH

#include <cuda_bf16.h>

#include "cuda/launch.cuh"

enum {
    QUERIES = DR_CUDA_QUERIES,
    KEYS = DR_CUDA_KEYS,
    THREADS = DR_CUDA_ATTENTION_THREADS,
    OWN = DR_CUDA_ATTENTION_OWN,
    SCORE_PITCH = KEYS + 1,
    BLOCKS = 2 // on a multiprocessor at a time: the compiler may take the registers that this leaves
};

// Flat rows first … first + n - 1 of a span, of key head g.
struct query_tile {
    int64_t first;
    int32_t n, group, g;

    __device__ int64_t row(const dr_span &span, int r) const {
        return dr_flat_row(&span, first + r, group);
    }
    __device__ int32_t head(int r) const {
        return dr_flat_head(first + r, group, g);
    }
};

static __device__ __forceinline__ query_tile query_tile_at(const dr_cuda_attention &a, const dr_span &span,
                                                           int64_t first, int32_t g) {
    query_tile tile;
    tile.first = first;
    tile.group = a.H / a.G;
    tile.g = g;
    tile.n = dr_flat_count(&span, first, tile.group);
    return tile;
}

// Rows of q (or of dout) into shared memory, 0 behind the tile's last one. A warp copies a row.
static __device__ __forceinline__ void load_queries(const dr_cuda_attention &a, const float *from,
                                                    int64_t stride, const dr_span &span,
                                                    const query_tile &tile, float *to) {
    const int pitch = dr_head_pitch(a.d);
    for (int r = threadIdx.x / 32; r < QUERIES; r += THREADS / 32) {
        const bool is_there = r < tile.n;
        const float *row =
            from + (is_there ? dr_head_offset(tile.row(span, r), stride, tile.head(r), a.d) : 0);
        for (int e = threadIdx.x % 32; e < a.d; e += 32) to[r * pitch + e] = is_there ? row[e] : 0.0f;
    }
}

// Keys (or values) at positions first … first + n - 1 of what the span sees, 0 behind them.
static __device__ __forceinline__ void load_keys(const dr_cuda_attention &a, const void *from,
                                                 const dr_span &span, int32_t g, int32_t first, int32_t n,
                                                 float *to) {
    const int pitch = dr_head_pitch(a.d);
    for (int j = threadIdx.x / 32; j < KEYS; j += THREADS / 32) {
        int64_t offset = 0;
        if (j < n && a.pages)
            offset = dr_cache_offset(a.pages + span.first_page, first + j, a.G, g, a.d);
        else if (j < n)
            offset = dr_head_offset(dr_span_key_row(&span, first + j), a.kv_stride, g, a.d);
        for (int e = threadIdx.x % 32; e < a.d; e += 32) {
            float value = 0.0f;
            if (j < n)
                value = a.is_bf16 ? __bfloat162float(((const __nv_bfloat16 *)from)[offset + e])
                                  : ((const float *)from)[offset + e];
            to[j * pitch + e] = value;
        }
    }
}

// Dot products of this thread's two rows and two keys, each one chain over the head's elements.
static __device__ __forceinline__ void dot_tiles(const float *rows, const float *keys, int d,
                                                 float out[2][2]) {
    const int pitch = dr_head_pitch(d);
    const float *row[2], *key[2];
    for (int i = 0; i < 2; i++) {
        row[i] = rows + dr_score_row(threadIdx.x, i) * pitch;
        key[i] = keys + dr_score_key(threadIdx.x, i) * pitch;
        out[i][0] = out[i][1] = 0.0f;
    }
    for (int e = 0; e < d; e++)
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++) out[i][j] = fmaf(row[i][e], key[j][e], out[i][j]);
}

// This lane's columns of a row in shared memory, 0 behind the head's last one.
template <int COLUMNS>
static __device__ __forceinline__ void read_columns(const float *row, int d, float out[COLUMNS]) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        int column = threadIdx.x % 32 + 32 * c;
        out[c] = column < d ? row[column] : 0.0f;
    }
}

#endif
