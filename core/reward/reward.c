// The six rewards. Sums run in a fixed order in double, so a completion always gets the same bits.
#include "core/reward/reward.h"

#include <math.h>
#include <string.h>

#include "core/reward/format.h"
#include "core/reward/title_index.h"
#include "core/text/normalize.h"

enum { MAX_LINES = 64, ITEMS = 256 }; // ITEMS: encoded at a time

const char *const dr_reward_names[DR_REWARD_PARTS] = {"format", "invocation", "diversity",
                                                      "hit",    "rank",       "similarity"};

dr_reward_settings dr_reward_defaults(dr_stage stage) {
    dr_reward_settings s = {.forbid_cjk = true,
                            .k = 10,
                            .invocation_step = 0.5f,
                            .invocation_cap = 3,
                            .diversity_scale = 0.2f,
                            .rank_step = 0.2f,
                            .similarity_scale = 10.0f};
    s.weight[DR_REWARD_FORMAT] = 1;
    if (stage == DR_STAGE_COLD) {
        s.weight[DR_REWARD_INVOCATION] = s.weight[DR_REWARD_DIVERSITY] = 1;
    } else {
        s.weight[DR_REWARD_HIT] = s.weight[DR_REWARD_RANK] = s.weight[DR_REWARD_SIMILARITY] = 1;
    }
    return s;
}

// ---- context ----

struct dr_reward_context {
    const dr_dataset *dataset;
    const dr_text_encoder *encoder; // of preferences, or NULL
    const char *const *forbidden;
    dr_title_index *titles;
    const float *text_vectors; // [n_items + 1, text_dim] normalised, or NULL
    const float *item_vectors; // [n_items + 1, item_dim] normalised, or NULL
    int32_t text_dim, item_dim;
    float *own_vectors; // text vectors made here, or NULL
};

// Items first … end - 1.
static dr_status encode_some(dr_reward_context *c, int32_t first, int32_t end, dr_buf *joined) {
    const dr_dataset *d = c->dataset;
    dr_buf_clear(joined);
    for (int32_t i = first; i < end; i++) {
        const char *categories = d->categories[i];
        DR_TRY(dr_buf_printf(joined, "%s%s%s", d->titles[i], categories[0] ? ", " : "", categories));
        DR_TRY(dr_buf_append(joined, "", 1));
    }
    return dr_text_encode_joined(c->encoder, c->encoder->ops->encode, joined, end - first,
                                 c->own_vectors + (int64_t)first * c->encoder->dim);
}

static dr_status encode_items(dr_reward_context *c) {
    int32_t n = c->dataset->n_items, dim = c->encoder->dim;
    dr_buf joined = {0};
    dr_status status = DR_OK;
    DR_TRY(dr_alloc(&c->own_vectors, "text vectors", ((int64_t)n + 1) * dim, sizeof(float)));
    for (int32_t i = 1; i <= n && status == DR_OK; i += ITEMS)
        status = encode_some(c, i, n - i < ITEMS ? n + 1 : i + ITEMS, &joined);
    dr_buf_reset(&joined);
    c->text_vectors = c->own_vectors;
    c->text_dim = dim;
    return status;
}

static dr_status use_trm(dr_reward_context *c, const dr_trm *trm) {
    const dr_trm_config *config = dr_trm_config_of(trm);
    DR_CHECK(config->n_items == c->dataset->n_items, DR_ERR_ARGUMENT,
             "the retrieval model has %d items, the data set %s has %d", config->n_items, c->dataset->name,
             c->dataset->n_items);
    if (dr_trm_text_encoder(trm)) c->encoder = dr_trm_text_encoder(trm);
    c->text_vectors = dr_trm_text_vectors(trm);
    c->item_vectors = dr_trm_item_vectors(trm);
    c->text_dim = config->text_dim;
    c->item_dim = config->hidden;
    return DR_OK;
}

