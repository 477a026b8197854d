// Rendering of turns, and the two ways to a template: a model's folder and a file. All are one table of
// texts.
#include "core/text/chat.h"

#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/text/normalize.h"

enum { N_ROLES = 3 };
static const char *const roles[N_ROLES] = {"system", "user", "assistant"};

struct dr_chat {
    char *name;
    dr_buf begin, generation;
    dr_buf before[N_ROLES], after[N_ROLES];
    bool has_role[N_ROLES];
    dr_buf default_system, dates; // dates: in front of the first system text
    bool has_default, trim, thinks;
};

void dr_chat_destroy(dr_chat *c) {
    if (!c) return;
    dr_free(c->name);
    dr_buf_reset(&c->begin);
    dr_buf_reset(&c->generation);
    dr_buf_reset(&c->default_system);
    dr_buf_reset(&c->dates);
    for (int r = 0; r < N_ROLES; r++) {
        dr_buf_reset(&c->before[r]);
        dr_buf_reset(&c->after[r]);
    }
    dr_free(c);
}

const char *dr_chat_name(const dr_chat *c) {
    return c->name;
}

const char *dr_chat_default_system(const dr_chat *c) {
    return c->has_default ? c->default_system.data : NULL;
}

static dr_status create(const char *name, dr_chat **out) {
    dr_chat *c = NULL;
    DR_TRY(dr_alloc(&c, "chat template", 1, sizeof *c));
    dr_status status = dr_strdup(&c->name, name);
    if (status == DR_OK) status = dr_buf_text(&c->default_system, "");
    if (status == DR_OK)
        *out = c;
    else
        dr_chat_destroy(c);
    return status;
}

// ---- rendering ----

// What Python's str.strip takes for white space.
static bool is_blank(uint32_t c) {
    return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x1F) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

static void trim(const char **text, size_t *length) {
    size_t begin = 0, end = 0;
    bool is_first = true;
    for (size_t at = 0; at < *length;) {
        size_t here = at;
        if (is_blank(dr_utf8_next(*text, *length, &at))) continue;
        if (is_first) begin = here;
        is_first = false;
        end = at;
    }
    *text += begin;
    *length = end - begin;
}

// Where the turns' own texts are in the result.
typedef struct ranges {
    size_t *bounds; // [4 * turns]: begin, end; at most two pieces a turn
    int64_t n;
} ranges;

typedef struct piece {
    const char *text;
    size_t length;
} piece;

// foreign NULL: nobody asks, or the text is the template's own.
static dr_status put_text(piece p, dr_buf *out, ranges *foreign) {
    size_t begin = out->length;
    DR_TRY(dr_buf_append(out, p.text, p.length));
    if (foreign) {
        foreign->bounds[2 * foreign->n] = begin;
        foreign->bounds[2 * foreign->n++ + 1] = out->length;
    }
    return DR_OK;
}

static dr_status put_turn(const dr_chat *c, int role, piece text, bool is_first, dr_buf *out,
                          ranges *foreign) {
    if (c->trim) trim(&text.text, &text.length);
    DR_CHECK(c->has_role[role], DR_ERR_UNSUPPORTED, "chat template %s: no turn of role \"%s\"", c->name,
             roles[role]);
    DR_TRY(dr_buf_append(out, c->before[role].data, c->before[role].length));
    if (is_first && role == 0) DR_TRY(dr_buf_append(out, c->dates.data, c->dates.length));
    DR_TRY(put_text(text, out, foreign));
    return dr_buf_append(out, c->after[role].data, c->after[role].length);
}

static void strip_newlines(piece *p, bool left, bool right) {
    for (; left && p->length > 0 && p->text[0] == '\n'; p->length--) p->text++;
    while (right && p->length > 0 && p->text[p->length - 1] == '\n') p->length--;
}

// Takes the thoughts, what stands between <think> and </think>, off the front of an assistant's text.
static piece take_thoughts(piece *text) {
    static const char opening[] = "<think>", closing[] = "</think>";
    const char *first = strstr(text->text, closing), *last = first, *end = text->text + text->length;
    piece thoughts = {text->text, 0};
    if (!first) return thoughts;
    for (const char *at = first; (at = strstr(at + 1, closing)) != NULL;) last = at;
    for (const char *at = text->text; (at = strstr(at, opening)) != NULL && at < first;)
        thoughts.text = at += sizeof opening - 1;
    thoughts.length = (size_t)(first - thoughts.text);
    strip_newlines(&thoughts, true, true);
    text->text = last + sizeof closing - 1;
    text->length = (size_t)(end - text->text);
    strip_newlines(text, true, false);
    return thoughts;
}

