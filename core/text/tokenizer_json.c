// Reading tokenizer.json, of byte-level BPE and of WordPiece models, with every part checked: added tokens,
// vocabulary, merges, the rest of the model. What stands around the model is in tokenizer_pipeline.c.
#include <jansson.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/text/normalize.h"
#include "core/text/tokenizer_internal.h"

enum { MAX_ID = 1 << 22 };

// "Ġthe" → " the"; *out_is_alphabet is false when a character is outside the byte alphabet.
static dr_status alphabet_to_bytes(const char *text, size_t length, dr_buf *out, bool *out_is_alphabet) {
    dr_buf_clear(out);
    *out_is_alphabet = true;
    for (size_t at = 0; at < length && *out_is_alphabet;) {
        int byte = dr_bpe_character_byte(dr_utf8_next(text, length, &at));
        char c = (char)byte;
        *out_is_alphabet = byte >= 0;
        DR_TRY(dr_buf_append(out, &c, 1));
    }
    return dr_buf_append(out, "", 0);
}

static dr_status read_added(dr_tokenizer *t, json_t *root, const char *where, int64_t max_id) {
    json_t *list = json_object_get(root, "added_tokens"), *entry;
    size_t i;
    if (!list || json_is_null(list)) return DR_OK;
    DR_CHECK(json_is_array(list), DR_ERR_FORMAT, "%s: added_tokens: expected an array, found %s", where,
             dr_json_type_name(list));
    json_array_foreach(list, i, entry) {
        const char *text = NULL;
        int64_t id = 0;
        int flags[5] = {0};
        static const char *const names[] = {"special", "lstrip", "rstrip", "single_word", "normalized"};
        DR_TRY(dr_json_string(entry, where, "content", &text));
        DR_TRY(dr_json_i64(entry, where, "id", 0, max_id, &id));
        for (int f = 0; f < 5; f++) DR_TRY(dr_json_bool_or(entry, where, names[f], 0, &flags[f]));
        DR_CHECK(text[0], DR_ERR_FORMAT, "%s: added_tokens[%zu]: empty content", where, i);
        added_token token = {.text = (char *)(uintptr_t)text,
                             .length = (int32_t)strlen(text),
                             .id = (int32_t)id,
                             .is_special = flags[0],
                             .lstrip = flags[1],
                             .rstrip = flags[2],
                             .single_word = flags[3],
                             .normalized = flags[4]};
        DR_TRY(dr_bpe_add_special(t, where, &token));
    }
    return DR_OK;
}

// One entry. Characters outside the byte alphabet: a token that no text becomes, but that can be decoded.
static dr_status read_entry(dr_tokenizer *t, const char *where, const char *key, int32_t id, dr_buf *bytes) {
    bool is_alphabet;
    size_t length = strlen(key);
    if (t->is_wordpiece) { // what is special is no word: text must not become it
        bool is_special = id < t->n_tokens && t->tokens[id].is_special;
        return dr_bpe_set_token(t, where, id, key, (int32_t)length, !is_special);
    }
    DR_TRY(alphabet_to_bytes(key, length, bytes, &is_alphabet));
    bool is_added = id < t->n_tokens && t->tokens[id].length >= 0 && strcmp(t->tokens[id].bytes, key) == 0;
    if (is_added) { // some files list added tokens in the vocabulary too
        bpe_token *token = &t->tokens[id];
        if (!is_alphabet || token->in_model) return DR_OK;
        dr_free(
            token->bytes); // of "é", which may be the token of byte E9, the byte counts, as in the library
        token->bytes = NULL;
        token->length = -1;
        return dr_bpe_set_token(t, where, id, bytes->data, (int32_t)bytes->length, true);
    }
    if (!is_alphabet) return dr_bpe_set_token(t, where, id, key, (int32_t)length, false);
    return dr_bpe_set_token(t, where, id, bytes->data, (int32_t)bytes->length, true);
}

static dr_status read_vocabulary(dr_tokenizer *t, json_t *vocabulary, const char *where, int64_t max_id) {
    json_t *value;
    const char *key;
    dr_buf bytes = {0};
    dr_status status = DR_OK;
    json_object_foreach(vocabulary, key, value) {
        if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > max_id) {
            status = DR_FAIL(DR_ERR_FORMAT, "%s: vocab: \"%s\": expected an id from 0 to %lld", where, key,
                             (long long)max_id);
            break;
        }
        if ((status = read_entry(t, where, key, (int32_t)json_integer_value(value), &bytes)) != DR_OK) break;
    }
    dr_buf_reset(&bytes);
    return status;
}

