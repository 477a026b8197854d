// Shared inside the CPU body only: the state behind dr_backend, the fp32 product with its packed panels,
// scratch memory. Invariant: every fp32 output element is one chain of fused multiply-adds over k = 0, 1, 2,
// … from zero (or from the value already there), so its bits do not depend on how rows, columns or threads
// are cut.
#ifndef DR_CORE_COMPUTE_CPU_INTERNAL_H
#define DR_CORE_COMPUTE_CPU_INTERNAL_H

#include <math.h>
#include <string.h>

#include "core/base/hot.h"
#include "core/compute/backend.h"
#include "core/compute/burst.h"

#define DR_INLINE static inline __attribute__((always_inline))

// Kernels that hold vectors in registers come in two widths, 16 lanes (AVX-512) and 8 (the rest); a compiler
// that has to cut 16 lanes in two keeps them in memory. Every element is the same chain of operations in
// both: the same bits.
typedef float vec16 __attribute__((vector_size(64), aligned(4)));
typedef float vec8 __attribute__((vector_size(32), aligned(4)));
#if defined(__x86_64__)
#define DR_WIDE __attribute__((target("arch=x86-64-v4")))
#else
#define DR_WIDE
#endif
bool dr_cpu_is_wide(void); // 16 lanes are native and allowed
// For tests, the other bodies on the same processor: 8 lanes; in backends made while it is set, bf16 in
// lanes, or through the library where the processor multiplies bf16, in lanes elsewhere.
typedef enum dr_bf16_body { DR_BF16_CHOSEN, DR_BF16_LANES, DR_BF16_LIBRARY } dr_bf16_body;
void dr_cpu_narrow_only(bool narrow);
void dr_cpu_bf16_body(dr_bf16_body body);

enum { DR_PANEL = 32, DR_DEPTH = 8192, DR_MAX_THREADS = 256, DR_LANES = 16 };

// Panels of 32 columns of a [k, n] matrix: panel p holds columns 32p … as k rows of 32 floats, zero-padded.
DR_INLINE int64_t dr_panels_floats(int64_t k, int64_t n) {
    return (n + DR_PANEL - 1) / DR_PANEL * DR_PANEL * k;
}
// Packs columns [first_panel*32, …) of B. Element (kk, j) of B is b[kk * row_stride + j * column_stride].
void dr_panels_pack(const float *b, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n,
                    int64_t first_panel, int64_t n_panels, float *panels);
// c [m, n] (+)= a · B for packed panels [first_panel, first_panel + n_panels) on this thread. Element (i, kk)
// of a is a[i * a_row + kk * a_column]; c has row stride c_row.
void dr_panels_multiply(const float *a, int64_t a_row, int64_t a_column, const float *panels, int64_t m,
                        int64_t n, int64_t k, int64_t first_panel, int64_t n_panels, float *c, int64_t c_row,
                        bool accumulate);

// Grow-only scratch of one thread or of the caller.
typedef struct dr_scratch {
    float *data;
    int64_t count;
} dr_scratch;
dr_status dr_scratch_reserve(dr_scratch *scratch, int64_t count);

// Rotary embedding: cosines and sines of positions 0 … n - 1, [n][2][half].
typedef struct dr_turns {
    dr_scratch values, frequencies;
    const float *inv_freq; // [half], the copy that they were made from
    int64_t half, n;
} dr_turns;

typedef struct dr_cpu_state {
    dr_turns turns;
    dr_scratch shared;                 // packed operand of the running call
    dr_scratch head;                   // of the loss head, which calls linear ops while it holds it
    dr_scratch thread[DR_MAX_THREADS]; // one a thread
    int64_t cache;                     // bytes of the last one, or what is likely
    dr_backend **singles;              // [n_threads] bodies of one thread each, or NULL (passes_cpu.c)
    dr_scratch *kept;                  // [n_kept] kept sets of the last draws, ids where floats are
    int64_t n_kept;
    const dr_burst *burst;           // the one that is under way, or NULL (burst_cpu.c)
    int32_t burst_step, burst_taken; // draws made; pages taken of the pool
    dr_burst_row *burst_rows;        // [n_burst_rows]
    dr_sampled *burst_drawn;         // [n_burst_drawn], of which the burst has n_steps times n_rows
    uint32_t *burst_bits;            // [n_burst_rows], of one step
    int64_t n_burst_rows, n_burst_drawn;
    dr_scratch operands[2]; // of a product, as floats, where they are rounded for it
    dr_scratch gated;       // silu(gate) · up of a chunk, where the gradient there stood before
    struct dr_bf16 *bf16;   // NULL in fp32 and where the processor does not multiply bf16
} dr_cpu_state;

