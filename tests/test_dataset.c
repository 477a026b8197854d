// The data set file: what is saved comes back, broken files are refused by name, the split leaves one out.
// labels: cpu store
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/store/dataset.h"
#include "core/store/h5.h"

enum { ITEMS = 5, USERS = 4, EVENTS = 11 };

static char *titles[] = {"", "Silent Harbour (1987)", "Amélie (2001)", "Heat", "Heat [2]", "千と千尋"};
static char *categories[] = {"", "Drama, War", "", "Crime", "Crime, Drama", "Animation"};
static char *item_names[] = {"", "1", "B000X", "3", "7", "9"};
static char *user_names[] = {"u1", "AFW2", "3", "none"};
static int64_t offsets[] = {0, 5, 8, 10, 11};
static int32_t sequence[] = {1, 2, 3, 4, 5, 5, 4, 1, 2, 3, 1};

static dr_dataset sample(void) {
    return (dr_dataset){.n_items = ITEMS,
                        .n_users = USERS,
                        .titles = titles,
                        .categories = categories,
                        .item_names = item_names,
                        .user_names = user_names,
                        .offsets = offsets,
                        .sequence = sequence,
                        .name = "sample",
                        .source = "test",
                        .options = "k-core 2",
                        .tie_order = "as they come"};
}

static int same_texts(char *const *a, char *const *b, int n) {
    for (int i = 0; i < n; i++)
        if (strcmp(a[i], b[i]) != 0) return 0;
    return 1;
}

static int same(const dr_dataset *a, const dr_dataset *b) {
    char *const of_a[] = {a->name, a->source, a->options, a->tie_order}, *const of_b[] = {b->name, b->source,
                                                                                          b->options,
                                                                                          b->tie_order};
    return a->n_items == b->n_items && a->n_users == b->n_users &&
           same_texts(a->titles, b->titles, a->n_items + 1) &&
           same_texts(a->categories, b->categories, a->n_items + 1) &&
           same_texts(a->item_names, b->item_names, a->n_items + 1) &&
           same_texts(a->user_names, b->user_names, a->n_users) && same_texts(of_a, of_b, 4) &&
           memcmp(a->offsets, b->offsets, sizeof offsets) == 0 &&
           memcmp(a->sequence, b->sequence, sizeof sequence) == 0;
}

static void test_round_trip(void **state) {
    (void)state;
    const char *path = check_path(check_scratch_dir(), "d.h5");
    dr_dataset d = sample(), *back = NULL;
    check_ok(dr_dataset_save(&d, path));
    check_ok(dr_dataset_load(path, &back));
    assert_true(same(&d, back));
    assert_int_equal(dr_dataset_find_user(back, "AFW2"), 1);
    assert_int_equal(dr_dataset_find_user(back, "afw2"), -1);
    dr_dataset_destroy(back);
    dr_dataset_destroy(NULL);
    // counts are there for whoever opens the file without us
    dr_h5 *file = NULL;
    int64_t n = 0;
    check_ok(dr_h5_open(path, &file));
    check_ok(dr_h5_get_i64(file, "/", "n_interactions", &n));
    assert_int_equal(n, EVENTS);
    dr_h5_close(file);
}

static void check_example(const dr_dataset *d, int32_t user, dr_split split, int32_t target,
                          int32_t n_history) {
    dr_example e;
    assert_true(dr_dataset_example(d, user, split, &e));
    assert_int_equal(e.user, user);
    assert_int_equal(e.target, target);
    assert_int_equal(e.n_history, n_history);
    assert_ptr_equal(e.history, d->sequence + d->offsets[user]);
}

static void test_split(void **state) {
    (void)state;
    dr_dataset d = sample();
    dr_example e;
    check_example(&d, 0, DR_SPLIT_TEST, 5, 4);
    check_example(&d, 0, DR_SPLIT_VALID, 4, 3);
    check_example(&d, 0, DR_SPLIT_TRAIN, 3, 2);
    check_example(&d, 1, DR_SPLIT_TEST, 1, 2);
    check_example(&d, 1, DR_SPLIT_VALID, 4, 1);
    assert_false(dr_dataset_example(&d, 1, DR_SPLIT_TRAIN, &e)); // nothing before its first item
    check_example(&d, 2, DR_SPLIT_TEST, 3, 1);
    assert_false(dr_dataset_example(&d, 2, DR_SPLIT_VALID, &e));
    assert_false(dr_dataset_example(&d, 3, DR_SPLIT_TEST, &e));
    assert_false(dr_dataset_example(&d, 3, DR_SPLIT_TRAIN, &e));
}

