// Element-wise ops, rotary embedding and embedding tables. No thread adds to what another one writes.
#include "cuda/launch.cuh"

enum { THREADS = 256 };

// One thread a row and pair: the angle is the same for all heads.
static __global__ void rope_kernel(float *x, const int32_t *positions, const float *inv_freq, int64_t T,
                                   int64_t n_heads, int64_t d, int64_t stride, int direction) {
    const int64_t half = d / 2, item = dr_cuda_item(), t = item / half, i = item % half;
    if (t >= T) return;
    float angle = (float)positions[t] * inv_freq[i], s, c;
    sincosf(angle, &s, &c);
    if (direction < 0) s = -s;
    for (int64_t h = 0; h < n_heads; h++) {
        float *head = x + t * stride + h * d;
        float low = head[i], high = head[i + half];
        head[i] = low * c - high * s;
        head[i + half] = high * c + low * s;
    }
}

extern "C" dr_status dr_cuda_rope(float *x, const int32_t *positions, const float *inv_freq, int64_t T,
                                  int64_t n_heads, int64_t d, int64_t stride, int direction,
                                  dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0 || d < 2) return DR_OK;
    DR_TRY(dr_cuda_grid("rope", T * (d / 2), THREADS, &blocks));
    DR_CUDA_LAUNCH(rope_kernel, blocks, THREADS, 0, stream)
    (x, positions, inv_freq, T, n_heads, d, stride, direction);
    DR_CUDA_LAUNCHED("rope of %lld rows, %lld heads of %lld", (long long)T, (long long)n_heads, (long long)d);
    return DR_OK;
}

static __device__ __forceinline__ float normal_cdf(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678f));
}

static __global__ void gelu_forward_kernel(const float *x, int64_t n, float *y) {
    const int64_t i = dr_cuda_item();
    if (i < n) y[i] = x[i] * normal_cdf(x[i]);
}

extern "C" dr_status dr_cuda_gelu_forward(const float *x, int64_t n, float *y, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("gelu_forward", n, THREADS, &blocks));
    DR_CUDA_LAUNCH(gelu_forward_kernel, blocks, THREADS, 0, stream)(x, n, y);
    DR_CUDA_LAUNCHED("gelu_forward of %lld values", (long long)n);
    return DR_OK;
}

// dx may be dy: a thread reads its element before it writes it.
static __global__ void gelu_backward_kernel(const float *dy, const float *x, int64_t n, float *dx) {
    const int64_t i = dr_cuda_item();
    if (i >= n) return;
    float value = x[i];
    dx[i] = dy[i] * (normal_cdf(value) + value * 0.39894228f * expf(-0.5f * value * value));
}

extern "C" dr_status dr_cuda_gelu_backward(const float *dy, const float *x, int64_t n, float *dx,
                                           dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("gelu_backward", n, THREADS, &blocks));
    DR_CUDA_LAUNCH(gelu_backward_kernel, blocks, THREADS, 0, stream)(dy, x, n, dx);
    DR_CUDA_LAUNCHED("gelu_backward of %lld values", (long long)n);
    return DR_OK;
}

static __global__ void add_kernel(const float *x, int64_t n, float *y) {
    const int64_t i = dr_cuda_item();
    if (i < n) y[i] += x[i];
}

extern "C" dr_status dr_cuda_add(const float *x, int64_t n, float *y, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("add", n, THREADS, &blocks));
    DR_CUDA_LAUNCH(add_kernel, blocks, THREADS, 0, stream)(x, n, y);
    DR_CUDA_LAUNCHED("add of %lld values", (long long)n);
    return DR_OK;
}

static __global__ void embedding_forward_kernel(const float *table, const int32_t *ids, int64_t T, int64_t D,
                                                float *out) {
    const int64_t item = dr_cuda_item(), t = item / D, j = item % D;
    if (t < T) out[item] = table[ids[t] * D + j];
}

extern "C" dr_status dr_cuda_embedding_forward(const float *table, const int32_t *ids, int64_t T, int64_t D,
                                               float *out, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0 || D == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("embedding_forward", T * D, THREADS, &blocks));
    DR_CUDA_LAUNCH(embedding_forward_kernel, blocks, THREADS, 0, stream)(table, ids, T, D, out);
    DR_CUDA_LAUNCHED("embedding_forward of %lld x %lld", (long long)T, (long long)D);
    return DR_OK;
}

static __global__ void rounded_rows_kernel(const uint16_t *table, const int32_t *ids, int64_t T, int64_t D,
                                           float *out) {
    const int64_t item = dr_cuda_item(), t = item / D, j = item % D;
    if (t < T) out[item] = __uint_as_float((unsigned int)table[ids[t] * D + j] << 16);
}

extern "C" dr_status dr_cuda_rounded_rows(const uint16_t *table, const int32_t *ids, int64_t T, int64_t D,
                                          float *out, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0 || D == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("weight_rows", T * D, THREADS, &blocks));
    DR_CUDA_LAUNCH(rounded_rows_kernel, blocks, THREADS, 0, stream)(table, ids, T, D, out);
    DR_CUDA_LAUNCHED("weight_rows of %lld x %lld", (long long)T, (long long)D);
    return DR_OK;
}

// One block a row and THREADS columns. The block of an id's first row adds all of that id's rows, in order;
// the others have nothing to do.
static __global__ void __launch_bounds__(THREADS)
    embedding_backward_kernel(const float *dout, const int32_t *ids, int64_t T, int64_t D, int64_t across,
                              float *dtable) {
    const int64_t first = blockIdx.x / across, j = blockIdx.x % across * THREADS + threadIdx.x;
    const int32_t id = ids[first];
    int is_known = 0;
    for (int64_t t = threadIdx.x; t < first; t += THREADS) is_known |= ids[t] == id;
    if (__syncthreads_or(is_known)) return;
    float sum = j < D ? dtable[id * D + j] : 0.0f;
    for (int64_t t0 = first; t0 < T; t0 += 32) { // 32 ids at a time, one a lane
        int64_t t = t0 + threadIdx.x % 32;
        unsigned int equal = __ballot_sync(0xffffffffu, t < T && ids[t] == id);
        for (; equal; equal &= equal - 1)
            if (j < D) sum += dout[(t0 + __ffs(equal) - 1) * D + j];
    }
    if (j < D) dtable[id * D + j] = sum;
}

extern "C" dr_status dr_cuda_embedding_backward(const float *dout, const int32_t *ids, int64_t T, int64_t D,
                                                float *dtable, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0 || D == 0) return DR_OK;
    int64_t across = dr_ceil_div(D, THREADS);
    DR_TRY(dr_cuda_grid("embedding_backward", T * across, 1, &blocks));
    DR_CUDA_LAUNCH(embedding_backward_kernel, blocks, THREADS, 0, stream)(dout, ids, T, D, across, dtable);
    DR_CUDA_LAUNCHED("embedding_backward of %lld x %lld", (long long)T, (long long)D);
    return DR_OK;
}
