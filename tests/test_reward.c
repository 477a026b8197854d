// The six rewards on hand-worked completions, the adversarial ones included.
// labels: cpu
#include "tests/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/rng.h"
#include "core/reward/reward.h"
#include "core/reward/title_index.h"
#include "core/store/dataset.h"
#include "tests/tiny_catalogue.h"
#include "tests/tiny_trm.h"

#define ASK(text) DR_TAG_PREFERENCE text DR_TAG_PREFERENCE_END
#define LIST(text) "\n\n" DR_TAG_ITEMS "\n" text "\n" DR_TAG_ITEMS_END "\n\n"
#define ANSWER(lines) "</think>\n" DR_TAG_ANSWER "\n" lines DR_TAG_ANSWER_END
#define TAIL                                                                                                 \
    "4. Red Sun\n5. 12. Zimmer\n6. Café Noir\n7. Night Train\n8. Long Road\n9. Deep Sea\n10. High Peak\n"
#define TEN "1. Star War\n2. Star War II\n3. Blue Moon\n" TAIL
#define GOOD "He likes war. " ASK("war") LIST("1. Star War") "These fit. " ANSWER(TEN)

static dr_dataset data;
static dr_text_encoder *encoder;
static dr_template *full;
static dr_reward_context *context;

static int setup(void **state) {
    (void)state;
    data = tiny_catalogue();
    if (dr_hashed_encoder_create(64, &encoder) != DR_OK) return -1;
    if (dr_template_load("full", &full) != DR_OK) return -1;
    return dr_reward_context_create(&data, NULL, encoder, full, &context) == DR_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    dr_reward_context_destroy(context);
    dr_template_destroy(full);
    dr_text_encoder_destroy(encoder);
    tiny_catalogue_reset(&data);
    return 0;
}

static dr_reward_result score_as(const char *text, dr_stage stage, int32_t target) {
    dr_completion c = {0};
    dr_reward_result r;
    dr_reward_settings settings = dr_reward_defaults(stage);
    check_ok(dr_completion_from_text(text, strlen(text), &c));
    check_ok(dr_reward_score(context, &settings, &c, target, NULL, 0, 0, &r));
    dr_completion_reset(&c);
    return r;
}

static dr_reward_result score(const char *text) {
    return score_as(text, DR_STAGE_REC, 1);
}

static void check_near(float got, double want) {
    check_close("value", &got, (float[]){(float)want}, 1, 1e-6, 1e-6);
}

static void check_valid(const char *text) {
    dr_reward_result r = score(text);
    if (!r.valid) fail_msg("expected a valid completion, found: %s", r.reason);
    assert_string_equal(r.reason, "");
    assert_true(r.parts[DR_REWARD_FORMAT] == 0.0f);
}

// Breaks the format for this reason; then all outcome parts are 0 and the total is -1.
static void check_broken(const char *text, const char *reason) {
    dr_reward_result r = score(text);
    if (r.valid || !strstr(r.reason, reason)) fail_msg("expected \"%s\", found \"%s\"", reason, r.reason);
    assert_true(r.parts[DR_REWARD_FORMAT] == -1.0f);
    assert_true(r.parts[DR_REWARD_HIT] == 0 && r.parts[DR_REWARD_RANK] == 0 &&
                r.parts[DR_REWARD_SIMILARITY] == 0);
    assert_true(r.total == -1.0f);
    assert_int_equal(r.hit_position, -1);
}

static void test_defaults(void **state) {
    (void)state;
    dr_reward_settings cold = dr_reward_defaults(DR_STAGE_COLD), rec = dr_reward_defaults(DR_STAGE_REC);
    const float cold_weights[] = {1, 1, 1, 0, 0, 0}, rec_weights[] = {1, 0, 0, 1, 1, 1};
    check_same_bits("cold", cold.weight, cold_weights, 6);
    check_same_bits("rec", rec.weight, rec_weights, 6);
    assert_true(cold.k == 10 && cold.invocation_cap == 3 && cold.invocation_step == 0.5f);
    assert_true(cold.diversity_scale == 0.2f && rec.rank_step == 0.2f && rec.similarity_scale == 10.0f);
}

static void test_valid(void **state) {
    (void)state;
    check_valid(GOOD);
    check_valid(GOOD "\n");
    check_valid("a " ASK("x") LIST("1. A") ASK("y")
                    LIST("1. B") "so. " ANSWER(TEN));                           // no text between two lists
    check_valid("a " ASK("say \"war\" twice") LIST("1. A") "so. " ANSWER(TEN)); // quotes in a preference
    check_valid("a " ASK("x")
                    LIST("1. \xe4\xb8\x83\xe4\xba\xba, the Assistant <think> </think>") "so. " ANSWER(TEN));
}

