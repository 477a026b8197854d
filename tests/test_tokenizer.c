// The tokenizer: ids equal those of the `tokenizers` library, bytes come back exactly, bad files are named.
// labels: cpu
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/rng.h"
#include "core/text/tokenizer.h"
#include "tests/check.h"

static const char *const corpus[] = {
    "1. The Silent Harbour (1987)\n2. The Silent Forest (1990)\n3. Harbour Lights (1987)",
    "Drama, Comedy, Science Fiction", "The user often watches Drama and Comedy.",
    "The Silent Forest (1990)\n10. Forest Lights", "caf\xC3\xA9 caf\xC3\xA9 na\xC3\xAFve"};
static const char *const specials[] = {"<think>", "</think>", "<|endoftext|>"};

static dr_tokenizer *trained(void) {
    dr_tokenizer *t = NULL;
    check_ok(dr_tokenizer_train(corpus, 5, 320, specials, 3, &t));
    return t;
}

static int64_t encode(const dr_tokenizer *t, const char *text, size_t length, bool parse, int32_t **ids) {
    int64_t n = 0, capacity = 0;
    *ids = NULL;
    check_ok(dr_tokenizer_encode(t, text, length, parse, ids, &n, &capacity));
    return n;
}

static void check_round_trip(const dr_tokenizer *t, const char *text, size_t length, bool parse) {
    int32_t *ids;
    int64_t n = encode(t, text, length, parse, &ids);
    dr_buf back = {0};
    check_ok(dr_tokenizer_decode(t, ids, n, &back));
    assert_int_equal(back.length, length);
    assert_memory_equal(back.data, text, length);
    dr_buf_reset(&back);
    dr_free(ids);
}

static void test_random_bytes_come_back(void **state) {
    (void)state;
    dr_tokenizer *t = trained();
    dr_rng rng = dr_rng_make(4, 4);
    for (int trial = 0; trial < 300; trial++) {
        char text[64];
        size_t n = dr_rng_below(&rng, 64);
        for (size_t i = 0; i < n; i++)
            text[i] =
                trial % 2 ? (char)dr_rng_below(&rng, 256) : "aT (1.\n\xC3\xA9 <|>0"[dr_rng_below(&rng, 15)];
        check_round_trip(t, text, n, trial % 3 == 0);
    }
    check_round_trip(t, "", 0, true);
    check_round_trip(t, "a\0b", 3, true);
    dr_tokenizer_destroy(t);
}

static void test_specials_only_when_asked(void **state) {
    (void)state;
    dr_tokenizer *t = trained();
    int32_t *ids;
    int32_t think = dr_tokenizer_special(t, "<think>");
    assert_int_equal(think, dr_tokenizer_size(t) - 3);
    assert_int_equal(dr_tokenizer_special(t, "<thin>"), -1);
    int64_t n = encode(t, "<think></think>", 15, true, &ids);
    assert_int_equal(n, 2);
    assert_int_equal(ids[0], think);
    assert_int_equal(ids[1], think + 1);
    dr_free(ids);
    n = encode(t, "<think>", 7, false, &ids);
    assert_true(n > 1);
    for (int64_t i = 0; i < n; i++) assert_true(ids[i] < think);
    dr_free(ids);
    dr_tokenizer_destroy(t);
}

static void test_training_is_deterministic_and_saved(void **state) {
    (void)state;
    dr_tokenizer *a = trained(), *b = trained(), *c = NULL;
    const char *da = check_scratch_dir(), *db = check_scratch_dir();
    check_ok(dr_tokenizer_save(a, da));
    check_ok(dr_tokenizer_save(b, db));
    size_t na, nb;
    char *ta = check_read_file(check_path(da, "tokenizer.json"), &na);
    char *tb = check_read_file(check_path(db, "tokenizer.json"), &nb);
    assert_int_equal(na, nb);
    assert_memory_equal(ta, tb, na);
    check_ok(dr_tokenizer_load(da, &c));
    for (int i = 0; i < 5; i++) {
        int32_t *x, *y;
        int64_t n = encode(a, corpus[i], strlen(corpus[i]), true, &x),
                m = encode(c, corpus[i], strlen(corpus[i]), true, &y);
        assert_int_equal(n, m);
        assert_memory_equal(x, y, (size_t)n * sizeof *x);
        dr_free(x);
        dr_free(y);
    }
    free(ta);
    free(tb);
    dr_tokenizer_destroy(a);
    dr_tokenizer_destroy(b);
    dr_tokenizer_destroy(c);
}