dr_status dr_reward_context_create(const dr_dataset *dataset, dr_trm *trm, const dr_text_encoder *encoder,
                                   const dr_template *prompt_template, dr_reward_context **out_context) {
    dr_reward_context *c = NULL;
    dr_status status = DR_OK;
    DR_TRY(dr_alloc(&c, "reward context", 1, sizeof *c));
    c->dataset = dataset;
    c->encoder = encoder;
    c->forbidden = prompt_template ? dr_template_forbidden(prompt_template) : NULL;
    DR_TRY_GOTO(status, dr_title_index_create(dataset, &c->titles), destroy_context);
    if (trm)
        DR_TRY_GOTO(status, use_trm(c, trm), destroy_context);
    else if (encoder)
        DR_TRY_GOTO(status, encode_items(c), destroy_context);
    *out_context = c;
    return DR_OK;
destroy_context:
    dr_reward_context_destroy(c);
    return status;
}

void dr_reward_context_destroy(dr_reward_context *c) {
    if (!c) return;
    dr_title_index_destroy(c->titles);
    dr_free(c->own_vectors);
    dr_free(c);
}

// ---- the answer's items ----

// The first lines of the answer. `key` are normalised texts inside `keys`.
typedef struct answer {
    dr_answer_line lines[MAX_LINES];
    size_t key_begin[MAX_LINES], key_end[MAX_LINES];
    int32_t items[MAX_LINES]; // 0 unknown, -1 repeats an earlier line
    int32_t n;
    dr_buf keys;
} answer;

static bool same_key(const answer *a, int32_t i, const char *text, size_t length) {
    return a->key_end[i] - a->key_begin[i] == length &&
           memcmp(a->keys.data + a->key_begin[i], text, length) == 0;
}

static int32_t read_key(const dr_reward_context *c, answer *a, int32_t i, const char *text, size_t length,
                        dr_status *status) {
    a->keys.length = a->key_begin[i];
    *status = dr_title_normalize(text, length, false, &a->keys);
    a->key_end[i] = a->keys.length;
    return *status == DR_OK && a->keys.data ? dr_title_index_find(c->titles, a->keys.data + a->key_begin[i],
                                                                  a->key_end[i] - a->key_begin[i])
                                            : 0;
}

// Normalises line i and looks it up. Of an unknown line the number may have been part of the title ("12.
// Zimmer"): it is tried as a whole too. `block` is where the answer's text begins.
static dr_status read_line(const dr_reward_context *c, answer *a, int32_t i, const char *block) {
    const dr_answer_line *line = &a->lines[i];
    const char *begin = line->text;
    dr_status status = DR_OK;
    while (begin > block && begin[-1] != '\n') begin--;
    size_t whole = (size_t)(line->text - begin) + line->length;
    a->key_begin[i] = a->keys.length;
    a->items[i] = read_key(c, a, i, line->text, line->length, &status);
    if (status == DR_OK && a->items[i] == 0) a->items[i] = read_key(c, a, i, begin, whole, &status);
    if (status == DR_OK && a->items[i] == 0)
        a->items[i] = read_key(c, a, i, line->text, line->length, &status);
    DR_TRY(status);
    for (int32_t j = 0; j < i; j++)
        if (same_key(a, j, a->keys.data + a->key_begin[i], a->key_end[i] - a->key_begin[i])) a->items[i] = -1;
    return DR_OK;
}

static dr_status read_answer(const dr_reward_context *c, const dr_completion *completion, answer *a) {
    int32_t n = 0;
    const char *block = NULL;
    size_t length = 0;
    if (!dr_answer_block(completion, &block, &length)) return DR_OK;
    if (!dr_answer_find(completion, a->lines, MAX_LINES, &n)) return DR_OK;
    DR_TRY(dr_buf_append(&a->keys, "", 0)); // keys have an address even when all are empty
    a->n = n < MAX_LINES ? n : MAX_LINES;
    for (int32_t i = 0; i < a->n; i++) DR_TRY(read_line(c, a, i, block));
    return DR_OK;
}

int32_t dr_answer_items(const dr_reward_context *context, const dr_completion *completion, int32_t *out_items,
                        int32_t capacity) {
    answer a = {0};
    int32_t n = 0;
    if (read_answer(context, completion, &a) == DR_OK)
        for (int32_t i = 0; i < a.n && n < capacity; i++)
            if (a.items[i] >= 0) out_items[n++] = a.items[i];
    dr_buf_reset(&a.keys);
    return n;
}

