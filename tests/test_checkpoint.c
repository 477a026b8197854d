// Checkpoints: whole or invisible; every damage is named, an older one is used, a full disk breaks nothing.
// labels: cpu
#include "tests/tiny_checkpoint.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/store/h5.h"

// ---- there and back ----

static void test_round_trip(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    check_found(run, -1); // not even a folder
    for (int32_t parts = 1; parts <= 3; parts++) {
        save_ok(run, parts, parts);
        check_found(run, parts);
        for (int32_t step = 1; step <= parts; step++)
            for (int size = 1; size <= 4; size++)
                for (int rank = 0; rank < size; rank++) check_loads_as(run, step, rank, size);
    }
    dr_checkpoint_info info;
    char *dir = dir_of(run, 3);
    check_ok(dr_checkpoint_verify(dir, &info));
    assert_true(info.step == 3 && info.updates == 30 && info.n_files == 3);
    assert_string_equal(info.config_hash, "hash-3");
    for (int i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "rank_%d.h5", i);
        assert_string_equal(info.files[i].name, name);
        assert_int_equal(info.files[i].bytes, dr_file_size(check_path(dir, name)));
        assert_int_equal(strlen(info.files[i].digest), 16);
    }
    dr_checkpoint_info_reset(&info);
    assert_true(info.files == NULL && info.n_files == 0);
    dr_checkpoint_info_reset(&info);
    dr_free(dir);
}

// A policy alone, as the reward shards and the exporter want it.
static void test_weights_only(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    learner_state fresh = state_make(9), want = state_make(1);
    save_ok(run, 2, 3);
    state_advance(&want, 2);
    char *dir = dir_of(run, 2);
    check_ok(dr_checkpoint_load(fresh.lm, NULL, dir));
    check_same_bits("weights", dr_lm_params(fresh.lm), dr_lm_params(want.lm), want.n);
    assert_int_equal(dr_optimizer_updates(fresh.optimizer), 0);
    // and the loaded weights are what the model computes with
    dr_lm_workspace *w[2];
    int32_t ids[9], rows[8], cu[2] = {0, 8};
    float logprob[2][8], entropy[8];
    for (int i = 0; i < 9; i++) ids[i] = i * 7 % 61;
    for (int i = 0; i < 8; i++) rows[i] = i;
    dr_pack pack = {8, ids, cu, 1, 8, rows, ids + 1, NULL, NULL};
    for (int i = 0; i < 2; i++) {
        dr_lm *lm = i ? want.lm : fresh.lm;
        check_ok(dr_lm_workspace_create(lm, 8, DR_KEEP_ACTIVATIONS, &w[i]));
        check_ok(dr_lm_forward(lm, w[i], &pack, 1.0f, logprob[i], entropy));
        dr_lm_workspace_destroy(w[i]);
    }
    check_same_bits("log-probabilities", logprob[0], logprob[1], 8);
    state_free(&fresh);
    state_free(&want);
    dr_free(dir);
}

// view.h5 shows every tensor of every part under its name, for whoever reads a checkpoint from outside.
static void test_view(void **state) {
    (void)state;
    const char *run = check_scratch_dir(), *moments[] = {"first_moment", "second_moment"};
    learner_state want = state_make(1);
    const dr_lm_tensor *tensors;
    dr_h5 *view = NULL;
    save_ok(run, 4, 3);
    state_advance(&want, 4);
    const float *sources[] = {dr_optimizer_first(want.optimizer), dr_optimizer_second(want.optimizer)};
    char *path = file_of(run, 4, "view.h5"), name[160];
    check_ok(dr_h5_open(path, &view));
    int32_t n = dr_lm_tensors(want.lm, &tensors);
    assert_true(n > 20);
    for (int32_t i = 0; i < n; i++) {
        int32_t n_dims = 0;
        int64_t shape[4], offset = -1;
        float *values = NULL;
        snprintf(name, sizeof name, "weights/%s", tensors[i].name);
        check_ok(dr_h5_shape(view, name, &n_dims, shape));
        assert_int_equal(shape[0] * (n_dims == 2 ? shape[1] : 1), tensors[i].rows * tensors[i].cols);
        check_ok(dr_h5_get_i64(view, name, "flat_offset", &offset));
        assert_int_equal(offset, tensors[i].offset); // where its moments stand
        check_ok(dr_h5_read(view, name, DR_H5_F32, n_dims, shape, &values));
        check_same_bits(name, values, dr_lm_params(want.lm) + offset, tensors[i].rows * tensors[i].cols);
        dr_free(values);
    }
    for (int g = 0; g < 2; g++) {
        float *values = NULL;
        check_ok(dr_h5_read(view, moments[g], DR_H5_F32, 1, &want.n, &values));
        check_same_bits(moments[g], values, sources[g], want.n);
        dr_free(values);
    }
    dr_h5_close(view);
    dr_free(path);
    state_free(&want);
}