// Qwen3: thoughts are shown in what answers the last question, an empty block in its last turn; in turns
// before they are left out.
static dr_status put_thinking_turn(const dr_chat *c, piece text, bool is_answer, bool is_last, dr_buf *out,
                                   ranges *foreign) {
    piece thoughts = take_thoughts(&text);
    if (!is_answer || (!is_last && thoughts.length == 0)) return put_turn(c, 2, text, false, out, foreign);
    strip_newlines(&text, true, false);
    DR_TRY(dr_buf_append(out, c->before[2].data, c->before[2].length));
    DR_TRY(dr_buf_text(out, "<think>\n"));
    DR_TRY(put_text(thoughts, out, foreign));
    DR_TRY(dr_buf_text(out, "\n</think>\n\n"));
    DR_TRY(put_text(text, out, foreign));
    return dr_buf_append(out, c->after[2].data, c->after[2].length);
}

// The last turn of the user that is no tool's result; the last turn when there is none.
static int64_t last_question(const dr_chat_turn *turns, int64_t n) {
    static const char opening[] = "<tool_response>", closing[] = "</tool_response>";
    for (int64_t i = n - 1; i >= 0; i--) {
        const char *text = turns[i].text;
        size_t length = strlen(text), tail = sizeof closing - 1;
        bool is_result = strncmp(text, opening, sizeof opening - 1) == 0 && length >= tail &&
                         strcmp(text + length - tail, closing) == 0;
        if (strcmp(turns[i].role, "user") == 0 && !is_result) return i;
    }
    return n - 1;
}

static int role_of(const char *name) {
    for (int r = 0; r < N_ROLES; r++)
        if (strcmp(roles[r], name) == 0) return r;
    return -1;
}

static dr_status render(const dr_chat *c, const dr_chat_turn *turns, int64_t n, bool with_generation,
                        dr_buf *out, ranges *foreign) {
    DR_CHECK(n > 0, DR_ERR_ARGUMENT, "chat: no turns");
    DR_TRY(dr_buf_append(out, c->begin.data, c->begin.length));
    if (c->has_default && strcmp(turns[0].role, "system") != 0)
        DR_TRY(put_turn(c, 0, (piece){c->default_system.data, c->default_system.length}, true, out, NULL));
    int64_t question = c->thinks ? last_question(turns, n) : n;
    for (int64_t i = 0; i < n; i++) {
        int role = role_of(turns[i].role);
        DR_CHECK(role >= 0, DR_ERR_UNSUPPORTED,
                 "chat: turn %lld: role \"%s\", expected system, user or assistant", (long long)i,
                 turns[i].role);
        piece text = {turns[i].text, strlen(turns[i].text)};
        DR_TRY(c->thinks && role == 2 ? put_thinking_turn(c, text, i > question, i + 1 == n, out, foreign)
                                      : put_turn(c, role, text, i == 0, out, foreign));
    }
    return dr_buf_append(out, with_generation ? c->generation.data : "",
                         with_generation ? c->generation.length : 0);
}

dr_status dr_chat_render(const dr_chat *c, const dr_chat_turn *turns, int64_t n, bool with_generation,
                         dr_buf *out) {
    size_t before = out->length;
    dr_status status = render(c, turns, n, with_generation, out, NULL);
    if (status != DR_OK) out->length = before;
    return status;
}

dr_status dr_chat_around_user(const dr_chat *c, dr_buf *before, dr_buf *after) {
    const dr_chat_turn turn = {"user", ""};
    size_t end = before->length;
    DR_TRY(dr_chat_render(c, &turn, 1, true, before));
    size_t tail = c->after[1].length + c->generation.length;
    DR_TRY(dr_buf_append(after, before->data + before->length - tail, tail));
    before->length -= tail;
    DR_ASSERT(before->length >= end);
    return dr_buf_append(before, "", 0); // a NUL behind it
}

dr_status dr_chat_encode(const dr_chat *c, const dr_tokenizer *tokenizer, const dr_chat_turn *turns,
                         int64_t n, bool with_generation, int32_t **ids, int64_t *n_ids, int64_t *capacity) {
    dr_buf text = {0};
    ranges foreign = {0};
    dr_status status = dr_alloc(&foreign.bounds, "chat", 4 * n, sizeof *foreign.bounds);
    if (status == DR_OK) status = render(c, turns, n, with_generation, &text, &foreign);
    if (status == DR_OK)
        status = dr_tokenizer_encode_guarded(tokenizer, text.data, text.length, foreign.bounds, foreign.n,
                                             ids, n_ids, capacity);
    dr_buf_reset(&text);
    dr_free(foreign.bounds);
    return status;
}

