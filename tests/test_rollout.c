// The rollout engine: where episodes stop, and the same bits whatever the batch, the order, the cache size.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/log.h"
#include "core/episode/episode.h"
#include "tests/delayed_backend.h"
#include "tests/rollout_outcome.h"
#include "tests/tiny_rollout.h"

static dr_lm *lm;

static int setup(void **state) {
    (void)state;
    return tiny_rollout_open() == 0 && tiny_policy(backend, tokenizer, &lm) == DR_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    dr_lm_destroy(lm);
    tiny_rollout_close();
    return 0;
}

static dr_rollout_parts usual_parts(void) {
    return tiny_rollout_parts(lm);
}

static void run(const dr_rollout_parts *parts, const dr_rollout_request *requests, int n, outcome *o) {
    dr_rollout *rollout = NULL;
    check_ok(dr_rollout_create(parts, &rollout));
    for (int i = 0; i < n; i++) check_ok(dr_rollout_submit(rollout, &requests[i]));
    for (int ticks = 0; dr_rollout_pending(rollout) > 0; ticks++) {
        assert_true(ticks < 100000);
        check_ok(dr_rollout_tick(rollout));
        drain(rollout, o);
    }
    check_ok(dr_rollout_tick(rollout)); // idle: nothing happens
    dr_rollout_stats_get(rollout, &o->stats);
    dr_rollout_destroy(rollout);
}

static void run_all(const dr_rollout_parts *parts, outcome *o) {
    dr_rollout_request requests[PROMPTS];
    for (int p = 0; p < PROMPTS; p++) requests[p] = tiny_rollout_request(p, 0, SAMPLES);
    run(parts, requests, PROMPTS, o);
    assert_int_equal(o->n, PROMPTS * SAMPLES);
}

static dr_trajectory decoded(const dr_buf *bytes) {
    dr_trajectory t = {0};
    check_ok(dr_trajectory_decode(bytes->data, bytes->length, &t));
    return t;
}

// ---- what an episode looks like ----

// Prompt and lists are the template's; each turn's sampled tokens end where the protocol says.
static void check_episode(const dr_trajectory *t, const dr_protocol *protocol) {
    dr_rendering scratch = {0};
    int32_t *ids = NULL;
    int64_t n = 0, capacity = 0;
    dr_example example;
    assert_true(dr_dataset_example(&data, t->user, DR_SPLIT_TEST, &example));
    check_ok(dr_template_prompt_ids(compact, tokenizer, &data, example.history, example.n_history,
                                    protocol->k, protocol->k_retrieve, &scratch, &ids, &n, &capacity));
    assert_memory_equal(t->ids, ids, (size_t)n * 4);
    int32_t at = (int32_t)n;
    for (int32_t i = 0; i < at; i++) assert_int_equal(t->provenance[i], DR_FROM_PROMPT);
    for (int32_t turn = 0; turn <= t->n_turns; turn++) {
        int32_t begin = at;
        while (at < t->n_tokens && t->provenance[at] == DR_FROM_POLICY) {
            assert_int_equal(t->turn_of[at], turn);
            assert_true(t->logprob[at] < 0 && t->logprob_kept[at] <= 0 &&
                        t->logprob[at] <= t->logprob_kept[at]);
            at++;
        }
        assert_true(at > begin);
        assert_true(at - begin <= protocol->max_turn_tokens);
        if (turn == t->n_turns) break;
        const dr_turn *q = &t->turns[turn];
        assert_int_equal(q->query_begin, begin);
        assert_int_equal(q->query_end, at);
        assert_int_equal(t->ids[at - 1], dr_tokenizer_special(tokenizer, DR_TAG_PREFERENCE_END));
        assert_true(strlen(q->preference) > 0);
        assert_int_equal(q->n_items, protocol->k_retrieve);
        for (int32_t i = 0; i < q->n_items; i++) // left out as asked
            for (int32_t j = 0; j < example.n_history; j++)
                assert_int_not_equal(q->items[i], example.history[j]);
        n = 0;
        check_ok(dr_template_item_list_ids(compact, tokenizer, &data, q->items, q->n_items, &scratch, &ids,
                                           &n, &capacity));
        assert_memory_equal(t->ids + at, ids, (size_t)n * 4);
        for (int64_t i = 0; i < n; i++) {
            assert_int_equal(t->provenance[at + i], DR_FROM_TOOL);
            assert_true(t->logprob[at + i] == 0);
        }
        at += (int32_t)n;
    }
    assert_int_equal(at, t->n_tokens);
    assert_true(t->n_tokens <= protocol->max_total_tokens);
    assert_true(t->n_turns <= protocol->max_retrievals);
    dr_free(ids);
    dr_rendering_reset(&scratch);
}

