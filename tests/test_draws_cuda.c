// Draws on the device: against the CPU's, against the loss head's own bits, against a sorted row over large
// vocabularies, alone and among others; what they take of memory. No device: skipped.
// labels: gpu
#include "tests/cuda_check.h"
#include "tests/ranked.h"

#include <stdlib.h>

#if DR_HAVE_CUDA_KERNELS
#include "cuda/cuda_internal.h"
#endif

typedef struct draws {
    int64_t T, V;
    float *z; // [T, V], host memory
    dr_sampling *how;
    uint32_t *bits;
    dr_sampled *got;
} draws;

static draws draws_make(int64_t T, int64_t V, float scale, const dr_sampling *how) {
    draws d = {.T = T, .V = V, .z = op_normal(T * V, 0, scale)};
    d.how = op_array(T, sizeof *d.how);
    d.bits = op_array(T, sizeof *d.bits);
    d.got = op_array(T, sizeof *d.got);
    for (int64_t t = 0; t < T; t++) {
        d.how[t] = *how;
        d.bits[t] = dr_draw(&(dr_draw_key){9, (uint32_t)V, (uint32_t)t, 0, 0, 0});
    }
    return d;
}

static float temperature_of(const dr_sampling *how) {
    return how->temperature == 0 ? 1.0f : how->temperature;
}

// Each log-probability has the bits that the loss head computes; all rows have one temperature.
static void check_head_bits(const draws *d, const float *logits) {
    const float temperature = temperature_of(d->how);
    dr_kept *sets = op_array(d->T, sizeof *sets);
    for (int64_t t = 0; t < d->T; t++) sets[t] = d->got[t].kept;
    float *stats = put_poison(cuda, d->T), *entropy = put_poison(cuda, d->T);
    cuda->ops->softmax_stats(cuda, logits, d->T, d->V, temperature, stats, entropy);
    float *lse = get(cuda, stats, d->T);
    cuda->ops->kept_lse(cuda, logits, d->T, d->V, temperature, sets, stats);
    float *kept = get(cuda, stats, d->T);
    for (int64_t t = 0; t < d->T; t++) {
        const float z = d->z[t * d->V + d->got[t].id];
        float whole = dr_logprob_of(z, temperature, lse[t]),
              of_kept = d->how[t].temperature == 0 ? 0 : dr_logprob_of(z, temperature, kept[t]);
        check_same_bits("logprob of draw and head", &d->got[t].logprob, &whole, 1);
        check_same_bits("logprob_kept of draw and head", &d->got[t].logprob_kept, &of_kept, 1);
    }
}

static void check_same_draw(const dr_sampled *got, const dr_sampled *want) {
    assert_int_equal(got->id, want->id);
    assert_int_equal(got->kept.n, want->kept.n);
    if (want->kept.n > 0)
        assert_memory_equal(got->kept.ids, want->kept.ids, (size_t)want->kept.n * sizeof *want->kept.ids);
}

static void check_draws(int64_t T, int64_t V, float scale, const dr_sampling *how) {
    draws d = draws_make(T, V, scale, how);
    dr_sampled *want = op_array(T, sizeof *want);
    float *logits = put(cuda, d.z, T * V);
    check_ok(op_one->ops->sample(op_one, d.z, T, V, d.how, d.bits, want));
    check_ok(cuda->ops->sample(cuda, logits, T, V, d.how, d.bits, d.got));
    check_head_bits(&d, logits);
    for (int64_t t = 0; t < T; t++) {
        check_same_draw(&d.got[t], &want[t]);
        check_close("logprob", &d.got[t].logprob, &want[t].logprob, 1, 1e-5, 1e-5);
        check_close("logprob_kept", &d.got[t].logprob_kept, &want[t].logprob_kept, 1, 1e-5, 1e-5);
    }
    free_all();
}

static void test_draws(void **state) {
    (void)state;
    if (!cuda) skip();
    static const dr_sampling how[] = {{0, 1}, {1, 1}, {1, 0.9f}, {0.7f, 0.5f}, {1.3f, 0.999f}, {1, 1e-6f}};
    static const int64_t shapes[][2] = {{1, 1}, {7, 33}, {5, 512}, {3, 5000}};
    for (int i = 0; i < 6; i++)
        for (int k = 0; k < 4; k++) {
            check_draws(shapes[k][0], shapes[k][1], 2, &how[i]);
            if (shapes[k][1] < 1000) check_draws(shapes[k][0], shapes[k][1], 0, &how[i]); // all equal
        }
}

