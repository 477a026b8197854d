// Products. fp32: tiles of 64 x 64, each element one chain of fused multiply-adds over k in order, so a row
// has the same bits in every batch. bf16: the same tiles on the tensor cores, k in steps of 16 in order.
#include "cuda/launch.cuh"

#include <cuda_bf16.h>
#include <mma.h>

enum { TILE = DR_CUDA_TILE, OWN = DR_CUDA_FP32_OWN };

// One more than TILE: threads that write along k then meet different banks.
enum { PITCH = TILE + 1 };

static __device__ __forceinline__ float element(const dr_cuda_operand &from, int64_t line, int64_t k) {
    return from.values[line * from.line_stride + k * from.k_stride];
}

// Elements k0 … k0 + FP32_DEPTH - 1 of TILE lines from `line0` on, times `scale`; 0 outside.
static __device__ void load_fp32(const dr_cuda_operand &from, int64_t line0, int64_t lines, int64_t k0,
                                 int64_t k, float scale, float (*to)[PITCH]) {
    for (int item = threadIdx.x; item < TILE * DR_CUDA_FP32_DEPTH; item += DR_CUDA_FP32_THREADS) {
        dr_place at = dr_tile_item(item, DR_CUDA_FP32_DEPTH, from.k_stride == 1);
        int64_t line = line0 + at.row, kk = k0 + at.column;
        to[at.column][at.row] = line < lines && kk < k ? __fmul_rn(scale, element(from, line, kk)) : 0.0f;
    }
}

static __global__ void __launch_bounds__(DR_CUDA_FP32_THREADS) fp32_kernel(dr_cuda_product p) {
    __shared__ float a[DR_CUDA_FP32_DEPTH][PITCH], b[DR_CUDA_FP32_DEPTH][PITCH];
    const dr_place corner = dr_tile_corner(blockIdx.x, dr_ceil_div(p.n, TILE));
    float sum[OWN][OWN];
    for (int i = 0; i < OWN; i++)
        for (int j = 0; j < OWN; j++) {
            int64_t row = corner.row + dr_thread_row(threadIdx.x, i),
                    column = corner.column + dr_thread_column(threadIdx.x, j);
            bool is_read = p.beta != 0.0f && row < p.m && column < p.n;
            sum[i][j] = is_read ? __fmul_rn(p.beta, p.c[row * p.n + column]) : 0.0f;
        }
    for (int64_t k0 = 0; k0 < p.k; k0 += DR_CUDA_FP32_DEPTH) {
        __syncthreads();
        load_fp32(p.a, corner.row, p.m, k0, p.k, p.alpha, a);
        load_fp32(p.b, corner.column, p.n, k0, p.k, 1.0f, b);
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < DR_CUDA_FP32_DEPTH; kk++) {
            float left[OWN], right[OWN];
            for (int i = 0; i < OWN; i++) left[i] = a[kk][dr_thread_row(threadIdx.x, i)];
            for (int j = 0; j < OWN; j++) right[j] = b[kk][dr_thread_column(threadIdx.x, j)];
            for (int i = 0; i < OWN; i++)
                for (int j = 0; j < OWN; j++) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
        }
    }
    for (int i = 0; i < OWN; i++)
        for (int j = 0; j < OWN; j++) {
            int64_t row = corner.row + dr_thread_row(threadIdx.x, i),
                    column = corner.column + dr_thread_column(threadIdx.x, j);
            if (row >= p.m || column >= p.n) continue;
            p.c[row * p.n + column] = p.bias ? __fadd_rn(sum[i][j], p.bias[column]) : sum[i][j];
        }
}

static dr_status tiles_of(const dr_cuda_product *p, unsigned int *out_blocks) {
    return dr_cuda_grid(p->op, dr_ceil_div(p->m, TILE) * dr_ceil_div(p->n, TILE), 1, out_blocks);
}

extern "C" dr_status dr_cuda_product_fp32(const dr_cuda_product *product, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (product->m == 0 || product->n == 0) return DR_OK;
    DR_TRY(tiles_of(product, &blocks));
    DR_CUDA_LAUNCH(fp32_kernel, blocks, DR_CUDA_FP32_THREADS, 0, stream)(*product);
    DR_CUDA_LAUNCHED("%s of %lld x %lld x %lld", product->op, (long long)product->m, (long long)product->n,
                     (long long)product->k);
    return DR_OK;
}

// ---- bf16 ----

enum { THREADS = 256, ROUNDED = DR_CUDA_ROUNDED };

// One value of memory in fp32 or bf16.
static __device__ __forceinline__ float load(const float *from) {
    return *from;
}

