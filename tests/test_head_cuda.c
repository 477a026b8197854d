// The loss head of the CUDA body: its blocks of rows, its kept sets, its gradient as bf16, its memory. No
// device: skipped.
// labels: gpu
// Values against the CPU body in fp32 are in test_backend_cuda.c, too.
#include "tests/cuda_check.h"

#if DR_HAVE_CUDA_KERNELS
#include "cuda/cuda_internal.h"
#endif

static const float temperature = 0.7f;

// ---- blocks ----

typedef struct head_case {
    int64_t T, V, D;
    const float *h, *dlogprob, *start; // host memory; start: of dw
    const int32_t *targets;
    const dr_kept *kept;
} head_case;

typedef struct head_result {
    float *logprob, *entropy, *lse, *dh, *dw;
} head_result;

static head_case case_of(int64_t T, int64_t V, int64_t D, bool has_kept) {
    head_case c = {.T = T, .V = V, .D = D};
    c.h = rounded(op_normal(T * D, 0, 1), T * D);
    c.dlogprob = op_normal(T, 0, 1);
    c.start = op_normal(V * D, 0, 1);
    int32_t *targets = op_ids(T, (uint32_t)V);
    c.targets = targets;
    c.kept = has_kept ? op_kept(targets, T, V) : NULL;
    return c;
}

// In calls of `most` rows.
static head_result run_in_calls(dr_backend *b, const head_case *c, dr_weight *w, int64_t most) {
    const int64_t T = c->T, V = c->V, D = c->D;
    float *h = put(b, c->h, T * D), *dlogprob = put(b, c->dlogprob, T), *dh = put_poison(b, T * D);
    float *logprob = put_poison(b, T), *entropy = put_poison(b, T), *lse = put_poison(b, T);
    float *dw = put(b, c->start, V * D);
    int32_t *targets = put_ids(b, c->targets, T);
    for (int64_t t = 0; t < T; t += most) {
        const int64_t n = T - t < most ? T - t : most;
        const dr_kept *kept = c->kept ? c->kept + t : NULL;
        check_ok(b->ops->head_forward(b, w, h + t * D, targets + t, kept, n, temperature, logprob + t,
                                      entropy + t, lse + t));
        check_ok(b->ops->head_backward(b, w, h + t * D, targets + t, kept, n, temperature, lse + t,
                                       dlogprob + t, dh + t * D, dw));
    }
    return (head_result){get(b, logprob, T), get(b, entropy, T), get(b, lse, T), get(b, dh, T * D),
                         get(b, dw, V * D)};
}

static void check_rows(const head_result *got, const head_result *want, const head_case *c) {
    check_same_bits("log-probability", got->logprob, want->logprob, c->T);
    check_same_bits("entropy", got->entropy, want->entropy, c->T);
    check_same_bits("log-sum-exp", got->lse, want->lse, c->T);
    check_same_bits("dh", got->dh, want->dh, c->T * c->D);
}

// A row has the same bits whatever block it stands in, its gradient too; the sums over rows are those of the
// CPU, and in fp32, where they are one chain, have the same bits for all blocks. 300 rows of 97 ids are
// several blocks on the emulated device.
static void check_blocks(dr_backend *b, bool is_fp32, bool has_kept, int64_t D) {
    enum { T = 300, V = 97 };
    static const int64_t calls[] = {T, 7, 128, 260};
    const head_case c = case_of(T, V, D, has_kept);
    const float *values = rounded(op_normal(V * D, 0, 0.3), V * D);
    head_result whole = {0};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        dr_weight *w = pack(b, V, D, values);
        const head_result got = run_in_calls(b, &c, w, calls[i]);
        b->ops->weight_destroy(b, w);
        if (i == 0) whole = got;
        check_rows(&got, &whole, &c);
        if (is_fp32) check_same_bits("dw", got.dw, whole.dw, V * D);
    }
    dr_weight *w = pack(op_one, V, D, values);
    const head_result want = run_in_calls(op_one, &c, w, T);
    op_one->ops->weight_destroy(op_one, w);
    const double limit = is_fp32 ? gradient : 5e-3; // the gradient at the logits is rounded
    check_relative_error("log-probability", whole.logprob, want.logprob, T, gradient);
    check_relative_error("dh", whole.dh, want.dh, T * D, limit);
    check_relative_error("dw", whole.dw, want.dw, V * D, limit);
    free_all();
}

