// The compute seam: a table of operations on fp32 activations in backend memory. The CPU body is the
// reference and stays for ever; CUDA is another body of the same table. Nothing above this line knows which
// one it talks to.
//
// Legend: T = rows (tokens), H = query heads, G = key/value heads (H % G == 0), d = head size, V =
// vocabulary. All matrices are row-major and dense. Every pointer is borrowed, in backend memory, and
// non-overlapping unless said. Row-exact: row t of the output depends on row t of the input and on the
// weights only, bit for bit, whatever T is, wherever the row stands, however many threads run. Forward ops
// are row-exact; this is what makes a trajectory independent of the batch that it was sampled in.
#ifndef DR_CORE_COMPUTE_BACKEND_H
#define DR_CORE_COMPUTE_BACKEND_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/rng.h"
#include "core/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

// Multiplication type of the linear ops. Inputs and outputs stay fp32 in memory, but for keys and values of a
// cache (dr_kv_bytes) and for gate and up (dr_gated_bytes); bf16 rounds the operands of each product, and
// rows that weight_rows gives, and accumulates in fp32 (in units for it where the processor has them). The
// loose two are there to measure what exactness costs: a library multiplies and sums in any order, so they
// are not row-exact. On the CPU DR_FP32_LOOSE does so in the forward products, and DR_BF16_LOOSE is DR_BF16,
// whose products have no faster way there; on CUDA both do in all three products of a linear layer, and
// DR_BF16_LOOSE in the attention of packed passes where the device has faster units for it.
typedef enum dr_precision { DR_FP32, DR_BF16, DR_FP32_LOOSE, DR_BF16_LOOSE } dr_precision;

static inline bool dr_rounds_to_bf16(dr_precision precision) {
    return precision == DR_BF16 || precision == DR_BF16_LOOSE;
}

static inline bool dr_is_loose(dr_precision precision) {
    return precision == DR_FP32_LOOSE || precision == DR_BF16_LOOSE;
}

// A weight matrix [n_out, n_in] as the backend wants it. Filled by weight_pack from fp32 values in backend
// memory, which stay in their place and may go on being read until the next weight_pack or weight_destroy; in
// bf16 the weight keeps its own rounded values, and they may go as soon as weight_pack returns. There
// weight_take fills it too.
typedef struct dr_weight dr_weight;
typedef struct dr_backend dr_backend;

// One sequence's part of a call on the paged key/value cache of one layer.
typedef struct dr_attention_chunk {
    int64_t row;          // first row of this chunk in q and out
    int32_t n_new;        // rows of this chunk
    int32_t n_past;       // positions already in the cache before this chunk's own
    const int32_t *pages; // page numbers of this sequence, enough for n_past + n_new positions (host memory)
} dr_attention_chunk;

// One pass of single rows over the cache, a row a chunk, as the decode loop repeats it. What its ops read and
// write is the same memory in every pass whose `places` and n_chunks are the same; what is in the memory, and
// how far the chunks are, is not.
typedef struct dr_cached_pass {
    const dr_attention_chunk *chunks;   // those that its ops name, by this address; n_new 1 each
    int32_t n_chunks, group, head_size; // group: query heads a key head
    int64_t row_macs, position_macs; // multiply-adds of a row without attention, and for each position seen
    const void *places[3];
} dr_cached_pass;
// Calls on b the ops of a pass's rows first … first + n - 1, in the same order each time. Parts of one pass
// may run at the same time, each on a body of its own that has the same memory and weights.
typedef dr_status dr_pass_ops(void *context, dr_backend *b, int32_t first, int32_t n);

// The sequences of a packed batch: sequence s owns rows cu_seqlens[s] … cu_seqlens[s+1]-1. prefix[s] = p: s
// goes on where sequence p ends, so its rows also see all of p's, which is run once for all that share it; p
// has no prefix itself, and those that share it stand right behind it. prefix[s] = -1, or prefix NULL: none.
// Host memory.
typedef struct dr_sequences {
    int32_t n;
    const int32_t *cu_seqlens; // [n + 1]
    const int32_t *prefix;     // [n] or NULL
} dr_sequences;

static inline int32_t dr_prefix_of(const dr_sequences *sequences, int32_t s) {
    return sequences->prefix ? sequences->prefix[s] : -1;
}

static inline int32_t dr_rows_of(const dr_sequences *sequences, int32_t s) { // own rows, prefix left out
    return s < 0 ? 0 : sequences->cu_seqlens[s + 1] - sequences->cu_seqlens[s];
}

// The ids that a token was drawn from, rising: top-p left these. n 0: the whole vocabulary. Host memory.
typedef struct dr_kept {
    const int32_t *ids;
    int32_t n;
} dr_kept;

