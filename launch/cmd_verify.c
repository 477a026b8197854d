// `deeprec verify`: shows for a model folder that what is recorded while sampling is what training computes.
#include <stdio.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/learn/mismatch.h"
#include "launch/backend_choice.h"
#include "launch/cli.h"

static const dr_setting options[] = {
    DR_TEXT("model", NULL, "FOLDER", "Hugging Face folder"),
    DR_CHOICE("dtype", "fp32", "fp32|bf16", "operands of the matrix products"),
    DR_CHOICE("backend", "cpu", DR_BACKEND_CHOICES, "what computes the model"),
    DR_CHOICE("kernels", "fast", DR_KERNEL_CHOICES, "on a device; reference: the simple ones"),
    DR_INT("tokens", "100000", 1, 1000000000, "tokens", "tokens to sample, at least"),
    DR_INT("live", "24", 1, 4096, "sequences", "sequences decoded together"),
    DR_INT("samples", "3", 1, 1024, "", "samples of a prompt, which share its cache"),
    DR_FLOAT("temperature", "1", 0, 100, "", "of sampling; 0: greedy"),
    DR_FLOAT("top-p", "0.95", 0.000001, 1, "", "of sampling"),
    DR_INT("alone", "8", 1, 1000000, "", "every n-th sequence is also run alone"),
    DR_INT("seed", "1", 0, 9000000000000000, "", "of contexts, batches and draws"),
    DR_INT("threads", "0", 0, 1024, "", "processor threads, 0: all"),
};

static double rate_of(int64_t tokens, double seconds) {
    return seconds > 0 ? (double)tokens / seconds : 0.0;
}

static int64_t report(const char *way, const dr_mismatch *m) {
    printf("%-40s max |delta| = %g over %lld tokens, %lld differ, %.0f tokens/s\n", way, (double)m->largest,
           (long long)m->tokens, (long long)m->different, rate_of(m->tokens, m->seconds));
    if (m->different > 0) printf("  the first one: sequence %d, position %d\n", m->sequence, m->position);
    fflush(stdout);
    return m->different;
}

static dr_status compare_all(dr_lm *lm, const dr_mismatch_settings *s, const dr_mismatch_set *set,
                             int32_t stride, double *out_training) {
    dr_mismatch m;
    int64_t different = 0;
    DR_TRY(dr_mismatch_train(lm, s, set, false, &m));
    different += report("packed training pass:", &m);
    *out_training = rate_of(m.tokens, m.seconds);
    if (set->n_kept > 0) {
        DR_TRY(dr_mismatch_train(lm, s, set, true, &m));
        different += report("the same, over the kept sets:", &m);
    }
    DR_TRY(dr_mismatch_replay(lm, s, set, stride, 3 * DR_KV_PAGE, &m));
    different += report("alone, prefilled in pieces:", &m);
    DR_TRY(dr_mismatch_replay(lm, s, set, stride, 1, &m));
    different += report("alone, one token at a time:", &m);
    DR_CHECK(different == 0, DR_ERR_NUMERIC, "%lld log-probabilities are not those that were recorded",
             (long long)different);
    return DR_OK;
}

static dr_status measure_loose(dr_lm *lm, const dr_mismatch_settings *s, const char *library, double sampling,
                               double training) {
    dr_mismatch_set set = {0};
    dr_mismatch m = {0};
    dr_status status = dr_mismatch_sample(lm, s, &set);
    if (status == DR_OK) status = dr_mismatch_train(lm, s, &set, false, &m);
    if (status == DR_OK) {
        char way[64];
        double loose_sampling = rate_of(set.n_sampled, set.seconds),
               loose_training = rate_of(m.tokens, m.seconds);
        snprintf(way, sizeof way, "not exact (%s), packed:", library);
        report(way, &m);
        printf("exactness costs %.0f %% of the speed of sampling (%.0f tokens/s against %.0f) and %.0f %% of "
               "the "
               "training pass's\n",
               100 * (1 - sampling / loose_sampling), sampling, loose_sampling,
               100 * (1 - training / loose_training));
    }
    dr_mismatch_set_reset(&set);
    return status;
}

