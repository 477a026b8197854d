// RMSNorm and LayerNorm, one block a row (RMSNorm's gradient: one block some rows), and RMSNorm of heads, one
// warp a head; sums within a row run in one fixed order, so a row's bits do not depend on its place. Sums
// over rows (weights' gradients, column sums) go in two stages without atomics.
#include "cuda/launch.cuh"

enum { THREADS = 256, WARP = 32 };

// An element of x, which becomes the sum where there is a residual.
static __device__ __forceinline__ float take(const float *x, const float *residual, float *sum, int64_t at) {
    float value = x[at];
    if (residual) sum[at] = value = __fadd_rn(value, residual[at]);
    return value;
}

// The first OWN · THREADS values of a row stay in registers; what a longer row has beyond is read again.
// residual NULL: none; otherwise sum is x.
template <int OWN>
static __global__ void __launch_bounds__(THREADS)
    rmsnorm_forward_kernel(const float *x, const float *residual, const float *w, int64_t D, float eps,
                           float *sum, float *y, float *inv_rms) {
    const int64_t t = blockIdx.x, row = t * D;
    float kept[OWN], squares = 0.0f;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int64_t j = threadIdx.x + i * THREADS;
        kept[i] = j < D ? take(x, residual, sum, row + j) : 0.0f;
        squares = fmaf(kept[i], kept[i], squares);
    }
    for (int64_t j = threadIdx.x + OWN * THREADS; j < D; j += THREADS) {
        float value = take(x, residual, sum, row + j);
        squares = fmaf(value, value, squares);
    }
    float inv = 1.0f / sqrtf(dr_block_sum<THREADS>(squares) / (float)D + eps);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int64_t j = threadIdx.x + i * THREADS;
        if (j < D) y[row + j] = kept[i] * inv * w[j];
    }
    const float *again = residual ? sum : x;
    for (int64_t j = threadIdx.x + OWN * THREADS; j < D; j += THREADS)
        y[row + j] = again[row + j] * inv * w[j];
    if (inv_rms && threadIdx.x == 0) inv_rms[t] = inv;
}

static __device__ __forceinline__ float norm_gradient(float by_w, float value, float inv, float scale) {
    return fmaf(by_w, inv, -__fmul_rn(value, scale));
}

// A block goes through one part of the rows, row by row: dx, and the part's own sums for dw (partials NULL:
// not wanted). The first OWN · THREADS columns stay in registers, what is beyond goes through memory.
template <int OWN>
static __global__ void __launch_bounds__(THREADS, OWN > 4 ? 2 : 4)
    rmsnorm_backward_kernel(const float *dy, const float *x, const float *w, const float *inv_rms, int64_t T,
                            int64_t D, float *dx, float *partials) {
    const int64_t begin = blockIdx.x * dr_norm_rows(T), end = min(begin + dr_norm_rows(T), T);
    float sums[OWN] = {0};
    float *part = partials ? partials + blockIdx.x * D : NULL;
    for (int64_t t = begin; t < end; t++) {
        const float *g = dy + t * D, *row = x + t * D, inv = inv_rms[t];
        float by_w[OWN], sum = 0.0f;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            int64_t j = threadIdx.x + i * THREADS;
            float up = j < D ? g[j] : 0.0f, value = j < D ? row[j] : 0.0f;
            by_w[i] = j < D ? __fmul_rn(up, w[j]) : 0.0f;
            sum = fmaf(by_w[i], value, sum);
            sums[i] = fmaf(up, __fmul_rn(value, inv), sums[i]);
        }
        for (int64_t j = threadIdx.x + OWN * THREADS; j < D; j += THREADS) {
            sum = fmaf(__fmul_rn(g[j], w[j]), row[j], sum);
            if (part) part[j] = fmaf(g[j], __fmul_rn(row[j], inv), t == begin ? 0.0f : part[j]);
        }
        float scale = dr_block_sum<THREADS>(sum) * inv * inv * inv / (float)D;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            int64_t j = threadIdx.x + i * THREADS;
            if (j < D) dx[t * D + j] += norm_gradient(by_w[i], row[j], inv, scale);
        }
        for (int64_t j = threadIdx.x + OWN * THREADS; j < D; j += THREADS)
            dx[t * D + j] += norm_gradient(__fmul_rn(g[j], w[j]), row[j], inv, scale);
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int64_t j = threadIdx.x + i * THREADS;
        if (part && j < D) part[j] = sums[i];
    }
}

