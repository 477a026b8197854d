// The scripted teacher: always valid, a function of history and key; and trajectories from a user's own text.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/episode/teacher.h"
#include "core/reward/reward.h"
#include "tests/tiny_catalogue.h"
#include "tests/tiny_policy.h"
#include "tests/tiny_trm.h"

static dr_dataset data;
static dr_backend *backend;
static dr_tokenizer *tokenizer;
static dr_trm *trm;
static dr_template *compact, *full;

static int setup(void **state) {
    (void)state;
    data = tiny_catalogue();
    if (dr_backend_cpu_create(DR_FP32, 1, &backend) != DR_OK || tiny_tokenizer(&tokenizer) != DR_OK)
        return -1;
    if (tiny_trm(backend, &data, &trm) != DR_OK) return -1;
    if (dr_template_load("compact", &compact) != DR_OK) return -1;
    return dr_template_load("full", &full) == DR_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    dr_template_destroy(compact);
    dr_template_destroy(full);
    dr_trm_destroy(trm);
    dr_tokenizer_destroy(tokenizer);
    dr_backend_cpu_destroy(backend);
    tiny_catalogue_reset(&data);
    return 0;
}

static dr_episode_rules rules_of(const dr_template *t) {
    dr_episode_rules rules = {tokenizer,
                              t,
                              &data,
                              {.k = 10,
                               .k_retrieve = 12,
                               .max_retrievals = 8,
                               .max_turn_tokens = 1000,
                               .max_total_tokens = 8000,
                               .exclude_history = true},
                              {0}};
    dr_episode_rules_eos(&rules, -1);
    return rules;
}

static dr_example example_of(int32_t user) {
    dr_example e;
    assert_true(dr_dataset_example(&data, user, DR_SPLIT_TRAIN, &e));
    return e;
}

static dr_trajectory write_one(dr_teacher *teacher, int32_t user, uint64_t stream) {
    dr_trajectory t = {0};
    dr_example e = example_of(user);
    check_ok(dr_teacher_write(teacher, e.history, e.n_history, user, e.target, 3, stream, &t));
    return t;
}

// What it writes by provenance, and again from its bare text: both must be valid.
static void check_valid(const dr_reward_context *context, const dr_trajectory *t) {
    dr_completion c = {0}, bare = {0};
    dr_reward_result r;
    dr_reward_settings settings = dr_reward_defaults(DR_STAGE_COLD);
    check_ok(dr_completion_from_trajectory(tokenizer, t, &c));
    check_ok(dr_reward_score(context, &settings, &c, t->target, NULL, 0, 0, &r));
    if (!r.valid) fail_msg("not valid: %s\n%s", r.reason, c.text.data);
    assert_int_equal(r.n_retrievals, t->n_turns);
    for (int32_t i = 0; i < 10; i++) assert_true(r.items[i] > 0); // ten different items of the catalogue
    check_ok(dr_completion_from_text(c.text.data, c.text.length, &bare));
    check_ok(dr_reward_score(context, &settings, &bare, t->target, NULL, 0, 0, &r));
    if (!r.valid) fail_msg("not valid as bare text: %s\n%s", r.reason, c.text.data);
    dr_completion_reset(&c);
    dr_completion_reset(&bare);
}

static void check_all_valid(const dr_template *t) {
    dr_episode_rules rules = rules_of(t);
    dr_teacher_settings settings = dr_teacher_defaults();
    dr_teacher *teacher = NULL;
    dr_reward_context *context = NULL;
    int turns[DR_TEACHER_MOST + 1] = {0};
    check_ok(dr_teacher_create(&rules, trm, &settings, &teacher));
    check_ok(dr_reward_context_create(&data, trm, NULL, t, &context));
    for (int i = 0; i < 120; i++) {
        dr_trajectory one = write_one(teacher, i % TINY_USERS, (uint64_t)i);
        assert_true(one.n_turns >= 1 && one.n_turns <= DR_TEACHER_MOST);
        turns[one.n_turns]++;
        check_valid(context, &one);
        assert_int_equal(one.stop, DR_STOP_ANSWER);
        assert_int_equal(one.ids[one.n_tokens - 1], dr_tokenizer_special(tokenizer, "<|endoftext|>"));
        dr_trajectory_reset(&one);
    }
    assert_true(turns[1] > 10 && turns[2] > 25 && turns[3] > 10);
    dr_reward_context_destroy(context);
    dr_teacher_destroy(teacher);
}

static void test_always_valid(void **state) {
    (void)state;
    check_all_valid(compact);
    check_all_valid(full);
}