static void test_hit_and_rank(void **state) {
    (void)state;
    dr_reward_result r = score_as(GOOD, DR_STAGE_REC, 1);
    assert_int_equal(r.hit_position, 0);
    assert_true(r.parts[DR_REWARD_HIT] == 1.0f);
    check_near(r.parts[DR_REWARD_RANK], 0.2 * 10);
    r = score_as(GOOD, DR_STAGE_REC, 12); // High Peak, the last line
    assert_int_equal(r.hit_position, 9);
    check_near(r.parts[DR_REWARD_RANK], 0.2 * 1);
    r = score_as(GOOD, DR_STAGE_REC, 20);
    assert_int_equal(r.hit_position, -1);
    assert_true(r.valid && r.parts[DR_REWARD_HIT] == 0 && r.parts[DR_REWARD_RANK] == 0);
    r = score_as(GOOD, DR_STAGE_REC, 0); // unknown target
    assert_true(r.valid && r.parts[DR_REWARD_HIT] == 0 && r.parts[DR_REWARD_SIMILARITY] == 0);
    r = score_as(GOOD, DR_STAGE_REC, 1);
    check_near(r.total,
               (double)r.parts[DR_REWARD_HIT] + r.parts[DR_REWARD_RANK] + r.parts[DR_REWARD_SIMILARITY]);
}

// "Star War" is listed only inside "Star War II": the original's substring match would credit it.
static void test_title_inside_another(void **state) {
    (void)state;
    const char *text =
        "a " ASK("x") LIST("1. A") "so. " ANSWER("1. Star War II\n2. Dark Woods\n3. Blue Moon\n" TAIL);
    dr_reward_result r = score_as(text, DR_STAGE_REC, 1);
    assert_true(r.valid);
    assert_int_equal(r.hit_position, -1);
    assert_true(r.parts[DR_REWARD_HIT] == 0.0f);
    assert_int_equal(score_as(text, DR_STAGE_REC, 2).hit_position, 0);
}

static void test_normalised_titles(void **state) {
    (void)state;
    const char *text =
        "a " ASK("x") LIST("1. A") "so. " ANSWER("1.   STAR   war \nblue moon\n12. Zimmer\n4. CAFÉ NOIR\n5. "
                                                 "Star  War\n6. 7. Red Sun\n7. a\n8. b\n9. c\n10. d\n");
    dr_reward_result r = score_as(text, DR_STAGE_REC, 1);
    assert_true(r.valid);
    const int32_t want[] = {1, 3, 5, 7, -1,
                            0, 0, 0, 0, 0}; // a second number is not taken off: "7. Red Sun" is unknown
    assert_memory_equal(r.items, want, sizeof want);
    assert_int_equal(score_as(text, DR_STAGE_REC, 5).hit_position, 2); // its number belongs to the title
}

// Duplicates are counted once: later lines move up, and the similarity gives nothing for the repetition.
static void test_duplicates(void **state) {
    (void)state;
    const char *text =
        "a " ASK("x") LIST("1. A") "so. " ANSWER("1. Red Sun\n2. red sun\n3. RED SUN\n4. Star War\n5. "
                                                 "Nowhere\n6. nowhere\n7. Dark Woods\n8. b\n9. c\n10. d\n");
    dr_reward_result r = score_as(text, DR_STAGE_REC, 1);
    assert_true(r.valid);
    const int32_t want[] = {4, -1, -1, 1, 0, -1, 21, 0, 0, 0};
    assert_int_equal(r.n_lines, 10);
    assert_memory_equal(r.items, want, sizeof want);
    assert_int_equal(r.hit_position, 1);
    check_near(r.parts[DR_REWARD_RANK], 0.2 * 9);
    int32_t items[10];
    dr_completion c = {0};
    check_ok(dr_completion_from_text(text, strlen(text), &c));
    assert_int_equal(dr_answer_items(context, &c, items, 10), 7);
    const int32_t distinct[] = {4, 1, 0, 21, 0, 0, 0};
    assert_memory_equal(items, distinct, sizeof distinct);
    assert_int_equal(dr_answer_items(context, &c, items, 2), 2);
    dr_completion_reset(&c);
    // ten times the target: one line's weight, 1 of Σ (1 - i/10)² = 3.85, with cosine 1
    r = score_as("a " ASK("x")
                     LIST("1. A") "so. " ANSWER("Star War\nStar War\nStar War\nStar War\nStar War\nStar "
                                                "War\nStar War\nStar War\nStar War\nStar War\n"),
                 DR_STAGE_REC, 1);
    assert_true(r.valid);
    check_near(r.parts[DR_REWARD_SIMILARITY], 10.0 * 1.0 / 3.85);
    check_near(r.total, 1.0 + 2.0 + 10.0 / 3.85);
}