// A warp a head of rows `n_heads` heads wide; a lane reads again only what it wrote itself.
static __global__ void __launch_bounds__(THREADS)
    head_norm_forward_kernel(float *x, const float *w, int64_t rows, int64_t n_heads, int64_t d,
                             int64_t stride, float eps, float *kept, float *inv_rms) {
    const int64_t row = dr_cuda_item() / WARP;
    const int lane = threadIdx.x % WARP;
    float squares = 0.0f;
    if (row >= rows) return;
    float *head = x + dr_head_at(row, n_heads, d, stride);
    for (int64_t j = lane; j < d; j += WARP) {
        float value = head[j];
        if (kept) kept[row * d + j] = value;
        squares = fmaf(value, value, squares);
    }
    const float inv = 1.0f / sqrtf(dr_warp_sum(squares) / (float)d + eps);
    for (int64_t j = lane; j < d; j += WARP) head[j] = head[j] * inv * w[j];
    if (inv_rms && lane == 0) inv_rms[row] = inv;
}

// A block goes through one part of the heads, a warp every DR_CUDA_HEAD_WARPS-th of them: dx in dy's place,
// and the warp's own sums for dw, which are added up in the warps' order.
static __global__ void __launch_bounds__(DR_CUDA_HEAD_WARPS *WARP)
    head_norm_backward_kernel(float *dx, const float *kept, const float *w, const float *inv_rms,
                              int64_t rows, int64_t n_heads, int64_t d, int64_t stride, float *partials) {
    __shared__ float all_sums[DR_CUDA_HEAD_WARPS][DR_CUDA_MAX_HEAD];
    const int64_t begin = blockIdx.x * dr_norm_rows(rows), end = min(begin + dr_norm_rows(rows), rows);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float *sums = all_sums[warp]; // a lane has columns of its own
    for (int64_t j = lane; j < d; j += WARP) sums[j] = 0.0f;
    for (int64_t row = begin + warp; row < end; row += DR_CUDA_HEAD_WARPS) {
        float *g = dx + dr_head_at(row, n_heads, d, stride), sum = 0.0f;
        const float *head = kept + row * d, inv = inv_rms[row];
        for (int64_t j = lane; j < d; j += WARP) {
            sum = fmaf(__fmul_rn(g[j], w[j]), head[j], sum);
            sums[j] = fmaf(g[j], __fmul_rn(head[j], inv), sums[j]);
        }
        const float scale = dr_warp_sum(sum) * inv * inv * inv / (float)d;
        for (int64_t j = lane; j < d; j += WARP)
            g[j] = norm_gradient(__fmul_rn(g[j], w[j]), head[j], inv, scale);
    }
    __syncthreads();
    for (int64_t j = threadIdx.x; j < d; j += DR_CUDA_HEAD_WARPS * WARP) {
        float sum = all_sums[0][j];
        for (int i = 1; i < DR_CUDA_HEAD_WARPS; i++) sum += all_sums[i][j];
        partials[blockIdx.x * d + j] = sum;
    }
}

static __global__ void __launch_bounds__(THREADS)
    layernorm_forward_kernel(const float *x, const float *w, const float *bias, int64_t D, float eps,
                             float *y, float *mean, float *inv_std) {
    const int64_t t = blockIdx.x;
    const float *row = x + t * D;
    float sum = 0.0f, squares = 0.0f;
    for (int64_t j = threadIdx.x; j < D; j += THREADS) sum += row[j];
    float mu = dr_block_sum<THREADS>(sum) / (float)D;
    for (int64_t j = threadIdx.x; j < D; j += THREADS) squares = fmaf(row[j] - mu, row[j] - mu, squares);
    float inv = 1.0f / sqrtf(dr_block_sum<THREADS>(squares) / (float)D + eps);
    for (int64_t j = threadIdx.x; j < D; j += THREADS) y[t * D + j] = (row[j] - mu) * inv * w[j] + bias[j];
    if (mean && threadIdx.x == 0) mean[t] = mu;
    if (inv_std && threadIdx.x == 0) inv_std[t] = inv;
}

static __global__ void __launch_bounds__(THREADS)
    layernorm_backward_kernel(const float *dy, const float *x, const float *w, const float *mean,
                              const float *inv_std, int64_t D, float *dx) {
    const int64_t t = blockIdx.x;
    const float *g = dy + t * D, *row = x + t * D, mu = mean[t], inv = inv_std[t];
    float by_one = 0.0f, by_x = 0.0f;
    for (int64_t j = threadIdx.x; j < D; j += THREADS) {
        by_one = fmaf(g[j], w[j], by_one);
        by_x = fmaf(g[j] * w[j], row[j] - mu, by_x);
    }
    by_one = dr_block_sum<THREADS>(by_one) / (float)D;
    by_x = dr_block_sum<THREADS>(by_x) * inv * inv / (float)D;
    for (int64_t j = threadIdx.x; j < D; j += THREADS)
        dx[t * D + j] += inv * (g[j] * w[j] - by_one - (row[j] - mu) * by_x);
}

