// Shared inside the CUDA body only: the state behind dr_backend, scratch memory, and the stages through which
// descriptors in host memory (sequences, pages, kept sets) reach the device.
#ifndef DR_CUDA_CUDA_INTERNAL_H
#define DR_CUDA_CUDA_INTERNAL_H

#include "cuda/kernels.h"
#include "cuda/linear_lt.h"
#include "cuda/stage_plan.h"

// Grow-only device memory.
typedef struct dr_cuda_buffer {
    void *data;
    int64_t bytes;
} dr_cuda_buffer;

// A descriptor on its way: written to `host` (pinned), copied to `device` by the stream. `sent` fires when
// the copy is done and `host` may be written again.
typedef struct dr_cuda_stage {
    char *host, *device;
    int64_t bytes;
    struct CUevent_st *sent;
} dr_cuda_stage;

typedef struct dr_cuda_lt dr_cuda_lt; // the library of products, its descriptors, scratch and workspace
// A plan of spans, tiles and pages as it stands in host memory, and what its copy on the device is
// (ops_attention.c).
typedef struct dr_cuda_image {
    const char *host;
    int64_t bytes, queries, pages; // where these stand in it
    dr_cuda_attention work;        // points into the plan's stage; no operands
    int32_t group;
    bool is_mma, is_wide; // with tiles for the tensor cores, for wgmma
} dr_cuda_image;

// The last call on packed sequences, or on the cache.
typedef struct dr_cuda_plan {
    dr_cuda_stage stage;
    dr_cuda_image now; // what the stage's device memory holds
    bool is_sent;      // it holds a plan
} dr_cuda_plan;

// The plans of a burst's passes, sent once; each goes from there to its fixed place, the stage of `cached`.
typedef struct dr_cuda_later_plans {
    dr_cuda_stage stage;
    dr_cuda_image *images; // [n] of capacity; their host memory is the stage's
    int32_t n, capacity;
} dr_cuda_later_plans;

// The burst that is under way, or NULL (ops_burst.c).
typedef struct dr_cuda_burst {
    const dr_burst *burst;
    int32_t step;
    bool lists; // some row keeps a part of the vocabulary
    dr_cuda_stage stage;
    dr_cuda_buffer list;     // kept ids
    dr_burst_row *rows_host; // [n_rows_host]
    int64_t n_rows_host;
} dr_cuda_burst;

// A pass of the decode loop that was seen (exec NULL) or recorded: what it is made from (passes.c).
typedef struct dr_cuda_recording {
    dr_cached_pass pass; // chunks NULL
    const void *spans, *pages;
    int64_t n_tiles, n_parts;
    struct CUgraphExec_st *exec;
    int64_t used; // the number of the last pass that used it; 0: nothing is here
} dr_cuda_recording;
enum { DR_CUDA_RECORDINGS = 64 };

typedef struct dr_cuda_state {
    int device;
    dr_cuda_stream stream;
    dr_cuda_lt *lt;                 // NULL: the own kernels serve
    dr_status failed;               // of an op that returns no status; DR_OK so far
    dr_cuda_buffer partials;        // of sums over rows and of squares; attention's delta and splits
    dr_cuda_buffer rounded;         // attention's operands in bf16
    dr_cuda_buffer gated;           // silu(gate) · up, a product's operand: bf16 where products round
    dr_cuda_buffer dgated;          // the gradient there, fp32; in fp32 then silu(gate) · up
    dr_cuda_buffer dy;              // the gradient that a layer's, or the head's, both products read, as bf16
    dr_cuda_buffer logits;          // one block of rows of the head
    dr_cuda_buffer draw_scratch;    // histograms, sums and pieces of rows that are drawn from
    dr_cuda_buffer kept_ids, drawn; // of one call of sample or one burst, and the same in host memory
    int32_t *kept_host;
    dr_cuda_drawn *drawn_host;
    int64_t n_kept_ids, n_drawn;
    dr_cuda_stage stages[DR_CUDA_STAGES];
    int next_stage;
    dr_cuda_plan packed, cached;
    dr_cuda_later_plans later;
    dr_cuda_burst burst;
    bool wgmma_forward,
        wgmma_backward;  // packed attention by the kernels of compute capability 9.0, of heads that they take
    bool is_reference;   // simple kernels only
    int reads_host_late; // 1: the device reads pageable memory itself, when the stream comes to it
    bool records;        // passes of the decode loop
    dr_cuda_recording recordings[DR_CUDA_RECORDINGS];
    int64_t n_passes, n_recorded;
} dr_cuda_state;

