// Ways around a vocabulary against the `tokenizers` library, and what that library has no answer for.
// labels: cpu
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/json.h"
#include "core/base/rng.h"
#include "core/text/nfc.h"
#include "core/text/normalize.h"
#include "core/text/tokenizer.h"
#include "tests/check.h"

static json_t *zoo_model, *zoo_variants, *zoo_cases;

static int open_zoo(void **state) {
    (void)state;
    const char *dir = check_golden("tokenizer_zoo");
    return dr_json_load(check_path(dir, "model.json"), &zoo_model) == DR_OK &&
                   dr_json_load(check_path(dir, "variants.json"), &zoo_variants) == DR_OK &&
                   dr_json_load(check_path(dir, "cases.json"), &zoo_cases) == DR_OK
               ? 0
               : -1;
}

static int close_zoo(void **state) {
    (void)state;
    json_decref(zoo_model);
    json_decref(zoo_variants);
    json_decref(zoo_cases);
    return 0;
}

// The tokenizer of one variant.
static dr_tokenizer *variant(const char *name) {
    json_t *root = json_copy(json_object_get(zoo_variants, name)), *model = json_copy(zoo_model);
    json_object_set(model, "ignore_merges", json_object_get(root, "ignore_merges"));
    json_object_del(root, "ignore_merges");
    json_object_set_new(root, "model", model);
    char *text = json_dumps(root, 0);
    dr_tokenizer *t = NULL;
    check_ok(dr_tokenizer_parse(name, text, strlen(text), &t));
    free(text);
    json_decref(root);
    return t;
}

typedef struct id_list {
    int32_t *ids;
    int64_t n, capacity;
} id_list;

static void test_zoo(void **state) {
    (void)state;
    const char *name;
    json_t *cases, *entry;
    size_t i, total = 0;
    json_object_foreach(zoo_cases, name, cases) {
        dr_tokenizer *t = variant(name);
        json_array_foreach(cases, i, entry) {
            json_t *text = json_array_get(entry, 0), *want = json_array_get(entry, 1);
            id_list got = {0};
            check_ok(dr_tokenizer_encode(t, json_string_value(text), json_string_length(text), true, &got.ids,
                                         &got.n, &got.capacity));
            bool same = got.n == (int64_t)json_array_size(want);
            for (int64_t k = 0; same && k < got.n; k++)
                same = got.ids[k] == json_integer_value(json_array_get(want, (size_t)k));
            if (!same)
                fail_msg("%s: case %zu, \"%s\": other ids than the reference", name, i,
                         json_string_value(text));
            dr_free(got.ids);
            total++;
        }
        dr_tokenizer_destroy(t);
    }
    assert_true(total >= 2000);
}

static void check_bytes_back(const dr_tokenizer *t, const char *text, size_t length, bool parse) {
    id_list got = {0};
    dr_buf whole = {0}, streamed = {0};
    dr_decode_stream stream = {0};
    check_ok(dr_tokenizer_encode(t, text, length, parse, &got.ids, &got.n, &got.capacity));
    check_ok(dr_tokenizer_decode(t, got.ids, got.n, &whole));
    assert_int_equal(whole.length, length);
    assert_memory_equal(whole.data, text, length);
    bool is_valid = dr_utf8_valid(text, length);
    for (int64_t i = 0; i < got.n; i++) {
        size_t before = streamed.length;
        check_ok(dr_tokenizer_stream(t, &stream, got.ids[i], &streamed));
        const char *fresh = streamed.data ? streamed.data + before : "";
        if (is_valid) assert_true(dr_utf8_valid(fresh, streamed.length - before));
    }
    check_ok(dr_tokenizer_stream_flush(&stream, &streamed));
    assert_int_equal(streamed.length, length);
    assert_memory_equal(streamed.data, text, length);
    dr_buf_reset(&whole);
    dr_buf_reset(&streamed);
    dr_free(got.ids);
}