// Calls launch<OWN> with what a row of D wants.
#define BY_WIDTH(D, launch)                                                                                  \
    do {                                                                                                     \
        if ((D) <= THREADS)                                                                                  \
            launch(1);                                                                                       \
        else if ((D) <= 4 * THREADS)                                                                         \
            launch(4);                                                                                       \
        else                                                                                                 \
            launch(16);                                                                                      \
    } while (0)

static dr_status rmsnorm_launch(const char *op, const float *x, const float *residual, const float *w,
                                int64_t T, int64_t D, float eps, float *sum, float *y, float *inv_rms,
                                dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid(op, T, 1, &blocks));
#define LAUNCH(OWN)                                                                                          \
    DR_CUDA_LAUNCH(rmsnorm_forward_kernel<OWN>, blocks, THREADS, 0, stream)                                  \
    (x, residual, w, D, eps, sum, y, inv_rms)
    BY_WIDTH(D, LAUNCH);
#undef LAUNCH
    DR_CUDA_LAUNCHED("%s of %lld x %lld", op, (long long)T, (long long)D);
    return DR_OK;
}

extern "C" dr_status dr_cuda_rmsnorm_forward(const float *x, const float *w, int64_t T, int64_t D, float eps,
                                             float *y, float *inv_rms, dr_cuda_stream stream) {
    return rmsnorm_launch("rmsnorm_forward", x, NULL, w, T, D, eps, NULL, y, inv_rms, stream);
}

extern "C" dr_status dr_cuda_rmsnorm_residual_forward(const float *residual, const float *w, int64_t T,
                                                      int64_t D, float eps, float *x, float *y,
                                                      float *inv_rms, dr_cuda_stream stream) {
    return rmsnorm_launch("rmsnorm_residual_forward", x, residual, w, T, D, eps, x, y, inv_rms, stream);
}

extern "C" dr_status dr_cuda_head_norm_forward(float *x, const float *w, int64_t T, int64_t n_heads,
                                               int64_t d, int64_t stride, float eps, float *kept,
                                               float *inv_rms, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("head_norm_forward", T * n_heads, THREADS / WARP, &blocks));
    DR_CUDA_LAUNCH(head_norm_forward_kernel, blocks, THREADS, 0, stream)
    (x, w, T * n_heads, n_heads, d, stride, eps, kept, inv_rms);
    DR_CUDA_LAUNCHED("head_norm_forward of %lld x %lld heads of %lld", (long long)T, (long long)n_heads,
                     (long long)d);
    return DR_OK;
}

extern "C" dr_status dr_cuda_layernorm_forward(const float *x, const float *w, const float *bias, int64_t T,
                                               int64_t D, float eps, float *y, float *mean, float *inv_std,
                                               dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("layernorm_forward", T, 1, &blocks));
    DR_CUDA_LAUNCH(layernorm_forward_kernel, blocks, THREADS, 0, stream)
    (x, w, bias, D, eps, y, mean, inv_std);
    DR_CUDA_LAUNCHED("layernorm_forward of %lld x %lld", (long long)T, (long long)D);
    return DR_OK;
}

extern "C" dr_status dr_cuda_layernorm_backward(const float *dy, const float *x, const float *w,
                                                const float *mean, const float *inv_std, int64_t T, int64_t D,
                                                float *dx, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("layernorm_backward", T, 1, &blocks));
    DR_CUDA_LAUNCH(layernorm_backward_kernel, blocks, THREADS, 0, stream)(dy, x, w, mean, inv_std, D, dx);
    DR_CUDA_LAUNCHED("layernorm_backward of %lld x %lld", (long long)T, (long long)D);
    return DR_OK;
}

// ---- sums over rows ----

enum { COLUMNS = 32, GROUPS = 32 };

// Block: one chunk of rows, THREADS columns; `across` blocks side by side hold all columns.
static __global__ void partial_sums_kernel(const float *dy, const float *x, const float *mean,
                                           const float *inv, int64_t T, int64_t D, int64_t across,
                                           float *partials) {
    const int64_t chunk = blockIdx.x / across, j = blockIdx.x % across * THREADS + threadIdx.x;
    const int64_t begin = chunk * dr_chunk_rows(T), end = min(begin + dr_chunk_rows(T), T);
    if (j >= D) return;
    float sum = 0.0f;
    for (int64_t t = begin; t < end; t++) {
        float value = dy[t * D + j];
        if (x) value *= (x[t * D + j] - (mean ? mean[t] : 0.0f)) * inv[t];
        sum += value;
    }
    partials[chunk * D + j] = sum;
}

