// `deeprec verify`: shows for a model folder that what is recorded while sampling is what training computes.
#include <stdio.h>

#include "core/learn/mismatch.h"
#include "launch/cli.h"

static const dr_setting options[] = {
    DR_TEXT("model", NULL, "FOLDER", "Hugging Face folder"),
    DR_CHOICE("dtype", "fp32", "fp32|bf16", "operands of the matrix products"),
    DR_INT("tokens", "100000", 1, 1000000000, "tokens", "tokens to sample, at least"),
    DR_INT("live", "24", 1, 4096, "sequences", "sequences decoded together"),
    DR_INT("samples", "3", 1, 1024, "", "samples of a prompt, which share its cache"),
    DR_FLOAT("temperature", "1", 0, 100, "", "of sampling; 0: greedy"),
    DR_FLOAT("top-p", "0.95", 0.000001, 1, "", "of sampling"),
    DR_INT("alone", "8", 1, 1000000, "", "every n-th sequence is also run alone"),
    DR_INT("seed", "1", 0, 9000000000000000, "", "of contexts, batches and draws"),
    DR_INT("threads", "0", 0, 1024, "", "processor threads, 0: all"),
};

static int64_t report(const char *way, const dr_mismatch *m) {
    printf("%-40s max |delta| = %g over %lld tokens, %lld differ, %.0f tokens/s\n", way, (double)m->largest,
           (long long)m->tokens, (long long)m->different,
           m->seconds > 0 ? (double)m->tokens / m->seconds : 0.0);
    if (m->different > 0) printf("  the first one: sequence %d, position %d\n", m->sequence, m->position);
    fflush(stdout);
    return m->different;
}

static dr_status compare_all(dr_lm *lm, const dr_mismatch_settings *s, const dr_mismatch_set *set,
                             int32_t stride) {
    dr_mismatch m;
    int64_t different = 0;
    DR_TRY(dr_mismatch_train(lm, s, set, false, &m));
    different += report("packed training pass:", &m);
    if (set->n_kept > 0) DR_TRY(dr_mismatch_train(lm, s, set, true, &m));
    if (set->n_kept > 0) different += report("the same, over the kept sets:", &m);
    DR_TRY(dr_mismatch_replay(lm, s, set, stride, 3 * DR_KV_PAGE, &m));
    different += report("alone, prefilled in pieces:", &m);
    DR_TRY(dr_mismatch_replay(lm, s, set, stride, 1, &m));
    different += report("alone, one token at a time:", &m);
    DR_CHECK(different == 0, DR_ERR_NUMERIC, "%lld log-probabilities are not those that were recorded",
             (long long)different);
    return DR_OK;
}

static dr_status verify_command(const dr_cli *cli) {
    const dr_config *o = cli->options;
    dr_backend *backend = NULL;
    dr_lm *lm = NULL;
    dr_mismatch_set set = {0};
    DR_TRY(dr_backend_cpu_create((dr_precision)dr_config_choice(o, "dtype"), // rows in the enum's order
                                 (int)dr_config_int(o, "threads"), &backend));
    dr_status status = dr_lm_load(backend, dr_config_string(o, "model"), &lm);
    if (status == DR_OK) {
        dr_mismatch_settings s = dr_mismatch_defaults(dr_lm_config_of(lm)->max_positions);
        s.tokens = dr_config_int(o, "tokens");
        s.live = (int32_t)dr_config_int(o, "live");
        s.samples = (int32_t)dr_config_int(o, "samples");
        s.seed = (uint64_t)dr_config_int(o, "seed");
        s.sampling.temperature = (float)dr_config_float(o, "temperature");
        s.sampling.top_p = (float)dr_config_float(o, "top-p");
        status = dr_mismatch_sample(lm, &s, &set);
        if (status == DR_OK)
            printf("%lld tokens sampled in %d sequences of %lld tokens, %d at a time, %.0f tokens/s\n",
                   (long long)set.n_sampled, set.n, (long long)set.n_tokens, s.live,
                   set.seconds > 0 ? (double)set.n_sampled / set.seconds : 0.0);
        fflush(stdout);
        if (status == DR_OK) status = compare_all(lm, &s, &set, (int32_t)dr_config_int(o, "alone"));
    }
    dr_mismatch_set_reset(&set);
    dr_lm_destroy(lm);
    dr_backend_cpu_destroy(backend);
    return status;
}

const dr_command dr_command_verify = {
    .name = "verify",
    .summary = "proves that sampling and training compute equal log-probabilities",
    .help = "Samples sequences in changing batches, with prompts that samples share and tool results that "
            "come in pieces between the decoding of others; then compares each recorded log-probability, bit "
            "for bit, with the one of the packed training pass, and of the sequence run alone. Context "
            "tokens are random ids. Exit code 1 when one differs.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = verify_command,
};
