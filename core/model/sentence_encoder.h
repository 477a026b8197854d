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
// BertModel, with or without "bert." before their names, tokenizer.json; where they are there also what
// sentence-transformers reads: modules.json (a transformer, pooling and perhaps a normalisation; rows have
// unit length without one, too), config.json of its pooling, or 1_Pooling/config.json without modules (by
// [CLS], or the mean, of which the instruction is a part; without either by [CLS]), sentence_bert_config.json
// (max_seq_length, else model_max_length of tokenizer_config.json; do_lower_case where the tokenizer does so)
// and config_sentence_transformers.json (the instruction of queries is prompts.query, else for a folder that
// pools by [CLS] the one of BGE, Xiao et al., arXiv 2309.07597). What else they say and would change an
// embedding is refused by its key (DR_ERR_UNSUPPORTED). Of a text longer than max_tokens, the folder's limit
// or the model's positions, special tokens included, the end is left out. query_instruction: NULL for the
// folder's own; DR_ERR_ARGUMENT when it leaves no room for a text. Computes in fp32 on `backend`, borrowed,
// whose precision must be DR_FP32; memory for its passes is taken here.
dr_status dr_sentence_encoder_create(dr_backend *backend, const char *dir, int32_t max_tokens,
                                     const char *query_instruction, dr_text_encoder **out_encoder);

// What one takes on `backend`, from the folder's configuration alone: the same errors.
dr_status dr_sentence_encoder_memory(dr_backend *backend, const char *dir, int32_t max_tokens,
                                     dr_text_encoder_memory *out);

#ifdef __cplusplus
}
#endif
#endif