static __device__ __forceinline__ float load(const uint16_t *from) {
    return __bfloat162float(__ushort_as_bfloat16(*from));
}

static __device__ __forceinline__ void store(float value, float *to) {
    *to = value;
}

static __device__ __forceinline__ void store(float value, uint16_t *to) {
    *to = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// Rows of a tile in shared memory: eight elements more than the depth, so that neighbouring rows lie in
// different banks and begin where the tensor cores' loads may.
enum { BF16_PITCH = DR_CUDA_BF16_DEPTH + 8, SUM_PITCH = TILE + 4, STEP = 16, HALF = 32 };

static __device__ void load_bf16(const dr_cuda_operand &from, int64_t line0, int64_t lines, int64_t k0,
                                 int64_t k, __nv_bfloat16 (*to)[BF16_PITCH]) {
    for (int item = threadIdx.x; item < TILE * DR_CUDA_BF16_DEPTH; item += DR_CUDA_BF16_THREADS) {
        dr_place at = dr_tile_item(item, DR_CUDA_BF16_DEPTH, from.k_stride == 1);
        int64_t line = line0 + at.row, kk = k0 + at.column;
        __nv_bfloat16 value = __float2bfloat16_rn(0.0f);
        if (line < lines && kk < k) {
            int64_t offset = line * from.line_stride + kk * from.k_stride;
            value = from.rounded ? __ushort_as_bfloat16(from.rounded[offset])
                                 : __float2bfloat16_rn(from.values[offset]);
        }
        to[at.row][at.column] = value;
    }
}

// Four warps, each a quarter of the tile: 2 x 2 fragments of 16 x 16.
static __global__ void __launch_bounds__(DR_CUDA_BF16_THREADS) bf16_kernel(dr_cuda_product p) {
    using namespace nvcuda;
    __shared__ __align__(32) __nv_bfloat16 a[TILE][BF16_PITCH];
    __shared__ __align__(32) __nv_bfloat16 b[TILE][BF16_PITCH];
    __shared__ __align__(32) float sums[TILE][SUM_PITCH];
    const dr_place corner = dr_tile_corner(blockIdx.x, dr_ceil_div(p.n, TILE));
    const int warp = threadIdx.x / 32, top = warp / 2 * HALF, left = warp % 2 * HALF;
    wmma::fragment<wmma::accumulator, STEP, STEP, STEP, float> sum[2][2];
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) wmma::fill_fragment(sum[i][j], 0.0f);
    for (int64_t k0 = 0; k0 < p.k; k0 += DR_CUDA_BF16_DEPTH) {
        __syncthreads();
        load_bf16(p.a, corner.row, p.m, k0, p.k, a);
        load_bf16(p.b, corner.column, p.n, k0, p.k, b);
        __syncthreads();
        for (int kk = 0; kk < DR_CUDA_BF16_DEPTH; kk += STEP) {
            wmma::fragment<wmma::matrix_a, STEP, STEP, STEP, __nv_bfloat16, wmma::row_major> rows[2];
            wmma::fragment<wmma::matrix_b, STEP, STEP, STEP, __nv_bfloat16, wmma::col_major> columns[2];
            for (int i = 0; i < 2; i++) {
                wmma::load_matrix_sync(rows[i], &a[top + i * STEP][kk], BF16_PITCH);
                wmma::load_matrix_sync(columns[i], &b[left + i * STEP][kk], BF16_PITCH);
            }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 2; j++) wmma::mma_sync(sum[i][j], rows[i], columns[j], sum[i][j]);
        }
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++)
            wmma::store_matrix_sync(&sums[top + i * STEP][left + j * STEP], sum[i][j], SUM_PITCH,
                                    wmma::mem_row_major);
    __syncthreads();
    for (int item = threadIdx.x; item < TILE * TILE; item += DR_CUDA_BF16_THREADS) {
        int64_t row = corner.row + item / TILE, column = corner.column + item % TILE;
        if (row >= p.m || column >= p.n) continue;
        float value = sums[item / TILE][item % TILE];
        if (p.beta != 0.0f) value = __fadd_rn(p.c[row * p.n + column], value);
        if (p.bias) value = __fadd_rn(value, p.bias[column]);
        if (p.rounded_c)
            store(value, p.rounded_c + row * p.n + column);
        else
            p.c[row * p.n + column] = value;
    }
}

extern "C" dr_status dr_cuda_product_bf16(const dr_cuda_product *product, dr_cuda_stream stream) {
    unsigned int blocks = 0;
    if (product->m == 0 || product->n == 0) return DR_OK;
    DR_TRY(tiles_of(product, &blocks));
    DR_CUDA_LAUNCH(bf16_kernel, blocks, DR_CUDA_BF16_THREADS, 0, stream)(*product);
    DR_CUDA_LAUNCHED("%s, bf16, of %lld x %lld x %lld", product->op, (long long)product->m,
                     (long long)product->n, (long long)product->k);
    return DR_OK;
}

