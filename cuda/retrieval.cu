// The retrieval model's kernels. A block has a request, or a row, to itself and its sums have one order.
#include "cuda/launch.cuh"

#include <math.h>

enum { THREADS = 256, TOP_THREADS = 512 };

// ---- fusion ----

// Column d of Σ_j m[i, j] x[j] for one i, one chain.
static __device__ __forceinline__ float column_product(const float *m, int64_t n, const float *x,
                                                       int64_t stride) {
    float sum = 0.0f;
    for (int64_t j = 0; j < n; j++) sum = fmaf(m[j], x[j * stride], sum);
    return sum;
}

// Real and imaginary part of (re, im) · (wr, wi).
static __device__ __forceinline__ void complex_product(float re, float im, float wr, float wi, float *out_re,
                                                       float *out_im) {
    *out_re = fmaf(re, wr, -__fmul_rn(im, wi));
    *out_im = fmaf(re, wi, __fmul_rn(im, wr));
}

// One thread a column: the transforms mix positions only.
static __device__ void filter_column(const dr_fusion &f, int64_t q, int64_t d) {
    const int64_t L = f.L, D = f.D, K = dr_frequencies(L);
    float product[2][2 * (DR_FUSION_POSITIONS / 2 + 1)]; // of both filters
    for (int64_t k = 0; k < 2 * K; k++)
        for (int i = 0; i < 2; i++)
            f.spectra[i][dr_spectrum_at(q, k, L, d, D)] =
                column_product(f.dft + k * L, L, f.x[i] + dr_position_at(q, 0, L, d, D), D);
    for (int64_t k = 0; k < K; k++) {
        const int64_t real = dr_spectrum_at(q, k, L, d, D), imaginary = dr_spectrum_at(q, K + k, L, d, D);
        const float re = f.spectra[0][real], im = f.spectra[0][imaginary];
        const float *w = f.filter + dr_filter_at(k, d, D);
        complex_product(re, im, w[0], w[1], &product[0][k], &product[0][K + k]);
        complex_product(f.spectra[1][real], f.spectra[1][imaginary], re, im, &product[1][k],
                        &product[1][K + k]);
    }
    for (int64_t l = 0; l < L; l++)
        for (int i = 0; i < 2; i++)
            f.filtered[i][dr_position_at(q, l, L, d, D)] =
                column_product(f.inverse + l * 2 * K, 2 * K, product[i], 1);
}

static __global__ void __launch_bounds__(THREADS) fusion_kernel(dr_fusion f) {
    const int64_t q = blockIdx.x, d = threadIdx.x;
    const bool has_column = d < f.D;
    if (has_column) filter_column(f, q, d);
    for (int64_t l = 0; l < f.L; l++) { // every thread takes part in the sums
        const int64_t row = q * f.L + l, at = dr_position_at(q, l, f.L, d, f.D);
        float value[2] = {0.0f, 0.0f}, open[2];
        for (int i = 0; i < 2; i++) {
            if (has_column) value[i] = f.filtered[i][at];
            const float part = has_column ? __fmul_rn(value[i], f.gate[i][d]) : 0.0f;
            const float sum = __fadd_rn(dr_block_sum<THREADS>(part), f.bias[i][0]);
            open[i] = 1.0f / (1.0f + expf(-sum));
            if (d == 0) f.openness[i][row] = open[i];
        }
        if (has_column)
            f.out[at] = fmaf(2.0f, fmaf(value[0], open[0], __fmul_rn(value[1], open[1])),
                             f.positions[l * f.D + d]);
    }
}