// The two parts of merges[i]: "a b" (older files) or ["a", "b"].
static dr_status merge_parts(json_t *entry, const char *where, size_t i, const char *part[2],
                             size_t length[2]) {
    if (json_is_string(entry)) {
        const char *text = json_string_value(entry), *space = strchr(text, ' ');
        DR_CHECK(space && space > text && space[1] && !strchr(space + 1, ' '), DR_ERR_FORMAT,
                 "%s: merges[%zu]: expected two parts, found \"%s\"", where, i, text);
        part[0] = text;
        length[0] = (size_t)(space - text);
        part[1] = space + 1;
        length[1] = strlen(space + 1);
        return DR_OK;
    }
    DR_CHECK(json_is_array(entry) && json_array_size(entry) == 2 &&
                 json_is_string(json_array_get(entry, 0)) && json_is_string(json_array_get(entry, 1)),
             DR_ERR_FORMAT, "%s: merges[%zu]: expected \"a b\" or [\"a\", \"b\"], found %s", where, i,
             dr_json_type_name(entry));
    for (int p = 0; p < 2; p++) {
        part[p] = json_string_value(json_array_get(entry, (size_t)p));
        length[p] = json_string_length(json_array_get(entry, (size_t)p));
    }
    return DR_OK;
}

// Are both parts and the result entries of the vocabulary?
static dr_status are_entries(json_t *vocabulary, const char *part[2], const size_t length[2], dr_buf *key,
                             bool *out) {
    *out = true;
    for (int p = 0; p < 3 && *out; p++) {
        dr_buf_clear(key);
        if (p != 1) DR_TRY(dr_buf_append(key, part[0], length[0]));
        if (p != 0) DR_TRY(dr_buf_append(key, part[1], length[1]));
        *out = json_object_get(vocabulary, key->data) != NULL;
    }
    return DR_OK;
}

static dr_status read_merge(dr_tokenizer *t, json_t *vocabulary, json_t *entry, const char *where, size_t i,
                            dr_buf bytes[3]) {
    const char *part[2];
    size_t length[2];
    int32_t id[3] = {-1, -1, -1};
    bool is_alphabet = true;
    if (json_is_string(entry) && strncmp(json_string_value(entry), "#version", 8) == 0) return DR_OK;
    DR_TRY(merge_parts(entry, where, i, part, length));
    for (int p = 0; p < 2 && is_alphabet; p++)
        DR_TRY(alphabet_to_bytes(part[p], length[p], &bytes[p], &is_alphabet));
    if (is_alphabet) {
        dr_buf_clear(&bytes[2]);
        DR_TRY(dr_buf_append(&bytes[2], bytes[0].data, bytes[0].length));
        DR_TRY(dr_buf_append(&bytes[2], bytes[1].data, bytes[1].length));
        for (int p = 0; p < 3; p++) id[p] = dr_bpe_find(t, bytes[p].data, bytes[p].length);
    }
    if (id[0] >= 0 && id[1] >= 0 && id[2] >= 0) return dr_bpe_add_merge(t, id[0], id[1], id[2]);
    bool there = false; // a merge of tokens that no text becomes can't happen
    DR_TRY(are_entries(vocabulary, part, length, &bytes[2], &there));
    DR_CHECK(there, DR_ERR_FORMAT, "%s: merges[%zu]: a part or the result is not in the vocabulary", where,
             i);
    return DR_OK;
}

static dr_status read_merges(dr_tokenizer *t, json_t *model, json_t *vocabulary, const char *where) {
    json_t *merges = NULL, *entry;
    size_t i;
    DR_TRY(dr_json_array(model, where, "merges", &merges));
    dr_buf bytes[3] = {{0}, {0}, {0}};
    dr_status status = DR_OK;
    json_array_foreach(merges, i, entry) {
        if ((status = read_merge(t, vocabulary, entry, where, i, bytes)) != DR_OK) break;
    }
    for (int p = 0; p < 3; p++) dr_buf_reset(&bytes[p]);
    return status;
}

