// tokenizer.json of byte-level BPE models: reading with every part checked, and writing what transformers
// opens.
#include <jansson.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/text/normalize.h"
#include "core/text/tokenizer_internal.h"

enum { MAX_ID = 1 << 22 };

// "Ġthe" → " the". DR_ERR_FORMAT for a character outside the byte alphabet.
static dr_status alphabet_to_bytes(const char *where, const char *text, size_t length, dr_buf *out) {
    dr_buf_clear(out);
    for (size_t at = 0; at < length;) {
        uint32_t character = dr_utf8_next(text, length, &at);
        int byte = dr_bpe_character_byte(character);
        DR_CHECK(byte >= 0, DR_ERR_FORMAT,
                 "%s: token \"%s\": character U+%04X is not in the byte-level alphabet", where, text,
                 character);
        char c = (char)byte;
        DR_TRY(dr_buf_append(out, &c, 1));
    }
    return dr_buf_append(out, "", 0);
}

static dr_status bytes_to_alphabet(const char *bytes, int32_t length, dr_buf *out) {
    dr_buf_clear(out);
    for (int32_t i = 0; i < length; i++)
        DR_TRY(dr_utf8_append(out, dr_bpe_byte_character((unsigned char)bytes[i])));
    return dr_buf_append(out, "", 0);
}

static dr_status read_added(dr_tokenizer *t, json_t *root, const char *where) {
    json_t *list = json_object_get(root, "added_tokens"), *entry;
    size_t i;
    if (!list || json_is_null(list)) return DR_OK;
    DR_CHECK(json_is_array(list), DR_ERR_FORMAT, "%s: added_tokens: expected an array, found %s", where,
             dr_json_type_name(list));
    json_array_foreach(list, i, entry) {
        const char *text = NULL;
        int64_t id = 0;
        int flags[4] = {0};
        static const char *const names[] = {"special", "lstrip", "rstrip", "single_word"};
        DR_TRY(dr_json_string(entry, where, "content", &text));
        DR_TRY(dr_json_i64(entry, where, "id", 0, MAX_ID, &id));
        for (int f = 0; f < 4; f++) DR_TRY(dr_json_bool_or(entry, where, names[f], 0, &flags[f]));
        DR_CHECK(text[0], DR_ERR_FORMAT, "%s: added_tokens[%zu]: empty content", where, i);
        added_token token = {(char *)(uintptr_t)text,
                             (int32_t)strlen(text),
                             (int32_t)id,
                             flags[0],
                             flags[1],
                             flags[2],
                             flags[3]};
        DR_TRY(dr_bpe_add_special(t, &token));
    }
    return DR_OK;
}

