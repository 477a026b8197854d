// A small random policy for tests whose head leans towards protocol tags, so that its free samples ask for
// items, answer, break off and run into caps. Tags are single tokens, or plain text for a vocabulary without
// them.
#ifndef DR_TESTS_TINY_POLICY_H
#define DR_TESTS_TINY_POLICY_H

#include <string.h>

#include "core/base/rng.h"
#include "core/episode/protocol.h"
#include "core/model/lm.h"
#include "core/text/tokenizer.h"

// Caps that its samples run into.
static const dr_protocol tiny_protocol = {.k = 10,
                                          .k_retrieve = 4,
                                          .max_retrievals = 3,
                                          .max_turn_tokens = 40,
                                          .max_total_tokens = 420,
                                          .exclude_history = true};

// A byte-level vocabulary, hardly more than the bytes, with the tags and an end-of-sequence token.
static inline dr_status tiny_tokenizer(dr_tokenizer **out) {
    const char *texts[] = {"Star War Blue Moon Drama Comedy"};
    const char *specials[DR_N_TAGS + 1];
    memcpy(specials, dr_protocol_tags, sizeof dr_protocol_tags);
    specials[DR_N_TAGS] = "<|endoftext|>";
    return dr_tokenizer_train(texts, 1, 256 + DR_N_TAGS + 1 + 20, specials, DR_N_TAGS + 1, out);
}

// Every hidden state points along dimension 0 (embeddings have 1 there), so the head's column 0 acts as a
// bias.
static inline dr_status tiny_policy(dr_backend *backend, const dr_tokenizer *tokenizer, dr_lm **out) {
    static const struct {
        const char *text;
        float lean;
    } leans[] = {{DR_TAG_PREFERENCE, 0.65f},
                 {DR_TAG_PREFERENCE_END, 0.5f},
                 {DR_TAG_ANSWER_END, 0.2f},
                 {"<|endoftext|>", 0.15f},
                 {DR_TAG_THINK_END, 0.2f}};
    dr_lm_config config;
    DR_TRY(dr_lm_preset("tiny", dr_tokenizer_size(tokenizer), &config));
    config.tied_head = false;
    config.eos_id = dr_tokenizer_special(tokenizer, "<|endoftext|>");
    DR_TRY(dr_lm_create(backend, &config, 5, out));
    const dr_lm_tensor *tensors = NULL;
    int32_t n = dr_lm_tensors(*out, &tensors);
    dr_rng rng = dr_rng_make(17, 0);
    for (int32_t i = 0; i < n; i++) {
        float *w = dr_lm_params(*out) + tensors[i].offset;
        bool head = strcmp(tensors[i].name, "lm_head.weight") == 0;
        bool embed = strcmp(tensors[i].name, "model.embed_tokens.weight") == 0;
        if (!head && !embed && tensors[i].rows > 1) // layers that add little to what the head leans towards
            for (int64_t j = 0; j < tensors[i].rows * tensors[i].cols; j++) w[j] *= 0.25f;
        for (int64_t r = 0; r < tensors[i].rows && (head || embed); r++)
            for (int64_t c = 0; c < tensors[i].cols; c++)
                w[r * tensors[i].cols + c] =
                    c == 0 ? (embed ? 1.0f : 0.0f) : (float)((embed ? 0.1 : 0.3) * dr_rng_normal(&rng));
        for (size_t k = 0; k < sizeof leans / sizeof leans[0] && head; k++) {
            int32_t id = dr_tokenizer_special(tokenizer, leans[k].text);
            if (id >= 0) w[(int64_t)id * tensors[i].cols] = leans[k].lean;
        }
    }
    return dr_lm_weights_changed(*out);
}

#endif
