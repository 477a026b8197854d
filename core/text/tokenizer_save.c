// Writing tokenizer.json: a loaded one as it was, a learned one as what transformers opens.
#include <jansson.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/text/normalize.h"
#include "core/text/tokenizer_internal.h"

static dr_status bytes_to_alphabet(const char *bytes, int32_t length, dr_buf *out) {
    dr_buf_clear(out);
    for (int32_t i = 0; i < length; i++)
        DR_TRY(dr_utf8_append(out, dr_bpe_byte_character((unsigned char)bytes[i])));
    return dr_buf_append(out, "", 0);
}

static json_t *added_json(const dr_tokenizer *t) {
    json_t *list = json_array();
    for (int32_t i = 0; i < t->n_added; i++) {
        const added_token *a = &t->added[i];
        json_array_append_new(list,
                              json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", a->id, "content",
                                        a->text, "single_word", a->single_word, "lstrip", a->lstrip, "rstrip",
                                        a->rstrip, "normalized", a->normalized, "special", a->is_special));
    }
    return list;
}

static dr_status model_json(const dr_tokenizer *t, json_t **out) {
    json_t *vocabulary = json_object(), *merges = json_array();
    dr_buf left = {0}, right = {0};
    dr_status status = DR_OK;
    for (int32_t id = 0; id < t->n_tokens && status == DR_OK; id++) {
        const bpe_token *token = &t->tokens[id];
        if (token->length < 0 || dr_bpe_find(t, token->bytes, (size_t)token->length) != id) continue;
        status = bytes_to_alphabet(token->bytes, token->length, &left);
        if (status == DR_OK) json_object_set_new(vocabulary, left.data, json_integer(id));
    }
    for (int32_t i = 0; i < t->n_merges && status == DR_OK; i++) {
        const bpe_token *a = &t->tokens[t->merges[i].left], *b = &t->tokens[t->merges[i].right];
        status = bytes_to_alphabet(a->bytes, a->length, &left);
        if (status == DR_OK) status = bytes_to_alphabet(b->bytes, b->length, &right);
        if (status == DR_OK) json_array_append_new(merges, json_pack("[s, s]", left.data, right.data));
    }
    dr_buf_reset(&left);
    dr_buf_reset(&right);
    *out =
        json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
                  "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
                  "ignore_merges", t->ignore_merges, "vocab", vocabulary, "merges", merges);
    return status == DR_OK && !*out ? DR_FAIL(DR_ERR_MEMORY, "tokenizer.json: cannot build") : status;
}

static json_t *byte_level(void) {
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 0,
                     "use_regex", 0);
}

static dr_status save_config(const dr_tokenizer *t, const char *dir) {
    json_t *root = json_pack("{s:s, s:b, s:i}", "tokenizer_class", "PreTrainedTokenizerFast",
                             "clean_up_tokenization_spaces", 0, "model_max_length", 1 << 20);
    if (dr_tokenizer_special(t, "<|endoftext|>") >= 0) {
        json_object_set_new(root, "eos_token", json_string("<|endoftext|>"));
        json_object_set_new(root, "pad_token", json_string("<|endoftext|>"));
    }
    return dr_json_save_in(root, dir, "tokenizer_config.json");
}

static dr_status save_learned(const dr_tokenizer *t, const char *dir) {
    json_t *model = NULL;
    DR_TRY(model_json(t, &model));
    json_t *splitter = json_pack("{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, o]}", "type", "Sequence",
                                 "pretokenizers", "type", "Split", "pattern", "Regex",
                                 dr_bpe_catalogue_pattern, "behavior", "Isolated", "invert", 0, byte_level());
    json_t *root = json_pack("{s:s, s:n, s:n, s:o, s:n, s:o, s:n, s:o, s:o}", "version", "1.0", "truncation",
                             "padding", "added_tokens", added_json(t), "normalizer", "pre_tokenizer",
                             splitter, "post_processor", "decoder", byte_level(), "model", model);
    return dr_json_save_in(root, dir, "tokenizer.json");
}

static dr_status save_source(const dr_buf *source, const char *dir, const char *name) {
    char *path = NULL;
    DR_TRY(dr_path_join(&path, dir, name));
    dr_status status = dr_file_replace(path, source->data, source->length);
    dr_free(path);
    return status;
}

dr_status dr_tokenizer_save(const dr_tokenizer *t, const char *dir) {
    const bpe_sources *from = &t->sources;
    DR_TRY(dr_dir_make(dir));
    if (from->tokenizer.length > 0)
        DR_TRY(save_source(&from->tokenizer, dir, "tokenizer.json"));
    else
        DR_TRY(save_learned(t, dir));
    if (from->chat_template.length > 0) DR_TRY(save_source(&from->chat_template, dir, "chat_template.jinja"));
    return from->config.length > 0 ? save_source(&from->config, dir, "tokenizer_config.json")
                                   : save_config(t, dir);
}
