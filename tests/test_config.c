// Settings: everything that can be wrong is told by place, key, expected and found; a dump reads back.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/config.h"

static const dr_setting table[] = {
    DR_INT("train.steps", "10", 1, 1000, "steps", "how many steps"),
    DR_FLOAT("train.rate", "1e-4", 0, 1, "", "step size"),
    DR_BOOL("train.is_fast", "true", "take the fast path"),
    DR_STRING("run.name", NULL, "name of the run"),
    DR_CHOICE("prompt.form", "full", "full|compact", "which template"),
    DR_INT_LIST("eval.cuts", "[1, 5, 10]", 1, 100, "items", "list lengths"),
    DR_STRING_LIST("eval.labels", "", "labels"),
    DR_FREE_INT("log.every", "5", 1, 100, "steps", "interval"),
    DR_INT("depth", "3", 0, 0, "", "no section"),
    DR_FLOAT_LIST("reward.weights", "[1, 0.5]", -10, 10, "", "weights"),
};
enum { N = sizeof table / sizeof table[0] };

static dr_config *fresh(void) {
    dr_config *config = NULL;
    check_ok(dr_config_create(table, N, &config));
    return config;
}

static dr_status parse(dr_config *config, const char *text) {
    return dr_config_parse(config, "f.yaml", text, strlen(text));
}

static void test_defaults(void **state) {
    (void)state;
    dr_config *config = fresh();
    char name[64];
    assert_int_equal(dr_config_int(config, "train.steps"), 10);
    assert_true(dr_config_float(config, "train.rate") == 1e-4);
    assert_true(dr_config_bool(config, "train.is_fast"));
    assert_false(dr_config_has(config, "run.name"));
    assert_int_equal(dr_config_choice(config, "prompt.form"), 0);
    assert_string_equal(dr_config_choice_name(config, "prompt.form", name), "full");
    assert_int_equal(dr_config_count(config, "eval.cuts"), 3);
    assert_int_equal(dr_config_int_at(config, "eval.cuts", 2), 10);
    assert_int_equal(dr_config_count(config, "eval.labels"), 0);
    assert_true(dr_config_float_at(config, "reward.weights", 1) == 0.5);
    check_error(dr_config_complete(config, "here"), DR_ERR_ARGUMENT, "here: no value for 'run.name'");
    dr_config_destroy(config);
    dr_config_destroy(NULL);
}

static void test_good_file(void **state) {
    (void)state;
    dr_config *config = fresh();
    check_ok(parse(
        config, "# comment\ntrain:\n  steps: 5\n  is_fast: false\nrun: {name: \"a: b\"}\n"
                "eval:\n  cuts: [2]\n  labels:\n    - x, y\n    - '3'\nprompt.form: compact\ndepth: -7\n"));
    assert_int_equal(dr_config_int(config, "train.steps"), 5);
    assert_true(dr_config_float(config, "train.rate") == 1e-4);
    assert_false(dr_config_bool(config, "train.is_fast"));
    assert_string_equal(dr_config_string(config, "run.name"), "a: b");
    assert_int_equal(dr_config_count(config, "eval.cuts"), 1);
    assert_int_equal(dr_config_count(config, "eval.labels"), 2);
    assert_string_equal(dr_config_string_at(config, "eval.labels", 0), "x, y");
    assert_int_equal(dr_config_choice(config, "prompt.form"), 1);
    assert_int_equal(dr_config_int(config, "depth"), -7);
    assert_true(dr_config_is_given(config, "train.steps"));
    assert_false(dr_config_is_given(config, "train.rate"));
    check_ok(dr_config_complete(config, "here"));
    check_ok(parse(config, ""));
    check_ok(parse(config, "# nothing\n"));
    check_ok(parse(config, "eval: {cuts: []}"));
    assert_int_equal(dr_config_count(config, "eval.cuts"), 0);
    dr_config_destroy(config);
}

// Text, status and what the error must say.
typedef struct bad_file {
    const char *text;
    dr_status status;
    const char *error;
} bad_file;