// By the formula, from the same encoder's vectors.
static void test_similarity(void **state) {
    (void)state;
    const int32_t items[10] = {1, 2, 3, 4, 5, 7, 9, 10, 11, 12};
    float a[64], b[64];
    const char *target = "Star War II, Action, War";
    check_ok(encoder->ops->encode(encoder, &target, 1, a));
    double sum = 0, weights = 0;
    for (int i = 0; i < 10; i++) {
        char text[128];
        const char *one = text;
        snprintf(text, sizeof text, "%s, %s", data.titles[items[i]], data.categories[items[i]]);
        check_ok(encoder->ops->encode(encoder, &one, 1, b));
        double dot = 0, weight = (1 - i / 10.0) * (1 - i / 10.0);
        for (int k = 0; k < 64; k++) dot += (double)a[k] * (double)b[k];
        sum += weight * dot;
        weights += weight;
    }
    check_near(weights, 3.85);
    dr_reward_result r = score_as(GOOD, DR_STAGE_REC, 2);
    check_close("similarity", &r.parts[DR_REWARD_SIMILARITY], (float[]){(float)(10 * sum / weights)}, 1, 1e-5,
                1e-5);
    assert_true(r.parts[DR_REWARD_SIMILARITY] > 0.5f);
    // unknown titles are zero vectors: they keep their weight and add nothing
    r = score_as("a " ASK("x") LIST("1. A") "so. " ANSWER("q\nw\ne\nr\nt\ny\nu\ni\no\nStar War\n"),
                 DR_STAGE_REC, 1);
    assert_true(r.valid);
    check_near(r.parts[DR_REWARD_SIMILARITY], 10.0 * 0.01 / 3.85);
}

// An encoder that notes how it is called.
typedef struct noted {
    int calls;
    int64_t most, n;    // texts of a call, texts in all
    const float *first; // where the rows begin
} noted;

static dr_status note_texts(const dr_text_encoder *self, const char *const *texts, int64_t n, float *out) {
    noted *notes = self->state;
    if (notes->calls++ == 0) notes->first = out;
    assert_ptr_equal(out, notes->first + notes->n * self->dim);
    for (int64_t i = 0; i < n; i++) {
        char want[64];
        int item = (int)(notes->n + i + 1);
        snprintf(want, sizeof want, "Film %d%s", item, item % 2 ? ", Odd" : "");
        assert_string_equal(texts[i], want);
    }
    notes->most = n > notes->most ? n : notes->most;
    notes->n += n;
    return notes->n > 1000 ? DR_ERR_RANGE : DR_OK;
}

static dr_status encode_films(int32_t n_items, noted *notes) {
    const dr_text_encoder_ops ops = {.name = "noted", .encode = note_texts};
    dr_text_encoder noting = {.ops = &ops, .dim = 3, .state = notes};
    dr_dataset films = {.n_items = n_items};
    dr_reward_context *of_films = NULL;
    check_ok(dr_alloc(&films.titles, "titles", n_items + 1, sizeof *films.titles));
    check_ok(dr_alloc(&films.categories, "categories", n_items + 1, sizeof *films.categories));
    for (int32_t i = 0; i <= n_items; i++) {
        char title[32];
        snprintf(title, sizeof title, "Film %d", i);
        check_ok(dr_strdup(&films.titles[i], i == 0 ? "" : title));
        check_ok(dr_strdup(&films.categories[i], i % 2 ? "Odd" : ""));
    }
    dr_status status = dr_reward_context_create(&films, NULL, &noting, NULL, &of_films);
    dr_reward_context_destroy(of_films);
    for (int32_t i = 0; i <= n_items; i++) {
        dr_free(films.titles[i]);
        dr_free(films.categories[i]);
    }
    dr_free(films.titles);
    dr_free(films.categories);
    return status;
}

// Every item's text once, in order, into its own row; many at a time, and never all of a large catalogue.
static void test_texts_of_items(void **state) {
    (void)state;
    const int32_t sizes[] = {1, 255, 256, 257, 600};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        noted notes = {0};
        check_ok(encode_films(sizes[i], &notes));
        assert_int_equal(notes.n, sizes[i]);
        assert_int_equal(notes.calls, (sizes[i] + 255) / 256);
        assert_true(notes.most <= 256);
    }
    noted notes = {0};
    assert_int_equal(encode_films(2000, &notes), DR_ERR_RANGE);
    assert_int_equal(notes.calls, 4); // the first failure ends it
}