extern "C" dr_status dr_cuda_fusion(const dr_fusion *fusion, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (fusion->B == 0) return DR_OK;
    DR_CHECK(fusion->L <= DR_FUSION_POSITIONS && fusion->D <= THREADS, DR_ERR_RANGE,
             "cuda fusion of %lld positions and %lld columns, at most %d and %d", (long long)fusion->L,
             (long long)fusion->D, DR_FUSION_POSITIONS, THREADS);
    DR_TRY(dr_cuda_grid("fusion_forward", fusion->B, 1, &blocks));
    DR_CUDA_LAUNCH(fusion_kernel, blocks, THREADS, 0, stream)(*fusion);
    DR_CUDA_LAUNCHED("fusion_forward of %lld x %lld x %lld", (long long)fusion->B, (long long)fusion->L,
                     (long long)fusion->D);
    return DR_OK;
}

// ---- attention ----

// One block a request, head and asking position; one thread a position, then a column.
static __global__ void __launch_bounds__(DR_FUSION_POSITIONS)
    padded_attention_kernel(dr_padded_attention a, int64_t n_asking, float scale) {
    __shared__ float scores[DR_FUSION_POSITIONS];
    const int64_t L = a.L, D = (int64_t)a.H * a.d;
    const dr_padded_block of = dr_padded_block_of(blockIdx.x, n_asking, a.H);
    const int n = a.lengths[of.q], j = threadIdx.x;
    const float *head = a.qkv + dr_padded_query_at(of.q, 0, L, of.h, a.H, a.d);
    const float *query =
        a.qkv + dr_padded_query_at(of.q, dr_asking_position(a.last_only, n, of.i), L, of.h, a.H, a.d);
    if (j < L)
        scores[j] = fmaf(column_product(query, a.d, head + j * 3 * D + D, 1), scale, j < n ? 0.0f : -10000.0f);
    __syncthreads();
    float top = -INFINITY, total = 0.0f;
    for (int p = 0; p < L; p++) top = fmaxf(top, scores[p]);
    for (int p = 0; p < L; p++) total = __fadd_rn(total, expf(scores[p] - top));
    __syncthreads(); // all have read the scores
    if (j < L) {
        scores[j] = expf(scores[j] - top) / total;
        a.weights[dr_padded_weights_at(of.q, of.h, a.H, of.i, n_asking, L) + j] = scores[j];
    }
    __syncthreads();
    for (int e = threadIdx.x; e < a.d; e += DR_FUSION_POSITIONS)
        a.out[dr_padded_out_at(of.q, of.i, n_asking, of.h, a.H, a.d) + e] =
            column_product(scores, L, head + 2 * D + e, 3 * D);
}

extern "C" dr_status dr_cuda_padded_attention(const dr_padded_attention *attention, dr_cuda_stream stream) {
    const dr_padded_attention *a = attention;
    const int64_t n_asking = a->last_only ? 1 : a->L;
    unsigned int blocks = 0;
    if (a->B == 0) return DR_OK;
    DR_CHECK(a->L <= DR_FUSION_POSITIONS, DR_ERR_RANGE, "cuda padded_attention over %lld positions, at most %d",
             (long long)a->L, DR_FUSION_POSITIONS);
    DR_TRY(dr_cuda_grid("padded_attention", a->B * a->H * n_asking, 1, &blocks));
    DR_CUDA_LAUNCH(padded_attention_kernel, blocks, DR_FUSION_POSITIONS, 0, stream)(*a, n_asking,
                                                                        1.0f / sqrtf((float)a->d));
    DR_CUDA_LAUNCHED("padded_attention of %lld x %lld, %d heads of %d", (long long)a->B, (long long)a->L, a->H,
                     a->d);
    return DR_OK;
}

// ---- rows ----

// One block a row.
static __global__ void __launch_bounds__(THREADS)
    mixture_kernel(float *gate, const float *z, int64_t E, int64_t D, float *y) {
    __shared__ float weights[DR_MIXTURE_MOST];
    const int64_t t = blockIdx.x;
    float top = -INFINITY, total = 0.0f;
    for (int e = 0; e < E; e++) top = fmaxf(top, gate[t * E + e]);
    for (int e = 0; e < E; e++) total = __fadd_rn(total, expf(gate[t * E + e] - top));
    if (threadIdx.x < E) weights[threadIdx.x] = expf(gate[t * E + threadIdx.x] - top) / total;
    __syncthreads(); // all have read the gate
    if (threadIdx.x < E) gate[t * E + threadIdx.x] = weights[threadIdx.x];
    for (int64_t d = threadIdx.x; d < D; d += THREADS)
        y[t * D + d] = column_product(weights, E, z + dr_mixture_at(t, 0, E, d, D), D);
}