static const bad_file bad_files[] = {
    {"train:\n  stesp: 5\n", DR_ERR_FORMAT,
     "f.yaml:2:3: unknown setting 'train.stesp'; the nearest known one is 'train.steps'"},
    {"trian:\n  steps: 5\n", DR_ERR_FORMAT,
     "f.yaml:1:1: unknown setting 'trian'; the nearest known one is 'train'"},
    {"rate: 1\n", DR_ERR_FORMAT, "the nearest known one is 'train.rate'"},
    {"train:\n  steps: 4.5\n", DR_ERR_ARGUMENT,
     "f.yaml:2:10: 'train.steps': expected an integer from 1 to 1000, found '4.5'"},
    {"train: {steps: 0}", DR_ERR_ARGUMENT, "expected an integer from 1 to 1000, found '0'"},
    {"train: {steps: 99999999999999999999}", DR_ERR_ARGUMENT, "found '99999999999999999999'"},
    {"depth: 99999999999999999999", DR_ERR_ARGUMENT, "expected an integer, found '99999999999999999999'"},
    {"train: {steps: '5'}", DR_ERR_FORMAT, "found the quoted text \"5\""},
    {"train: {steps: }", DR_ERR_FORMAT, "found no value"},
    {"train: {rate: .nan}", DR_ERR_ARGUMENT, "expected a number from 0 to 1, found '.nan'"},
    {"train: {rate: 1e999}", DR_ERR_ARGUMENT, "found '1e999'"},
    {"train: {rate: 0x1}", DR_ERR_ARGUMENT, "found '0x1'"},
    {"train: {is_fast: yes}", DR_ERR_ARGUMENT, "expected true or false, found 'yes'"},
    {"prompt: {form: ful}", DR_ERR_ARGUMENT, "expected one of full|compact, found 'ful'"},
    {"prompt: {form: 'full|compact'}", DR_ERR_ARGUMENT, "found 'full|compact'"},
    {"train: 3", DR_ERR_FORMAT, "'train' is a section: expected a map of settings, found a value"},
    {"train: {steps: [5]}", DR_ERR_FORMAT, "found a list"},
    {"train: {steps: {a: 5}}", DR_ERR_FORMAT, "found a map"},
    {"eval: {cuts: 5}", DR_ERR_FORMAT, "expected a list, each element an integer from 1 to 100, found '5'"},
    {"eval: {cuts: [5, 101]}", DR_ERR_ARGUMENT, "found '101'"},
    {"eval: {cuts: [5, [6]]}", DR_ERR_FORMAT, "found a list"},
    {"train:\n  steps: 5\n  steps: 6\n", DR_ERR_FORMAT,
     "f.yaml:3:3: 'train.steps' is set twice; first in line 2"},
    {"train: {steps: 5}\ntrain.steps: 6\n", DR_ERR_FORMAT, "is set twice"},
    {"train:\n\tsteps: 5\n", DR_ERR_FORMAT, "f.yaml:2:1: not valid YAML"},
    {"train: {steps: 5", DR_ERR_FORMAT, "not valid YAML"},
    {"run: {name: \"a\xff\"}", DR_ERR_FORMAT, "not valid YAML"},
    {"run: {name: \"a\\0b\"}", DR_ERR_FORMAT, "NUL character"},
    {"run: {name: !!str x}", DR_ERR_FORMAT, "a tagged value"},
    {"run: &r {name: x}\ntrain: *r\n", DR_ERR_FORMAT, "found an alias"},
    {"- 1\n- 2\n", DR_ERR_FORMAT, "expected a map of settings at the top"},
    {"just text", DR_ERR_FORMAT, "expected a map of settings at the top"},
    {"depth: 1\n---\ndepth: 2\n", DR_ERR_FORMAT, "a second document"},
    {"[a]: 1\n", DR_ERR_FORMAT, "expected the name of a setting"},
    {"? [a]\n: 1\n", DR_ERR_FORMAT, "expected the name of a setting"},
};

// Each is refused with its text, and a refused file changes nothing, not even by its good first line.
static void test_bad_files(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad_files / sizeof bad_files[0]; i++) {
        dr_config *config = fresh();
        check_ok(parse(config, "log: {every: 9}"));
        dr_buf before = {0}, after = {0};
        check_ok(dr_config_dump(config, &before));
        check_error(parse(config, bad_files[i].text), bad_files[i].status, bad_files[i].error);
        check_ok(dr_config_dump(config, &after));
        assert_string_equal(before.data, after.data);
        dr_buf_reset(&before);
        dr_buf_reset(&after);
        dr_config_destroy(config);
    }
}

static void test_all_or_nothing(void **state) {
    (void)state;
    dr_config *config = fresh();
    check_error(parse(config, "depth: 9\ntrain: {steps: 7, rate: 5}\n"), DR_ERR_ARGUMENT, "train.rate");
    assert_int_equal(dr_config_int(config, "depth"), 3);
    assert_int_equal(dr_config_int(config, "train.steps"), 10);
    check_error(dr_config_load(config, check_path(check_scratch_dir(), "no.yaml")), DR_ERR_IO,
                "No such file");
    dr_config_destroy(config);
}