static void check_save_refuses(const dr_dataset *d, const char *text) {
    const char *path = check_path(check_scratch_dir(), "refused.h5");
    dr_dataset good = sample(), *back = NULL;
    check_ok(dr_dataset_save(&good, path));
    check_error(dr_dataset_save(d, path), DR_ERR_FORMAT, text);
    check_ok(dr_dataset_load(path, &back)); // the old one is still there
    assert_true(same(&good, back));
    dr_dataset_destroy(back);
}

static void test_save_refuses(void **state) {
    (void)state;
    dr_dataset d = sample();
    char *doubled[] = {"", "A", "B", "C", "B", "E"}, *empty[] = {"", "A", "B", "", "D", "E"};
    int32_t beyond[EVENTS] = {1, 2, 6, 4, 5, 5, 4, 1, 2, 3, 1};
    d.titles = doubled;
    check_save_refuses(&d, "two items share the title \"B\"");
    d.titles = empty;
    check_save_refuses(&d, "item 3 has no title");
    d = sample();
    d.sequence = beyond;
    check_save_refuses(&d, "event 2 names item 6, expected 1 to 5");
}

// Which part of an otherwise good file is wrong, and how.
typedef struct fault {
    const char *expected; // in the error
    const char *format;
    int64_t version, n_items, n_users, n_events, n_titles;
    const int64_t *offsets;
    const int32_t *sequence;
    const char *left_out; // dataset or attribute
    int is_float;         // the sequence
} fault;

static void write_faulty(const char *path, const fault *f) {
    dr_h5 *file = NULL;
    check_ok(dr_h5_create(path, &file));
    const char *const *const texts[] = {(const char *const *)titles, (const char *const *)categories,
                                        (const char *const *)item_names, (const char *const *)user_names};
    static const char *const names[] = {"items/title", "items/categories", "items/id", "users/id"};
    for (int i = 0; i < 4; i++)
        if (strcmp(f->left_out, names[i]) != 0)
            check_ok(dr_h5_write_strings(file, names[i], texts[i],
                                         i == 3   ? USERS
                                         : i == 0 ? f->n_titles
                                                  : ITEMS + 1,
                                         ""));
    int64_t n_offsets = USERS + 1;
    if (strcmp(f->left_out, "users/offset") != 0)
        check_ok(dr_h5_write(file, "users/offset", DR_H5_I64, 1, &n_offsets, f->offsets, "", ""));
    check_ok(dr_h5_write(file, "users/sequence", f->is_float ? DR_H5_F32 : DR_H5_I32, 1, &f->n_events,
                         f->sequence, "", ""));
    check_ok(dr_h5_set_string(file, "/", "format", f->format));
    check_ok(dr_h5_set_i64(file, "/", "version", f->version));
    check_ok(dr_h5_set_i64(file, "/", "n_items", f->n_items));
    check_ok(dr_h5_set_i64(file, "/", "n_users", f->n_users));
    static const char *const attributes[] = {"name", "source", "options", "tie_order"};
    for (int i = 0; i < 4; i++)
        if (strcmp(f->left_out, attributes[i]) != 0)
            check_ok(dr_h5_set_string(file, "/", attributes[i], "x"));
    check_ok(dr_h5_commit(file));
}

static void test_load_refuses(void **state) {
    (void)state;
    static const int64_t back[] = {0, 5, 4, 10, 11}, late[] = {1, 5, 8, 10, 11}, early[] = {0, 5, 8, 10, 10},
                         far[] = {0, 5, INT64_MAX, 10, 11};
    static const int32_t zero[] = {1, 2, 3, 4, 5, 5, 4, 0, 2, 3, 1},
                         negative[] = {1, 2, 3, 4, 5, 5, 4, 1, -2, 3, 1};
    const fault good = {"", "deeprec-dataset", 1, ITEMS, USERS, EVENTS, ITEMS + 1, offsets, sequence, "", 0};
    fault faults[32];
    int n = 0;
#define FAULT(text, field, value) (faults[n] = good, faults[n].expected = (text), faults[n++].field = (value))
    FAULT("not a prepared data set", format, "deeprec-checkpoint");
    FAULT("data set version 2, expected 1", version, 2);
    FAULT("\"items/title\": dimension 0 is 6, expected 7", n_items, ITEMS + 1);
    FAULT("0 items and 4 users", n_items, 0);
    FAULT("-3 items", n_items, -3);
    FAULT("9223372036854775807 items", n_items, INT64_MAX);
    FAULT("\"users/id\": dimension 0 is 4, expected 3", n_users, USERS - 1);
    FAULT("9223372036854775807 users", n_users, INT64_MAX);
    FAULT("\"items/title\": dimension 0 is 5, expected 6", n_titles, ITEMS);
    FAULT("user offsets run from 0 to 11, expected 0 to 10", n_events, EVENTS - 1);
    FAULT("user 1: offsets go back", offsets, back);
    FAULT("user offsets run from 1 to 11, expected 0 to 11", offsets, late);
    FAULT("user offsets run from 0 to 10, expected 0 to 11", offsets, early);
    FAULT("user 2: offsets go back", offsets, far);
    FAULT("event 7 names item 0, expected 1 to 5", sequence, zero);
    FAULT("event 8 names item -2, expected 1 to 5", sequence, negative);
    FAULT("\"users/sequence\" is not of type int32", is_float, 1);
    FAULT("dataset \"items/title\" is missing", left_out, "items/title");
    FAULT("dataset \"items/categories\" is missing", left_out, "items/categories");
    FAULT("dataset \"users/id\" is missing", left_out, "users/id");
    FAULT("dataset \"users/offset\" is missing", left_out, "users/offset");
    FAULT("attribute \"tie_order\" of / is missing", left_out, "tie_order");
#undef FAULT
    const char *path = check_path(check_scratch_dir(), "faulty.h5");
    dr_dataset *d = NULL;
    write_faulty(path, &good);
    check_ok(dr_dataset_load(path, &d));
    dr_dataset_destroy(d);
    d = NULL;
    for (int i = 0; i < n; i++) {
        write_faulty(path, &faults[i]);
        dr_status status = dr_dataset_load(path, &d);
        if (status != DR_ERR_FORMAT && status != DR_ERR_UNSUPPORTED)
            fail_msg("fault %d (%s): %s", i, faults[i].expected, dr_status_name(status));
        if (!strstr(dr_last_error(), faults[i].expected) || !strstr(dr_last_error(), "faulty.h5"))
            fail_msg("fault %d: \"%s\" lacks \"%s\"", i, dr_last_error(), faults[i].expected);
        assert_null(d);
    }
}