// ---- the built-in forms ----

static dr_status make_chatml(dr_chat *c) {
    for (int r = 0; r < N_ROLES; r++) {
        c->has_role[r] = true;
        DR_TRY(dr_buf_printf(&c->before[r], "<|im_start|>%s\n", roles[r]));
        DR_TRY(dr_buf_text(&c->after[r], "<|im_end|>\n"));
    }
    return dr_buf_text(&c->generation, "<|im_start|>assistant\n");
}

static dr_status make_llama3(dr_chat *c, const char *bos) {
    c->trim = true;
    DR_TRY(dr_buf_text(&c->begin, bos));
    for (int r = 0; r < N_ROLES; r++) {
        c->has_role[r] = true;
        DR_TRY(dr_buf_printf(&c->before[r], "<|start_header_id|>%s<|end_header_id|>\n\n", roles[r]));
        DR_TRY(dr_buf_text(&c->after[r], "<|eot_id|>"));
    }
    return dr_buf_text(&c->generation, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

// Appends a piece of a template's string literal, its escapes resolved.
static dr_status unescape(const char *text, const char *end, dr_buf *out) {
    for (; text < end; text++) {
        char c = *text;
        if (c == '\\' && text + 1 < end) {
            c = *++text;
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
        }
        DR_TRY(dr_buf_append(out, &c, 1));
    }
    return dr_buf_append(out, "", 0);
}

// The text of a literal '<|im_start|>system\n…<|im_end|>': what is put in when no system turn comes first. A
// literal that ends before <|im_end|> is one that a given text is added to.
static dr_status find_default_system(dr_chat *c, const char *template) {
    static const char tag[] = "<|im_start|>system";
    for (const char *at = template; (at = strstr(at, tag)) != NULL;) {
        char mark = at > template ? at[-1] : 0;
        if (mark != '\'' && mark != '"') mark = '{'; // text of the template itself
        at += sizeof tag - 1;
        size_t n = at[0] == '\n' ? 1 : at[0] == '\\' && at[1] == 'n' ? 2 : 0;
        const char *begin = at + n, *end = strstr(at, "<|im_end|>"), *stop = begin;
        while (end && stop < end && *stop != mark) stop += *stop == '\\' && stop + 1 < end ? 2 : 1;
        if (n == 0 || !end || stop < end || end == begin) continue;
        c->has_default = true;
        return unescape(begin, end, &c->default_system);
    }
    return DR_OK;
}

// What invites the answer, when the template writes more than the tag: '<|im_start|>assistant\n<think>\n'.
static dr_status find_generation(dr_chat *c, const char *template) {
    const char *ask = strstr(template, "add_generation_prompt"), *end;
    const char *at = ask ? strstr(ask, "<|im_start|>assistant\\n") : NULL;
    if (!at || (at[-1] != '\'' && at[-1] != '"') || !(end = strchr(at, at[-1]))) return DR_OK;
    dr_buf_clear(&c->generation);
    return unescape(at, end, &c->generation);
}

// Appends the literal behind `name` up to what ends its line: "Cutting Knowledge Date: December 2023".
static dr_status take_line(const char *template, const char *name, dr_buf *out) {
    const char *at = strstr(template, name);
    if (!at) return DR_OK;
    return unescape(at, at + strcspn(at, "\\\n'\""), out);
}

// Llama 3.1 and later: two lines of dates in front of the system text, and a system turn always.
static dr_status add_dates(dr_chat *c, const char *template) {
    static const char key[] = "date_string = \"";
    const char *date = NULL;
    if (!strstr(template, "Cutting Knowledge Date: ")) return DR_OK;
    for (const char *at = template; (at = strstr(at, key)) != NULL; at += sizeof key - 1)
        date = at + sizeof key - 1;
    DR_CHECK(date && strstr(template, "Today Date: "), DR_ERR_UNSUPPORTED,
             "chat template: a Llama 3 template with a knowledge date but without date_string = \"…\"");
    DR_TRY(take_line(template, "Cutting Knowledge Date: ", &c->dates));
    DR_TRY(dr_buf_printf(&c->dates, "\nToday Date: %.*s\n\n", (int)strcspn(date, "\""), date));
    c->has_default = true;
    return DR_OK;
}

// `template` NULL: by the tokenizer's tags.
static dr_status recognise(const char *where, const char *template, const dr_tokenizer *t, const char *bos,
                           dr_chat **out) {
    bool is_chatml, is_llama3;
    if (template) {
        is_chatml = strstr(template, "<|im_start|>") && strstr(template, "<|im_end|>");
        is_llama3 = strstr(template, "<|start_header_id|>") && strstr(template, "<|eot_id|>");
        if (is_chatml && (strstr(template, "bos_token") || strstr(template, "| trim"))) is_chatml = false;
    } else {
        is_chatml =
            dr_tokenizer_special(t, "<|im_start|>") >= 0 && dr_tokenizer_special(t, "<|im_end|>") >= 0;
        is_llama3 =
            dr_tokenizer_special(t, "<|start_header_id|>") >= 0 && dr_tokenizer_special(t, "<|eot_id|>") >= 0;
    }
    DR_CHECK(is_chatml != is_llama3, DR_ERR_UNSUPPORTED,
             "%s: the chat template is neither ChatML nor Llama 3's; a template file can say what it is",
             where);
    dr_chat *c = NULL;
    DR_TRY(create(is_chatml ? "chatml" : "llama3", &c));
    dr_status status = is_chatml ? make_chatml(c) : make_llama3(c, bos);
    if (status == DR_OK && template)
        status = is_chatml ? find_default_system(c, template) : add_dates(c, template);
    if (status == DR_OK && template && is_chatml) status = find_generation(c, template);
    if (status == DR_OK && template && is_chatml)
        c->thinks = strstr(template, "last_query_index") && strstr(template, "reasoning_content");
    if (status == DR_OK)
        *out = c;
    else
        dr_chat_destroy(c);
    return status;
}

// The template of tokenizer_config.json: a string, or a list of named ones of which "default" counts. NULL:
// none.
static const char *template_of(const json_t *config) {
    json_t *value = json_object_get(config, "chat_template"), *entry;
    size_t i;
    if (!json_is_array(value)) return json_string_value(value);
    json_array_foreach(value, i, entry) {
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name && strcmp(name, "default") == 0)
            return json_string_value(json_object_get(entry, "template"));
    }
    return NULL;
}

static const char *bos_of(const json_t *config) {
    json_t *value = json_object_get(config, "bos_token");
    const char *text = json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    return text ? text : "<|begin_of_text|>";
}

dr_status dr_chat_load(const char *model_dir, const dr_tokenizer *tokenizer, dr_chat **out_chat) {
    char *config_path = NULL, *template_path = NULL;
    json_t *config = NULL;
    dr_buf text = {0};
    dr_status status = dr_path_join(&config_path, model_dir, "tokenizer_config.json");
    if (status == DR_OK) status = dr_path_join(&template_path, model_dir, "chat_template.jinja");
    if (status == DR_OK && dr_file_exists(config_path)) status = dr_json_load(config_path, &config);
    if (status == DR_OK && dr_file_exists(template_path)) status = dr_file_read(template_path, 0, &text);
    if (status == DR_OK) {
        const char *template = text.length > 0 ? text.data : template_of(config);
        status = recognise(model_dir, template, tokenizer, bos_of(config), out_chat);
    }
    json_decref(config);
    dr_buf_reset(&text);
    dr_free(config_path);
    dr_free(template_path);
    return status;
}

// ---- template files ----

typedef struct section {
    const char *name;
    dr_buf text;
    bool is_there;
} section;
enum { S_BEGIN, S_SYSTEM, S_USER, S_ASSISTANT, S_GENERATION, S_DEFAULT, S_SETTINGS, N_SECTIONS };

static dr_status put_line(const char *path, int line, const char *text, size_t length, dr_buf *out) {
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (c == '\\') {
            char next = i + 1 < length ? text[++i] : 0;
            DR_CHECK(next == 'n' || next == 't' || next == '\\', DR_ERR_FORMAT,
                     "%s:%d: a backslash, expected \\n, \\t or \\\\", path, line);
            c = next == 'n' ? '\n' : next == 't' ? '\t' : '\\';
        }
        DR_TRY(dr_buf_append(out, &c, 1));
    }
    return dr_buf_append(out, "", 0);
}