// How a token is drawn: temperature, then top-p (nucleus, Holtzman et al., arXiv 1904.09751).
typedef struct dr_sampling {
    float temperature; // 0: greedy (ties to the smaller id), otherwise at least 1e-6
    float top_p;       // (0, 1]; 1 keeps the whole vocabulary; not looked at when greedy
} dr_sampling;

// DR_ERR_ARGUMENT for settings outside their bounds.
dr_status dr_sampling_check(const dr_sampling *settings);

// What makes a row's log-sum-exp no number: the first logit that is NaN or +inf, else (id -1) a largest one
// that is -inf or too large.
typedef struct dr_bad_logit {
    int32_t id;
    float value;
} dr_bad_logit;
dr_bad_logit dr_bad_logit_of(const float *logits, int64_t V); // of such a row [V], host memory
// Its DR_ERR_NUMERIC: names row, id and value, and the step of a burst behind its first.
dr_status dr_sampling_refuse(const dr_bad_logit *bad, int64_t step, int64_t row, float temperature);

typedef struct dr_sampled {
    int32_t id;
    float logprob; // under softmax(logits / temperature) over the full vocabulary (temperature 1 when greedy)
    float logprob_kept; // under the truncated distribution that it was drawn from (0 when greedy)
    dr_kept kept;       // what top-p left; n 0 with top-p 1 and greedy
} dr_sampled;

// What ends a row's draws: ids, and patterns in the bytes of the tokens drawn, across tokens. An automaton
// over bytes of at most DR_STOP_REACHED states; state 0 has seen nothing of any pattern.
enum { DR_STOP_IDS = 4, DR_STOP_REACHED = 255 };
typedef struct dr_stop_table {
    int32_t ids[DR_STOP_IDS];  // that end at once; -1 unused
    const uint8_t *next;       // [n_states, 256] by state and byte: the next state, or DR_STOP_REACHED
    const int32_t *first_byte; // [V + 1]: token t has bytes first_byte[t] … first_byte[t + 1] - 1
    const uint8_t *bytes;      // next, first_byte, bytes: backend memory
} dr_stop_table;

// Pages of a cache that rows of a burst take as they come to need them: a row that goes on to a position for
// which its list has no page takes the next one of the pool, rows in their order. Where the pool has none
// left the row is finished; its draw counts. Host memory.
typedef struct dr_burst_pages {
    int32_t page_size, n_pool;
    const int32_t *pool; // [n_pool] in the order in which they are taken
    // [n_rows] each row's pages, counts[r] of them, enough for positions[r]. Behind them there is room for
    // what limits[r] draws need, and pages stand there that may be read. burst_end leaves taken ones there
    // and adds them to the counts; after an error the counts are what they were.
    int32_t *const *lists;
    int32_t *counts;
    // [n_steps - 1, n_chunks] those of the burst's passes, with lists[r] for pages of row r, as if no row
    // were finished before its limit: a body that goes by them moves n_past of the rows that are. Behind the
    // burst's rows stand idle ones (pass_rows). NULL: no passes.
    dr_attention_chunk *chunks;
    int32_t n_chunks; // of a pass, at least n_rows
} dr_burst_pages;

// A burst: n_steps draws in turn for the same rows, a pass between two of them, decided beforehand, so that a
// device need not wait for its host between two tokens. A row is finished once it has drawn what `stops`
// ends, or limits[r] tokens, or found no page; from then on it idles: it runs its last token again, at the
// same position. Host memory but for the table's parts; borrowed until burst_end.
typedef struct dr_burst {
    int64_t n_rows, V;
    int32_t n_steps;
    const dr_sampling *settings;    // [n_rows]
    const dr_draw_key *keys;        // [n_rows] of a row's first draw; each that follows is a position behind
    const int32_t *limits;          // [n_rows], 1 … n_steps
    const int32_t *ids, *positions; // [n_rows]: the token that gave a row's first logits
    const uint8_t *states; // [n_rows] of the automaton before the first draw; not looked at without stops
    const dr_stop_table *stops;   // NULL: the limits alone end a row
    const dr_cached_pass *passes; // [n_steps - 1]: what will run between two draws, chunk r row r, and idle
                                  // rows behind them; NULL: not said
    const dr_burst_pages *pages;  // NULL: rows have all that they need
} dr_burst;
// DR_ERR_ARGUMENT: no rows or steps, settings or limits outside their bounds, or too few pages for a row's
// first position.
dr_status dr_burst_check(const dr_burst *burst);

// Of a burst that has ended: what its kept sets found of the memory that its body sets aside for those of all
// steps together.
typedef struct dr_burst_room {
    int32_t n_fitted; // its first steps whose sets all found room
    int64_t n_ids;    // that there is room for, whatever n_steps is; INT64_MAX: no bound
} dr_burst_room;

