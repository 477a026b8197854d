// Damaged tokenizer.json: an error or a tokenizer that works, never a crash (also under the sanitizers).
// labels: cpu
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/text/tokenizer.h"
#include "tests/check.h"

// A whole small file: all bytes, some merges, every part that is read.
static const char head[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
    "{\"id\":262,\"content\":\"<|a|>\",\"single_word\":false,\"lstrip\":true,\"rstrip\":false,\"normalized\":"
    "false,"
    "\"special\":true},{\"id\":263,\"content\":\"ab\",\"single_word\":true,\"lstrip\":false,\"rstrip\":true,"
    "\"normalized\":true,\"special\":false}],\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{"
    "\"type\":\"NFC\"}]},"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
    "\"(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s+(?!\\\\S)|\\\\s+\"},"
    "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"Split\",\"pattern\":{\"String\":\".\"},"
    "\"behavior\":"
    "\"MergedWithNext\",\"invert\":true},{\"type\":\"Digits\",\"individual_digits\":true},{\"type\":"
    "\"ByteLevel\","
    "\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}]},\"post_processor\":{\"type\":"
    "\"Sequence\","
    "\"processors\":[{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":false,\"use_regex\":"
    "true},"
    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<|a|>\",\"type_id\":0}},{"
    "\"Sequence\":{\"id\":\"A\","
    "\"type_id\":0}}],\"pair\":[],\"special_tokens\":{\"<|a|>\":{\"id\":\"<|a|>\",\"ids\":[262],\"tokens\":["
    "\"<|a|>\"]}}}]},"
    "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
    "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":\"\",\"fuse_unk\":false,\"byte_fallback\":"
    "false,"
    "\"ignore_merges\":false,";
static const char tail[] =
    "\"merges\":[\"t h\",[\"th\",\"e\"],\"a b\",\"\xC4\xA0 the\",\"a a\",[\"aa\",\"aa\"]]}}";
static const char *const more[] = {"th", "the", "ab", "\xC4\xA0the", "aa", "aaaa"};

static void put_character(dr_buf *out, unsigned c) {
    char bytes[2] = {(char)(0xC0 | c >> 6), (char)(0x80 | (c & 0x3F))};
    if (c == '"' || c == '\\') check_ok(dr_buf_text(out, "\\"));
    bytes[0] = c < 0x80 ? (char)c : bytes[0];
    check_ok(dr_buf_append(out, bytes, c < 0x80 ? 1 : 2));
}

static void make_file(dr_buf *out) {
    unsigned other = 256;
    check_ok(dr_buf_text(out, head));
    check_ok(dr_buf_text(out, "\"vocab\":{"));
    for (unsigned byte = 0; byte < 256; byte++) {
        bool is_printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        check_ok(dr_buf_text(out, "\""));
        put_character(out, is_printable ? byte : other++);
        check_ok(dr_buf_printf(out, "\":%u,", byte));
    }
    for (unsigned i = 0; i < 6; i++)
        check_ok(dr_buf_printf(out, "\"%s\":%u%s", more[i], 256 + i, i < 5 ? "," : "},"));
    check_ok(dr_buf_text(out, tail));
}

static const char sample[] = "The the <|a|>  ab abab aaaa 123 it's e\xCC\x81 \xE4\xBD\xA0\xFF.";

// The same of a WordPiece model: the seed of the fuzz target.
static void read_word_file(dr_buf *out) {
    size_t n;
    char *text = check_read_file(check_golden("../fuzz/seeds/fuzz_tokenizer/wordpiece.json"), &n);
    check_ok(dr_buf_append(out, text, n));
    free(text);
}

static bool is_usable(const char *bytes, size_t length) {
    dr_tokenizer *t = NULL;
    int32_t *ids = NULL;
    int64_t n = 0, capacity = 0;
    dr_buf text = {0};
    if (dr_tokenizer_parse("damaged", bytes, length, &t) != DR_OK) {
        assert_null(t);
        return false;
    }
    for (int parse = 0; parse < 2; parse++) { // a pattern may be too much for its own library
        if (dr_tokenizer_encode_framed(t, sample, sizeof sample - 1, parse, INT64_MAX, &ids, &n, &capacity) !=
            DR_OK)
            break;
    }
    for (int64_t i = 0; i < n; i++) assert_true(ids[i] >= 0 && ids[i] < dr_tokenizer_size(t));
    check_ok(dr_tokenizer_decode(t, ids, n, &text));
    dr_buf_reset(&text);
    dr_free(ids);
    dr_tokenizer_destroy(t);
    return true;
}

// A byte that JSON or a pattern may mind.
static char odd_byte(dr_rng *rng) {
    static const char bytes[] = "\"{}[]:,\\0129-+*?()|^$.truefalsnpLNS \x80\xC3\xFF\n";
    return bytes[dr_rng_below(rng, sizeof bytes - 1)];
}

static void damage(dr_rng *rng, const dr_buf *whole, dr_buf *out) {
    // Half of the damage goes to what stands around the table of bytes.
    size_t length = whole->length, place = dr_rng_below(rng, length);
    if (dr_rng_below(rng, 2)) place = dr_rng_below(rng, sizeof head - 1);
    if (dr_rng_below(rng, 4) == 0) place = length - 1 - dr_rng_below(rng, sizeof tail);
    size_t n = dr_rng_below(rng, 12), from = dr_rng_below(rng, length);
    if (n > length - place) n = length - place;
    dr_buf_clear(out);
    check_ok(dr_buf_append(out, whole->data, length));
    switch (dr_rng_below(rng, 6)) {
    case 0:
        out->length = place;
        break;
    case 1: // taken out
        memmove(out->data + place, out->data + place + n, length - place - n);
        out->length -= n;
        break;
    case 2: // from elsewhere
        if (n > length - from) n = length - from;
        memcpy(out->data + place, whole->data + from, n);
        break;
    case 3: // put in
        dr_buf_clear(out);
        check_ok(dr_buf_append(out, whole->data, place));
        check_ok(dr_buf_append(out, whole->data + from, n < length - from ? n : length - from));
        check_ok(dr_buf_append(out, whole->data + place, length - place));
        break;
    default:
        for (size_t k = 0; k <= n / 4; k++) out->data[(place + k * 7) % length] = odd_byte(rng);
    }
}

static void check_damaged(void (*make)(dr_buf *out), uint64_t seed) {
    dr_rng rng = dr_rng_make(seed, 7);
    dr_buf whole = {0}, damaged = {0};
    int n_usable = 0;
    make(&whole);
    assert_true(is_usable(whole.data, whole.length));
    dr_log_set_level(DR_LOG_ERROR + 1);
    for (int trial = 0; trial < 20000; trial++) {
        damage(&rng, &whole, &damaged);
        n_usable += is_usable(damaged.data, damaged.length);
    }
    dr_log_set_level(DR_LOG_INFO);
    print_message("%d of 20000 damaged files are still usable\n", n_usable);
    assert_true(n_usable > 100 && n_usable < 19000);
    dr_buf_reset(&whole);
    dr_buf_reset(&damaged);
}

static void test_damaged_files(void **state) {
    (void)state;
    check_damaged(make_file, 20);
}

static void test_damaged_word_files(void **state) {
    (void)state;
    check_damaged(read_word_file, 21);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_damaged_files),
                                       cmocka_unit_test(test_damaged_word_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