// golden/tokenizer_NAME: tokenizer.json and cases.json ([{"text": …, "ids": […]}, …]) written by
// make_tokenizer.py.
static void check_golden(const char *name) {
    const char *dir = check_path(DR_GOLDEN_DIR, name);
    dr_tokenizer *t = NULL;
    check_ok(dr_tokenizer_load(dir, &t));
    json_t *cases = NULL, *entry;
    check_ok(dr_json_load(check_path(dir, "cases.json"), &cases));
    size_t i;
    assert_true(json_array_size(cases) > 100);
    json_array_foreach(cases, i, entry) {
        json_t *text = json_object_get(entry, "text"), *want = json_object_get(entry, "ids");
        int32_t *ids;
        int64_t n = encode(t, json_string_value(text), json_string_length(text), true, &ids);
        bool same = n == (int64_t)json_array_size(want);
        for (int64_t k = 0; same && k < n; k++)
            same = ids[k] == json_integer_value(json_array_get(want, (size_t)k));
        if (!same)
            fail_msg("%s: case %zu, \"%s\": other ids than the reference", name, i, json_string_value(text));
        dr_free(ids);
    }
    json_decref(cases);
    dr_tokenizer_destroy(t);
}

static void test_golden_qwen2(void **state) {
    (void)state;
    check_golden("tokenizer_qwen2");
}

static void test_golden_llama3(void **state) {
    (void)state;
    check_golden("tokenizer_llama3");
}

static void check_refused(const char *text, const char *message) {
    const char *dir = check_scratch_dir();
    dr_tokenizer *t = NULL;
    check_write_file(check_path(dir, "tokenizer.json"), text, strlen(text));
    dr_status status = dr_tokenizer_load(dir, &t);
    assert_int_not_equal(status, DR_OK);
    check_error(status, status, message);
    assert_null(t);
}

#define SPLITTER "\"pre_tokenizer\": {\"type\": \"ByteLevel\"}, "
static void test_bad_files(void **state) {
    (void)state;
    dr_tokenizer *t = NULL;
    check_error(dr_tokenizer_load("/nonexistent", &t), DR_ERR_IO, "/nonexistent/tokenizer.json");
    check_refused("{", "tokenizer.json");
    check_refused("{\"model\": {\"type\": \"WordPiece\"}}", "WordPiece");
    check_refused("{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}}", "no pre_tokenizer");
    check_refused("{\"pre_tokenizer\": {\"type\": \"Metaspace\"}, \"model\": {\"type\": \"BPE\"}}",
                  "Metaspace");
    check_refused("{\"normalizer\": {\"type\": \"Lowercase\"}, \"model\": {\"type\": \"BPE\"}}", "Lowercase");
    check_refused("{" SPLITTER "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": \"x\"}, \"merges\": []}}",
                  "\"a\"");
    check_refused("{" SPLITTER
                  "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []}}",
                  "id 0 stands for two tokens");
    check_refused("{" SPLITTER
                  "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"a b\"]}}",
                  "merges[0]");
    check_refused("{" SPLITTER "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": []}}",
                  "byte 0x");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_bytes_come_back),
        cmocka_unit_test(test_specials_only_when_asked),
        cmocka_unit_test(test_training_is_deterministic_and_saved),
        cmocka_unit_test(test_golden_qwen2),
        cmocka_unit_test(test_golden_llama3),
        cmocka_unit_test(test_bad_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
