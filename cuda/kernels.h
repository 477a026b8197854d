// The kernels' launchers, one a kernel or family: each puts its work on the stream, asks CUDA whether the
// launch was taken and returns DR_ERR_INTERNAL, naming op and sizes, when not. Pointers are device memory
// unless said; shapes and formulas are those of core/compute/backend.h. Nothing here waits or allocates.
#ifndef DR_CUDA_KERNELS_H
#define DR_CUDA_KERNELS_H

#include "core/compute/dropout.h"
#include "cuda/attention_index.h"
#include "cuda/retrieval_index.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *dr_cuda_stream; // what cudaStream_t is, so that this header needs no toolkit

// ---- products (linear.cu) ----

// Element (line, k) is values[line * line_stride + k * k_stride]; `rounded`, where it is not NULL, holds the
// same elements as bf16 and stands for them.
typedef struct dr_cuda_operand {
    const float *values;
    const uint16_t *rounded;
    int64_t line_stride, k_stride;
} dr_cuda_operand;

// c [m, n] = alpha · a · b + beta · c + bias: a has m lines, b has n, both of k elements; bias [n] or NULL.
// rounded_c, where it is not NULL, gets the values instead of c, as bf16: beta 0, dr_cuda_product_bf16 only.
typedef struct dr_cuda_product {
    const char *op; // for errors
    dr_cuda_operand a, b;
    int64_t m, n, k;
    float alpha, beta;
    const float *bias;
    float *c;
    uint16_t *rounded_c;
} dr_cuda_product;

// Every element is one chain of fused multiply-adds over k = 0, 1, 2, … that begins with beta · c.
dr_status dr_cuda_product_fp32(const dr_cuda_product *product, dr_cuda_stream stream);
// Operands rounded to bf16, fp32 sums in steps of 16 k on the tensor cores. alpha 1, beta 0 or 1.
dr_status dr_cuda_product_bf16(const dr_cuda_product *product, dr_cuda_stream stream);
// rounded [n] = values as bf16, to nearest, ties to even; not overlapping.
dr_status dr_cuda_round_bf16(const float *values, int64_t n, uint16_t *rounded, dr_cuda_stream stream);

// out [T, F] = silu(gate) · up of gate_up [T, 2F], gate first; in bf16 computed in fp32 and rounded in the
// same way as dr_cuda_round_bf16 rounds; not overlapping.
dr_status dr_cuda_swiglu(const float *gate_up, int64_t T, int64_t F, float *out, dr_cuda_stream stream);
dr_status dr_cuda_swiglu_bf16(const uint16_t *gate_up, int64_t T, int64_t F, uint16_t *out,
                              dr_cuda_stream stream);

// dgate_up [T, 2F] from the gradient dact [T, F] at silu(gate) · up, and these again: act may be dact.
dr_status dr_cuda_swiglu_gradient(const float *gate_up, const float *dact, int64_t T, int64_t F,
                                  float *dgate_up, float *act, dr_cuda_stream stream);
dr_status dr_cuda_swiglu_gradient_bf16(const uint16_t *gate_up, const float *dact, int64_t T, int64_t F,
                                       uint16_t *dgate_up, uint16_t *act, dr_cuda_stream stream);

// ---- norms (norm.cu) ----

dr_status dr_cuda_rmsnorm_forward(const float *x, const float *w, int64_t T, int64_t D, float eps, float *y,
                                  float *inv_rms, dr_cuda_stream stream);
// x += residual first; y is not x.
dr_status dr_cuda_rmsnorm_residual_forward(const float *residual, const float *w, int64_t T, int64_t D,
                                           float eps, float *x, float *y, float *inv_rms,
                                           dr_cuda_stream stream);
// One pass over the rows; dw NULL: not wanted. partials: dr_norm_parts(T) · D floats of scratch where it is.
dr_status dr_cuda_rmsnorm_backward(const float *dy, const float *x, const float *w, const float *inv_rms,
                                   int64_t T, int64_t D, float *partials, float *dx, float *dw,
                                   dr_cuda_stream stream);
// In place; kept and inv_rms may be NULL. A warp a head.
dr_status dr_cuda_head_norm_forward(float *x, const float *w, int64_t T, int64_t n_heads, int64_t d,
                                    int64_t stride, float eps, float *kept, float *inv_rms,
                                    dr_cuda_stream stream);
// partials: dr_norm_parts(T · n_heads) · d floats of scratch. DR_ERR_UNSUPPORTED for heads of more than
// DR_CUDA_MAX_HEAD.
dr_status dr_cuda_head_norm_backward(float *dx, const float *kept, const float *w, const float *inv_rms,
                                     int64_t T, int64_t n_heads, int64_t d, int64_t stride, float *partials,
                                     float *dw, dr_cuda_stream stream);