// ROUNDED values at addresses that wide loads and stores take.
static __device__ __forceinline__ void load_wide(const float *from, float (&values)[ROUNDED]) {
    const float4 low = reinterpret_cast<const float4 *>(from)[0],
                 high = reinterpret_cast<const float4 *>(from)[1];
    memcpy(values, &low, sizeof low);
    memcpy(values + 4, &high, sizeof high);
}

static __device__ __forceinline__ void load_wide(const uint16_t *from, float (&values)[ROUNDED]) {
    const uint4 packed = *reinterpret_cast<const uint4 *>(from);
    uint16_t halves[ROUNDED];
    memcpy(halves, &packed, sizeof packed);
    for (int i = 0; i < ROUNDED; i++) values[i] = load(halves + i);
}

static __device__ __forceinline__ void store_wide(const float (&values)[ROUNDED], float *to) {
    reinterpret_cast<float4 *>(to)[0] = make_float4(values[0], values[1], values[2], values[3]);
    reinterpret_cast<float4 *>(to)[1] = make_float4(values[4], values[5], values[6], values[7]);
}

static __device__ __forceinline__ void store_wide(const float (&values)[ROUNDED], uint16_t *to) {
    __nv_bfloat162 pairs[ROUNDED / 2];
    for (int i = 0; i < ROUNDED / 2; i++) pairs[i] = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
    uint4 packed;
    memcpy(&packed, pairs, sizeof packed);
    *reinterpret_cast<uint4 *>(to) = packed;
}

// Each thread ROUNDED values, two loads and one store where the addresses allow it.
static __global__ void __launch_bounds__(THREADS)
    round_kernel(const float *values, int64_t n, bool is_wide, uint16_t *rounded) {
    const int64_t at = dr_cuda_item() * ROUNDED;
    if (is_wide && at + ROUNDED <= n) {
        float own[ROUNDED];
        load_wide(values + at, own);
        store_wide(own, rounded + at);
        return;
    }
    for (int64_t i = at; i < at + ROUNDED && i < n; i++) store(values[i], rounded + i);
}

extern "C" dr_status dr_cuda_round_bf16(const float *values, int64_t n, uint16_t *rounded,
                                        dr_cuda_stream stream) {
    const bool is_wide = ((uintptr_t)values | (uintptr_t)rounded) % sizeof(uint4) == 0;
    unsigned int blocks = 0;
    if (n == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("rounding to bf16", n, (int64_t)THREADS * ROUNDED, &blocks));
    DR_CUDA_LAUNCH(round_kernel, blocks, THREADS, 0, stream)(values, n, is_wide, rounded);
    DR_CUDA_LAUNCHED("rounding to bf16 of %lld values", (long long)n);
    return DR_OK;
}

static __device__ __forceinline__ float gated(float gate, float up) {
    return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, expf(-gate))), up);
}

static bool takes_wide(int64_t F, uintptr_t addresses) {
    return F % ROUNDED == 0 && addresses % sizeof(uint4) == 0;
}

// Each thread a piece of a row; wide: where rows of gate, up and out begin at addresses that wide loads and
// stores take.
template <typename ELEMENT>
static __global__ void __launch_bounds__(THREADS)
    swiglu_kernel(const ELEMENT *gate_up, int64_t T, int64_t F, bool is_wide, ELEMENT *out) {
    const dr_place at = dr_piece_at(dr_cuda_item(), F);
    if (at.row >= T) return;
    const ELEMENT *gate = gate_up + dr_gate_at(at, F), *up = gate + F;
    ELEMENT *to = out + at.row * F + at.column;
    if (is_wide) {
        float gates[ROUNDED], ups[ROUNDED];
        load_wide(gate, gates);
        load_wide(up, ups);
        for (int i = 0; i < ROUNDED; i++) gates[i] = gated(gates[i], ups[i]);
        store_wide(gates, to);
        return;
    }
    for (int i = 0; i < ROUNDED && at.column + i < F; i++) store(gated(load(gate + i), load(up + i)), to + i);
}

template <typename ELEMENT>
static dr_status swiglu(const ELEMENT *gate_up, int64_t T, int64_t F, ELEMENT *out, dr_cuda_stream stream) {
    const bool is_wide = takes_wide(F, (uintptr_t)gate_up | (uintptr_t)out);
    unsigned int blocks = 0;
    if (T == 0 || F == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("swiglu", dr_piece_count(T, F), THREADS, &blocks));
    DR_CUDA_LAUNCH(swiglu_kernel<ELEMENT>, blocks, THREADS, 0, stream)(gate_up, T, F, is_wide, out);
    DR_CUDA_LAUNCHED("swiglu of %lld x %lld", (long long)T, (long long)F);
    return DR_OK;
}

