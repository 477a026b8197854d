// WordPiece tokenizers against the `tokenizers` library: ids, decoded texts, truncation; bad files are named.
// labels: cpu
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/text/tokenizer.h"
#include "tests/check.h"

static json_t *models, *variants, *cases;

static int open_golden(void **state) {
    (void)state;
    const char *dir = check_golden("tokenizer_wordpiece");
    return dr_json_load(check_path(dir, "models.json"), &models) == DR_OK &&
                   dr_json_load(check_path(dir, "variants.json"), &variants) == DR_OK &&
                   dr_json_load(check_path(dir, "cases.json"), &cases) == DR_OK
               ? 0
               : -1;
}

static int close_golden(void **state) {
    (void)state;
    json_decref(models);
    json_decref(variants);
    json_decref(cases);
    return 0;
}

// The file of a variant; the caller frees.
static char *variant_text(const char *name) {
    json_t *root = json_copy(json_object_get(variants, name));
    const char *model = json_string_value(json_object_get(root, "model"));
    json_object_set(root, "model", json_object_get(models, model));
    char *text = json_dumps(root, 0);
    json_decref(root);
    assert_non_null(text);
    return text;
}

static dr_tokenizer *variant(const char *name) {
    char *text = variant_text(name);
    dr_tokenizer *t = NULL;
    check_ok(dr_tokenizer_parse(name, text, strlen(text), &t));
    free(text);
    return t;
}

typedef struct id_list {
    int32_t *ids;
    int64_t n, capacity;
} id_list;

static void encode(const dr_tokenizer *t, const char *text, size_t length, bool parse, int64_t most,
                   id_list *out) {
    out->n = 0;
    check_ok(dr_tokenizer_encode_framed(t, text, length, parse, most, &out->ids, &out->n, &out->capacity));
}

static bool is_same(const id_list *got, const json_t *want) {
    bool same = got->n == (int64_t)json_array_size(want);
    for (int64_t k = 0; same && k < got->n; k++)
        same = got->ids[k] == json_integer_value(json_array_get(want, (size_t)k));
    return same;
}

// The decoded text, whole and id by id.
static void check_decoded(const dr_tokenizer *t, const id_list *ids, const json_t *want) {
    dr_buf whole = {0}, streamed = {0};
    dr_decode_stream stream = {0};
    check_ok(dr_tokenizer_decode(t, ids->ids, ids->n, &whole));
    assert_int_equal(whole.length, json_string_length(want));
    assert_memory_equal(whole.data, json_string_value(want), whole.length);
    for (int64_t i = 0; i < ids->n; i++) check_ok(dr_tokenizer_stream(t, &stream, ids->ids[i], &streamed));
    check_ok(dr_tokenizer_stream_flush(&stream, &streamed));
    assert_int_equal(streamed.length, whole.length);
    if (whole.length > 0) assert_memory_equal(streamed.data, whole.data, whole.length);
    dr_buf_reset(&whole);
    dr_buf_reset(&streamed);
}

// cases.json: per variant [text, ids, decoded text, max ids, ids of the truncated text], made by
// make_wordpiece.py.
static void test_golden(void **state) {
    (void)state;
    const char *name;
    json_t *list, *entry;
    size_t i, total = 0;
    id_list got = {0};
    json_object_foreach(cases, name, list) {
        dr_tokenizer *t = variant(name);
        json_array_foreach(list, i, entry) {
            json_t *text = json_array_get(entry, 0);
            const char *bytes = json_string_value(text);
            size_t length = json_string_length(text);
            encode(t, bytes, length, true, INT64_MAX, &got);
            if (!is_same(&got, json_array_get(entry, 1)))
                fail_msg("%s: case %zu, \"%s\": other ids than the reference", name, i, bytes);
            check_decoded(t, &got, json_array_get(entry, 2));
            encode(t, bytes, length, true, json_integer_value(json_array_get(entry, 3)), &got);
            if (!is_same(&got, json_array_get(entry, 4)))
                fail_msg("%s: case %zu, \"%s\": truncated otherwise than by the reference", name, i, bytes);
            total++;
        }
        dr_tokenizer_destroy(t);
    }
    assert_true(total >= 650 && json_object_size(cases) == 14);
    dr_free(got.ids);
}