dr_status dr_cuda_layernorm_forward(const float *x, const float *w, const float *bias, int64_t T, int64_t D,
                                    float eps, float *y, float *mean, float *inv_std, dr_cuda_stream stream);
dr_status dr_cuda_layernorm_backward(const float *dy, const float *x, const float *w, const float *mean,
                                     const float *inv_std, int64_t T, int64_t D, float *dx,
                                     dr_cuda_stream stream);
// sums [D] += Σ_t dy · (x - mean[t]) · inv[t], rows in parts and the parts in order. x and inv NULL: Σ_t dy;
// mean NULL: 0. partials: dr_chunk_count(T) · D floats of scratch.
dr_status dr_cuda_column_sums(const char *op, const float *dy, const float *x, const float *mean,
                              const float *inv, int64_t T, int64_t D, float *partials, float *sums,
                              dr_cuda_stream stream);

// ---- element-wise, rotary embedding, tables (elementwise.cu) ----

dr_status dr_cuda_rope(float *x, const int32_t *positions, const float *inv_freq, int64_t T, int64_t n_heads,
                       int64_t d, int64_t stride, int direction, dr_cuda_stream stream);
dr_status dr_cuda_gelu_forward(const float *x, int64_t n, float *y, dr_cuda_stream stream);
dr_status dr_cuda_gelu_backward(const float *dy, const float *x, int64_t n, float *dx, dr_cuda_stream stream);
dr_status dr_cuda_add(const float *x, int64_t n, float *y, dr_cuda_stream stream);
dr_status dr_cuda_embedding_forward(const float *table, const int32_t *ids, int64_t T, int64_t D, float *out,
                                    dr_cuda_stream stream);
// The same from a table of bf16.
dr_status dr_cuda_rounded_rows(const uint16_t *table, const int32_t *ids, int64_t T, int64_t D, float *out,
                               dr_cuda_stream stream);
dr_status dr_cuda_embedding_backward(const float *dout, const int32_t *ids, int64_t T, int64_t D,
                                     float *dtable, dr_cuda_stream stream);

// ---- attention (attention.cu, attention_backward.cu; attention_bf16.cu, attention_bf16_backward.cu) ----

// The spans of one call and what they read. k and v are fp32 rows of a packed batch (pages NULL), or the
// cache, of bf16 or fp32.
typedef struct dr_cuda_attention {
    const float *q;
    const void *k, *v;
    int64_t q_stride, kv_stride;
    const dr_span *spans;
    const int64_t *query_tiles, *key_tiles, *rows; // [n_spans + 1]: tiles, and rows, of the spans before
    const int32_t *pages;                          // of all spans
    int64_t n_query_tiles, n_key_tiles, n_rows;    // of all spans
    int32_t n_spans, H, G, d;
    float scale;
    bool is_bf16;   // the cache
    bool both_ways; // a row sees its whole sequence: fp32 kernel, forward
    // What the bf16 kernels go by (attention_plan.h), and their results of splits of keys.
    const dr_query *queries;
    const dr_query_tile *mma_query_tiles;
    const dr_key_tile *mma_key_tiles;
    int64_t n_queries, n_mma_query_tiles, n_mma_key_tiles, n_parts;
    // The same of the kernels with wgmma; none where they do not serve.
    const dr_query_tile *wide_query_tiles;
    const dr_key_tile *wide_key_tiles;
    int64_t n_wide_query_tiles, n_wide_key_tiles;
    float *part_sums;  // [n_parts, H, d]
    float *part_stats; // [n_parts, H, 2]: maximum of the scores, sum of exponentials
} dr_cuda_attention;

// lse may be NULL.
dr_status dr_cuda_attention_forward(const char *op, const dr_cuda_attention *attention, float *out,
                                    float *lse, dr_cuda_stream stream);
// delta [n] = Σ dout · out over each of n rows of d: what the gradients take, [T, H].
dr_status dr_cuda_attention_delta(const float *dout, const float *out, int64_t n, int32_t d, float *delta,
                                  dr_cuda_stream stream);
dr_status dr_cuda_attention_backward(const dr_cuda_attention *attention, const float *dout, const float *lse,
                                     const float *delta, float *dq, float *dk, float *dv,
                                     dr_cuda_stream stream);
// Both with keys and values as bf16 (the cache's, or dense rows [T, G, d] of a packed batch), products on the
// tensor cores and fp32 sums; heads that dr_mma_takes. q may be any fp32 rows in the forward pass.
dr_status dr_cuda_attention_bf16_forward(const char *op, const dr_cuda_attention *attention, float *out,
                                         float *lse, dr_cuda_stream stream);
