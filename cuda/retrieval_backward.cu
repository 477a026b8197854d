// The gradients of the retrieval model's kernels, and what only its training computes. A block has a request,
// or a row, to itself; sums over requests go through parts of each request, which are added up in order.
#include "cuda/launch.cuh"

#include <math.h>

enum { THREADS = 256, WARPS = THREADS / 32 };

// ---- element-wise ----

static __global__ void dropout_kernel(const float *x, int64_t n, dr_dropout_mask mask, float *y) {
    const int64_t i = dr_cuda_item();
    if (i < n) y[i] = x[i] * dr_dropout_factor(mask, i);
}

extern "C" dr_status dr_cuda_dropout(const float *x, int64_t n, dr_dropout_mask mask, float *y,
                                     dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("dropout", n, THREADS, &blocks));
    DR_CUDA_LAUNCH(dropout_kernel, blocks, THREADS, 0, stream)(x, n, mask, y);
    DR_CUDA_LAUNCHED("dropout of %lld values", (long long)n);
    return DR_OK;
}

static __global__ void noisy_gate_kernel(const float *noise, const float *spread, int64_t n, float *gate) {
    const int64_t i = dr_cuda_item();
    if (i >= n) return;
    const float x = spread[i], softplus = x > 20.0f ? x : log1pf(expf(x));
    gate[i] = fmaf(noise[i], softplus + DR_LEAST_NOISE, gate[i]);
}

extern "C" dr_status dr_cuda_noisy_gate(const float *noise, const float *spread, int64_t n, float *gate,
                                        dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("noisy_gate_forward", n, THREADS, &blocks));
    DR_CUDA_LAUNCH(noisy_gate_kernel, blocks, THREADS, 0, stream)(noise, spread, n, gate);
    DR_CUDA_LAUNCHED("noisy_gate_forward of %lld values", (long long)n);
    return DR_OK;
}

// dspread may be spread: a thread reads its element before it writes it.
static __global__ void noisy_gate_backward_kernel(const float *dgate, const float *noise, const float *spread,
                                                  int64_t n, float *dspread) {
    const int64_t i = dr_cuda_item();
    if (i < n) dspread[i] = dgate[i] * noise[i] * (1.0f / (1.0f + expf(-spread[i])));
}

extern "C" dr_status dr_cuda_noisy_gate_backward(const float *dgate, const float *noise, const float *spread,
                                                 int64_t n, float *dspread, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("noisy_gate_backward", n, THREADS, &blocks));
    DR_CUDA_LAUNCH(noisy_gate_backward_kernel, blocks, THREADS, 0, stream)(dgate, noise, spread, n, dspread);
    DR_CUDA_LAUNCHED("noisy_gate_backward of %lld values", (long long)n);
    return DR_OK;
}

// ---- fusion ----

// Σ_j m[j · stride] x[j], one chain.
static __device__ __forceinline__ float strided_product(const float *m, int64_t stride, int64_t n,
                                                        const float *x) {
    float sum = 0.0f;
    for (int64_t j = 0; j < n; j++) sum = fmaf(m[j * stride], x[j], sum);
    return sum;
}

// Adds dg · conj(w) to d: the gradient of a complex product at its other factor.
static __device__ __forceinline__ void add_conjugate_product(float2 dg, float2 w, float2 *d) {
    d->x = fmaf(dg.x, w.x, fmaf(dg.y, w.y, d->x));
    d->y = fmaf(dg.y, w.x, fmaf(-dg.x, w.y, d->y));
}

static __device__ __forceinline__ float2 spectrum_at(const float *spectra, int64_t q, int64_t k, int64_t L,
                                                     int64_t d, int64_t D) {
    return make_float2(spectra[dr_spectrum_at(q, k, L, d, D)],
                       spectra[dr_spectrum_at(q, dr_frequencies(L) + k, L, d, D)]);
}

