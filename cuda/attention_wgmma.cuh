// What the attention kernels with wgmma share. A block is three warpgroups: the first has tensor copies bring
// tiles, the other two own 64 rows of a result each and multiply. Tiles pass between them in stages, each with
// a barrier for "full" and one for "empty".
#ifndef DR_CUDA_ATTENTION_WGMMA_CUH
#define DR_CUDA_ATTENTION_WGMMA_CUH

#include "cuda/tensor_map.cuh"
#include "cuda/wgmma.cuh"

enum {
    ROWS = DR_WGMMA_CONSUMERS * DR_WGMMA_ROWS, // of a block's tile of queries
    KEYS = DR_WGMMA_KEYS,
    THREADS = (DR_WGMMA_CONSUMERS + 1) * DR_WGMMA_THREADS,
    CONSUMER_WARPS = DR_WGMMA_CONSUMERS * DR_WGMMA_THREADS / 32,
    BARRIER_BYTES = 8,
    FEWER = 24, // registers: 128 · 24 + 256 · 240 is what a kernel starts with
    MORE = 240
};

DR_CUDA_SHARED(unsigned char, dr_shared);

// Address of the block's shared memory, at a multiple of DR_WGMMA_PATTERN: DR_WGMMA_PATTERN bytes more are
// asked for than used.
static __device__ __forceinline__ uint32_t shared_base() {
    return (dr_shared_address(dr_shared) + DR_WGMMA_PATTERN - 1) / DR_WGMMA_PATTERN * DR_WGMMA_PATTERN;
}

// The same place as a pointer.
static __device__ __forceinline__ unsigned char *shared_at(uint32_t address) {
    return dr_shared + (address - dr_shared_address(dr_shared));
}

// Which of the multiplying warpgroups this thread is in, and its number there. The shuffle tells the compiler
// that a warp has one answer, so that descriptors are computed once for the warp.
static __device__ __forceinline__ int own_group() {
    return __shfl_sync(0xffffffffu, threadIdx.x / DR_WGMMA_THREADS, 0) - 1;
}

static __device__ __forceinline__ int own_thread() {
    return threadIdx.x % DR_WGMMA_THREADS;
}

// A warp has read a tile; when all have, it may be written again.
static __device__ __forceinline__ void release(uint32_t barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) dr_barrier_arrive(barrier);
}

// The panels of a tile of `rows` rows; the barrier expects their bytes elsewhere. One thread.
template <int D>
static __device__ __forceinline__ void copy_panels(const CUtensorMap *map, uint32_t to, int rows,
                                                   uint32_t barrier, int32_t head, int32_t row) {
#pragma unroll
    for (int p = 0; p < D / DR_WGMMA_PANEL; p++)
        dr_tensor_copy(to + p * rows * DR_WGMMA_PITCH, map, barrier, p * DR_WGMMA_PANEL, head, row);
}

// ---- blocks that own queries and go through keys: forward, and dq ----

enum key_barrier { KEYS_FULL, VALUES_FULL, KEYS_EMPTY, VALUES_EMPTY, KEY_BARRIERS };

// Shared memory: QUERY_TILES tiles of ROWS rows, stages of keys and values, barriers, one more behind them.
template <int D, int QUERY_TILES> struct key_stages {
    enum {
        QUERY_BYTES = ROWS * D * 2,
        KEY_BYTES = KEYS * D * 2,
        BARRIERS_AT = QUERY_TILES * QUERY_BYTES + DR_WGMMA_STAGES * 2 * KEY_BYTES,
        BYTES = BARRIERS_AT + (KEY_BARRIERS * DR_WGMMA_STAGES + 1) * BARRIER_BYTES + DR_WGMMA_PATTERN
    };
    uint32_t base;

    __device__ __forceinline__ key_stages() : base(shared_base()) {}
    __device__ __forceinline__ uint32_t queries(int tile) const {
        return base + tile * QUERY_BYTES;
    }
    __device__ __forceinline__ uint32_t keys(int stage) const {
        return base + QUERY_TILES * QUERY_BYTES + stage * 2 * KEY_BYTES;
    }
    __device__ __forceinline__ uint32_t values(int stage) const {
        return keys(stage) + KEY_BYTES;
    }
    __device__ __forceinline__ uint32_t barrier(key_barrier kind, int stage) const {
        return base + BARRIERS_AT + (kind * DR_WGMMA_STAGES + stage) * BARRIER_BYTES;
    }
    __device__ __forceinline__ uint32_t queries_full() const {
        return base + BARRIERS_AT + KEY_BARRIERS * DR_WGMMA_STAGES * BARRIER_BYTES;
    }
};

