// Gradient of causal attention over packed sequences: one kernel over query tiles for dq, one over key tiles
// for dk and dv. Each output has one block that sums it up in one order; nothing is added by two blocks. The
// keys of a shared prefix first take what its own rows give, then its sharers one after another.
#include "cuda/attention.cuh"

// delta [T, H] = Σ dout · out over a head, one warp each.
static __global__ void delta_kernel(const float *dout, const float *out, int64_t n, int32_t d, float *delta) {
    const int64_t item = dr_cuda_item() / 32;
    if (item >= n) return;
    float sum = 0.0f;
    for (int32_t e = threadIdx.x % 32; e < d; e += 32) sum = fmaf(dout[item * d + e], out[item * d + e], sum);
    sum = dr_warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[item] = sum;
}

extern "C" dr_status dr_cuda_attention_delta(const float *dout, const float *out, int64_t n, int32_t d,
                                             float *delta, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("attention_backward", n, THREADS / 32, &blocks));
    DR_CUDA_LAUNCH(delta_kernel, blocks, THREADS, 0, stream)(dout, out, n, d, delta);
    DR_CUDA_LAUNCHED("attention_backward, delta of %lld rows of %d", (long long)n, d);
    return DR_OK;
}

struct backward_arguments {
    dr_cuda_attention in;
    const float *dout, *lse, *delta;
    float *dq, *dk, *dv;
};

// A weight and the gradient of its score, from the dot products q · k and dout · v.
struct weight_pair {
    float p, ds;
};

static __device__ __forceinline__ weight_pair weight_of(const backward_arguments &c, const dr_span &span,
                                                        const query_tile &tile, int r, float qk, float dv) {
    const int64_t at = dr_head_place(tile.row(span, r), c.in.H, tile.head(r));
    weight_pair pair;
    pair.p = expf(fmaf(qk, c.in.scale, -c.lse[at]));
    pair.ds = pair.p * (dv - c.delta[at]) * c.in.scale;
    return pair;
}

// Four tiles of rows of a head, then one or two of scores.
struct backward_tiles {
    float *queries, *douts, *keys, *values, *ds, *p;
};

static __device__ __forceinline__ backward_tiles carve(float *shared, int32_t d) {
    const int pitch = dr_head_pitch(d);
    backward_tiles at;
    at.queries = shared;
    at.douts = at.queries + QUERIES * pitch;
    at.keys = at.douts + QUERIES * pitch;
    at.values = at.keys + KEYS * pitch;
    at.ds = at.values + KEYS * pitch;
    at.p = at.ds + QUERIES * SCORE_PITCH;
    return at;
}

static size_t shared_bytes(int32_t d) {
    return ((size_t)2 * (QUERIES + KEYS) * dr_head_pitch(d) + 2 * QUERIES * SCORE_PITCH) * sizeof(float);
}

