// What the teacher says is made of a handful of phrases and the catalogue's own categories, so that a small
// model can learn to say it. Every token passes through the episode's state machine: what is written is what
// a policy could write.
#include "core/episode/teacher.h"

#include <string.h>

#include "core/base/rng.h"
#include "core/text/normalize.h"

enum { MOST_CATEGORIES = 64, LONGEST_WORD = 48, LONGEST_PREFERENCE = 160 };

// Every fixed phrase; the parts below point into this list, so that a tokenizer trained on it has seen them
// all.
static const char *const phrases[] = {"Likes ",
                                      "Mostly ",
                                      "Often ",
                                      "A mixed taste.\n",
                                      " and ",
                                      ", lately ",
                                      ".\n",
                                      "Another side of it.\n",
                                      "Now something else.\n",
                                      "One more look.\n",
                                      "The last list fits best.",
                                      "something alike",
                                      "like ",
                                      NULL};
static const char *const *const starts = phrases, *const *const bridges = phrases + 7,
                                *const *const choice = phrases + 10, *const *const anything = phrases + 11,
                                *const *const like = phrases + 12;

const char *const *dr_teacher_phrases(void) {
    return phrases;
}

struct dr_teacher {
    dr_episode_rules rules;
    dr_trm *trm;
    const dr_text_encoder *encoder;
    dr_teacher_settings settings;
    int32_t max_history;
    dr_episode episode;
    dr_episode_scratch scratch;
    dr_rendering turn;
    int32_t *ids; // of a turn
    int64_t n_ids, ids_capacity;
    float *embeddings; // [DR_TEACHER_MOST, encoder dim]
    dr_hit *hits;      // [DR_TEACHER_MOST, k_retrieve]
    int32_t *items;    // [k_retrieve]
    int32_t *answer;   // [k]
};

dr_teacher_settings dr_teacher_defaults(void) {
    return (dr_teacher_settings){.retrievals = {0.25f, 0.45f, 0.30f},
                                 .open = 0.12f,
                                 .title = 0.02f,
                                 .common = 0.25f,
                                 .second_category = 0.4f,
                                 .decade = 0.2f,
                                 .word = 0.15f,
                                 .recency = 0.96f};
}

dr_status dr_teacher_create(const dr_episode_rules *rules, dr_trm *trm, const dr_teacher_settings *settings,
                            dr_teacher **out_teacher) {
    const dr_text_encoder *encoder = dr_trm_text_encoder(trm);
    float sum = settings->retrievals[0] + settings->retrievals[1] + settings->retrievals[2];
    dr_teacher *t = NULL;
    dr_status status = DR_OK;
    DR_CHECK(encoder != NULL, DR_ERR_UNSUPPORTED,
             "the retrieval model's text vectors are external: preferences cannot be encoded");
    DR_CHECK(sum > 0 && settings->recency > 0, DR_ERR_ARGUMENT,
             "teacher: the frequencies of 1, 2, 3 retrievals and the recency weight must be positive");
    DR_TRY(dr_alloc(&t, "teacher", 1, sizeof *t));
    t->rules = *rules;
    t->trm = trm;
    t->encoder = encoder;
    t->settings = *settings;
    t->max_history = dr_template_max_history(rules->prompt_template);
    int64_t k = rules->protocol.k_retrieve;
    DR_TRY_GOTO(status,
                dr_alloc(&t->embeddings, "preference embeddings", (int64_t)DR_TEACHER_MOST * encoder->dim, 4),
                destroy_teacher);
    DR_TRY_GOTO(status, dr_alloc(&t->hits, "retrieved items", DR_TEACHER_MOST * k, sizeof *t->hits),
                destroy_teacher);
    DR_TRY_GOTO(status, dr_alloc(&t->items, "list items", k, sizeof *t->items), destroy_teacher);
    DR_TRY_GOTO(status, dr_alloc(&t->answer, "answer items", rules->protocol.k, sizeof *t->answer),
                destroy_teacher);
    *out_teacher = t;
    return DR_OK;
destroy_teacher:
    dr_teacher_destroy(t);
    return status;
}