// The section that a line "[name]" begins, -1 when the line is of another kind.
static int section_of(section *sections, const char *text, size_t length) {
    for (int k = 0; k < N_SECTIONS; k++) {
        size_t n = strlen(sections[k].name);
        if (length == n + 2 && text[0] == '[' && text[n + 1] == ']' &&
            memcmp(text + 1, sections[k].name, n) == 0)
            return k;
    }
    return -1;
}

static dr_status read_sections(const char *path, const dr_buf *file, section *sections) {
    int current = -1, line = 0;
    for (size_t at = 0; at < file->length;) {
        const char *text = file->data + at, *end = memchr(text, '\n', file->length - at);
        size_t length = end ? (size_t)(end - text) : file->length - at;
        at += length + 1;
        line++;
        if (length > 0 && text[length - 1] == '\r') length--;
        int next = section_of(sections, text, length);
        if (next >= 0) {
            DR_CHECK(!sections[next].is_there, DR_ERR_FORMAT, "%s:%d: section [%s] is there twice", path,
                     line, sections[next].name);
            sections[next].is_there = true;
            current = next;
            continue;
        }
        if (current < 0 && (length == 0 || text[0] == '#')) continue;
        bool is_tag = length > 2 && text[0] == '[' && text[length - 1] == ']';
        DR_CHECK(current >= 0 && !is_tag, DR_ERR_FORMAT,
                 "%s:%d: \"%.*s\": expected a section: begin, system, user, assistant, generation, "
                 "default_system or settings",
                 path, line, (int)(length < 60 ? length : 60), text);
        DR_TRY(put_line(path, line, text, length, &sections[current].text));
    }
    return DR_OK;
}