template <int COLUMNS>
static __global__ void __launch_bounds__(THREADS, BLOCKS) dq_kernel(backward_arguments c) {
    DR_CUDA_SHARED(float, shared);
    const dr_cuda_attention &a = c.in;
    const int pitch = dr_head_pitch(a.d), lane = threadIdx.x % 32, own = threadIdx.x / 32 * OWN;
    const backward_tiles at = carve(shared, a.d);
    const int32_t s = dr_find_part(a.query_tiles, a.n_spans, blockIdx.x), g = blockIdx.y;
    const dr_span span = a.spans[s];
    const query_tile tile = query_tile_at(a, span, (blockIdx.x - a.query_tiles[s]) * QUERIES, g);
    const int32_t most = dr_span_keys_seen(&span, tile.first + tile.n - 1, tile.group);
    float sum[OWN][COLUMNS] = {};
    load_queries(a, a.q, a.q_stride, span, tile, at.queries);
    load_queries(a, c.dout, (int64_t)a.H * a.d, span, tile, at.douts);
    for (int32_t first = 0; first < most; first += KEYS) {
        const int32_t n = min((int32_t)KEYS, most - first);
        float qk[2][2], dv[2][2];
        __syncthreads();
        load_keys(a, a.k, span, g, first, n, at.keys);
        load_keys(a, a.v, span, g, first, n, at.values);
        __syncthreads();
        dot_tiles(at.queries, at.keys, a.d, qk);
        dot_tiles(at.douts, at.values, a.d, dv);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++) {
                const int r = dr_score_row(threadIdx.x, i), key = dr_score_key(threadIdx.x, j);
                const bool is_seen =
                    r < tile.n && first + key < dr_span_keys_seen(&span, tile.first + r, tile.group);
                at.ds[r * SCORE_PITCH + key] =
                    is_seen ? weight_of(c, span, tile, r, qk[i][j], dv[i][j]).ds : 0.0f;
            }
        __syncthreads();
        for (int j = 0; j < n; j++) {
            float key[COLUMNS];
            read_columns<COLUMNS>(at.keys + j * pitch, a.d, key);
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                float ds = at.ds[(own + i) * SCORE_PITCH + j];
#pragma unroll
                for (int x = 0; x < COLUMNS; x++) sum[i][x] = fmaf(ds, key[x], sum[i][x]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (own + i >= tile.n) continue;
        float *row = c.dq + dr_head_offset(tile.row(span, own + i), a.q_stride, tile.head(own + i), a.d);
#pragma unroll
        for (int x = 0; x < COLUMNS; x++)
            if (lane + 32 * x < a.d) row[lane + 32 * x] = sum[i][x];
    }
}

// Adds what one tile of query rows gives to dk and dv of a warp's four keys.
template <int COLUMNS>
static __device__ __forceinline__ void add_query_rows(const backward_tiles &at, int32_t n, int32_t d,
                                                      float (*dk)[COLUMNS], float (*dv)[COLUMNS]) {
    const int pitch = dr_head_pitch(d), own = threadIdx.x / 32 * OWN;
    for (int r = 0; r < n; r++) {
        float query[COLUMNS], dout[COLUMNS];
        read_columns<COLUMNS>(at.queries + r * pitch, d, query);
        read_columns<COLUMNS>(at.douts + r * pitch, d, dout);
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            float ds = at.ds[r * SCORE_PITCH + own + i], p = at.p[r * SCORE_PITCH + own + i];
#pragma unroll
            for (int x = 0; x < COLUMNS; x++) {
                dk[i][x] = fmaf(ds, query[x], dk[i][x]);
                dv[i][x] = fmaf(p, dout[x], dv[i][x]);
            }
        }
    }
}

