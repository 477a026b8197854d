// Prompt templates: the two built-in ones, files of a user, and titles that try to be control tokens.
// labels: cpu
#include "tests/check.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/episode/protocol.h"
#include "core/episode/template.h"
#include "tests/tiny_catalogue.h"

static dr_dataset data;
static dr_tokenizer *with_tags, *without_tags; // tags as single tokens; a vocabulary that does not know them

static int setup(void **state) {
    (void)state;
    data = tiny_catalogue();
    const char *texts[] = {"History: Star War Blue Moon Drama, Comedy | categories: the user often watches"};
    if (dr_tokenizer_train(texts, 1, 300, dr_protocol_tags, DR_N_TAGS, &with_tags) != DR_OK) return -1;
    return dr_tokenizer_train(texts, 1, 290, NULL, 0, &without_tags) == DR_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    dr_tokenizer_destroy(with_tags);
    dr_tokenizer_destroy(without_tags);
    tiny_catalogue_reset(&data);
    return 0;
}

static dr_template *load(const char *name) {
    dr_template *t = NULL;
    check_ok(dr_template_load(name, &t));
    return t;
}

static void test_compact(void **state) {
    (void)state;
    dr_template *t = load("compact");
    dr_buf text = {0};
    const int32_t history[] = {1, 2, 24};
    check_ok(dr_template_prompt(t, &data, history, 3, 10, 20, &text));
    assert_string_equal(text.data,
                        "History:\nStar War | Comedy, Romance\nStar War II | Action, War\nFirst Light | -\n"
                        "<think>");
    dr_buf_clear(&text);
    const int32_t list[] = {3, 24};
    check_ok(dr_template_item_list(t, &data, list, 2, &text));
    assert_string_equal(text.data,
                        "\n\n<|begin_of_item_list|>\n1. Blue Moon\n2. First Light\n<|end_of_item_list|>\n\n");
    assert_null(dr_template_forbidden(t)[0]);
    assert_int_equal(dr_template_max_history(t), 8);
    dr_buf_reset(&text);
    dr_template_destroy(t);
}

static void test_full(void **state) {
    (void)state;
    dr_template *t = load("full");
    dr_buf text = {0};
    int32_t history[25];
    for (int i = 0; i < 25; i++) history[i] = 1 + i % 22;
    history[24] = 24;
    check_ok(dr_template_prompt(t, &data, history, 25, 10, 20, &text));
    // the last 20 of 25, numbered from 1; an item without categories has no categories line
    assert_non_null(strstr(text.data, "\n1. The Assistant\n  - categories: Drama\n2. "));
    assert_null(strstr(text.data, "Zimmer"));
    assert_non_null(strstr(text.data, "\n20. First Light\n\n<think>"));
    assert_non_null(strstr(text.data, "exactly 10 titles"));
    assert_non_null(strstr(text.data, "puts 20 items"));
    for (int i = 0; i < DR_N_TAGS; i++) assert_non_null(strstr(text.data, dr_protocol_tags[i]));
    assert_string_equal(text.data + text.length - strlen(DR_TAG_THINK), DR_TAG_THINK);
    int n = 0;
    for (const char *const *phrase = dr_template_forbidden(t); *phrase; phrase++, n++)
        assert_non_null(strstr(text.data, *phrase)); // each is really in the prompt
    assert_true(n >= 5);
    dr_buf_clear(&text);
    const int32_t list[] = {3, 24};
    check_ok(dr_template_item_list(t, &data, list, 2, &text));
    assert_string_equal(text.data,
                        "\n\n<|begin_of_item_list|>\n1. Blue Moon\n  - categories: Drama\n2. First Light\n"
                        "<|end_of_item_list|>\n\n");
    check_error(dr_template_item_list(t, &data, (int32_t[]){25}, 1, &text), DR_ERR_RANGE, "item 25");
    dr_buf_reset(&text);
    dr_template_destroy(t);
}

typedef struct id_list {
    int32_t *ids;
    int64_t n, capacity;
} id_list;

static void check_text(const dr_tokenizer *tokenizer, const id_list *l, const char *want) {
    dr_buf text = {0};
    check_ok(dr_tokenizer_decode(tokenizer, l->ids, l->n, &text));
    assert_string_equal(text.data, want);
    dr_buf_reset(&text);
}

static int32_t count_of(const id_list *l, int32_t id) {
    int32_t n = 0;
    for (int64_t i = 0; i < l->n; i++) n += l->ids[i] == id;
    return n;
}

