// The rollout engine where kept sets find little room: bursts become as short as what fits, and long again,
// and no bit depends on it.
// labels: cpu
#include "tests/check.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/narrow_backend.h"
#include "tests/rollout_outcome.h"
#include "tests/tiny_rollout.h"

static int lines_with(FILE *file, const char *text) {
    char line[1024];
    int n = 0;
    rewind(file);
    while (fgets(line, sizeof line, file)) n += strstr(line, text) != NULL;
    return n;
}

// The policy's draws on a body with room for so many kept ids; requests of two temperatures, one after the
// other, in one engine.
static void run_narrow(int64_t n_ids, const float temperatures[2], outcome *o, dr_rollout_stats stats[2]) {
    dr_backend narrow = narrow_backend(backend, n_ids);
    dr_lm *own = NULL;
    dr_rollout *rollout = NULL;
    check_ok(tiny_policy(&narrow, tokenizer, &own));
    dr_rollout_parts parts = tiny_rollout_parts(own);
    parts.burst = 8;
    check_ok(dr_rollout_create(&parts, &rollout));
    for (int i = 0; i < 2; i++) {
        for (int p = 2 * i; p < 2 * i + 2; p++) {
            dr_rollout_request q = tiny_rollout_request(p, 0, SAMPLES);
            q.sampling = (dr_sampling){temperatures[i], 0.95f};
            check_ok(dr_rollout_submit(rollout, &q));
        }
        while (dr_rollout_pending(rollout) > 0) {
            check_ok(dr_rollout_tick(rollout));
            drain(rollout, o);
        }
        dr_rollout_stats_get(rollout, &stats[i]);
    }
    assert_int_equal(o->n, PROMPTS * SAMPLES);
    dr_rollout_destroy(rollout);
    dr_lm_destroy(own);
}

// Rows that are finished early for want of room change no bit. While the policy is flat few passes are run in
// vain, and bursts are long again when it is not.
static void test_room_for_kept_sets(void **state) {
    (void)state;
    static const float flat_first[2] = {30.0f, 0.5f}, usual[2] = {1.0f, 0.8f};
    dr_rollout_stats wide[2], narrow[2];
    outcome want = {0}, got = {0};
    FILE *log = tmpfile();
    assert_non_null(log);
    const int terminal = dup(STDERR_FILENO);
    assert_true(dup2(fileno(log), STDERR_FILENO) >= 0);
    run_narrow(INT64_MAX, flat_first, &want, wide);
    assert_true(wide[1].short_bursts == 0 && lines_with(log, "found room") == 0);
    run_narrow(0, flat_first, &got, narrow); // one step's worst case
    check_equal(&want, &got, "kept sets without room");
    assert_int_equal(narrow[1].sampled_tokens, wide[1].sampled_tokens);
    assert_true(narrow[0].short_bursts > 0 && lines_with(log, "found room") == 1);
    // all rows draw in nearly every pass that they are in
    assert_true(narrow[0].idle_rows < narrow[0].sampled_tokens / 4);
    assert_true(narrow[0].passes < narrow[0].ticks * 3 / 2);
    const int64_t ticks = narrow[1].ticks - narrow[0].ticks, passes = narrow[1].passes - narrow[0].passes;
    print_message("flat: %d passes in %d ticks, %d idle rows, %d short bursts; then %d passes in %d ticks\n",
                  (int)narrow[0].passes, (int)narrow[0].ticks, (int)narrow[0].idle_rows,
                  (int)narrow[0].short_bursts, (int)passes, (int)ticks);
    assert_true(passes > 4 * ticks);
    outcome_reset(&got);
    outcome_reset(&want);
    run_narrow(INT64_MAX, usual, &want, wide);
    for (int64_t n_ids = 0; n_ids <= 8000; n_ids += 4000) {
        run_narrow(n_ids, usual, &got, narrow);
        check_equal(&want, &got, "kept sets with some room");
        outcome_reset(&got);
    }
    assert_int_equal(lines_with(log, "found room"), 1); // one a run
    assert_true(dup2(terminal, STDERR_FILENO) >= 0);
    close(terminal);
    fclose(log);
    outcome_reset(&want);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_room_for_kept_sets)};
    return cmocka_run_group_tests(tests, tiny_rollout_setup, tiny_rollout_teardown);
}