// ---- large vocabularies ----

static int by_id(const void *a, const void *b) {
    return ((const ranked *)a)->id - ((const ranked *)b)->id;
}

static double mass_of(double p) {
    volatile double shifted = p + 0x1.8p20;
    return shifted - 0x1.8p20;
}

// One row the slow way: sorted, then added up.
static void sorted_draw(const float *z, int64_t V, const dr_sampling *how, uint32_t bits, dr_sampled *out) {
    const float inv = 1.0f / temperature_of(how);
    ranked *row = op_array(V, sizeof *row);
    int32_t *ids = op_array(V, sizeof *ids), n = 0;
    double all = 0, mass = 0, through = 0;
    float top = -INFINITY;
    for (int64_t j = 0; j < V; j++) top = fmaxf(top, z[j]);
    for (int64_t j = 0; j < V; j++) {
        float x = (z[j] - top) * inv;
        row[j] = (ranked){expf(x < -88.0f ? -88.0f : x), (int32_t)j};
        all += mass_of(row[j].p);
    }
    *out = (dr_sampled){0};
    if (how->temperature == 0) {
        while (z[out->id] != top) out->id++;
        return;
    }
    if (how->top_p >= 1.0f) {
        n = (int32_t)V;
        mass = all;
    } else {
        qsort(row, (size_t)V, sizeof *row, by_rank);
        while (n < V && row[n].p >= 0x1p-32f && mass < (double)how->top_p * all) mass += mass_of(row[n++].p);
        qsort(row, (size_t)n, sizeof *row, by_id);
    }
    int32_t at = 0;
    while ((through += mass_of(row[at].p)) <= bits * 0x1p-32 * mass) at++;
    out->id = row[at].id;
    for (int32_t i = 0; i < n; i++) ids[i] = row[i].id;
    if (how->top_p < 1.0f) out->kept = (dr_kept){ids, n};
}

// By its definition, whatever the device's exponential is: rising, none outside better than one inside.
static void check_kept(const float *z, int64_t V, const dr_kept *kept) {
    float lowest = INFINITY, highest = -INFINITY;
    int32_t k = 0;
    for (int32_t j = 0; j < V; j++) {
        const bool is_kept = k < kept->n && kept->ids[k] == j;
        k += is_kept;
        if (is_kept) lowest = fminf(lowest, z[j]);
        if (!is_kept) highest = fmaxf(highest, z[j]);
    }
    assert_int_equal(k, kept->n);
    assert_true(k == 0 || lowest >= highest - 1e-6f);
}

enum { ODD_V = 151937, FLAT = 0, PEAKED, TIES, EQUAL, FEW, KINDS };

// Rows of a shape each.
static void shape_rows(draws *d) {
    for (int64_t t = 0; t < d->T; t++)
        for (int64_t j = 0; j < d->V; j++) {
            float *z = &d->z[t * d->V + j];
            switch (t % KINDS) {
            case FLAT:
                *z *= 2.5f;
                break;
            case PEAKED:
                *z *= 8;
                break;
            case TIES:
                *z = roundf(*z * 2) / 2;
                break;
            case EQUAL:
                *z = -3;
                break;
            default:
                *z = j % 40009 == 17 ? 0.5f * *z : -INFINITY;
                break;
            }
        }
}

static void check_large(int64_t V, const dr_sampling *how) {
    draws d = draws_make(KINDS, V, 1, how);
    shape_rows(&d);
    float *logits = put(cuda, d.z, KINDS * V);
    check_ok(cuda->ops->sample(cuda, logits, KINDS, V, d.how, d.bits, d.got));
    check_head_bits(&d, logits);
    for (int64_t t = 0; t < KINDS; t++) {
        check_kept(d.z + t * V, V, &d.got[t].kept);
#ifdef DR_IS_EMULATED // whose exponential is the host's
        dr_sampled want;
        sorted_draw(d.z + t * V, V, how, d.bits[t], &want);
        check_same_draw(&d.got[t], &want);
#else
        (void)sorted_draw;
#endif
    }
    free_all();
}

static void test_large(void **state) {
    (void)state;
    if (!cuda) skip();
    static const dr_sampling how[] = {{1, 0.95f}, {1, 1}, {0, 1}, {0.8f, 1e-6f}, {1.2f, 0.9999f}};
    for (int i = 0; i < 5; i++) check_large(8192 + 8191 * (i % 2) + i, &how[i]); // around two pieces' ends
    for (int i = 0; i < 2; i++) check_large(ODD_V, &how[i]);
}