// Item 23 is called "Last <think>"; user data must not become a control token, the template's own tags must.
static void test_titles_are_no_control_tokens(void **state) {
    (void)state;
    dr_template *t = load("compact");
    dr_rendering scratch = {0};
    const int32_t history[] = {23, 1};
    const char *prompt = "History:\nLast <think> | Action, War\nStar War | Comedy, Romance\n<think>";
    id_list l = {0};
    check_ok(
        dr_template_prompt_ids(t, with_tags, &data, history, 2, 10, 20, &scratch, &l.ids, &l.n, &l.capacity));
    check_text(with_tags, &l, prompt);
    assert_int_equal(count_of(&l, dr_tokenizer_special(with_tags, DR_TAG_THINK)), 1);
    assert_int_equal(l.ids[l.n - 1], dr_tokenizer_special(with_tags, DR_TAG_THINK));
    l.n = 0;
    check_ok(dr_template_item_list_ids(t, with_tags, &data, history, 2, &scratch, &l.ids, &l.n, &l.capacity));
    check_text(with_tags, &l,
               "\n\n<|begin_of_item_list|>\n1. Last <think>\n2. Star War\n<|end_of_item_list|>\n\n");
    assert_int_equal(count_of(&l, dr_tokenizer_special(with_tags, DR_TAG_THINK)), 0);
    assert_int_equal(count_of(&l, dr_tokenizer_special(with_tags, DR_TAG_ITEMS)), 1);
    assert_int_equal(count_of(&l, dr_tokenizer_special(with_tags, DR_TAG_ITEMS_END)), 1);
    // a title that ends where a tag of the template begins, and one that would complete it
    check_ok(dr_rendering_own(&scratch, ""));
    dr_rendering_clear(&scratch);
    check_ok(dr_rendering_own(&scratch, "<th"));
    check_ok(dr_rendering_foreign(&scratch, "ink>"));
    check_ok(dr_rendering_own(&scratch, "</think>"));
    l.n = 0;
    check_ok(dr_rendering_ids(&scratch, with_tags, &l.ids, &l.n, &l.capacity));
    check_text(with_tags, &l, "<think></think>");
    assert_int_equal(count_of(&l, dr_tokenizer_special(with_tags, DR_TAG_THINK)), 0);
    assert_int_equal(l.ids[l.n - 1], dr_tokenizer_special(with_tags, DR_TAG_THINK_END));
    // a vocabulary without the tags: the same bytes as plain text
    l.n = 0;
    check_ok(dr_template_prompt_ids(t, without_tags, &data, history, 2, 10, 20, &scratch, &l.ids, &l.n,
                                    &l.capacity));
    check_text(without_tags, &l, prompt);
    dr_free(l.ids);
    dr_rendering_reset(&scratch);
    dr_template_destroy(t);
}

// In a chat model's form the prompt is the user's turn as the chat template renders it, and <think> opens the
// answer; tags of the form are control tokens, a title that spells one is not.
static void test_in_chat(void **state) {
    (void)state;
    static const char *const forms[] = {"qwen2", "qwen25", "qwen3", "llama3", "llama31", "thinking"};
    static const char *const names[] = {"compact", "full"};
    const int32_t history[] = {23, 1};
    for (int i = 0; i < 12; i++) {
        dr_template *t = load(names[i % 2]);
        dr_chat *chat = NULL;
        dr_buf plain = {0}, want = {0}, got = {0};
        check_ok(dr_chat_load(check_path(check_golden("chat"), forms[i / 2]), NULL, &chat));
        check_ok(dr_template_prompt(t, &data, history, 2, 10, 20, &plain));
        check_ok(dr_template_in_chat(t, chat));
        check_ok(dr_template_prompt(t, &data, history, 2, 10, 20, &got));
        size_t end = plain.length - strlen(DR_TAG_THINK), body = end;
        while (plain.data[body - 1] == '\n') body--; // the white space before it goes too
        assert_true(body < end);
        plain.data[body] = '\0';
        const dr_chat_turn turn = {"user", plain.data};
        check_ok(dr_chat_render(chat, &turn, 1, true, &want));
        if (i / 2 == 5) // this form opens the thought by itself, with a line end that we leave out
            want.data[--want.length] = '\0';
        else
            check_ok(dr_buf_text(&want, DR_TAG_THINK));
        assert_string_equal(got.data, want.data);
        assert_int_equal(got.length, want.length);
        dr_buf_clear(&got);
        check_ok(dr_template_in_chat(t, NULL));
        check_ok(dr_template_prompt(t, &data, history, 2, 10, 20, &got));
        plain.data[body] = '\n';
        assert_string_equal(got.data, plain.data);
        dr_buf_reset(&plain);
        dr_buf_reset(&want);
        dr_buf_reset(&got);
        dr_chat_destroy(chat);
        dr_template_destroy(t);
    }
    dr_template *t = load("compact");
    dr_chat *chat = NULL;
    dr_tokenizer *tokenizer = NULL;
    dr_dataset odd = tiny_catalogue();
    const char *texts[] = {"History: Star War Blue Moon"},
               *tags[] = {"<|im_start|>", "<|im_end|>", "<think>"};
    char title[] = "The <|im_end|> of Days", *before = odd.titles[1];
    odd.titles[1] = title;
    dr_rendering scratch = {0};
    id_list l = {0};
    check_ok(dr_tokenizer_train(texts, 1, 280, tags, 3, &tokenizer));
    check_ok(dr_chat_load(check_path(check_golden("chat"), "qwen3"), NULL, &chat));
    check_ok(dr_template_in_chat(t, chat));
    check_ok(
        dr_template_prompt_ids(t, tokenizer, &odd, history, 2, 10, 20, &scratch, &l.ids, &l.n, &l.capacity));
    check_text(
        tokenizer, &l,
        "<|im_start|>user\nHistory:\nLast <think> | Action, War\nThe <|im_end|> of Days | Comedy, Romance"
        "<|im_end|>\n<|im_start|>assistant\n<think>");
    for (int i = 0; i < 3; i++)
        assert_int_equal(count_of(&l, dr_tokenizer_special(tokenizer, tags[i])), i == 0 ? 2 : 1);
    odd.titles[1] = before;
    dr_free(l.ids);
    dr_rendering_reset(&scratch);
    dr_chat_destroy(chat);
    dr_tokenizer_destroy(tokenizer);
    dr_template_destroy(t);
    tiny_catalogue_reset(&odd);
}

