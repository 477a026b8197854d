// What stands between two passes of a burst, as its kernel does it, run on the host: draws are settled, rows
// take pages, and the next pass's plan, made before the burst, comes to say what one made then would.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/rng.h"
#include "cuda/stage_plan.h"
#include "tests/cached_plan.h"

// The settling of one step as its kernel does it: kept ids of all rows that drew stand one behind another in
// the list, and from the first row that finds no room on nothing more is listed.
static int64_t settle(dr_burst_row *rows, int32_t n, const int32_t *ids, const int32_t *kept, int64_t listed,
                      int64_t room, int32_t *list) {
    int64_t before = listed, fitted = 0;
    for (int32_t r = 0; r < n; r++) {
        const dr_burst_row was = rows[r];
        int64_t own = dr_listed_by(&was, ids[r], kept[r]), place = before;
        bool drew = dr_settle_row(&rows[r], NULL, ids[r], kept[r], place, room);
        before += own;
        if (was.is_finished) {
            assert_memory_equal(&rows[r], &was, sizeof was);
            assert_true(!drew && own == 0);
            continue;
        }
        assert_int_equal(rows[r].has_failed, ids[r] < 0);
        assert_int_equal(rows[r].n_drawn, was.n_drawn + drew);
        if (ids[r] >= 0) assert_int_equal(drew, kept[r] == 0 || place + kept[r] <= room);
        assert_int_equal(rows[r].found_no_room, !drew && ids[r] >= 0);
        if (drew) dr_burst_go_on(&rows[r], ids[r]);
        if (!drew)
            assert_true(rows[r].is_finished && rows[r].id == was.id && rows[r].position == was.position);
        if (drew && rows[r].n_drawn < was.limit)
            assert_true(rows[r].id == ids[r] && rows[r].position == was.position + 1);
        for (int64_t i = 0; drew && i < own; i++) list[place + i]++;
        fitted += drew ? own : 0;
    }
    return listed + fitted;
}

static void test_settling(void **state) {
    (void)state;
    enum { ROWS = 70, V = 20, STEPS = 6, ROOM = ROWS * V };
    for (uint32_t most = 1; most <= V; most += 3) { // kept ids of a row
        dr_burst_row rows[ROWS];
        int32_t ids[ROWS], kept[ROWS], n_short = 0, *list = counters(ROOM);
        int64_t listed = 0;
        uint32_t word = most;
        for (int32_t r = 0; r < ROWS; r++)
            rows[r] = (dr_burst_row){.id = 100, .limit = 1 + r % STEPS, .room = INT32_MAX};
        for (int step = 0; step < STEPS; step++) {
            for (int32_t r = 0; r < ROWS; r++) {
                word = word * 1664525u + 1013904223u;
                ids[r] = word >> 8 & 63 ? (int32_t)(word >> 16 & 15) : -1;
                kept[r] = word >> 30 ? (int32_t)((word >> 4) % (most + 1)) : 0;
            }
            listed = settle(rows, ROWS, ids, kept, listed, ROOM, list);
            assert_true(listed <= ROOM);
        }
        for (int32_t r = 0; r < ROWS; r++) {
            assert_true(rows[r].is_finished);
            n_short += !rows[r].has_failed && rows[r].n_drawn < rows[r].limit;
        }
        if (most == 1) assert_int_equal(n_short, 0);
        if (most + 3 > V) assert_true(n_short > 0);
        for (int64_t i = 0; i < ROOM; i++) assert_int_equal(list[i], i < listed);
        dr_free(list);
    }
}

// ---- pages and plans ----

enum {
    SEQUENCES = 8,
    LONG_BURST = 41,
    LIST = 64,
    ROW_PAGES = (LONG_BURST - 1 + DR_CUDA_PAGE - 1) / DR_CUDA_PAGE
};

// A burst over sequences of which some share pages.
typedef struct paged_burst {
    int32_t positions[SEQUENCES], n_pages[SEQUENCES];
    int32_t lists[SEQUENCES][LIST];      // as the host has them: behind a row's pages stands its last one
    int32_t real[SEQUENCES][LIST];       // with those taken
    int32_t taken[SEQUENCES][ROW_PAGES]; // the device's
    dr_burst_row rows[SEQUENCES];
    cached_plan plans[LONG_BURST - 1];
    int32_t n_pool, n_taken;
} paged_burst;

