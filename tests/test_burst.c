// Bursts: several draws in turn are the draws that one after another makes, on the op, on the model and over
// its cache; where rows stop is where an episode stops.
// labels: cpu
#include "tests/op_check.h"

#include <stdio.h>
#include <string.h>

#include "core/compute/burst.h"
#include "core/episode/stops.h"
#include "core/model/lm.h"
#include "tests/guarded_backend.h"
#include "tests/tiny_policy.h"

enum { ROWS = 5, STEPS = 6, VOCAB = 40 };

// ---- the op ----

// A table of one pattern, "ab", over tokens of bytes given as text.
typedef struct table {
    dr_stop_table stops;
    uint8_t next[2][256];
    int32_t first_byte[VOCAB + 1];
    uint8_t bytes[4 * VOCAB];
} table;

static void table_fill(table *t, const char *const texts[VOCAB], int32_t end_id) {
    int32_t n = 0;
    memset(t, 0, sizeof *t);
    t->next[0]['a'] = t->next[1]['a'] = 1;
    t->next[1]['b'] = DR_STOP_REACHED;
    for (int id = 0; id < VOCAB; id++) {
        t->first_byte[id] = n;
        for (const char *at = texts[id] ? texts[id] : "x"; *at; at++) t->bytes[n++] = (uint8_t)*at;
    }
    t->first_byte[VOCAB] = n;
    t->stops = (dr_stop_table){{end_id, -1, -1, -1}, t->next[0], t->first_byte, t->bytes};
}

// What a burst of a row's draws must give, from plain draws: settings and bits of each step, logits of each
// step, and the bytes drawn so far.
static int32_t expected_count(const dr_sampled drawn[STEPS], const table *t, bool has_stops, int32_t limit,
                              const char *const texts[VOCAB], bool begins_with_a) {
    char text[256] = "";
    if (begins_with_a) strcat(text, "a");
    for (int32_t n = 1; n <= limit; n++) {
        if (has_stops && drawn[n - 1].id == t->stops.ids[0]) return n;
        strcat(text, texts[drawn[n - 1].id] ? texts[drawn[n - 1].id] : "x");
        if (has_stops && strstr(text, "ab")) return n;
    }
    return limit;
}

static void check_same_draw(const dr_sampled *got, const dr_sampled *want) {
    assert_int_equal(got->id, want->id);
    check_same_bits("logprob", &got->logprob, &want->logprob, 1);
    check_same_bits("logprob_kept", &got->logprob_kept, &want->logprob_kept, 1);
    assert_int_equal(got->kept.n, want->kept.n);
    if (want->kept.n > 0) assert_memory_equal(got->kept.ids, want->kept.ids, (size_t)want->kept.n * 4);
}

static const dr_sampling mixed[ROWS] = {{1, 1}, {0, 1}, {1, 0.9f}, {0.7f, 0.6f}, {1.5f, 1}};
static const int32_t limits[ROWS] = {STEPS, STEPS, 1, STEPS, 4}, first_ids[ROWS] = {30, 31, 32, 33, 34},
                     first_positions[ROWS] = {0, 7, 100, 3, 2};

