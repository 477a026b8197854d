// Prompt templates: reading the file with its sections, filling in the placeholders, and turning the result
// into token ids such that nothing from the data set can become a control token.
#include "core/episode/template.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/episode/protocol.h"

// The built-in files of launch/templates, made into arrays by the build.
extern const char dr_template_text_full[];
extern const char dr_template_text_compact[];

typedef enum section {
    SECTION_SETTINGS,
    SECTION_PROMPT,
    SECTION_HISTORY,
    SECTION_LIST,
    SECTION_FORBIDDEN
} section;
enum { N_SECTIONS = 5 };
static const char *const section_names[N_SECTIONS] = {"settings", "prompt", "history_item", "list_item",
                                                      "forbidden"};

struct dr_template {
    char *text[N_SECTIONS];   // as in the file, blank lines at both ends cut off; "" when absent
    int32_t line[N_SECTIONS]; // where the text begins in the file, 0 when absent
    int32_t max_history;
    char **forbidden; // [n_forbidden + 1], NULL-terminated
    int32_t n_forbidden;
    bool in_chat;
    dr_buf chat_before, chat_after; // what stands around the prompt then
};

// ---- reading ----

typedef struct line_reader {
    const char *where; // file name for errors
    const char *text;
    size_t length, at;
    int32_t number; // of the line last given
} line_reader;

// The next line without its end ("\n" or "\r\n").
static bool next_line(line_reader *r, const char **out_line, size_t *out_length) {
    if (r->at >= r->length) return false;
    const char *line = r->text + r->at;
    const char *end = memchr(line, '\n', r->length - r->at);
    size_t n = end ? (size_t)(end - line) : r->length - r->at;
    r->at += n + (end ? 1 : 0);
    if (n > 0 && line[n - 1] == '\r') n--;
    r->number++;
    *out_line = line;
    *out_length = n;
    return true;
}

static bool is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || c == '_';
}

// "[name]" alone on the line.
static bool is_header(const char *line, size_t n) {
    if (n < 3 || line[0] != '[' || line[n - 1] != ']') return false;
    for (size_t i = 1; i + 1 < n; i++)
        if (!is_name_char(line[i])) return false;
    return true;
}

static dr_status find_section(const line_reader *r, const char *line, size_t n, int *out_section) {
    for (int i = 0; i < N_SECTIONS; i++) {
        if (strlen(section_names[i]) != n - 2 || memcmp(line + 1, section_names[i], n - 2) != 0) continue;
        *out_section = i;
        return DR_OK;
    }
    return DR_FAIL(
        DR_ERR_FORMAT,
        "%s:%d: expected [settings], [prompt], [history_item], [list_item] or [forbidden], found %.*s",
        r->where, r->number, (int)(n < 60 ? n : 60), line);
}

// Blank lines at both ends cut off; *line_inout moves with the front.
static dr_status keep_section(dr_template *t, int s, const dr_buf *text, int32_t first_line) {
    size_t begin = 0, end = text->length;
    for (size_t i = 0; i < end && (text->data[i] == '\n' || text->data[i] == ' '); i++) {
        if (text->data[i] != '\n') continue;
        begin = i + 1;
        first_line++;
    }
    while (end > begin && text->data[end - 1] == '\n') end--;
    t->line[s] = first_line;
    dr_free(t->text[s]);
    t->text[s] = NULL;
    return dr_strndup(&t->text[s], text->length ? text->data + begin : "", end - begin);
}

static dr_status read_sections(dr_template *t, line_reader *r, dr_buf *text) {
    const char *line = NULL;
    size_t n = 0;
    int current = -1;
    int32_t first_line = 0;
    while (next_line(r, &line, &n)) {
        if (is_header(line, n)) {
            int found = -1;
            DR_TRY(find_section(r, line, n, &found));
            if (current >= 0) DR_TRY(keep_section(t, current, text, first_line));
            DR_CHECK(t->line[found] == 0 && found != current, DR_ERR_FORMAT,
                     "%s:%d: section [%s] for the second time", r->where, r->number, section_names[found]);
            current = found;
            first_line = r->number + 1;
            dr_buf_clear(text);
            continue;
        }
        bool skipped = n == 0 || line[0] == '#';
        DR_CHECK(current >= 0 || skipped, DR_ERR_FORMAT,
                 "%s:%d: expected a section such as [prompt], found \"%.*s\"", r->where, r->number,
                 (int)(n < 60 ? n : 60), line);
        if (current < 0) continue;
        DR_TRY(dr_buf_append(text, line, n));
        DR_TRY(dr_buf_append(text, "\n", 1));
    }
    if (current >= 0) DR_TRY(keep_section(t, current, text, first_line));
    return DR_OK;
}