void dr_teacher_destroy(dr_teacher *t) {
    if (!t) return;
    dr_episode_reset(&t->episode);
    dr_episode_scratch_reset(&t->scratch);
    dr_rendering_reset(&t->turn);
    dr_free(t->ids);
    dr_free(t->embeddings);
    dr_free(t->hits);
    dr_free(t->items);
    dr_free(t->answer);
    dr_free(t);
}

// ---- what the history says ----

typedef struct word {
    const char *text;
    size_t length;
} word;

static bool same_word(word a, word b) {
    return a.length == b.length && memcmp(a.text, b.text, a.length) == 0;
}

// Words that a policy could write without breaking a rule.
static bool usable(word w) {
    if (w.length == 0 || w.length > LONGEST_WORD || !dr_utf8_valid(w.text, w.length)) return false;
    for (size_t i = 0; i < w.length; i++)
        if ((unsigned char)w.text[i] < ' ' || strchr("<>\"|[]", w.text[i])) return false;
    if (w.text[0] == ' ' || w.text[w.length - 1] == ' ' || memmem(w.text, w.length, "  ", 2)) return false;
    return !dr_utf8_has_cjk(w.text, w.length) && !memmem(w.text, w.length, "ssistant", 8);
}

// Usable categories of an item, at most `most`.
static int categories_of(const dr_dataset *d, int32_t item, word *out, int most) {
    int n = 0;
    for (const char *p = d->categories[item]; *p && n < most;) {
        const char *end = strstr(p, ", ");
        word w = {p, end ? (size_t)(end - p) : strlen(p)};
        if (usable(w)) out[n++] = w;
        p = end ? end + 2 : p + w.length;
    }
    return n;
}

static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// A title word of at least four ASCII letters, chosen evenly; length 0 when there is none.
static word title_word(const dr_dataset *d, int32_t item, dr_rng *rng) {
    word chosen = {"", 0};
    uint32_t n = 0;
    for (const char *p = d->titles[item]; *p;) {
        size_t length = 0;
        while (is_letter(p[length])) length++;
        word w = {p, length};
        if (length >= 4 && usable(w) && dr_rng_below(rng, ++n) == 0) chosen = w;
        p += length ? length : 1;
    }
    return chosen;
}

// Year in brackets at a title's end as most film catalogues have it, or 0.
static int title_year(const char *title) {
    size_t n = strlen(title);
    if (n < 6 || title[n - 1] != ')' || title[n - 6] != '(') return 0;
    int year = 0;
    for (size_t i = n - 5; i < n - 1; i++) {
        if (title[i] < '0' || title[i] > '9') return 0;
        year = 10 * year + (title[i] - '0');
    }
    return year >= 1900 && year < 2100 ? year : 0;
}

// One item of the history, later ones more often.
static int32_t draw_item(const dr_teacher *t, const int32_t *history, int32_t n, dr_rng *rng) {
    double total = 0, weight = 1;
    for (int32_t i = 0; i < n; i++, weight *= (double)t->settings.recency) total += weight;
    double left = (double)dr_rng_float(rng) * total;
    weight = 1;
    for (int32_t i = n - 1; i > 0; i--, weight *= (double)t->settings.recency) {
        left -= weight;
        if (left < 0) return history[i];
    }
    return history[0];
}