static void test_overrides(void **state) {
    (void)state;
    dr_config *config = fresh();
    check_ok(dr_config_override(config, "train.steps=7"));
    check_ok(dr_config_override(config, "run.name=x=y z"));
    check_ok(dr_config_override(config, "eval.cuts = [3, 4]"));
    check_ok(dr_config_override(config, "eval.labels=a,b"));
    assert_int_equal(dr_config_int(config, "train.steps"), 7);
    assert_string_equal(dr_config_string(config, "run.name"), "x=y z");
    assert_int_equal(dr_config_int_at(config, "eval.cuts", 1), 4);
    assert_string_equal(dr_config_string_at(config, "eval.labels", 1), "b");
    check_ok(dr_config_append(config, "w", "eval.labels", "c, d"));
    assert_int_equal(dr_config_count(config, "eval.labels"), 3);
    assert_string_equal(dr_config_string_at(config, "eval.labels", 2), "c, d");
    check_error(dr_config_override(config, "steps"), DR_ERR_ARGUMENT, "expected key=value, found 'steps'");
    check_error(dr_config_override(config, "=3"), DR_ERR_ARGUMENT, "expected key=value");
    check_error(dr_config_override(config, "train.step=3"), DR_ERR_ARGUMENT,
                "the nearest known one is 'train.steps'");
    check_error(dr_config_override(config, "train.steps=x"), DR_ERR_ARGUMENT,
                "--set train.steps=x: 'train.steps'");
    check_error(dr_config_override(config, "eval.cuts=1,,2"), DR_ERR_ARGUMENT, "found ''");
    check_error(dr_config_append(config, "w", "train.steps", "3"), DR_ERR_ARGUMENT, "takes one value");
    assert_int_equal(dr_config_int(config, "train.steps"), 7);
    assert_int_equal(dr_config_count(config, "eval.cuts"), 2);
    dr_config_destroy(config);
}

static void test_dump_reads_back(void **state) {
    (void)state;
    dr_config *config = fresh(), *again = fresh();
    check_ok(dr_config_override(config, "train.rate=0.1"));
    check_ok(dr_config_set(config, "w", "run.name", "quote \" slash \\ tab \t line\nend \x7f é: # -"));
    check_ok(dr_config_append(config, "w", "eval.labels", "[1, 2]"));
    check_ok(dr_config_append(config, "w", "eval.labels", ""));
    check_ok(dr_config_override(config, "reward.weights=0.30000000000000004, -1e-9"));
    dr_buf text = {0}, text_again = {0};
    check_ok(dr_config_dump(config, &text));
    assert_non_null(strstr(text.data, "rate: 0.1\n"));
    check_ok(parse(again, text.data));
    assert_string_equal(dr_config_string(again, "run.name"), dr_config_string(config, "run.name"));
    assert_true(dr_config_float_at(again, "reward.weights", 0) == 0.30000000000000004);
    check_ok(dr_config_dump(again, &text_again));
    assert_string_equal(text.data, text_again.data);
    uint64_t a = 0, b = 0, c = 0;
    check_ok(dr_config_hash(config, &a));
    check_ok(dr_config_hash(again, &b));
    assert_true(a == b);
    check_ok(dr_config_override(again, "log.every=50")); // no effect on results, none on the hash
    check_ok(dr_config_hash(again, &c));
    assert_true(a == c);
    check_ok(dr_config_override(again, "train.steps=11"));
    check_ok(dr_config_hash(again, &c));
    assert_true(a != c);
    dr_buf_reset(&text);
    dr_buf_reset(&text_again);
    dr_config_destroy(config);
    dr_config_destroy(again);
}

static void test_reference(void **state) {
    (void)state;
    dr_buf text = {0};
    check_ok(dr_settings_reference(table, N, &text));
    for (int i = 0; i < N; i++) assert_non_null(strstr(text.data, table[i].help));
    assert_non_null(strstr(text.data, "## train\n"));
    assert_non_null(
        strstr(text.data, "| `steps` | an integer from 1 to 1000 (steps) | `10` | how many steps |"));
    assert_non_null(strstr(text.data, "| `form` | one of full, compact | `full` |"));
    assert_non_null(strstr(text.data, "none: must be given"));
    dr_buf_reset(&text);
}

// Random edits of a good file: never a crash, and what is accepted dumps to something that reads back.
static void test_mutations(void **state) {
    (void)state;
    static const char good[] =
        "train: {steps: 5, rate: 1e-3}\neval:\n  cuts: [1, 2]\n  labels: ['a', b]\ndepth: 3\n";
    static const char letters[] = "{}[]:,'\"\n -#&*!|>%@0a.\\\t?";
    uint32_t random = 12345;
    int n_good = 0;
    dr_config *quiet = fresh();
    for (int round = 0; round < 800; round++) {
        char text[sizeof good];
        memcpy(text, good, sizeof good);
        for (int k = 0; k <= round % 3; k++) {
            random = random * 1664525u + 1013904223u;
            text[(random >> 8) % (sizeof good - 1)] = letters[(random >> 20) % (sizeof letters - 1)];
        }
        dr_config *config = fresh();
        if (parse(config, text) == DR_OK) {
            dr_buf dump = {0};
            check_ok(dr_config_dump(config, &dump));
            check_ok(parse(quiet, dump.data));
            dr_buf_reset(&dump);
            n_good++;
        }
        dr_config_destroy(config);
    }
    dr_config_destroy(quiet);
    assert_true(n_good > 3 && n_good < 780);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),  cmocka_unit_test(test_good_file),
        cmocka_unit_test(test_bad_files), cmocka_unit_test(test_all_or_nothing),
        cmocka_unit_test(test_overrides), cmocka_unit_test(test_dump_reads_back),
        cmocka_unit_test(test_reference), cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
