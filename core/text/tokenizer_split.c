// Pre-tokenisation: the steps of the pre-tokeniser one after the other, each cutting the pieces of the one
// before.
#include <string.h>

#include "core/text/normalize.h"
#include "core/text/tokenizer_internal.h"

const char dr_bpe_gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
// List numbers with their line break and bracketed years are one piece each: catalogues are full of them.
const char dr_bpe_catalogue_pattern[] =
    "\\n?\\p{N}+\\.(?= )| ?\\(\\p{N}+\\)| ?[\\p{L}\\p{M}]+(?:['’]\\p{L}+)?| ?\\p{N}+|"
    " ?[^\\s\\p{L}\\p{M}\\p{N}]+|\\s+(?!\\S)|\\s+";

static dr_status compile(bpe_stage *stage, const char *where) {
    int code = 0;
    PCRE2_SIZE at = 0;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    DR_CHECK(context, DR_ERR_MEMORY, "%s: no memory for a pattern", where);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    stage->regex = pcre2_compile((PCRE2_SPTR)stage->pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                 &code, &at, context);
    pcre2_compile_context_free(context);
    if (!stage->regex) {
        PCRE2_UCHAR text[128];
        pcre2_get_error_message(code, text, sizeof text);
        return DR_FAIL(DR_ERR_FORMAT, "%s: pre-tokeniser pattern \"%.300s\", character %zu: %s", where,
                       stage->pattern, (size_t)at, (char *)text);
    }
    stage->has_jit = pcre2_jit_compile(stage->regex, PCRE2_JIT_COMPLETE) == 0;
    return DR_OK;
}

dr_status dr_bpe_add_stage(dr_tokenizer *t, const char *where, const char *pattern, bpe_behaviour behaviour,
                           bool invert) {
    DR_CHECK(t->n_stages < MAX_STAGES, DR_ERR_UNSUPPORTED, "%s: pre_tokenizer: more than %d steps", where,
             MAX_STAGES);
    bpe_stage *stage = &t->stages[t->n_stages];
    *stage = (bpe_stage){.is_prefix_space = !pattern, .behaviour = behaviour, .invert = invert};
    if (pattern) DR_TRY(dr_strdup(&stage->pattern, pattern));
    t->n_stages++;
    return pattern ? compile(stage, where) : DR_OK;
}

dr_status dr_bpe_splitter_init(bpe_splitter *s, const dr_tokenizer *t, piece_visitor visit, void *context) {
    *s = (bpe_splitter){.t = t, .visit = visit, .context = context};
    s->match = pcre2_match_data_create(1, NULL);
    DR_CHECK(s->match, DR_ERR_MEMORY, "tokenizer: no memory for a match");
    return DR_OK;
}

void dr_bpe_splitter_reset(bpe_splitter *s) {
    if (s->match) pcre2_match_data_free(s->match);
    s->match = NULL;
    dr_buf_reset(&s->prefixed);
}

static dr_status run_stage(bpe_splitter *s, int32_t k, const char *text, size_t length);

// The pieces of one step as its behaviour joins them: what waits for its neighbour.
typedef struct joiner {
    bpe_splitter *s;
    int32_t next;
    const bpe_stage *stage;
    const char *text;
    size_t begin, end; // the piece that waits
    bool is_waiting, was_match;
} joiner;

static dr_status give(joiner *j, size_t begin, size_t end) {
    return end > begin ? run_stage(j->s, j->next, j->text + begin, end - begin) : DR_OK;
}

static dr_status give_waiting(joiner *j) {
    bool is_waiting = j->is_waiting;
    j->is_waiting = false;
    return is_waiting ? give(j, j->begin, j->end) : DR_OK;
}

static void wait_with(joiner *j, size_t begin, size_t end) {
    j->is_waiting = true;
    j->begin = begin;
    j->end = end;
}