// From the gradients at both filtered inputs to those at the inputs, for one column of one request, and what
// the request adds to the filter's.
static __device__ void filter_column_backward(const dr_fusion &f, const dr_fusion_gradient &out, int64_t q,
                                              int64_t d, float (*dfiltered)[DR_FUSION_POSITIONS],
                                              float *filter_part) {
    const int64_t L = f.L, D = f.D, K = dr_frequencies(L);
    float spectrum[2][2 * (DR_FUSION_POSITIONS / 2 + 1)]; // gradients at both
    for (int64_t k = 0; k < K; k++) {
        float2 dg[2], at[2], dat[2] = {make_float2(0.0f, 0.0f), make_float2(0.0f, 0.0f)}, dw = dat[0];
        for (int i = 0; i < 2; i++) {
            at[i] = spectrum_at(f.spectra[i], q, k, L, d, D);
            dg[i].x = strided_product(f.inverse + k, 2 * K, L, dfiltered[i]);
            dg[i].y = strided_product(f.inverse + K + k, 2 * K, L, dfiltered[i]);
        }
        const float *w = f.filter + dr_filter_at(k, d, D);
        add_conjugate_product(dg[0], make_float2(w[0], w[1]), &dat[0]);
        add_conjugate_product(dg[1], at[1], &dat[0]);
        add_conjugate_product(dg[1], at[0], &dat[1]);
        add_conjugate_product(dg[0], at[0], &dw);
        for (int i = 0; i < 2; i++) {
            spectrum[i][k] = dat[i].x;
            spectrum[i][K + k] = dat[i].y;
        }
        filter_part[dr_filter_at(k, d, D)] = dw.x;
        filter_part[dr_filter_at(k, d, D) + 1] = dw.y;
    }
    for (int64_t l = 0; l < L; l++)
        for (int i = 0; i < 2; i++)
            out.dx[i][dr_position_at(q, l, L, d, D)] = strided_product(f.dft + l, L, 2 * K, spectrum[i]);
}

// One block a request, one thread a column: the transforms mix positions only.
static __global__ void __launch_bounds__(THREADS)
    fusion_backward_kernel(dr_fusion f, dr_fusion_gradient out, dr_fusion_parts parts, float *scratch) {
    const int64_t q = blockIdx.x, d = threadIdx.x;
    const bool has_column = d < f.D;
    float dfiltered[2][DR_FUSION_POSITIONS], dgate[2] = {0.0f, 0.0f}, dbias[2] = {0.0f, 0.0f};
    for (int64_t l = 0; l < f.L; l++) { // every thread takes part in the sums
        const int64_t row = q * f.L + l, at = dr_position_at(q, l, f.L, d, f.D);
        const float dh = has_column ? out.dout[at] : 0.0f;
        for (int i = 0; i < 2; i++) {
            const float value = has_column ? f.filtered[i][at] : 0.0f, open = f.openness[i][row];
            const float slope = 2.0f * dr_block_sum<THREADS>(__fmul_rn(dh, value)) * open * (1.0f - open);
            dfiltered[i][l] = has_column ? fmaf(slope, f.gate[i][d], 2.0f * open * dh) : 0.0f;
            dgate[i] = fmaf(slope, value, dgate[i]);
            dbias[i] += slope;
        }
    }
    for (int i = 0; i < 2; i++) {
        if (has_column) scratch[parts.gate[i] + q * f.D + d] = dgate[i];
        if (d == 0) scratch[parts.bias[i] + q] = dbias[i];
    }
    if (has_column)
        filter_column_backward(f, out, q, d, dfiltered,
                               scratch + parts.filter + q * dr_fusion_filter_size(f.L, f.D));
}

