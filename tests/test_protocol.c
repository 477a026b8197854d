// Reading completions: segments from bare text, preferences, answer lines; any bytes at all.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/rng.h"
#include "core/episode/protocol.h"

#define ASK(text) DR_TAG_PREFERENCE text DR_TAG_PREFERENCE_END
#define LIST(text) "\n\n" DR_TAG_ITEMS "\n" text "\n" DR_TAG_ITEMS_END "\n\n"

static dr_completion parse(const char *text) {
    dr_completion c = {0};
    check_ok(dr_completion_from_text(text, strlen(text), &c));
    return c;
}

static void check_segment(const dr_completion *c, int32_t i, const char *text, bool from_tool) {
    assert_true(i < c->n_segments);
    assert_int_equal(c->segments[i].from_tool, from_tool);
    assert_int_equal(c->segments[i].length, strlen(text));
    assert_memory_equal(c->segments[i].text, text, strlen(text));
}

static void test_tags(void **state) {
    (void)state;
    const char *text = "a <think> < <|begin_of_preference|></think></recommendation_list";
    size_t at = 0, begin = 0;
    assert_int_equal(dr_tag_next(text, strlen(text), &at, &begin), DR_TAG_AT_THINK);
    assert_int_equal(begin, 2);
    assert_int_equal(at, 9);
    assert_int_equal(dr_tag_next(text, strlen(text), &at, &begin), DR_TAG_AT_PREFERENCE);
    assert_int_equal(dr_tag_next(text, strlen(text), &at, &begin), DR_TAG_AT_THINK_END);
    assert_int_equal(dr_tag_next(text, strlen(text), &at, &begin), DR_TAG_NONE);
    assert_int_equal(at, strlen(text));
    for (int i = 0; i < DR_N_TAGS; i++) { // the enum and the table agree
        at = 0;
        assert_int_equal(dr_tag_next(dr_protocol_tags[i], strlen(dr_protocol_tags[i]), &at, NULL), i);
    }
}

static void test_segments(void **state) {
    (void)state;
    dr_completion c = parse("so " ASK("x") LIST("1. A") "then " ASK("y") LIST("1. B") "\nend");
    assert_int_equal(c.n_segments, 5);
    check_segment(&c, 0, "so " ASK("x"), false);
    check_segment(&c, 1, LIST("1. A"), true);
    check_segment(&c, 2, "then " ASK("y"), false);
    check_segment(&c, 3, LIST("1. B"), true);
    check_segment(&c, 4, "\nend", false); // at most two newlines are the tool's
    dr_completion_reset(&c);
    c = parse("");
    assert_int_equal(c.n_segments, 0);
    dr_completion_reset(&c);
    dr_completion_reset(NULL);
}

// A list that no preference asked for, that is not closed, or that holds another's begin, is the policy's
// writing.
static void test_lists_of_the_policy(void **state) {
    (void)state;
    const char *const texts[] = {
        "so " DR_TAG_ITEMS "\n1. A\n" DR_TAG_ITEMS_END " end",
        ASK("x") " and " LIST("1. A"),
        ASK("x") "\n\n" DR_TAG_ITEMS "\n1. A\n",
        ASK("x") "\n\n" DR_TAG_ITEMS "\n1. A\n" DR_TAG_ITEMS "\n" DR_TAG_ITEMS_END,
        ASK("x"),
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        dr_completion c = parse(texts[i]);
        assert_int_equal(c.n_segments, 1);
        assert_false(c.segments[0].from_tool);
        assert_int_equal(c.segments[0].length, strlen(texts[i]));
        dr_completion_reset(&c);
    }
    dr_completion c = parse(ASK("x") LIST("1. A") LIST("1. B")); // the second one was not asked for
    assert_int_equal(c.n_segments, 3);
    check_segment(&c, 2, LIST("1. B"), false);
    dr_completion_reset(&c);
}

static void check_preference(const char *turn, const char *want) {
    dr_buf out = {0};
    check_ok(dr_buf_append(&out, "", 0));
    check_ok(dr_preference_extract(turn, strlen(turn), &out));
    assert_string_equal(out.data, want);
    dr_buf_reset(&out);
}