static void check_op(uint64_t stream, bool has_stops) {
    static const char *const texts[VOCAB] = {
        [1] = "a", [2] = "b", [3] = "ab", [4] = "xa", [5] = "by", [6] = ""};
    static table t;
    table_fill(&t, texts, 7);
    op_stream = stream;
    float *logits = op_normal(STEPS * ROWS * VOCAB, 0, 2);
    dr_draw_key keys[ROWS];
    uint8_t states[ROWS] = {0, 0, 1, 1, 0};
    for (uint32_t r = 0; r < ROWS; r++)
        keys[r] =
            (dr_draw_key){.seed = 4, .prompt = (uint32_t)stream, .sample = r, .turn = 2, .position = 3 * r};
    for (int i = 0; i < STEPS * ROWS; i++) // stops are drawn often
        for (int id = 1; id < 8; id++) logits[i * VOCAB + id] += 1.5f;
    static int32_t sets[ROWS][STEPS][VOCAB];
    dr_sampled want[ROWS][STEPS], got[STEPS * ROWS];
    int32_t counts[ROWS], ids[ROWS], positions[ROWS];
    for (int step = 0; step < STEPS; step++)
        for (int r = 0; r < ROWS; r++) {
            int at = step * ROWS + r;
            dr_draw_key key = keys[r];
            key.position += (uint32_t)step;
            const uint32_t bits = dr_draw(&key);
            check_ok(
                op_one->ops->sample(op_one, logits + at * VOCAB, 1, VOCAB, &mixed[r], &bits, &want[r][step]));
            dr_kept *kept = &want[r][step].kept; // a copy that the next draw leaves alone
            memcpy(sets[r][step], kept->n > 0 ? kept->ids : sets[r][step], (size_t)kept->n * 4);
            kept->ids = sets[r][step];
        }
    const dr_burst burst = {ROWS,   VOCAB,     STEPS,           mixed,  keys,
                            limits, first_ids, first_positions, states, has_stops ? &t.stops : NULL,
                            NULL,   NULL};
    int32_t running[ROWS];
    for (int r = 0; r < ROWS; r++) running[r] = first_ids[r];
    check_ok(op_two->ops->burst_begin(op_two, &burst));
    for (int step = 0; step < STEPS; step++) {
        check_ok(op_two->ops->burst_draw(op_two, logits + step * ROWS * VOCAB, ids, positions));
        for (int r = 0; r < ROWS; r++) {
            int32_t n = expected_count(want[r], &t, has_stops, limits[r], texts, states[r] == 1);
            if (step + 1 < n) running[r] = want[r][step].id;
            assert_int_equal(ids[r], running[r]);
            assert_int_equal(positions[r], first_positions[r] + (step + 1 < n ? step + 1 : n - 1));
        }
    }
    dr_burst_room room;
    check_ok(op_two->ops->burst_end(op_two, got, counts, &room));
    assert_true(room.n_fitted == STEPS && room.n_ids == INT64_MAX);
    for (int r = 0; r < ROWS; r++) {
        assert_int_equal(counts[r], expected_count(want[r], &t, has_stops, limits[r], texts, states[r] == 1));
        for (int step = 0; step < counts[r]; step++) check_same_draw(&got[step * ROWS + r], &want[r][step]);
    }
    op_free_arrays();
}

static void test_op(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 60; i++) check_op(100 * i, i % 3 != 0);
}

static void test_op_refusals(void **state) {
    (void)state;
    float *logits = op_normal(2 * 2 * VOCAB, 0, 1);
    const dr_sampling how[2] = {{1, 0.9f}, {1, 0.9f}};
    const dr_draw_key keys[2] = {{.sample = 1}, {.sample = 2}};
    int32_t most[2] = {2, 2}, ids[2], positions[2], counts[2];
    dr_sampled out[4];
    dr_burst burst = {.n_rows = 2,
                      .V = VOCAB,
                      .n_steps = 2,
                      .settings = how,
                      .keys = keys,
                      .limits = most,
                      .ids = first_ids,
                      .positions = first_positions};
    logits[2 * VOCAB + VOCAB + 9] = NAN;
    check_ok(op_one->ops->burst_begin(op_one, &burst));
    check_ok(op_one->ops->burst_draw(op_one, logits, ids, positions));
    check_error(op_one->ops->burst_draw(op_one, logits + 2 * VOCAB, ids, positions), DR_ERR_NUMERIC,
                "row 1, step 1: logit 9 is");
    most[1] = 1; // nobody looks at the logits of a row that is finished
    check_ok(op_one->ops->burst_begin(op_one, &burst));
    check_ok(op_one->ops->burst_draw(op_one, logits, ids, positions));
    check_ok(op_one->ops->burst_draw(op_one, logits + 2 * VOCAB, ids, positions));
    dr_burst_room room;
    check_ok(op_one->ops->burst_end(op_one, out, counts, &room));
    assert_true(counts[0] == 2 && counts[1] == 1);
    most[0] = 3;
    check_error(op_one->ops->burst_begin(op_one, &burst), DR_ERR_ARGUMENT, "row 0 may draw 3 tokens");
    most[0] = 0;
    check_error(op_one->ops->burst_begin(op_one, &burst), DR_ERR_ARGUMENT, "row 0 may draw 0 tokens");
    burst.n_steps = 0;
    check_error(op_one->ops->burst_begin(op_one, &burst), DR_ERR_ARGUMENT, "0 steps");
}

// ---- the model ----