// Another model's checkpoint is refused by the name of a tensor.
static void test_other_model(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    char *dir = dir_of(run, 1);
    dr_lm_config config = small_config();
    dr_lm *other = NULL;
    save_ok(run, 1, 2);
    quiet();
    config.vocab = 62;
    check_ok(dr_lm_create(backend, &config, 1, &other));
    check_error(dr_checkpoint_load(other, NULL, dir), DR_ERR_FORMAT, "embed_tokens");
    dr_lm_destroy(other);
    config = small_config();
    config.n_layers = 3;
    check_ok(dr_lm_create(backend, &config, 1, &other));
    check_error(dr_checkpoint_load(other, NULL, dir), DR_ERR_FORMAT, "layers.2.");
    dr_lm_destroy(other);
    dr_free(dir);
}

// ---- incomplete ones ----

static void test_no_manifest(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    learner_state s = state_make_part(1, 0, 2);
    dr_checkpoint_file file;
    dr_checkpoint_info info = {.step = 77};
    char *dir = dir_of(run, 5);
    state_advance(&s, 5);
    check_ok(dr_checkpoint_write_part(s.lm, s.optimizer, dir, 0, 2, &file));
    check_found(run, -1); // parts without a manifest are nothing, and no error
    quiet();
    check_error(dr_checkpoint_write_part(s.lm, s.optimizer, dir, 1, 2, &file), DR_ERR_ARGUMENT,
                "part 1 of 2: expected moments");
    assert_int_not_equal(dr_checkpoint_verify(dir, &info), DR_OK);
    assert_int_equal(info.step, 77);
    assert_int_not_equal(dr_checkpoint_load(s.lm, s.optimizer, dir), DR_OK);
    check_same_state("not touched", &s, 5);
    save_ok(run, 3, 1);
    check_found(run, 3); // step 5 is newer, but is none
    save_ok(run, 5, 2);  // until it is written again, over what was left
    check_found(run, 5);
    check_loads(run, 5);
    char *manifest = file_of(run, 5, "manifest.json");
    assert_int_equal(unlink(manifest), 0);
    check_found(run, 3);
    dr_free(manifest);
    dr_free(dir);
    state_free(&s);
}

// Folders that only look like checkpoints.
static void test_other_folders(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    save_ok(run, 2, 1);
    check_ok(dr_dir_make(check_path(run, "checkpoints/step_000009.old")));
    check_ok(dr_dir_make(check_path(run, "checkpoints/step_")));
    check_ok(dr_dir_make(check_path(run, "checkpoints/best")));
    check_write_file(check_path(run, "checkpoints/step_000007"), "a file", 6);
    check_found(run, 2);
    check_ok(dr_checkpoint_prune(run, 1));
    check_found(run, 2);
    assert_true(dr_dir_exists(check_path(run, "checkpoints/best")));
    assert_true(dr_dir_exists(check_path(run, "checkpoints/step_000009.old")));
}

// ---- damaged ones ----

static bool is_refused(const char *run, int64_t step) {
    dr_checkpoint_info info = {0};
    char *dir = dir_of(run, step);
    dr_status status = dr_checkpoint_verify(dir, &info);
    dr_checkpoint_info_reset(&info);
    dr_free(dir);
    return status != DR_OK;
}