static void test_truncation(void **state) {
    (void)state;
    dr_tokenizer *t = variant("uncased");
    int32_t cls = dr_tokenizer_special(t, "[CLS]"), sep = dr_tokenizer_special(t, "[SEP]");
    id_list got = {0};
    encode(t, "the quick fox", 13, false, 2, &got);
    assert_int_equal(got.n, 2);
    assert_int_equal(got.ids[0], cls);
    assert_int_equal(got.ids[1], sep);
    check_error(dr_tokenizer_encode_framed(t, "the", 3, false, 1, &got.ids, &got.n, &got.capacity),
                DR_ERR_RANGE, "at most 1 ids, and the post-processor puts 2");
    assert_int_equal(got.n, 2); // what was there stays, and more is put behind it
    check_ok(dr_tokenizer_encode_framed(t, "the quick fox", 13, false, 4, &got.ids, &got.n, &got.capacity));
    assert_int_equal(got.n, 6);
    assert_int_equal(got.ids[1], sep);
    assert_int_equal(got.ids[2], cls);
    assert_int_equal(got.ids[5], sep);
    dr_free(got.ids);
    dr_tokenizer_destroy(t);
}

static void check_alike(const dr_tokenizer *t, const char *a, size_t n_a, const char *b) {
    id_list x = {0}, y = {0};
    encode(t, a, n_a, true, INT64_MAX, &x);
    encode(t, b, strlen(b), true, INT64_MAX, &y);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.ids, y.ids, (size_t)x.n * sizeof *x.ids);
    dr_free(x.ids);
    dr_free(y.ids);
}

// What the library is never given: a byte that is no UTF-8 is read as U+FFFD, and NUL is a character.
static void test_any_bytes(void **state) {
    (void)state;
    dr_tokenizer *clean = variant("uncased"), *kept = variant("bare");
    check_alike(clean, "the\xFF\xC3 qu\0ick", 12, "the quick");
    check_alike(clean, "\xED\xA0\x80", 3, "");
    check_alike(kept, "the\xFF", 4, "the\xEF\xBF\xBD");
    check_alike(kept, "\xC3\xA9\xC3", 3, "\xC3\xA9\xEF\xBF\xBD");
    dr_tokenizer_destroy(clean);
    dr_tokenizer_destroy(kept);
}

// Untrusted text is no control token, not even where it looks like one only once it is normalised.
static void test_control_tokens(void **state) {
    (void)state;
    static const char *const texts[] = {"[CLS]", "[C\xE2\x80\x8BLS]", "a [CLS] b", "[MASK]"};
    static const char *const names[] = {"uncased", "white_space", "cased", "bare"};
    id_list got = {0};
    for (size_t v = 0; v < 4; v++) {
        dr_tokenizer *t = variant(names[v]);
        for (size_t k = 0; k < 4; k++) {
            got.n = 0;
            check_ok(
                dr_tokenizer_encode(t, texts[k], strlen(texts[k]), false, &got.ids, &got.n, &got.capacity));
            assert_true(got.n > 0);
            for (int64_t i = 0; i < got.n; i++) {
                assert_int_not_equal(got.ids[i], dr_tokenizer_special(t, "[CLS]"));
                assert_int_not_equal(got.ids[i], dr_tokenizer_special(t, "[MASK]"));
            }
        }
        dr_tokenizer_destroy(t);
    }
    dr_free(got.ids);
}

// A word cut in many ways, and one that ends without a token: both stay linear in the text.
static void test_long_texts(void **state) {
    (void)state;
    enum { LONG = 1 << 20 };
    char *text = malloc(LONG), *file = variant_text("uncased");
    json_t *root = json_loads(file, 0, NULL);
    free(file);
    json_object_set_new(json_object_get(root, "model"), "max_input_chars_per_word", json_integer(LONG));
    file = json_dumps(root, 0);
    json_decref(root);
    dr_tokenizer *t = NULL;
    check_ok(dr_tokenizer_parse("long words", file, strlen(file), &t));
    free(file);
    id_list got = {0};
    for (int i = 0; i < LONG; i++) text[i] = 'a';
    encode(t, text, LONG, true, INT64_MAX, &got);
    assert_true(got.n > LONG / 64);
    text[LONG - 1] = '\x01'; // removed
    text[LONG - 2] = '\0';
    text[LONG - 3] = '$'; // a word of its own
    encode(t, text, LONG, true, INT64_MAX, &got);
    assert_int_equal(got.ids[got.n - 1], dr_tokenizer_special(t, "[SEP]"));
    assert_true(got.n > LONG / 64);
    free(text);
    dr_free(got.ids);
    dr_tokenizer_destroy(t);
}