// A column of a row of scores.
typedef struct dr_hit {
    int32_t item; // -1: nothing
    float score;
} dr_hit;

// Two inputs fused in the frequency domain, after FMLP-Rec (Zhou et al., WWW 2022). B requests of L
// positions and D columns, K = L/2 + 1; spectra have K real rows, then K imaginary ones. With F the real DFT:
//   a = F⁻¹(F x_0 · filter), b = F⁻¹(F x_1 · F x_0), g_a = σ(a · gate_0 + bias_0), g_b = σ(b · gate_1 +
//   bias_1), out = 2 (a g_a + b g_b) + positions.
typedef struct dr_fusion {
    int64_t B, L, D;
    const float *x[2];                // [B, L, D]
    const float *dft, *inverse;       // [2K, L], [L, 2K]
    const float *filter;              // [K, D, 2]: real and imaginary part side by side
    const float *gate[2], *bias[2];   // [D], [1]
    const float *positions;           // [L, D]
    float *spectra[2];                // [B, 2K, D]: F x, kept
    float *filtered[2], *openness[2]; // [B, L, D] a and b, [B, L] g_a and g_b; kept
    float *out;                       // [B, L, D]
} dr_fusion;

// The gradients of a fusion.
typedef struct dr_fusion_gradient {
    const float *dout;          // [B, L, D]
    float *dx[2];               // [B, L, D], overwritten
    float *dfilter;             // [K, D, 2]; this and the others are added to
    float *dgate[2], *dbias[2]; // [D], [1]
    float *dpositions;          // [L, D]
} dr_fusion_gradient;
enum {
    DR_FUSION_POSITIONS = 64, // L and D are at most these
    DR_FUSION_COLUMNS = 256,
    DR_MIXTURE_MOST = 64 // parts of a mixture
};
#define DR_LEAST_NOISE 0.01f   // standard deviation of a noisy gate's noise
#define DR_LEAST_LENGTH 1e-12f // shorter rows count as rows of zeros when they are normalised

// Attention in both directions over B sequences of L positions, of which lengths[i] (1 to L) are used; scores
// of the others are lowered by 10000.
typedef struct dr_padded_attention {
    int64_t B, L;           // L at most DR_FUSION_POSITIONS
    int32_t H, d;           // d at most DR_FUSION_COLUMNS
    bool last_only;         // only the last used position asks
    const float *qkv;       // [B, L, 3, H, d]
    const int32_t *lengths; // [B]
    float *weights;         // [B, H, Q, L], kept; Q is L, or 1 with last_only
    float *out;             // [B, Q, H, d]
} dr_padded_attention;

// What a sequence is told by: its first row, or the mean of its rows.
typedef enum dr_pooling { DR_POOL_FIRST, DR_POOL_MEAN } dr_pooling;

// Host memory that the backend copies from and to while the host goes on. Owned by whoever made it.
typedef struct dr_transfer {
    char *host;
    size_t bytes;
    void *state; // the backend's
} dr_transfer;

typedef struct dr_adamw_settings {
    float learning_rate, beta1, beta2, epsilon, weight_decay;
    int64_t t; // 1-based number of this update, for the bias correction
} dr_adamw_settings;

enum { DR_SQUARE_BLOCK = 4096, DR_TOP_MOST = 1024 };
static inline int64_t dr_square_blocks(int64_t n) {
    return (n + DR_SQUARE_BLOCK - 1) / DR_SQUARE_BLOCK;
}

// What a model's passes hand to the ops at most, for the memory that ops take beside their arguments.
typedef struct dr_pass_shape {
    int64_t T;           // tokens of a training pass
    int64_t n_out, n_in; // the largest of any weight but the head's
    int64_t n_dy;        // the largest n_out of any but the head's and gate and up's
    int64_t row_macs;    // dr_cached_pass's
    int64_t V, n_draws;  // vocabulary; rows drawn at a time
    int64_t n_steps;     // draws in turn of a burst
    int64_t n_cached;    // rows of a pass over the cache, those drawn among them
    int64_t longest;     // positions of a sequence
    int64_t n_sharing;   // sequences of one prefix, itself among them
    int32_t H, G, d;
    // Passes of a retrieval model or a sentence encoder: no SwiGLU, draws or cache; H 0: no attention over
    // packed sequences. n_requests of n_positions, n_columns wide, against n_scores items, are trained on; 0:
    // forward passes alone.
    bool is_plain;
    int64_t n_requests, n_positions, n_columns, n_scores;
} dr_pass_shape;

