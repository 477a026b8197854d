// Pages that rows of a burst take while it runs: who gets which, rows that find none and go on later with the
// same bits, and that none is lost or given twice.
// labels: cpu
#include "tests/op_check.h"

#include <stdlib.h>

#include "core/model/lm.h"
#include "tests/guarded_backend.h"

// ---- the op ----

enum { ROWS = 6, STEPS = 9, VOCAB = 20, STOP_ID = 7, MOST_PAGES = 32 };

typedef struct op_case {
    float *logits; // (STEPS, ROWS, VOCAB)
    dr_draw_key keys[ROWS];
    dr_sampling how[ROWS];
    int32_t limits[ROWS], first_ids[ROWS], first_positions[ROWS];
    int32_t page_size, n_pool, pool[64];
    int32_t drawn[STEPS][ROWS]; // what each row would draw in each step
} op_case;

// Rows that begin in the middle of pages and at their ends, and the pool's pages in no order.
static void op_case_fill(op_case *c, int round) {
    dr_rng rng = dr_rng_make(9, (uint64_t)round);
    memset(c, 0, sizeof *c);
    op_stream = 100 * (uint64_t)round;
    c->logits = op_normal(STEPS * ROWS * VOCAB, 0, 1);
    c->page_size = 1 + (int32_t)dr_rng_below(&rng, 5);
    c->n_pool = (int32_t)dr_rng_below(&rng, 30) - 3;
    if (c->n_pool < 0) c->n_pool = 64;
    for (int32_t i = 0; i < 64; i++) c->pool[i] = 1000 + (i * 37 + round) % 64;
    for (int r = 0; r < ROWS; r++) {
        c->how[r] = (dr_sampling){r % 2 ? 1 : 0, 1};
        c->keys[r] = (dr_draw_key){.seed = 9, .prompt = (uint32_t)round, .sample = (uint32_t)r};
        c->limits[r] = r == 0 ? STEPS : 1 + (int32_t)dr_rng_below(&rng, STEPS);
        c->first_ids[r] = 10 + r;
        c->first_positions[r] = round % 4 == 0 ? c->page_size - 1 : (int32_t)dr_rng_below(&rng, 12);
    }
    for (int i = 0; i < STEPS * ROWS; i++) {
        const uint32_t bits = dr_draw_ahead(&c->keys[i % ROWS], (uint32_t)(i / ROWS));
        c->logits[i * VOCAB + STOP_ID] += 0.5f;
        dr_sampled one;
        check_ok(
            op_one->ops->sample(op_one, c->logits + i * VOCAB, 1, VOCAB, &c->how[i % ROWS], &bits, &one));
        c->drawn[i / ROWS][i % ROWS] = one.id;
    }
}

// A row as the contract has it.
typedef struct op_row {
    int32_t id, position, n_drawn, n_pages, pages[MOST_PAGES];
    bool is_finished;
} op_row;

// One step of all rows; returns how many were finished for want of a page.
static int op_expect(const op_case *c, int step, op_row rows[ROWS], int32_t *n_taken) {
    int n_short = 0;
    for (int r = 0; r < ROWS; r++) {
        op_row *row = &rows[r];
        if (row->is_finished) continue;
        const int32_t id = c->drawn[step][r], need = (row->position + 1) / c->page_size + 1;
        row->is_finished = ++row->n_drawn == c->limits[r] || id == STOP_ID;
        if (row->is_finished) continue;
        if (need > row->n_pages && *n_taken == c->n_pool) {
            row->is_finished = true;
            n_short++;
            continue;
        }
        if (need > row->n_pages) row->pages[row->n_pages++] = c->pool[(*n_taken)++];
        row->id = id;
        row->position++;
    }
    return n_short;
}

static void check_step(const op_row rows[ROWS], const int32_t *ids, const int32_t *positions,
                       const dr_attention_chunk *chunks) {
    for (int r = 0; r < ROWS; r++) {
        assert_int_equal(ids[r], rows[r].id);
        assert_int_equal(positions[r], rows[r].position);
        if (chunks) assert_int_equal(chunks[r].n_past, rows[r].position);
        for (int32_t k = 0; chunks && k < rows[r].n_pages; k++)
            assert_int_equal(chunks[r].pages[k], rows[r].pages[k]);
    }
}