// Sequences 0 to 3 share 15 pages, one less than a split, which the burst completes; 4 and 5 share a split;
// 6 is short. Those that share n pages stand behind them.
static void burst_open(paged_burst *b, dr_rng *rng) {
    static const int32_t shared[SEQUENCES] = {15, 15, 15, 15, 20, 20, 0, 0};
    static const int32_t base[SEQUENCES] = {1000, 1000, 1000, 1000, 2000, 2000, 0, 0};
    memset(b, 0, sizeof *b);
    for (int32_t r = 0; r < SEQUENCES; r++) {
        b->positions[r] = shared[r] * DR_CUDA_PAGE + (int32_t)dr_rng_below(rng, r == 7 ? 500 : 16);
        b->n_pages[r] = b->positions[r] / DR_CUDA_PAGE + 1;
        for (int32_t i = 0; i < LIST; i++) {
            const int32_t own = i < b->n_pages[r] ? i : b->n_pages[r] - 1;
            b->lists[r][i] = b->real[r][i] = own < shared[r] ? base[r] + own : 100 * r + own;
        }
        b->rows[r] = (dr_burst_row){.position = b->positions[r],
                                    .limit = 1 + (int32_t)dr_rng_below(rng, LONG_BURST),
                                    .room = b->n_pages[r] * DR_CUDA_PAGE};
    }
    b->rows[0].limit = LONG_BURST;
    b->n_pool = (int32_t)dr_rng_below(rng, 30);
}

static void plan_passes(paged_burst *b, int32_t group) {
    for (int32_t step = 1; step < LONG_BURST; step++) {
        dr_attention_chunk chunks[SEQUENCES];
        for (int32_t r = 0; r < SEQUENCES; r++) {
            const int32_t most = b->rows[r].limit - 1, ahead = step < most ? step : most;
            chunks[r] = (dr_attention_chunk){r, 1, b->positions[r] + ahead, b->lists[r]};
        }
        plan_cached(&b->plans[step - 1], chunks, SEQUENCES, group);
    }
}

// Rows in their order, pages 5000 … of the pool; some stop by their token. Returns how many found no page.
static int settle_pages(paged_burst *b, dr_rng *rng) {
    int n_short = 0;
    for (int32_t r = 0; r < SEQUENCES; r++) {
        dr_burst_row *row = &b->rows[r];
        if (!dr_settle_row(row, NULL, 3, 0, 0, 0)) continue;
        row->is_finished |= dr_rng_below(rng, 60) == 0;
        if (dr_burst_wants_page(row)) {
            if (dr_burst_take_page(row, b->n_taken, b->n_pool, DR_CUDA_PAGE)) {
                const int32_t page = 5000 + b->n_taken++;
                assert_true(row->n_taken <= dr_burst_row_pages(LONG_BURST));
                b->taken[r][row->n_taken - 1] = page;
                b->real[r][row->room / DR_CUDA_PAGE - 1] = page;
            } else {
                n_short++;
            }
        }
        dr_burst_go_on(row, 3);
        assert_true(row->position < row->room);
    }
    return n_short;
}

// The plan of a pass, moved along with the rows, says of each row what its real pages and place are.
static void check_moved(const paged_burst *b, int32_t step) {
    cached_plan p = b->plans[step - 1];
    for (int32_t r = 0; r < SEQUENCES; r++)
        dr_plan_row(&b->rows[r], b->taken[r], &p.spans[r], &p.queries[r], p.pages);
    for (int32_t r = 0; r < SEQUENCES; r++) {
        assert_int_equal(p.spans[r].n_before, b->rows[r].position);
        assert_int_equal(p.queries[r].seen, b->rows[r].position + 1);
        for (int32_t key = 0; key <= b->rows[r].position; key++)
            assert_int_equal(page_at(&p, r, key), b->real[r][key / DR_CUDA_PAGE]);
    }
    int64_t n_results = 0;
    for (int32_t r = 0; r < SEQUENCES; r++)
        if (p.queries[r].part >= 0) n_results += dr_splits_of(p.queries[r].seen);
    assert_int_equal(check_cached_plan(&p), n_results);
}

static void test_plans(void **state) {
    (void)state;
    static paged_burst b;
    dr_rng rng = dr_rng_make(6, 1);
    int n_short = 0;
    int32_t n_taken = 0;
    assert_int_equal(dr_burst_row_pages(LONG_BURST), ROW_PAGES);
    for (int round = 0; round < 60; round++) {
        burst_open(&b, &rng);
        plan_passes(&b, 1 + round % 7);
        for (int32_t step = 1; step < LONG_BURST; step++) {
            n_short += settle_pages(&b, &rng);
            check_moved(&b, step);
        }
        assert_true(b.n_taken <= b.n_pool);
        n_taken += b.n_taken;
    }
    assert_true(n_short > 20 && n_taken > 300);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_settling), cmocka_unit_test(test_plans)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