extern "C" dr_status dr_cuda_fusion_backward(const dr_fusion *fusion, const dr_fusion_gradient *out,
                                             float *scratch, dr_cuda_stream stream) {
    const int64_t B = fusion->B, L = fusion->L, D = fusion->D;
    const dr_fusion_parts parts = dr_fusion_parts_of(B, L, D);
    unsigned int blocks = 0;
    if (B == 0) return DR_OK;
    DR_CHECK(L <= DR_FUSION_POSITIONS && D <= THREADS, DR_ERR_RANGE,
             "cuda fusion_backward of %lld positions and %lld columns, at most %d and %d", (long long)L,
             (long long)D, DR_FUSION_POSITIONS, THREADS);
    DR_TRY(dr_cuda_grid("fusion_backward", B, 1, &blocks));
    DR_CUDA_LAUNCH(fusion_backward_kernel, blocks, THREADS, 0, stream)(*fusion, *out, parts, scratch);
    DR_CUDA_LAUNCHED("fusion_backward of %lld x %lld x %lld", (long long)B, (long long)L, (long long)D);
    const struct {
        const float *of_requests;
        int64_t n;
        float *sums;
    } shared[] = {{scratch + parts.filter, dr_fusion_filter_size(L, D), out->dfilter},
                  {scratch + parts.gate[0], D, out->dgate[0]},
                  {scratch + parts.gate[1], D, out->dgate[1]},
                  {scratch + parts.bias[0], 1, out->dbias[0]},
                  {scratch + parts.bias[1], 1, out->dbias[1]},
                  {out->dout, L * D, out->dpositions}};
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
        DR_TRY(dr_cuda_column_sums("fusion_backward", shared[i].of_requests, NULL, NULL, NULL, B, shared[i].n,
                                   scratch + parts.sums, shared[i].sums, stream));
    return DR_OK;
}

// ---- attention ----

// What the block of one request and head works on: rows of asking positions and of all.
typedef struct head_rows {
    const float *query, *key, *value; // of position 0, `stride` floats between positions
    const float *dout, *weights;      // of the first asking position, D and L floats between two
    float *dquery, *dkey, *dvalue;
    int64_t stride;
} head_rows;

static __device__ head_rows rows_of_head(const dr_padded_attention &a, int64_t n_asking, int64_t q, int64_t h,
                                         const float *dout, float *dqkv) {
    const int64_t D = (int64_t)a.H * a.d, first = dr_padded_query_at(q, 0, a.L, h, a.H, a.d);
    head_rows rows;
    rows.query = a.qkv + first;
    rows.key = rows.query + D;
    rows.value = rows.key + D;
    rows.dquery = dqkv + first;
    rows.dkey = rows.dquery + D;
    rows.dvalue = rows.dkey + D;
    rows.dout = dout + dr_padded_out_at(q, 0, n_asking, h, a.H, a.d);
    rows.weights = a.weights + dr_padded_weights_at(q, h, a.H, 0, n_asking, a.L);
    rows.stride = 3 * D;
    return rows;
}

// scores [n_asking, L] in shared memory: gradients at the scaled scores.
static __device__ void score_gradients(const dr_padded_attention &a, const head_rows &rows, int64_t n_asking,
                                       float scale, float *scores) {
    __shared__ float means[DR_FUSION_POSITIONS];
    const int64_t L = a.L, D = (int64_t)a.H * a.d;
    for (int64_t item = threadIdx.x; item < n_asking * L; item += THREADS)
        scores[item] = strided_product(rows.dout + item / L * D, 1, a.d, rows.value + item % L * rows.stride);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n_asking; i += THREADS)
        means[i] = strided_product(scores + i * L, 1, L, rows.weights + i * L);
    __syncthreads();
    for (int64_t item = threadIdx.x; item < n_asking * L; item += THREADS)
        scores[item] = rows.weights[item] * (scores[item] - means[item / L]) * scale;
    __syncthreads();
}

// One block a request and head; one thread a position and column of dq, dk and dv, which it sums up.
static __global__ void __launch_bounds__(THREADS)
    padded_attention_backward_kernel(dr_padded_attention a, int64_t n_asking, float scale, const float *dout,
                                     float *dqkv) {
    __shared__ float scores[DR_FUSION_POSITIONS * DR_FUSION_POSITIONS];
    const dr_padded_block of = dr_padded_block_of(blockIdx.x, 1, a.H); // all asking positions
    const int64_t q = of.q, h = of.h, L = a.L, D = (int64_t)a.H * a.d;
    const head_rows rows = rows_of_head(a, n_asking, q, h, dout, dqkv);
    const int32_t length = a.lengths[q];
    score_gradients(a, rows, n_asking, scale, scores);
    for (int64_t item = threadIdx.x; item < L * a.d; item += THREADS) {
        const int64_t position = item / a.d, e = item % a.d, at = position * rows.stride + e;
        const int64_t asking = dr_asking_of(a.last_only, length, position);
        float dquery = 0.0f, dkey = 0.0f, dvalue = 0.0f;
        for (int64_t j = 0; j < L && asking >= 0; j++)
            dquery = fmaf(scores[asking * L + j], rows.key[j * rows.stride + e], dquery);
        for (int64_t i = 0; i < n_asking; i++) {
            const int64_t asks = dr_asking_position(a.last_only, length, i);
            dkey = fmaf(scores[i * L + position], rows.query[asks * rows.stride + e], dkey);
            dvalue = fmaf(rows.weights[i * L + position], rows.dout[i * D + e], dvalue);
        }
        rows.dquery[at] = dquery;
        rows.dkey[at] = dkey;
        rows.dvalue[at] = dvalue;
    }
}