static void test_episodes(void **state) {
    (void)state;
    dr_rollout_parts parts = usual_parts();
    outcome o = {0};
    int stops[8] = {0};
    run_all(&parts, &o);
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++) {
            dr_trajectory t = decoded(&o.bytes[p][s]);
            check_episode(&t, &parts.protocol);
            assert_true(t.seed == 99 && t.step == 7 && t.user == p && t.target > 0);
            assert_true(t.policy_version == dr_lm_weight_version(lm));
            int32_t last = t.ids[t.n_tokens - 1];
            if (t.stop == DR_STOP_ANSWER)
                assert_int_equal(last, dr_tokenizer_special(tokenizer, DR_TAG_ANSWER_END));
            if (t.stop == DR_STOP_EOS)
                assert_int_equal(last, dr_tokenizer_special(tokenizer, "<|endoftext|>"));
            if (t.stop == DR_STOP_RETRIEVAL_CAP) assert_int_equal(t.n_turns, 3);
            stops[t.stop]++;
            dr_trajectory_reset(&t);
        }
    print_message(
        "stops: answer %d, end %d, empty %d, turn cap %d, retrieval cap %d, total cap %d; %d retrievals\n",
        stops[DR_STOP_ANSWER], stops[DR_STOP_EOS], stops[DR_STOP_EMPTY_QUERY], stops[DR_STOP_TURN_CAP],
        stops[DR_STOP_RETRIEVAL_CAP], stops[DR_STOP_TOTAL_CAP], (int)o.stats.retrievals);
    // the test means something only if the policy does all kinds of things
    assert_true(stops[DR_STOP_ANSWER] > 0 && stops[DR_STOP_EOS] > 0 && stops[DR_STOP_EMPTY_QUERY] > 0);
    assert_true(stops[DR_STOP_TURN_CAP] + stops[DR_STOP_RETRIEVAL_CAP] + stops[DR_STOP_TOTAL_CAP] > 0);
    assert_int_equal(stops[DR_STOP_NONE], 0);
    assert_true(o.stats.retrievals > 8);
    outcome_reset(&o);
}

// ---- the same bits whatever the batch ----