static dr_status read_settings(dr_template *t, const char *where) {
    line_reader r = {where, t->text[SECTION_SETTINGS], strlen(t->text[SECTION_SETTINGS]), 0,
                     t->line[SECTION_SETTINGS] - 1};
    const char *line = NULL;
    size_t n = 0;
    while (next_line(&r, &line, &n)) {
        if (n == 0 || line[0] == '#') continue;
        char copy[128] = {0}, *end = NULL;
        memcpy(copy, line, n < sizeof copy - 1 ? n : sizeof copy - 1);
        char *equals = strchr(copy, '=');
        size_t key = strspn(copy, "abcdefghijklmnopqrstuvwxyz_");
        DR_CHECK(equals && key == strlen("max_history") && memcmp(copy, "max_history", key) == 0,
                 DR_ERR_FORMAT, "%s:%d: expected \"max_history = N\", found \"%s\"", where, r.number, copy);
        long value = strtol(equals + 1, &end, 10);
        DR_CHECK(end != equals + 1 && end[strspn(end, " ")] == '\0' && value >= 1 && value <= 10000,
                 DR_ERR_FORMAT, "%s:%d: max_history: expected an integer from 1 to 10000, found \"%s\"",
                 where, r.number, equals + 1);
        t->max_history = (int32_t)value;
    }
    return DR_OK;
}

static dr_status read_forbidden(dr_template *t, const char *where) {
    line_reader r = {where, t->text[SECTION_FORBIDDEN], strlen(t->text[SECTION_FORBIDDEN]), 0, 0};
    const char *line = NULL;
    size_t n = 0;
    int32_t count = 0;
    while (next_line(&r, &line, &n)) count++;
    DR_TRY(dr_alloc(&t->forbidden, "forbidden phrases", count + 1, sizeof *t->forbidden));
    r.at = 0;
    while (next_line(&r, &line, &n)) {
        if (n == 0) continue;
        DR_TRY(dr_strndup(&t->forbidden[t->n_forbidden], line, n));
        t->n_forbidden++;
    }
    return DR_OK;
}

// Length of "{name}" at text, or 0; the name goes to *out_name, NUL-terminated.
static size_t placeholder_at(const char *text, char out_name[32]) {
    size_t n = 1;
    if (text[0] != '{') return 0;
    while (is_name_char(text[n]) && n < 31) n++;
    if (n == 1 || text[n] != '}') return 0;
    memcpy(out_name, text + 1, n - 1);
    out_name[n - 1] = '\0';
    return n + 1;
}

// Every placeholder is one of `known` (separated by '|'), and `needed` is among them.
static dr_status check_placeholders(const dr_template *t, const char *where, section s, const char *known,
                                    const char *needed) {
    const char *text = t->text[s];
    int32_t line = t->line[s];
    bool has_needed = false;
    DR_CHECK(line > 0, DR_ERR_FORMAT, "%s: section [%s] is missing", where, section_names[s]);
    for (const char *p = text; *p; p++) {
        char name[32], bounded[40];
        if (*p == '\n') line++;
        if (placeholder_at(p, name) == 0) continue;
        snprintf(bounded, sizeof bounded, "|%s|", name);
        DR_CHECK(strstr(known, bounded) != NULL, DR_ERR_FORMAT,
                 "%s:%d: placeholder {%s} is not one of %s in [%s]", where, line, name, known,
                 section_names[s]);
        if (strcmp(name, needed) == 0) has_needed = true;
    }
    DR_CHECK(has_needed, DR_ERR_FORMAT, "%s:%d: [%s] has no {%s}", where, t->line[s], section_names[s],
             needed);
    return DR_OK;
}

static dr_status check_template(const dr_template *t, const char *where) {
    DR_TRY(check_placeholders(t, where, SECTION_PROMPT, "|history|k|k_retrieve|", "history"));
    DR_TRY(check_placeholders(t, where, SECTION_HISTORY, "|n|title|categories|", "title"));
    DR_TRY(check_placeholders(t, where, SECTION_LIST, "|n|title|categories|", "title"));
    size_t n = strlen(t->text[SECTION_PROMPT]), tag = strlen(DR_TAG_THINK);
    DR_CHECK(n >= tag && strcmp(t->text[SECTION_PROMPT] + n - tag, DR_TAG_THINK) == 0, DR_ERR_FORMAT,
             "%s:%d: [prompt] must end with %s", where, t->line[SECTION_PROMPT], DR_TAG_THINK);
    return DR_OK;
}