// The two categories that weigh most in the history (recent ones more), and the latest item's first one.
static int top_categories(const dr_teacher *t, const int32_t *history, int32_t n, word top[2], word *latest) {
    word known[MOST_CATEGORIES], of_item[MOST_CATEGORIES];
    double weight[MOST_CATEGORIES], recency = 1;
    int n_known = 0;
    *latest = (word){"", 0};
    for (int32_t i = n - 1; i >= 0; i--, recency *= (double)t->settings.recency) {
        int count = categories_of(t->rules.dataset, history[i], of_item, MOST_CATEGORIES);
        if (count > 0 && latest->length == 0) *latest = of_item[0];
        for (int k = 0; k < count; k++) {
            int at = 0;
            while (at < n_known && !same_word(known[at], of_item[k])) at++;
            if (at == MOST_CATEGORIES) continue;
            if (at == n_known) {
                known[n_known] = of_item[k];
                weight[n_known++] = 0;
            }
            weight[at] += recency;
        }
    }
    int best = 0, second = -1;
    for (int i = 1; i < n_known; i++)
        if (weight[i] > weight[best]) best = i;
    for (int i = 0; i < n_known; i++)
        if (i != best && (second < 0 || weight[i] > weight[second])) second = i;
    if (n_known > 0) top[0] = known[best];
    if (n_known > 1) top[1] = known[second];
    return n_known < 2 ? n_known : 2;
}

// "Drama, Comedy": the categories that weigh most in the history.
static dr_status common_preference(const dr_teacher *t, const int32_t *history, int32_t n, dr_rng *rng,
                                   dr_buf *out) {
    word top[2], latest;
    int count = top_categories(t, history, n, top, &latest);
    bool second = count > 1 && dr_rng_float(rng) < t->settings.second_category;
    if (count > 0) DR_TRY(dr_buf_append(out, top[0].text, top[0].length));
    return second ? dr_buf_printf(out, ", %.*s", (int)top[1].length, top[1].text) : DR_OK;
}

// "like Silent Harbour": an item of the history.
static dr_status title_preference(const dr_teacher *t, const int32_t *history, int32_t n, dr_rng *rng,
                                  dr_buf *out) {
    const char *title = t->rules.dataset->titles[draw_item(t, history, n, rng)];
    word whole = {title, strlen(title)};
    return usable(whole) ? dr_buf_printf(out, "%s%s", *like, title) : DR_OK;
}

// "Drama", "Drama, Comedy", "War 1990s", "Western river": one item of the history.
static dr_status item_preference(const dr_teacher *t, const int32_t *history, int32_t n, dr_rng *rng,
                                 dr_buf *out) {
    const dr_dataset *d = t->rules.dataset;
    int32_t item = draw_item(t, history, n, rng);
    word categories[MOST_CATEGORIES];
    int count = categories_of(d, item, categories, MOST_CATEGORIES);
    bool second = dr_rng_float(rng) < t->settings.second_category;
    bool decade = dr_rng_float(rng) < t->settings.decade && title_year(d->titles[item]) > 0;
    bool with_word = dr_rng_float(rng) < t->settings.word || count == 0;
    word extra = title_word(d, item, rng);
    if (count > 0) {
        uint32_t first = dr_rng_below(rng, (uint32_t)count);
        DR_TRY(dr_buf_append(out, categories[first].text, categories[first].length));
        uint32_t other = count > 1 ? dr_rng_below(rng, (uint32_t)count - 1) : 0;
        if (other >= first) other++;
        if (second && count > 1)
            DR_TRY(dr_buf_printf(out, ", %.*s", (int)categories[other].length, categories[other].text));
    }
    if (decade)
        DR_TRY(dr_buf_printf(out, "%s%ds", out->length ? " " : "", title_year(d->titles[item]) / 10 * 10));
    if (with_word && extra.length > 0)
        DR_TRY(dr_buf_printf(out, "%s%.*s", out->length ? " " : "", (int)extra.length, extra.text));
    return DR_OK;
}

// One of the kinds above, or an open one; out is NUL-terminated and never empty.
static dr_status draw_preference(const dr_teacher *t, const int32_t *history, int32_t n, dr_rng *rng,
                                 dr_buf *out) {
    float kind = dr_rng_float(rng);
    dr_buf_clear(out);
    if ((kind -= t->settings.open) < 0) return dr_buf_text(out, *anything);
    if ((kind -= t->settings.title) < 0)
        DR_TRY(title_preference(t, history, n, rng, out));
    else if ((kind -= t->settings.common) < 0)
        DR_TRY(common_preference(t, history, n, rng, out));
    if (out->length == 0) DR_TRY(item_preference(t, history, n, rng, out));
    return out->length > 0 ? DR_OK : dr_buf_text(out, *anything);
}

