// The tokenizer: ids equal those of the `tokenizers` library, bytes come back exactly, bad files are named.
// labels: cpu
#include <jansson.h>
#include <stdio.h>
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
static void check_family(const char *name) {
    const char *dir = check_golden(name);
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
    check_family("tokenizer_qwen2");
}

static void test_golden_llama3(void **state) {
    (void)state;
    check_family("tokenizer_llama3");
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
#define MODEL "\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}}"
#define SPLIT(regex)                                                                                         \
    "{\"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": "        \
    "\"" regex "\"}}, " MODEL
static void test_bad_files(void **state) {
    (void)state;
    dr_tokenizer *t = NULL;
    check_error(dr_tokenizer_load("/nonexistent", &t), DR_ERR_IO, "/nonexistent/tokenizer.json");
    check_refused("{", "tokenizer.json");
    check_refused("{\"model\": {\"type\": \"WordLevel\"}}", "WordLevel");
    check_refused("{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}}", "no pre_tokenizer");
    check_refused("{\"pre_tokenizer\": {\"type\": \"Metaspace\"}, \"model\": {\"type\": \"BPE\"}}",
                  "Metaspace");
    check_refused("{\"normalizer\": {\"type\": \"Precompiled\"}, \"model\": {\"type\": \"BPE\"}}",
                  "Precompiled");
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

// Well formed, but not done here: named.
static void test_unsupported_parts(void **state) {
    (void)state;
    check_refused("{\"model\": {\"type\": \"Unigram\"}}", "Unigram");
    check_refused("{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true}}", "byte_fallback");
    check_refused("{\"model\": {\"type\": \"BPE\", \"dropout\": 0.1}}", "dropout 0.1");
    check_refused("{\"model\": {\"type\": \"BPE\", \"end_of_word_suffix\": \"</w>\"}}",
                  "end_of_word_suffix \"</w>\"");
    check_refused(
        "{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}, {\"type\": "
        "\"NFKC\"}]}, " SPLITTER MODEL,
        "NFKC");
    check_refused(
        "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\"}, "
        "{\"type\": \"Digits\"}]}, " MODEL,
        "\"Digits\" behind ByteLevel");
    check_refused("{" SPLITTER "\"decoder\": {\"type\": \"Metaspace\"}, " MODEL, "decoder \"Metaspace\"");
    check_refused(SPLIT("a"), "no pre_tokenizer ByteLevel");
    check_refused(SPLIT("[a[b]]"), "a class inside a class");
    check_refused(SPLIT("a{2}+"), "counted repeat");
    check_refused(SPLIT("(a"), "character 2");
    check_refused(SPLIT("(?P<x>a)"), "this kind of group");
    check_refused(SPLIT("\\\\bx"), "byte 0: this escape");
}

// What was loaded is saved as it was, with what lies beside it.
static void test_loaded_is_saved_as_it_was(void **state) {
    (void)state;
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};
    const char *from = check_scratch_dir(), *to = check_scratch_dir();
    size_t n, m;
    char *text = check_read_file(check_path(check_golden("tokenizer_qwen2"), names[0]), &n);
    dr_tokenizer *t = NULL;
    check_write_file(check_path(from, names[0]), text, n);
    free(text);
    check_write_file(check_path(from, names[1]), "{ }", 3);
    check_write_file(check_path(from, names[2]), "{{ x }}", 7);
    check_ok(dr_tokenizer_load(from, &t));
    check_ok(dr_tokenizer_save(t, to));
    for (int k = 0; k < 3; k++) {
        char *a = check_read_file(check_path(from, names[k]), &n),
             *b = check_read_file(check_path(to, names[k]), &m);
        assert_int_equal(n, m);
        assert_memory_equal(a, b, n);
        free(a);
        free(b);
    }
    dr_tokenizer_destroy(t);
}

// The file with another post-processor, and the ids around a text that it gives.
static void check_frame(const char *post_processor, const int32_t *want, int32_t n_before, int32_t n_after) {
    json_t *root = NULL;
    dr_tokenizer *t = NULL;
    const int32_t *before, *after;
    int32_t n, m;
    check_ok(dr_json_load(check_path(check_golden("tokenizer_qwen2"), "tokenizer.json"), &root));
    json_object_set_new(root, "post_processor", json_loads(post_processor, 0, NULL));
    char *text = json_dumps(root, 0);
    json_decref(root);
    check_ok(dr_tokenizer_parse("changed", text, strlen(text), &t));
    free(text);
    dr_tokenizer_frame(t, &before, &n, &after, &m);
    assert_int_equal(n, n_before);
    assert_int_equal(m, n_after);
    for (int32_t i = 0; i < n; i++) assert_int_equal(before[i], want[i]);
    for (int32_t i = 0; i < m; i++) assert_int_equal(after[i], want[n + i]);
    dr_tokenizer_destroy(t);
}

#define PIECE(name) "{\"SpecialToken\": {\"id\": \"" name "\", \"type_id\": 0}}"
static void test_frames(void **state) {
    (void)state;
    check_frame("null", NULL, 0, 0);
    check_frame("{\"type\": \"ByteLevel\", \"trim_offsets\": false}", NULL, 0, 0);
    check_frame(
        "{\"type\": \"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}, {\"type\": "
        "\"TemplateProcessing\", \"single\": [" PIECE("a") ", " PIECE(
            "b") ", {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}, " PIECE("a") ", " PIECE("b") "], "
                                                                                                  "\"special_"
                                                                                                  "tokens\": "
                                                                                                  "{\"a\": "
                                                                                                  "{\"ids\": "
                                                                                                  "[1, 2]}, "
                                                                                                  "\"b\": "
                                                                                                  "{\"ids\": "
                                                                                                  "[3]}}}]}",
        (const int32_t[]){1, 2, 3, 1, 2, 3}, 3, 3);
    check_frame("{\"type\": \"RobertaProcessing\", \"sep\": [\"</s>\", 2], \"cls\": [\"<s>\", 0]}",
                (const int32_t[]){0, 2}, 1, 1);
}

// Runs `deeprec tokenize` on the input; its output, NUL-terminated.
static void run_program(const char *dir, const char *options, const char *input, size_t length, char *out,
                        size_t size) {
    char command[1024];
    const char *path = check_path(check_scratch_dir(), "input");
    check_write_file(path, input, length);
    snprintf(command, sizeof command, "'%s' tokenize --model '%s' --input '%s' %s", DR_BINARY, dir, path,
             options);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t n = fread(out, 1, size - 1, pipe);
    out[n] = 0;
    assert_int_equal(pclose(pipe), 0);
}

static void test_program(void **state) {
    (void)state;
    char ids[4096], text[4096];
    static const char input[] = "<|im_start|>The dog\n\n caf\xC3\xA9 \xFF\xE4 end\nlast";
    const char *dir = check_golden("tokenizer_llama3");
    run_program(dir, "", input, sizeof input - 1, ids, sizeof ids);
    assert_memory_equal(ids, "[0,", 3);
    assert_non_null(strstr(ids, "]\n[]\n["));
    run_program(dir, "--decode", ids, strlen(ids), text, sizeof text);
    assert_memory_equal(text, input, sizeof input - 1);
    assert_string_equal(text + sizeof input - 1, "\n");
    static const char line[] = "\"a\\n<|im_start|>\"\n";
    run_program(dir, "--json --plain", line, sizeof line - 1, ids, sizeof ids);
    assert_null(strstr(ids, "[0,"));
    assert_null(strstr(ids, ",0]"));
    run_program(dir, "--json --decode", ids, strlen(ids), text, sizeof text);
    assert_string_equal(text, line);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_bytes_come_back),
        cmocka_unit_test(test_specials_only_when_asked),
        cmocka_unit_test(test_training_is_deterministic_and_saved),
        cmocka_unit_test(test_golden_qwen2),
        cmocka_unit_test(test_golden_llama3),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_unsupported_parts),
        cmocka_unit_test(test_loaded_is_saved_as_it_was),
        cmocka_unit_test(test_frames),
        cmocka_unit_test(test_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