static double dot(const float *a, const float *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

// With a retrieval model: the mean of its text and item cosines.
static void test_similarity_with_trm(void **state) {
    (void)state;
    dr_backend *backend = NULL;
    dr_trm *trm = NULL;
    dr_reward_context *with_trm = NULL;
    dr_completion c = {0};
    dr_reward_result r;
    dr_reward_settings settings = dr_reward_defaults(DR_STAGE_REC);
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &backend));
    check_ok(tiny_trm(backend, &data, &trm));
    check_ok(dr_reward_context_create(&data, trm, NULL, NULL, &with_trm));
    const char *text =
        "a " ASK("x") LIST("1. A") "so. " ANSWER("q\nBlue Moon\ne\nr\nt\ny\nStar War\ni\no\np\n");
    check_ok(dr_completion_from_text(text, strlen(text), &c));
    check_ok(dr_reward_score(with_trm, &settings, &c, 1, NULL, 0, 0, &r));
    const float *items = dr_trm_item_vectors(trm), *texts = dr_trm_text_vectors(trm);
    double moon = 0.5 * dot(items + 3 * TINY_HIDDEN, items + 1 * TINY_HIDDEN, TINY_HIDDEN) +
                  0.5 * dot(texts + 3 * TINY_TEXT, texts + 1 * TINY_TEXT, TINY_TEXT);
    assert_true(fabs(moon) > 1e-3);
    double want = 10 * (0.81 * moon + 0.16 * 1.0) / 3.85; // places 1 and 6 of ten
    check_close("similarity", &r.parts[DR_REWARD_SIMILARITY], (float[]){(float)want}, 1, 1e-5, 1e-5);
    assert_int_equal(r.hit_position, 6);
    dr_completion_reset(&c);
    dr_reward_context_destroy(with_trm);
    dr_trm_destroy(trm);
    dr_backend_cpu_destroy(backend);
}

#define MORE(text) ASK(text) LIST("1. A")

static void test_invocation(void **state) {
    (void)state;
    check_near(score_as("no call " ANSWER(TEN), DR_STAGE_COLD, 1).parts[DR_REWARD_INVOCATION], 0.0);
    check_near(score_as("a" MORE("a") "z" ANSWER(TEN), DR_STAGE_COLD, 1).parts[DR_REWARD_INVOCATION], 0.0);
    check_near(
        score_as("a" MORE("a") MORE("b") "z" ANSWER(TEN), DR_STAGE_COLD, 1).parts[DR_REWARD_INVOCATION], 0.5);
    dr_reward_result r = score_as("a" MORE("a") MORE("b") MORE("c") "z" ANSWER(TEN), DR_STAGE_COLD, 1);
    check_near(r.parts[DR_REWARD_INVOCATION], 1.0);
    r = score_as("a" MORE("a") MORE("b") MORE("c") MORE("d") MORE("e") "z" ANSWER(TEN), DR_STAGE_COLD, 1);
    check_near(r.parts[DR_REWARD_INVOCATION], 1.0); // capped at three
    assert_int_equal(r.n_retrievals, 5);
    // process rewards do not wait for the format
    r = score_as("a" MORE("a") MORE("b") "z", DR_STAGE_COLD, 1);
    assert_false(r.valid);
    check_near(r.parts[DR_REWARD_INVOCATION], 0.5);
    check_near(r.total, -1.0 + 0.5 + (double)r.parts[DR_REWARD_DIVERSITY]);
}