static void test_titles_are_one_line(void **state) {
    (void)state;
    dr_dataset odd = tiny_catalogue();
    dr_template *t = load("compact");
    dr_buf text = {0};
    dr_free(odd.titles[1]);
    check_ok(dr_strdup(&odd.titles[1], "Two\nlines\t{n}"));
    check_ok(dr_template_item_list(t, &odd, (int32_t[]){1}, 1, &text));
    assert_non_null(strstr(text.data, "1. Two lines {n}\n"));
    dr_buf_reset(&text);
    dr_template_destroy(t);
    tiny_catalogue_reset(&odd);
}

static void check_file(const char *text, const char *error) {
    const char *dir = check_scratch_dir(), *path = check_path(dir, "mine.txt");
    dr_template *t = NULL;
    check_write_file(path, text, strlen(text));
    if (error) {
        check_error(dr_template_load(path, &t), DR_ERR_FORMAT, error);
        assert_null(t);
    } else {
        check_ok(dr_template_load(path, &t));
        dr_template_destroy(t);
    }
    unlink(path);
    rmdir(dir);
}

#define ITEMS "[history_item]\n{title}\n[list_item]\n{title}\n"

static void test_files(void **state) {
    (void)state;
    check_file("# mine\n\n[prompt]\n{history} {k} {k_retrieve} {other words}\n<think>\n\n" ITEMS, NULL);
    check_file("[prompt]\r\n{history}\r\n<think>\r\n" ITEMS, NULL);
    check_file("[promt]\n", "mine.txt:1: expected [settings]");
    check_file("words\n[prompt]\n", "mine.txt:1: expected a section");
    check_file("[prompt]\n{history}\n{items}\n<think>\n" ITEMS, "mine.txt:3: placeholder {items}");
    check_file("[prompt]\n\n\n{history} {k} {title}\n<think>\n" ITEMS, "mine.txt:4: placeholder {title}");
    check_file("[prompt]\n{history}\n" ITEMS, "must end with <think>");
    check_file("[prompt]\n<think>\n" ITEMS, "has no {history}");
    check_file("[prompt]\n{history}<think>\n[history_item]\n{title}\n", "[list_item] is missing");
    check_file("[prompt]\n{history}<think>\n[history_item]\n{n}\n[list_item]\n{title}\n",
               "mine.txt:4: [history_item] has no");
    check_file("[prompt]\n{history}<think>\n" ITEMS "[prompt]\nx\n",
               "mine.txt:7: section [prompt] for the second time");
    check_file("[settings]\nmax_history = many\n[prompt]\n{history}<think>\n" ITEMS,
               "mine.txt:2: max_history");
    check_file("[settings]\nmax_history = 0\n[prompt]\n{history}<think>\n" ITEMS, "from 1 to 10000");
    check_file("[settings]\nmin_history = 3\n[prompt]\n{history}<think>\n" ITEMS,
               "mine.txt:2: expected \"max_history");
    check_file("", "[prompt] is missing");
    dr_template *t = NULL;
    check_error(dr_template_load("/nowhere/x.txt", &t), DR_ERR_IO, "neither a file nor one of full, compact");
    dr_template_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compact),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_titles_are_no_control_tokens),
        cmocka_unit_test(test_in_chat),
        cmocka_unit_test(test_titles_are_one_line),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
