// A transformer sentence encoder of the BERT family (Devlin et al., arXiv 1810.04805) as a body of
// core/text/encoder.h: packed texts, post-norm layers that look in both directions, the first row or the mean
// of a text's rows, unit length.
#ifndef DR_CORE_MODEL_SENTENCE_ENCODER_H
#define DR_CORE_MODEL_SENTENCE_ENCODER_H

#include "core/compute/backend.h"
#include "core/text/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

// dir: a local folder of Hugging Face: config.json (model_type "bert", hidden_act "gelu"), the weights of a
// BertModel, with or without "bert." before their names, tokenizer.json; where they are there also
// 1_Pooling/config.json (by [CLS], or the mean, of which the instruction is a part; without it by [CLS]),
// modules.json (refused with modules other than transformer, pooling and normalisation) and
// config_sentence_transformers.json (the instruction of queries is prompts.query, else for a folder that
// pools by [CLS] the one of BGE, Xiao et al., arXiv 2309.07597). Of a text longer than max_tokens, or than
// the model's positions, special tokens included, the end is left out. query_instruction: NULL for the
// folder's own; DR_ERR_ARGUMENT when it leaves no room for a text. Computes in fp32 on `backend`, borrowed,
// whose precision must be DR_FP32; memory for its passes is taken here.
dr_status dr_sentence_encoder_create(dr_backend *backend, const char *dir, int32_t max_tokens,
                                     const char *query_instruction, dr_text_encoder **out_encoder);

#ifdef __cplusplus
}
#endif
#endif
