// AdamW, element by element, and sums of squares in double of blocks of values, each in an order that the
// number of its values alone decides.
#include "cuda/launch.cuh"

#include <math.h>

enum { THREADS = 256 };

typedef struct adamw_factors {
    float gradient_scale, correction1, correction2;
} adamw_factors;

static __global__ void adamw_kernel(float *weights, const float *gradient, float *m, float *v, int64_t n,
                                    adamw_factors factors, dr_adamw_settings s) {
    const int64_t i = dr_cuda_item();
    if (i >= n) return;
    float g = gradient[i] * factors.gradient_scale;
    float first = s.beta1 * m[i] + (1.0f - s.beta1) * g;
    float second = s.beta2 * v[i] + (1.0f - s.beta2) * g * g;
    float step = first * factors.correction1 / (sqrtf(second * factors.correction2) + s.epsilon);
    m[i] = first;
    v[i] = second;
    weights[i] -= s.learning_rate * (step + s.weight_decay * weights[i]);
}

extern "C" dr_status dr_cuda_adamw(float *weights, const float *gradient, float *m, float *v, int64_t n,
                                   float gradient_scale, const dr_adamw_settings *settings,
                                   dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    adamw_factors factors;
    factors.gradient_scale = gradient_scale;
    factors.correction1 = (float)(1.0 / (1.0 - pow((double)settings->beta1, (double)settings->t)));
    factors.correction2 = (float)(1.0 / (1.0 - pow((double)settings->beta2, (double)settings->t)));
    DR_TRY(dr_cuda_grid("adamw", n, THREADS, &blocks));
    DR_CUDA_LAUNCH(adamw_kernel, blocks, THREADS, 0, stream)(weights, gradient, m, v, n, factors, *settings);
    DR_CUDA_LAUNCHED("adamw of %lld values", (long long)n);
    return DR_OK;
}

static __global__ void __launch_bounds__(THREADS) squares_kernel(const float *x, int64_t n, double *sums) {
    const int64_t begin = (int64_t)blockIdx.x * DR_SQUARE_BLOCK, end = min(begin + DR_SQUARE_BLOCK, n);
    double sum = 0.0;
    for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) sum = fma((double)x[i], (double)x[i], sum);
    sum = dr_block_sum<THREADS>(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" dr_status dr_cuda_sums_of_squares(const float *x, int64_t n, double *sums, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("sums_of_squares", dr_square_blocks(n), 1, &blocks));
    DR_CUDA_LAUNCH(squares_kernel, blocks, THREADS, 0, stream)(x, n, sums);
    DR_CUDA_LAUNCHED("sums_of_squares of %lld values", (long long)n);
    return DR_OK;
}
