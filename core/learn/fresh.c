// The corpus of the tokenizer is what the policy will read and write: list lines, prompts, the teacher's
// wording.
#include "core/learn/fresh.h"

#include <stdio.h>

#include "core/base/alloc.h"
#include "core/episode/protocol.h"
#include "core/episode/teacher.h"
#include "core/model/lm.h"
#include "core/text/tokenizer.h"

typedef struct corpus {
    char **texts;
    int64_t n, capacity;
} corpus;

static dr_status corpus_add(corpus *c, const char *text) {
    if (c->n == c->capacity) {
        DR_TRY(dr_grow(&c->texts, "corpus", c->capacity, 2 * c->capacity + 256, sizeof *c->texts));
        c->capacity = 2 * c->capacity + 256;
    }
    DR_TRY(dr_strdup(&c->texts[c->n], text));
    c->n++;
    return DR_OK;
}

static void corpus_reset(corpus *c) {
    for (int64_t i = 0; i < c->n; i++) dr_free(c->texts[i]);
    dr_free(c->texts);
}

// Numbered lines with titles as lists show them, categories as preferences name them, and prompts of some
// users.
static dr_status corpus_fill(corpus *c, const dr_dataset *d, const dr_template *t) {
    dr_buf text = {0};
    dr_status status = DR_OK;
    for (int32_t i = 1; i <= d->n_items && status == DR_OK; i++) {
        dr_buf_clear(&text);
        status = dr_buf_printf(&text, "\n%d. %s\n%d. %s\n%s\n %s, %s", i % 20 + 1, d->titles[i], i % 10 + 1,
                               d->titles[i], d->categories[i], d->categories[i], d->categories[i]);
        if (status == DR_OK) status = corpus_add(c, text.data);
    }
    int32_t stride = d->n_users > 500 ? d->n_users / 500 : 1;
    for (int32_t u = 0; u < d->n_users && status == DR_OK; u += stride) {
        dr_example e;
        if (!dr_dataset_example(d, u, DR_SPLIT_TRAIN, &e)) continue;
        dr_buf_clear(&text);
        status = dr_template_prompt(t, d, e.history, e.n_history, 10, 20, &text);
        if (status == DR_OK) status = corpus_add(c, text.data);
    }
    for (const char *const *phrase = dr_teacher_phrases(); *phrase && status == DR_OK; phrase++)
        for (int repeat = 0; repeat < 50 && status == DR_OK; repeat++) status = corpus_add(c, *phrase);
    dr_buf_reset(&text);
    return status;
}

dr_status dr_fresh_policy(const char *preset, const dr_dataset *dataset, const dr_template *prompt_template,
                          int32_t vocab, uint64_t seed, const char *dir, int32_t *out_vocab,
                          int64_t *out_params) {
    const char *specials[DR_N_TAGS + 1];
    for (int i = 0; i < DR_N_TAGS; i++) specials[i] = dr_protocol_tags[i];
    specials[DR_N_TAGS] = "<|endoftext|>";
    corpus c = {0};
    dr_tokenizer *tokenizer = NULL;
    dr_backend *backend = NULL;
    dr_lm *lm = NULL;
    dr_lm_config config;
    dr_status status = corpus_fill(&c, dataset, prompt_template);
    if (status == DR_OK)
        status =
            dr_tokenizer_train((const char *const *)c.texts, c.n, vocab, specials, DR_N_TAGS + 1, &tokenizer);
    corpus_reset(&c);
    DR_TRY(status);
    int32_t size = dr_tokenizer_size(tokenizer);
    DR_TRY_GOTO(status, dr_lm_preset(preset, (size + 63) / 64 * 64, &config), destroy_tokenizer);
    DR_TRY_GOTO(status, dr_backend_cpu_create(DR_FP32, 0, &backend), destroy_tokenizer);
    DR_TRY_GOTO(status, dr_lm_create(backend, &config, seed, &lm), destroy_backend);
    DR_TRY_GOTO(status, dr_lm_start_copying(lm, seed), destroy_lm);
    int32_t eos = dr_tokenizer_special(tokenizer, "<|endoftext|>");
    dr_lm_set_special_ids(lm, -1, eos, eos);
    DR_TRY_GOTO(status, dr_tokenizer_save(tokenizer, dir), destroy_lm);
    DR_TRY_GOTO(status, dr_lm_save(lm, dir, DR_SAVE_FP32), destroy_lm);
    *out_vocab = size;
    *out_params = dr_lm_n_params(lm);
destroy_lm:
    dr_lm_destroy(lm);
destroy_backend:
    dr_backend_cpu_destroy(backend);
destroy_tokenizer:
    dr_tokenizer_destroy(tokenizer);
    return status;
}
