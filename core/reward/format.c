// One function a rule. They see the policy's tags in order of place, and the tool's lists; texts are bytes of
// any kind.
#include "core/reward/format.h"

#include <stdio.h>
#include <string.h>

#include "core/text/normalize.h"

// A tag in a segment of the policy. Offsets are into the completion's text.
typedef struct mark {
    dr_tag tag;
    size_t begin, end;
    int32_t segment;
} mark;

typedef struct facts {
    const dr_completion *c;
    const dr_format_settings *settings;
    mark *marks; // [n_marks] ascending
    int32_t n_marks, capacity;
    int32_t count[DR_N_TAGS];
    const mark *first[DR_N_TAGS]; // NULL when absent
    int32_t n_lists, last_list;   // tool segments; -1
} facts;

static size_t offset_of(const facts *f, const char *at) {
    return (size_t)(at - f->c->text.data);
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_blank(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (!is_space(text[i])) return false;
    return true;
}

// ---- the rules ----

static bool preferences_balance(const facts *f, char *reason) {
    const mark *open = NULL;
    for (int32_t i = 0; i < f->n_marks; i++) {
        const mark *m = &f->marks[i];
        if (m->tag == DR_TAG_AT_PREFERENCE) {
            if (open) break; // a second begin: `open` stays set
            open = m;
        } else if (m->tag == DR_TAG_AT_PREFERENCE_END) {
            if (!open || open->segment != m->segment) {
                snprintf(reason, DR_REASON_BYTES, "a preference ends that was not begun");
                return false;
            }
            open = NULL;
        }
    }
    if (open) snprintf(reason, DR_REASON_BYTES, "a preference is begun and not ended");
    return !open;
}

static bool preferences_have_text(const facts *f, char *reason) {
    const mark *open = NULL;
    for (int32_t i = 0; i < f->n_marks; i++) {
        const mark *m = &f->marks[i];
        if (m->tag == DR_TAG_AT_PREFERENCE) open = m;
        if (m->tag != DR_TAG_AT_PREFERENCE_END || !open) continue;
        bool empty = true;
        for (size_t at = open->end; at < m->begin && empty; at++) {
            char c = f->c->text.data[at];
            empty = c == '"' || c == '\0' || is_space(c);
        }
        if (!empty) continue;
        snprintf(reason, DR_REASON_BYTES, "an empty preference");
        return false;
    }
    return true;
}

static bool no_list_tags_written(const facts *f, char *reason) {
    bool holds = f->count[DR_TAG_AT_ITEMS] == 0 && f->count[DR_TAG_AT_ITEMS_END] == 0;
    if (!holds) snprintf(reason, DR_REASON_BYTES, "the policy wrote an item list tag itself");
    return holds;
}

static bool lists_well_formed(const facts *f, char *reason) {
    size_t open = strlen(DR_TAG_ITEMS), close = strlen(DR_TAG_ITEMS_END);
    for (int32_t i = 0; i < f->c->n_segments; i++) {
        const dr_segment *s = &f->c->segments[i];
        if (!s->from_tool) continue;
        size_t begin = 0, end = s->length;
        while (begin < end && is_space(s->text[begin])) begin++;
        while (end > begin && is_space(s->text[end - 1])) end--;
        bool holds = end - begin > open + close && memcmp(s->text + begin, DR_TAG_ITEMS, open) == 0 &&
                     memcmp(s->text + end - close, DR_TAG_ITEMS_END, close) == 0 &&
                     !is_blank(s->text + begin + open, end - begin - open - close);
        if (holds) continue;
        snprintf(reason, DR_REASON_BYTES, "an item list is not well formed");
        return false;
    }
    return true;
}

// Each ended preference has its list and each list its preference.
static bool lists_match_preferences(const facts *f, char *reason) {
    int32_t answered = 0;
    for (int32_t i = 0; i < f->n_marks; i++) {
        const mark *m = &f->marks[i];
        if (m->tag != DR_TAG_AT_PREFERENCE_END) continue;
        bool last_tag = i + 1 == f->n_marks || f->marks[i + 1].segment != m->segment;
        bool list_next = m->segment + 1 < f->c->n_segments && f->c->segments[m->segment + 1].from_tool;
        if (last_tag && list_next) answered++;
    }
    bool holds = answered == f->count[DR_TAG_AT_PREFERENCE_END] && answered == f->n_lists;
    if (!holds)
        snprintf(reason, DR_REASON_BYTES, "%d preferences, %d item lists, %d of them in place",
                 f->count[DR_TAG_AT_PREFERENCE_END], f->n_lists, answered);
    return holds;
}

static bool has_retrieval(const facts *f, char *reason) {
    if (f->n_lists == 0) snprintf(reason, DR_REASON_BYTES, "no retrieval");
    return f->n_lists > 0;
}

// The completion begins inside the thought that the prompt opened.
static bool one_thought(const facts *f, char *reason) {
    bool holds = f->count[DR_TAG_AT_THINK_END] == 1 && f->count[DR_TAG_AT_THINK] == 0;
    if (!holds)
        snprintf(reason, DR_REASON_BYTES, "expected one </think> and no second <think>, found %d and %d",
                 f->count[DR_TAG_AT_THINK_END], f->count[DR_TAG_AT_THINK]);
    return holds;
}

static bool one_answer(const facts *f, char *reason) {
    const mark *begin = f->first[DR_TAG_AT_ANSWER], *end = f->first[DR_TAG_AT_ANSWER_END];
    int32_t n_begin = f->count[DR_TAG_AT_ANSWER], n_end = f->count[DR_TAG_AT_ANSWER_END];
    bool holds = n_begin == 1 && n_end == 1 && begin->begin < end->begin;
    if (!holds)
        snprintf(reason, DR_REASON_BYTES, "expected one answer block, found %d begin and %d end tags%s",
                 n_begin, n_end, n_begin == 1 && n_end == 1 ? " in wrong order" : "");
    return holds;
}

static bool answer_after_thought(const facts *f, char *reason) {
    bool holds = f->first[DR_TAG_AT_ANSWER]->begin >= f->first[DR_TAG_AT_THINK_END]->end;
    if (!holds) snprintf(reason, DR_REASON_BYTES, "the answer stands before </think>");
    return holds;
}

static bool text_after_last_list(const facts *f, char *reason) {
    const dr_segment *list = &f->c->segments[f->last_list];
    size_t from = offset_of(f, list->text) + list->length, to = f->first[DR_TAG_AT_THINK_END]->begin;
    bool holds = to > from && !is_blank(f->c->text.data + from, to - from);
    if (!holds) snprintf(reason, DR_REASON_BYTES, "no text between the last item list and </think>");
    return holds;
}

static bool no_tags_in_answer(const facts *f, char *reason) {
    const mark *begin = f->first[DR_TAG_AT_ANSWER], *end = f->first[DR_TAG_AT_ANSWER_END];
    bool holds = end == begin + 1 && end->segment == begin->segment;
    if (!holds) snprintf(reason, DR_REASON_BYTES, "a protocol tag inside the answer");
    return holds;
}

static bool k_answer_lines(const facts *f, char *reason) {
    int32_t n = 0;
    bool holds = dr_answer_find(f->c, NULL, 0, &n) && n == f->settings->k;
    if (!holds) snprintf(reason, DR_REASON_BYTES, "expected %d answer lines, found %d", f->settings->k, n);
    return holds;
}

// Calls `test` on the policy's text without the answer lines that are titles; true when it is true of some
// stretch.
static bool any_own_text(const facts *f, bool (*test)(const char *text, size_t length)) {
    const dr_format_settings *s = f->settings;
    for (int32_t i = 0; i < f->c->n_segments; i++) {
        const dr_segment *segment = &f->c->segments[i];
        if (segment->from_tool) continue;
        size_t at = offset_of(f, segment->text), end = at + segment->length;
        for (int32_t k = 0; k < s->n_titles && at < end; k++) {
            size_t title = s->titles[2 * k], behind = s->titles[2 * k + 1];
            if (title < at || behind > end) continue;
            if (test(f->c->text.data + at, title - at)) return true;
            at = behind;
        }
        if (at < end && test(f->c->text.data + at, end - at)) return true;
    }
    return false;
}

static bool has_role_word(const char *text, size_t length) {
    return memmem(text, length, "Assistant", 9) != NULL || memmem(text, length, "assistant", 9) != NULL;
}

static bool no_role_words(const facts *f, char *reason) {
    bool holds = !any_own_text(f, has_role_word);
    if (!holds) snprintf(reason, DR_REASON_BYTES, "a role word (\"assistant\")");
    return holds;
}

static bool no_placeholders(const facts *f, char *reason) {
    const char *const *forbidden = f->settings->forbidden;
    for (; forbidden && *forbidden; forbidden++)
        for (int32_t i = 0; i < f->c->n_segments; i++) {
            const dr_segment *s = &f->c->segments[i];
            if (s->from_tool || !memmem(s->text, s->length, *forbidden, strlen(*forbidden))) continue;
            snprintf(reason, DR_REASON_BYTES, "a phrase copied from the prompt: %.48s", *forbidden);
            return false;
        }
    return true;
}

static bool no_cjk(const facts *f, char *reason) {
    bool holds = !f->settings->forbid_cjk || !any_own_text(f, dr_utf8_has_cjk);
    if (!holds) snprintf(reason, DR_REASON_BYTES, "CJK characters outside the item lists");
    return holds;
}

// In this order: a rule may rely on those before it.
static bool (*const rules[])(const facts *, char *) = {
    preferences_balance,
    preferences_have_text,
    no_list_tags_written,
    lists_well_formed,
    lists_match_preferences,
    has_retrieval,
    one_thought,
    one_answer,
    answer_after_thought,
    text_after_last_list,
    no_tags_in_answer,
    k_answer_lines,
    no_role_words,
    no_placeholders,
    no_cjk,
};

// ---- gathering ----

static dr_status add_mark(facts *f, mark m) {
    if (f->n_marks == f->capacity) {
        int32_t wider = f->capacity ? 2 * f->capacity : 32;
        DR_TRY(dr_grow(&f->marks, "tags of a completion", f->capacity, wider, sizeof *f->marks));
        f->capacity = wider;
    }
    f->marks[f->n_marks++] = m;
    f->count[m.tag]++;
    return DR_OK;
}

static dr_status gather(facts *f) {
    f->last_list = -1;
    for (int32_t i = 0; i < f->c->n_segments; i++) {
        const dr_segment *s = &f->c->segments[i];
        if (s->from_tool) {
            f->n_lists++;
            f->last_list = i;
            continue;
        }
        size_t at = 0, begin = 0, base = offset_of(f, s->text);
        for (dr_tag tag; (tag = dr_tag_next(s->text, s->length, &at, &begin)) != DR_TAG_NONE;)
            DR_TRY(add_mark(f, (mark){.tag = tag, .begin = base + begin, .end = base + at, .segment = i}));
    }
    for (int32_t i = f->n_marks - 1; i >= 0; i--) f->first[f->marks[i].tag] = &f->marks[i];
    return DR_OK;
}

dr_status dr_format_check(const dr_completion *completion, const dr_format_settings *settings,
                          bool *out_valid, char out_reason[DR_REASON_BYTES], int32_t *out_retrievals) {
    facts f = {.c = completion, .settings = settings};
    dr_status status = gather(&f);
    if (status == DR_OK) {
        bool valid = true;
        char reason[DR_REASON_BYTES] = "";
        for (size_t i = 0; i < sizeof rules / sizeof rules[0] && valid; i++) valid = rules[i](&f, reason);
        *out_valid = valid;
        memcpy(out_reason, reason, sizeof reason);
        *out_retrievals = f.n_lists;
    }
    dr_free(f.marks);
    return status;
}