// q, dout: [T, H, d], dense, as bf16. dq, dk, dv are fp32 rows with attention's strides.
dr_status dr_cuda_attention_bf16_backward(const dr_cuda_attention *attention, const uint16_t *q,
                                          const uint16_t *dout, const float *lse, const float *delta,
                                          float *dq, float *dk, float *dv, dr_cuda_stream stream);
// The same with wgmma and tensor copies, for devices of compute capability 9.0: packed sequences, heads that
// dr_wgmma_takes, keys and values as dense bf16 rows [T, G, d] at multiples of 16 bytes; their bits are not
// those of dr_cuda_attention_bf16_forward. DR_ERR_UNSUPPORTED in a build for other devices.
bool dr_cuda_wgmma_is_built(void);
dr_status dr_cuda_attention_wgmma_forward(const dr_cuda_attention *attention, float *out, float *lse,
                                          dr_cuda_stream stream);
// q, dout at multiples of 16 bytes too.
dr_status dr_cuda_attention_wgmma_backward(const dr_cuda_attention *attention, const uint16_t *q,
                                           const uint16_t *dout, const float *lse, const float *delta,
                                           float *dq, float *dk, float *dv, dr_cuda_stream stream);
// rounded [T, width], dense and bf16, from rows [T, width] with a stride in floats.
dr_status dr_cuda_round_rows(const float *values, int64_t stride, int64_t T, int64_t width, uint16_t *rounded,
                             dr_cuda_stream stream);
// The spans' rows of attention->k and v, strided, go to the cache; pages are those of the cache.
dr_status dr_cuda_kv_store(const dr_cuda_attention *attention, void *k_cache, void *v_cache,
                           dr_cuda_stream stream);
// Rows k and v [T, width], T strided, become what bf16 can hold.
dr_status dr_cuda_kv_round(float *k, float *v, int64_t stride, int64_t T, int64_t width,
                           dr_cuda_stream stream);

// ---- head (head.cu) ----

// Row t's ids are ids[starts[t]] … ids[starts[t + 1] - 1]; starts NULL: every row has the whole vocabulary.
typedef struct dr_cuda_kept {
    const int64_t *starts;
    const int32_t *ids;
} dr_cuda_kept;

dr_status dr_cuda_softmax_stats(const float *logits, int64_t T, int64_t V, float temperature, float *lse,
                                float *entropy, dr_cuda_stream stream);
dr_status dr_cuda_kept_lse(const float *logits, int64_t T, int64_t V, float temperature, dr_cuda_kept kept,
                           float *lse, dr_cuda_stream stream);
// dr_logprob_of each row's target.
dr_status dr_cuda_logprobs(const float *logits, const int32_t *targets, int64_t T, int64_t V,
                           float temperature, const float *lse, float *logprob, dr_cuda_stream stream);
// gradient [T, V] of Σ_t dlogprob[t] · logprob[t] at the logits: fp32, where it may be logits, or as
// dr_cuda_round_bf16 rounds it. A row's target is among its ids; what is left out gets 0 and is not read.
dr_status dr_cuda_head_gradient(const float *logits, const int32_t *targets, dr_cuda_kept kept, int64_t T,
                                int64_t V, float temperature, const float *lse, const float *dlogprob,
                                float *gradient, dr_cuda_stream stream);
dr_status dr_cuda_head_gradient_bf16(const float *logits, const int32_t *targets, dr_cuda_kept kept,
                                     int64_t T, int64_t V, float temperature, const float *lse,
                                     const float *dlogprob, uint16_t *gradient, dr_cuda_stream stream);

// ---- draws (sample.cu) ----

typedef struct dr_cuda_draw {
    float inv_temperature, top_p;
    uint32_t bits;
    bool greedy;
} dr_cuda_draw;

// id -1: the row's log-sum-exp is not a number; n_kept and logprob are then what dr_bad_logit has. n_kept 0:
// nothing was left out.
typedef struct dr_cuda_drawn {
    int32_t id, n_kept;
    float logprob, logprob_kept;
    int64_t kept_at; // of a burst: where its kept ids stand in the list
} dr_cuda_drawn;

// draws, drawn [T]; kept_ids [T, V], of which row t's first drawn[t].n_kept are written. Of a burst: keys and
// rows [T]; a finished row is left as it is, and the bits of the others are made of their keys, not those of
// draws. Else both NULL. scratch: dr_draw_bytes(T, V) bytes (draw_index.h).
dr_status dr_cuda_sample(const float *logits, int64_t T, int64_t V, const dr_cuda_draw *draws,
                         const dr_draw_key *keys, const dr_burst_row *rows, void *scratch, int32_t *kept_ids,
                         dr_cuda_drawn *drawn, dr_cuda_stream stream);