// The variant "uncased" with one member changed (`value` NULL: taken out) is refused with this message.
static void check_refused(const char *part, const char *key, const char *value, const char *message) {
    char *file = variant_text("uncased");
    json_t *root = json_loads(file, 0, NULL), *at = part ? json_object_get(root, part) : root;
    dr_tokenizer *t = NULL;
    free(file);
    if (value)
        json_object_set_new(at, key, json_loads(value, JSON_DECODE_ANY, NULL));
    else
        json_object_del(at, key);
    file = json_dumps(root, 0);
    json_decref(root);
    dr_status status = dr_tokenizer_parse("changed", file, strlen(file), &t);
    assert_int_not_equal(status, DR_OK);
    check_error(status, status, message);
    check_error(status, status, "changed");
    assert_null(t);
    free(file);
}

static void test_bad_files(void **state) {
    (void)state;
    check_refused("model", "vocab", "{\"a\": 9}", "unk_token: \"[UNK]\" is not in the vocabulary");
    check_refused("model", "vocab", "{\"[UNK]\": \"x\"}", "\"[UNK]\": expected an id");
    check_refused("model", "vocab", "{\"[UNK]\": 1, \"a\": 1}", "id 1 stands for two tokens");
    check_refused("model", "vocab", "[]", "vocab");
    check_refused("model", "unk_token", NULL, "unk_token");
    check_refused("model", "continuing_subword_prefix", "3", "continuing_subword_prefix");
    check_refused("model", "max_input_chars_per_word", "-1", "max_input_chars_per_word");
    check_refused("model", "type", "\"WordLevel\"", "model type \"WordLevel\" is not supported");
    check_refused("normalizer", "lowercase", NULL, "lowercase");
    check_refused("normalizer", "strip_accents", "\"yes\"", "strip_accents");
    check_refused("normalizer", "type", "\"NFKC\"", "normalizer \"NFKC\" is not supported");
    check_refused(NULL, "normalizer",
                  "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a+\"}, \"content\": \"b\"}", "Regex");
    check_refused(NULL, "normalizer",
                  "{\"type\": \"Replace\", \"pattern\": {\"String\": \"\"}, \"content\": \"b\"}",
                  "empty text");
    check_refused(NULL, "normalizer", "{\"type\": \"Replace\", \"pattern\": {\"String\": \"a\"}}", "content");
    check_refused(NULL, "pre_tokenizer", "{\"type\": \"ByteLevel\"}", "\"ByteLevel\" with a WordPiece model");
    check_refused(NULL, "pre_tokenizer", "{\"type\": \"Metaspace\"}", "\"Metaspace\" is not supported");
    check_refused(NULL, "decoder", "{\"type\": \"ByteLevel\"}",
                  "decoder \"ByteLevel\" with a WordPiece model");
    check_refused("decoder", "prefix", NULL, "prefix");
    check_refused("decoder", "cleanup", "1", "cleanup");
    check_refused(NULL, "decoder",
                  "{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"WordPiece\", \"prefix\": \"##\", "
                  "\"cleanup\": true}, {\"type\": \"WordPiece\", \"prefix\": \"##\", \"cleanup\": true}]}",
                  "two decoders");
    check_refused(NULL, "post_processor", "{\"type\": \"BertProcessing\", \"cls\": [\"[CLS]\", 2]}", "sep");
    check_refused(NULL, "post_processor",
                  "{\"type\": \"BertProcessing\", \"cls\": [\"[CLS]\", 2], \"sep\": [\"[SEP]\", 99999]}",
                  "id 99999");
}

// The program reads such a folder: ids with what stands around a text, and back.
static void test_program(void **state) {
    (void)state;
    const char *dir = check_scratch_dir(), *input = check_path(dir, "input"),
               *output = check_path(dir, "ids");
    char *file = variant_text("uncased"), command[1024];
    static const char lines[] = "The QUICK fox, na\xC3\xAFve\n\n";
    size_t n;
    check_write_file(check_path(dir, "tokenizer.json"), file, strlen(file));
    free(file);
    check_write_file(input, lines, sizeof lines - 1);
    snprintf(command, sizeof command,
             "'%s' tokenize --model '%s' --input '%s' --special >'%s' && '%s' tokenize --model '%s' --input "
             "'%s' --decode >'%s'",
             DR_BINARY, dir, input, output, DR_BINARY, dir, output, input);
    assert_int_equal(system(command), 0);
    char *text = check_read_file(input, &n);
    static const char want[] = "[CLS] the quick fox, naive [SEP]\n[CLS] [SEP]\n";
    assert_int_equal(n, sizeof want - 1);
    assert_memory_equal(text, want, n);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),     cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_any_bytes),  cmocka_unit_test(test_control_tokens),
        cmocka_unit_test(test_long_texts), cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_program),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