extern "C" dr_status dr_cuda_swiglu(const float *gate_up, int64_t T, int64_t F, float *out,
                                    dr_cuda_stream stream) {
    return swiglu(gate_up, T, F, out, stream);
}

extern "C" dr_status dr_cuda_swiglu_bf16(const uint16_t *gate_up, int64_t T, int64_t F, uint16_t *out,
                                         dr_cuda_stream stream) {
    return swiglu(gate_up, T, F, out, stream);
}

// One value's gradient g at silu(gate) · up becomes that of gate and that of up; returns gated(gate, up).
static __device__ __forceinline__ float gated_gradient(float gate, float up, float g, float *dgate,
                                                       float *dup) {
    const float one = __fadd_rn(1.0f, expf(-gate)), s = __fdiv_rn(1.0f, one);
    *dup = __fmul_rn(__fmul_rn(g, gate), s);
    *dgate = __fmul_rn(__fmul_rn(__fmul_rn(g, up), s), fmaf(gate, __fadd_rn(1.0f, -s), 1.0f));
    return __fmul_rn(__fdiv_rn(gate, one), up);
}

// act may be dact: a thread reads its values before it writes them.
template <typename ELEMENT>
static __global__ void __launch_bounds__(THREADS)
    swiglu_gradient_kernel(const ELEMENT *gate_up, const float *dact, int64_t T, int64_t F, bool is_wide,
                           ELEMENT *dgate_up, ELEMENT *act) {
    const dr_place at = dr_piece_at(dr_cuda_item(), F);
    if (at.row >= T) return;
    const int64_t first = at.row * F + at.column, gate = dr_gate_at(at, F), up = gate + F;
    if (is_wide) {
        float gates[ROUNDED], ups[ROUNDED], g[ROUNDED], values[ROUNDED];
        load_wide(gate_up + gate, gates);
        load_wide(gate_up + up, ups);
        load_wide(dact + first, g);
        for (int i = 0; i < ROUNDED; i++) {
            float dgate, dup;
            values[i] = gated_gradient(gates[i], ups[i], g[i], &dgate, &dup);
            gates[i] = dgate;
            ups[i] = dup;
        }
        store_wide(gates, dgate_up + gate);
        store_wide(ups, dgate_up + up);
        store_wide(values, act + first);
        return;
    }
    for (int i = 0; i < ROUNDED && at.column + i < F; i++) {
        float dgate, dup;
        const float value =
            gated_gradient(load(gate_up + gate + i), load(gate_up + up + i), dact[first + i], &dgate, &dup);
        store(dgate, dgate_up + gate + i);
        store(dup, dgate_up + up + i);
        store(value, act + first + i);
    }
}

template <typename ELEMENT>
static dr_status swiglu_gradient(const ELEMENT *gate_up, const float *dact, int64_t T, int64_t F,
                                 ELEMENT *dgate_up, ELEMENT *act, dr_cuda_stream stream) {
    const bool is_wide =
        takes_wide(F, (uintptr_t)gate_up | (uintptr_t)dact | (uintptr_t)dgate_up | (uintptr_t)act);
    unsigned int blocks = 0;
    if (T == 0 || F == 0) return DR_OK;
    DR_TRY(dr_cuda_grid("gradient of swiglu", dr_piece_count(T, F), THREADS, &blocks));
    DR_CUDA_LAUNCH(swiglu_gradient_kernel<ELEMENT>, blocks, THREADS, 0, stream)
    (gate_up, dact, T, F, is_wide, dgate_up, act);
    DR_CUDA_LAUNCHED("gradient of swiglu of %lld x %lld", (long long)T, (long long)F);
    return DR_OK;
}

extern "C" dr_status dr_cuda_swiglu_gradient(const float *gate_up, const float *dact, int64_t T, int64_t F,
                                             float *dgate_up, float *act, dr_cuda_stream stream) {
    return swiglu_gradient(gate_up, dact, T, F, dgate_up, act, stream);
}

extern "C" dr_status dr_cuda_swiglu_gradient_bf16(const uint16_t *gate_up, const float *dact, int64_t T,
                                                  int64_t F, uint16_t *dgate_up, uint16_t *act,
                                                  dr_cuda_stream stream) {
    return swiglu_gradient(gate_up, dact, T, F, dgate_up, act, stream);
}