// One file of step 2 in all kinds of damage; step 1 is in order.
static void check_damage(const char *run, const char *name) {
    char *path = file_of(run, 2, name);
    size_t length = 0;
    char *bytes = check_read_file(path, &length);
    static const char masks[] = {0x01, 0x10, (char)0x80, (char)0xFF};
    for (int i = 0; i < 200; i++) { // the first and the last bytes, and some of everything between
        size_t at = i < 20   ? (size_t)i
                    : i < 40 ? length - (size_t)(i - 19)
                             : (length - 1) * (size_t)(i - 39) / 161;
        bytes[at] ^= masks[i % 4];
        check_write_file(path, bytes, length);
        bytes[at] ^= masks[i % 4];
        if (!is_refused(run, 2)) fail_msg("%s: byte %zu of %zu flipped, and nobody minds", name, at, length);
        if (i % 40 == 0) check_found(run, 1);
    }
    for (int i = 0; i < 20; i++) {
        check_write_file(path, bytes, i == 19 ? length - 1 : length * (size_t)i / 20);
        if (!is_refused(run, 2)) fail_msg("%s: cut off after %d twentieths, and nobody minds", name, i);
        if (i % 6 == 0) check_found(run, 1);
    }
    char *longer = malloc(length + 1);
    memcpy(longer, bytes, length);
    longer[length] = '\n';
    check_write_file(path, longer, length + 1);
    assert_true(is_refused(run, 2));
    free(longer);
    assert_int_equal(unlink(path), 0);
    assert_true(is_refused(run, 2));
    check_found(run, 1);
    assert_int_equal(mkdir(path, 0700), 0); // a folder in the file's place
    assert_true(is_refused(run, 2));
    check_found(run, 1);
    assert_int_equal(rmdir(path), 0);
    check_write_file(path, bytes, length); // whole again
    check_found(run, 2);
    free(bytes);
    dr_free(path);
}

static void test_damaged_parts(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    save_ok(run, 1, 1);
    save_ok(run, 2, 3);
    quiet();
    check_damage(run, "rank_0.h5");
    check_damage(run, "rank_2.h5");
    check_damage(run, "view.h5");
    // two parts in each other's place
    char *first = file_of(run, 2, "rank_0.h5"), *second = file_of(run, 2, "rank_1.h5");
    size_t n_first = 0, n_second = 0;
    char *a = check_read_file(first, &n_first), *b = check_read_file(second, &n_second);
    check_write_file(first, b, n_second);
    check_write_file(second, a, n_first);
    assert_true(is_refused(run, 2));
    check_found(run, 1);
    check_loads(run, 1);
    free(a);
    free(b);
    dr_free(first);
    dr_free(second);
}

// Nothing is loaded from a damaged one: weights and moments stay.
static void test_damaged_is_not_loaded(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    learner_state s = state_make(1);
    char *dir = dir_of(run, 2), *path = file_of(run, 2, "rank_1.h5");
    size_t length = 0;
    save_ok(run, 2, 2);
    state_advance(&s, 4);
    char *bytes = check_read_file(path, &length);
    bytes[length / 2] ^= 1;
    check_write_file(path, bytes, length);
    quiet();
    check_error(dr_checkpoint_load(s.lm, s.optimizer, dir), DR_ERR_FORMAT, "rank_1.h5 is damaged");
    check_same_state("not touched", &s, 4);
    free(bytes);
    dr_free(dir);
    dr_free(path);
    state_free(&s);
}

static bool same_info(const dr_checkpoint_info *a, const dr_checkpoint_info *b) {
    bool same = a->step == b->step && a->updates == b->updates && a->n_files == b->n_files &&
                strcmp(a->config_hash, b->config_hash) == 0;
    for (int32_t i = 0; i < a->n_files && same; i++)
        same = strcmp(a->files[i].name, b->files[i].name) == 0 && a->files[i].bytes == b->files[i].bytes &&
               strcmp(a->files[i].digest, b->files[i].digest) == 0;
    return same;
}

