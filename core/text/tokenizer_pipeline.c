// What tokenizer.json has around the model: normaliser, pre-tokeniser, decoder, post-processor.
#include <jansson.h>
#include <string.h>

#include "core/base/json.h"
#include "core/text/tokenizer_internal.h"

enum { MAX_DEPTH = 6 };

// The entries of a Sequence, or the node itself, one after the other.
typedef dr_status (*node_reader)(dr_tokenizer *t, json_t *node, const char *type, const char *where);
static dr_status for_each_node(dr_tokenizer *t, json_t *node, const char *where, const char *part,
                               const char *list_key, node_reader read, int depth) {
    const char *type = NULL;
    json_t *list = NULL, *entry;
    size_t i;
    DR_CHECK(json_is_object(node), DR_ERR_FORMAT, "%s: %s: expected an object, found %s", where, part,
             dr_json_type_name(node));
    DR_CHECK(depth < MAX_DEPTH, DR_ERR_UNSUPPORTED, "%s: %s: sequences more than %d deep", where, part,
             MAX_DEPTH);
    DR_TRY(dr_json_string(node, where, "type", &type));
    if (strcmp(type, "Sequence") != 0) return read(t, node, type, where);
    DR_TRY(dr_json_array(node, where, list_key, &list));
    json_array_foreach(list, i, entry)
        DR_TRY(for_each_node(t, entry, where, part, list_key, read, depth + 1));
    return DR_OK;
}

// A member that may be missing or null.
static dr_status for_each_part(dr_tokenizer *t, json_t *root, const char *where, const char *part,
                               const char *list_key, node_reader read) {
    json_t *node = json_object_get(root, part);
    return !node || json_is_null(node) ? DR_OK : for_each_node(t, node, where, part, list_key, read, 0);
}

static dr_status add_regex(dr_tokenizer *t, const char *where, const char *regex, bpe_behaviour behaviour,
                           bool invert) {
    dr_buf pattern = {0};
    dr_status status = dr_bpe_translate_regex(where, regex, &pattern);
    if (status == DR_OK) status = dr_bpe_add_stage(t, where, pattern.data, behaviour, invert);
    dr_buf_reset(&pattern);
    return status;
}

static dr_status read_byte_level(dr_tokenizer *t, json_t *node, const char *where) {
    int prefix = 0, use_regex = 1;
    DR_CHECK(!t->is_wordpiece, DR_ERR_UNSUPPORTED,
             "%s: pre_tokenizer \"ByteLevel\" with a WordPiece model is not supported", where);
    DR_TRY(dr_json_bool_or(node, where, "add_prefix_space", 0, &prefix));
    DR_TRY(dr_json_bool_or(node, where, "use_regex", 1, &use_regex));
    t->has_byte_level = true;
    if (prefix) DR_TRY(dr_bpe_add_stage(t, where, NULL, BPE_ISOLATED, false));
    return use_regex ? add_regex(t, where, dr_bpe_gpt2_pattern, BPE_ISOLATED, false) : DR_OK;
}

static dr_status read_behaviour(json_t *node, const char *where, const char *fallback, bpe_behaviour *out) {
    static const char *const names[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious",
                                        "MergedWithNext"};
    const char *name = NULL;
    if (fallback)
        DR_TRY(dr_json_string_or(node, where, "behavior", fallback, &name));
    else
        DR_TRY(dr_json_string(node, where, "behavior", &name));
    for (int k = 0; k < 5; k++) {
        if (strcmp(names[k], name) != 0) continue;
        *out = (bpe_behaviour)k;
        return DR_OK;
    }
    return DR_FAIL(DR_ERR_FORMAT,
                   "%s: pre_tokenizer: behavior: expected Isolated, Removed, Contiguous, MergedWithPrevious "
                   "or MergedWithNext, found \"%s\"",
                   where, name);
}

// Appends the text as a pattern that matches it.
static dr_status quote(const char *text, dr_buf *out) {
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        bool is_plain = c >= 0x80 || c <= ' ' || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
                        (c >= 'a' && c <= 'z') || c == 127;
        DR_TRY(is_plain ? dr_buf_append(out, text, 1) : dr_buf_printf(out, "\\%c", c));
    }
    return dr_buf_append(out, "", 0);
}

static dr_status read_split(dr_tokenizer *t, json_t *node, const char *where) {
    const char *text = NULL;
    json_t *pattern = NULL;
    int invert = 0;
    bpe_behaviour behaviour;
    DR_TRY(read_behaviour(node, where, NULL, &behaviour));
    DR_TRY(dr_json_bool_or(node, where, "invert", 0, &invert));
    DR_TRY(dr_json_object(node, where, "pattern", &pattern));
    if (!json_object_get(pattern, "String")) {
        DR_TRY(dr_json_string(pattern, where, "Regex", &text));
        return add_regex(t, where, text, behaviour, invert);
    }
    DR_TRY(dr_json_string(pattern, where, "String", &text));
    dr_buf quoted = {0};
    dr_status status = quote(text, &quoted);
    if (status == DR_OK) status = dr_bpe_add_stage(t, where, quoted.data, behaviour, invert);
    dr_buf_reset(&quoted);
    return status;
}

