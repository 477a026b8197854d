// Stages and scratch on a device: no call of a shape of passes needs more than is planned for it.
// labels: cpu
#include "tests/check.h"

#include "core/base/rng.h"
#include "cuda/attention_plan.h"
#include "cuda/index.h"
#include "cuda/stage_plan.h"

// Bytes of a plan over n spans.
static int64_t plan_bytes(const dr_span *spans, int32_t n, int32_t group, bool is_cached) {
    dr_plan_counts counts = {0};
    for (int32_t s = 0; s < n; s++) {
        int64_t seen = (int64_t)spans[s].n_before + spans[s].n_rows;
        dr_plan_count(&counts, &spans[s], is_cached ? dr_ceil_div(seen, DR_CUDA_PAGE) : 0, group, is_cached,
                      !is_cached && group > 0);
    }
    return dr_plan_layout_of(&counts, is_cached).bytes;
}

// No call of a shape needs more of a stage than the shape says, and one at its limits hardly less. A tick
// has 2 LIVE + 1 chunks at most, of LIVE + PREFILL rows.
static void test_stages(void **state) {
    (void)state;
    enum { LIVE = 12, PREFILL = 100, LONGEST = 1500, SPANS = 2 * LIVE + 1, T = 300 };
    static dr_span spans[4 * T];
    dr_rng rng = dr_rng_make(3, 3);
    for (int round = 0; round < 300; round++) {
        int32_t group = 1 + (int32_t)dr_rng_below(&rng, DR_CUDA_MMA_ROWS), left = LIVE + PREFILL, n = 0;
        dr_plan_counts most = dr_most_of_cached(SPANS, LIVE + PREFILL, LONGEST, group);
        for (; n < SPANS && left > 0; n++) {
            int32_t rows = 1 + (int32_t)dr_rng_below(&rng, (uint32_t)(n % 2 ? left : 2));
            rows = rows < left ? rows : left;
            int32_t before = round % 3 ? (int32_t)dr_rng_below(&rng, LONGEST) : LONGEST - rows;
            if (before + rows > LONGEST) before = LONGEST - rows;
            spans[n] = (dr_span){.n_rows = rows, .n_before = before};
            left -= rows;
        }
        assert_true(plan_bytes(spans, n, group, true) <= dr_plan_layout_of(&most, true).bytes);
        assert_true(plan_bytes(spans, n, 0, true) <= dr_plan_layout_of(&most, true).bytes);
        most = dr_most_of_packed(T, group);
        for (n = 0, left = T; n < 4 * T; n++) {
            int32_t rows = left > 0 && n % 4 == 0 ? 1 + (int32_t)dr_rng_below(&rng, 2 + round % 40) : 0;
            rows = rows < left ? rows : left;
            spans[n] = (dr_span){.n_rows = rows};
            left -= rows;
        }
        assert_true(plan_bytes(spans, n, group, false) <= dr_plan_layout_of(&most, false).bytes);
    }
    for (int32_t s = 0; s < LIVE; s++) spans[s] = (dr_span){.n_rows = 1, .n_before = LONGEST - 1};
    dr_plan_counts most = dr_most_of_cached(LIVE, LIVE, LONGEST, 4);
    int64_t room = dr_plan_layout_of(&most, true).bytes, taken = plan_bytes(spans, LIVE, 4, true);
    assert_true(taken <= room && room - taken <= 64 * (int64_t)sizeof(dr_query_tile));
    // a shape's stages: each burst is longer, and holds more plans
    dr_pass_shape shape = {.T = T,
                           .H = 8,
                           .G = 2,
                           .n_draws = LIVE,
                           .n_steps = 1,
                           .n_cached = LIVE + PREFILL,
                           .longest = LONGEST};
    int64_t alone = dr_stages_memory(&shape);
    shape.n_steps = 65;
    assert_true(dr_stages_memory(&shape) - alone >= 64 * taken);
    // on the host: each stage once more, those that ops take turns with, and the ids of the widest draws
    shape.V = 4096;
    int64_t turns = DR_CUDA_STAGES * dr_kept_bytes(T, DR_CUDA_KEPT_ROWS * (int64_t)4096);
    int64_t least = dr_stages_memory(&shape) + turns +
                    dr_burst_listed_ids(LIVE, 4096) * (int64_t)sizeof(int32_t) +
                    LIVE * 65 * (int64_t)sizeof(dr_cuda_drawn);
    assert_in_range(dr_passes_on_host(&shape), least, least + least / 2);
    // room for one step always, for 64 of a small vocabulary, and never less for more rows
    for (int64_t rows = 1, before = 0; rows <= 512; rows++) {
        int64_t small = dr_burst_listed_ids(rows, 300), large = dr_burst_listed_ids(rows, 151936);
        assert_true(small == 64 * 300 * rows && large >= rows * 151936 && large >= before);
        assert_true(large == rows * 151936 || large <= 16 << 20);
        before = large;
    }
    dr_burst_layout burst = dr_burst_layout_of(LIVE, 65);
    assert_true(burst.draws >= burst.rows + LIVE * (int64_t)sizeof(dr_burst_row) && burst.draws % 16 == 0);
    assert_true(burst.keys >= burst.draws + LIVE * (int64_t)sizeof(dr_cuda_draw) && burst.keys % 16 == 0);
    assert_int_equal(burst.pool - burst.keys, LIVE * (int64_t)sizeof(dr_draw_key));
    // 64 passes behind the first: four pages a row, in the pool and taken
    assert_int_equal(burst.taken - burst.pool, 4 * LIVE * (int64_t)sizeof(int32_t));
    assert_int_equal(burst.bytes - burst.taken, burst.taken - burst.pool);
    assert_true(burst.n_taken >= (int64_t)sizeof(int64_t) &&
                burst.rows - burst.n_taken >= (int64_t)sizeof(int64_t));
    for (int32_t steps = 1; steps <= 65; steps++) { // wherever in a page a row stands at first
        int32_t most = 0;
        for (int32_t at = 0; at < DR_CUDA_PAGE; at++) {
            int32_t n = (at + steps - 1) / DR_CUDA_PAGE;
            if (n > most) most = n;
        }
        assert_int_equal(dr_burst_row_pages(steps), most);
    }
}