typedef struct dr_backend_ops {
    const char *name; // "cpu"

    void (*destroy)(dr_backend *b); // its memory and weights must have been destroyed before

    // Memory, zeroed. copy_in / copy_out move bytes between host and backend memory.
    dr_status (*memory_create)(dr_backend *b, const char *label, size_t bytes, void **out_memory);
    void (*memory_destroy)(dr_backend *b, void *memory);
    void (*copy_in)(dr_backend *b, void *to_backend, const void *from_host, size_t bytes);
    void (*copy_out)(dr_backend *b, void *to_host, const void *from_backend, size_t bytes);
    void (*copy)(dr_backend *b, void *to_backend, const void *from_backend, size_t bytes);
    void (*zero)(dr_backend *b, void *memory, size_t bytes);
    // The same memory where the host can use it as its own, else NULL.
    void *(*host_view)(dr_backend *b, void *memory);
    // Copies that nobody waits for, in the order of the ops: `bytes` from `from` of the transfer on to the
    // backend, or from there to `to` of the transfer on. The host leaves these bytes alone until they are
    // done: transfer_done tells, without waiting, whether all copies of the transfer are, and then so is
    // everything that was begun before them. Destroying waits for them, for a bounded time.
    dr_status (*transfer_create)(dr_backend *b, const char *label, size_t bytes, dr_transfer **out_transfer);
    void (*transfer_destroy)(dr_backend *b, dr_transfer *transfer); // NULL is fine
    dr_status (*transfer_in)(dr_backend *b, dr_transfer *transfer, size_t from, void *to_backend,
                             size_t bytes);
    dr_status (*transfer_out)(dr_backend *b, dr_transfer *transfer, size_t to, const void *from_backend,
                              size_t bytes);
    dr_status (*transfer_done)(dr_backend *b, dr_transfer *transfer, bool *out_done);
    // Bytes of it that may still be taken, and bytes in all.
    dr_status (*memory_free)(dr_backend *b, int64_t *out_free, int64_t *out_total);
    // Bytes that the ops keep for themselves at most, the loss head (head_memory) and weights left out.
    // *out_host: bytes of the host's memory that they keep beside it, the loss head's included; 0 where the
    // backend's memory is the host's.
    int64_t (*pass_memory)(dr_backend *b, const dr_pass_shape *shape, int64_t *out_host);

    // Linear layers. y = x Wᵀ (+ bias): x [T, n_in], y [T, n_out], bias [n_out] or NULL. linear_forward is
    // row-exact.
    dr_status (*weight_create)(dr_backend *b, int64_t n_out, int64_t n_in, dr_weight **out_weight);
    void (*weight_destroy)(dr_backend *b, dr_weight *w);
    // Bytes that a packed weight takes beside the fp32 values.
    int64_t (*weight_memory)(dr_backend *b, int64_t n_out, int64_t n_in);
    dr_status (*weight_pack)(dr_backend *b, dr_weight *w, const float *values); // again after every update
    // weight_pack in parts and from elsewhere, where products round to bf16: values [n] rounded as it rounds
    // them, and values first … first + n - 1 of W, row after row, set to such rounded ones. Values of W that
    // nothing has set are zeros. DR_ERR_UNSUPPORTED where products do not round, DR_ERR_RANGE: no such
    // values.
    dr_status (*weight_round)(dr_backend *b, const float *values, int64_t n, uint16_t *rounded);
    dr_status (*weight_take)(dr_backend *b, dr_weight *w, int64_t first, int64_t n, const uint16_t *rounded);
    // out [T, n_in] = rows of W as the products see them: W[ids[t]].
    dr_status (*weight_rows)(dr_backend *b, const dr_weight *w, const int32_t *ids, int64_t T, float *out);
    dr_status (*linear_forward)(dr_backend *b, const dr_weight *w, const float *x, int64_t T,
                                const float *bias, float *y);
    // dx [T, n_in] = dy W, or += when accumulate, or NULL; dw [n_out, n_in] += dyᵀ x; dbias [n_out] += column
    // sums of dy, or NULL.
    dr_status (*linear_backward)(dr_backend *b, const dr_weight *w, const float *x, const float *dy,
                                 int64_t T, float *dx, bool accumulate, float *dw, float *dbias);
    // The feed-forward block. Gate and up, and their gradients, stand in memory as values of dr_gated_bytes
    // each, rounded to nearest where that is bf16. gate_up_forward: gate_up [T, n_out], gate first, = x Wᵀ,
    // row-exact. Its gradients: dx [T, n_in] is overwritten, dw [n_out, n_in] += dgate_upᵀ x.
    dr_status (*gate_up_forward)(dr_backend *b, const dr_weight *w, const float *x, int64_t T, void *gate_up);
    dr_status (*gate_up_backward)(dr_backend *b, const dr_weight *w, const float *x, const void *dgate_up,
                                  int64_t T, float *dx, float *dw);
    // linear_forward with silu(gate) · up [T, n_in] for x, computed in fp32 from gate_up [T, 2 n_in] and kept
    // nowhere. y = (silu(gate) · up) Wᵀ, row-exact. Its gradients: dgate_up [T, 2 n_in] is overwritten, dw +=
    // dyᵀ (silu(gate) · up).
    dr_status (*swiglu_linear_forward)(dr_backend *b, const dr_weight *w, const void *gate_up, int64_t T,
                                       float *y);
    dr_status (*swiglu_linear_backward)(dr_backend *b, const dr_weight *w, const void *gate_up,
                                        const float *dy, int64_t T, void *dgate_up, float *dw);
    // General product for the retrieval model and others: c [m, n] = alpha op(a) op(b) + beta c, fp32. op(a)
    // is [m, k]. Deterministic for equal arguments; row-exact when !trans_a.
    dr_status (*gemm)(dr_backend *b, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                      const float *a, const float *b_matrix, float beta, float *c);

    // y = x / sqrt(mean(x²) + eps) · w; inv_rms [T] is kept for backward, or NULL. x, y [T, D]; w [D]. y may
    // be x.
    void (*rmsnorm_forward)(dr_backend *b, const float *x, const float *w, int64_t T, int64_t D, float eps,
                            float *y, float *inv_rms);
    // x += residual, then rmsnorm_forward of x: bit for bit the two ops in turn. residual [T, D]; y is not x.
    void (*rmsnorm_residual_forward)(dr_backend *b, const float *residual, const float *w, int64_t T,
                                     int64_t D, float eps, float *x, float *y, float *inv_rms);
    // dx += …, dw += … (dw may be NULL).
    void (*rmsnorm_backward)(dr_backend *b, const float *dy, const float *x, const float *w,
                             const float *inv_rms, int64_t T, int64_t D, float *dx, float *dw);
    // RMSNorm over each head, in place: x [T, n_heads, d] with row stride `stride` floats; w [d]. kept [T,
    // n_heads, d] gets what x was, inv_rms [T, n_heads] is kept too: both for backward, or both NULL.
    void (*head_norm_forward)(dr_backend *b, float *x, const float *w, int64_t T, int64_t n_heads, int64_t d,
                              int64_t stride, float eps, float *kept, float *inv_rms);
    // dx [T, n_heads, d] holds dy, and then the gradient at x, with row stride `stride`; dw += ….
    void (*head_norm_backward)(dr_backend *b, float *dx, const float *kept, const float *w,
                               const float *inv_rms, int64_t T, int64_t n_heads, int64_t d, int64_t stride,
                               float *dw);
    // LayerNorm with weight and bias [D]; mean, inv_std [T] kept.
    void (*layernorm_forward)(dr_backend *b, const float *x, const float *w, const float *bias, int64_t T,
                              int64_t D, float eps, float *y, float *mean, float *inv_std);
    void (*layernorm_backward)(dr_backend *b, const float *dy, const float *x, const float *w,
                               const float *mean, const float *inv_std, int64_t T, int64_t D, float *dx,
                               float *dw, float *dbias);

    // Rotary embedding in place, Hugging Face's half-split layout (Su et al., arXiv 2104.09864): x [T,
    // n_heads, d] with row stride `stride` floats; pair (i, i + d/2) is turned by positions[t] · inv_freq[i].
    // direction -1 is the backward.
    void (*rope)(dr_backend *b, float *x, const int32_t *positions, const float *inv_freq, int64_t T,
                 int64_t n_heads, int64_t d, int64_t stride, int direction);

    // GELU with erf, element-wise.
    void (*gelu_forward)(dr_backend *b, const float *x, int64_t n, float *y);
    void (*gelu_backward)(dr_backend *b, const float *dy, const float *x, int64_t n, float *dx);

    // y += x; embedding gather: out [T, D] = table[ids]; backward: dtable[ids[t]] += dout[t] in the order of
    // t.
    void (*add)(dr_backend *b, const float *x, int64_t n, float *y);
    void (*embedding_forward)(dr_backend *b, const float *table, const int32_t *ids, int64_t T, int64_t D,
                              float *out);
    void (*embedding_backward)(dr_backend *b, const float *dout, const int32_t *ids, int64_t T, int64_t D,
                               float *dtable);

    // Causal attention over packed sequences: q [T, H, d], k, v [T, G, d] with row strides in floats (they
    // may lie in one merged qkv buffer). scale = 1/sqrt(d). out [T, H, d] dense; lse [T, H] = log-sum-exp of
    // the scaled scores, kept for backward. A row's bits are those it has where its prefix is written out
    // before it.
    dr_status (*attention_forward)(dr_backend *b, const float *q, const float *k, const float *v,
                                   int64_t q_stride, int64_t kv_stride, const dr_sequences *sequences,
                                   int32_t H, int32_t G, int32_t d, float *out, float *lse);
    // Overwrites dq, dk, dv (same strides as q, k, v).
    dr_status (*attention_backward)(dr_backend *b, const float *dout, const float *q, const float *k,
                                    const float *v, const float *out, const float *lse, int64_t q_stride,
                                    int64_t kv_stride, const dr_sequences *sequences, int32_t H, int32_t G,
                                    int32_t d, float *dq, float *dk, float *dv);
    // attention_forward in both directions, without gradient: a row sees all rows of its own sequence.
    // Sequences without prefixes; fp32 whatever the precision is.
    dr_status (*attention_bidirectional)(dr_backend *b, const float *q, const float *k, const float *v,
                                         int64_t q_stride, int64_t kv_stride, const dr_sequences *sequences,
                                         int32_t H, int32_t G, int32_t d, float *out);

    // Paged cache of one layer: k_cache, v_cache [n_pages, page_size, G, d] of dr_kv_bytes each. kv_round
    // gives keys and values [T, G, d] (row stride in floats), in place, the values that a cache can hold;
    // both passes go through it, so that a packed pass attends to what the cached one finds. kv_store writes
    // each chunk's rows at positions n_past …; attention_cached then attends causally over past and own
    // rows. Same score, softmax and sum order per row as attention_forward, so that a row's bits agree
    // between the two.
    void (*kv_round)(dr_backend *b, float *k, float *v, int64_t kv_stride, int64_t T, int32_t G, int32_t d);
    void (*kv_store)(dr_backend *b, const float *k, const float *v, int64_t kv_stride,
                     const dr_attention_chunk *chunks, int32_t n_chunks, int32_t page_size, int32_t G,
                     int32_t d, void *k_cache, void *v_cache);
    dr_status (*attention_cached)(dr_backend *b, const float *q, int64_t q_stride, const void *k_cache,
                                  const void *v_cache, const dr_attention_chunk *chunks, int32_t n_chunks,
                                  int32_t page_size, int32_t H, int32_t G, int32_t d, float *out);
    // Runs a pass: calls `ops` for all its rows, at once or in parts, or repeats what an earlier call for the
    // same places made the device do.
    dr_status (*cached_pass)(dr_backend *b, const dr_cached_pass *pass, dr_pass_ops *ops, void *context);
    // Rows that a pass of n_rows should be run with, idle ones behind its own: n_rows, or more where a body
    // repeats passes of few sizes only. Rises with n_rows, and is 0 for none.
    int32_t (*pass_rows)(dr_backend *b, int32_t n_rows);

    // One draw for each row of logits [T, V]: from the smallest set of most probable ids whose mass reaches
    // top_p, ties at its end to smaller ids; those of less than 2^-32 of the largest probability are never in
    // it. bits[t] decides: the first id, in rising order, up to which the mass is more than bits / 2^32 of
    // the set's. settings, bits, out [T]: host memory; out's kept ids are the backend's until its next draw.
    // The log-probabilities are those of head_forward, bit for bit, so that what is recorded while sampling
    // is what the learner computes. DR_ERR_NUMERIC, naming row and id, when a logit is NaN or +inf, or all
    // of a row are -inf. Row-exact; O(V) whatever the distribution is.
    dr_status (*sample)(dr_backend *b, const float *logits, int64_t T, int64_t V, const dr_sampling *settings,
                        const uint32_t *bits, dr_sampled *out);
    // A burst: begin, then for each step a draw and, but after the last, one of its passes; end. One at a
    // time. burst_draw: one draw, as `sample` makes it of the bits of dr_draw_ahead, for each row that is not
    // finished, from its logits [n_rows, V]; then ids, positions [n_rows] (backend memory) are what the next
    // pass runs: the token drawn at the next position, or for a finished row what it ran last. burst_end: out
    // [n_steps, n_rows], of row r the first counts[r], and what the rows took of burst->pages; kept ids are
    // the backend's until its next draw. A body may finish a row early, not before its first draw, when kept
    // sets take more memory than it has set aside, and says so in *out_room. DR_ERR_NUMERIC as `sample`'s, of
    // burst_draw or of burst_end. By an error, one of a pass between two draws too, the burst has ended: what
    // follows it is not its end but another begin.
    dr_status (*burst_begin)(dr_backend *b, const dr_burst *burst);
    dr_status (*burst_draw)(dr_backend *b, const float *logits, int32_t *ids, int32_t *positions);
    dr_status (*burst_end)(dr_backend *b, dr_sampled *out, int32_t *counts, dr_burst_room *out_room);
    // lse, entropy [T] of softmax(logits / temperature), logits [T, V]; kept_lse: lse [T] over each row's
    // kept set, rows with an empty one left as they are. head_forward goes through the same code:
    // dr_logprob_of(logits[t][id], temperature, lse[t]) is its logprob, bit for bit. Row-exact.
    void (*softmax_stats)(dr_backend *b, const float *logits, int64_t T, int64_t V, float temperature,
                          float *lse, float *entropy);
    void (*kept_lse)(dr_backend *b, const float *logits, int64_t T, int64_t V, float temperature,
                     const dr_kept *kept, float *lse);
    // Loss head without [T, V] logits in memory (vocabulary rows in blocks): for hidden h [T, D], head weight
    // w [V, D], targets [T]: logprob[t] = log softmax(h w / temperature)[target] over kept[t] (kept [T] or
    // NULL: the whole vocabulary), lse[t] of the same set, entropy[t] of the whole softmax (all [T]).
    dr_status (*head_forward)(dr_backend *b, const dr_weight *w, const float *h, const int32_t *targets,
                              const dr_kept *kept, int64_t T, float temperature, float *logprob,
                              float *entropy, float *lse);
    // Bytes that either of the two takes beside its arguments, for T rows or fewer.
    int64_t (*head_memory)(dr_backend *b, int64_t T, int64_t V, int64_t D);
    // Gradient of Σ_t dlogprob[t]·logprob[t]: dh [T, D] overwritten, dw [V, D] +=. A target is in its kept
    // set.
    dr_status (*head_backward)(dr_backend *b, const dr_weight *w, const float *h, const int32_t *targets,
                               const dr_kept *kept, int64_t T, float temperature, const float *lse,
                               const float *dlogprob, float *dh, float *dw);

    // The retrieval model's own, all row-exact (a request is a row). The structs are host memory, read before
    // the op returns; what they point to is backend memory.
    void (*fusion_forward)(dr_backend *b, const dr_fusion *fusion);
    void (*padded_attention)(dr_backend *b, const dr_padded_attention *attention);
    // y [T, D] = Σ_e w_e z[t, e], z [T, E, D], w = softmax over the row of gate [T, E], which w replaces. E
    // at most DR_MIXTURE_MOST.
    void (*mixture_forward)(dr_backend *b, float *gate, const float *z, int64_t T, int64_t E, int64_t D,
                            float *y);
    // out [n, D]: one row of each of n packed sequences, x [T, D]: its first, or the mean of its rows, summed
    // in double in order. Sequences of no rows give zeros. The same bits on every backend.
    dr_status (*pool_rows)(dr_backend *b, const float *x, const dr_sequences *sequences, dr_pooling pooling,
                           int64_t D, float *out);
    // out [T, D]: rows of x divided by their length, summed in double in order; rows of zeros stay. The same
    // bits on every backend.
    void (*unit_rows)(dr_backend *b, const float *x, int64_t T, int64_t D, float *out);
    // x[places[i]] = value; places [n] in any order, repeated or not.
    void (*fill_places)(dr_backend *b, float *x, const int64_t *places, int64_t n, float value);
    // The k (1 to DR_TOP_MOST) largest of each row of scores [T, V], best first, equal ones by smaller
    // column; -inf and NaN are never among them, and what is missing has item -1. out [T, k].
    dr_status (*top_k)(dr_backend *b, const float *scores, int64_t T, int64_t V, int32_t k, dr_hit *out);

    // What its training computes beside them, in fp32. Backward ops are given what their forward op was given
    // and what it kept.
    //
    // Inverted dropout: y [n] = x times 0, at this rate (in [0, 1)), or 1 / (1 - rate). Which one is a
    // function of key and element, the same bits on every backend, so that the gradient goes through the same
    // op. y may be x.
    void (*dropout)(dr_backend *b, const float *x, int64_t n, float rate, uint32_t key, float *y);
    dr_status (*fusion_backward)(dr_backend *b, const dr_fusion *fusion, const dr_fusion_gradient *gradient);
    // dout [B, Q, H, d], dqkv [B, L, 3, H, d], overwritten.
    void (*padded_attention_backward)(dr_backend *b, const dr_padded_attention *attention, const float *dout,
                                      float *dqkv);
    // dz [T, E, D] and dgate [T, E], of the gate before its softmax, from dy [T, D] and the weights that
    // mixture_forward left; overwritten. dgate may be weights.
    void (*mixture_backward)(dr_backend *b, const float *dy, const float *weights, const float *z, int64_t T,
                             int64_t E, int64_t D, float *dz, float *dgate);
    // A gate with noise of learned size (Shazeer et al., arXiv 1701.06538): gate [n] += noise ·
    // (softplus(spread) + DR_LEAST_NOISE). Gradient: dspread is overwritten and may be spread; the gate's
    // goes on as it is.
    void (*noisy_gate_forward)(dr_backend *b, const float *noise, const float *spread, int64_t n,
                               float *gate);
    void (*noisy_gate_backward)(dr_backend *b, const float *dgate, const float *noise, const float *spread,
                                int64_t n, float *dspread);
    // unit [T, D]: rows of x divided by their length, lengths [T] kept; not the bits of unit_rows. Gradient:
    // dx +=.
    void (*normalize_rows_forward)(dr_backend *b, const float *x, int64_t T, int64_t D, float *unit,
                                   float *lengths);
    void (*normalize_rows_backward)(dr_backend *b, const float *dunit, const float *unit,
                                    const float *lengths, int64_t T, int64_t D, float *dx);
    // Cross-entropy of targets [T], 1 … V - 1, under softmax(logits · inv_temperature) over columns 1 … V - 1
    // of logits [T, V]: losses [T], and in the logits' place the gradient of the losses' mean. Column 0,
    // padding, gets 0.
    void (*cross_entropy)(dr_backend *b, float *logits, const int32_t *targets, int64_t T, int64_t V,
                          float inv_temperature, double *losses);

    // AdamW (Loshchilov & Hutter, arXiv 1711.05101) on n values; gradient is read, not cleared.
    void (*adamw)(dr_backend *b, float *weights, const float *gradient, float *m, float *v, int64_t n,
                  float gradient_scale, const dr_adamw_settings *settings);
    // Σ x² in double of each block of DR_SQUARE_BLOCK values (the last may be shorter), each in a fixed
    // order: out [dr_square_blocks(n)], host memory. A part of x that begins with a block has the sums that x
    // has there.
    void (*sums_of_squares)(dr_backend *b, const float *x, int64_t n, double *out);
} dr_backend_ops;