// The same work with products that are not exact: how often it misses, and how much faster it is. Where the
// backend has none in this precision a line says so.
static dr_status compare_loose(const dr_config *o, const dr_mismatch_settings *s, dr_precision exact,
                               double sampling, double training) {
    dr_backend *backend = NULL;
    dr_lm *lm = NULL;
    dr_backend_choice choice = dr_backend_choice_of(o, "dtype");
    choice.precision = dr_rounds_to_bf16(exact) ? DR_BF16_LOOSE : DR_FP32_LOOSE;
    choice.option = NULL; // said of the exact one
    dr_status status = dr_backend_choose(&choice, &backend);
    if (status == DR_ERR_UNSUPPORTED || (status == DR_OK && !dr_is_loose(backend->precision))) {
        printf("no products that are not exact in this precision here: what exactness costs is not known\n");
        dr_backend_destroy(backend);
        return DR_OK;
    }
    if (status != DR_OK) return status;
    const char *library = strcmp(backend->ops->name, "cuda") == 0 ? "cuBLASLt" : "oneDNN's sgemm";
    status = dr_lm_load_frozen(backend, dr_config_string(o, "model"), &lm);
    if (status == DR_OK) status = measure_loose(lm, s, library, sampling, training);
    dr_lm_destroy(lm);
    dr_backend_destroy(backend);
    return status;
}

static void settings_of(const dr_config *o, const dr_lm *lm, dr_mismatch_settings *s) {
    *s = dr_mismatch_defaults(dr_lm_config_of(lm)->max_positions);
    s->tokens = dr_config_int(o, "tokens");
    s->live = (int32_t)dr_config_int(o, "live");
    s->samples = (int32_t)dr_config_int(o, "samples");
    s->seed = (uint64_t)dr_config_int(o, "seed");
    s->sampling.temperature = (float)dr_config_float(o, "temperature");
    s->sampling.top_p = (float)dr_config_float(o, "top-p");
}

static dr_status verify_command(const dr_cli *cli) {
    const dr_config *o = cli->options;
    dr_backend *backend = NULL;
    dr_lm *lm = NULL;
    dr_mismatch_set set = {0};
    dr_mismatch_settings s;
    double sampling = 0, training = 0;
    double begun = dr_clock_seconds();
    dr_backend_choice choice = dr_backend_choice_of(o, "dtype");
    choice.reference = dr_config_choice(o, "kernels") == 1;
    DR_TRY(dr_backend_choose(&choice, &backend));
    dr_status status = dr_lm_load_frozen(backend, dr_config_string(o, "model"), &lm);
    double loaded = dr_clock_seconds() - begun;
    if (status == DR_OK) {
        settings_of(o, lm, &s);
        status = dr_mismatch_sample(lm, &s, &set);
    }
    if (status == DR_OK) {
        sampling = rate_of(set.n_sampled, set.seconds);
        printf("%lld tokens sampled in %d sequences of %lld tokens, %d at a time, %.0f tokens/s\n",
               (long long)set.n_sampled, set.n, (long long)set.n_tokens, s.live, sampling);
        printf("the first token %.2f s after the start, %.2f s of it loading the model\n",
               loaded + set.first_s, loaded);
        fflush(stdout);
        status = compare_all(lm, &s, &set, (int32_t)dr_config_int(o, "alone"), &training);
    }
    dr_mismatch_set_reset(&set);
    dr_lm_destroy(lm);
    dr_backend_destroy(backend);
    if (status == DR_OK) status = compare_loose(o, &s, choice.precision, sampling, training);
    return status;
}

const dr_command dr_command_verify = {
    .name = "verify",
    .summary = "proves that sampling and training compute equal log-probabilities",
    .help =
        "Samples sequences in changing batches, with prompts that samples share and tool results that "
        "come in pieces between the decoding of others; then compares each recorded log-probability, bit "
        "for bit, with the one of the packed training pass, and of the sequence run alone. Context "
        "tokens are random ids. Exit code 1 when one differs. The same is then done with a library's "
        "products, which are not exact, to show what exactness costs, where the backend has them: in fp32, "
        "on CUDA in bf16 too.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = verify_command,
};