static void test_preference(void **state) {
    (void)state;
    check_preference("thought " ASK("slow drama"), "slow drama");
    check_preference(ASK("  \"slow\"\t\n  \"drama\"  "), "slow drama");
    check_preference(ASK("a \" b"), "a b"); // a quote between spaces leaves one space
    check_preference(ASK("ab\"c"), "abc");
    check_preference(DR_TAG_PREFERENCE "first " ASK("second"), "second"); // after the last begin tag
    check_preference("x" DR_TAG_PREFERENCE_END, "");
    check_preference(ASK(""), "");
    check_preference(ASK(" \" \" \n"), "");
    check_preference("nothing", "");
    check_preference(DR_TAG_PREFERENCE "open end", "open end");
    check_preference(ASK("a") " tail", "a");
    dr_buf out = {0}; // a NUL byte cannot survive in a C string: it reads as white space
    check_ok(dr_preference_extract(DR_TAG_PREFERENCE "a\0b" DR_TAG_PREFERENCE_END,
                                   strlen(DR_TAG_PREFERENCE) + 3 + strlen(DR_TAG_PREFERENCE_END), &out));
    assert_string_equal(out.data, "a b");
    dr_buf_reset(&out);
}

static void check_line(const dr_answer_line *line, const char *want) {
    assert_int_equal(line->length, strlen(want));
    assert_memory_equal(line->text, want, strlen(want));
}

static void test_answer(void **state) {
    (void)state;
    dr_answer_line lines[8];
    int32_t n = -1;
    dr_completion c =
        parse("x</think>\n<recommendation_list>\n1. A\n\n  2.  B C \r\n3.14 Pi\n4.\nE\n12. 7. F\n"
              "</recommendation_list>\n");
    assert_true(dr_answer_find(&c, lines, 8, &n));
    assert_int_equal(n, 6);
    check_line(&lines[0], "A");
    check_line(&lines[1], "B C");
    check_line(&lines[2], "3.14 Pi"); // a number without space behind the dot belongs to the title
    check_line(&lines[3], "");
    check_line(&lines[4], "E");
    check_line(&lines[5], "7. F");                 // only one number goes
    assert_true(dr_answer_find(&c, lines, 2, &n)); // counts beyond the capacity
    assert_int_equal(n, 6);
    dr_completion_reset(&c);

    c = parse(
        "<recommendation_list>\nA\n</recommendation_list><recommendation_list>\nB\n</recommendation_list>");
    assert_true(dr_answer_find(&c, lines, 8, &n)); // the last block
    check_line(&lines[0], "B");
    dr_completion_reset(&c);
    const char *const none[] = {"", "<recommendation_list>\nA\n", "A\n</recommendation_list>",
                                "</recommendation_list>\nA\n<recommendation_list>",
                                ASK("x") LIST("<recommendation_list>\nA\n</recommendation_list>") "end"};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        n = 77;
        c = parse(none[i]);
        assert_false(dr_answer_find(&c, lines, 8, &n));
        assert_int_equal(n, 77);
        dr_completion_reset(&c);
    }
}

// Pieces of tags, quotes and bytes that are no text, in random order: segments tile the text, nothing
// crashes.
static void test_any_bytes(void **state) {
    (void)state;
    static const char *const pieces[] = {
        "<", "|>",       "\n",     "1. ", "\"",   "\xff",    "\xe4\xb8",
        "a", "</think>", "<think", " ",   "\xc3", "end_of_", "<|end_of_preference|"};
    enum { N_PIECES = sizeof pieces / sizeof pieces[0] };
    dr_rng rng = dr_rng_make(3, 1);
    for (int round = 0; round < 4000; round++) {
        dr_buf text = {0};
        for (uint32_t k = dr_rng_below(&rng, 24); k > 0; k--) {
            uint32_t pick = dr_rng_below(&rng, N_PIECES + DR_N_TAGS);
            check_ok(dr_buf_text(&text, pick < N_PIECES ? pieces[pick] : dr_protocol_tags[pick - N_PIECES]));
        }
        dr_completion c = {0};
        check_ok(dr_completion_from_text(text.data, text.length, &c));
        size_t total = 0;
        for (int32_t i = 0; i < c.n_segments; i++) {
            assert_ptr_equal(c.segments[i].text, c.text.data + total);
            total += c.segments[i].length;
        }
        assert_int_equal(total, text.length);
        dr_answer_line lines[4];
        int32_t n = 0;
        dr_answer_find(&c, lines, 4, &n);
        dr_buf preference = {0};
        if (text.data) check_ok(dr_preference_extract(text.data, text.length, &preference));
        dr_buf_reset(&preference);
        dr_buf_reset(&text);
        dr_completion_reset(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tags),
        cmocka_unit_test(test_segments),
        cmocka_unit_test(test_lists_of_the_policy),
        cmocka_unit_test(test_preference),
        cmocka_unit_test(test_answer),
        cmocka_unit_test(test_any_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