static void test_batching(void **state) {
    (void)state;
    dr_rollout_parts parts = usual_parts();
    outcome want = {0}, got = {0};
    run_all(&parts, &want);
    const struct { int32_t max_live, prefill_tokens; } sizes[] = {{1, 64}, {3, 7}, {24, 512}, {5, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        parts.max_live = sizes[i].max_live;
        parts.prefill_tokens = sizes[i].prefill_tokens;
        run_all(&parts, &got);
        check_equal(&want, &got, "batch size");
        assert_int_equal(got.stats.sampled_tokens, want.stats.sampled_tokens);
        assert_int_equal(got.stats.prompt_tokens, want.stats.prompt_tokens);
        assert_int_equal(got.stats.tool_tokens, want.stats.tool_tokens);
        outcome_reset(&got);
    }
    outcome_reset(&want);
}

static void test_few_pages(void **state) {
    (void)state;
    dr_rollout_parts parts = usual_parts();
    outcome want = {0}, got = {0};
    run_all(&parts, &want);
    parts.kv_pages = 420 / DR_KV_PAGE + 2; // one episode of the longest kind, for eight of them
    run_all(&parts, &got);
    check_equal(&want, &got, "few pages");
    assert_true(got.stats.preemptions > 0);
    assert_true(got.stats.decode_rows > want.stats.decode_rows);
    outcome_reset(&got);
    parts.kv_pages = 10;
    dr_rollout *rollout = NULL;
    check_error(dr_rollout_create(&parts, &rollout), DR_ERR_ARGUMENT, "10 cache pages");
    outcome_reset(&want);
}

static void test_order_and_split(void **state) {
    (void)state;
    dr_rollout_parts parts = usual_parts();
    outcome want = {0}, got = {0};
    run_all(&parts, &want);
    dr_rollout_request requests[3 * PROMPTS];
    for (int p = 0; p < PROMPTS; p++) requests[p] = tiny_rollout_request(PROMPTS - 1 - p, 0, SAMPLES);
    run(&parts, requests, PROMPTS, &got);
    check_equal(&want, &got, "other order");
    outcome_reset(&got);
    for (int p = 0; p < PROMPTS; p++) { // samples of a prompt in three requests, mixed with the others'
        requests[p] = tiny_rollout_request(p, 4, 2);
        requests[PROMPTS + p] = tiny_rollout_request(PROMPTS - 1 - p, 0, 1);
        requests[2 * PROMPTS + p] = tiny_rollout_request(p, 1, 3);
    }
    run(&parts, requests, 3 * PROMPTS, &got);
    assert_int_equal(got.n, PROMPTS * SAMPLES);
    check_equal(&want, &got, "split requests");
    outcome_reset(&got);
    for (int p = 0; p < PROMPTS; p++) { // replay of single samples, each in a fresh engine
        dr_rollout_request one = tiny_rollout_request(p, p, 1);
        run(&parts, &one, 1, &got);
        assert_int_equal(got.bytes[p][p].length, want.bytes[p][p].length);
        assert_memory_equal(got.bytes[p][p].data, want.bytes[p][p].data, want.bytes[p][p].length);
        outcome_reset(&got);
    }
    outcome_reset(&want);
}

// Requests that come while others run.
static void test_late_requests(void **state) {
    (void)state;
    dr_rollout_parts parts = usual_parts();
    outcome want = {0}, got = {0};
    run_all(&parts, &want);
    dr_rollout *rollout = NULL;
    check_ok(dr_rollout_create(&parts, &rollout));
    for (int p = 0; p < PROMPTS; p++) {
        dr_rollout_request q = tiny_rollout_request(p, 0, SAMPLES);
        check_ok(dr_rollout_submit(rollout, &q));
        for (int i = 0; i < 5; i++) check_ok(dr_rollout_tick(rollout));
        if (p % 2) drain(rollout, &got);
    }
    while (dr_rollout_pending(rollout) > 0) {
        check_ok(dr_rollout_tick(rollout));
        drain(rollout, &got);
    }
    check_equal(&want, &got, "late requests");
    dr_rollout_destroy(rollout);
    outcome_reset(&want);
    outcome_reset(&got);
}

static void test_keys_and_sampling(void **state) {
    (void)state;
    dr_rollout_parts parts = usual_parts();
    outcome want = {0}, got = {0};
    run_all(&parts, &want);
    int same = 0;
    dr_rollout_request q = tiny_rollout_request(0, 0, SAMPLES);
    q.step = 8; // another step: other draws
    run(&parts, &q, 1, &got);
    for (int s = 0; s < SAMPLES; s++) {
        dr_trajectory a = decoded(&want.bytes[0][s]), b = decoded(&got.bytes[0][s]);
        same += a.n_tokens == b.n_tokens && memcmp(a.ids, b.ids, (size_t)a.n_tokens * 4) == 0;
        dr_trajectory_reset(&a);
        dr_trajectory_reset(&b);
    }
    assert_true(same < SAMPLES);
    outcome_reset(&got);
    q = tiny_rollout_request(0, 0, SAMPLES);
    q.sampling = (dr_sampling){0.0f, 1.0f}; // greedy: all samples agree
    run(&parts, &q, 1, &got);
    dr_trajectory first = decoded(&got.bytes[0][0]);
    for (int s = 1; s < SAMPLES; s++) {
        dr_trajectory t = decoded(&got.bytes[0][s]);
        assert_int_equal(t.n_tokens, first.n_tokens);
        assert_memory_equal(t.ids, first.ids, (size_t)t.n_tokens * 4);
        dr_trajectory_reset(&t);
    }
    dr_trajectory_reset(&first);
    outcome_reset(&got);
    outcome_reset(&want);
}

// The same bits however long bursts are, alone and beside all that makes a row's burst shorter: few pages,
// short prefill chunks, caps. Returns how many episodes gave up their pages.
static int64_t check_bursts(const dr_rollout_parts *usual, const dr_sampling *how) {
    static const int32_t lengths[] = {1, 2, 4, 7, 64};
    dr_rollout_request requests[PROMPTS];
    outcome want = {0}, got = {0};
    int64_t preemptions = 0;
    for (int p = 0; p < PROMPTS; p++) {
        requests[p] = tiny_rollout_request(p, 0, SAMPLES);
        requests[p].sampling = *how;
    }
    dr_rollout_parts parts = *usual;
    parts.burst = 0;
    run(&parts, requests, PROMPTS, &want);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        parts = *usual;
        parts.burst = lengths[i];
        run(&parts, requests, PROMPTS, &got);
        check_equal(&want, &got, "bursts");
        assert_int_equal(got.stats.sampled_tokens, want.stats.sampled_tokens);
        assert_int_equal(got.stats.retrievals, want.stats.retrievals);
        if (parts.burst > 1) assert_true(got.stats.ticks < want.stats.ticks);
        assert_true(got.stats.passes <= got.stats.ticks * parts.burst);
        assert_true(got.stats.passes > got.stats.ticks || parts.burst == 1);
        if (parts.burst == 1) assert_int_equal(got.stats.decode_rows, want.stats.decode_rows);
        outcome_reset(&got);
        for (int32_t more = 0; more <= 5; more += 5) { // one episode of the longest kind, and a few pages
            parts.kv_pages = 420 / DR_KV_PAGE + 2 + more;
            run(&parts, requests, PROMPTS, &got);
            check_equal(&want, &got, "bursts and few pages");
            preemptions += got.stats.preemptions;
            outcome_reset(&got);
        }
        parts.kv_pages = 0;
        parts.max_live = 3;
        parts.prefill_tokens = 7;
        run(&parts, requests, PROMPTS, &got);
        check_equal(&want, &got, "bursts in small batches");
        outcome_reset(&got);
    }
    outcome_reset(&want);
    return preemptions;
}

