// `deeprec logits` through the program: the goldens' logits in HDF5, what it refuses, results in parts.
// labels: cpu
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/model/lm.h"
#include "core/store/h5.h"
#include "core/store/safetensors.h"
#include "tests/check.h"

// Exit code; what it printed is in `log`.
static int run_logits(const char *model, const char *ids, const char *out, const char *log) {
    char command[2000];
    snprintf(command, sizeof command,
             "%s logits --model %s --ids-file %s --dtype fp32 --out %s --threads 1 >%s 2>&1", DR_BINARY,
             model, ids, out, log);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void check_family(const char *name) {
    const char *dir = check_golden(name), *scratch = check_scratch_dir();
    const char *ids_path = check_path(scratch, "ids.txt"), *out = check_path(scratch, "out.h5");
    dr_safetensors *golden = NULL;
    check_ok(dr_safetensors_open(check_path(dir, "golden.safetensors"), &golden));
    const dr_safetensor *t = dr_safetensors_find(golden, "logits");
    int64_t n = t->shape[0], shape[2] = {t->shape[0], t->shape[1]};
    float *ids = NULL, *want = NULL, *got = NULL, largest = 0;
    check_ok(dr_alloc(&ids, "ids", n, sizeof(float)));
    check_ok(dr_alloc(&want, "logits", t->n_values, sizeof(float)));
    check_ok(dr_safetensors_read(golden, "ids", &n, 1, ids));
    check_ok(dr_safetensors_read(golden, "logits", shape, 2, want));
    dr_buf text = {0};
    for (int64_t i = 0; i < n; i++) check_ok(dr_buf_printf(&text, "%d%s", (int)ids[i], i % 5 ? " " : "\n\t"));
    check_write_file(ids_path, text.data, text.length);
    assert_int_equal(run_logits(dir, ids_path, out, check_path(scratch, "log")), 0);
    dr_h5 *file = NULL;
    check_ok(dr_h5_open(out, &file));
    check_ok(dr_h5_read(file, "logits", DR_H5_F32, 2, shape, &got));
    for (int64_t i = 0; i < t->n_values; i++) largest = fmaxf(largest, fabsf(want[i]));
    check_close("logits", got, want, t->n_values, 1e-4 * largest, 0);
    dr_h5_close(file);
    dr_buf_reset(&text);
    dr_free(ids);
    dr_free(want);
    dr_free(got);
    dr_safetensors_close(golden);
}

static void test_goldens(void **state) {
    (void)state;
    check_family("lm_qwen3");
    check_family("lm_sharded");
    check_family("lm_bf16");
}

static void refuse(const char *ids, const char *text) {
    const char *scratch = check_scratch_dir(), *model = check_golden("lm_qwen2");
    const char *path = check_path(scratch, "ids.txt"), *out = check_path(scratch, "out.h5"),
               *log = check_path(scratch, "log");
    check_write_file(path, ids, strlen(ids));
    assert_int_equal(run_logits(model, path, out, log), 1);
    size_t length;
    char *said = check_read_file(log, &length);
    if (!strstr(said, text) || !strstr(said, path)) fail_msg("\"%s\" lacks \"%s\" or %s", said, text, path);
    free(said);
    assert_false(dr_file_exists(out));
}

static void test_bad_ids(void **state) {
    (void)state;
    refuse("1 2 61 3", "id 3 is 61, outside the vocabulary of 61 (0 to 60)");
    refuse("1\n-2", "id 2 is -2, outside the vocabulary");
    refuse("1 2\n\n3x", "id 3 is \"3x\", expected a whole number");
    refuse("1 99999999999999999999", "id 2 is \"99999999999999999999\", expected a whole number");
    refuse(" \n", "no token ids");
    char many[2 * 129 + 1];
    for (int i = 0; i < 129; i++) memcpy(many + 2 * i, "1 ", 3);
    refuse(many, "more than 128 ids, the model's max_position_embeddings");
}

// 300 ids go through in two chunks; the view has the bits of the training pass.
static void test_parts(void **state) {
    (void)state;
    enum { N = 300, V = 97 };
    dr_backend *backend = NULL;
    dr_lm *lm = NULL;
    dr_lm_workspace *w = NULL;
    dr_lm_config config;
    const char *dir = check_scratch_dir(), *scratch = check_scratch_dir();
    const char *ids_path = check_path(scratch, "ids.txt"), *out = check_path(scratch, "out.h5");
    check_ok(dr_backend_cpu_create(DR_FP32, 1, &backend));
    check_ok(dr_lm_preset("tiny", V, &config));
    check_ok(dr_lm_create(backend, &config, 5, &lm));
    check_ok(dr_lm_save(lm, dir, DR_SAVE_FP32));
    int32_t ids[N], rows[N], cu[2] = {0, N};
    dr_buf text = {0};
    for (int i = 0; i < N; i++) {
        ids[i] = (i * i + 3 * i) % V;
        rows[i] = i;
        check_ok(dr_buf_printf(&text, "%d\n", ids[i]));
    }
    check_write_file(ids_path, text.data, text.length);
    float *want = NULL, *got = NULL;
    check_ok(dr_alloc(&want, "logits", N * V, sizeof(float)));
    check_ok(dr_lm_workspace_create(lm, N, DR_KEEP_ACTIVATIONS, &w));
    dr_pack pack = {N, ids, cu, 1, N, rows, rows, NULL, NULL};
    check_ok(dr_lm_logits(lm, w, &pack, want));
    assert_int_equal(run_logits(dir, ids_path, out, check_path(scratch, "log")), 0);
    dr_h5 *file = NULL;
    int64_t shape[2] = {N, V};
    check_ok(dr_h5_open(out, &file));
    check_ok(dr_h5_read(file, "logits", DR_H5_F32, 2, shape, &got));
    check_same_bits("logits", got, want, N * V);
    dr_h5_close(file);
    dr_free(got);
    dr_free(want);
    dr_buf_reset(&text);
    dr_lm_workspace_destroy(w);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(backend);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_bad_ids),
        cmocka_unit_test(test_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