// ---- rows ----

// A row's draw has the same bits alone and among others that are drawn in other ways.
static void test_rows(void **state) {
    (void)state;
    if (!cuda) skip();
    static const dr_sampling how[] = {{1, 0.95f}, {0, 1}, {0.5f, 1}, {2, 0.3f}, {1, 0.999f}};
    enum { T = 13, V = 9001 };
    draws d = draws_make(T, V, 3, &how[0]);
    for (int64_t t = 0; t < T; t++) d.how[t] = how[t % 5];
    float *logits = put(cuda, d.z, (int64_t)T * V);
    check_ok(cuda->ops->sample(cuda, logits, T, V, d.how, d.bits, d.got));
    dr_sampled *together = op_array(T, sizeof *together);
    for (int64_t t = 0; t < T; t++) { // a later call writes where kept ids stand
        int32_t *ids = op_array(d.got[t].kept.n + 1, sizeof *ids);
        for (int32_t k = 0; k < d.got[t].kept.n; k++) ids[k] = d.got[t].kept.ids[k];
        together[t] = d.got[t];
        together[t].kept.ids = ids;
    }
    for (int64_t t = 0; t < T; t++) {
        dr_sampled alone;
        check_ok(cuda->ops->sample(cuda, logits + t * V, 1, V, &d.how[t], &d.bits[t], &alone));
        check_same_draw(&alone, &together[t]);
        check_same_bits("logprob alone", &alone.logprob, &together[t].logprob, 1);
        check_same_bits("logprob_kept alone", &alone.logprob_kept, &together[t].logprob_kept, 1);
    }
    free_all();
}

static void test_refusals(void **state) {
    (void)state;
    if (!cuda) skip();
    enum { V = 20011 };
    static const dr_sampling how[] = {{1, 0.9f}, {1, 1}, {0, 1}};
    for (int i = 0; i < 3; i++) {
        draws d = draws_make(3, V, 1, &how[i]);
        float *z = d.z + V;
        char text[64];
        z[17000 + i] = NAN;
        z[19000] = INFINITY;
        snprintf(text, sizeof text, "row 1: logit %d is", 17000 + i);
        check_error(cuda->ops->sample(cuda, put(cuda, d.z, 3 * V), 3, V, d.how, d.bits, d.got),
                    DR_ERR_NUMERIC, text);
        z[17000 + i] = 0;
        check_error(cuda->ops->sample(cuda, put(cuda, d.z, 3 * V), 3, V, d.how, d.bits, d.got),
                    DR_ERR_NUMERIC, "row 1: logit 19000 is inf");
        for (int64_t j = 0; j < V; j++) z[j] = -INFINITY;
        check_error(cuda->ops->sample(cuda, put(cuda, d.z, 3 * V), 3, V, d.how, d.bits, d.got),
                    DR_ERR_NUMERIC, "every logit is -inf");
        free_all();
    }
}

static void test_memory(void **state) {
    (void)state;
    if (!cuda) skip();
#if DR_HAVE_CUDA_KERNELS
    enum { T = 6, V = 30011 };
    const dr_sampling how = {1, 0.9f};
    dr_backend *b = NULL;
    check_ok(dr_backend_cuda_create(DR_FP32, 0, &b));
    const dr_cuda_state *own = b->state;
    const dr_pass_shape shape = {.T = 1, .n_out = 8, .n_in = 8, .H = 1, .G = 1, .d = 8, .V = V, .n_draws = T};
    const dr_pass_shape none = {.T = 1, .n_out = 8, .n_in = 8, .H = 1, .G = 1, .d = 8, .V = V};
    int64_t on_host = 0;
    draws d = draws_make(T, V, 1, &how);
    check_ok(b->ops->sample(b, put(b, d.z, (int64_t)T * V), T, V, d.how, d.bits, d.got));
    assert_true(own->draw_scratch.bytes > 0);
    const int64_t planned =
        b->ops->pass_memory(b, &shape, &on_host) - b->ops->pass_memory(b, &none, &on_host);
    assert_true(own->draw_scratch.bytes + own->kept_ids.bytes + own->drawn.bytes <= planned);
    free_all();
    dr_backend_cuda_destroy(b);
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cuda_test(test_draws),    cuda_test(test_large),  cuda_test(test_rows),
        cuda_test(test_refusals), cuda_test(test_memory),
    };
    cuda_run(tests);
}