static void test_bursts(void **state) {
    (void)state;
    dr_rollout_parts parts = usual_parts();
    assert_true(check_bursts(&parts, &(dr_sampling){1.0f, 1.0f}) > 0);
    check_bursts(&parts, &(dr_sampling){0.8f, 0.9f});
    parts.protocol.max_turn_tokens = 5;
    check_bursts(&parts, &(dr_sampling){1.0f, 0.95f});
}

// A vocabulary that does not know the tags: they are found in the bytes of many tokens.
static void test_plain_text_tags(void **state) {
    (void)state;
    dr_tokenizer *plain = NULL;
    const char *texts[] = {"abc <|begin_of_preference|>x<|end_of_preference|> abc <|end_of_preference|>\n"};
    check_ok(dr_tokenizer_train(texts, 1, 300, NULL, 0, &plain));
    dr_episode_rules rules = {plain, compact, &data, usual_parts().protocol, {0}};
    dr_episode_rules_eos(&rules, -1);
    dr_episode e = {0};
    const int32_t prompt = 1;
    check_ok(dr_episode_begin(&e, &rules, &prompt, 1));
    int32_t *ids = NULL;
    int64_t n = 0, capacity = 0;
    const char *text = "a " DR_TAG_PREFERENCE " war \"films\" " DR_TAG_PREFERENCE_END;
    check_ok(dr_tokenizer_encode(plain, text, strlen(text), true, &ids, &n, &capacity));
    assert_true(n > 3);
    for (int64_t i = 0; i < n; i++) {
        assert_int_equal(e.state, DR_EPISODE_RUNNING);
        check_ok(dr_episode_token(&e, &rules, &(dr_sampled){.id = ids[i], .logprob = -1}));
    }
    assert_int_equal(e.state, DR_EPISODE_ASKS);
    assert_string_equal(e.preference.data, "war films");
    dr_episode_scratch scratch = {0};
    const float embedding[2] = {1, 0};
    const int32_t items[2] = {3, 23};
    check_ok(dr_episode_items(&e, &rules, embedding, 2, items, 2, &scratch));
    assert_int_equal(e.state, DR_EPISODE_RUNNING);
    assert_int_equal(e.trajectory.n_turns, 1);
    assert_int_equal(dr_episode_draw_key(&e).turn, 1);
    assert_int_equal(dr_episode_draw_key(&e).position, 0);
    dr_completion c = {0};
    check_ok(dr_completion_from_trajectory(plain, &e.trajectory, &c));
    assert_int_equal(c.n_segments, 2);
    assert_false(c.segments[0].from_tool);
    assert_int_equal(c.segments[0].length, strlen(text));
    assert_memory_equal(c.segments[0].text, text, strlen(text));
    assert_true(c.segments[1].from_tool);
    const char *list = "\n\n<|begin_of_item_list|>\n1. Blue Moon\n2. Last <think>\n<|end_of_item_list|>\n\n";
    assert_int_equal(c.segments[1].length, strlen(list));
    assert_memory_equal(c.segments[1].text, list, strlen(list));
    dr_completion_reset(&c);
    dr_episode_scratch_reset(&scratch);
    dr_episode_reset(&e);
    dr_free(ids);
    dr_tokenizer_destroy(plain);
}