// log softmax(logits / temperature)[id] from logits[id]. One fused operation, so that no compiler flag
// changes its bits; what rounding lifts above 0 is 0.
static inline float dr_logprob_of(float logit, float temperature, float lse) {
    float logprob = fmaf(logit, 1.0f / temperature, -lse);
    return logprob > 0.0f ? 0.0f : logprob;
}

struct dr_backend {
    const dr_backend_ops *ops;
    dr_precision precision;
    int n_threads;
    void *state;
};

// Bytes of a cached key's or value's element: bf16 where products round to it, else fp32.
static inline size_t dr_kv_bytes(const dr_backend *b) {
    return dr_rounds_to_bf16(b->precision) ? sizeof(uint16_t) : sizeof(float);
}

// Bytes of an element of gate and up, and of their gradients: bf16 where products round to it, else fp32.
static inline size_t dr_gated_bytes(const dr_backend *b) {
    return dr_rounds_to_bf16(b->precision) ? sizeof(uint16_t) : sizeof(float);
}

static inline void dr_backend_destroy(dr_backend *backend) { // NULL is fine
    if (backend) backend->ops->destroy(backend);
}

// What every body's weight_take refuses of a weight of n_values.
dr_status dr_weight_part_check(const dr_backend *b, int64_t n_values, int64_t first, int64_t n);