static dr_status parse(const char *where, const char *text, size_t length, dr_template *t) {
    line_reader r = {.where = where, .text = text, .length = length};
    dr_buf section_text = {0};
    dr_status status = DR_OK;
    t->max_history = 20;
    for (int i = 0; i < N_SECTIONS && status == DR_OK; i++) status = dr_strdup(&t->text[i], "");
    if (status == DR_OK) status = read_sections(t, &r, &section_text);
    dr_buf_reset(&section_text);
    DR_TRY(status);
    DR_TRY(read_settings(t, where));
    DR_TRY(read_forbidden(t, where));
    return check_template(t, where);
}

dr_status dr_template_load(const char *name_or_path, dr_template **out_template) {
    enum { MAX_BYTES = 1 << 20 };
    dr_buf file = {0};
    dr_template *t = NULL;
    dr_status status = DR_OK;
    const char *text = NULL;
    if (strcmp(name_or_path, "full") == 0) text = dr_template_text_full;
    if (strcmp(name_or_path, "compact") == 0) text = dr_template_text_compact;
    if (!text) {
        DR_CHECK(dr_file_exists(name_or_path), DR_ERR_IO,
                 "template %s: neither a file nor one of full, compact", name_or_path);
        DR_TRY_GOTO(status, dr_file_read(name_or_path, MAX_BYTES, &file), reset_file);
        text = file.data ? file.data : "";
    }
    DR_TRY_GOTO(status, dr_alloc(&t, "template", 1, sizeof *t), reset_file);
    DR_TRY_GOTO(status, parse(name_or_path, text, strlen(text), t), destroy_template);
    *out_template = t;
    dr_buf_reset(&file);
    return DR_OK;
destroy_template:
    dr_template_destroy(t);
reset_file:
    dr_buf_reset(&file);
    return status;
}

void dr_template_destroy(dr_template *t) {
    if (!t) return;
    for (int i = 0; i < N_SECTIONS; i++) dr_free(t->text[i]);
    for (int32_t i = 0; i < t->n_forbidden; i++) dr_free(t->forbidden[i]);
    dr_free(t->forbidden);
    dr_buf_reset(&t->chat_before);
    dr_buf_reset(&t->chat_after);
    dr_free(t);
}

// A form of a thinking model opens the thought itself; the prompt does, once.
static void drop_think(dr_buf *after) {
    size_t n = after->length, tag = strlen(DR_TAG_THINK);
    while (n > 0 && strchr(" \t\r\n", after->data[n - 1])) n--;
    if (n >= tag && memcmp(after->data + n - tag, DR_TAG_THINK, tag) == 0) after->length = n - tag;
}

dr_status dr_template_in_chat(dr_template *t, const dr_chat *chat) {
    dr_buf before = {0}, after = {0};
    dr_status status = chat ? dr_chat_around_user(chat, &before, &after) : DR_OK;
    if (status != DR_OK) {
        dr_buf_reset(&before);
        dr_buf_reset(&after);
        return status;
    }
    drop_think(&after);
    dr_buf_reset(&t->chat_before);
    dr_buf_reset(&t->chat_after);
    t->in_chat = chat != NULL;
    t->chat_before = before;
    t->chat_after = after;
    return DR_OK;
}

int32_t dr_template_max_history(const dr_template *t) {
    return t->max_history;
}

const char *const *dr_template_forbidden(const dr_template *t) {
    return (const char *const *)t->forbidden;
}

// ---- filling in ----

void dr_rendering_reset(dr_rendering *rendering) {
    if (!rendering) return;
    dr_buf_reset(&rendering->text);
    dr_free(rendering->foreign);
    memset(rendering, 0, sizeof *rendering);
}

void dr_rendering_clear(dr_rendering *r) {
    dr_buf_clear(&r->text);
    r->n_foreign = 0;
}

dr_status dr_rendering_own(dr_rendering *r, const char *text) {
    return dr_buf_text(&r->text, text);
}

dr_status dr_rendering_foreign_bytes(dr_rendering *r, const char *text, size_t length) {
    if (r->n_foreign == r->capacity) {
        int32_t wider = r->capacity ? 2 * r->capacity : 64;
        DR_TRY(dr_grow(&r->foreign, "ranges of foreign text", 2 * (int64_t)r->capacity, 2 * (int64_t)wider,
                       sizeof *r->foreign));
        r->capacity = wider;
    }
    size_t begin = r->text.length;
    DR_TRY(dr_buf_append(&r->text, text, length));
    r->foreign[2 * r->n_foreign] = begin;
    r->foreign[2 * r->n_foreign + 1] = r->text.length;
    r->n_foreign++;
    return DR_OK;
}