// ---- lists that come late ----

// All episodes with a retrieval model that is asked `looks` times in vain.
static void run_late(const dr_rollout_parts *parts, int looks, outcome *o) {
    dr_backend late = delayed_backend(backend, 0);
    dr_rollout_parts own = *parts;
    check_ok(tiny_trm(&late, &data, &own.trm));
    delayed_looks_needed = delayed_looks_left = looks;
    delayed_looks = delayed_rounds = 0;
    run_all(&own, o);
    assert_int_equal(delayed_n_copies, 0);
    dr_trm_destroy(own.trm);
}

static void test_late_lists(void **state) {
    (void)state;
    const struct {
        int32_t looks, max_live, pages;
    } cases[] = {
        {1, 8, 0}, {4, 3, 0}, {9, 24, 0}, {30, 8, 0}, {2, 1, 0}, {6, 8, 420 / DR_KV_PAGE + 2},
    };
    outcome want = {0}, got = {0};
    dr_rollout_parts parts = usual_parts();
    int most = 0;
    run_all(&parts, &want);
    run_late(&parts, 0, &got); // on the processor: the same ticks
    check_equal(&want, &got, "lists at once");
    assert_int_equal(got.stats.ticks, want.stats.ticks);
    assert_int_equal(got.stats.decode_rows, want.stats.decode_rows);
    outcome_reset(&got);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        parts.max_live = cases[i].max_live;
        parts.kv_pages = cases[i].pages;
        run_late(&parts, cases[i].looks, &got);
        check_equal(&want, &got, "late lists");
        assert_int_equal(got.stats.retrievals, want.stats.retrievals);
        assert_int_equal(got.stats.sampled_tokens, want.stats.sampled_tokens);
        assert_int_equal(got.stats.tool_tokens, want.stats.tool_tokens);
        assert_true(delayed_rounds > 0 && delayed_looks >= cases[i].looks * delayed_rounds);
        most = delayed_most_under_way > most ? delayed_most_under_way : most;
        outcome_reset(&got);
    }
    assert_int_equal(most, 2); // two batches of retrievals at a time, and no more
    outcome_reset(&want);
}

// Those who wait do not hold up the others: tokens are drawn in ticks that begin and end without a list.
static void test_others_go_on(void **state) {
    (void)state;
    dr_backend late = delayed_backend(backend, 12);
    dr_rollout_parts parts = usual_parts();
    dr_rollout *rollout = NULL;
    outcome o = {0};
    int64_t drawn = 0;
    check_ok(tiny_trm(&late, &data, &parts.trm));
    check_ok(dr_rollout_create(&parts, &rollout));
    for (int p = 0; p < PROMPTS; p++) {
        dr_rollout_request q = tiny_rollout_request(p, 0, SAMPLES);
        check_ok(dr_rollout_submit(rollout, &q));
    }
    while (dr_rollout_pending(rollout) > 0) {
        dr_rollout_stats before, after;
        bool waits = delayed_under_way() > 0;
        int64_t rounds = delayed_rounds;
        dr_rollout_stats_get(rollout, &before);
        check_ok(dr_rollout_tick(rollout));
        dr_rollout_stats_get(rollout, &after);
        if (waits && delayed_rounds == rounds) {
            assert_int_equal(after.retrievals, before.retrievals);
            drawn += after.sampled_tokens - before.sampled_tokens;
        }
        drain(rollout, &o);
    }
    print_message("%d tokens were drawn while %d lists were waited for\n", (int)drawn, (int)delayed_rounds);
    assert_true(drawn > 40);
    dr_rollout_destroy(rollout);
    dr_trm_destroy(parts.trm);
    outcome_reset(&o);
}