// The m preferences of a trajectory, different from each other where the history allows it.
typedef struct plan {
    int m;
    dr_buf preference[DR_TEACHER_MOST];
} plan;

static int draw_count(const dr_teacher_settings *s, dr_rng *rng) {
    float left = dr_rng_float(rng) * (s->retrievals[0] + s->retrievals[1] + s->retrievals[2]);
    for (int m = 1; m < DR_TEACHER_MOST; m++) {
        left -= s->retrievals[m - 1];
        if (left < 0) return m;
    }
    return DR_TEACHER_MOST;
}

static dr_status draw_plan(const dr_teacher *t, const int32_t *history, int32_t n, dr_rng *rng, plan *p) {
    enum { TRIES = 8 };
    p->m = draw_count(&t->settings, rng);
    if (p->m > t->rules.protocol.max_retrievals) p->m = t->rules.protocol.max_retrievals;
    for (int i = 0; i < p->m; i++) {
        bool fresh = false;
        for (int tries = 0; tries < TRIES && !fresh; tries++) {
            DR_TRY(draw_preference(t, history, n, rng, &p->preference[i]));
            fresh = true;
            for (int j = 0; j < i; j++)
                fresh = fresh && strcmp(p->preference[j].data, p->preference[i].data) != 0;
        }
    }
    return DR_OK;
}

// ---- what the teacher writes ----

static dr_status put_word(dr_rendering *r, word w) {
    return dr_rendering_foreign_bytes(r, w.text, w.length);
}

static dr_status put_opening(dr_teacher *t, const int32_t *history, int32_t n, dr_rng *rng) {
    word top[2], latest;
    int count = top_categories(t, history, n, top, &latest);
    const char *start = starts[dr_rng_below(rng, 3)];
    if (count == 0) return dr_rendering_own(&t->turn, phrases[3]);
    DR_TRY(dr_rendering_own(&t->turn, start));
    DR_TRY(put_word(&t->turn, top[0]));
    if (count > 1) {
        DR_TRY(dr_rendering_own(&t->turn, phrases[4]));
        DR_TRY(put_word(&t->turn, top[1]));
    }
    DR_TRY(dr_rendering_own(&t->turn, phrases[5]));
    DR_TRY(put_word(&t->turn, latest));
    return dr_rendering_own(&t->turn, phrases[6]);
}

static dr_status put_query(dr_teacher *t, const plan *p, int turn, const int32_t *history, int32_t n,
                           dr_rng *rng) {
    const char *bridge = bridges[dr_rng_below(rng, 3)];
    dr_rendering_clear(&t->turn);
    if (turn == 0)
        DR_TRY(put_opening(t, history, n, rng));
    else
        DR_TRY(dr_rendering_own(&t->turn, bridge));
    DR_TRY(dr_rendering_own(&t->turn, DR_TAG_PREFERENCE));
    DR_TRY(put_word(&t->turn, (word){p->preference[turn].data, p->preference[turn].length}));
    return dr_rendering_own(&t->turn, DR_TAG_PREFERENCE_END);
}

// Adds an item to the answer unless it is there already, the answer is full, or its title spells a protocol
// tag.
static void add_answer(dr_teacher *t, int32_t item, int32_t *n) {
    const char *title = t->rules.dataset->titles[item];
    size_t at = 0;
    if (*n == t->rules.protocol.k || dr_tag_next(title, strlen(title), &at, NULL) != DR_TAG_NONE) return;
    for (int32_t i = 0; i < *n; i++)
        if (t->answer[i] == item) return;
    t->answer[(*n)++] = item;
}