// What Punctuation takes for punctuation: the library's own table of category P, an edition of 2015 that
// lacks these.
#define YOUNG_PUNCTUATION                                                                                    \
    "\\x{61d}\\x{9fd}\\x{a76}\\x{c77}\\x{c84}\\x{1b4e}-\\x{1b4f}\\x{1b7d}-\\x{1b7f}\\x{2e43}-\\x{2e4f}"      \
    "\\x{2e52}-\\x{2e5d}\\x{10d6e}\\x{10ead}\\x{10f55}-\\x{10f59}\\x{10f86}-\\x{10f89}"                      \
    "\\x{113d4}-\\x{113d5}\\x{113d7}-\\x{113d8}\\x{1144b}-\\x{1144f}\\x{1145a}-\\x{1145b}\\x{1145d}"         \
    "\\x{11660}-\\x{1166c}\\x{116b9}\\x{1183b}\\x{11944}-\\x{11946}\\x{119e2}\\x{11a3f}-\\x{11a46}"          \
    "\\x{11a9a}-\\x{11a9c}\\x{11a9e}-\\x{11aa2}\\x{11b00}-\\x{11b09}\\x{11be1}\\x{11c41}-\\x{11c45}"         \
    "\\x{11c70}-\\x{11c71}\\x{11ef7}-\\x{11ef8}\\x{11f43}-\\x{11f4f}\\x{11fff}\\x{12ff1}-\\x{12ff2}"         \
    "\\x{16d6d}-\\x{16d6f}\\x{16e97}-\\x{16e9a}\\x{16fe2}\\x{1e5ff}\\x{1e95e}-\\x{1e95f}"
static const char punctuation_pattern[] = "(?![" YOUNG_PUNCTUATION "])[\\p{P}$+<=>^`|~\\x{166d}\\x{111c9}]";

// BertPreTokenizer, WhitespaceSplit, Whitespace; *out_is_one is false when the type is another.
static dr_status read_white_space(dr_tokenizer *t, const char *type, const char *where, bool *out_is_one) {
    bool is_bert = strcmp(type, "BertPreTokenizer") == 0;
    *out_is_one = true;
    if (is_bert || strcmp(type, "WhitespaceSplit") == 0) {
        DR_TRY(add_regex(t, where, "\\s+", BPE_REMOVED, false));
        return is_bert ? dr_bpe_add_stage(t, where, punctuation_pattern, BPE_ISOLATED, false) : DR_OK;
    }
    *out_is_one = strcmp(type, "Whitespace") == 0;
    if (!*out_is_one) return DR_OK;
    dr_buf pattern = {0};
    dr_status status = dr_bpe_whitespace_pattern(&pattern);
    if (status == DR_OK) status = dr_bpe_add_stage(t, where, pattern.data, BPE_REMOVED, true);
    dr_buf_reset(&pattern);
    return status;
}

static dr_status read_pre_tokenizer(dr_tokenizer *t, json_t *node, const char *type, const char *where) {
    bpe_behaviour behaviour;
    int individual = 0;
    bool is_white_space;
    DR_CHECK(!t->has_byte_level, DR_ERR_UNSUPPORTED, "%s: pre_tokenizer \"%s\" behind ByteLevel", where,
             type);
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(t, node, where);
    if (strcmp(type, "Split") == 0) return read_split(t, node, where);
    DR_TRY(read_white_space(t, type, where, &is_white_space));
    if (is_white_space) return DR_OK;
    if (strcmp(type, "Digits") == 0) {
        DR_TRY(dr_json_bool_or(node, where, "individual_digits", 0, &individual));
        return add_regex(t, where, "\\p{N}", individual ? BPE_ISOLATED : BPE_CONTIGUOUS, false);
    }
    DR_CHECK(strcmp(type, "Punctuation") == 0, DR_ERR_UNSUPPORTED,
             "%s: pre_tokenizer \"%s\" is not supported", where, type);
    DR_TRY(read_behaviour(node, where, "Isolated", &behaviour));
    return dr_bpe_add_stage(t, where, punctuation_pattern, behaviour, false);
}

static dr_status read_decoder(dr_tokenizer *t, json_t *node, const char *type, const char *where) {
    if (t->is_wordpiece) return dr_wordpiece_read_decoder(t, node, type, where);
    DR_CHECK(strcmp(type, "ByteLevel") == 0, DR_ERR_UNSUPPORTED, "%s: decoder \"%s\" is not supported", where,
             type);
    return DR_OK;
}