static void test_diversity(void **state) {
    (void)state;
    dr_completion c = {0};
    dr_reward_result r;
    dr_reward_settings settings = dr_reward_defaults(DR_STAGE_COLD);
    const char *text = "a" MORE("a") MORE("b") MORE("c") "z" ANSWER(TEN);
    check_ok(dr_completion_from_text(text, strlen(text), &c));
    // cosines 1, 0, 0 → mean 1/3; the length of a vector does not matter
    const float vectors[] = {1, 0, 2, 0, 0, 5};
    check_ok(dr_reward_score(context, &settings, &c, 1, vectors, 3, 2, &r));
    check_near(r.parts[DR_REWARD_DIVERSITY], 0.2 * (1 - 1.0 / 3));
    check_ok(dr_reward_score(context, &settings, &c, 1, vectors, 1, 2, &r)); // one only
    check_near(r.parts[DR_REWARD_DIVERSITY], 0.0);
    const float opposite[] = {1, 0, -1, 0};
    check_ok(dr_reward_score(context, &settings, &c, 1, opposite, 2, 2, &r));
    check_near(r.parts[DR_REWARD_DIVERSITY], 0.4);
    const float zero[] = {0, 0, 0, 0}; // no direction, no likeness
    check_ok(dr_reward_score(context, &settings, &c, 1, zero, 2, 2, &r));
    check_near(r.parts[DR_REWARD_DIVERSITY], 0.2);
    dr_completion_reset(&c);
    // encoded from the text: twice the same query gives nothing, quotes and case of space do not matter
    r = score_as("a" MORE("slow war") MORE(" \"slow\"  war") "z" ANSWER(TEN), DR_STAGE_COLD, 1);
    check_near(r.parts[DR_REWARD_DIVERSITY], 0.0);
    r = score_as("a" MORE("slow war") MORE("merry comedy") "z" ANSWER(TEN), DR_STAGE_COLD, 1);
    assert_true(r.parts[DR_REWARD_DIVERSITY] > 0.1f);
    check_near(r.total, 0.5 + (double)r.parts[DR_REWARD_DIVERSITY]);
}

static void test_format_of_preferences_and_lists(void **state) {
    (void)state;
    check_broken("no call. " ANSWER(TEN), "no retrieval");
    check_broken("a " DR_TAG_PREFERENCE "x" ANSWER(TEN), "not ended");
    check_broken("a " DR_TAG_PREFERENCE ASK("x") LIST("1. A") "so. " ANSWER(TEN), "not ended");
    check_broken("a x" DR_TAG_PREFERENCE_END LIST("1. A") "so. " ANSWER(TEN), "not begun");
    check_broken("a " ASK("") LIST("1. A") "so. " ANSWER(TEN), "empty preference");
    check_broken("a " ASK(" \"\" ") LIST("1. A") "so. " ANSWER(TEN), "empty preference");
    check_broken("a " ASK("x") "so. " ANSWER(TEN), "1 preferences, 0 item lists");
    check_broken("a " ASK("x") LIST("1. A") "b " ASK("y") "so. " ANSWER(TEN), "2 preferences, 1 item lists");
    check_broken("a " ASK("x") LIST("  ") "so. " ANSWER(TEN), "not well formed");
    // the model writes list tags itself
    check_broken("a " LIST("1. Star War") "so. " ANSWER(TEN), "list tag itself");
    check_broken("a " ASK("x") LIST("1. A") LIST("1. B") "so. " ANSWER(TEN), "list tag itself");
    check_broken("a " ASK("x") LIST("1. A") "so " DR_TAG_ITEMS_END ANSWER(TEN), "list tag itself");
    check_broken("a " ASK("x") "\n\n" DR_TAG_ITEMS "\n1. A\n so. " ANSWER(TEN), "list tag itself");
}

static void test_format_of_thought(void **state) {
    (void)state;
    check_broken("a " ASK("x") LIST("1. A") "so. " DR_TAG_ANSWER TEN DR_TAG_ANSWER_END, "one </think>");
    check_broken("a " ASK("x") LIST("1. A") "so. </think>" ANSWER(TEN), "one </think>");
    check_broken("<think>a " ASK("x") LIST("1. A") "so. " ANSWER(TEN),
                 "no second <think>"); // two think blocks
    check_broken("a " ASK("x") LIST("1. A") ANSWER(TEN), "no text between");
    check_broken("a " ASK("x") LIST("1. A") " \n\t" ANSWER(TEN), "no text between");
    check_broken("a</think> " ASK("x") LIST("1. A") "so. " DR_TAG_ANSWER "\n" TEN DR_TAG_ANSWER_END,
                 "no text between");
}