// The last list in its order; where it is shorter than the answer the other lists, the
// history's latest items, and the catalogue's first ones fill up.
static dr_status take_list(dr_teacher *t, int m, const int32_t *history, int32_t n_history) {
    int32_t k = t->rules.protocol.k, per_list = t->rules.protocol.k_retrieve, n = 0;
    for (int list = m - 1; list >= 0; list--)
        for (int32_t place = 0; place < per_list; place++)
            add_answer(t, t->hits[(int64_t)list * per_list + place].item, &n);
    for (int32_t i = n_history - 1; i >= 0; i--) add_answer(t, history[i], &n);
    for (int32_t item = 1; item <= t->rules.dataset->n_items && n < k; item++) add_answer(t, item, &n);
    DR_CHECK(n == k, DR_ERR_RANGE, "teacher: an answer of %d items from a data set that has %d", k, n);
    return DR_OK;
}

// The preferences before the last are blind tries; a policy can learn to try better, and to stop at a good
// one.
static dr_status put_ranking(dr_teacher *t) {
    dr_rendering_clear(&t->turn);
    DR_TRY(dr_rendering_own(&t->turn, *choice));
    DR_TRY(dr_rendering_own(&t->turn, "\n" DR_TAG_THINK_END "\n" DR_TAG_ANSWER "\n"));
    for (int32_t i = 0; i < t->rules.protocol.k; i++) {
        DR_TRY(dr_buf_printf(&t->turn.text, "%d. ", i + 1));
        DR_TRY(dr_rendering_foreign(&t->turn, t->rules.dataset->titles[t->answer[i]]));
        DR_TRY(dr_rendering_own(&t->turn, "\n"));
    }
    return dr_rendering_own(&t->turn, DR_TAG_ANSWER_END);
}

// ---- writing it down ----

// Passes the turn's text through the episode; stops early when a cap ends it.
static dr_status write_turn(dr_teacher *t) {
    t->n_ids = 0;
    DR_TRY(dr_rendering_ids(&t->turn, t->rules.tokenizer, &t->ids, &t->n_ids, &t->ids_capacity));
    for (int64_t i = 0; i < t->n_ids && t->episode.state == DR_EPISODE_RUNNING; i++)
        DR_TRY(dr_episode_token(&t->episode, &t->rules, &(dr_sampled){.id = t->ids[i]}));
    return DR_OK;
}

static dr_status retrieve(dr_teacher *t, const plan *p, const int32_t *history, int32_t n) {
    const char *texts[DR_TEACHER_MOST];
    dr_trm_query queries[DR_TEACHER_MOST];
    for (int i = 0; i < p->m; i++) {
        texts[i] = p->preference[i].data;
        queries[i] = (dr_trm_query){history, n, t->embeddings + (int64_t)i * t->encoder->dim};
    }
    DR_TRY(dr_text_encode_queries(t->encoder, texts, p->m, t->embeddings));
    return dr_trm_top_k(t->trm, queries, p->m, t->rules.protocol.k_retrieve,
                        t->rules.protocol.exclude_history, t->hits);
}