// The manifest: refused, or read as what it was (bytes between values mean nothing). Never other values.
static void test_damaged_manifest(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    dr_checkpoint_info want, info;
    size_t length = 0;
    int refused = 0, other = 0;
    char first[200] = "";
    save_ok(run, 1, 1);
    save_ok(run, 12, 2);
    char *dir = dir_of(run, 12), *path = file_of(run, 12, "manifest.json");
    check_ok(dr_checkpoint_verify(dir, &want));
    char *bytes = check_read_file(path, &length);
    quiet();
    static const char masks[] = {0x01, 0x02, 0x10, (char)0x80};
    for (size_t i = 0; i < length * 4; i++) {
        bytes[i / 4] ^= masks[i % 4];
        check_write_file(path, bytes, length);
        if (dr_checkpoint_verify(dir, &info) != DR_OK) {
            refused++;
        } else {
            if (!same_info(&info, &want) && other++ == 0)
                snprintf(first, sizeof first, "%.60s", bytes + (i / 4 > 20 ? i / 4 - 20 : 0));
            dr_checkpoint_info_reset(&info);
        }
        bytes[i / 4] ^= masks[i % 4];
    }
    for (size_t n = 0; n < length; n += 1 + length / 50) {
        check_write_file(path, bytes, n);
        assert_true(is_refused(run, 12));
        check_found(run, 1);
    }
    dr_checkpoint_info_reset(&want);
    free(bytes);
    dr_free(path);
    dr_free(dir);
    assert_true(refused > (int)length);
    if (other > 0)
        fail_msg("%d of %zu damaged manifests are believed and say something else; the first: …%s…", other,
                 length * 4, first);
}

static void check_manifest_refused(const char *run, const char *text, const char *reason) {
    char *dir = dir_of(run, 1), *path = file_of(run, 1, "manifest.json");
    dr_checkpoint_info info = {.step = 77};
    check_write_file(path, text, strlen(text));
    check_error(dr_checkpoint_verify(dir, &info), DR_ERR_FORMAT, reason);
    assert_true(info.step == 77 && info.files == NULL);
    dr_free(path);
    dr_free(dir);
}

static void test_foreign_manifests(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    save_ok(run, 1, 1);
    quiet();
    check_manifest_refused(run, "", "manifest.json");
    check_manifest_refused(run, "[]", "manifest.json");
    check_manifest_refused(run, "{}", "version");
    check_manifest_refused(run, "{\"version\": 6}", "version");
    check_manifest_refused(run, "{\"version\": 3}", "version"); // whole moments, by tensor
    check_manifest_refused(run, "{\"version\": 4}", "version"); // whole weights, by tensor
    check_manifest_refused(run, "{\"version\": 5, \"step\": -1}", "step");
    check_manifest_refused(
        run, "{\"version\": 5, \"step\": 1, \"updates\": 1, \"config_hash\": \"\", \"files\": 3}", "files");
    check_manifest_refused(run,
                           "{\"version\": 5, \"step\": 1, \"updates\": 1, \"config_hash\": \"\", \"files\": "
                           "[{\"name\": \"../step_000001/rank_0.h5\", \"bytes\": 1, \"xxh3\": \"\"}]}",
                           "bad name");
    check_manifest_refused(
        run,
        "{\"version\": 5, \"step\": 1, \"updates\": 1, \"config_hash\": \"\", \"files\": "
        "[{\"name\": \"a_name_that_is_longer_than_any_of_ours\", \"bytes\": 1, \"xxh3\": \"\"}]}",
        "bad name");
    check_manifest_refused(run,
                           "{\"version\": 5, \"step\": 1, \"updates\": 1, \"config_hash\": \"\", \"files\": "
                           "[{\"name\": \"rank_0.h5\", \"xxh3\": \"\"}]}",
                           "bytes");
}

static void test_all_damaged(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    int64_t step = 77;
    save_ok(run, 1, 1);
    save_ok(run, 2, 2);
    quiet();
    for (int i = 1; i <= 2; i++) {
        char *path = file_of(run, i, "rank_0.h5");
        size_t length = 0;
        char *bytes = check_read_file(path, &length);
        bytes[length / 3] ^= 4;
        check_write_file(path, bytes, length);
        free(bytes);
        dr_free(path);
        if (i == 1) check_found(run, 2);
    }
    check_error(dr_checkpoint_find(run, &step), DR_ERR_FORMAT, "none of its 2 checkpoints is usable");
    assert_int_equal(step, 77);
}

// ---- a full disk ----

static int count_temporaries(const char *run, int64_t step) {
    char *dir = dir_of(run, step), command[400], line[16] = "0";
    snprintf(command, sizeof command, "ls '%s' 2>/dev/null | grep -c tmp", dir);
    FILE *pipe = popen(command, "r");
    if (!fgets(line, sizeof line, pipe)) line[0] = '\0';
    pclose(pipe);
    dr_free(dir);
    return atoi(line);
}