struct dr_weight {
    int64_t n_out, n_in;
    const float *values; // what was packed last; borrowed, [n_out, n_in]
    uint16_t *rounded;   // the same as bf16 (bf16 precisions)
};

// What every op begins with: makes the backend's device the thread's, or returns what failed before.
dr_status dr_cuda_enter(dr_backend *b, dr_cuda_state **out_state);
// The end of an op that returns no status.
void dr_cuda_keep(dr_cuda_state *state, dr_status status);

// Whether the work before an event that was recorded is done, or has failed, within `deadline_s`: asleep
// between looks.
bool dr_cuda_wait_for(struct CUevent_st *event, double deadline_s);

// Work that was waited for long enough does not end. From now on no backend of this process waits or gives
// anything back, so that the process comes to its end; ops that return a status fail.
void dr_cuda_give_up(void);
bool dr_cuda_is_given_up(void);

// In a .c file that includes <cuda_runtime_api.h>; the text names what failed, as printf does.
#define DR_CUDA_TRY(code, call, format, ...)                                                                 \
    do {                                                                                                     \
        cudaError_t dr_error_ = (call);                                                                      \
        if (dr_error_ != cudaSuccess) {                                                                      \
            cudaGetLastError(); /* clears it */                                                              \
            return DR_FAIL((code), "cuda " format ": %s", __VA_ARGS__, cudaGetErrorString(dr_error_));       \
        }                                                                                                    \
    } while (0)

// At least `bytes` of scratch; what it held is lost. Waits for the stream when it grows.
dr_status dr_cuda_reserve(dr_cuda_state *state, dr_cuda_buffer *buffer, const char *label, int64_t bytes);

void dr_cuda_release(dr_cuda_state *state, dr_cuda_buffer *buffer); // waits for the stream

// The next stage with room for `bytes`, free to be written: waits until what it held has been copied, or for
// ten minutes, after which the device is given up (DR_ERR_TIMEOUT). send starts its copy. What kernels read
// of stage->device stays until the stage comes round again, in the order of the stream.
dr_status dr_cuda_stage_open(dr_cuda_state *state, int64_t bytes, dr_cuda_stage **out_stage);
// The same for a stage of one's own.
dr_status dr_cuda_stage_reserve(dr_cuda_state *state, dr_cuda_stage *stage, int64_t bytes);
dr_status dr_cuda_stage_send(dr_cuda_state *state, dr_cuda_stage *stage, int64_t bytes);

// ---- products through cuBLASLt (linear_lt.c) ----

// n elements; `rounded`, where it is not NULL, holds the same as bf16.
typedef struct dr_lt_operand {
    const float *values;
    const uint16_t *rounded;
    int64_t n;
} dr_lt_operand;

// A product of T rows with a weight [n_out, n_in]; left and right are a and b of dr_lt_shape.
typedef struct dr_lt_product {
    dr_lt_op op;
    int64_t n_out, n_in, T;
    dr_lt_operand left, right;
    const float *bias; // DR_LT_FORWARD_BIAS only
    void *out;         // DR_LT_FORWARD_ROUNDED: of bf16, else of fp32
    bool accumulate;   // out +=
} dr_lt_product;