extern "C" dr_status dr_cuda_padded_attention_backward(const dr_padded_attention *attention,
                                                       const float *dout, float *dqkv,
                                                       dr_cuda_stream stream) {
    const dr_padded_attention *a = attention;
    unsigned int blocks = 0;
    if (a->B == 0) return DR_OK;
    DR_CHECK(a->L <= DR_FUSION_POSITIONS, DR_ERR_RANGE,
             "cuda padded_attention_backward over %lld positions, at most %d", (long long)a->L,
             DR_FUSION_POSITIONS);
    DR_TRY(dr_cuda_grid("padded_attention_backward", a->B * a->H, 1, &blocks));
    DR_CUDA_LAUNCH(padded_attention_backward_kernel, blocks, THREADS, 0, stream)
    (*a, a->last_only ? 1 : a->L, 1.0f / sqrtf((float)a->d), dout, dqkv);
    DR_CUDA_LAUNCHED("padded_attention_backward of %lld x %lld, %d heads of %d", (long long)a->B,
                     (long long)a->L, a->H, a->d);
    return DR_OK;
}

// ---- rows ----

// One block a row, one warp a part at a time. dgate may be weights: they are copied before.
static __global__ void __launch_bounds__(THREADS)
    mixture_backward_kernel(const float *dy, const float *weights, const float *z, int64_t E, int64_t D,
                            float *dz, float *dgate) {
    __shared__ float w[DR_MIXTURE_MOST], dw[DR_MIXTURE_MOST];
    const int64_t t = blockIdx.x;
    const float *g = dy + t * D;
    if (threadIdx.x < E) w[threadIdx.x] = weights[t * E + threadIdx.x];
    for (int64_t e = threadIdx.x / 32; e < E; e += WARPS) {
        float sum = 0.0f;
        for (int64_t d = threadIdx.x % 32; d < D; d += 32)
            sum = fmaf(z[dr_mixture_at(t, e, E, d, D)], g[d], sum);
        sum = dr_warp_sum(sum);
        if (threadIdx.x % 32 == 0) dw[e] = sum;
    }
    __syncthreads();
    const float mean = strided_product(dw, 1, E, w);
    if (threadIdx.x < E) dgate[t * E + threadIdx.x] = w[threadIdx.x] * (dw[threadIdx.x] - mean);
    for (int64_t item = threadIdx.x; item < E * D; item += THREADS)
        dz[dr_mixture_at(t, 0, E, item, D)] = w[item / D] * g[item % D];
}

extern "C" dr_status dr_cuda_mixture_backward(const float *dy, const float *weights, const float *z,
                                              int64_t T, int64_t E, int64_t D, float *dz, float *dgate,
                                              dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_CHECK(E >= 1 && E <= DR_MIXTURE_MOST, DR_ERR_RANGE, "cuda mixture_backward of %lld parts, at most %d",
             (long long)E, DR_MIXTURE_MOST);
    DR_TRY(dr_cuda_grid("mixture_backward", T, 1, &blocks));
    DR_CUDA_LAUNCH(mixture_backward_kernel, blocks, THREADS, 0, stream)(dy, weights, z, E, D, dz, dgate);
    DR_CUDA_LAUNCHED("mixture_backward of %lld x %lld x %lld", (long long)T, (long long)E, (long long)D);
    return DR_OK;
}

static __device__ __forceinline__ float inverse_length(float length) {
    return length > DR_LEAST_LENGTH ? 1.0f / length : 0.0f;
}

