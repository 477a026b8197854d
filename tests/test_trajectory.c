// The token stream and its wire form: round trip, every truncation, flipped bytes, hostile counts.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/episode/trajectory.h"

static dr_trajectory sample_trajectory(void) {
    dr_trajectory t = {.seed = 77,
                       .step = 3,
                       .prompt = 12,
                       .sample = 5,
                       .user = 9,
                       .target = 44,
                       .policy_version = 1ull << 40,
                       .stop = DR_STOP_ANSWER,
                       .reward = 1.5f,
                       .has_answer = true,
                       .advantage = -0.25f};
    t.parts[DR_REWARD_RANK] = 0.8f;
    const int32_t prompt[] = {1, 2, 3}, query[] = {10, 11, 12, 13}, list[] = {20, 21, 22},
                  answer[] = {30, 31};
    const float lp[] = {-0.5f, -0.25f, -0.125f, -1.0f}, kept[] = {-0.4f, -0.2f, -0.1f, -0.9f};
    const float embedding[] = {0.6f, 0.8f, 0.0f}, embedding2[] = {0.0f, 1.0f, 0.0f};
    const int32_t items[] = {7, 8}, items2[] = {5};
    check_ok(dr_trajectory_append(&t, prompt, 3, DR_FROM_PROMPT, 0, NULL, NULL));
    check_ok(dr_trajectory_append(&t, query, 4, DR_FROM_POLICY, 0, lp, kept));
    check_ok(dr_trajectory_add_turn(&t, 3, 7, "slow drama", embedding, 3, items, 2));
    check_ok(dr_trajectory_append(&t, list, 3, DR_FROM_TOOL, 0, NULL, NULL));
    check_ok(dr_trajectory_append(&t, query, 2, DR_FROM_POLICY, 1, lp, kept));
    check_ok(dr_trajectory_add_turn(&t, 10, 12, "", embedding2, 3, items2, 1));
    check_ok(dr_trajectory_append(&t, list, 2, DR_FROM_TOOL, 1, NULL, NULL));
    check_ok(dr_trajectory_append(&t, answer, 2, DR_FROM_POLICY, 2, lp, NULL));
    const int32_t few[] = {0, 8, 300}, one[] = {9};
    const dr_sampled drawn[] = {
        {8, -0.75f, -0.5f, {few, 3}}, {9, -0.125f, 0.0f, {one, 1}}, {7, -2.0f, -2.0f, {0}}};
    for (int i = 0; i < 3; i++) check_ok(dr_trajectory_append_sampled(&t, &drawn[i], 2));
    return t;
}

static void test_append(void **state) {
    (void)state;
    dr_trajectory t = sample_trajectory();
    assert_int_equal(t.n_tokens, 19);
    assert_int_equal(dr_trajectory_sampled_count(&t), 11);
    assert_int_equal(dr_trajectory_prompt_count(&t), 3);
    assert_true(dr_trajectory_trains(&t));
    t.stop = DR_STOP_TOTAL_CAP;
    assert_false(dr_trajectory_trains(&t));
    assert_int_equal(t.provenance[2], DR_FROM_PROMPT);
    assert_int_equal(t.provenance[3], DR_FROM_POLICY);
    assert_int_equal(t.provenance[7], DR_FROM_TOOL);
    assert_int_equal(t.turn_of[15], 2);
    assert_true(t.logprob[4] == -0.25f && t.logprob_kept[4] == -0.2f && t.logprob[8] == 0.0f);
    assert_true(t.logprob[14] == -0.5f && t.logprob_kept[14] == 0.0f);
    assert_true(t.ids[16] == 8 && t.logprob[16] == -0.75f && t.logprob_kept[16] == -0.5f &&
                t.turn_of[16] == 2);
    assert_int_equal(t.provenance[18], DR_FROM_POLICY);
    static const int32_t sizes[19] = {[16] = 3, [17] = 1};
    for (int32_t i = 0; i < 19; i++) assert_int_equal(dr_trajectory_kept(&t, i).n, sizes[i]);
    assert_int_equal(dr_trajectory_kept(&t, 16).ids[2], 300);
    assert_int_equal(dr_trajectory_kept(&t, 17).ids[0], 9);
    assert_string_equal(t.turns[0].preference, "slow drama");
    assert_int_equal(t.turns[0].items[1], 8);
    dr_trajectory_reset(&t);
    assert_int_equal(t.n_tokens, 0);
    assert_false(dr_trajectory_trains(&t));
    dr_trajectory_reset(NULL);
}