dr_status dr_rendering_foreign(dr_rendering *r, const char *text) {
    size_t begin = r->text.length;
    DR_TRY(dr_rendering_foreign_bytes(r, text, strlen(text)));
    for (size_t i = begin; i < r->text.length; i++)
        if ((unsigned char)r->text.data[i] < ' ') r->text.data[i] = ' ';
    return DR_OK;
}

static bool line_has(const char *line, size_t n, const char *what) {
    return memmem(line, n, what, strlen(what)) != NULL;
}

static dr_status put_item_line(dr_rendering *r, const char *line, size_t n, int32_t number, const char *title,
                               const char *categories) {
    for (size_t i = 0; i < n;) {
        char name[32];
        size_t length = placeholder_at(line + i, name);
        if (length == 0) {
            DR_TRY(dr_buf_append(&r->text, line + i, 1));
            i++;
            continue;
        }
        if (strcmp(name, "n") == 0)
            DR_TRY(dr_buf_printf(&r->text, "%d", number));
        else if (strcmp(name, "title") == 0)
            DR_TRY(dr_rendering_foreign(r, title));
        else
            DR_TRY(dr_rendering_foreign(r, categories[0] ? categories : "-"));
        i += length;
    }
    return DR_OK;
}

static dr_status put_item(const dr_template *t, section s, const dr_dataset *dataset, int32_t item,
                          int32_t number, dr_rendering *r) {
    DR_CHECK(item >= 1 && item <= dataset->n_items, DR_ERR_RANGE, "item %d of a data set with %d items", item,
             dataset->n_items);
    line_reader lines = {.text = t->text[s], .length = strlen(t->text[s])};
    const char *line = NULL, *categories = dataset->categories[item];
    size_t n = 0;
    bool first = true;
    while (next_line(&lines, &line, &n)) {
        if (!categories[0] && line_has(line, n, "{categories}") && !line_has(line, n, "{title}")) continue;
        if (!first) DR_TRY(dr_buf_append(&r->text, "\n", 1));
        first = false;
        DR_TRY(put_item_line(r, line, n, number, dataset->titles[item], categories));
    }
    return DR_OK;
}

static dr_status put_history(const dr_template *t, const dr_dataset *dataset, const int32_t *history,
                             int32_t n, dr_rendering *r) {
    int32_t first = n > t->max_history ? n - t->max_history : 0;
    for (int32_t i = first; i < n; i++) {
        if (i > first) DR_TRY(dr_buf_append(&r->text, "\n", 1));
        DR_TRY(put_item(t, SECTION_HISTORY, dataset, history[i], i - first + 1, r));
    }
    return DR_OK;
}

// Length of the prompt's text up to its last <think>, which every template ends with, and of the same without
// white space at its end.
static size_t body_length(const dr_template *t, size_t *out_trimmed) {
    const char *text = t->text[SECTION_PROMPT];
    size_t n = strlen(text) - strlen(DR_TAG_THINK), trimmed = n;
    while (trimmed > 0 && strchr(" \t\r\n", text[trimmed - 1])) trimmed--;
    *out_trimmed = trimmed;
    return n;
}

static dr_status put_prompt(const dr_template *t, const dr_dataset *dataset, const int32_t *history,
                            int32_t n_history, int32_t k, int32_t k_retrieve, dr_rendering *r) {
    size_t trimmed = 0, n = body_length(t, &trimmed);
    const char *begin = t->text[SECTION_PROMPT], *end = begin + (t->in_chat ? trimmed : n);
    DR_TRY(dr_buf_append(&r->text, t->chat_before.data, t->chat_before.length));
    for (const char *p = begin; p < end;) {
        char name[32];
        size_t length = placeholder_at(p, name);
        if (length == 0)
            DR_TRY(dr_buf_append(&r->text, p, 1));
        else if (strcmp(name, "k") == 0)
            DR_TRY(dr_buf_printf(&r->text, "%d", k));
        else if (strcmp(name, "k_retrieve") == 0)
            DR_TRY(dr_buf_printf(&r->text, "%d", k_retrieve));
        else
            DR_TRY(put_history(t, dataset, history, n_history, r));
        p += length ? length : 1;
    }
    DR_TRY(dr_buf_append(&r->text, t->chat_after.data, t->chat_after.length));
    return dr_buf_text(&r->text, DR_TAG_THINK);
}