static dr_status read_vocabulary(dr_tokenizer *t, json_t *model, const char *where) {
    json_t *vocabulary = NULL, *value;
    const char *key;
    DR_TRY(dr_json_object(model, where, "vocab", &vocabulary));
    dr_buf bytes = {0};
    dr_status status = DR_OK;
    json_object_foreach(vocabulary, key, value) {
        if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > MAX_ID) {
            status =
                DR_FAIL(DR_ERR_FORMAT, "%s: vocab: \"%s\": expected an id from 0 to %d", where, key, MAX_ID);
            break;
        }
        int32_t id = (int32_t)json_integer_value(value);
        bool added = false; // some files list added tokens in the vocabulary too
        for (int32_t i = 0; i < t->n_added && !added; i++)
            added = t->added[i].id == id && strcmp(t->added[i].text, key) == 0;
        if (added) continue;
        if ((status = alphabet_to_bytes(where, key, strlen(key), &bytes)) != DR_OK) break;
        if ((status = dr_bpe_set_token(t, id, bytes.data, (int32_t)bytes.length)) != DR_OK) break;
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

static int32_t find_buf(const dr_tokenizer *t, const dr_buf *bytes) {
    return dr_bpe_find(t, bytes->data, (int32_t)bytes->length);
}

static dr_status read_merges(dr_tokenizer *t, json_t *model, const char *where) {
    json_t *merges = NULL, *entry;
    size_t i;
    DR_TRY(dr_json_array(model, where, "merges", &merges));
    dr_buf parts[2] = {{0}, {0}}, whole = {0};
    dr_status status = DR_OK;
    json_array_foreach(merges, i, entry) {
        const char *part[2];
        size_t length[2];
        if ((status = merge_parts(entry, where, i, part, length)) != DR_OK) break;
        if ((status = alphabet_to_bytes(where, part[0], length[0], &parts[0])) != DR_OK) break;
        if ((status = alphabet_to_bytes(where, part[1], length[1], &parts[1])) != DR_OK) break;
        dr_buf_clear(&whole);
        if ((status = dr_buf_append(&whole, parts[0].data, parts[0].length)) != DR_OK) break;
        if ((status = dr_buf_append(&whole, parts[1].data, parts[1].length)) != DR_OK) break;
        int32_t left = find_buf(t, &parts[0]), right = find_buf(t, &parts[1]), merged = find_buf(t, &whole);
        if (left < 0 || right < 0 || merged < 0) {
            status = DR_FAIL(DR_ERR_FORMAT, "%s: merges[%zu]: a part or the result is not in the vocabulary",
                             where, i);
            break;
        }
        if ((status = dr_bpe_add_merge(t, left, right, merged)) != DR_OK) break;
    }
    dr_buf_reset(&parts[0]);
    dr_buf_reset(&parts[1]);
    dr_buf_reset(&whole);
    return status;
}

static dr_status set_pattern(dr_tokenizer *t, const char *where, const char *pattern) {
    DR_CHECK(!t->pattern, DR_ERR_UNSUPPORTED, "%s: pre_tokenizer: more than one pattern", where);
    return dr_strdup(&t->pattern, pattern);
}

static dr_status read_byte_level(dr_tokenizer *t, json_t *part, const char *where) {
    int prefix = 0, use_regex = 1;
    DR_TRY(dr_json_bool_or(part, where, "add_prefix_space", 0, &prefix));
    DR_TRY(dr_json_bool_or(part, where, "use_regex", 1, &use_regex));
    DR_CHECK(!prefix, DR_ERR_UNSUPPORTED, "%s: pre_tokenizer ByteLevel: add_prefix_space is not supported",
             where);
    return use_regex ? set_pattern(t, where, dr_bpe_gpt2_pattern) : DR_OK;
}

static dr_status read_split(dr_tokenizer *t, json_t *part, const char *where) {
    const char *behaviour = NULL, *regex = NULL;
    json_t *pattern = NULL;
    int invert = 0;
    DR_TRY(dr_json_string(part, where, "behavior", &behaviour));
    DR_TRY(dr_json_bool_or(part, where, "invert", 0, &invert));
    DR_CHECK(strcmp(behaviour, "Isolated") == 0 || strcmp(behaviour, "Removed") == 0, DR_ERR_UNSUPPORTED,
             "%s: pre_tokenizer Split: behavior \"%s\" is not supported", where, behaviour);
    DR_CHECK((strcmp(behaviour, "Removed") == 0) == (invert != 0), DR_ERR_UNSUPPORTED,
             "%s: pre_tokenizer Split: behavior %s with invert %s would drop text", where, behaviour,
             invert ? "true" : "false");
    DR_TRY(dr_json_object(part, where, "pattern", &pattern));
    DR_TRY(dr_json_string(pattern, where, "Regex", &regex));
    return set_pattern(t, where, regex);
}

static dr_status read_pre_tokenizer(dr_tokenizer *t, json_t *node, const char *where, int depth) {
    const char *type = NULL;
    DR_CHECK(json_is_object(node) && depth < 4, DR_ERR_FORMAT,
             "%s: pre_tokenizer: expected an object, found %s", where, dr_json_type_name(node));
    DR_TRY(dr_json_string(node, where, "type", &type));
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(t, node, where);
    if (strcmp(type, "Split") == 0) return read_split(t, node, where);
    DR_CHECK(strcmp(type, "Sequence") == 0, DR_ERR_UNSUPPORTED, "%s: pre_tokenizer \"%s\" is not supported",
             where, type);
    json_t *list = NULL, *part;
    size_t i;
    DR_TRY(dr_json_array(node, where, "pretokenizers", &list));
    json_array_foreach(list, i, part) DR_TRY(read_pre_tokenizer(t, part, where, depth + 1));
    return DR_OK;
}

static dr_status read_normalizer(json_t *root, const char *where) {
    json_t *node = json_object_get(root, "normalizer");
    if (!node || json_is_null(node)) return DR_OK;
    const char *type = NULL;
    DR_TRY(dr_json_string(node, where, "type", &type));
    DR_CHECK(strcmp(type, "NFC") == 0, DR_ERR_UNSUPPORTED, "%s: normalizer \"%s\" is not supported", where,
             type);
    return DR_OK;
}

static dr_status read_root(dr_tokenizer *t, json_t *root, const char *where) {
    json_t *model = NULL;
    const char *type = NULL;
    int ignore_merges = 0, byte_fallback = 0;
    DR_TRY(dr_json_object(root, where, "model", &model));
    DR_TRY(dr_json_string_or(model, where, "type", "BPE", &type));
    DR_CHECK(strcmp(type, "BPE") == 0, DR_ERR_UNSUPPORTED, "%s: model type \"%s\" is not supported (BPE)",
             where, type);
    DR_TRY(dr_json_bool_or(model, where, "ignore_merges", 0, &ignore_merges));
    DR_TRY(dr_json_bool_or(model, where, "byte_fallback", 0, &byte_fallback));
    DR_CHECK(!byte_fallback, DR_ERR_UNSUPPORTED, "%s: byte_fallback is not supported", where);
    t->ignore_merges = ignore_merges;
    DR_TRY(read_normalizer(root, where));
    json_t *splitter = json_object_get(root, "pre_tokenizer");
    DR_CHECK(splitter && !json_is_null(splitter), DR_ERR_UNSUPPORTED,
             "%s: no pre_tokenizer: not a byte-level model", where);
    DR_TRY(read_pre_tokenizer(t, splitter, where, 0));
    DR_TRY(read_added(t, root, where));
    DR_TRY(read_vocabulary(t, model, where));
    DR_TRY(dr_bpe_index_tokens(t));
    DR_TRY(read_merges(t, model, where));
    return dr_bpe_finish(t, where);
}

dr_status dr_tokenizer_load(const char *dir, dr_tokenizer **out_tokenizer) {
    char *path = NULL;
    json_t *root = NULL;
    dr_tokenizer *t = NULL;
    dr_status status;
    DR_TRY(dr_path_join(&path, dir, "tokenizer.json"));
    DR_TRY_GOTO(status, dr_json_load(path, &root), free_path);
    DR_TRY_GOTO(status, dr_alloc(&t, "tokenizer", 1, sizeof *t), release_root);
    status = read_root(t, root, path);
    if (status == DR_OK)
        *out_tokenizer = t;
    else
        dr_tokenizer_destroy(t);
release_root:
    json_decref(root);
free_path:
    dr_free(path);
    return status;
}

static json_t *added_json(const dr_tokenizer *t) {
    json_t *list = json_array();
    for (int32_t i = 0; i < t->n_added; i++) {
        const added_token *a = &t->added[i];
        json_array_append_new(list,
                              json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", a->id, "content",
                                        a->text, "single_word", a->single_word, "lstrip", a->lstrip, "rstrip",
                                        a->rstrip, "normalized", 0, "special", a->is_special));
    }
    return list;
}