// history is what the prompt shows, of n items; the retrieval model sees all_history.
static dr_status write_episode(dr_teacher *t, const plan *p, const int32_t *history, int32_t n,
                               const int32_t *all_history, int32_t n_all, dr_rng *rng) {
    const dr_protocol *protocol = &t->rules.protocol;
    t->n_ids = 0;
    DR_TRY(dr_template_prompt_ids(t->rules.prompt_template, t->rules.tokenizer, t->rules.dataset, all_history,
                                  n_all, protocol->k, protocol->k_retrieve, &t->turn, &t->ids, &t->n_ids,
                                  &t->ids_capacity));
    DR_TRY(dr_episode_begin(&t->episode, &t->rules, t->ids, (int32_t)t->n_ids));
    for (int turn = 0; turn < p->m; turn++) {
        if (t->episode.state != DR_EPISODE_RUNNING) return DR_OK;
        DR_TRY(put_query(t, p, turn, history, n, rng));
        DR_TRY(write_turn(t));
        if (t->episode.state != DR_EPISODE_ASKS) return DR_OK;
        for (int32_t i = 0; i < protocol->k_retrieve; i++)
            t->items[i] = t->hits[(int64_t)turn * protocol->k_retrieve + i].item;
        DR_TRY(dr_episode_items(&t->episode, &t->rules, t->embeddings + (int64_t)turn * t->encoder->dim,
                                t->encoder->dim, t->items, protocol->k_retrieve, &t->scratch));
    }
    if (t->episode.state != DR_EPISODE_RUNNING) return DR_OK;
    DR_TRY(take_list(t, p->m, all_history, n_all));
    DR_TRY(put_ranking(t));
    return write_turn(t);
}

static dr_status append_eos(const dr_episode_rules *rules, dr_trajectory *t, uint16_t turn) {
    for (int i = 0; i < DR_N_EOS; i++)
        if (rules->eos[i] >= 0)
            return dr_trajectory_append(t, &rules->eos[i], 1, DR_FROM_POLICY, turn, NULL, NULL);
    return DR_OK;
}

// The drawn plan, with fewer retrievals while the whole does not fit.
static dr_status write_fitting(dr_teacher *t, plan *p, const int32_t *all_history, int32_t n_all,
                               int32_t user, dr_rng rng) {
    int32_t shown = n_all < t->max_history ? n_all : t->max_history;
    const int32_t *history = all_history + (n_all - shown);
    DR_TRY(draw_plan(t, history, shown, &rng, p));
    DR_TRY(retrieve(t, p, all_history, n_all));
    for (;; p->m--) {
        DR_CHECK(
            p->m >= 1, DR_ERR_RANGE,
            "teacher: a trajectory of user %d with one retrieval does not fit into %d tokens (%d a turn)",
            user, t->rules.protocol.max_total_tokens, t->rules.protocol.max_turn_tokens);
        dr_rng phrases = rng; // the same phrases on every try
        DR_TRY(write_episode(t, p, history, shown, all_history, n_all, &phrases));
        if (t->episode.trajectory.stop == DR_STOP_ANSWER)
            return append_eos(&t->rules, &t->episode.trajectory, t->episode.turn);
    }
}

dr_status dr_teacher_write(dr_teacher *t, const int32_t *history, int32_t n_history, int32_t user,
                           int32_t target, uint64_t seed, uint64_t stream, dr_trajectory *out) {
    DR_CHECK(n_history >= 1, DR_ERR_RANGE, "teacher: user %d has an empty history", user);
    DR_CHECK(t->rules.protocol.max_retrievals >= 1, DR_ERR_ARGUMENT,
             "teacher: the protocol allows no retrieval");
    plan p = {0};
    dr_status status = write_fitting(t, &p, history, n_history, user, dr_rng_make(seed, stream));
    for (int i = 0; i < DR_TEACHER_MOST; i++) dr_buf_reset(&p.preference[i]);
    if (status != DR_OK) return status;
    dr_trajectory *written = &t->episode.trajectory;
    written->seed = seed;
    written->user = user;
    written->target = target;
    *out = *written;
    memset(written, 0, sizeof *written);
    return DR_OK;
}

// ---- a user's own text ----

typedef struct text_writer {
    const dr_episode_rules *rules;
    dr_rendering rendering;
    int32_t *ids;
    int64_t n_ids, capacity;
    dr_trajectory t;
    uint16_t turn;
    int32_t turn_begin;
} text_writer;