static void test_append_refuses(void **state) {
    (void)state;
    dr_trajectory t = sample_trajectory();
    const int32_t id = 1, item = 1;
    const float embedding[4] = {0};
    check_error(dr_trajectory_append(&t, &id, -1, DR_FROM_POLICY, 0, NULL, NULL), DR_ERR_RANGE,
                "-1 more tokens");
    check_error(dr_trajectory_add_turn(&t, 5, 99, "x", embedding, 3, &item, 1), DR_ERR_RANGE, "query tokens");
    check_error(dr_trajectory_add_turn(&t, 5, 6, "x", embedding, 4, &item, 1), DR_ERR_ARGUMENT, "have 3");
    assert_int_equal(t.n_turns, 2);
    dr_trajectory_reset(&t);
}

static void check_same(const dr_trajectory *a, const dr_trajectory *b) {
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_memory_equal(a->ids, b->ids, (size_t)a->n_tokens * 4);
    assert_memory_equal(a->provenance, b->provenance, (size_t)a->n_tokens);
    assert_memory_equal(a->turn_of, b->turn_of, (size_t)a->n_tokens * 2);
    assert_memory_equal(a->logprob, b->logprob, (size_t)a->n_tokens * 4);
    assert_memory_equal(a->logprob_kept, b->logprob_kept, (size_t)a->n_tokens * 4);
    assert_int_equal(a->n_turns, b->n_turns);
    for (int i = 0; i < a->n_turns; i++) {
        assert_int_equal(a->turns[i].query_begin, b->turns[i].query_begin);
        assert_int_equal(a->turns[i].query_end, b->turns[i].query_end);
        assert_string_equal(a->turns[i].preference, b->turns[i].preference);
        assert_int_equal(a->turns[i].n_items, b->turns[i].n_items);
        assert_memory_equal(a->turns[i].items, b->turns[i].items, (size_t)a->turns[i].n_items * 4);
        assert_memory_equal(a->turns[i].embedding, b->turns[i].embedding, (size_t)a->text_dim * 4);
    }
    assert_true(a->seed == b->seed && a->step == b->step && a->prompt == b->prompt && a->sample == b->sample);
    assert_true(a->user == b->user && a->target == b->target && a->policy_version == b->policy_version);
    assert_true(a->stop == b->stop && a->has_answer == b->has_answer && a->text_dim == b->text_dim);
    assert_memory_equal(a->parts, b->parts, sizeof a->parts);
    assert_true(a->reward == b->reward && a->advantage == b->advantage);
}