static dr_status feed(joiner *j, size_t begin, size_t end, bool is_match) {
    is_match = is_match != j->stage->invert;
    bool was_match = j->was_match;
    j->was_match = is_match;
    switch (j->stage->behaviour) {
    case BPE_ISOLATED:
        return give(j, begin, end);
    case BPE_REMOVED:
        return is_match ? DR_OK : give(j, begin, end);
    case BPE_CONTIGUOUS:
    case BPE_MERGED_WITH_PREVIOUS: {
        bool joins = j->stage->behaviour == BPE_CONTIGUOUS ? is_match == was_match : is_match && !was_match;
        if (joins && j->is_waiting) {
            j->end = end;
            return DR_OK;
        }
        DR_TRY(give_waiting(j));
        wait_with(j, begin, end);
        return DR_OK;
    }
    default: // merged with next: a match waits for what is no match
        if (!is_match && j->is_waiting) {
            j->is_waiting = false;
            return give(j, j->begin, end);
        }
        DR_TRY(give_waiting(j));
        if (!is_match) return give(j, begin, end);
        wait_with(j, begin, end);
        return DR_OK;
    }
}

static dr_status match_at(bpe_splitter *s, const bpe_stage *stage, const char *text, size_t length,
                          size_t from, bool *out_found) {
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (stage->has_jit) found = pcre2_jit_match(stage->regex, subject, length, from, 0, s->match, NULL);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
        found = pcre2_match(stage->regex, subject, length, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->match,
                            NULL);
    DR_CHECK(found >= 0 || found == PCRE2_ERROR_NOMATCH, DR_ERR_UNSUPPORTED,
             "tokenizer: the pattern \"%.200s\" failed on a text of %zu bytes with PCRE2's code %d",
             stage->pattern, length, found);
    *out_found = found >= 0;
    return DR_OK;
}

// All matches from left to right. An empty match cuts the text, but not right behind another match.
static dr_status split_stage(bpe_splitter *s, int32_t k, const char *text, size_t length) {
    const bpe_stage *stage = &s->t->stages[k];
    joiner j = {.s = s, .next = k + 1, .stage = stage, .text = text};
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(s->match);
    size_t done = 0, from = 0, last_end = SIZE_MAX;
    while (from <= length) {
        bool found = false;
        DR_TRY(match_at(s, stage, text, length, from, &found));
        if (!found) break;
        size_t begin = range[0], end = range[1];
        if (begin == end && last_end == end) {
            if (from >= length) break;
            dr_utf8_next(text, length, &from);
            continue;
        }
        from = last_end = end;
        if (begin > done) DR_TRY(feed(&j, done, begin, false));
        DR_TRY(feed(&j, begin, end, true));
        done = end;
    }
    if (done < length) DR_TRY(feed(&j, done, length, false));
    return give_waiting(&j);
}

static dr_status run_stage(bpe_splitter *s, int32_t k, const char *text, size_t length) {
    if (k == s->t->n_stages) return s->visit(s->context, text, length);
    if (!s->t->stages[k].is_prefix_space) return split_stage(s, k, text, length);
    if (text[0] == ' ') return run_stage(s, k + 1, text, length);
    dr_buf_clear(&s->prefixed);
    DR_TRY(dr_buf_append(&s->prefixed, " ", 1));
    DR_TRY(dr_buf_append(&s->prefixed, text, length));
    return run_stage(s, k + 1, s->prefixed.data, s->prefixed.length);
}

dr_status dr_bpe_splitter_run(bpe_splitter *s, const char *text, size_t length) {
    if (length == 0) return DR_OK;
    if (s->is_valid || dr_utf8_valid(text, length)) return run_stage(s, 0, text, length);
    for (size_t at = 0, begin = 0; begin < length;) {
        bool is_broken = false, first = true;
        while (at < length) { // a run of characters, or of broken bytes
            size_t here = at;
            bool broken = dr_utf8_next(text, length, &at) == 0xFFFD && at - here == 1;
            if (first) is_broken = broken;
            first = false;
            if (broken == is_broken) continue;
            at = here;
            break;
        }
        DR_TRY(is_broken ? s->visit(s->context, text + begin, at - begin)
                         : run_stage(s, 0, text + begin, at - begin));
        begin = at;
    }
    return DR_OK;
}