// All threads; __syncthreads included.
template <int D, int QUERY_TILES>
static __device__ __forceinline__ void init_barriers(const key_stages<D, QUERY_TILES> &shared) {
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < DR_WGMMA_STAGES; stage++)
            for (int kind = 0; kind < KEY_BARRIERS; kind++)
                dr_barrier_init(shared.barrier((key_barrier)kind, stage),
                                kind < KEYS_EMPTY ? 1 : CONSUMER_WARPS);
        dr_barrier_init(shared.queries_full(), 1);
        dr_barrier_publish();
    }
    __syncthreads();
}

// Brings the keys and values of all steps. One thread.
template <int D, int QUERY_TILES>
static __device__ __forceinline__ void copy_keys(const key_stages<D, QUERY_TILES> &shared,
                                                 const CUtensorMap *keys, const CUtensorMap *values,
                                                 const dr_span &span, int32_t g, int32_t n_steps) {
    for (int32_t j = 0; j < n_steps; j++) {
        const int stage = dr_stage_of(j);
        const uint32_t keys_full = shared.barrier(KEYS_FULL, stage),
                       values_full = shared.barrier(VALUES_FULL, stage);
        const int32_t row = (int32_t)dr_step_row(&span, j, KEYS);
        dr_barrier_wait(shared.barrier(KEYS_EMPTY, stage), dr_stage_parity(j) ^ 1);
        dr_barrier_expect(keys_full, KEYS * D * 2);
        copy_panels<D>(keys, shared.keys(stage), KEYS, keys_full, g, row);
        dr_barrier_wait(shared.barrier(VALUES_EMPTY, stage), dr_stage_parity(j) ^ 1);
        dr_barrier_expect(values_full, KEYS * D * 2);
        copy_panels<D>(values, shared.values(stage), KEYS, values_full, g, row);
    }
}

// One of a thread's two rows.
struct row_place {
    int64_t row;  // row · H + head
    int32_t seen; // keys, 0: there is no such row
};

static __device__ __forceinline__ row_place place_of(const dr_cuda_attention &a, const dr_query_tile &tile,
                                                     int32_t g, int r) {
    const int32_t group = a.H / a.G;
    row_place at = {0, 0};
    if (dr_tile_query(r, group) < tile.n_queries) {
        const dr_query query = a.queries[tile.query + dr_tile_query(r, group)];
        at.row = dr_head_place(query.row, a.H, dr_tile_head(r, group, g));
        at.seen = query.seen;
    }
    return at;
}

// ---- products, behind the warpgroup's back ----

// out [64, N] = rows first … first + 63 of a tile of left_rows times all N rows of another, along D columns.
template <int D, int N>
static __device__ __forceinline__ void start_dots(uint32_t left, int left_rows, int first, uint32_t right,
                                                  float (&out)[N / 2]) {
    dr_wgmma_begin();
#pragma unroll
    for (int k = 0; k < D / DR_WGMMA_DEPTH; k++)
        dr_wgmma(out, dr_wgmma_along_columns(left, left_rows, first, k),
                 dr_wgmma_along_columns(right, N, 0, k), k > 0);
    dr_wgmma_commit();
}

// sum [64, D] += weights [64, K], in pairs, times the K rows of a tile.
template <int D, int K>
static __device__ __forceinline__ void start_weighing(const uint32_t (&weights)[K / 4], uint32_t tile,
                                                      float (&sum)[D / 2]) {
    dr_wgmma_begin();
#pragma unroll
    for (int k = 0; k < K / DR_WGMMA_DEPTH; k++)
        dr_wgmma_weigh(sum, weights + 4 * k, dr_wgmma_along_rows(tile, K, k));
    dr_wgmma_commit();
}

// Sums as a left operand of the next product.
template <int N>
static __device__ __forceinline__ void round_pairs(const float (&values)[N], uint32_t (&pairs)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) pairs[i] = dr_pack_bf16(values[2 * i], values[2 * i + 1]);
}

#endif
