// Reading what an episode wrote. All functions take bytes of any kind: nothing here relies on valid UTF-8.
#include "core/episode/protocol.h"

#include <string.h>

const char *const dr_protocol_tags[DR_N_TAGS] = {DR_TAG_THINK,          DR_TAG_THINK_END, DR_TAG_PREFERENCE,
                                                 DR_TAG_PREFERENCE_END, DR_TAG_ITEMS,     DR_TAG_ITEMS_END,
                                                 DR_TAG_ANSWER,         DR_TAG_ANSWER_END};

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

dr_tag dr_tag_next(const char *text, size_t length, size_t *at, size_t *out_begin) {
    while (*at < length) {
        const char *open = memchr(text + *at, '<', length - *at);
        if (!open) break;
        size_t begin = (size_t)(open - text);
        for (int i = 0; i < DR_N_TAGS; i++) {
            size_t n = strlen(dr_protocol_tags[i]);
            if (n > length - begin || memcmp(open, dr_protocol_tags[i], n) != 0) continue;
            *at = begin + n;
            if (out_begin) *out_begin = begin;
            return (dr_tag)i;
        }
        *at = begin + 1;
    }
    *at = length;
    return DR_TAG_NONE;
}

// ---- completions ----

void dr_completion_reset(dr_completion *completion) {
    if (completion == NULL) return;
    dr_buf_reset(&completion->text);
    dr_free(completion->segments);
    memset(completion, 0, sizeof *completion);
}

// Adds a segment of `length` bytes, or makes the last one longer when it has the same origin. Pointers are
// set at the end (point_segments), because the text may still move.
static dr_status add_segment(dr_completion *c, size_t length, bool from_tool) {
    if (length == 0) return DR_OK;
    if (c->n_segments > 0 && c->segments[c->n_segments - 1].from_tool == from_tool && !from_tool) {
        c->segments[c->n_segments - 1].length += length;
        return DR_OK;
    }
    if (c->n_segments == c->capacity) {
        int32_t wider = c->capacity ? 2 * c->capacity : 8;
        DR_TRY(dr_grow(&c->segments, "segments", c->capacity, wider, sizeof *c->segments));
        c->capacity = wider;
    }
    c->segments[c->n_segments++] = (dr_segment){.length = length, .from_tool = from_tool};
    return DR_OK;
}

static void point_segments(dr_completion *c) {
    const char *at = c->text.data;
    for (int32_t i = 0; i < c->n_segments; i++) {
        c->segments[i].text = at;
        at += c->segments[i].length;
    }
}

static void take_over(dr_completion *from, dr_completion *out) {
    dr_completion_reset(out);
    *out = *from;
    point_segments(out);
}

// A run of tokens that end up in one segment: equal origin and, for the tool, equal turn (two lists never
// touch, but a hostile trajectory may say so).
static int32_t run_end(const dr_trajectory *t, int32_t begin) {
    bool tool = t->provenance[begin] == DR_FROM_TOOL;
    int32_t end = begin + 1;
    while (end < t->n_tokens && t->provenance[end] != DR_FROM_PROMPT &&
           (t->provenance[end] == DR_FROM_TOOL) == tool && (!tool || t->turn_of[end] == t->turn_of[begin]))
        end++;
    return end;
}

dr_status dr_protocol_decode(const dr_tokenizer *tokenizer, const int32_t *ids, int64_t n_ids,
                             dr_buf *out_bytes) {
    int32_t size = dr_tokenizer_size(tokenizer);
    for (int64_t i = 0; i < n_ids;) {
        int64_t end = i;
        while (end < n_ids && ids[end] >= 0 && ids[end] < size) end++;
        if (end > i) DR_TRY(dr_tokenizer_decode(tokenizer, ids + i, end - i, out_bytes));
        if (end < n_ids) DR_TRY(dr_buf_text(out_bytes, "\xEF\xBF\xBD"));
        i = end + 1;
    }
    return DR_OK;
}

static dr_status decode_runs(const dr_tokenizer *tokenizer, const dr_trajectory *t, dr_completion *c) {
    for (int32_t i = 0; i < t->n_tokens;) {
        if (t->provenance[i] == DR_FROM_PROMPT) {
            i++;
            continue;
        }
        int32_t end = run_end(t, i);
        size_t before = c->text.length;
        DR_TRY(dr_protocol_decode(tokenizer, t->ids + i, end - i, &c->text));
        DR_TRY(add_segment(c, c->text.length - before, t->provenance[i] == DR_FROM_TOOL));
        i = end;
    }
    return DR_OK;
}

dr_status dr_completion_from_trajectory(const dr_tokenizer *tokenizer, const dr_trajectory *trajectory,
                                        dr_completion *out) {
    dr_completion c = {0};
    dr_status status = decode_runs(tokenizer, trajectory, &c);
    if (status != DR_OK) {
        dr_completion_reset(&c);
        return status;
    }
    take_over(&c, out);
    return DR_OK;
}