static void test_provenance(void **state) {
    (void)state;
    dr_episode_rules rules = rules_of(compact);
    dr_teacher_settings settings = dr_teacher_defaults();
    dr_teacher *teacher = NULL;
    check_ok(dr_teacher_create(&rules, trm, &settings, &teacher));
    dr_trajectory t = write_one(teacher, 1, 4);
    int32_t think = dr_tokenizer_special(tokenizer, DR_TAG_THINK),
            end = dr_tokenizer_special(tokenizer, DR_TAG_ITEMS_END);
    int32_t begin = dr_tokenizer_special(tokenizer, DR_TAG_ITEMS), n_lists = 0;
    for (int32_t i = 0; i < t.n_tokens; i++) {
        if (t.ids[i] == think) assert_int_equal(t.provenance[i], DR_FROM_PROMPT);
        if (t.ids[i] == begin || t.ids[i] == end) assert_int_equal(t.provenance[i], DR_FROM_TOOL);
        n_lists += t.ids[i] == begin;
        assert_int_not_equal(t.provenance[i], DR_FROM_FORCED);
        if (i > 0) assert_true(t.turn_of[i] >= t.turn_of[i - 1]);
    }
    assert_int_equal(n_lists, t.n_turns);
    for (int32_t i = 0; i < t.n_turns; i++) {
        const dr_turn *q = &t.turns[i];
        assert_int_equal(t.ids[q->query_end - 1], dr_tokenizer_special(tokenizer, DR_TAG_PREFERENCE_END));
        assert_int_equal(q->n_items, 12);
        float again[TINY_TEXT];
        const char *text = q->preference;
        const dr_text_encoder *encoder = dr_trm_text_encoder(trm);
        check_ok(encoder->ops->encode(encoder, &text, 1, again));
        check_same_bits("embedding", q->embedding, again, TINY_TEXT);
        // the list is what the retrieval model says to this preference
        dr_example e = example_of(1);
        dr_hit hits[12];
        check_ok(dr_trm_top_k(trm, &(dr_trm_query){e.history, e.n_history, again}, 1, 12, true, hits));
        for (int k = 0; k < 12; k++) assert_int_equal(q->items[k], hits[k].item);
    }
    dr_trajectory_reset(&t);
    dr_teacher_destroy(teacher);
}

static bool same(const dr_trajectory *a, const dr_trajectory *b) {
    return a->n_tokens == b->n_tokens && memcmp(a->ids, b->ids, (size_t)a->n_tokens * 4) == 0;
}

static void test_keys(void **state) {
    (void)state;
    dr_episode_rules rules = rules_of(compact);
    dr_teacher_settings settings = dr_teacher_defaults();
    dr_teacher *teacher = NULL, *other = NULL;
    check_ok(dr_teacher_create(&rules, trm, &settings, &teacher));
    check_ok(dr_teacher_create(&rules, trm, &settings, &other));
    int different = 0;
    for (uint64_t i = 0; i < 10; i++) {
        dr_trajectory a = write_one(teacher, 2, i), b = write_one(other, 2, i),
                      c = write_one(teacher, 2, i + 1), d = {0};
        assert_true(same(&a, &b)); // the key decides, not what was written before
        different += !same(&a, &c);
        dr_example e = example_of(2); // the target is not looked at
        check_ok(dr_teacher_write(teacher, e.history, e.n_history, 2, 1 + (e.target + 5) % 24, 3, i, &d));
        assert_true(same(&a, &d));
        dr_trajectory_reset(&a);
        dr_trajectory_reset(&b);
        dr_trajectory_reset(&c);
        dr_trajectory_reset(&d);
    }
    assert_true(different >= 8);
    dr_teacher_destroy(teacher);
    dr_teacher_destroy(other);
}