static void test_bytes_come_back(void **state) {
    (void)state;
    static const char *const names[] = {"llama3", "gpt2", "cased", "steps", "merged_with_next_empty"};
    static const char *const parts[] = {
        "a",        " ",    "the",  "\n",           "\xC3\xA9", "\xE4\xBD\xA0", "<|im_end|>",
        "\xF0\x9F", "\xFF", "\xE4", "\xED\xA0\x80", "12",       "\xC0\x80"};
    dr_rng rng = dr_rng_make(9, 1);
    for (int k = 0; k < 5; k++) {
        dr_tokenizer *t = variant(names[k]);
        check_bytes_back(t, "", 0, true);
        check_bytes_back(t, "\xF0\x9F\x98\x80", 4, true);
        check_bytes_back(t, "a\0b\xE4\xBD", 5, true);
        for (int trial = 0; trial < 2000; trial++) {
            dr_buf text = {0};
            for (uint64_t n = dr_rng_below(&rng, 12); n > 0; n--) {
                char byte = (char)dr_rng_below(&rng, 256);
                if (trial % 2)
                    check_ok(dr_buf_text(&text, parts[dr_rng_below(&rng, 13)]));
                else
                    check_ok(dr_buf_append(&text, &byte, 1));
            }
            check_bytes_back(t, text.data ? text.data : "", text.length, trial % 3 != 0);
            dr_buf_reset(&text);
        }
        dr_tokenizer_destroy(t);
    }
}

static void check_ids(const dr_tokenizer *t, const char *text, const char *const *parts) {
    id_list whole = {0}, joined = {0};
    check_ok(dr_tokenizer_encode(t, text, strlen(text), true, &whole.ids, &whole.n, &whole.capacity));
    for (; *parts; parts++)
        check_ok(
            dr_tokenizer_encode(t, *parts, strlen(*parts), true, &joined.ids, &joined.n, &joined.capacity));
    assert_int_equal(whole.n, joined.n);
    assert_memory_equal(whole.ids, joined.ids, (size_t)whole.n * sizeof *whole.ids);
    dr_free(whole.ids);
    dr_free(joined.ids);
}

// Broken bytes are words of their own; what stands around them is encoded as if the text ended there.
static void test_broken_bytes(void **state) {
    (void)state;
    dr_tokenizer *t = variant("qwen2");
    check_ids(t, "the\xFF\xFE quick", (const char *const[]){"the", "\xFF\xFE", " quick", NULL});
    check_ids(t, "  \xC3 x", (const char *const[]){"  ", "\xC3", " x", NULL});
    check_ids(t, "e\xCC\x81\x80<|im_end|>", (const char *const[]){"\xC3\xA9", "\x80", "<|im_end|>", NULL});
    dr_tokenizer_destroy(t);
}

static void test_nfc(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"e\xCC\x81", "\xC3\xA9"},                                // combining mark
        {"\xE2\x84\xAB", "\xC3\x85"},                             // singleton: angstrom sign
        {"\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81"}, // Hangul L V T
        {"\xEA\xB0\x80\xE1\x86\xA8", "\xEA\xB0\x81"},             // Hangul LV T
        {"q\xCC\x87\xCC\xA3", "q\xCC\xA3\xCC\x87"},               // reordering
        {"s\xCC\x87\xCC\xA3", "\xE1\xB9\xA9"},                    // reordering, then two compositions
        {"a\xCC\xB4\xCC\x81", "\xC3\xA1\xCC\xB4"},                // a mark of lower class blocks nothing
        {"\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC"},             // composition exclusion
        {"\xF0\x91\x82\x99\xF0\x91\x82\xBA", "\xF0\x91\x82\x9A"}, // outside the first plane
        {"\xEF\xAC\x81", "\xEF\xAC\x81"},                         // compatibility characters stay
        {"\xCC\x81"
         "a",
         "\xCC\x81"
         "a"},                              // a mark without a starter
        {"e\xFF\xCC\x81", "e\xFF\xCC\x81"}, // a broken byte stands between
    };
    dr_buf out = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dr_buf_clear(&out);
        check_ok(dr_nfc_append(cases[i][0], strlen(cases[i][0]), &out));
        assert_string_equal(out.data, cases[i][1]);
    }
    dr_buf marks = {0}; // a long run of marks, out of order: linear, and stable
    check_ok(dr_buf_text(&marks, "q"));
    for (int i = 0; i < 100000; i++) check_ok(dr_buf_text(&marks, i % 2 ? "\xCC\xA3" : "\xCC\x87"));
    dr_buf_clear(&out);
    check_ok(dr_nfc_append(marks.data, marks.length, &out));
    assert_int_equal(out.length, marks.length);
    assert_memory_equal(out.data, "q\xCC\xA3\xCC\xA3", 5);
    assert_memory_equal(out.data + out.length - 4, "\xCC\x87\xCC\x87", 4);
    dr_buf_reset(&marks);
    dr_buf_reset(&out);
}