enum { CHUNKS = 4, LM_VOCAB = 97, PAGES = 64, DRAWS = 23 };

// Sequences with a prompt each, one forked from another, and a stranger that only prefills.
typedef struct decoder {
    dr_backend *b;
    dr_lm *lm;
    dr_kv_cache *kv;
    float *logits;
    int32_t seqs[CHUNKS];
    int32_t ids[CHUNKS][8 + DRAWS + 1]; // what each has run and drawn
    int32_t n_ids[CHUNKS];              // of the rows; the stranger's are run in parts
    float logprob[CHUNKS][DRAWS], logprob_kept[CHUNKS][DRAWS];
    int32_t n_kept[CHUNKS][DRAWS];
} decoder;

static void decoder_open(decoder *d, dr_backend *b) {
    dr_lm_config config;
    memset(d, 0, sizeof *d);
    d->b = b;
    check_ok(dr_lm_preset("tiny", LM_VOCAB, &config));
    config.tied_head = false;
    check_ok(dr_lm_create(b, &config, 5, &d->lm));
    check_ok(dr_kv_create(d->lm, PAGES, CHUNKS, &d->kv));
    check_ok(
        dr_memory_create(b, &d->logits, "logits", dr_lm_burst_rows(d->lm, CHUNKS) * LM_VOCAB, sizeof(float)));
    for (int s = 0; s < CHUNKS; s++)
        for (int i = 0; i < 8 + DRAWS; i++) d->ids[s][i] = (s * 31 + i * 7 + 3) % LM_VOCAB;
    const dr_lm_chunk prompt = {0, 5, d->ids[0], false};
    check_ok(dr_kv_open(d->kv, &d->seqs[0]));
    check_ok(dr_lm_decode(d->lm, d->kv, &prompt, 1, NULL));
    check_ok(dr_kv_fork(d->kv, d->seqs[0], &d->seqs[1])); // inside a page
    memcpy(d->ids[1], d->ids[0], 5 * sizeof(int32_t));
    for (int s = 2; s < CHUNKS; s++) check_ok(dr_kv_open(d->kv, &d->seqs[s]));
    for (int s = 0; s < 3; s++) d->n_ids[s] = 8; // rows 0, 1: three more tokens to run; row 2: all eight
}

static void decoder_close(decoder *d) {
    d->b->ops->memory_destroy(d->b, d->logits);
    dr_kv_destroy(d->kv);
    dr_lm_destroy(d->lm);
}

// One burst of at most n tokens a row; row r has `fewer[r]` less. All rows must come to their limits, unless
// some may finish early.
static void run_burst(decoder *d, int32_t n, const int32_t fewer[3]) {
    static const dr_sampling how[3] = {{1, 1}, {1, 0.8f}, {0, 1}};
    dr_lm_chunk chunks[CHUNKS];
    int32_t most[3], n_steps = 0, n_chunks = 0, rows[3], n_rows = 0, counts[3];
    dr_draw_key keys[3];
    dr_sampling of_rows[3];
    dr_sampled drawn[3 * DRAWS];
    for (int s = 0; s < CHUNKS; s++) {
        int32_t length = dr_kv_length(d->kv, d->seqs[s]), left = 8 + DRAWS - d->n_ids[s];
        if (s == 3) { // three tokens a burst while there are any, without logits
            if (length + 3 <= 8 + DRAWS)
                chunks[n_chunks++] = (dr_lm_chunk){d->seqs[s], 3, d->ids[s] + length, false};
            continue;
        }
        if (left == 0) continue;
        chunks[n_chunks++] = (dr_lm_chunk){d->seqs[s], d->n_ids[s] - length, d->ids[s] + length, true};
        most[n_rows] = n - fewer[s] < 1 ? 1 : n - fewer[s] < left ? n - fewer[s] : left;
        if (most[n_rows] > n_steps) n_steps = most[n_rows];
        of_rows[n_rows] = how[s];
        rows[n_rows++] = s;
    }
    for (int32_t r = 0; r < n_rows; r++)
        keys[r] =
            (dr_draw_key){.seed = 5, .sample = (uint32_t)rows[r], .position = (uint32_t)d->n_ids[rows[r]]};
    dr_lm_drawn out = {.tokens = drawn, .counts = counts};
    const dr_lm_burst burst = {.chunks = chunks,
                               .n_chunks = n_chunks,
                               .n_steps = n_steps,
                               .sampling = of_rows,
                               .keys = keys,
                               .limits = most,
                               .logits = d->logits};
    check_ok(dr_lm_decode_burst(d->lm, d->kv, &burst, &out));
    for (int32_t r = 0; r < n_rows; r++) {
        int s = rows[r];
        assert_true(counts[r] == most[r] || (guard_finishes_early && counts[r] >= 1 && counts[r] < most[r]));
        for (int32_t step = 0; step < counts[r]; step++) {
            const dr_sampled *token = &drawn[step * n_rows + r];
            int32_t at = d->n_ids[s] - 8;
            d->logprob[s][at] = token->logprob;
            d->logprob_kept[s][at] = token->logprob_kept;
            d->n_kept[s][at] = token->kept.n;
            d->ids[s][d->n_ids[s]++] = token->id;
        }
        assert_int_equal(dr_kv_length(d->kv, d->seqs[s]), d->n_ids[s] - 1);
    }
}