int32_t dr_reward_context_find(const dr_reward_context *context, const char *title) {
    dr_buf key = {0};
    int32_t item = 0;
    for (int strip = 0; strip < 2 && item == 0; strip++) {
        dr_buf_clear(&key);
        if (dr_title_normalize(title, strlen(title), strip == 1, &key) == DR_OK && key.data)
            item = dr_title_index_find(context->titles, key.data, key.length);
    }
    dr_buf_reset(&key);
    return item;
}

// ---- process rewards ----

static dr_status check_format(const dr_reward_context *c, const dr_reward_settings *s,
                              const dr_completion *completion, const answer *a, dr_reward_result *r) {
    size_t titles[2 * MAX_LINES];
    dr_format_settings f = {
        .k = s->k, .forbid_cjk = s->forbid_cjk, .forbidden = c->forbidden, .titles = titles, .n_titles = 0};
    for (int32_t i = 0; i < a->n; i++) {
        const char *key = a->keys.data ? a->keys.data + a->key_begin[i] : "";
        if (dr_title_index_find(c->titles, key, a->key_end[i] - a->key_begin[i]) == 0) continue;
        titles[2 * f.n_titles] = (size_t)(a->lines[i].text - completion->text.data);
        titles[2 * f.n_titles + 1] = titles[2 * f.n_titles] + a->lines[i].length;
        f.n_titles++;
    }
    return dr_format_check(completion, &f, &r->valid, r->reason, &r->n_retrievals);
}

static float invocation_of(const dr_reward_settings *s, int32_t m) {
    if (m < 2) return 0.0f;
    return (float)((m < s->invocation_cap ? m : s->invocation_cap) - 1) * s->invocation_step;
}

static double cosine(const float *a, const float *b, int32_t dim) {
    double ab = 0, aa = 0, bb = 0;
    for (int32_t i = 0; i < dim; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0.0;
}

static float diversity_of(const dr_reward_settings *s, const float *embeddings, int32_t n, int32_t dim) {
    double sum = 0;
    int64_t pairs = 0;
    if (n < 2) return 0.0f;
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = i + 1; j < n; j++, pairs++)
            sum += cosine(embeddings + (int64_t)i * dim, embeddings + (int64_t)j * dim, dim);
    return (float)((double)s->diversity_scale * (1.0 - sum / (double)pairs));
}

// The preferences before the tool's lists, encoded: [n_retrievals, encoder dim].
static dr_status encode_preferences(const dr_reward_context *c, const dr_completion *completion, float *out) {
    dr_buf text = {0};
    dr_status status = DR_OK;
    int32_t n = 0;
    for (int32_t i = 0; i < completion->n_segments && status == DR_OK; i++) {
        if (!completion->segments[i].from_tool) continue;
        const dr_segment *turn = i > 0 ? &completion->segments[i - 1] : NULL;
        dr_buf_clear(&text);
        status = dr_buf_append(&text, "", 0);
        if (status == DR_OK && turn && !turn->from_tool)
            status = dr_preference_extract(turn->text, turn->length, &text);
        const char *one = text.data ? text.data : "";
        if (status == DR_OK)
            status = dr_text_encode_queries(c->encoder, &one, 1, out + (int64_t)n++ * c->encoder->dim);
    }
    dr_buf_reset(&text);
    return status;
}

static dr_status diversity_of_text(const dr_reward_context *c, const dr_reward_settings *s,
                                   const dr_completion *completion, int32_t m, float *out) {
    float *vectors = NULL;
    if (m < 2) return DR_OK;
    DR_CHECK(c->encoder || s->weight[DR_REWARD_DIVERSITY] == 0.0f, DR_ERR_UNSUPPORTED,
             "the diversity reward needs preference vectors or a text encoder");
    if (!c->encoder) return DR_OK;
    DR_TRY(dr_alloc(&vectors, "preference vectors", (int64_t)m * c->encoder->dim, sizeof(float)));
    dr_status status = encode_preferences(c, completion, vectors);
    if (status == DR_OK) *out = diversity_of(s, vectors, m, c->encoder->dim);
    dr_free(vectors);
    return status;
}

// ---- outcome rewards ----