// Kept sets go in parts that hold as many rows as the stage has room for, and at least the rows that it was
// planned for when each is the whole vocabulary.
static void test_kept_sets(void **state) {
    (void)state;
    enum { V = 50, T = 1000 };
    static dr_kept kept[T];
    const int64_t most = DR_CUDA_KEPT_ROWS * V;
    dr_rng rng = dr_rng_make(4, 4);
    for (int round = 0; round < 100; round++) {
        const uint32_t widest = round % 3 ? V : 4;
        int64_t n_parts = 0;
        for (int t = 0; t < T; t++)
            kept[t].n = round % 5 ? (int32_t)dr_rng_below(&rng, widest + 1) : (int32_t)widest;
        for (int64_t t = 0, rows = 0; t < T; t += rows) {
            int64_t n_ids = -1, counted = 0;
            rows = dr_kept_rows(kept + t, T - t, V, &n_ids);
            for (int64_t r = t; r < t + rows; r++) counted += kept[r].n;
            assert_int_equal(n_ids, counted);
            assert_true(n_ids <= most && rows >= (T - t < DR_CUDA_KEPT_ROWS ? T - t : DR_CUDA_KEPT_ROWS));
            assert_true(t + rows == T || n_ids + kept[t + rows].n > most);
            assert_true(DR_CUDA_STAGES * dr_cuda_stage_capacity(dr_kept_bytes(rows, n_ids)) <=
                        dr_turns_memory(T, V));
            n_parts++;
        }
        assert_true(widest == V ? n_parts > 1 : n_parts == 1);
    }
    assert_true(dr_turns_memory(5, 100000) < dr_turns_memory(50, 100000));
    assert_true(dr_turns_memory(1 << 20, 100000) < dr_turns_memory(DR_CUDA_KEPT_ROWS, 100000) * 1.01);
}

// What each op asks of the scratch for sums in a model's passes is at most what is planned.
static void test_partials(void **state) {
    (void)state;
    // hidden, intermediate, query heads, head size; of 0.5B, 0.6B and 7B models, and a small one
    static const int64_t models[][4] = {
        {896, 4864, 14, 64}, {1024, 3072, 16, 128}, {3584, 18944, 28, 128}, {96, 256, 6, 16}};
    static const int64_t lengths[] = {1, 100, 1024, 4096, 20000};
    enum { V = 4096, LAYERS = 4, DRAWS = 8, LONGEST = 2000 };
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            int64_t D = models[m][0], F = models[m][1], H = models[m][2], d = models[m][3], T = lengths[i];
            int64_t A = H * d, in_layers = LAYERS * (2 * A * D + 2 * d * D + 3 * F * D);
            dr_pass_shape shape = {.T = T,
                                   .n_out = 2 * F,
                                   .n_in = F > A ? F : A,
                                   .row_macs = in_layers + V * D,
                                   .V = V,
                                   .n_draws = DRAWS,
                                   .longest = LONGEST,
                                   .H = (int32_t)H,
                                   .G = 1,
                                   .d = (int32_t)d};
            int64_t planned = dr_partials_floats(&shape);
            assert_true(planned >= dr_chunk_count(T) * 2 * F);                   // biases
            assert_true(planned >= dr_norm_parts(T) * D);                        // norms of rows
            assert_true(planned >= dr_norm_parts(T * H) * d);                    // and of heads
            assert_true(planned >= T * H);                                       // delta
            assert_true(planned >= 2 * dr_square_blocks(in_layers + 2 * V * D)); // doubles
            assert_true(planned >= DRAWS * dr_splits_of(LONGEST) * H * (d + 2));
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stages), cmocka_unit_test(test_kept_sets),
                                       cmocka_unit_test(test_partials)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