static dr_status put_list(const dr_template *t, const dr_dataset *dataset, const int32_t *items, int32_t n,
                          dr_rendering *r) {
    DR_TRY(dr_buf_text(&r->text, "\n\n" DR_TAG_ITEMS "\n"));
    for (int32_t i = 0; i < n; i++) {
        DR_TRY(put_item(t, SECTION_LIST, dataset, items[i], i + 1, r));
        DR_TRY(dr_buf_append(&r->text, "\n", 1));
    }
    return dr_buf_text(&r->text, DR_TAG_ITEMS_END "\n\n");
}

dr_status dr_template_prompt(const dr_template *t, const dr_dataset *dataset, const int32_t *history,
                             int32_t n_history, int32_t k, int32_t k_retrieve, dr_buf *out) {
    dr_rendering r = {0};
    dr_status status = put_prompt(t, dataset, history, n_history, k, k_retrieve, &r);
    if (status == DR_OK) status = dr_buf_append(out, r.text.data, r.text.length);
    dr_rendering_reset(&r);
    return status;
}

dr_status dr_template_item_list(const dr_template *t, const dr_dataset *dataset, const int32_t *items,
                                int32_t n_items, dr_buf *out) {
    dr_rendering r = {0};
    dr_status status = put_list(t, dataset, items, n_items, &r);
    if (status == DR_OK) status = dr_buf_append(out, r.text.data, r.text.length);
    dr_rendering_reset(&r);
    return status;
}

// ---- token ids ----

// Length of the special token that text[at..) spells, wholly before `limit`; 0 when there is none. Special
// tokens look like <…>.
static size_t special_at(const dr_tokenizer *tokenizer, const char *text, size_t at, size_t limit) {
    enum { LONGEST = 64 };
    size_t window = limit - at < LONGEST ? limit - at : LONGEST;
    if (text[at] != '<') return 0;
    const char *close = memchr(text + at, '>', window);
    if (!close) return 0;
    char name[LONGEST + 1];
    size_t n = (size_t)(close - (text + at)) + 1;
    memcpy(name, text + at, n);
    name[n] = '\0';
    return dr_tokenizer_special(tokenizer, name) >= 0 ? n : 0;
}

dr_status dr_rendering_ids(const dr_rendering *r, const dr_tokenizer *tokenizer, int32_t **ids,
                           int64_t *n_ids, int64_t *capacity) {
    const char *text = r->text.data;
    size_t length = r->text.length, done = 0, at = 0;
    for (int32_t next = 0; at < length;) {
        size_t limit = next < r->n_foreign ? r->foreign[2 * next] : length;
        if (at >= limit &&
            next < r->n_foreign) { // step over a foreign range; it is part of the plain stretch
            at = r->foreign[2 * next + 1];
            next++;
            continue;
        }
        size_t n = special_at(tokenizer, text, at, limit);
        if (n == 0) {
            at++;
            continue;
        }
        if (at > done)
            DR_TRY(dr_tokenizer_encode(tokenizer, text + done, at - done, false, ids, n_ids, capacity));
        DR_TRY(dr_tokenizer_encode(tokenizer, text + at, n, true, ids, n_ids, capacity));
        done = at = at + n;
    }
    if (length > done)
        DR_TRY(dr_tokenizer_encode(tokenizer, text + done, length - done, false, ids, n_ids, capacity));
    return DR_OK;
}

dr_status dr_template_prompt_ids(const dr_template *t, const dr_tokenizer *tokenizer,
                                 const dr_dataset *dataset, const int32_t *history, int32_t n_history,
                                 int32_t k, int32_t k_retrieve, dr_rendering *scratch, int32_t **ids,
                                 int64_t *n_ids, int64_t *capacity) {
    dr_rendering_clear(scratch);
    DR_TRY(put_prompt(t, dataset, history, n_history, k, k_retrieve, scratch));
    return dr_rendering_ids(scratch, tokenizer, ids, n_ids, capacity);
}

dr_status dr_template_item_list_ids(const dr_template *t, const dr_tokenizer *tokenizer,
                                    const dr_dataset *dataset, const int32_t *items, int32_t n_items,
                                    dr_rendering *scratch, int32_t **ids, int64_t *n_ids, int64_t *capacity) {
    dr_rendering_clear(scratch);
    DR_TRY(put_list(t, dataset, items, n_items, scratch));
    return dr_rendering_ids(scratch, tokenizer, ids, n_ids, capacity);
}