dr_status dr_bpe_read_pipeline(dr_tokenizer *t, json_t *root, const char *where) {
    DR_TRY(for_each_part(t, root, where, "normalizer", "normalizers", dr_bpe_read_normalizer));
    DR_TRY(for_each_part(t, root, where, "pre_tokenizer", "pretokenizers", read_pre_tokenizer));
    DR_CHECK(t->has_byte_level || t->is_wordpiece, DR_ERR_UNSUPPORTED,
             "%s: no pre_tokenizer ByteLevel: not a byte-level model", where);
    return for_each_part(t, root, where, "decoder", "decoders", read_decoder);
}

// ---- the post-processor: ids in front of a text and behind it ----

static dr_status frame_put(dr_tokenizer *t, const char *where, int64_t id, bool is_before) {
    DR_CHECK(id >= 0 && id < t->n_tokens, DR_ERR_FORMAT, "%s: post_processor: id %lld, expected 0 to %d",
             where, (long long)id, t->n_tokens - 1);
    int32_t n = t->n_before + t->n_after;
    if (n == t->frame_capacity) {
        DR_TRY(dr_grow(&t->frame, "post-processor", n, n + 8, sizeof *t->frame));
        t->frame_capacity = n + 8;
    }
    int32_t at = is_before ? 0 : n;
    memmove(t->frame + at + 1, t->frame + at, (size_t)(n - at) * sizeof *t->frame);
    t->frame[at] = (int32_t)id;
    is_before ? t->n_before++ : t->n_after++;
    return DR_OK;
}

// The ids of one special token of a template, in their order; in front they are put from the last to the
// first.
static dr_status frame_special(dr_tokenizer *t, json_t *node, json_t *piece, const char *where,
                               bool is_before) {
    const char *name = NULL;
    json_t *table = NULL, *special = NULL, *ids = NULL;
    DR_TRY(dr_json_string(piece, where, "id", &name));
    DR_TRY(dr_json_object(node, where, "special_tokens", &table));
    DR_TRY(dr_json_object(table, where, name, &special));
    DR_TRY(dr_json_array(special, where, "ids", &ids));
    for (size_t k = 0; k < json_array_size(ids); k++) {
        json_t *id = json_array_get(ids, is_before ? json_array_size(ids) - 1 - k : k);
        DR_CHECK(json_is_integer(id), DR_ERR_FORMAT, "%s: post_processor: \"%s\": expected ids, found %s",
                 where, name, dr_json_type_name(id));
        DR_TRY(frame_put(t, where, json_integer_value(id), is_before));
    }
    return DR_OK;
}

static dr_status read_template(dr_tokenizer *t, json_t *node, const char *where) {
    json_t *single = NULL;
    DR_TRY(dr_json_array(node, where, "single", &single));
    size_t n = json_array_size(single), text = n;
    for (size_t i = 0; i < n; i++) {
        json_t *piece = json_array_get(single, i);
        bool is_text = json_object_get(piece, "Sequence") != NULL;
        DR_CHECK(is_text || json_is_object(json_object_get(piece, "SpecialToken")), DR_ERR_FORMAT,
                 "%s: post_processor: single[%zu]: expected a SpecialToken or a Sequence", where, i);
        DR_CHECK(!is_text || text == n, DR_ERR_UNSUPPORTED,
                 "%s: post_processor: a template with the text twice", where);
        if (is_text) text = i;
    }
    DR_CHECK(text < n, DR_ERR_UNSUPPORTED, "%s: post_processor: a template without the text", where);
    for (size_t i = text; i-- > 0;)
        DR_TRY(
            frame_special(t, node, json_object_get(json_array_get(single, i), "SpecialToken"), where, true));
    for (size_t i = text + 1; i < n; i++)
        DR_TRY(
            frame_special(t, node, json_object_get(json_array_get(single, i), "SpecialToken"), where, false));
    return DR_OK;
}

// "cls": ["text", id]
static dr_status read_pair(dr_tokenizer *t, json_t *node, const char *where, const char *key,
                           bool is_before) {
    json_t *pair = NULL;
    DR_TRY(dr_json_array(node, where, key, &pair));
    json_t *id = json_array_get(pair, 1);
    DR_CHECK(json_is_integer(id), DR_ERR_FORMAT, "%s: post_processor: %s[1]: expected an id, found %s", where,
             key, dr_json_type_name(id));
    return frame_put(t, where, json_integer_value(id), is_before);
}

static dr_status read_post_processor(dr_tokenizer *t, json_t *node, const char *type, const char *where) {
    if (strcmp(type, "ByteLevel") == 0) return DR_OK; // moves offsets only
    if (strcmp(type, "TemplateProcessing") == 0) return read_template(t, node, where);
    DR_CHECK(strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0,
             DR_ERR_UNSUPPORTED, "%s: post_processor \"%s\" is not supported", where, type);
    DR_TRY(read_pair(t, node, where, "cls", true));
    return read_pair(t, node, where, "sep", false);
}

dr_status dr_bpe_read_frame(dr_tokenizer *t, json_t *root, const char *where) {
    return for_each_part(t, root, where, "post_processor", "processors", read_post_processor);
}