// 130100 for 13.1.0. built: of the header that this build uses, 0: it has none; found: of the library that is
// tried first, 0: there is none.
void dr_cuda_lt_versions(int32_t *out_built, int32_t *out_found);
// Loads the library for a state that has its device and stream. Where there is none state->lt stays NULL and
// *out_reason, static storage, says why.
dr_status dr_cuda_lt_open(dr_cuda_state *state, dr_precision precision, const char **out_reason);
void dr_cuda_lt_close(dr_cuda_state *state); // without one: nothing
// *out_served false: the own kernels must do it. Exact precisions: the same answer for every T but 0.
dr_status dr_cuda_lt_product(dr_cuda_state *state, const dr_lt_product *product, bool *out_served);
// For measuring what the library can do: products with this one's key go on with the library's offer number
// `offer`, 0 its best by its own estimate. *out_is_there false: there are not so many, and nothing serves.
dr_status dr_cuda_lt_take_offer(dr_cuda_state *state, const dr_lt_product *product, int offer,
                                bool *out_is_there);

// linear_forward, and the two products of linear_backward from a dy that is rounded where products round.
dr_status dr_cuda_linear(dr_backend *b, const dr_weight *w, const float *x, int64_t T, const float *bias,
                         float *y);
dr_status dr_cuda_gradient_products(dr_backend *b, const char *op, const dr_weight *w, const float *x,
                                    const dr_lt_operand *dy, int64_t T, float *dx, bool accumulate,
                                    float *dw);

// Runs a pass over the cache whose plan is sent: plainly, recording it, or as it was recorded.
dr_status dr_cuda_run_pass(dr_backend *b, const dr_cached_pass *pass, const dr_cuda_attention *plan,
                           dr_pass_ops *ops, void *context);
int32_t dr_cuda_pass_rows(dr_backend *b, int32_t n_rows); // the op
void dr_cuda_forget_recordings(dr_cuda_state *state);     // the stream has nothing to do any more

dr_status dr_cuda_check_page(int32_t page_size); // that the kernels know this size (ops_attention.c)
// Plans for the passes of a burst, sent at once; the stage of `cached` is made large enough for each of them
// (ops_attention.c). They are what the passes' chunks say; the device's copies are moved along with the rows.
dr_status dr_cuda_plan_passes(dr_backend *b, const dr_cached_pass *passes, int32_t n_passes);
// Pass i's rows on the device, before its plan goes to the fixed place; none where there is no such plan.
dr_cuda_plan_rows dr_cuda_plan_rows_of(const dr_cuda_state *state, int32_t i);
// The burst, if there is one, is over, by its end or an error. Its plans are forgotten: what the device holds
// of them is not what their chunks say any more.
void dr_cuda_end_burst(dr_cuda_state *state);

// ---- draws (ops_sample.c) ----

dr_cuda_draw dr_cuda_draw_of(const dr_sampling *settings, uint32_t bits);
// Device memory for T draws from V ids: scratch and kept ids.
dr_status dr_cuda_reserve_draws(dr_cuda_state *state, int64_t T, int64_t V);
// Host memory, state->drawn_host and state->kept_host, for n draws with n_ids kept ids between them.
dr_status dr_cuda_reserve_drawn(dr_cuda_state *state, int64_t n, int64_t n_ids);
dr_status dr_cuda_fetch(dr_cuda_state *state, void *to, const void *from, size_t bytes); // does not wait
// One draw as the host has it; its kept ids at kept.
dr_sampled dr_cuda_sampled_of(const dr_cuda_drawn *drawn, const int32_t *kept);

// Op families; each file fills its entries.
void dr_cuda_fill_linear(dr_backend_ops *ops);
void dr_cuda_fill_rows(dr_backend_ops *ops);
void dr_cuda_fill_attention(dr_backend_ops *ops);
void dr_cuda_fill_head(dr_backend_ops *ops);
void dr_cuda_fill_sample(dr_backend_ops *ops);
void dr_cuda_fill_burst(dr_backend_ops *ops);
void dr_cuda_fill_retrieval(dr_backend_ops *ops);
void dr_cuda_fill_retrieval_backward(dr_backend_ops *ops);

#endif