// Place of the target among the distinct lines, or -1.
static int32_t position_of(const dr_reward_context *c, const answer *a, int32_t target) {
    const char *title = dr_title_index_title(c->titles, target);
    size_t length = strlen(title);
    int32_t place = 0;
    if (length == 0) return -1;
    for (int32_t i = 0; i < a->n; i++) {
        if (a->items[i] < 0) continue;
        if (same_key(a, i, title, length)) return place;
        place++;
    }
    return -1;
}

static double similarity_of_items(const dr_reward_context *c, int32_t item, int32_t target) {
    double sum = 0;
    int32_t n = 0;
    if (c->text_vectors) {
        sum += cosine(c->text_vectors + (int64_t)item * c->text_dim,
                      c->text_vectors + (int64_t)target * c->text_dim, c->text_dim);
        n++;
    }
    if (c->item_vectors) {
        sum += cosine(c->item_vectors + (int64_t)item * c->item_dim,
                      c->item_vectors + (int64_t)target * c->item_dim, c->item_dim);
        n++;
    }
    return n > 0 ? sum / n : 0.0;
}

static float similarity_of(const dr_reward_context *c, const dr_reward_settings *s, const answer *a,
                           int32_t target) {
    double sum = 0, weights = 0;
    for (int32_t i = 0; i < a->n; i++) {
        double left = 1.0 - (double)i / (double)a->n, weight = left * left;
        if (a->items[i] > 0) sum += weight * similarity_of_items(c, a->items[i], target);
        weights += weight;
    }
    return weights > 0 ? (float)((double)s->similarity_scale * sum / weights) : 0.0f;
}

static void score_outcome(const dr_reward_context *c, const dr_reward_settings *s, const answer *a,
                          int32_t target, dr_reward_result *r) {
    int32_t place = position_of(c, a, target);
    if (place >= 0 && place < s->k) {
        r->hit_position = place;
        r->parts[DR_REWARD_HIT] = 1.0f;
        r->parts[DR_REWARD_RANK] = s->rank_step * (float)(s->k - place);
    }
    r->parts[DR_REWARD_SIMILARITY] = similarity_of(c, s, a, target);
}

// ---- all ----

static dr_status score(const dr_reward_context *c, const dr_reward_settings *s,
                       const dr_completion *completion, int32_t target, const float *embeddings,
                       int32_t n_embeddings, int32_t dim, answer *a, dr_reward_result *r) {
    DR_TRY(read_answer(c, completion, a));
    DR_TRY(check_format(c, s, completion, a, r));
    r->hit_position = -1;
    r->n_lines = a->n;
    memcpy(r->items, a->items, sizeof r->items);
    r->parts[DR_REWARD_FORMAT] = r->valid ? 0.0f : -1.0f;
    r->parts[DR_REWARD_INVOCATION] = invocation_of(s, r->n_retrievals);
    if (embeddings)
        r->parts[DR_REWARD_DIVERSITY] = diversity_of(s, embeddings, n_embeddings, dim);
    else
        DR_TRY(diversity_of_text(c, s, completion, r->n_retrievals, &r->parts[DR_REWARD_DIVERSITY]));
    if (r->valid && target > 0) score_outcome(c, s, a, target, r);
    for (int32_t i = 0; i < DR_REWARD_PARTS; i++)
        if (s->weight[i] != 0.0f) r->total += s->weight[i] * r->parts[i];
    return DR_OK;
}

dr_status dr_reward_score(const dr_reward_context *context, const dr_reward_settings *settings,
                          const dr_completion *completion, int32_t target, const float *embeddings,
                          int32_t n_embeddings, int32_t dim, dr_reward_result *out_result) {
    _Static_assert(sizeof out_result->items == MAX_LINES * sizeof(int32_t), "lines of a result");
    DR_CHECK(settings->k >= 1 && settings->k <= MAX_LINES, DR_ERR_ARGUMENT,
             "reward: k is %d, expected 1 to %d", settings->k, MAX_LINES);
    DR_CHECK(target >= 0 && target <= context->dataset->n_items, DR_ERR_RANGE,
             "reward: target item %d, the data set has %d", target, context->dataset->n_items);
    dr_reward_result result = {0};
    answer a = {0};
    dr_status status =
        score(context, settings, completion, target, embeddings, n_embeddings, dim, &a, &result);
    dr_buf_reset(&a.keys);
    if (status == DR_OK) *out_result = result;
    return status;
}