static void test_file_size_limit(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    struct rlimit before, small;
    save_ok(run, 1, 2);
    char *part = file_of(run, 1, "rank_0.h5"), *view = file_of(run, 1, "view.h5");
    int64_t part_bytes = dr_file_size(part), view_bytes = dr_file_size(view);
    getrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_IGN);
    quiet();
    // too little for anything; for half a part; for a part but its end; for the parts, but not for the view
    const int64_t limits[] = {0, part_bytes / 2, part_bytes - 100, view_bytes - 100};
    for (int i = 0; i < 4; i++) {
        if (i == 3 && view_bytes - 100 < part_bytes) continue;
        small = before;
        small.rlim_cur = (rlim_t)limits[i];
        setrlimit(RLIMIT_FSIZE, &small);
        dr_status status = save(run, 2, 2);
        setrlimit(RLIMIT_FSIZE, &before);
        check_error(status, DR_ERR_IO, "File too large");
        assert_false(has_file(run, 2, "manifest.json"));
        assert_int_equal(count_temporaries(run, 2), 0);
        check_found(run, 1);
        check_loads(run, 1);
    }
    save_ok(run, 2, 2); // room again
    check_found(run, 2);
    check_loads(run, 2);
    dr_free(part);
    dr_free(view);
}

// Saving over a checkpoint that is there: whatever fails, what can be found is whole.
static void test_limit_while_saving_again(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    struct rlimit before, small;
    save_ok(run, 1, 1);
    save_ok(run, 2, 1);
    getrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_IGN);
    quiet();
    small = before;
    small.rlim_cur = 4096;
    setrlimit(RLIMIT_FSIZE, &small);
    dr_status status = save(run, 2, 1);
    setrlimit(RLIMIT_FSIZE, &before);
    check_error(status, DR_ERR_IO, "File too large");
    check_found(run, 2); // the same contents as before
    check_loads(run, 2);
}

static void test_full_disk(void **state) {
    (void)state;
    const char *run = check_scratch_dir();
    char *probe = NULL, options[32];
    save_ok(run, 1, 2);
    probe = file_of(run, 1, "rank_0.h5");
    int64_t bytes = dr_file_size(probe);
    dr_free(probe);
    // room for one checkpoint and a part of the next
    snprintf(options, sizeof options, "size=%lldk", (long long)(bytes * 4 / 1024));
    const char *small = check_scratch_dir();
    if (mount("tmpfs", small, "tmpfs", 0, options) != 0) {
        print_message("mounting a small tmpfs needs root\n");
        skip();
    }
    dr_status first = save(small, 1, 2), second = DR_OK;
    int64_t step = 1;
    quiet();
    while (first == DR_OK && second == DR_OK && step < 9) second = save(small, ++step, 2);
    char text[300];
    snprintf(text, sizeof text, "%.299s", dr_last_error());
    int temporaries = count_temporaries(small, step);
    bool has_manifest = has_file(small, step, "manifest.json");
    int64_t found = -77;
    dr_status find = dr_checkpoint_find(small, &found);
    learner_state loaded = state_make(9);
    char *dir = dir_of(small, step - 1);
    dr_status load = dr_checkpoint_load(loaded.lm, loaded.optimizer, dir);
    dr_free(dir);
    // room again: the oldest goes, the next save works
    dr_status prune = dr_checkpoint_prune(small, 1);
    umount(small);
    check_ok(first);
    assert_int_equal(second, DR_ERR_IO);
    if (!strstr(text, "No space left on device")) fail_msg("the error is \"%s\"", text);
    assert_int_equal(temporaries, 0);
    assert_false(has_manifest);
    check_ok(find);
    assert_int_equal(found, step - 1);
    check_ok(load);
    check_same_state("loaded from a full disk", &loaded, step - 1);
    check_ok(prune);
    state_free(&loaded);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        checkpoint_test(test_round_trip),
        checkpoint_test(test_weights_only),
        checkpoint_test(test_view),
        checkpoint_test(test_other_model),
        checkpoint_test(test_no_manifest),
        checkpoint_test(test_other_folders),
        checkpoint_test(test_damaged_parts),
        checkpoint_test(test_damaged_is_not_loaded),
        checkpoint_test(test_damaged_manifest),
        checkpoint_test(test_foreign_manifests),
        checkpoint_test(test_all_damaged),
        checkpoint_test(test_file_size_limit),
        checkpoint_test(test_limit_while_saving_again),
        checkpoint_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
