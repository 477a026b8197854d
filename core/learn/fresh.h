// A fresh policy for a data set: a tokenizer learned on the catalogue, the templates and the teacher's
// phrases, and a model of a preset's size with random weights and a start in copying (lm.h).
#ifndef DR_CORE_LEARN_FRESH_H
#define DR_CORE_LEARN_FRESH_H

#include <stdint.h>

#include "core/base/status.h"
#include "core/episode/template.h"
#include "core/store/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

// Writes the Hugging Face folder `dir`. vocab: size aimed at; a small catalogue gives fewer ids (*out_vocab),
// rounded up to a multiple of 64 in the model. The protocol's tags and <|endoftext|> are single special
// tokens.
dr_status dr_fresh_policy(const char *preset, const dr_dataset *dataset, const dr_template *prompt_template,
                          int32_t vocab, uint64_t seed, const char *dir, int32_t *out_vocab,
                          int64_t *out_params);

#ifdef __cplusplus
}
#endif
#endif