static void test_format_of_answer(void **state) {
    (void)state;
    const char *head = "a " ASK("x") LIST("1. A") "so. ";
    char text[2048];
    check_broken("a " ASK("x") LIST("1. A") "so. </think>", "found 0 begin and 0 end");
    check_broken("a " ASK("x") LIST("1. A") "so. </think>" DR_TAG_ANSWER "\n1. Star War\n2. St",
                 "1 begin and 0 end");
    check_broken("a " ASK("x") LIST("1. A") "so. </think>" DR_TAG_ANSWER_END TEN DR_TAG_ANSWER,
                 "wrong order");
    check_broken(GOOD DR_TAG_ANSWER "\n" TEN DR_TAG_ANSWER_END, "2 begin and 2 end");
    snprintf(text, sizeof text, "%s%s%s%s</think>", head, DR_TAG_ANSWER "\n", TEN, DR_TAG_ANSWER_END);
    check_broken(text, "before </think>");
    check_broken("a " ASK("x") LIST("1. A") "so. " ANSWER("<think>\n" TEN), "no second <think>");
    check_broken("a " ASK("x") LIST("1. A") "so. </think>" DR_TAG_ANSWER ASK("y") LIST("1. A")
                     TEN DR_TAG_ANSWER_END,
                 "no text between");
    check_broken("a " ASK("x") LIST("1. A") "so. " DR_TAG_ANSWER "\n</think>\n" TEN DR_TAG_ANSWER_END,
                 "before </think>");
    check_broken("a " ASK("x") LIST("1. A") "so. " ANSWER("1. Star War\n2. Star War II\n" TAIL), "found 9");
    check_broken("a " ASK("x") LIST("1. A") "so. " ANSWER(TEN "11. Dark Woods\n"), "found 11");
    check_broken("a " ASK("x") LIST("1. A") "so. " ANSWER(""), "found 0");
}

// A tag that no earlier rule complains about cannot stand in an answer of a live episode; by provenance it
// can.
static void test_tag_inside_answer(void **state) {
    (void)state;
    const char *parts[] = {"a " ASK("x"), LIST("1. A"), "so. </think>" DR_TAG_ANSWER "\n" TEN ASK("y"),
                           LIST("1. B"), "so" DR_TAG_ANSWER_END};
    dr_segment segments[5];
    dr_completion c = {.segments = segments, .n_segments = 5};
    dr_reward_settings settings = dr_reward_defaults(DR_STAGE_REC);
    dr_reward_result r;
    for (int i = 0; i < 5; i++) check_ok(dr_buf_text(&c.text, parts[i]));
    const char *at = c.text.data;
    for (int i = 0; i < 5; i++) {
        segments[i] = (dr_segment){at, strlen(parts[i]), i % 2 == 1};
        at += strlen(parts[i]);
    }
    check_ok(dr_reward_score(context, &settings, &c, 1, NULL, 0, 0, &r));
    assert_false(r.valid);
    dr_buf_reset(&c.text);
}

static void test_words_and_scripts(void **state) {
    (void)state;
    check_broken("The Assistant " ASK("x") LIST("1. A") "so. " ANSWER(TEN), "role word");
    check_broken("a " ASK("assistant jobs") LIST("1. A") "so. " ANSWER(TEN), "role word");
    check_broken("a " ASK("x") LIST("1. A") "so. " ANSWER(TEN) "\nassistant\n", "role word");
    check_broken("a " ASK("x") LIST("1. A") "\xe6\x88\x91 so. " ANSWER(TEN), "CJK");
    check_broken("a " ASK("\xe3\x81\x82") LIST("1. A") "so. " ANSWER(TEN), "CJK");
    check_broken("a " ASK("x") LIST("1. A") "[best title] so. " ANSWER(TEN),
                 "copied from the prompt: [best title]");
    // titles of the catalogue may hold what a policy must not write, as answer lines
    check_valid("a " ASK("x")
                    LIST("1. A") "so. " ANSWER("1. The Assistant\n2. 七人の侍\n3. Blue Moon\n" TAIL));
    check_broken("a " ASK("x")
                     LIST("1. A") "so. " ANSWER("1. The Assistant 2\n2. Star War\n3. Blue Moon\n" TAIL),
                 "role word");
    check_broken("a " ASK("x") LIST("1. A") "so. " ANSWER("1. Star War\n2. 七人\n3. Blue Moon\n" TAIL),
                 "CJK");
    dr_completion c = {0};
    dr_reward_result r;
    dr_reward_settings settings = dr_reward_defaults(DR_STAGE_REC);
    const char *text = "a " ASK("x") LIST("1. A") "\xe6\x88\x91 so. " ANSWER(TEN);
    settings.forbid_cjk = false; // configurable
    check_ok(dr_completion_from_text(text, strlen(text), &c));
    check_ok(dr_reward_score(context, &settings, &c, 1, NULL, 0, 0, &r));
    assert_true(r.valid);
    dr_completion_reset(&c);
}