extern "C" dr_status dr_cuda_mixture(float *gate, const float *z, int64_t T, int64_t E, int64_t D, float *y,
                                     dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_CHECK(E >= 1 && E <= DR_MIXTURE_MOST, DR_ERR_RANGE, "cuda mixture_forward of %lld parts, at most %d",
             (long long)E, DR_MIXTURE_MOST);
    DR_TRY(dr_cuda_grid("mixture_forward", T, 1, &blocks));
    DR_CUDA_LAUNCH(mixture_kernel, blocks, THREADS, 0, stream)(gate, z, E, D, y);
    DR_CUDA_LAUNCHED("mixture_forward of %lld x %lld x %lld", (long long)T, (long long)E, (long long)D);
    return DR_OK;
}

// One thread a column of a sequence's row.
static __global__ void pool_rows_kernel(const float *x, const dr_span *spans, int32_t n, dr_pooling pooling,
                                        int64_t D, float *out) {
    const int64_t i = dr_cuda_item();
    if (i >= n * D) return;
    const dr_span span = spans[i / D];
    const int32_t rows = dr_pooled_rows(span.n_rows, pooling);
    double sum = 0.0;
    for (int32_t t = 0; t < rows; t++) sum = __dadd_rn(sum, (double)x[(span.row + t) * D + i % D]);
    out[i] = rows > 0 ? __double2float_rn(__ddiv_rn(sum, (double)rows)) : 0.0f;
}

extern "C" dr_status dr_cuda_pool_rows(const float *x, const dr_span *spans, int32_t n, dr_pooling pooling,
                                       int64_t D, float *out, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("pool_rows", n * D, THREADS, &blocks));
    DR_CUDA_LAUNCH(pool_rows_kernel, blocks, THREADS, 0, stream)(x, spans, n, pooling, D, out);
    DR_CUDA_LAUNCHED("pool_rows of %d sequences, %lld columns", n, (long long)D);
    return DR_OK;
}

// One thread a row: a sum of exact squares in the processor's order has the processor's bits.
static __global__ void unit_rows_kernel(const float *x, int64_t T, int64_t D, float *out) {
    const int64_t t = dr_cuda_item();
    if (t >= T) return;
    double norm = 0.0;
    for (int64_t d = 0; d < D; d++) norm = __fma_rn((double)x[t * D + d], (double)x[t * D + d], norm);
    const float inv = norm > 0.0 ? __double2float_rn(__ddiv_rn(1.0, __dsqrt_rn(norm))) : 0.0f;
    for (int64_t d = 0; d < D; d++) out[t * D + d] = __fmul_rn(x[t * D + d], inv);
}

extern "C" dr_status dr_cuda_unit_rows(const float *x, int64_t T, int64_t D, float *out,
                                       dr_cuda_stream stream) {
    enum { ROWS = 32 }; // of a block: there are few
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("unit_rows", T, ROWS, &blocks));
    DR_CUDA_LAUNCH(unit_rows_kernel, blocks, ROWS, 0, stream)(x, T, D, out);
    DR_CUDA_LAUNCHED("unit_rows of %lld x %lld", (long long)T, (long long)D);
    return DR_OK;
}

static __global__ void fill_places_kernel(float *x, const int64_t *places, int64_t n, float value) {
    const int64_t i = dr_cuda_item();
    if (i < n) x[places[i]] = value;
}