static dr_status model_json(const dr_tokenizer *t, json_t **out) {
    json_t *vocabulary = json_object(), *merges = json_array();
    dr_buf left = {0}, right = {0};
    dr_status status = DR_OK;
    for (int32_t id = 0; id < t->n_tokens && status == DR_OK; id++) {
        const bpe_token *token = &t->tokens[id];
        if (token->length < 0 || dr_bpe_find(t, token->bytes, token->length) != id) continue;
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
    char *path = NULL;
    dr_status status = dr_path_join(&path, dir, "tokenizer_config.json");
    if (status == DR_OK) status = dr_json_save(root, path);
    json_decref(root);
    dr_free(path);
    return status;
}

dr_status dr_tokenizer_save(const dr_tokenizer *t, const char *dir) {
    DR_TRY(dr_dir_make(dir));
    json_t *model = NULL;
    DR_TRY(model_json(t, &model));
    json_t *splitter = byte_level();
    if (t->pattern)
        splitter =
            json_pack("{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, o]}", "type", "Sequence", "pretokenizers", "type",
                      "Split", "pattern", "Regex", t->pattern, "behavior", "Isolated", "invert", 0, splitter);
    json_t *root = json_pack("{s:s, s:n, s:n, s:o, s:n, s:o, s:n, s:o, s:o}", "version", "1.0", "truncation",
                             "padding", "added_tokens", added_json(t), "normalizer", "pre_tokenizer",
                             splitter, "post_processor", "decoder", byte_level(), "model", model);
    DR_CHECK(root, DR_ERR_MEMORY, "tokenizer.json of %s: cannot build", dir);
    char *path = NULL;
    dr_status status = dr_path_join(&path, dir, "tokenizer.json");
    if (status == DR_OK) status = dr_json_save(root, path);
    json_decref(root);
    dr_free(path);
    return status == DR_OK ? save_config(t, dir) : status;
}