static void test_caps(void **state) {
    (void)state;
    dr_episode_rules rules = rules_of(compact);
    dr_teacher_settings settings = dr_teacher_defaults();
    dr_teacher *teacher = NULL;
    settings.retrievals[0] = settings.retrievals[1] = 0; // always three
    check_ok(dr_teacher_create(&rules, trm, &settings, &teacher));
    dr_trajectory three = write_one(teacher, 0, 1);
    assert_int_equal(three.n_turns, 3);
    dr_teacher_destroy(teacher);
    rules.protocol.max_total_tokens = three.n_tokens - 10; // too little for three
    check_ok(dr_teacher_create(&rules, trm, &settings, &teacher));
    dr_trajectory fewer = write_one(teacher, 0, 1);
    assert_true(fewer.n_turns < 3 && fewer.n_turns > 0);
    assert_int_equal(fewer.stop, DR_STOP_ANSWER);
    dr_teacher_destroy(teacher);
    rules.protocol.max_total_tokens = 300;
    check_ok(dr_teacher_create(&rules, trm, &settings, &teacher));
    dr_trajectory none = {0};
    dr_example e = example_of(0);
    check_error(dr_teacher_write(teacher, e.history, e.n_history, 0, e.target, 3, 1, &none), DR_ERR_RANGE,
                "does not fit");
    check_error(dr_teacher_write(teacher, e.history, 0, 0, e.target, 3, 1, &none), DR_ERR_RANGE,
                "empty history");
    assert_null(none.ids);
    dr_teacher_destroy(teacher);
    dr_trajectory_reset(&three);
    dr_trajectory_reset(&fewer);
}

// Items without usable categories, titles that spell tags, role words and CJK: still valid.
static void test_odd_catalogue(void **state) {
    (void)state;
    dr_dataset odd = tiny_catalogue();
    static const char *const categories[] = {"", "\"quoted\", <b>", "Assistants, 七人", "a  b, |x|",
                                             "Tab\there"};
    for (int32_t i = 1; i <= odd.n_items; i++) {
        dr_free(odd.categories[i]);
        check_ok(dr_strdup(&odd.categories[i], categories[i % 5]));
    }
    dr_episode_rules rules = rules_of(compact);
    rules.dataset = &odd;
    dr_teacher_settings settings = dr_teacher_defaults();
    dr_teacher *teacher = NULL;
    dr_reward_context *context = NULL;
    check_ok(dr_teacher_create(&rules, trm, &settings, &teacher));
    check_ok(dr_reward_context_create(&odd, trm, NULL, compact, &context));
    for (int i = 0; i < 40; i++) {
        dr_trajectory one = write_one(teacher, i % TINY_USERS, (uint64_t)i);
        check_valid(context, &one);
        dr_trajectory_reset(&one);
    }
    dr_reward_context_destroy(context);
    dr_teacher_destroy(teacher);
    tiny_catalogue_reset(&odd);
}

// A teacher's own text, given back as a user's: the same tokens with the same provenance.
static void test_from_text(void **state) {
    (void)state;
    dr_episode_rules rules = rules_of(compact);
    dr_teacher_settings settings = dr_teacher_defaults();
    dr_teacher *teacher = NULL;
    check_ok(dr_teacher_create(&rules, trm, &settings, &teacher));
    for (int i = 0; i < 8; i++) {
        int32_t user = i % TINY_USERS;
        dr_trajectory a = write_one(teacher, user, (uint64_t)i), b = {0};
        dr_completion c = {0};
        dr_example e = example_of(user);
        a.n_tokens--; // without the end of the sequence, which is put there again
        check_ok(dr_completion_from_trajectory(tokenizer, &a, &c));
        a.n_tokens++;
        check_ok(dr_trajectory_from_text(&rules, e.history, e.n_history, user, e.target, c.text.data,
                                         c.text.length, &b));
        assert_true(same(&a, &b));
        assert_memory_equal(a.provenance, b.provenance, (size_t)a.n_tokens);
        assert_memory_equal(a.turn_of, b.turn_of, (size_t)a.n_tokens * 2);
        assert_int_equal(b.n_turns, a.n_turns);
        for (int32_t k = 0; k < a.n_turns; k++) {
            assert_string_equal(a.turns[k].preference, b.turns[k].preference);
            assert_int_equal(a.turns[k].query_begin, b.turns[k].query_begin);
            assert_int_equal(a.turns[k].query_end, b.turns[k].query_end);
        }
        assert_true(b.user == user && b.target == e.target);
        dr_trajectory_reset(&a);
        dr_trajectory_reset(&b);
        dr_completion_reset(&c);
    }
    rules.protocol.max_total_tokens = 100;
    dr_trajectory none = {0};
    dr_example e = example_of(0);
    check_error(dr_trajectory_from_text(&rules, e.history, e.n_history, 0, e.target, "a", 1, &none),
                DR_ERR_RANGE, "longer than 100 tokens");
    assert_null(none.ids);
    dr_teacher_destroy(teacher);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_always_valid),  cmocka_unit_test(test_provenance),
        cmocka_unit_test(test_keys),          cmocka_unit_test(test_caps),
        cmocka_unit_test(test_odd_catalogue), cmocka_unit_test(test_from_text),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