// Returns how many rows were finished for want of a page.
static int check_op(int round) {
    op_case c;
    static const uint8_t next[256];
    static const int32_t first_byte[VOCAB + 1];
    const dr_stop_table stops = {{STOP_ID, -1, -1, -1}, next, first_byte, next};
    op_row rows[ROWS] = {0};
    int32_t lists[ROWS][MOST_PAGES], *list_of[ROWS], counts[ROWS], n_pages[ROWS], ids[ROWS], positions[ROWS];
    dr_attention_chunk chunks[STEPS - 1][ROWS];
    dr_sampled out[STEPS * ROWS];
    int32_t n_taken = 0;
    int n_short = 0;
    op_case_fill(&c, round);
    for (int r = 0; r < ROWS; r++) {
        op_row *row = &rows[r];
        *row = (op_row){.id = c.first_ids[r], .position = c.first_positions[r]};
        for (; row->n_pages <= row->position / c.page_size; row->n_pages++)
            row->pages[row->n_pages] = 100 * r + row->n_pages;
        for (int k = 0; k < MOST_PAGES; k++)
            lists[r][k] = row->pages[k < row->n_pages ? k : row->n_pages - 1];
        list_of[r] = lists[r];
        n_pages[r] = row->n_pages;
        for (int step = 0; step < STEPS - 1; step++)
            chunks[step][r] = (dr_attention_chunk){r, 1, row->position + step + 1, lists[r]};
    }
    const dr_burst_pages pages = {c.page_size, c.n_pool, c.pool, list_of, n_pages, chunks[0], ROWS};
    const dr_burst burst = {.n_rows = ROWS,
                            .V = VOCAB,
                            .n_steps = STEPS,
                            .settings = c.how,
                            .keys = c.keys,
                            .limits = c.limits,
                            .ids = c.first_ids,
                            .positions = c.first_positions,
                            .states = (const uint8_t[ROWS]){0},
                            .stops = &stops,
                            .pages = &pages};
    check_ok(op_two->ops->burst_begin(op_two, &burst));
    for (int step = 0; step < STEPS; step++) {
        check_ok(op_two->ops->burst_draw(op_two, c.logits + step * ROWS * VOCAB, ids, positions));
        n_short += op_expect(&c, step, rows, &n_taken);
        check_step(rows, ids, positions, step < STEPS - 1 ? chunks[step] : NULL);
    }
    dr_burst_room room;
    check_ok(op_two->ops->burst_end(op_two, out, counts, &room));
    for (int r = 0; r < ROWS; r++) {
        assert_int_equal(counts[r], rows[r].n_drawn);
        assert_int_equal(n_pages[r], rows[r].n_pages);
        assert_memory_equal(lists[r], rows[r].pages, (size_t)n_pages[r] * sizeof(int32_t));
        for (int step = 0; step < counts[r]; step++)
            assert_int_equal(out[step * ROWS + r].id, c.drawn[step][r]);
    }
    op_free_arrays();
    return n_short;
}

static void test_op(void **state) {
    (void)state;
    int n_short = 0, n_whole = 0;
    for (int round = 0; round < 300; round++) {
        int n = check_op(round);
        n_short += n;
        n_whole += n == 0;
    }
    assert_true(n_short > 100 && n_whole > 50);
}

