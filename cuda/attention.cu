// Attention over packed sequences, causal or in both directions, and over the paged cache: one kernel, so
// that a row has the same bits in a packed pass and in a cached one. Keys go by in tiles of 32 positions from
// position 0 of what a row sees; the softmax is kept up to date tile by tile, and a row skips keys that it
// does not see instead of weighing them with 0.
#include "cuda/attention.cuh"

// The running softmax of a warp's four rows: maximum, sum of exponentials, and this lane's columns of the
// weighted values.
template <int COLUMNS> struct row_state {
    float top[OWN], total[OWN], sum[OWN][COLUMNS];
    int32_t limit[OWN]; // keys that the row sees, 0 for a row that is not there
};

// Scores of one row and tile, one a lane, become weights; what was summed so far shrinks to the new maximum.
template <int COLUMNS>
static __device__ __forceinline__ void weigh_row(row_state<COLUMNS> &state, int i, int visible,
                                                 float *scores) {
    const int lane = threadIdx.x % 32;
    float score = lane < visible ? scores[lane] : -INFINITY;
    float top = fmaxf(state.top[i], dr_warp_max(score));
    float weight = lane < visible ? expf(__fsub_rn(score, top)) : 0.0f;
    float shrink = expf(__fsub_rn(state.top[i], top)); // 0 for the first tile
    state.total[i] = fmaf(state.total[i], shrink, dr_warp_sum(weight));
    state.top[i] = top;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) state.sum[i][c] = __fmul_rn(state.sum[i][c], shrink);
    scores[lane] = weight;
}

template <int COLUMNS>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    forward_kernel(dr_cuda_attention a, float *out, float *lse) {
    DR_CUDA_SHARED(float, shared);
    const int pitch = dr_head_pitch(a.d), lane = threadIdx.x % 32, own = threadIdx.x / 32 * OWN;
    float *queries = shared, *keys = queries + QUERIES * pitch, *scores = keys + KEYS * pitch;
    const int32_t s = dr_find_part(a.query_tiles, a.n_spans, blockIdx.x), g = blockIdx.y;
    const dr_span span = a.spans[s];
    const query_tile tile = query_tile_at(a, span, (blockIdx.x - a.query_tiles[s]) * QUERIES, g);
    const int32_t most = dr_span_keys(&span, tile.first + tile.n - 1, tile.group, a.both_ways);
    row_state<COLUMNS> state;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        state.limit[i] =
            own + i < tile.n ? dr_span_keys(&span, tile.first + own + i, tile.group, a.both_ways) : 0;
        state.top[i] = -INFINITY;
        state.total[i] = 0.0f;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) state.sum[i][c] = 0.0f;
    }
    load_queries(a, a.q, a.q_stride, span, tile, queries);
    for (int32_t first = 0; first < most; first += KEYS) {
        const int32_t n = min((int32_t)KEYS, most - first);
        float dots[2][2];
        __syncthreads();
        load_keys(a, a.k, span, g, first, n, keys);
        __syncthreads();
        dot_tiles(queries, keys, a.d, dots);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++)
                scores[dr_score_row(threadIdx.x, i) * SCORE_PITCH + dr_score_key(threadIdx.x, j)] =
                    __fmul_rn(dots[i][j], a.scale);
        __syncthreads();
        load_keys(a, a.v, span, g, first, n, keys); // values take the keys' place
#pragma unroll
        for (int i = 0; i < OWN; i++)
            if (state.limit[i] > first)
                weigh_row(state, i, min(n, state.limit[i] - first), scores + (own + i) * SCORE_PITCH);
        __syncthreads();
        for (int j = 0; j < n; j++) {
            float value[COLUMNS];
            read_columns<COLUMNS>(keys + j * pitch, a.d, value);
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                if (first + j >= state.limit[i]) continue;
                float weight = scores[(own + i) * SCORE_PITCH + j];
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) state.sum[i][c] = fmaf(weight, value[c], state.sum[i][c]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (own + i >= tile.n) continue;
        int64_t at = dr_head_place(tile.row(span, own + i), a.H, tile.head(own + i));
        float inv = 1.0f / state.total[i];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            if (lane + 32 * c < a.d) out[at * a.d + lane + 32 * c] = __fmul_rn(state.sum[i][c], inv);
        if (lse && lane == 0) lse[at] = state.top[i] + logf(state.total[i]);
    }
}

