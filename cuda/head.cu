// The softmax over the vocabulary: log-sum-exp and entropy, the same over kept sets, log-probabilities of
// targets, and the gradient at the logits. One block a row; sums run in an order that the row alone decides.
#include "cuda/softmax.cuh"

#include <cuda_bf16.h>

enum { THREADS = DR_SOFTMAX_THREADS, TARGET_THREADS = 128 };

static __global__ void __launch_bounds__(THREADS)
    softmax_stats_kernel(const float *logits, int64_t V, float inv_temperature, float *lse, float *entropy) {
    const dr_row_stats stats = dr_row_softmax(logits + blockIdx.x * V, V, inv_temperature);
    if (threadIdx.x > 0) return;
    lse[blockIdx.x] = stats.lse;
    entropy[blockIdx.x] = stats.entropy;
}

extern "C" dr_status dr_cuda_softmax_stats(const float *logits, int64_t T, int64_t V, float temperature,
                                           float *lse, float *entropy, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("softmax_stats", T, 1, &blocks));
    DR_CUDA_LAUNCH(softmax_stats_kernel, blocks, THREADS, 0, stream)
    (logits, V, 1.0f / temperature, lse, entropy);
    DR_CUDA_LAUNCHED("softmax_stats of %lld x %lld", (long long)T, (long long)V);
    return DR_OK;
}

static __global__ void __launch_bounds__(THREADS)
    kept_lse_kernel(const float *logits, int64_t V, float inv_temperature, dr_cuda_kept kept, float *lse) {
    const float *z = logits + blockIdx.x * V;
    const int64_t begin = kept.starts[blockIdx.x], end = kept.starts[blockIdx.x + 1];
    if (begin == end) return;
    float top = -INFINITY;
    double total = 0.0;
    for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) top = fmaxf(top, z[kept.ids[i]]);
    top = dr_block_max<THREADS>(top);
    for (int64_t i = begin + threadIdx.x; i < end; i += THREADS)
        total += dr_mass_of(expf(dr_exponent_of(z[kept.ids[i]], top, inv_temperature)));
    total = dr_block_sum<THREADS>(total);
    if (threadIdx.x == 0) lse[blockIdx.x] = dr_lse_of(top, inv_temperature, (float)total);
}

extern "C" dr_status dr_cuda_kept_lse(const float *logits, int64_t T, int64_t V, float temperature,
                                      dr_cuda_kept kept, float *lse, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("kept_lse", T, 1, &blocks));
    DR_CUDA_LAUNCH(kept_lse_kernel, blocks, THREADS, 0, stream)(logits, V, 1.0f / temperature, kept, lse);
    DR_CUDA_LAUNCHED("kept_lse of %lld x %lld", (long long)T, (long long)V);
    return DR_OK;
}

static __global__ void logprobs_kernel(const float *logits, const int32_t *targets, int64_t T, int64_t V,
                                       float inv_temperature, const float *lse, float *logprob) {
    const int64_t t = dr_cuda_item();
    if (t >= T) return;
    logprob[t] = dr_device_logprob(logits[t * V + targets[t]], inv_temperature, lse[t]);
}

extern "C" dr_status dr_cuda_logprobs(const float *logits, const int32_t *targets, int64_t T, int64_t V,
                                      float temperature, const float *lse, float *logprob,
                                      dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("head_forward", T, TARGET_THREADS, &blocks));
    DR_CUDA_LAUNCH(logprobs_kernel, blocks, TARGET_THREADS, 0, stream)
    (logits, targets, T, V, 1.0f / temperature, lse, logprob);
    DR_CUDA_LAUNCHED("head_forward, log-probabilities of %lld x %lld", (long long)T, (long long)V);
    return DR_OK;
}

static __device__ __forceinline__ void store(float value, float *to) {
    *to = value;
}

static __device__ __forceinline__ void store(float value, uint16_t *to) {
    *to = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

typedef struct row_slope {
    float inv_temperature, scale, lse;
    int64_t target;
} row_slope;

static __device__ __forceinline__ float gradient_at(const row_slope &row, float z, int64_t id) {
    const float value = -row.scale * expf(fmaf(z, row.inv_temperature, -row.lse));
    return id == row.target ? value + row.scale : value;
}

// All threads of the block. out may be z: a tile's logits are read before its columns are cleared.
template <typename ELEMENT>
static __device__ void kept_gradient(const row_slope &row, const float *z, const int32_t *ids, int64_t n,
                                     int64_t V, ELEMENT *out) {
    for (int64_t first = 0; first < n; first += THREADS) {
        const dr_kept_tile tile = dr_kept_tile_at(ids, n, V, first, THREADS);
        const bool has_id = threadIdx.x < tile.n_ids;
        const int64_t id = has_id ? ids[first + threadIdx.x] : 0;
        const float own = has_id ? gradient_at(row, z[id], id) : 0.0f;
        __syncthreads();
        for (int64_t j = tile.begin + threadIdx.x; j < tile.end; j += THREADS) store(0.0f, out + j);
        __syncthreads();
        if (has_id) store(own, out + id);
    }
}

template <typename ELEMENT>
static __global__ void __launch_bounds__(THREADS)
    head_gradient_kernel(const float *logits, const int32_t *targets, dr_cuda_kept kept, int64_t V,
                         float inv_temperature, const float *lse, const float *dlogprob, ELEMENT *gradient) {
    const int64_t t = blockIdx.x;
    const int64_t begin = kept.starts ? kept.starts[t] : 0, n = kept.starts ? kept.starts[t + 1] - begin : 0;
    const row_slope row = {inv_temperature, dlogprob[t] * inv_temperature, lse[t], targets[t]};
    const float *z = logits + t * V;
    ELEMENT *out = gradient + t * V;
    if (n > 0) {
        kept_gradient(row, z, kept.ids + begin, n, V, out);
        return;
    }
    for (int64_t j = threadIdx.x; j < V; j += THREADS) store(gradient_at(row, z[j], j), out + j);
}

template <typename ELEMENT>
static dr_status head_gradient(const float *logits, const int32_t *targets, dr_cuda_kept kept, int64_t T,
                               int64_t V, float temperature, const float *lse, const float *dlogprob,
                               ELEMENT *gradient, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("head_backward", T, 1, &blocks));
    DR_CUDA_LAUNCH(head_gradient_kernel<ELEMENT>, blocks, THREADS, 0, stream)
    (logits, targets, kept, V, 1.0f / temperature, lse, dlogprob, gradient);
    DR_CUDA_LAUNCHED("head_backward, gradient of %lld x %lld", (long long)T, (long long)V);
    return DR_OK;
}

extern "C" dr_status dr_cuda_head_gradient(const float *logits, const int32_t *targets, dr_cuda_kept kept,
                                           int64_t T, int64_t V, float temperature, const float *lse,
                                           const float *dlogprob, float *gradient, dr_cuda_stream stream) {
    return head_gradient(logits, targets, kept, T, V, temperature, lse, dlogprob, gradient, stream);
}

extern "C" dr_status dr_cuda_head_gradient_bf16(const float *logits, const int32_t *targets,
                                                dr_cuda_kept kept, int64_t T, int64_t V, float temperature,
                                                const float *lse, const float *dlogprob, uint16_t *gradient,
                                                dr_cuda_stream stream) {
    return head_gradient(logits, targets, kept, T, V, temperature, lse, dlogprob, gradient, stream);
}
