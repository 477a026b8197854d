// The YAML side of config.h: walks libyaml's events, joins nested names with dots, and knows the line of
// everything.
#include "core/base/config.h"

#include <stdio.h>
#include <string.h>

#include <yaml.h>

#include "core/base/file.h"

enum { MAX_DEPTH = 8, MAX_KEY = 128 };

typedef struct reader {
    yaml_parser_t yaml;
    dr_config *config; // a working copy: swapped in when the whole file is good
    const char *where;
    const dr_setting *table;
    int32_t n;
    size_t *seen_line; // [n] line + 1 where this file sets the row, 0: not yet
} reader;

static dr_status fail_at(const reader *r, yaml_mark_t mark, const char *text) {
    return DR_FAIL(DR_ERR_FORMAT, "%s:%zu:%zu: %s", r->where, mark.line + 1, mark.column + 1, text);
}

// One event; syntax errors become ours. The caller deletes the event.
static dr_status next_event(reader *r, yaml_event_t *event) {
    if (yaml_parser_parse(&r->yaml, event)) return DR_OK;
    yaml_mark_t mark = r->yaml.problem_mark;
    if (r->yaml.error == YAML_MEMORY_ERROR)
        return DR_FAIL(DR_ERR_MEMORY, "%s: no memory to parse YAML", r->where);
    return DR_FAIL(DR_ERR_FORMAT, "%s:%zu:%zu: not valid YAML: %s%s%s", r->where, mark.line + 1,
                   mark.column + 1, r->yaml.problem ? r->yaml.problem : "unreadable bytes",
                   r->yaml.context ? " " : "", r->yaml.context ? r->yaml.context : "");
}

static const char *event_name(const yaml_event_t *event) {
    switch (event->type) {
    case YAML_MAPPING_START_EVENT:
        return "a map";
    case YAML_SEQUENCE_START_EVENT:
        return "a list";
    case YAML_ALIAS_EVENT:
        return "an alias";
    default:
        return "a value";
    }
}

// Name of a section: some key starts with "name.".
static int is_section(const reader *r, const char *name) {
    size_t length = strlen(name);
    for (int32_t i = 0; i < r->n; i++)
        if (strncmp(r->table[i].key, name, length) == 0 && r->table[i].key[length] == '.') return 1;
    return 0;
}

// A map may be misnamed as well as a setting, so the sections compete with the keys.
static dr_status unknown_name(const reader *r, yaml_mark_t mark, const char *name) {
    char nearest[MAX_KEY] = "(there is none)", section[MAX_KEY], text[512];
    const char *key = dr_setting_nearest(r->table, r->n, name);
    if (key) snprintf(nearest, sizeof nearest, "%s", key);
    for (int32_t i = 0; i < r->n; i++) {
        const char *dot = strrchr(r->table[i].key, '.');
        snprintf(section, sizeof section, "%.*s", dot ? (int)(dot - r->table[i].key) : 0, r->table[i].key);
        const char *pair[] = {nearest, section};
        if (dot && dr_nearest_name(name, pair, 2) == section)
            snprintf(nearest, sizeof nearest, "%s", section);
    }
    snprintf(text, sizeof text, "unknown setting '%.100s'; the nearest known one is '%s'", name, nearest);
    return fail_at(r, mark, text);
}

static dr_status wrong_kind(const reader *r, yaml_mark_t mark, int32_t at, const char *found) {
    char text[512], expected[256];
    dr_setting_expected(&r->table[at], expected);
    snprintf(text, sizeof text, "'%s': expected %s, found %s", r->table[at].key, expected, found);
    return fail_at(r, mark, text);
}

// The scalar's text, checked: no NUL inside, no tag, quotes only where text is expected, never empty and
// unquoted.
static dr_status scalar_text(const reader *r, const yaml_event_t *event, int32_t at, const char **out) {
    const dr_setting *setting = &r->table[at];
    const char *text = (const char *)event->data.scalar.value;
    int is_plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    int is_text = setting->type == DR_VALUE_STRING || setting->type == DR_VALUE_STRING_LIST ||
                  setting->type == DR_VALUE_CHOICE;
    if (strlen(text) != event->data.scalar.length)
        return wrong_kind(r, event->start_mark, at, "text with a NUL character");
    if (event->data.scalar.tag) return wrong_kind(r, event->start_mark, at, "a tagged value");
    if (is_plain && (text[0] == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0))
        return wrong_kind(r, event->start_mark, at, "no value");
    if (!is_plain && !is_text) {
        char found[128];
        snprintf(found, sizeof found, "the quoted text \"%.80s\"", text);
        return wrong_kind(r, event->start_mark, at, found);
    }
    *out = text;
    return DR_OK;
}

static dr_status store_element(reader *r, const yaml_event_t *event, int32_t at) {
    if (event->type != YAML_SCALAR_EVENT) return wrong_kind(r, event->start_mark, at, event_name(event));
    const char *text = NULL;
    char place[600];
    DR_TRY(scalar_text(r, event, at, &text));
    snprintf(place, sizeof place, "%.500s:%zu:%zu", r->where, event->start_mark.line + 1,
             event->start_mark.column + 1);
    if (dr_setting_is_list(&r->table[at])) return dr_config_append(r->config, place, r->table[at].key, text);
    return dr_config_set(r->config, place, r->table[at].key, text);
}

static dr_status read_list(reader *r, int32_t at) {
    dr_status status = dr_config_set(r->config, r->where, r->table[at].key, ""); // the default makes way
    while (status == DR_OK) {
        yaml_event_t event;
        DR_TRY(next_event(r, &event));
        int is_end = event.type == YAML_SEQUENCE_END_EVENT;
        if (!is_end) status = store_element(r, &event, at);
        yaml_event_delete(&event);
        if (is_end) break;
    }
    return status;
}