template <int COLUMNS>
static dr_status launch_forward(const char *op, const dr_cuda_attention &a, float *out, float *lse,
                                dr_cuda_stream stream) {
    unsigned int blocks = 0;
    const size_t bytes =
        ((size_t)(QUERIES + KEYS) * dr_head_pitch(a.d) + QUERIES * SCORE_PITCH) * sizeof(float);
    DR_TRY(dr_cuda_grid(op, a.n_query_tiles, 1, &blocks));
    DR_TRY(dr_cuda_allow_shared(op, forward_kernel<COLUMNS>, bytes, a.d));
    DR_CUDA_LAUNCH(forward_kernel<COLUMNS>, dim3(blocks, (unsigned int)a.G), THREADS, bytes, stream)
    (a, out, lse);
    DR_CUDA_LAUNCHED("%s of %d sequences, %d/%d heads of %d, %lld tiles", op, a.n_spans, a.H, a.G, a.d,
                     (long long)a.n_query_tiles);
    return DR_OK;
}

extern "C" dr_status dr_cuda_attention_forward(const char *op, const dr_cuda_attention *attention, float *out,
                                               float *lse, dr_cuda_stream stream) {
    if (attention->n_query_tiles == 0) return DR_OK;
    switch (dr_head_columns(attention->d)) {
    case 2:
        return launch_forward<2>(op, *attention, out, lse, stream);
    case 4:
        return launch_forward<4>(op, *attention, out, lse, stream);
    default:
        return launch_forward<8>(op, *attention, out, lse, stream);
    }
}

static __device__ __forceinline__ void put(float value, float *to) {
    *to = value;
}

static __device__ __forceinline__ void put(float value, __nv_bfloat16 *to) {
    *to = __float2bfloat16_rn(value);
}

// One block a new row.
template <typename ELEMENT>
static __global__ void __launch_bounds__(THREADS)
    kv_store_kernel(dr_cuda_attention a, ELEMENT *k_cache, ELEMENT *v_cache) {
    const float *k = (const float *)a.k, *v = (const float *)a.v;
    const int32_t s = dr_find_part(a.rows, a.n_spans, blockIdx.x);
    const dr_span span = a.spans[s];
    const dr_store_place place =
        dr_store_place_of(&span, a.pages, blockIdx.x - a.rows[s], a.kv_stride, a.G, a.d);
    for (int32_t e = threadIdx.x; e < a.G * a.d; e += THREADS) {
        put(k[place.from + e], k_cache + place.to + e);
        put(v[place.from + e], v_cache + place.to + e);
    }
}

extern "C" dr_status dr_cuda_kv_store(const dr_cuda_attention *attention, void *k_cache, void *v_cache,
                                      dr_cuda_stream stream) {
    const dr_cuda_attention &a = *attention;
    unsigned int blocks = 0;
    if (a.n_rows == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("kv_store", a.n_rows, 1, &blocks));
    if (a.is_bf16) DR_CUDA_LAUNCH(kv_store_kernel<__nv_bfloat16>, blocks, THREADS, 0, stream)
    (a, (__nv_bfloat16 *)k_cache, (__nv_bfloat16 *)v_cache);
    else DR_CUDA_LAUNCH(kv_store_kernel<float>, blocks, THREADS, 0, stream)(a, (float *)k_cache,
                                                                            (float *)v_cache);
    DR_CUDA_LAUNCHED("kv_store of %lld rows, %d heads of %d", (long long)a.n_rows, a.G, a.d);
    return DR_OK;
}

static __global__ void __launch_bounds__(THREADS)
    kv_round_kernel(float *k, float *v, int64_t stride, int64_t n, int64_t width) {
    const int64_t i = dr_cuda_item(), at = dr_strided_at(i, width, stride);
    if (i >= n) return;
    k[at] = __bfloat162float(__float2bfloat16_rn(k[at]));
    v[at] = __bfloat162float(__float2bfloat16_rn(v[at]));
}

extern "C" dr_status dr_cuda_kv_round(float *k, float *v, int64_t stride, int64_t T, int64_t width,
                                      dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("kv_round", T * width, THREADS, &blocks));
    DR_CUDA_LAUNCH(kv_round_kernel, blocks, THREADS, 0, stream)(k, v, stride, T * width, width);
    DR_CUDA_LAUNCHED("kv_round of %lld rows of %lld", (long long)T, (long long)width);
    return DR_OK;
}
