// The softmax over the vocabulary: log-sum-exp and entropy, the same over kept sets, log-probabilities of
// targets, and the gradient at the logits. One block a row; sums run in an order that the row alone decides.
#include "cuda/softmax.cuh"

enum { THREADS = 512, TARGET_THREADS = 128 };

static __global__ void __launch_bounds__(THREADS)
    softmax_stats_kernel(const float *logits, int64_t V, float inv_temperature, float *lse, float *entropy) {
    const dr_row_stats stats = dr_row_softmax<THREADS>(logits + blockIdx.x * V, V, inv_temperature);
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

static __global__ void __launch_bounds__(THREADS)
    head_gradient_kernel(float *logits, const int32_t *targets, dr_cuda_kept kept, int64_t V,
                         float inv_temperature, const float *lse, const float *dlogprob) {
    const int64_t t = blockIdx.x, target = targets[t];
    const int64_t begin = kept.starts ? kept.starts[t] : 0, n = kept.starts ? kept.starts[t + 1] - begin : 0;
    const float scale = dlogprob[t] * inv_temperature, shift = lse[t];
    float *z = logits + t * V;
    for (int64_t j = threadIdx.x; j < V; j += THREADS) {
        const bool is_kept = n == 0 || dr_ids_hold(kept.ids + begin, n, j);
        float value = is_kept ? -scale * expf(fmaf(z[j], inv_temperature, -shift)) : 0.0f;
        z[j] = j == target ? value + scale : value;
    }
}

extern "C" dr_status dr_cuda_head_gradient(float *logits, const int32_t *targets, dr_cuda_kept kept,
                                           int64_t T, int64_t V, float temperature, const float *lse,
                                           const float *dlogprob, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (T == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("head_backward", T, 1, &blocks));
    DR_CUDA_LAUNCH(head_gradient_kernel, blocks, THREADS, 0, stream)
    (logits, targets, kept, V, 1.0f / temperature, lse, dlogprob);
    DR_CUDA_LAUNCHED("head_backward, gradient of %lld x %lld", (long long)T, (long long)V);
    return DR_OK;
}