// A segment's tags are the program's own text; what a list holds between its tags is foreign.
static dr_status write_segment(text_writer *w, const dr_segment *s) {
    size_t open = strlen(DR_TAG_ITEMS), close = strlen(DR_TAG_ITEMS_END), at = 0, begin = 0;
    dr_rendering_clear(&w->rendering);
    if (!s->from_tool) {
        DR_TRY(dr_buf_append(&w->rendering.text, s->text, s->length));
    } else {
        const char *end = memmem(s->text, s->length, DR_TAG_ITEMS_END, close);
        if (dr_tag_next(s->text, s->length, &at, &begin) != DR_TAG_AT_ITEMS || !end)
            return DR_FAIL(DR_ERR_INTERNAL, "a tool segment without its tags");
        DR_TRY(dr_buf_append(&w->rendering.text, s->text, begin + open));
        DR_TRY(dr_rendering_foreign_bytes(&w->rendering, s->text + at, (size_t)(end - s->text) - at));
        DR_TRY(dr_buf_append(&w->rendering.text, end, s->length - (size_t)(end - s->text)));
    }
    w->n_ids = 0;
    DR_TRY(dr_rendering_ids(&w->rendering, w->rules->tokenizer, &w->ids, &w->n_ids, &w->capacity));
    DR_CHECK(w->n_ids < w->rules->protocol.max_total_tokens - w->t.n_tokens, DR_ERR_RANGE,
             "the trajectory of user %d is longer than %d tokens", w->t.user,
             w->rules->protocol.max_total_tokens);
    return dr_trajectory_append(&w->t, w->ids, (int32_t)w->n_ids,
                                s->from_tool ? DR_FROM_TOOL : DR_FROM_POLICY, w->turn, NULL, NULL);
}

static dr_status write_completion(text_writer *w, const dr_completion *c) {
    dr_buf preference = {0};
    dr_status status = DR_OK;
    w->turn_begin = w->t.n_tokens;
    for (int32_t i = 0; i < c->n_segments && status == DR_OK; i++) {
        const dr_segment *s = &c->segments[i];
        int32_t query_end = w->t.n_tokens;
        status = write_segment(w, s);
        if (status != DR_OK || !s->from_tool) continue;
        dr_buf_clear(&preference);
        status = dr_buf_append(&preference, "", 0);
        if (status == DR_OK && i > 0)
            status = dr_preference_extract(c->segments[i - 1].text, c->segments[i - 1].length, &preference);
        if (status == DR_OK)
            status =
                dr_trajectory_add_turn(&w->t, w->turn_begin, query_end, preference.data, NULL, 0, NULL, 0);
        w->turn++;
        w->turn_begin = w->t.n_tokens;
    }
    dr_buf_reset(&preference);
    return status == DR_OK ? append_eos(w->rules, &w->t, w->turn) : status;
}

static dr_status write_text(text_writer *w, const int32_t *history, int32_t n_history,
                            const dr_completion *c) {
    const dr_episode_rules *r = w->rules;
    DR_TRY(dr_template_prompt_ids(r->prompt_template, r->tokenizer, r->dataset, history, n_history,
                                  r->protocol.k, r->protocol.k_retrieve, &w->rendering, &w->ids, &w->n_ids,
                                  &w->capacity));
    DR_TRY(dr_trajectory_append(&w->t, w->ids, (int32_t)w->n_ids, DR_FROM_PROMPT, 0, NULL, NULL));
    return write_completion(w, c);
}

dr_status dr_trajectory_from_text(const dr_episode_rules *rules, const int32_t *history, int32_t n_history,
                                  int32_t user, int32_t target, const char *text, size_t length,
                                  dr_trajectory *out) {
    text_writer w = {.rules = rules, .t = {.user = user, .target = target, .stop = DR_STOP_EOS}};
    dr_completion c = {0};
    dr_status status = dr_completion_from_text(text, length, &c);
    if (status == DR_OK) status = write_text(&w, history, n_history, &c);
    dr_completion_reset(&c);
    dr_rendering_reset(&w.rendering);
    dr_free(w.ids);
    if (status != DR_OK) {
        dr_trajectory_reset(&w.t);
        return status;
    }
    *out = w.t;
    return DR_OK;
}