DR_INLINE dr_cpu_state *dr_cpu_state_of(dr_backend *b) {
    return b->state;
}

typedef uint16_t bf16;

struct dr_weight {
    int64_t n_out, n_in;
    const float *values; // what was packed last; borrowed, [n_out, n_in]; NULL in bf16
    void *bf16;          // rounded: [n_out, n_in] (gemm_bf16.c) or panels (gemm_bf16_lanes.c)
};

// Rows of a product's operand: values [T, n], or gate and up [T, 2n] of which they are silu(gate) · up.
// `rounded`, where it is not NULL, holds them as bf16 and stands for values.
typedef struct dr_rows {
    const float *values;
    const bf16 *rounded;
    int64_t n;
    bool is_gated;
} dr_rows;

DR_INLINE dr_rows dr_rows_from(const dr_rows *rows, int64_t t) {
    dr_rows from = *rows;
    const int64_t before = t * rows->n * (rows->is_gated ? 2 : 1);
    if (rows->rounded)
        from.rounded += before;
    else
        from.values += before;
    return from;
}

DR_INLINE dr_rows dr_rows_plain(const float *values, int64_t n) {
    return (dr_rows){values, NULL, n, false};
}

// Where a product's rows go: floats, or bf16 where `rounded` is not NULL.
typedef struct dr_result {
    float *values;
    bf16 *rounded;
} dr_result;

DR_INLINE dr_result dr_result_at(const dr_result *result, int64_t at) {
    return result->rounded ? (dr_result){NULL, result->rounded + at} : (dr_result){result->values + at, NULL};
}
enum { DR_UNIT_ROWS = 512 }; // of one product through oneDNN, at most
// How many of `left` rows are made at a time, so that what is made stays small: rows do not depend on each
// other, and a sum over rows goes on from chunk to chunk (operand_cpu.c).
int64_t dr_rows_chunk(const dr_backend *b, int64_t left);
// Floats that attention in both directions takes a thread, and a fusion's gradient in all.
int64_t dr_cpu_both_ways_floats(const dr_pass_shape *s);
int64_t dr_cpu_fusion_floats(const dr_pass_shape *s);
// The first T rows as floats [T, n], `rounds`: rounded to bf16. In state->operands[which], gated rows in
// state->gated, or where they are when there is nothing to make.
dr_status dr_rows_floats(dr_backend *b, int which, const dr_rows *rows, int64_t T, bool rounds,
                         const float **out);
dr_status dr_rows_bf16(dr_backend *b, const dr_rows *rows, int64_t T, bf16 *out); // out [T, n]
// dgate_up [T, 2n] from the gradient dact [T, n] at silu(gate) · up, which takes its place there. Both are of
// dr_gated_bytes.
void dr_swiglu_gradient(dr_backend *b, const void *gate_up, int64_t T, int64_t n, float *dact,
                        void *dgate_up);

// c [m, n] = op(a) · op(b) (+ c) with threads; the building block of every fp32 product.
dr_status dr_cpu_product(dr_backend *b, const float *a, int64_t a_row, int64_t a_column,
                         const float *b_matrix, int64_t b_row, int64_t b_column, int64_t m, int64_t n,
                         int64_t k, float *c, bool accumulate);
// y [T, n_out] = x Wᵀ from the weight's own values, with threads (gemm_weight.c).
dr_status dr_cpu_apply_weight(dr_backend *b, const dr_weight *w, const float *x, int64_t T, float *y);

// One draw for each row that is not finished (softmax_cpu.c), settings and bits checked by the caller.
typedef struct dr_cpu_draws {
    const dr_sampling *settings; // [T]
    const uint32_t *bits;        // [T]
    const dr_burst_row *rows;    // [T], or NULL: none is finished
    int32_t step;                // of the burst, for errors
    dr_scratch *kept;            // [T], which the results point into
    dr_sampled *out;             // [T]
} dr_cpu_draws;
dr_status dr_cpu_reserve_draws(dr_backend *b, int64_t n_draws, int64_t V); // whose kept sets stand together
dr_status dr_cpu_draw(dr_backend *b, const float *logits, int64_t T, int64_t V, const dr_cpu_draws *draws);

// to[c * to_row + r] = from[r * from_row + c] (gemm_weight.c).
void dr_turn_over(const float *from, int64_t from_row, int64_t rows, int64_t columns, float *to,
                  int64_t to_row);