// What a model has beside vocabulary and merges, and what must not be there.
static dr_status read_model(dr_tokenizer *t, json_t *model, const char *where) {
    static const char *const forbidden[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = NULL, *text = NULL;
    int ignore_merges = 0, byte_fallback = 0;
    double dropout = 0;
    DR_TRY(dr_json_string_or(model, where, "type", "BPE", &type));
    if (strcmp(type, "WordPiece") == 0) return dr_wordpiece_read_model(t, model, where);
    DR_CHECK(strcmp(type, "BPE") == 0, DR_ERR_UNSUPPORTED,
             "%s: model type \"%s\" is not supported (BPE, WordPiece)", where, type);
    DR_TRY(dr_json_bool_or(model, where, "ignore_merges", 0, &ignore_merges));
    DR_TRY(dr_json_bool_or(model, where, "byte_fallback", 0, &byte_fallback));
    DR_TRY(dr_json_f64_or(model, where, "dropout", 0, 1, 0, &dropout));
    DR_CHECK(!byte_fallback, DR_ERR_UNSUPPORTED, "%s: byte_fallback is not supported", where);
    DR_CHECK(dropout == 0, DR_ERR_UNSUPPORTED, "%s: dropout %g is not supported", where, dropout);
    for (int k = 0; k < 2; k++) {
        DR_TRY(dr_json_string_or(model, where, forbidden[k], "", &text));
        DR_CHECK(!text[0], DR_ERR_UNSUPPORTED, "%s: %s \"%s\" is not supported", where, forbidden[k], text);
    }
    t->ignore_merges = ignore_merges;
    return DR_OK;
}

static dr_status read_root(dr_tokenizer *t, json_t *root, const char *where) {
    json_t *model = NULL, *vocabulary = NULL;
    DR_TRY(dr_json_object(root, where, "model", &model));
    DR_TRY(read_model(t, model, where));
    DR_TRY(dr_bpe_read_pipeline(t, root, where));
    DR_TRY(dr_json_object(model, where, "vocab", &vocabulary));
    // Holes are few; an id far behind all others would only cost memory.
    int64_t n = (int64_t)json_object_size(vocabulary) +
                (int64_t)json_array_size(json_object_get(root, "added_tokens"));
    int64_t max_id = 2 * n + 65536 < MAX_ID ? 2 * n + 65536 : MAX_ID;
    DR_TRY(read_added(t, root, where, max_id));
    DR_TRY(read_vocabulary(t, vocabulary, where, max_id));
    if (t->is_wordpiece) {
        DR_TRY(dr_wordpiece_finish(t, model, vocabulary, where));
    } else {
        DR_TRY(dr_bpe_index_tokens(t));
        DR_TRY(read_merges(t, model, vocabulary, where));
    }
    DR_TRY(dr_bpe_read_frame(t, root, where));
    return dr_bpe_finish(t, where);
}

dr_status dr_tokenizer_parse(const char *where, const char *bytes, size_t length, dr_tokenizer **out) {
    json_t *root = NULL;
    dr_tokenizer *t = NULL;
    DR_TRY(dr_json_parse(where, bytes, length, &root));
    dr_status status = dr_alloc(&t, "tokenizer", 1, sizeof *t);
    if (status == DR_OK) status = read_root(t, root, where);
    json_decref(root);
    if (status == DR_OK) status = dr_buf_append(&t->sources.tokenizer, bytes, length);
    if (status == DR_OK)
        *out = t;
    else
        dr_tokenizer_destroy(t);
    return status;
}

static dr_status read_beside(const char *dir, const char *name, dr_buf *out) {
    char *path = NULL;
    DR_TRY(dr_path_join(&path, dir, name));
    dr_status status = dr_file_exists(path) ? dr_file_read(path, 0, out) : DR_OK;
    dr_free(path);
    return status;
}

dr_status dr_tokenizer_load(const char *dir, dr_tokenizer **out_tokenizer) {
    char *path = NULL;
    dr_buf bytes = {0};
    dr_tokenizer *t = NULL;
    DR_TRY(dr_path_join(&path, dir, "tokenizer.json"));
    dr_status status = dr_file_read(path, 0, &bytes);
    if (status == DR_OK) status = dr_tokenizer_parse(path, bytes.data, bytes.length, &t);
    if (status == DR_OK) status = read_beside(dir, "tokenizer_config.json", &t->sources.config);
    if (status == DR_OK) status = read_beside(dir, "chat_template.jinja", &t->sources.chat_template);
    dr_buf_reset(&bytes);
    dr_free(path);
    if (status == DR_OK)
        *out_tokenizer = t;
    else
        dr_tokenizer_destroy(t);
    return status;
}