static void test_blocks(void **state) {
    (void)state;
    if (!cuda) skip();
    for (int kept = 0; kept < 2; kept++) {
        check_blocks(cuda, true, kept, 24);
        check_blocks(cuda_bf16, false, kept, 24);
    }
}

#if DR_HAVE_CUDA_KERNELS

// ---- the gradient at the logits ----

// fp32, in place or beside, and bf16: with kept sets the dense gradient where an id is kept, and +0 at all
// others, whose logits (poison here) are not read.
static void check_gradient(int64_t T, int64_t V) {
    dr_cuda_state *s = cuda->state;
    int32_t *targets = op_ids(T, (uint32_t)V);
    const dr_kept *kept = op_kept(targets, T, V);
    float *z = op_normal(T * V, 0, 2), *lse = op_normal(T, 3, 1), *slope = op_normal(T, 0, 1), *dense, *want;
    int64_t *starts = op_array(T + 1, sizeof *starts), n = 0;
    int32_t *ids = op_array(T * V, sizeof *ids);
    float *on_device = put(cuda, z, T * V), *out = put_poison(cuda, T * V), *d_lse = put(cuda, lse, T);
    float *d_slope = put(cuda, slope, T);
    const int32_t *d_targets = put_ids(cuda, targets, T);
    check_ok(dr_cuda_head_gradient(on_device, d_targets, (dr_cuda_kept){0}, T, V, temperature, d_lse, d_slope,
                                   on_device, s->stream));
    dense = get(cuda, on_device, T * V);
    want = op_copy(dense, T * V);
    for (int64_t t = 0; t < T; t++) {
        if (kept[t].n == 0) continue;
        float *masked = op_poison(V);
        memset(want + t * V, 0, (size_t)V * sizeof(float));
        for (int32_t k = 0; k < kept[t].n; k++) {
            int64_t id = kept[t].ids[k];
            want[t * V + id] = dense[t * V + id];
            masked[id] = z[t * V + id];
            ids[n++] = kept[t].ids[k];
        }
        memcpy(z + t * V, masked, (size_t)V * sizeof(float));
        starts[t + 1] = n;
    }
    for (int64_t t = 0; t < T; t++)
        if (kept[t].n == 0) starts[t + 1] = starts[t];
    const dr_cuda_kept sets = {put_bytes(cuda, starts, (size_t)(T + 1) * sizeof *starts),
                               put_ids(cuda, ids, T * V)};
    on_device = put(cuda, z, T * V);
    check_ok(
        dr_cuda_head_gradient(on_device, d_targets, sets, T, V, temperature, d_lse, d_slope, out, s->stream));
    check_same_bits("gradient beside the logits", get(cuda, out, T * V), want, T * V);
    uint16_t *narrow = (uint16_t *)(void *)put_poison(cuda, T * V), *halves = op_array(T * V, sizeof *halves);
    check_ok(dr_cuda_head_gradient_bf16(on_device, d_targets, sets, T, V, temperature, d_lse, d_slope, narrow,
                                        s->stream));
    cuda->ops->copy_out(cuda, halves, narrow, (size_t)(T * V) * sizeof *halves);
    float *wide = op_array(T * V, sizeof *wide);
    for (int64_t i = 0; i < T * V; i++) {
        uint32_t bits = (uint32_t)halves[i] << 16;
        memcpy(&wide[i], &bits, sizeof bits);
    }
    check_same_bits("gradient as bf16", wide, rounded(want, T * V), T * V);
    check_ok(dr_cuda_head_gradient(on_device, d_targets, sets, T, V, temperature, d_lse, d_slope, on_device,
                                   s->stream));
    check_same_bits("gradient in the logits' place", get(cuda, on_device, T * V), want, T * V);
    free_all();
}