DR_INLINE float dr_bf16_value(uint32_t bits) {
    union {
        uint32_t u;
        float f;
    } v = {.u = bits << 16};
    return v.f;
}

DR_INLINE uint32_t dr_bf16_bits(float x) { // to nearest even; NaN stays NaN
    union {
        float f;
        uint32_t u;
    } v = {.f = x};
    uint32_t rounded = (v.u + 0x7FFFu + (v.u >> 16 & 1)) >> 16;
    return (v.u & 0x7FFFFFFFu) > 0x7F800000u ? v.u >> 16 | 0x40u : rounded;
}

// Rounds as dr_bf16_bits does. The second keeps floats; out may be x there (bf16_values.c).
void dr_bf16_round(const float *x, int64_t n, int n_threads, bf16 *out);
void dr_bf16_round_floats(const float *x, int64_t n, int n_threads, float *out);

// bf16 products of any processor (gemm_bf16_lanes.c): rounded operands, in fp32, each output one chain.
dr_status dr_bf16_lanes_pack(dr_backend *b, dr_weight *w, const float *values);
dr_status dr_bf16_lanes_take(dr_backend *b, dr_weight *w, int64_t first, int64_t n, const bf16 *rounded);
void dr_bf16_lanes_row(const dr_weight *w, int64_t row, float *out); // out [n_in]
dr_status dr_bf16_lanes_forward(dr_backend *b, const dr_weight *w, const dr_rows *x, int64_t T,
                                const dr_result *y);
dr_status dr_bf16_lanes_backward_input(dr_backend *b, const dr_weight *w, const dr_rows *dy, int64_t T,
                                       float *dx, bool accumulate);
dr_status dr_bf16_lanes_backward_weight(dr_backend *b, const dr_rows *x, const dr_rows *dy, int64_t T,
                                        float *dw);

// Bytes that the products of T tokens, a chunk at most, with one weight take beside their operands.
int64_t dr_bf16_lanes_memory(const dr_backend *b, int64_t T, int64_t n_out, int64_t n_in);

// bf16 products through oneDNN (gemm_bf16.c).
dr_status dr_bf16_create(int n_threads, struct dr_bf16 **out);
void dr_bf16_destroy(struct dr_bf16 *bf16);
dr_status dr_bf16_weight_pack(struct dr_bf16 *bf16, dr_weight *w, const float *values);
dr_status dr_bf16_weight_take(dr_weight *w, int64_t first, int64_t n, const bf16 *rounded);
void dr_bf16_row(const dr_weight *w, int64_t row, float *out); // out [n_in]
dr_status dr_bf16_forward(dr_backend *b, const dr_weight *w, const dr_rows *x, int64_t T, const dr_result *y);
dr_status dr_bf16_backward_input(dr_backend *b, const dr_weight *w, const dr_rows *dy, int64_t T, float *dx,
                                 bool accumulate);
dr_status dr_bf16_backward_weight(dr_backend *b, const dr_rows *x, const dr_rows *dy, int64_t T, float *dw);

// Bodies of one thread each, which share b's weights (passes_cpu.c).
dr_status dr_cpu_singles_create(dr_backend *b);
void dr_cpu_singles_destroy(dr_backend *b);
int64_t dr_cpu_row_work(const dr_cached_pass *pass, int32_t row); // multiply-adds
// begins [n_parts + 1]: where parts of about the same work begin, each of a row at least; no more parts than
// rows.
void dr_cpu_share_out(const dr_cached_pass *pass, int32_t n_parts, int32_t *begins);

// e^x with a relative error below 2e-7; 0 below -87, e^88 above 88. Written so that compilers turn loops over
// it into vectors.
DR_INLINE float dr_expf(float x) {
    float y = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float t = y * 1.44269504f + 12582912.0f; // 1.5·2^23: rounds to the nearest integer
    float n = t - 12582912.0f;
    float r = y - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts (Cody & Waite)
    float p = 1.9875691500e-4f;                          // minimax polynomial of Cephes' expf
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (int32_t)n;
    union {
        uint32_t u;
        float f;
    } scale = {.u = ((uint32_t)bits + 127u) << 23}; // of a NaN any value: p is NaN then
    return x < -87.0f ? 0.0f : p * scale.f;
}

// Sums over a row run in 16 lanes that are added pairwise at the end: one order, whatever the vectors' width.
DR_INLINE float dr_lane_sum(const float lanes[DR_LANES]) {
    float s[DR_LANES];
    memcpy(s, lanes, sizeof s);
    for (int width = DR_LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++) s[l] += s[l + width];
    return s[0];
}