// Broken UTF-8 anywhere is scored like any other text; random damage never crashes and never hits by chance.
static void test_broken_bytes(void **state) {
    (void)state;
    check_valid("a\xff\xc3 " ASK("\xe4\xb8") LIST("1. \x80") "so\xfe. " ANSWER(TEN));
    dr_reward_result r = score(
        "a " ASK("x") LIST("1. A") "so. " ANSWER("1. Star War\xff\n2. Star War II\n3. Blue Moon\n" TAIL));
    assert_true(r.valid);
    assert_int_equal(r.items[0], 0);
    dr_rng rng = dr_rng_make(11, 0);
    const char *text = GOOD;
    for (int round = 0; round < 3000; round++) {
        char copy[1024];
        size_t n = strlen(text);
        memcpy(copy, text, n + 1);
        for (int k = 0; k < 3; k++)
            copy[dr_rng_below(&rng, (uint32_t)n)] = (char)(1 + dr_rng_below(&rng, 255));
        r = score_as(copy, DR_STAGE_COLD, 1);
        assert_true(isfinite(r.total));
        assert_true(r.valid == (r.reason[0] == '\0'));
        assert_true(r.n_lines >= 0 && r.n_lines <= 64);
    }
}

static void test_long_answer(void **state) { // more lines than a result has room for
    (void)state;
    dr_buf text = {0};
    check_ok(dr_buf_text(&text, "a " ASK("x") LIST("1. A") "so. </think>" DR_TAG_ANSWER "\n"));
    for (int i = 0; i < 300; i++) check_ok(dr_buf_printf(&text, "%d. line %d\n", i + 1, i));
    check_ok(dr_buf_text(&text, DR_TAG_ANSWER_END));
    dr_reward_result r = score(text.data);
    assert_int_equal(r.n_lines, 64);
    assert_non_null(strstr(r.reason, "found 300"));
    dr_buf_reset(&text);
}

static void test_refusals(void **state) {
    (void)state;
    dr_completion c = {0};
    dr_reward_result r = {.n_lines = 55};
    dr_reward_settings settings = dr_reward_defaults(DR_STAGE_COLD);
    dr_reward_context *bare = NULL;
    check_ok(dr_completion_from_text("a" MORE("a") MORE("b"), strlen("a" MORE("a") MORE("b")), &c));
    check_error(dr_reward_score(context, &settings, &c, 25, NULL, 0, 0, &r), DR_ERR_RANGE, "target item 25");
    settings.k = 65;
    check_error(dr_reward_score(context, &settings, &c, 1, NULL, 0, 0, &r), DR_ERR_ARGUMENT, "k is 65");
    settings.k = 10;
    check_ok(dr_reward_context_create(&data, NULL, NULL, NULL, &bare));
    check_error(dr_reward_score(bare, &settings, &c, 1, NULL, 0, 0, &r), DR_ERR_UNSUPPORTED, "diversity");
    assert_int_equal(r.n_lines, 55);
    settings.weight[DR_REWARD_DIVERSITY] = 0;
    check_ok(dr_reward_score(bare, &settings, &c, 1, NULL, 0, 0, &r));
    check_near(r.total, -0.5);
    dr_reward_context_destroy(bare);
    dr_completion_reset(&c);
}

static void test_title_index(void **state) {
    (void)state;
    assert_int_equal(dr_reward_context_find(context, "  star WAR ii"), 2);
    assert_int_equal(dr_reward_context_find(context, "3. Star War II"), 2);
    assert_int_equal(dr_reward_context_find(context, "12. Zimmer"), 5);
    assert_int_equal(dr_reward_context_find(context, "Zimmer"), 0);
    assert_int_equal(dr_reward_context_find(context, ""), 0);
    dr_title_index *index = NULL;
    check_ok(dr_title_index_create(&data, &index));
    for (int32_t i = 1; i <= data.n_items; i++) {
        const char *title = dr_title_index_title(index, i);
        assert_int_equal(dr_title_index_find(index, title, strlen(title)), i);
    }
    dr_title_index_destroy(index);
}

// ---- the command ----