// A list that never comes ends the wait at its deadline, and the wait sleeps.
static void test_retrieval_deadline(void **state) {
    (void)state;
    dr_backend late = delayed_backend(backend, 0);
    dr_rollout_parts parts = usual_parts();
    dr_rollout *rollout = NULL;
    dr_status status = DR_OK;
    parts.retrieval_deadline_s = 0.05;
    check_ok(tiny_trm(&late, &data, &parts.trm));
    delayed_looks_needed = delayed_looks_left = INT32_MAX;
    check_ok(dr_rollout_create(&parts, &rollout));
    for (int p = 0; p < PROMPTS; p++) {
        dr_rollout_request q = tiny_rollout_request(p, 0, SAMPLES);
        check_ok(dr_rollout_submit(rollout, &q));
    }
    int64_t looks = 0;
    for (int ticks = 0; status == DR_OK && ticks < 100000; ticks++) {
        looks = delayed_looks;
        status = dr_rollout_tick(rollout);
    }
    check_error(status, DR_ERR_TIMEOUT, "not done after 0.05 s");
    assert_true(delayed_looks - looks < 100); // of the tick that waited
    dr_rollout_destroy(rollout);              // with retrievals under way
    dr_trm_destroy(parts.trm);
}

// A device that has fallen behind is done with several batches at one look, between two looks of a tick. With
// these caps some lists end their episodes, so that in the end nothing but askers may be left.
static void test_caught_up(void **state) {
    (void)state;
    dr_backend late = delayed_backend(backend, 0);
    dr_rollout_parts parts = usual_parts();
    check_ok(tiny_trm(&late, &data, &parts.trm));
    int most = 0;
    parts.max_live = 12;
    for (int32_t cap = 216; cap <= 240; cap += 4) {
        outcome want = {0}, got = {0};
        dr_rollout_parts plain = usual_parts();
        plain.protocol.max_total_tokens = parts.protocol.max_total_tokens = cap;
        run_all(&plain, &want);
        for (int odds = 3; odds <= 48; odds *= 4) {
            delayed_odds = odds;
            delayed_seed = (uint64_t)(cap * odds);
            run_all(&parts, &got);
            check_equal(&want, &got, "caught up");
            outcome_reset(&got);
        }
        most = delayed_most_under_way > most ? delayed_most_under_way : most;
        outcome_reset(&want);
    }
    assert_true(most > 1);
    dr_trm_destroy(parts.trm);
}

// ---- caps and refusals ----

// Runs all with these caps; every episode must have `tokens` tokens behind its prompt, and some must stop for
// `why`.
static void check_caps(const dr_rollout_parts *parts, int32_t tokens, dr_stop why) {
    outcome o = {0};
    int found = 0;
    run_all(parts, &o);
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++) {
            dr_trajectory t = decoded(&o.bytes[p][s]);
            assert_int_equal(dr_trajectory_sampled_count(&t), tokens);
            assert_int_equal(dr_trajectory_trains(&t), tokens > 0 && t.stop != DR_STOP_TOTAL_CAP);
            found += t.stop == why;
            dr_trajectory_reset(&t);
        }
    assert_true(found > 0);
    outcome_reset(&o);
}

static void test_caps(void **state) {
    (void)state;
    dr_rollout_parts parts = usual_parts();
    parts.protocol.max_total_tokens = 1; // the prompts alone are too long
    check_caps(&parts, 0, DR_STOP_TOTAL_CAP);
    parts = usual_parts();
    parts.protocol.max_turn_tokens = 1;
    check_caps(&parts, 1, DR_STOP_TURN_CAP);
}