static void check_lm(dr_backend *b, decoder *want, int32_t n, const int32_t fewer[3]) {
    decoder got;
    int32_t pages = 0;
    decoder_open(&got, b);
    while (got.n_ids[0] < 8 + DRAWS || got.n_ids[1] < 8 + DRAWS || got.n_ids[2] < 8 + DRAWS)
        run_burst(&got, n, fewer);
    for (int s = 0; s < 3; s++) {
        assert_memory_equal(got.ids[s], want->ids[s], sizeof got.ids[s]);
        check_same_bits("logprob", got.logprob[s], want->logprob[s], DRAWS);
        check_same_bits("logprob_kept", got.logprob_kept[s], want->logprob_kept[s], DRAWS);
        assert_memory_equal(got.n_kept[s], want->n_kept[s], sizeof got.n_kept[s]);
    }
    for (int s = 0; s < CHUNKS; s++) { // no page is kept that is not needed
        pages += (dr_kv_length(got.kv, got.seqs[s]) + DR_KV_PAGE - 1) / DR_KV_PAGE;
    }
    assert_int_equal(dr_kv_free_pages(got.kv), PAGES - pages);
    decoder_close(&got);
}

static void test_lm(void **state) {
    (void)state;
    static const int32_t lengths[] = {1, 2, 4, 7, DRAWS}, same[3] = {0, 0, 0}, fewer[3] = {0, 3, 1};
    decoder want;
    dr_backend guarded = guarded_backend(op_one);
    decoder_open(&want, op_one);
    while (want.n_ids[0] < 8 + DRAWS) run_burst(&want, 1, same);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        check_lm(op_one, &want, lengths[i], same);
        check_lm(op_two, &want, lengths[i], fewer);
        check_lm(&guarded, &want, lengths[i], fewer);
        guard_finishes_early = true;
        check_lm(&guarded, &want, lengths[i], same);
        guard_finishes_early = false;
    }
    decoder_close(&want);
    guarded_backend_close();
}

static int64_t embedding_of(const dr_lm *lm) {
    const dr_lm_tensor *tensors = NULL;
    int32_t n = dr_lm_tensors(lm, &tensors), i = 0;
    while (i < n && strcmp(tensors[i].name, "model.embed_tokens.weight") != 0) i++;
    assert_true(i < n);
    return tensors[i].offset;
}