// What the settling of a step writes of the plan that the next pass goes by. NULL: nothing.
typedef struct dr_cuda_plan_rows {
    dr_span *spans;    // [n_rows]
    dr_query *queries; // [n_rows] or NULL
    int32_t *pages;
} dr_cuda_plan_rows;

// What follows the draws of one step of a burst (burst.cu).
typedef struct dr_cuda_settling {
    int64_t n_rows, V;
    dr_stop_table stops;
    bool has_stops;
    dr_burst_row *rows;       // [n_rows], moved on
    dr_cuda_drawn *drawn;     // [n_rows], of this step; kept_at is written
    int64_t *n_listed;        // ids in the list; moved on
    int64_t room;             // ids that fit in the list
    int32_t *ids, *positions; // [n_rows], written: what the next pass runs
    const int32_t *pool;      // [n_pool] pages
    int64_t *n_taken;         // of the pool; moved on
    int32_t *taken;           // [n_rows, row_pages]: what each row took
    int64_t n_pool, row_pages;
    dr_cuda_plan_rows next;
} dr_cuda_settling;
// Rows in order: which of them is finished, by its token, its limit or for want of room in the list or of a
// page.
dr_status dr_cuda_settle(const dr_cuda_settling *settling, dr_cuda_stream stream);
// Copies what each row's draw of this step kept from kept_ids [n_rows, V] to the list.
dr_status dr_cuda_list_kept(const dr_cuda_settling *settling, const int32_t *kept_ids, int32_t *list,
                            dr_cuda_stream stream);

// ---- retrieval (retrieval.cu) ----

// L, D, E and k at most what backend.h says.
dr_status dr_cuda_fusion(const dr_fusion *fusion, dr_cuda_stream stream);
dr_status dr_cuda_padded_attention(const dr_padded_attention *attention, dr_cuda_stream stream);
dr_status dr_cuda_mixture(float *gate, const float *z, int64_t T, int64_t E, int64_t D, float *y,
                          dr_cuda_stream stream);
// out [n, D] from rows x of the spans, one a sequence.
dr_status dr_cuda_pool_rows(const float *x, const dr_span *spans, int32_t n, dr_pooling pooling, int64_t D,
                            float *out, dr_cuda_stream stream);
dr_status dr_cuda_unit_rows(const float *x, int64_t T, int64_t D, float *out, dr_cuda_stream stream);
dr_status dr_cuda_fill_places(float *x, const int64_t *places, int64_t n, float value, dr_cuda_stream stream);
dr_status dr_cuda_top_k(const float *scores, int64_t T, int64_t V, int32_t k, dr_hit *out,
                        dr_cuda_stream stream);

// ---- its training (retrieval_backward.cu) ----

dr_status dr_cuda_dropout(const float *x, int64_t n, dr_dropout_mask mask, float *y, dr_cuda_stream stream);
// scratch: dr_fusion_parts_of(B, L, D).total floats.
dr_status dr_cuda_fusion_backward(const dr_fusion *fusion, const dr_fusion_gradient *out, float *scratch,
                                  dr_cuda_stream stream);
dr_status dr_cuda_padded_attention_backward(const dr_padded_attention *attention, const float *dout,
                                            float *dqkv, dr_cuda_stream stream);
dr_status dr_cuda_mixture_backward(const float *dy, const float *weights, const float *z, int64_t T,
                                   int64_t E, int64_t D, float *dz, float *dgate, dr_cuda_stream stream);
dr_status dr_cuda_noisy_gate(const float *noise, const float *spread, int64_t n, float *gate,
                             dr_cuda_stream stream);
dr_status dr_cuda_noisy_gate_backward(const float *dgate, const float *noise, const float *spread, int64_t n,
                                      float *dspread, dr_cuda_stream stream);
dr_status dr_cuda_normalize_rows(const float *x, int64_t T, int64_t D, float *unit, float *lengths,
                                 dr_cuda_stream stream);
dr_status dr_cuda_normalize_rows_backward(const float *dunit, const float *unit, const float *lengths,
                                          int64_t T, int64_t D, float *dx, dr_cuda_stream stream);
dr_status dr_cuda_cross_entropy(float *logits, const int32_t *targets, int64_t T, int64_t V,
                                float inv_temperature, double *losses, dr_cuda_stream stream);

// ---- optimizer (optimizer.cu) ----

dr_status dr_cuda_adamw(float *weights, const float *gradient, float *m, float *v, int64_t n,
                        float gradient_scale, const dr_adamw_settings *settings, dr_cuda_stream stream);
// sums [dr_square_blocks(n)].
dr_status dr_cuda_sums_of_squares(const float *x, int64_t n, double *sums, dr_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