// The normalisers of WordPiece's files with a byte-level model: the ids of the text that they make.
static void test_normalizers(void **state) {
    (void)state;
    dr_tokenizer *plain = variant("gpt2");
    json_t *root = json_copy(json_object_get(zoo_variants, "gpt2"));
    json_t *steps = json_loads("{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFD\"}, {\"type\": "
                               "\"StripAccents\"}, {\"type\": \"Lowercase\"}, {\"type\": \"Replace\", "
                               "\"pattern\": {\"String\": \"ox\"}, \"content\": \"oxes\"}]}",
                               0, NULL);
    json_object_set_new(root, "normalizer", steps);
    json_object_set_new(zoo_variants, "normalized", root);
    dr_tokenizer *t = variant("normalized");
    static const char *const texts[][2] = {
        {"The \xC3\x89"
         "COLE Fox",
         "the ecole foxes"},
        {"E\xFFoX\xC4\xB0", "e\xFFoxesi"}, // the broken byte stays
    };
    for (size_t k = 0; k < 2; k++) {
        id_list got = {0}, want = {0};
        const char *const *text = texts[k];
        check_ok(dr_tokenizer_encode(t, text[0], strlen(text[0]), true, &got.ids, &got.n, &got.capacity));
        check_ok(
            dr_tokenizer_encode(plain, text[1], strlen(text[1]), true, &want.ids, &want.n, &want.capacity));
        assert_int_equal(got.n, want.n);
        assert_memory_equal(got.ids, want.ids, (size_t)got.n * sizeof *got.ids);
        dr_free(got.ids);
        dr_free(want.ids);
    }
    dr_tokenizer_destroy(t);
    dr_tokenizer_destroy(plain);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void test_long_words(void **state) {
    (void)state;
    enum { LONG = 1 << 20 };
    dr_tokenizer *t = variant("qwen2");
    char *text = malloc(LONG);
    for (int kind = 0; kind < 3; kind++) {
        for (int i = 0; i < LONG; i++) text[i] = kind == 0 ? 'a' : kind == 1 ? "thequick"[i % 8] : ' ';
        double begin = seconds();
        check_bytes_back(t, text, LONG, true);
        assert_true(seconds() - begin < 20);
    }
    free(text);
    dr_tokenizer_destroy(t);
}

static void test_guarded(void **state) {
    (void)state;
    dr_tokenizer *t = variant("qwen2");
    static const char text[] = "<|im_start|>x <|im_end|> e\xCC\x81<|im_end|>";
    size_t foreign[2] = {12, strlen(text) - 10};
    id_list got = {0};
    int count = 0;
    check_ok(dr_tokenizer_encode_guarded(t, text, strlen(text), foreign, 1, &got.ids, &got.n, &got.capacity));
    for (int64_t i = 0; i < got.n; i++) count += got.ids[i] == dr_tokenizer_special(t, "<|im_end|>");
    assert_int_equal(count, 1);
    assert_int_equal(got.ids[0], dr_tokenizer_special(t, "<|im_start|>"));
    assert_int_equal(got.ids[got.n - 1], dr_tokenizer_special(t, "<|im_end|>"));
    foreign[1]++; // a range that takes one byte of a tag takes the tag
    got.n = 0;
    check_ok(dr_tokenizer_encode_guarded(t, text, strlen(text), foreign, 1, &got.ids, &got.n, &got.capacity));
    assert_int_not_equal(got.ids[got.n - 1], dr_tokenizer_special(t, "<|im_end|>"));
    dr_free(got.ids);
    dr_tokenizer_destroy(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zoo),          cmocka_unit_test(test_bytes_come_back),
        cmocka_unit_test(test_broken_bytes), cmocka_unit_test(test_nfc),
        cmocka_unit_test(test_long_words),   cmocka_unit_test(test_guarded),
        cmocka_unit_test(test_normalizers),
    };
    return cmocka_run_group_tests(tests, open_zoo, close_zoo);
}