static void test_round_trip(void **state) {
    (void)state;
    dr_trajectory t = sample_trajectory(), back = {0}, empty = {0}, empty_back = {0};
    dr_buf bytes = {0};
    check_ok(dr_trajectory_encode(&t, &bytes));
    size_t first = bytes.length;
    check_ok(dr_trajectory_encode(&empty, &bytes)); // appends
    check_ok(dr_trajectory_decode(bytes.data, first, &back));
    check_same(&t, &back);
    check_ok(dr_trajectory_decode(bytes.data + first, bytes.length - first, &empty_back));
    assert_int_equal(empty_back.n_tokens, 0);
    // what was decoded can be worked with as any other
    const int32_t id = 5;
    check_ok(dr_trajectory_append(&back, &id, 1, DR_FROM_POLICY, 2, NULL, NULL));
    assert_int_equal(back.ids[19], 5);
    assert_int_equal(dr_trajectory_kept(&back, 19).n, 0);
    const int32_t two[] = {5, 6};
    check_ok(dr_trajectory_append_sampled(&back, &(dr_sampled){.id = 6, .kept = {two, 2}}, 2));
    assert_int_equal(dr_trajectory_kept(&back, 20).ids[1], 6);
    for (int32_t i = 0; i < 20; i++) assert_int_equal(dr_trajectory_kept(&back, i).n, 0); // they are not sent
    dr_trajectory_reset(&t);
    dr_trajectory_reset(&back);
    dr_trajectory_reset(&empty_back);
    dr_buf_reset(&bytes);
}

static void test_truncations(void **state) {
    (void)state;
    dr_trajectory t = sample_trajectory(), out = {.user = 1234};
    dr_buf bytes = {0};
    check_ok(dr_trajectory_encode(&t, &bytes));
    for (size_t n = 0; n < bytes.length; n++) {
        // a copy of exactly n bytes, so that a sanitizer sees any read behind them
        char *part = NULL;
        check_ok(dr_alloc(&part, "part", (int64_t)n, 1));
        memcpy(part, bytes.data, n);
        check_error(dr_trajectory_decode(part, n, &out), DR_ERR_FORMAT, "trajectory bytes");
        dr_free(part);
    }
    check_ok(dr_buf_append(&bytes, "x", 1));
    check_error(dr_trajectory_decode(bytes.data, bytes.length, &out), DR_ERR_FORMAT, "1 bytes too many");
    assert_int_equal(out.user, 1234);
    assert_null(out.ids);
    dr_trajectory_reset(&t);
    dr_buf_reset(&bytes);
}

// Whatever the bytes are: an error, or a trajectory that encodes to exactly these bytes.
static void check_any(const char *bytes, size_t length) {
    dr_trajectory out = {0};
    if (dr_trajectory_decode(bytes, length, &out) != DR_OK) {
        assert_null(out.ids);
        return;
    }
    dr_buf again = {0};
    check_ok(dr_trajectory_encode(&out, &again));
    assert_int_equal(again.length, length);
    assert_memory_equal(again.data, bytes, length);
    dr_buf_reset(&again);
    dr_trajectory_reset(&out);
}

static void test_flipped_bytes(void **state) {
    (void)state;
    dr_trajectory t = sample_trajectory();
    dr_buf bytes = {0};
    check_ok(dr_trajectory_encode(&t, &bytes));
    const unsigned char flips[] = {0x01, 0x80, 0xff, 0x7f};
    for (size_t i = 0; i < bytes.length; i++)
        for (size_t k = 0; k < sizeof flips; k++) {
            bytes.data[i] = (char)((unsigned char)bytes.data[i] ^ flips[k]);
            check_any(bytes.data, bytes.length);
            bytes.data[i] = (char)((unsigned char)bytes.data[i] ^ flips[k]);
        }
    dr_rng rng = dr_rng_make(5, 0);
    for (int round = 0; round < 3000; round++) { // several at once
        dr_buf copy = {0};
        check_ok(dr_buf_append(&copy, bytes.data, bytes.length));
        for (int k = 0; k < 6; k++)
            copy.data[dr_rng_below(&rng, (uint32_t)copy.length)] = (char)dr_rng_bits(&rng);
        check_any(copy.data, copy.length);
        dr_buf_reset(&copy);
    }
    dr_trajectory_reset(&t);
    dr_buf_reset(&bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append),        cmocka_unit_test(test_append_refuses),
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_truncations),
        cmocka_unit_test(test_flipped_bytes),
    };
    dr_log_set_level((dr_log_level)(DR_LOG_ERROR + 1)); // thousands of refusals are expected here
    return cmocka_run_group_tests(tests, NULL, NULL);
}