static void test_gradient(void **state) {
    (void)state;
    if (!cuda) skip();
    check_gradient(9, 1);
    check_gradient(12, 70);
    check_gradient(8, 4001); // sets of several tiles
}

// ---- memory ----

// What the two ops keep is what head_memory says, of few rows and of several blocks.
static void check_memory(dr_precision precision, int64_t T, int64_t V, int64_t D) {
    dr_backend *b = NULL;
    dr_cuda_own_products_only(true);
    check_ok(dr_backend_cuda_create(precision, 0, &b));
    dr_cuda_own_products_only(false);
    const dr_cuda_state *own = b->state;
    const head_case c = case_of(T, V, D, true);
    dr_weight *w = pack(b, V, D, op_normal(V * D, 0, 0.3));
    run_in_calls(b, &c, w, T);
    const int64_t rows = dr_head_block(T, V, 0);
    int64_t taken = own->logits.bytes + own->dy.bytes;
    for (int i = 0; i < DR_CUDA_STAGES; i++) taken += own->stages[i].bytes;
    assert_int_equal(own->logits.bytes, rows * V * sizeof(float));
    assert_int_equal(own->dy.bytes, precision == DR_BF16 ? rows * V * sizeof(uint16_t) : 0);
    assert_int_equal(taken, b->ops->head_memory(b, T, V, D));
    b->ops->weight_destroy(b, w);
    free_all();
    dr_backend_cuda_destroy(b);
}

static void test_memory(void **state) {
    (void)state;
    if (!cuda) skip();
    for (int i = 0; i < 2; i++) {
        check_memory(i ? DR_BF16 : DR_FP32, 5, 97, 24);
        check_memory(i ? DR_BF16 : DR_FP32, 300, 97, 24);
    }
}

// Sets that are each the whole vocabulary go in parts, and no stage grows beyond its plan.
static void test_whole_sets(void **state) {
    (void)state;
    enum { T = 300, V = 640 };
    if (!cuda) skip();
    dr_backend *b = NULL;
    check_ok(dr_backend_cuda_create(DR_FP32, 0, &b));
    const dr_cuda_state *own = b->state;
    int32_t *every = op_array(V, sizeof *every);
    dr_kept *kept = op_array(T, sizeof *kept);
    float *logits = put(b, op_normal(T * V, 0, 2), T * V), *of_sets = put_poison(b, T);
    for (int32_t j = 0; j < V; j++) every[j] = j;
    for (int t = 0; t < T; t++) kept[t] = (dr_kept){every, V};
    b->ops->kept_lse(b, logits, T, V, temperature, kept, of_sets);
    float *stats = put_poison(b, T), *entropy = put_poison(b, T);
    b->ops->softmax_stats(b, logits, T, V, temperature, stats, entropy);
    check_close("log-sum-exp of whole sets", get(b, of_sets, T), get(b, stats, T), T, 1e-5, 1e-6);
    for (int i = 0; i < DR_CUDA_STAGES; i++)
        assert_in_range(own->stages[i].bytes, DR_CUDA_KEPT_ROWS * V * sizeof(int32_t),
                        dr_turns_memory(T, V) / DR_CUDA_STAGES);
    free_all();
    dr_backend_cuda_destroy(b);
}

#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cuda_test(test_blocks),
#if DR_HAVE_CUDA_KERNELS
        cuda_test(test_gradient),
        cuda_test(test_memory),
        cuda_test(test_whole_sets),
#endif
    };
    cuda_run(tests);
}