static void test_no_file(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    dr_dataset *d = NULL;
    check_error(dr_dataset_load(check_path(dir, "none.h5"), &d), DR_ERR_IO, "none.h5");
    check_write_file(check_path(dir, "text.h5"), "userId,movieId\n1,2\n", 19);
    check_error(dr_dataset_load(check_path(dir, "text.h5"), &d), DR_ERR_FORMAT, "text.h5");
    assert_null(d);
}

// Truncated at a hundred lengths, every byte flipped, every page zeroed: an error or the right contents.
static void test_damaged(void **state) {
    (void)state;
    const char *dir = check_scratch_dir(), *path = check_path(dir, "good.h5"),
               *bad = check_path(dir, "bad.h5");
    dr_dataset d = sample(), *back = NULL;
    check_ok(dr_dataset_save(&d, path));
    size_t length = 0;
    int refused = 0;
    char *bytes = check_read_file(path, &length), *copy = malloc(length);
    dr_log_set_level(DR_LOG_ERROR + 1);
    for (int i = 0; i < 100; i++) {
        check_write_file(bad, bytes, length * (size_t)i / 100);
        assert_int_not_equal(dr_dataset_load(bad, &back), DR_OK);
    }
    for (size_t i = 0; i < length; i++) {
        memcpy(copy, bytes, length);
        copy[i] ^= (char)(i % 3 == 0 ? 0x01 : i % 3 == 1 ? 0x80 : 0xFF);
        if (i % 512 == 0) memset(copy + i, i % 1024 ? 0x00 : 0xFF, length - i < 512 ? length - i : 512);
        check_write_file(bad, copy, length);
        if (dr_dataset_load(bad, &back) != DR_OK) {
            refused++;
            continue;
        }
        if (!same(&d, back)) fail_msg("byte %zu of %zu: other contents without an error", i, length);
        dr_dataset_destroy(back);
    }
    dr_log_set_level(DR_LOG_INFO);
    assert_true(refused > (int)length / 4);
    free(bytes);
    free(copy);
}

static void test_full_disk(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    if (mount("tmpfs", dir, "tmpfs", 0, "size=1m") != 0) skip(); // needs root
    const char *path = check_path(dir, "d.h5");
    enum { MANY = 1 << 20 };
    dr_dataset d = sample(), *back = NULL, large = sample();
    int64_t many[] = {0, 5, 8, 10, MANY};
    large.offsets = many;
    large.sequence = malloc(sizeof *large.sequence * MANY);
    for (int i = 0; i < MANY; i++) large.sequence[i] = 1 + i % ITEMS;
    check_ok(dr_dataset_save(&d, path));
    check_error(dr_dataset_save(&large, path), DR_ERR_IO, "No space left on device");
    check_ok(dr_dataset_load(path, &back));
    assert_true(same(&d, back));
    dr_dataset_destroy(back);
    free(large.sequence);
    assert_int_equal(umount(dir), 0);
    rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_split),
        cmocka_unit_test(test_save_refuses), cmocka_unit_test(test_load_refuses),
        cmocka_unit_test(test_no_file),      cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