static void test_refusals(void **state) {
    (void)state;
    dr_rollout_parts parts = usual_parts();
    dr_rollout *rollout = NULL;
    check_ok(dr_rollout_create(&parts, &rollout));
    dr_rollout_request q = tiny_rollout_request(0, 0, 1);
    q.n_history = 0;
    check_error(dr_rollout_submit(rollout, &q), DR_ERR_RANGE, "empty history");
    q = tiny_rollout_request(0, 65536, 1);
    check_error(dr_rollout_submit(rollout, &q), DR_ERR_RANGE, "samples 65536");
    q = tiny_rollout_request(0, 0, 0);
    check_error(dr_rollout_submit(rollout, &q), DR_ERR_RANGE, "samples");
    q = tiny_rollout_request(0, 0, 1);
    q.sampling.top_p = 0;
    check_error(dr_rollout_submit(rollout, &q), DR_ERR_ARGUMENT, "top-p");
    const int32_t wrong[] = {1, 25};
    q = tiny_rollout_request(0, 0, 1);
    q.history = wrong;
    q.n_history = 2;
    check_error(dr_rollout_submit(rollout, &q), DR_ERR_RANGE, "item 25");
    int32_t most[TINY_ITEMS - 3];
    for (int i = 0; i < TINY_ITEMS - 3; i++) most[i] = i + 1;
    q.history = most;
    q.n_history = TINY_ITEMS - 3;
    check_error(dr_rollout_submit(rollout, &q), DR_ERR_RANGE, "3 items are left");
    assert_int_equal(dr_rollout_pending(rollout), 0);
    // weights must not change under live episodes
    q = tiny_rollout_request(0, 0, 1);
    check_ok(dr_rollout_submit(rollout, &q));
    check_ok(dr_rollout_tick(rollout));
    check_ok(dr_lm_weights_changed(lm));
    check_error(dr_rollout_tick(rollout), DR_ERR_ARGUMENT, "weights changed");
    dr_rollout_destroy(rollout); // with an episode in it
    parts.max_live = 0;
    check_error(dr_rollout_create(&parts, &rollout), DR_ERR_ARGUMENT, "max_live 0");
    dr_rollout_destroy(NULL);
}

// One round of all requests; counts the ticks that only decode, and the allocations made in those.
static void run_round(dr_rollout *rollout, int *out_quiet, int64_t *out_allocations) {
    outcome o = {0};
    bool begins = true; // after an episode has finished, the next one begins
    *out_quiet = 0;
    *out_allocations = 0;
    for (int p = 0; p < PROMPTS; p++) {
        dr_rollout_request q = tiny_rollout_request(p, 0, SAMPLES);
        check_ok(dr_rollout_submit(rollout, &q));
    }
    while (dr_rollout_pending(rollout) > 0) {
        dr_rollout_stats before, after;
        int64_t calls = dr_alloc_calls();
        dr_rollout_stats_get(rollout, &before);
        int32_t n = o.n;
        check_ok(dr_rollout_tick(rollout));
        calls = dr_alloc_calls() - calls;
        dr_rollout_stats_get(rollout, &after);
        drain(rollout, &o);
        bool decodes = !begins && o.n == n && after.retrievals == before.retrievals;
        begins = o.n != n || after.prompt_tokens != before.prompt_tokens;
        if (!decodes || begins) continue;
        ++*out_quiet;
        *out_allocations += calls;
    }
    outcome_reset(&o);
}

// Decoding allocates nothing once the buffers have their size: only beginning, retrieving and finishing do.
static void test_no_allocation(void **state) {
    (void)state;
    dr_rollout_parts parts = usual_parts();
    dr_rollout *rollout = NULL;
    int quiet = 0;
    int64_t allocations = -1;
    check_ok(dr_rollout_create(&parts, &rollout));
    for (int round = 0; round < 6; round++) run_round(rollout, &quiet, &allocations);
    assert_true(quiet > 5);
    assert_int_equal(allocations, 0);
    dr_rollout_destroy(rollout);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_episodes),
        cmocka_unit_test(test_batching),
        cmocka_unit_test(test_few_pages),
        cmocka_unit_test(test_order_and_split),
        cmocka_unit_test(test_late_requests),
        cmocka_unit_test(test_keys_and_sampling),
        cmocka_unit_test(test_bursts),
        cmocka_unit_test(test_plain_text_tags),
        cmocka_unit_test(test_late_lists),
        cmocka_unit_test(test_others_go_on),
        cmocka_unit_test(test_retrieval_deadline),
        cmocka_unit_test(test_caught_up),
        cmocka_unit_test(test_caps),
        cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