static dr_status read_setting(reader *r, const yaml_event_t *event, yaml_mark_t key_mark, int32_t at) {
    if (r->seen_line[at]) {
        char text[512];
        snprintf(text, sizeof text, "'%s' is set twice; first in line %zu", r->table[at].key,
                 r->seen_line[at]);
        return fail_at(r, key_mark, text);
    }
    r->seen_line[at] = key_mark.line + 1;
    int is_list = dr_setting_is_list(&r->table[at]);
    if (is_list && event->type == YAML_SEQUENCE_START_EVENT) return read_list(r, at);
    if (is_list || event->type != YAML_SCALAR_EVENT) {
        char found[160];
        snprintf(found, sizeof found, "%s%.80s", event_name(event),
                 event->type == YAML_SCALAR_EVENT ? (const char *)event->data.scalar.value : "");
        if (event->type == YAML_SCALAR_EVENT)
            snprintf(found, sizeof found, "'%.80s'", (const char *)event->data.scalar.value);
        return wrong_kind(r, event->start_mark, at, found);
    }
    return store_element(r, event, at);
}

static dr_status read_map(reader *r, const char *prefix, int depth);

static dr_status read_member(reader *r, const char *name, yaml_mark_t key_mark, int depth) {
    int32_t at = dr_setting_find(r->table, r->n, name);
    if (at < 0 && !is_section(r, name)) return unknown_name(r, key_mark, name);
    yaml_event_t event;
    DR_TRY(next_event(r, &event));
    dr_status status = DR_OK;
    if (at >= 0) {
        status = read_setting(r, &event, key_mark, at);
    } else if (event.type == YAML_MAPPING_START_EVENT) {
        status = read_map(r, name, depth + 1);
    } else {
        char text[256];
        snprintf(text, sizeof text, "'%.100s' is a section: expected a map of settings, found %s", name,
                 event_name(&event));
        status = fail_at(r, event.start_mark, text);
    }
    yaml_event_delete(&event);
    return status;
}

static dr_status read_key(reader *r, const yaml_event_t *event, const char *prefix, int depth) {
    if (event->type != YAML_SCALAR_EVENT)
        return fail_at(r, event->start_mark, "expected the name of a setting");
    char name[MAX_KEY];
    int length = snprintf(name, sizeof name, "%s%s%s", prefix, prefix[0] ? "." : "",
                          (const char *)event->data.scalar.value);
    if (length < 0 || (size_t)length >= sizeof name) return unknown_name(r, event->start_mark, name);
    return read_member(r, name, event->start_mark, depth);
}

// After the map's start event, to its end event.
static dr_status read_map(reader *r, const char *prefix, int depth) {
    if (depth > MAX_DEPTH) return fail_at(r, r->yaml.mark, "maps nested too deeply");
    for (;;) {
        yaml_event_t event;
        DR_TRY(next_event(r, &event));
        int is_end = event.type == YAML_MAPPING_END_EVENT;
        dr_status status = is_end ? DR_OK : read_key(r, &event, prefix, depth);
        yaml_event_delete(&event);
        if (is_end || status != DR_OK) return status;
    }
}

// An empty file, or one whose only content is a map.
static dr_status read_stream(reader *r) {
    int n_documents = 0;
    for (;;) {
        yaml_event_t event;
        DR_TRY(next_event(r, &event));
        yaml_event_type_t type = event.type;
        yaml_mark_t mark = event.start_mark;
        int is_empty = type == YAML_SCALAR_EVENT && event.data.scalar.length == 0;
        yaml_event_delete(&event);
        if (type == YAML_STREAM_END_EVENT) return DR_OK;
        if (type == YAML_DOCUMENT_START_EVENT && ++n_documents > 1)
            return fail_at(r, mark, "a second document; expected one");
        if (type == YAML_MAPPING_START_EVENT)
            DR_TRY(read_map(r, "", 1));
        else if ((type == YAML_SCALAR_EVENT && !is_empty) || type == YAML_SEQUENCE_START_EVENT ||
                 type == YAML_ALIAS_EVENT)
            return fail_at(r, mark, "expected a map of settings at the top");
    }
}

dr_status dr_config_parse(dr_config *config, const char *where, const char *text, size_t length) {
    reader r = {.where = where};
    r.table = dr_config_table(config, &r.n);
    dr_status status = DR_OK;
    DR_TRY(dr_config_copy(config, &r.config));
    DR_TRY_GOTO(status, dr_alloc(&r.seen_line, "configuration lines", r.n, sizeof *r.seen_line),
                destroy_copy);
    DR_CHECK_GOTO(yaml_parser_initialize(&r.yaml), status, DR_ERR_MEMORY, free_lines,
                  "%s: no memory to parse YAML", where);
    yaml_parser_set_input_string(&r.yaml, (const unsigned char *)text, length);
    status = read_stream(&r);
    if (status == DR_OK) dr_config_swap(config, r.config);
    yaml_parser_delete(&r.yaml);
free_lines:
    dr_free(r.seen_line);
destroy_copy:
    dr_config_destroy(r.config);
    return status;
}

dr_status dr_config_load(dr_config *config, const char *path) {
    dr_buf text = {0};
    dr_status status = dr_file_read(path, 16 << 20, &text);
    if (status == DR_OK) status = dr_config_parse(config, path, text.data, text.length);
    dr_buf_reset(&text);
    return status;
}