static void test_op_refusals(void **state) {
    (void)state;
    int32_t list[4] = {0}, *lists[1] = {list}, n_pages = 1, position = 4, limit = 1, id = 0;
    const dr_sampling how = {1, 1};
    const dr_draw_key key = {0};
    dr_burst_pages pages = {.page_size = 4, .lists = lists, .counts = &n_pages};
    const dr_burst burst = {.n_rows = 1,
                            .V = VOCAB,
                            .n_steps = 1,
                            .settings = &how,
                            .keys = &key,
                            .limits = &limit,
                            .ids = &id,
                            .positions = &position,
                            .pages = &pages};
    check_error(op_one->ops->burst_begin(op_one, &burst), DR_ERR_ARGUMENT,
                "row 0 stands at position 4, its pages hold 4");
    pages.n_pool = -1;
    check_error(op_one->ops->burst_begin(op_one, &burst), DR_ERR_ARGUMENT, "pool of -1 pages");
    pages = (dr_burst_pages){.lists = lists, .counts = &n_pages};
    check_error(op_one->ops->burst_begin(op_one, &burst), DR_ERR_ARGUMENT, "pages of 0 positions");
    dr_attention_chunk chunk = {0, 1, 4, list};
    n_pages = 2;
    pages = (dr_burst_pages){.page_size = 4, .lists = lists, .counts = &n_pages, .chunks = &chunk};
    check_error(op_one->ops->burst_begin(op_one, &burst), DR_ERR_ARGUMENT, "1 rows, 0 chunks a pass");
}

// ---- the model over its cache ----

enum { SEQUENCES = 4, LM_VOCAB = 97, DRAWS = 40, LONGEST = 128, PAGES = 40 };

// Sequences that go on from one prompt, whose whole pages they share, and one with a prompt of its own; and
// what keeps pages from them.
typedef struct decoder {
    dr_backend *b;
    dr_lm *lm;
    dr_kv_cache *kv;
    float *logits;
    int32_t n_prompt, seqs[SEQUENCES], hog;
    int32_t ids[SEQUENCES][LONGEST], n_ids[SEQUENCES];
    float logprob[SEQUENCES][DRAWS];
} decoder;

static void prefill(decoder *d, int32_t seq, const int32_t *ids, int32_t n) {
    const dr_lm_chunk chunk = {seq, n, ids, false};
    check_ok(dr_lm_decode(d->lm, d->kv, &chunk, 1, NULL));
}

// The last sequence's prompt is as long as the others', so that all cross each border of pages together.
static void decoder_open(decoder *d, dr_backend *b, int32_t n_prompt) {
    dr_lm_config config;
    memset(d, 0, sizeof *d);
    d->b = b;
    d->n_prompt = n_prompt;
    check_ok(dr_lm_preset("tiny", LM_VOCAB, &config));
    check_ok(dr_lm_create(b, &config, 5, &d->lm));
    check_ok(dr_kv_create(d->lm, PAGES, SEQUENCES + 1, &d->kv));
    check_ok(dr_memory_create(b, &d->logits, "logits", dr_lm_burst_rows(d->lm, SEQUENCES) * LM_VOCAB,
                              sizeof(float)));
    check_ok(dr_kv_open(d->kv, &d->seqs[0]));
    for (int s = 0; s < SEQUENCES; s++) {
        for (int32_t i = 0; i < n_prompt; i++)
            d->ids[s][i] = ((s == SEQUENCES - 1) * 31 + i * 7 + 3) % LM_VOCAB;
        d->n_ids[s] = n_prompt;
    }
    prefill(d, d->seqs[0], d->ids[0], n_prompt - 1);
    for (int s = 1; s < SEQUENCES - 1; s++) check_ok(dr_kv_fork(d->kv, d->seqs[0], &d->seqs[s]));
    check_ok(dr_kv_open(d->kv, &d->seqs[SEQUENCES - 1]));
    prefill(d, d->seqs[SEQUENCES - 1], d->ids[SEQUENCES - 1], n_prompt - 1);
    d->hog = -1;
}

static void decoder_close(decoder *d) {
    for (int s = 0; s < SEQUENCES; s++) dr_kv_close(d->kv, d->seqs[s]);
    if (d->hog >= 0) dr_kv_close(d->kv, d->hog);
    assert_int_equal(dr_kv_free_pages(d->kv), PAGES);
    d->b->ops->memory_destroy(d->b, d->logits);
    dr_kv_destroy(d->kv);
    dr_lm_destroy(d->lm);
}