// Block: COLUMNS columns; a thread adds up every GROUPS-th part of one, and the first threads add up those.
static __global__ void __launch_bounds__(COLUMNS *GROUPS)
    add_partials_kernel(const float *partials, int64_t n_parts, int64_t D, float *sums) {
    __shared__ float groups[GROUPS][COLUMNS];
    const int column = threadIdx.x % COLUMNS, group = threadIdx.x / COLUMNS;
    const int64_t j = (int64_t)blockIdx.x * COLUMNS + column;
    float sum = 0.0f;
    for (int64_t part = group; j < D && part < n_parts; part += GROUPS) sum += partials[part * D + j];
    groups[group][column] = sum;
    __syncthreads();
    if (group > 0 || j >= D) return;
    for (int i = 1; i < GROUPS; i++) sum += groups[i][column];
    sums[j] += sum;
}

static dr_status add_partials(const char *op, const float *partials, int64_t n_parts, int64_t D, float *sums,
                              dr_cuda_stream stream) {
    unsigned int blocks = 0;
    DR_TRY(dr_cuda_grid(op, D, COLUMNS, &blocks));
    DR_CUDA_LAUNCH(add_partials_kernel, blocks, COLUMNS * GROUPS, 0, stream)(partials, n_parts, D, sums);
    DR_CUDA_LAUNCHED("%s, sums of %lld parts of %lld", op, (long long)n_parts, (long long)D);
    return DR_OK;
}

extern "C" dr_status dr_cuda_column_sums(const char *op, const float *dy, const float *x, const float *mean,
                                         const float *inv, int64_t T, int64_t D, float *partials, float *sums,
                                         dr_cuda_stream stream) {
    unsigned int blocks = 0, across = 0;
    if (T == 0 || D == 0) return DR_OK;
    DR_TRY(dr_cuda_grid(op, D, THREADS, &across));
    DR_TRY(dr_cuda_grid(op, dr_chunk_count(T) * across, 1, &blocks));
    DR_CUDA_LAUNCH(partial_sums_kernel, blocks, THREADS, 0, stream)(dy, x, mean, inv, T, D, across, partials);
    DR_CUDA_LAUNCHED("%s, sums of %lld rows of %lld", op, (long long)T, (long long)D);
    return add_partials(op, partials, dr_chunk_count(T), D, sums, stream);
}

extern "C" dr_status dr_cuda_rmsnorm_backward(const float *dy, const float *x, const float *w,
                                              const float *inv_rms, int64_t T, int64_t D, float *partials,
                                              float *dx, float *dw, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("rmsnorm_backward", dr_norm_parts(T), 1, &blocks));
#define LAUNCH(OWN)                                                                                          \
    DR_CUDA_LAUNCH(rmsnorm_backward_kernel<OWN>, blocks, THREADS, 0, stream)                                 \
    (dy, x, w, inv_rms, T, D, dx, dw ? partials : NULL)
    BY_WIDTH(D, LAUNCH);
#undef LAUNCH
    DR_CUDA_LAUNCHED("rmsnorm_backward of %lld x %lld", (long long)T, (long long)D);
    return dw ? add_partials("rmsnorm_backward", partials, dr_norm_parts(T), D, dw, stream) : DR_OK;
}

extern "C" dr_status dr_cuda_head_norm_backward(float *dx, const float *kept, const float *w,
                                                const float *inv_rms, int64_t T, int64_t n_heads, int64_t d,
                                                int64_t stride, float *partials, float *dw,
                                                dr_cuda_stream stream) {
    const int64_t rows = T * n_heads;
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_CHECK(d <= DR_CUDA_MAX_HEAD, DR_ERR_UNSUPPORTED, "cuda head_norm_backward: heads of %lld, at most %d",
             (long long)d, DR_CUDA_MAX_HEAD);
    DR_TRY(dr_cuda_grid("head_norm_backward", dr_norm_parts(rows), 1, &blocks));
    DR_CUDA_LAUNCH(head_norm_backward_kernel, blocks, DR_CUDA_HEAD_WARPS * WARP, 0, stream)
    (dx, kept, w, inv_rms, rows, n_heads, d, stride, partials);
    DR_CUDA_LAUNCHED("head_norm_backward of %lld x %lld heads of %lld", (long long)T, (long long)n_heads,
                     (long long)d);
    return add_partials("head_norm_backward", partials, dr_norm_parts(rows), d, dw, stream);
}