static dr_status use_role(dr_chat *c, const char *path, int role, const section *s) {
    static const char slot[] = "{text}";
    if (!s->is_there) return DR_OK;
    const char *at = s->text.length > 0 ? strstr(s->text.data, slot) : NULL;
    DR_CHECK(at && !strstr(at + 1, slot), DR_ERR_FORMAT, "%s: section [%s]: expected {text} once", path,
             s->name);
    c->has_role[role] = true;
    DR_TRY(dr_buf_append(&c->before[role], s->text.data, (size_t)(at - s->text.data)));
    return dr_buf_text(&c->after[role], at + sizeof slot - 1);
}

static dr_status use_sections(dr_chat *c, const char *path, const section *s) {
    for (int r = 0; r < N_ROLES; r++) DR_TRY(use_role(c, path, r, &s[S_SYSTEM + r]));
    DR_CHECK(c->has_role[1] && s[S_GENERATION].is_there, DR_ERR_FORMAT,
             "%s: sections [user] and [generation] are missing or one of them", path);
    DR_TRY(dr_buf_append(&c->begin, s[S_BEGIN].text.data, s[S_BEGIN].text.length));
    DR_TRY(dr_buf_append(&c->generation, s[S_GENERATION].text.data, s[S_GENERATION].text.length));
    DR_TRY(dr_buf_append(&c->default_system, s[S_DEFAULT].text.data, s[S_DEFAULT].text.length));
    c->has_default = s[S_DEFAULT].is_there;
    DR_CHECK(!c->has_default || c->has_role[0], DR_ERR_FORMAT, "%s: [default_system] without [system]", path);
    const dr_buf *settings = &s[S_SETTINGS].text;
    if (settings->length == 0) return DR_OK;
    c->trim = strcmp(settings->data, "trim = yes") == 0;
    DR_CHECK(c->trim || strcmp(settings->data, "trim = no") == 0, DR_ERR_FORMAT,
             "%s: section [settings]: expected \"trim = yes\" or \"trim = no\", found \"%.60s\"", path,
             settings->data);
    return DR_OK;
}

dr_status dr_chat_load_file(const char *path, dr_chat **out_chat) {
    section sections[N_SECTIONS] = {{.name = "begin"},     {.name = "system"},     {.name = "user"},
                                    {.name = "assistant"}, {.name = "generation"}, {.name = "default_system"},
                                    {.name = "settings"}};
    dr_buf file = {0};
    dr_chat *c = NULL;
    dr_status status = dr_file_read(path, 1 << 20, &file);
    if (status == DR_OK) status = read_sections(path, &file, sections);
    if (status == DR_OK) status = create(path, &c);
    if (status == DR_OK) status = use_sections(c, path, sections);
    if (status == DR_OK)
        *out_chat = c;
    else
        dr_chat_destroy(c);
    for (int k = 0; k < N_SECTIONS; k++) dr_buf_reset(&sections[k].text);
    dr_buf_reset(&file);
    return status;
}