DR_INLINE float dr_dot(const float *x, const float *y, int64_t n) {
    float lanes[DR_LANES] = {0};
    int64_t i = 0;
    for (; i + DR_LANES <= n; i += DR_LANES)
        for (int l = 0; l < DR_LANES; l++) lanes[l] += x[i + l] * y[i + l];
    for (int l = 0; i + l < n; l++) lanes[l] += x[i + l] * y[i + l];
    return dr_lane_sum(lanes);
}

// Eight lanes at a time, where a loop over plain floats is not turned into vectors by itself. Vectors go
// through pointers: as arguments they would depend on what processor the caller is compiled for.
typedef int32_t int8v __attribute__((vector_size(32)));
#define DR_SELECT8(mask, yes, no) ((vec8)(((mask) & (int8v)(yes)) | (~(mask) & (int8v)(no))))
#define DR_SAME8(value) ((vec8){value, value, value, value, value, value, value, value})
#define DR_LOAD8(at) (*(const vec8 *)(at))

// dr_expf of each lane, bit for bit. out may be x.
DR_INLINE void dr_expf8(const vec8 *x, vec8 *out) {
    int8v low = *x<-87.0f, high = *x> 88.0f;
    vec8 y = DR_SELECT8(low, DR_SAME8(-87.0f), DR_SELECT8(high, DR_SAME8(88.0f), *x));
    vec8 t = y * 1.44269504f + 12582912.0f, n = t - 12582912.0f;
    vec8 r = y - n * 0.693359375f + n * 2.12194440e-4f;
    vec8 p = DR_SAME8(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int8v scale = (__builtin_convertvector(n, int8v) + 127) << 23;
    *out = (vec8)(~low & (int8v)(p * (vec8)scale));
}

// -inf of nothing; NaNs are passed over.
DR_INLINE float dr_largest(const float *x, int64_t n) {
    vec8 lanes[2] = {DR_SAME8(-INFINITY), DR_SAME8(-INFINITY)};
    float top = -INFINITY;
    int64_t i = 0;
    for (; i + DR_LANES <= n; i += DR_LANES)
        for (int half = 0; half < 2; half++) {
            vec8 here = DR_LOAD8(x + i + 8 * half);
            int8v larger = here > lanes[half];
            lanes[half] = DR_SELECT8(larger, here, lanes[half]);
        }
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int l = 0; l < DR_LANES; l++) top = lanes[l / 8][l % 8] > top ? lanes[l / 8][l % 8] : top;
    return top;
}

// What ops ask of the scratch for passes of a shape, in floats; of a thread's scratch the first four.
int64_t dr_cpu_attention_floats(const dr_pass_shape *shape);
int64_t dr_cpu_cached_floats(const dr_pass_shape *shape);
int64_t dr_cpu_weight_floats(const dr_pass_shape *shape);
int64_t dr_cpu_draw_floats(const dr_pass_shape *shape);
int64_t dr_cpu_prefix_floats(const dr_pass_shape *shape);
int64_t dr_cpu_turns_floats(const dr_pass_shape *shape);
int64_t dr_cpu_singles_memory(const dr_backend *b, const dr_pass_shape *shape); // bytes, scratch of theirs
// Bytes of the operands that are made for products: in bf16 in lanes, through oneDNN, and of the way that b
// takes.
int64_t dr_bf16_lanes_rounded(const dr_backend *b, const dr_pass_shape *shape);
int64_t dr_bf16_memory(const dr_pass_shape *shape);
int64_t dr_cpu_operand_memory(const dr_backend *b, const dr_pass_shape *shape);

// Op families; each file fills its entries.
void dr_cpu_fill_linear(dr_backend_ops *ops);
void dr_cpu_fill_norm(dr_backend_ops *ops);
void dr_cpu_fill_elementwise(dr_backend_ops *ops);
void dr_cpu_fill_attention(dr_backend_ops *ops);
void dr_cpu_fill_head(dr_backend_ops *ops);
void dr_cpu_fill_softmax(dr_backend_ops *ops);
void dr_cpu_fill_passes(dr_backend_ops *ops);
void dr_cpu_fill_burst(dr_backend_ops *ops);
void dr_cpu_fill_retrieval(dr_backend_ops *ops);
void dr_cpu_fill_retrieval_backward(dr_backend_ops *ops);

#endif