static int run_command(const char *dir, const char *flags, char **out_text) {
    char command[2048];
    snprintf(command, sizeof command, "%s reward --dataset %s/d.h5 --input %s/in.jsonl %s >%s/out 2>%s/err",
             DR_BINARY, dir, dir, flags, dir, dir);
    int status = system(command);
    *out_text = check_read_file(check_path(dir, "out"), NULL);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void check_has(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("\"%s\" is not in:\n%s", part, text);
}

#define JSON_GOOD                                                                                            \
    "He likes war. " ASK("war") "\\n\\n" DR_TAG_ITEMS "\\n1. Star War\\n" DR_TAG_ITEMS_END                   \
                                "\\n\\nso. </think>\\n" DR_TAG_ANSWER                                        \
                                "\\n1. Star War\\n2. Star War II\\n3. Blue Moon\\n4. Red Sun\\n5. a\\n6. "   \
                                "b\\n7. c\\n8. d\\n9. e\\n"                                                  \
                                "10. f\\n" DR_TAG_ANSWER_END

static void test_command(void **state) {
    (void)state;
    if (access(DR_BINARY, X_OK) != 0) skip();
    const char *dir = check_scratch_dir();
    char *out = NULL;
    check_ok(dr_dataset_save(&data, check_path(dir, "d.h5")));
    const char *good = "{\"user\": \"100\", \"completion\": \"" JSON_GOOD "\", \"target\": \"star war\"}\n"
                       "\n"
                       "{\"user\": 101, \"completion\": \"x\xff\"}\n"
                       "{\"target\": \"i2\", \"completion\": \"" JSON_GOOD "\"}\n";
    check_write_file(check_path(dir, "in.jsonl"), good, strlen(good));
    assert_int_equal(run_command(dir, "--stage rec", &out), 0);
    check_has(out, "{\"line\":1,\"user\":\"100\",\"target\":\"Star "
                   "War\",\"format\":0.0,\"invocation\":0.0,\"diversity\":0.0,"
                   "\"hit\":1.0,\"rank\":2.0,");
    check_has(out, "\"valid\":true,\"reason\":\"\",\"retrievals\":1,\"lines\":10,\"hit_position\":0,"
                   "\"items\":[1,2,3,4,0,0,");
    check_has(out, "{\"line\":3,\"user\":101,");
    check_has(out, "\"total\":-1.0,\"valid\":false,\"reason\":\"no retrieval\"");
    check_has(out, "{\"line\":4,\"target\":\"Star War II\"");
    check_has(out, "\"hit_position\":1");
    free(out);
    char *err = check_read_file(check_path(dir, "err"), NULL);
    check_has(err, "in.jsonl:3: bytes that are no UTF-8");
    check_has(err, "3 completions: 66.7 % valid");
    free(err);
    assert_int_equal(run_command(dir, "--stage cold --set stage1.weight_format=7", &out), 0);
    check_has(out, "\"total\":-7.0");
    free(out);
    assert_int_equal(run_command(dir, "--set protocol.k=9", &out), 0);
    check_has(out, "\"reason\":\"expected 9 answer lines, found 10\"");
    free(out);
    const char *bad =
        "{\"user\": \"nobody\", \"completion\": \"x\"}\n{\"user\": \"100\"}\n{\"user\": \"100\", \n[1]\n"
        "{\"user\": 1.5, \"completion\": \"x\"}\n{\"target\": \"Nowhere\", \"completion\": \"x\"}\n";
    check_write_file(check_path(dir, "in.jsonl"), bad, strlen(bad));
    assert_int_equal(run_command(dir, "", &out), 1);
    check_has(out, "{\"line\":1,\"error\":\"user nobody is not in the data set\"}");
    check_has(out, "{\"line\":2,\"error\":\"\\\"completion\\\": expected text\"}");
    check_has(out, "{\"line\":3,\"error\":\"column ");
    check_has(out, "{\"line\":4,\"error\":\"expected an object");
    check_has(out, "{\"line\":5,\"error\":\"\\\"user\\\": expected");
    check_has(out, "{\"line\":6,\"error\":\"\\\"target\\\": no item");
    free(out);
    err = check_read_file(check_path(dir, "err"), NULL);
    check_has(err, "in.jsonl:3: column ");
    check_has(err, "6 of 6 lines could not be scored");
    free(err);
    const char *names[] = {"d.h5", "in.jsonl", "out", "err"};
    for (int i = 0; i < 4; i++) unlink(check_path(dir, names[i]));
    rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_valid),
        cmocka_unit_test(test_hit_and_rank),
        cmocka_unit_test(test_title_inside_another),
        cmocka_unit_test(test_normalised_titles),
        cmocka_unit_test(test_duplicates),
        cmocka_unit_test(test_similarity),
        cmocka_unit_test(test_texts_of_items),
        cmocka_unit_test(test_similarity_with_trm),
        cmocka_unit_test(test_invocation),
        cmocka_unit_test(test_diversity),
        cmocka_unit_test(test_format_of_preferences_and_lists),
        cmocka_unit_test(test_format_of_thought),
        cmocka_unit_test(test_format_of_answer),
        cmocka_unit_test(test_tag_inside_answer),
        cmocka_unit_test(test_words_and_scripts),
        cmocka_unit_test(test_broken_bytes),
        cmocka_unit_test(test_long_answer),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_title_index),
        cmocka_unit_test(test_command),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