// Memory of `count` elements of `size` bytes, zeroed, for memory_destroy. out_pointer: address of the
// caller's pointer, as of dr_alloc.
dr_status dr_memory_create(dr_backend *b, void *out_pointer, const char *label, int64_t count, size_t size);

// Whether the host uses the backend's memory as its own.
dr_status dr_memory_is_host(dr_backend *b, bool *out_is_host);

// Σ x²: the blocks' sums, added in order.
double dr_sum_of_squares(dr_backend *b, const float *x, int64_t n);

// n floats of backend memory on the host: the memory itself where the host can use it, else a copy that close
// brings back when the host writes. Each open wants its close, with the same arguments; host NULL is fine
// there.
typedef enum dr_host_use { DR_HOST_READS, DR_HOST_WRITES, DR_HOST_CHANGES } dr_host_use; // writes: all of it
dr_status dr_host_open(dr_backend *b, float *memory, int64_t n, dr_host_use use, float **out_host);
void dr_host_close(dr_backend *b, float *memory, int64_t n, dr_host_use use, float *host);

// The CPU body. n_threads 0: what OpenMP offers. DR_BF16 works on every processor; without AMX it
// halves what is read of weights, keys and values, and multiplies in fp32's time. DR_BF16_LOOSE gives a
// backend whose precision is DR_BF16.
dr_status dr_backend_cpu_create(dr_precision precision, int n_threads, dr_backend **out_backend);
void dr_backend_cpu_destroy(dr_backend *backend);
bool dr_cpu_has_bf16(void); // AMX-BF16 or AVX512-BF16: units that multiply it
bool dr_cpu_has_amx(void);

#ifdef __cplusplus
}
#endif
#endif