// A burst whose first pass finds no pages changes nothing, and neither does one that fails later.
static void test_lm_refusals(void **state) {
    (void)state;
    decoder d;
    dr_sampled drawn[40];
    int32_t counts[1], most = 40;
    const dr_draw_key key = {0};
    const int32_t long_ids[40] = {0};
    decoder_open(&d, op_one);
    const dr_sampling how = {1, 1};
    const dr_lm_chunk chunk = {d.seqs[2], 8, d.ids[2], true};
    dr_lm_drawn out = {.tokens = drawn, .counts = counts};
    dr_lm_burst burst = {.chunks = &chunk,
                         .n_chunks = 1,
                         .n_steps = 40,
                         .sampling = &how,
                         .keys = &key,
                         .limits = &most,
                         .logits = d.logits};
    dr_kv_cache *whole = d.kv, *small = NULL;
    int32_t seq = -1, free_pages = dr_kv_free_pages(whole);
    check_ok(dr_kv_create(d.lm, 2, 1, &small));
    check_ok(dr_kv_open(small, &seq));
    const dr_lm_chunk there = {seq, 8, d.ids[2], true};
    const dr_lm_chunk longer = {seq, 40, long_ids, true};
    burst.chunks = &longer;
    check_error(dr_lm_decode_burst(d.lm, small, &burst, &out), DR_ERR_MEMORY, "3 pages needed, 2 free");
    assert_true(dr_kv_free_pages(small) == 2 && dr_kv_length(small, seq) == 0);
    burst.chunks = &there; // 32 positions, though 47 would be allowed
    check_ok(dr_lm_decode_burst(d.lm, small, &burst, &out));
    assert_true(dr_kv_length(small, seq) == 32 && counts[0] == 25);
    dr_kv_truncate(small, seq, 16);
    assert_true(dr_kv_free_pages(small) == 1 && dr_kv_length(small, seq) == 16);
    dr_kv_destroy(small);
    burst.chunks = &chunk;
    most = 41;
    check_error(dr_lm_decode_burst(d.lm, whole, &burst, &out), DR_ERR_ARGUMENT, "41 tokens in 40 steps");
    // the token that the first step draws, greedily, then breaks the second one
    const dr_sampling greedy = {0, 1};
    burst.sampling = &greedy;
    burst.n_steps = most = 2;
    check_ok(dr_lm_decode_burst(d.lm, whole, &burst, &out));
    dr_kv_truncate(whole, d.seqs[2], 0);
    const int32_t width = dr_lm_config_of(d.lm)->hidden;
    float *row = dr_lm_params(d.lm) + embedding_of(d.lm) + (int64_t)drawn[0].id * width;
    for (int i = 0; i < 8; i++) assert_int_not_equal(d.ids[2][i], drawn[0].id);
    for (int32_t i = 0; i < width; i++) row[i] = NAN;
    check_ok(dr_lm_weights_changed(d.lm));
    check_error(dr_lm_decode_burst(d.lm, whole, &burst, &out), DR_ERR_NUMERIC, "row 0, step 1: logit 0 is");
    assert_int_equal(dr_kv_length(whole, d.seqs[2]), 0);
    dr_kv_truncate(whole, d.seqs[2], 0);
    assert_int_equal(dr_kv_free_pages(whole), free_pages);
    decoder_close(&d);
}

// ---- where rows stop ----

// Token streams in which stops come in every shape: whole, cut anywhere, inside longer tokens, almost.
static int32_t random_token(dr_rng *rng, const dr_tokenizer *tokenizer, const int32_t *pieces,
                            int64_t n_pieces, int64_t *at, int32_t vocab) {
    if (*at < n_pieces && dr_rng_below(rng, 8) > 0) return pieces[(*at)++];
    *at = dr_rng_below(rng, 3) == 0 ? (int64_t)dr_rng_below(rng, (uint32_t)n_pieces) : *at;
    if (dr_rng_below(rng, 20) == 0) return dr_tokenizer_size(tokenizer) + (int32_t)dr_rng_below(rng, 3);
    return (int32_t)dr_rng_below(rng, (uint32_t)vocab);
}

// One turn: the episode's own stop against that of the rows, in bursts of random lengths.
static void check_stream(const dr_episode_rules *rules, const dr_stops *stops, int32_t vocab,
                         const int32_t *pieces, int64_t n_pieces, dr_rng *rng, int found[8]) {
    dr_episode e = {0};
    const int32_t prompt = 1;
    int64_t at = dr_rng_below(rng, 2) ? 0 : n_pieces;
    int32_t n_burst = 0;
    dr_burst_row row = {0};
    check_ok(dr_episode_begin(&e, rules, &prompt, 1));
    for (int32_t length = 0; e.state == DR_EPISODE_RUNNING; length++) {
        if (n_burst == 0) {
            int32_t room = dr_episode_room(&e, rules);
            n_burst = 1 + (int32_t)dr_rng_below(rng, 9);
            if (n_burst > room) n_burst = room;
            row = (dr_burst_row){.limit = n_burst,
                                 .state = dr_stops_state(stops, e.turn_text.data, e.turn_text.length)};
        }
        int32_t id = random_token(rng, rules->tokenizer, pieces, n_pieces, &at, vocab);
        check_ok(dr_episode_token(&e, rules, &(dr_sampled){.id = id, .logprob = -1}));
        dr_burst_count(&row, dr_stops_table(stops), id);
        n_burst--;
        bool goes_on = e.state == DR_EPISODE_RUNNING;
        assert_int_equal(row.is_finished, !goes_on || n_burst == 0);
        if (goes_on) assert_int_equal(row.state, dr_stops_state(stops, e.turn_text.data, e.turn_text.length));
    }
    found[e.state == DR_EPISODE_ASKS ? 0 : e.trajectory.stop]++;
    dr_episode_reset(&e);
}