// Leaves n pages free, in a sequence that begins with poison for whoever reads pages that are not its own.
static void take_all_but(decoder *d, int32_t n) {
    static const int32_t zeros[PAGES * DR_KV_PAGE];
    check_ok(dr_kv_open(d->kv, &d->hog));
    for (int32_t left = dr_kv_free_pages(d->kv) - n; left > 0; left--) prefill(d, d->hog, zeros, DR_KV_PAGE);
    assert_int_equal(dr_kv_free_pages(d->kv), n);
}

static void give_back(decoder *d) {
    dr_kv_close(d->kv, d->hog);
    d->hog = -1;
}

static int32_t pages_of(int32_t length) {
    return (length + DR_KV_PAGE - 1) / DR_KV_PAGE;
}

// Draws of all sequences, at most n each; counts_out [SEQUENCES]: 0 for those that have all.
static void run_burst(decoder *d, int32_t n, int32_t counts_out[SEQUENCES]) {
    dr_lm_chunk chunks[SEQUENCES];
    dr_sampling how[SEQUENCES];
    dr_sampled drawn[SEQUENCES * DRAWS];
    dr_draw_key keys[SEQUENCES];
    int32_t limits[SEQUENCES], counts[SEQUENCES], rows[SEQUENCES], n_rows = 0, n_steps = 0;
    for (int s = 0; s < SEQUENCES; s++) {
        const int32_t length = dr_kv_length(d->kv, d->seqs[s]), left = d->n_prompt + DRAWS - d->n_ids[s];
        counts_out[s] = 0;
        if (left == 0) continue;
        chunks[n_rows] = (dr_lm_chunk){d->seqs[s], d->n_ids[s] - length, d->ids[s] + length, true};
        how[n_rows] = (dr_sampling){1, s % 2 ? 0.9f : 1};
        limits[n_rows] = n < left ? n : left;
        if (limits[n_rows] > n_steps) n_steps = limits[n_rows];
        rows[n_rows++] = s;
    }
    for (int32_t r = 0; r < n_rows; r++)
        keys[r] =
            (dr_draw_key){.seed = 3, .sample = (uint32_t)rows[r], .position = (uint32_t)d->n_ids[rows[r]]};
    dr_lm_drawn out = {.tokens = drawn, .counts = counts};
    const dr_lm_burst burst = {.chunks = chunks,
                               .n_chunks = n_rows,
                               .n_steps = n_steps,
                               .sampling = how,
                               .keys = keys,
                               .limits = limits,
                               .logits = d->logits};
    check_ok(dr_lm_decode_burst(d->lm, d->kv, &burst, &out));
    for (int32_t r = 0; r < n_rows; r++) {
        const int s = rows[r];
        for (int32_t step = 0; step < counts[r]; step++, d->n_ids[s]++) {
            d->ids[s][d->n_ids[s]] = drawn[step * n_rows + r].id;
            d->logprob[s][d->n_ids[s] - d->n_prompt] = drawn[step * n_rows + r].logprob;
        }
        assert_int_equal(dr_kv_length(d->kv, d->seqs[s]), d->n_ids[s] - 1);
        counts_out[s] = counts[r];
    }
}

// Draws of each row of a burst that begins with n_free pages beside those of its first pass: rows in their
// order at each border. Returns pages taken.
static int32_t expect(const decoder *d, int32_t n, int32_t n_free, int32_t counts[SEQUENCES]) {
    int32_t n_taken = 0;
    bool goes_on[SEQUENCES];
    for (int s = 0; s < SEQUENCES; s++) {
        counts[s] = 1;
        goes_on[s] = n > 1;
    }
    for (int32_t step = 1; step < n; step++)
        for (int s = 0; s < SEQUENCES; s++) {
            if (!goes_on[s]) continue;
            const bool needs = (d->n_ids[s] + step - 1) % DR_KV_PAGE == 0; // position of the token just drawn
            goes_on[s] = !needs || n_taken < n_free;
            n_taken += needs && goes_on[s];
            counts[s] += goes_on[s];
        }
    return n_taken;
}

