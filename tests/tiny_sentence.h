// Folders of a tiny sentence encoder for tests: the golden one, changed in one place or none.
#ifndef DR_TESTS_TINY_SENTENCE_H
#define DR_TESTS_TINY_SENTENCE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/file.h"
#include "core/store/safetensors.h"
#include "tests/check.h"

enum { TINY_SENTENCE_TENSORS = 64 };

typedef struct tiny_sentence {
    const char *from, *to; // a text of config.json and what stands there instead; NULL: as it is
    const char *prefix;    // of all tensors' names; NULL: none
    const char *left_out;  // a tensor that is missing
    const char *added;     // one that is there beside the others
    const char *poked;     // one whose first value is `value`
    float value;
    const char *pooling;     // 1_Pooling/config.json; NULL: no such file
    const char *modules;     // modules.json
    const char *prompts;     // config_sentence_transformers.json
    const char *transformer; // sentence_bert_config.json
    const char *tokenizer;   // tokenizer_config.json
    const char *normalize;   // 2_Normalize/config.json
} tiny_sentence;

static inline void tiny_sentence_config(const char *dir, const tiny_sentence *t) {
    size_t length = 0;
    char *text = check_read_file(check_golden("sentence_bert/config.json"), &length);
    dr_buf out = {0};
    text = realloc(text, length + 1);
    assert_non_null(text);
    text[length] = '\0';
    const char *at = t->from ? strstr(text, t->from) : NULL;
    assert_true(!t->from || at);
    size_t before = at ? (size_t)(at - text) : length;
    check_ok(dr_buf_append(&out, text, before));
    if (at) check_ok(dr_buf_printf(&out, "%s%s", t->to, at + strlen(t->from)));
    check_write_file(check_path(dir, "config.json"), out.data, out.length);
    dr_buf_reset(&out);
    free(text);
}

static inline void tiny_sentence_weights(const char *dir, const tiny_sentence *t) {
    static char names[TINY_SENTENCE_TENSORS][128];
    dr_safetensor_source tensors[TINY_SENTENCE_TENSORS];
    float *values[TINY_SENTENCE_TENSORS];
    const float one = 1;
    dr_safetensors *file = NULL;
    int32_t n = 0;
    check_ok(dr_safetensors_open(check_golden("sentence_bert/model.safetensors"), &file));
    for (int32_t i = 0; i < dr_safetensors_count(file); i++) {
        const dr_safetensor *from = dr_safetensors_at(file, i);
        if (t->left_out && strcmp(from->name, t->left_out) == 0) continue;
        assert_true(n + 1 < TINY_SENTENCE_TENSORS);
        check_ok(dr_alloc(&values[n], "tensor", from->n_values, sizeof(float)));
        check_ok(dr_safetensors_read(file, from->name, from->shape, from->n_dims, values[n]));
        if (t->poked && strcmp(from->name, t->poked) == 0) values[n][0] = t->value;
        snprintf(names[n], sizeof names[n], "%s%s", t->prefix ? t->prefix : "", from->name);
        tensors[n] = (dr_safetensor_source){.name = names[n], .n_dims = from->n_dims, .data = values[n]};
        memcpy(tensors[n].shape, from->shape, sizeof from->shape);
        n++;
    }
    int32_t n_own = n;
    if (t->added)
        tensors[n++] = (dr_safetensor_source){.name = t->added, .n_dims = 1, .shape = {1}, .data = &one};
    check_ok(dr_safetensors_write(check_path(dir, "model.safetensors"), tensors, n));
    for (int32_t i = 0; i < n_own; i++) dr_free(values[i]);
    dr_safetensors_close(file);
}

static inline void tiny_sentence_file(const char *dir, const char *name, const char *text) {
    if (text) check_write_file(check_path(dir, name), text, strlen(text));
}

// Overwrites the folder's files.
static inline void tiny_sentence_write(const char *dir, const tiny_sentence *t) {
    size_t length = 0;
    char *tokenizer = check_read_file(check_golden("sentence_bert/tokenizer.json"), &length);
    check_write_file(check_path(dir, "tokenizer.json"), tokenizer, length);
    free(tokenizer);
    tiny_sentence_config(dir, t);
    tiny_sentence_weights(dir, t);
    if (t->pooling) check_ok(dr_dir_make(check_path(dir, "1_Pooling")));
    tiny_sentence_file(dir, "1_Pooling/config.json", t->pooling);
    tiny_sentence_file(dir, "modules.json", t->modules);
    tiny_sentence_file(dir, "config_sentence_transformers.json", t->prompts);
    tiny_sentence_file(dir, "sentence_bert_config.json", t->transformer);
    tiny_sentence_file(dir, "tokenizer_config.json", t->tokenizer);
    if (t->normalize) check_ok(dr_dir_make(check_path(dir, "2_Normalize")));
    tiny_sentence_file(dir, "2_Normalize/config.json", t->normalize);
}

#endif