// Block: keys first … first + n - 1 of a span's own.
template <int COLUMNS>
static __global__ void __launch_bounds__(THREADS, BLOCKS) dkv_kernel(backward_arguments c) {
    DR_CUDA_SHARED(float, shared);
    const dr_cuda_attention &a = c.in;
    const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * OWN;
    const backward_tiles at = carve(shared, a.d);
    const int32_t s = dr_find_part(a.key_tiles, a.n_spans, blockIdx.x), g = blockIdx.y, group = a.H / a.G;
    const dr_span span = a.spans[s];
    const int32_t first = (int32_t)(blockIdx.x - a.key_tiles[s]) * KEYS,
                  n = min((int32_t)KEYS, span.n_rows - first);
    float dk[OWN][COLUMNS] = {}, dv[OWN][COLUMNS] = {};
    load_keys(a, a.k, span, g, span.n_before + first, n, at.keys);
    load_keys(a, a.v, span, g, span.n_before + first, n, at.values);
    for (int32_t viewer = s; viewer <= s + span.n_sharers; viewer++) {
        const dr_span by = a.spans[viewer];
        // Own rows begin to see these keys at the first of them; those of a sharer see them all.
        for (int64_t flat = viewer == s ? (int64_t)first * group : 0; flat < (int64_t)by.n_rows * group;
             flat += QUERIES) {
            const query_tile tile = query_tile_at(a, by, flat, g);
            float qk[2][2], dot[2][2];
            __syncthreads();
            load_queries(a, a.q, a.q_stride, by, tile, at.queries);
            load_queries(a, c.dout, (int64_t)a.H * a.d, by, tile, at.douts);
            __syncthreads();
            dot_tiles(at.queries, at.keys, a.d, qk);
            dot_tiles(at.douts, at.values, a.d, dot);
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 2; j++) {
                    const int r = dr_score_row(threadIdx.x, i), key = dr_score_key(threadIdx.x, j);
                    const bool is_seen =
                        r < tile.n && key < n && (viewer != s || (flat + r) / group >= first + key);
                    weight_pair pair = {0.0f, 0.0f};
                    if (is_seen) pair = weight_of(c, by, tile, r, qk[i][j], dot[i][j]);
                    at.ds[r * SCORE_PITCH + key] = pair.ds;
                    at.p[r * SCORE_PITCH + key] = pair.p;
                }
            __syncthreads();
            add_query_rows<COLUMNS>(at, tile.n, a.d, dk, dv);
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (own + i >= n) continue;
        const int64_t row = dr_head_offset(span.row + first + own + i, a.kv_stride, g, a.d);
#pragma unroll
        for (int x = 0; x < COLUMNS; x++) {
            if (lane + 32 * x >= a.d) continue;
            c.dk[row + lane + 32 * x] = dk[i][x];
            c.dv[row + lane + 32 * x] = dv[i][x];
        }
    }
}

template <int COLUMNS>
static dr_status launch_backward(const backward_arguments &c, unsigned int query_blocks,
                                 unsigned int key_blocks, dr_cuda_stream stream) {
    const size_t bytes = shared_bytes(c.in.d);
    DR_TRY(dr_cuda_allow_shared("attention_backward", dq_kernel<COLUMNS>, bytes, c.in.d));
    DR_TRY(dr_cuda_allow_shared("attention_backward", dkv_kernel<COLUMNS>, bytes, c.in.d));
    DR_CUDA_LAUNCH(dq_kernel<COLUMNS>, dim3(query_blocks, (unsigned int)c.in.G), THREADS, bytes, stream)(c);
    DR_CUDA_LAUNCHED("attention_backward, dq of %d sequences, %d/%d heads of %d", c.in.n_spans, c.in.H,
                     c.in.G, c.in.d);
    DR_CUDA_LAUNCH(dkv_kernel<COLUMNS>, dim3(key_blocks, (unsigned int)c.in.G), THREADS, bytes, stream)(c);
    DR_CUDA_LAUNCHED("attention_backward, dk and dv of %d sequences, %d/%d heads of %d", c.in.n_spans, c.in.H,
                     c.in.G, c.in.d);
    return DR_OK;
}

extern "C" dr_status dr_cuda_attention_backward(const dr_cuda_attention *attention, const float *dout,
                                                const float *lse, const float *delta, float *dq, float *dk,
                                                float *dv, dr_cuda_stream stream) {
    const dr_cuda_attention &a = *attention;
    unsigned int query_blocks = 0, key_blocks = 0;
    if (a.n_query_tiles == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("attention_backward", a.n_query_tiles, 1, &query_blocks));
    DR_TRY(dr_cuda_grid("attention_backward", a.n_key_tiles, 1, &key_blocks));
    backward_arguments c;
    c.in = a;
    c.dout = dout;
    c.lse = lse;
    c.delta = delta;
    c.dq = dq;
    c.dk = dk;
    c.dv = dv;
    switch (dr_head_columns(a.d)) {
    case 2:
        return launch_backward<2>(c, query_blocks, key_blocks, stream);
    case 4:
        return launch_backward<4>(c, query_blocks, key_blocks, stream);
    default:
        return launch_backward<8>(c, query_blocks, key_blocks, stream);
    }
}