// Pages that are not free, the prompt's whole ones counted once.
static int32_t pages_in_use(const decoder *d) {
    const int32_t shared = (d->n_prompt - 1) / DR_KV_PAGE;
    int32_t n = shared;
    for (int s = 0; s < SEQUENCES; s++)
        n += pages_of(dr_kv_length(d->kv, d->seqs[s])) - (s < SEQUENCES - 1 ? shared : 0);
    return n;
}

// A burst of n draws with n_free pages, then bursts with all; every bit as `want` has it. Returns whether the
// first burst was cut short.
static bool check_lm(dr_backend *b, const decoder *want, int32_t n, int32_t n_free) {
    decoder got;
    int32_t counts[SEQUENCES], expected[SEQUENCES], first_pass = 0;
    bool is_short = false;
    decoder_open(&got, b, want->n_prompt);
    for (int s = 0; s < SEQUENCES; s++) first_pass += (got.n_prompt - 1) % DR_KV_PAGE == 0;
    take_all_but(&got, first_pass + n_free);
    const int32_t n_taken = expect(&got, n, n_free, expected);
    run_burst(&got, n, counts);
    assert_int_equal(dr_kv_free_pages(got.kv), n_free - n_taken);
    for (int s = 0; s < SEQUENCES; s++) {
        assert_int_equal(counts[s], expected[s]);
        is_short |= counts[s] < n;
    }
    give_back(&got);
    assert_int_equal(dr_kv_free_pages(got.kv), PAGES - pages_in_use(&got));
    for (int left = 1; left;) {
        run_burst(&got, n, counts);
        assert_int_equal(dr_kv_free_pages(got.kv), PAGES - pages_in_use(&got));
        left = 0;
        for (int s = 0; s < SEQUENCES; s++) left += got.n_ids[s] < got.n_prompt + DRAWS;
    }
    assert_memory_equal(got.ids, want->ids, sizeof got.ids);
    for (int s = 0; s < SEQUENCES; s++) check_same_bits("logprob", got.logprob[s], want->logprob[s], DRAWS);
    decoder_close(&got);
    return is_short;
}

// Prompts that end inside a page, at its end, and behind it by a token; bursts that cross a border with no
// page, with one for some rows, with one too few, with exactly enough, and with more.
static void check_prompt(int32_t n_prompt, dr_backend *guarded, int *n_short, int *n_whole) {
    static const int32_t lengths[] = {7, 36};
    decoder want;
    int32_t counts[SEQUENCES], ignored[SEQUENCES];
    decoder_open(&want, op_one, n_prompt);
    while (want.n_ids[0] < n_prompt + DRAWS) run_burst(&want, 1, counts);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        decoder begun = {.n_prompt = n_prompt};
        for (int s = 0; s < SEQUENCES; s++) begun.n_ids[s] = n_prompt;
        const int32_t enough = expect(&begun, lengths[i], PAGES, ignored);
        for (int32_t n_free = 0; n_free <= enough + 1; n_free++) {
            if (n_free > 1 && n_free < enough - 1) continue;
            dr_backend *bodies[] = {guarded, op_one, op_two};
            const bool is_short = check_lm(bodies[n_free % 3], &want, lengths[i], n_free);
            assert_int_equal(is_short, n_free < enough);
            *n_short += is_short;
            *n_whole += !is_short;
        }
    }
    decoder_close(&want);
}

static void test_lm(void **state) {
    (void)state;
    static const int32_t prompts[] = {10, 16, 33};
    int n_short = 0, n_whole = 0;
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        dr_backend guarded = guarded_backend(op_one);
        check_prompt(prompts[i], &guarded, &n_short, &n_whole);
        guarded_backend_close();
    }
    print_message("%d bursts cut short, %d not\n", n_short, n_whole);
    assert_true(n_short > 10 && n_whole > 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {op_test(test_op), op_test(test_op_refusals), op_test(test_lm)};
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