extern "C" dr_status dr_cuda_fill_places(float *x, const int64_t *places, int64_t n, float value,
                                         dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("fill_places", n, THREADS, &blocks));
    DR_CUDA_LAUNCH(fill_places_kernel, blocks, THREADS, 0, stream)(x, places, n, value);
    DR_CUDA_LAUNCHED("fill_places of %lld", (long long)n);
    return DR_OK;
}

// ---- the best of a row ----

// Finds the least key of the k best by a radix search, DR_HIT_BITS at a time; the same in every thread.
static __device__ uint64_t least_key(const float *row, int64_t V, int32_t k) {
    __shared__ int32_t counts[DR_HIT_BINS];
    __shared__ dr_hit_search shared;
    __shared__ bool is_found;
    if (threadIdx.x == 0) {
        shared = dr_hit_search_begin(k);
        is_found = false;
    }
    do {
        for (int i = threadIdx.x; i < DR_HIT_BINS; i += TOP_THREADS) counts[i] = 0;
        __syncthreads();
        for (int64_t j = threadIdx.x; j < V; j += TOP_THREADS) {
            int bin = dr_hit_bin(&shared, dr_hit_key(__float_as_uint(row[j]), (int32_t)j));
            if (bin >= 0) atomicAdd(&counts[bin], 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) is_found = dr_hit_narrow(&shared, counts);
        __syncthreads();
    } while (!is_found);
    return dr_hit_least(&shared);
}

// Sorts n keys, a power of two, largest first. No two are equal, so their order is one.
static __device__ void sort_keys(uint64_t *keys, int n) {
    for (int run = 2; run <= n; run *= 2)
        for (int stride = run / 2; stride > 0; stride /= 2) {
            for (int i = threadIdx.x; i < n / 2; i += TOP_THREADS) {
                const int low = dr_bitonic_low(i, stride), high = low + stride;
                const uint64_t a = keys[low], b = keys[high];
                if (dr_bitonic_falls(low, run) ? a < b : a > b) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
}

// One block a row. Where a key is put down before the sort depends on the order of the threads; after it
// nothing does.
static __global__ void __launch_bounds__(TOP_THREADS)
    top_k_kernel(const float *scores, int64_t V, int32_t k, int n_sorted, dr_hit *out) {
    __shared__ uint64_t keys[DR_TOP_MOST];
    __shared__ int n_keys;
    const float *row = scores + blockIdx.x * V;
    for (int i = threadIdx.x; i < n_sorted; i += TOP_THREADS) keys[i] = 0;
    if (threadIdx.x == 0) n_keys = 0;
    const uint64_t least = least_key(row, V, k); // synchronises
    for (int64_t j = threadIdx.x; j < V; j += TOP_THREADS) {
        const uint64_t key = dr_hit_key(__float_as_uint(row[j]), (int32_t)j);
        if (key >= least) keys[atomicAdd(&n_keys, 1)] = key;
    }
    __syncthreads();
    sort_keys(keys, n_sorted);
    for (int i = threadIdx.x; i < k; i += TOP_THREADS) {
        dr_hit hit = {-1, -INFINITY};
        if (keys[i] > 0) {
            hit.item = dr_hit_item(keys[i]);
            hit.score = row[hit.item];
        }
        out[blockIdx.x * (int64_t)k + i] = hit;
    }
}

extern "C" dr_status dr_cuda_top_k(const float *scores, int64_t T, int64_t V, int32_t k, dr_hit *out,
                                   dr_cuda_stream stream) {
    unsigned int blocks = 0;
    int n_sorted = 1;
    if (T == 0) return DR_OK;
    while (n_sorted < k) n_sorted *= 2;
    DR_TRY(dr_cuda_grid("top_k", T, 1, &blocks));
    DR_CUDA_LAUNCH(top_k_kernel, blocks, TOP_THREADS, 0, stream)(scores, V, k, n_sorted, out);
    DR_CUDA_LAUNCHED("top_k of %lld x %lld", (long long)T, (long long)V);
    return DR_OK;
}