static void check_streams(const dr_tokenizer *tokenizer, const char *const *texts, int n_texts,
                          int found[8]) {
    dr_stops *stops = NULL;
    const int32_t vocab = dr_tokenizer_size(tokenizer) + 3;
    dr_episode_rules rules = {.tokenizer = tokenizer,
                              .protocol = {.k = 5, .max_retrievals = 1, .max_turn_tokens = 60}};
    dr_episode_rules_eos(&rules, 200);
    check_ok(dr_stops_create(op_one, &rules, vocab, &stops));
    dr_rng rng = dr_rng_make(8, (uint64_t)vocab);
    for (int i = 0; i < n_texts; i++) {
        int32_t *ids = NULL;
        int64_t n = 0, capacity = 0;
        check_ok(dr_tokenizer_encode(tokenizer, texts[i], strlen(texts[i]), true, &ids, &n, &capacity));
        for (int k = 0; k < 300; k++) {
            rules.protocol.max_total_tokens = k % 4 == 0 ? 30 : 90;
            check_stream(&rules, stops, vocab, ids, n, &rng, found);
        }
        dr_free(ids);
    }
    dr_stops_destroy(stops);
}

static void test_stops(void **state) {
    (void)state;
    // a vocabulary with tags as tokens, one that has none, one whose merges cross the tags' ends
    static const char *const documents[] = {
        "of </recommendation_list> and <|end_of_preference|>\n", "abc abc abc abd",
        "x</recommendation_list>\n</recommendation_list>\nx</recommendation_list>\n y<|end_of_preference|>z"};
    static const char *const texts[] = {
        DR_TAG_PREFERENCE "war films" DR_TAG_PREFERENCE_END "more",
        DR_TAG_ANSWER "1. a\n" DR_TAG_ANSWER_END "\n",
        "</recommendation_</recommendation_list><|end_of_<|end_of_preference|>",
        "<</recommendation_list <|end_of_preference|</recommendation_list>",
        "<|end_of_preference></recommendation_list|>\xC3<|end_of_preference|\xC3>|>"};
    const int n_texts = sizeof texts / sizeof *texts;
    int found[8] = {0};
    dr_tokenizer *tokenizer = NULL;
    check_ok(tiny_tokenizer(&tokenizer));
    check_streams(tokenizer, texts, n_texts, found);
    dr_tokenizer_destroy(tokenizer);
    for (int32_t vocab = 256; vocab <= 400; vocab += 72) {
        check_ok(dr_tokenizer_train(documents, 3, vocab, NULL, 0, &tokenizer));
        check_streams(tokenizer, texts, n_texts, found);
        dr_tokenizer_destroy(tokenizer);
    }
    print_message("asks %d, answer %d, end %d, empty %d, turn cap %d, total cap %d\n", found[0],
                  found[DR_STOP_ANSWER], found[DR_STOP_EOS], found[DR_STOP_EMPTY_QUERY],
                  found[DR_STOP_TURN_CAP], found[DR_STOP_TOTAL_CAP]);
    assert_true(found[0] > 50 && found[DR_STOP_ANSWER] > 50 && found[DR_STOP_EOS] > 50);
    assert_true(found[DR_STOP_EMPTY_QUERY] > 50 && found[DR_STOP_TURN_CAP] > 50);
    assert_true(found[DR_STOP_TOTAL_CAP] > 50);
}

int main(void) {
    const struct CMUnitTest tests[] = {op_test(test_op), op_test(test_op_refusals), op_test(test_lm),
                                       op_test(test_lm_refusals), op_test(test_stops)};
    return cmocka_run_group_tests(tests, op_group_setup, op_group_teardown);
}