// One warp a row; so is the next one.
static __global__ void normalize_rows_kernel(const float *x, int64_t T, int64_t D, float *unit,
                                             float *lengths) {
    const int64_t t = dr_cuda_item() / 32, lane = threadIdx.x % 32;
    if (t >= T) return;
    float sum = 0.0f;
    for (int64_t d = lane; d < D; d += 32) sum = fmaf(x[t * D + d], x[t * D + d], sum);
    const float length = sqrtf(dr_warp_sum(sum)), inv = inverse_length(length);
    for (int64_t d = lane; d < D; d += 32) unit[t * D + d] = x[t * D + d] * inv;
    if (lane == 0) lengths[t] = length;
}

extern "C" dr_status dr_cuda_normalize_rows(const float *x, int64_t T, int64_t D, float *unit, float *lengths,
                                            dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("normalize_rows_forward", T, WARPS, &blocks));
    DR_CUDA_LAUNCH(normalize_rows_kernel, blocks, THREADS, 0, stream)(x, T, D, unit, lengths);
    DR_CUDA_LAUNCHED("normalize_rows_forward of %lld x %lld", (long long)T, (long long)D);
    return DR_OK;
}

static __global__ void normalize_rows_backward_kernel(const float *dunit, const float *unit,
                                                      const float *lengths, int64_t T, int64_t D, float *dx) {
    const int64_t t = dr_cuda_item() / 32, lane = threadIdx.x % 32;
    if (t >= T) return;
    float dot = 0.0f;
    for (int64_t d = lane; d < D; d += 32) dot = fmaf(dunit[t * D + d], unit[t * D + d], dot);
    dot = dr_warp_sum(dot);
    const float inv = inverse_length(lengths[t]);
    for (int64_t d = lane; d < D; d += 32)
        dx[t * D + d] += fmaf(-unit[t * D + d], dot, dunit[t * D + d]) * inv;
}

extern "C" dr_status dr_cuda_normalize_rows_backward(const float *dunit, const float *unit,
                                                     const float *lengths, int64_t T, int64_t D, float *dx,
                                                     dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("normalize_rows_backward", T, WARPS, &blocks));
    DR_CUDA_LAUNCH(normalize_rows_backward_kernel, blocks, THREADS, 0, stream)
    (dunit, unit, lengths, T, D, dx);
    DR_CUDA_LAUNCHED("normalize_rows_backward of %lld x %lld", (long long)T, (long long)D);
    return DR_OK;
}

// ---- cross-entropy ----

// One block a row.
static __global__ void __launch_bounds__(THREADS)
    cross_entropy_kernel(float *logits, const int32_t *targets, int64_t T, int64_t V, float inv_temperature,
                         double *losses) {
    float *row = logits + blockIdx.x * V, top = -INFINITY;
    const int64_t target = targets[blockIdx.x], first = 1 + threadIdx.x; // column 0 is padding
    const float of_target = row[target];
    for (int64_t j = first; j < V; j += THREADS) top = fmaxf(top, row[j]);
    top = dr_block_max<THREADS>(top); // behind it all have read the target's
    double total = 0.0;
    for (int64_t j = first; j < V; j += THREADS) {
        row[j] = expf((row[j] - top) * inv_temperature);
        total += (double)row[j];
    }
    total = dr_block_sum<THREADS>(total);
    const float scale = (float)(1.0 / total / (double)T) * inv_temperature;
    for (int64_t j = first; j < V; j += THREADS)
        row[j] = fmaf(row[j], scale, j == target ? -inv_temperature / (float)T : 0.0f);
    if (threadIdx.x > 0) return;
    row[0] = 0.0f;
    losses[blockIdx.x] = log(total) - (double)(of_target - top) * (double)inv_temperature;
}

extern "C" dr_status dr_cuda_cross_entropy(float *logits, const int32_t *targets, int64_t T, int64_t V,
                                           float inv_temperature, double *losses, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("cross_entropy", T, 1, &blocks));
    DR_CUDA_LAUNCH(cross_entropy_kernel, blocks, THREADS, 0, stream)
    (logits, targets, T, V, inv_temperature, losses);
    DR_CUDA_LAUNCHED("cross_entropy of %lld x %lld", (long long)T, (long long)V);
    return DR_OK;
}