// Length of the tool's text at text[at..): white space, a closed list, up to two newlines. 0 when there is no
// such list.
static size_t tool_text(const char *text, size_t length, size_t at) {
    size_t list = at;
    while (list < length && is_space(text[list])) list++;
    size_t open = strlen(DR_TAG_ITEMS), close = strlen(DR_TAG_ITEMS_END);
    if (length - list < open || memcmp(text + list, DR_TAG_ITEMS, open) != 0) return 0;
    const char *inside = text + list + open;
    const char *end = memmem(inside, length - list - open, DR_TAG_ITEMS_END, close);
    if (!end) return 0;
    if (memmem(inside, (size_t)(end - inside), DR_TAG_ITEMS, open)) return 0;
    size_t stop = (size_t)(end - text) + close;
    for (int i = 0; i < 2 && stop < length && text[stop] == '\n'; i++) stop++;
    return stop - at;
}

static dr_status split_text(const char *text, size_t length, dr_completion *c) {
    size_t done = 0, at = 0;
    while (at < length) {
        if (dr_tag_next(text, length, &at, NULL) != DR_TAG_AT_PREFERENCE_END) continue;
        size_t tool = tool_text(text, length, at);
        if (tool == 0) continue;
        DR_TRY(add_segment(c, at - done, false));
        DR_TRY(add_segment(c, tool, true));
        at += tool;
        done = at;
    }
    DR_TRY(add_segment(c, length - done, false));
    return dr_buf_append(&c->text, text, length);
}

dr_status dr_completion_from_text(const char *text, size_t length, dr_completion *out) {
    dr_completion c = {0};
    dr_status status = split_text(text, length, &c);
    if (status != DR_OK) {
        dr_completion_reset(&c);
        return status;
    }
    take_over(&c, out);
    return DR_OK;
}

// ---- preference ----

// Where the preference of this turn stands; false when there is no begin tag.
static bool preference_range(const char *text, size_t length, size_t *out_begin, size_t *out_end) {
    bool found = false;
    size_t at = 0, begin = 0, end = 0, place = 0;
    for (dr_tag tag; (tag = dr_tag_next(text, length, &at, &place)) != DR_TAG_NONE;) {
        if (tag == DR_TAG_AT_PREFERENCE) {
            found = true;
            begin = at;
            end = length;
        } else if (tag == DR_TAG_AT_PREFERENCE_END && found && end == length) {
            end = place;
        }
    }
    *out_begin = begin;
    *out_end = end;
    return found;
}

dr_status dr_preference_extract(const char *turn_text, size_t length, dr_buf *out_preference) {
    size_t begin = 0, end = 0;
    if (!preference_range(turn_text, length, &begin, &end)) return DR_OK;
    bool pending_space = false, started = false;
    for (size_t i = begin; i < end; i++) {
        char c = turn_text[i];
        if (c == '"') continue;
        if (is_space(c) || c == '\0') {
            pending_space = started;
            continue;
        }
        if (pending_space) DR_TRY(dr_buf_append(out_preference, " ", 1));
        DR_TRY(dr_buf_append(out_preference, &c, 1));
        pending_space = false;
        started = true;
    }
    return DR_OK;
}

// ---- answer ----

static bool block_in_segment(const dr_segment *segment, const char **out_text, size_t *out_length) {
    bool open = false, found = false;
    size_t at = 0, place = 0, begin = 0;
    for (dr_tag tag; (tag = dr_tag_next(segment->text, segment->length, &at, &place)) != DR_TAG_NONE;) {
        if (tag == DR_TAG_AT_ANSWER) {
            open = true;
            begin = at;
        } else if (tag == DR_TAG_AT_ANSWER_END && open) {
            open = false;
            found = true;
            *out_text = segment->text + begin;
            *out_length = place - begin;
        }
    }
    return found;
}

bool dr_answer_block(const dr_completion *completion, const char **out_text, size_t *out_length) {
    for (int32_t i = completion->n_segments - 1; i >= 0; i--) {
        const dr_segment *segment = &completion->segments[i];
        if (!segment->from_tool && block_in_segment(segment, out_text, out_length)) return true;
    }
    return false;
}

// Trims white space, drops a leading "n. " (digits, dot, white space or the end).
static dr_answer_line clean_line(const char *text, size_t length) {
    while (length > 0 && is_space(text[0])) text++, length--;
    while (length > 0 && is_space(text[length - 1])) length--;
    size_t digits = 0;
    while (digits < length && text[digits] >= '0' && text[digits] <= '9') digits++;
    bool numbered = digits > 0 && digits < length && text[digits] == '.' &&
                    (digits + 1 == length || is_space(text[digits + 1]));
    if (numbered) {
        text += digits + 1;
        length -= digits + 1;
        while (length > 0 && is_space(text[0])) text++, length--;
    }
    return (dr_answer_line){.text = text, .length = length};
}

static bool is_blank(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (!is_space(text[i])) return false;
    return true;
}

bool dr_answer_find(const dr_completion *completion, dr_answer_line *out_lines, int32_t capacity,
                    int32_t *out_n) {
    const char *text = NULL;
    size_t length = 0;
    if (!dr_answer_block(completion, &text, &length)) return false;
    int32_t n = 0;
    for (size_t at = 0; at < length;) {
        const char *newline = memchr(text + at, '\n', length - at);
        size_t end = newline ? (size_t)(newline - text) : length;
        if (!is_blank(text + at, end - at)) {
            if (n < capacity) out_lines[n] = clean_line(text + at, end - at);
            n++;
        }
        at = end + 1;
    }
    *out_n = n;
    return true;
}
