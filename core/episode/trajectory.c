// The token stream of one episode and its wire form. Decoding treats its bytes as hostile: every count is
// checked against what is left before anything is allocated for it.
#include "core/episode/trajectory.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the wire form is the memory form of a little-endian machine");
_Static_assert(sizeof(float) == 4 && sizeof(int32_t) == 4, "4-byte floats and ints");

enum { WIRE_MAGIC = 0x4a545244 /* "DRTJ" */, WIRE_VERSION = 1 };
enum {
    MAX_KEPT = 1 << 28,
    MAX_TOKENS = 1 << 24,
    MAX_TURNS = 1 << 16,
    MAX_TEXT_DIM = 1 << 20,
    MAX_ITEMS = 1 << 20
};

static void reset_turns(dr_trajectory *t) {
    for (int32_t i = 0; i < t->n_turns; i++) {
        dr_free(t->turns[i].preference);
        dr_free(t->turns[i].embedding);
        dr_free(t->turns[i].items);
    }
    dr_free(t->turns);
}

void dr_trajectory_reset(dr_trajectory *t) {
    if (t == NULL) return;
    reset_turns(t);
    dr_free(t->ids);
    dr_free(t->provenance);
    dr_free(t->turn_of);
    dr_free(t->logprob);
    dr_free(t->logprob_kept);
    dr_free(t->kept_end);
    dr_free(t->kept_ids);
    memset(t, 0, sizeof *t);
}

dr_status dr_trajectory_reserve(dr_trajectory *t, int32_t n) {
    if (n <= t->capacity) return DR_OK;
    DR_CHECK(n <= MAX_TOKENS, DR_ERR_RANGE, "a trajectory of %d tokens is longer than %d", n, MAX_TOKENS);
    // Each array keeps its own old count until all have grown, so a failure half way leaves a valid
    // trajectory.
    DR_TRY(dr_grow(&t->ids, "trajectory ids", t->capacity, n, sizeof *t->ids));
    DR_TRY(dr_grow(&t->provenance, "trajectory provenance", t->capacity, n, sizeof *t->provenance));
    DR_TRY(dr_grow(&t->turn_of, "trajectory turns of tokens", t->capacity, n, sizeof *t->turn_of));
    DR_TRY(dr_grow(&t->logprob, "trajectory log-probabilities", t->capacity, n, sizeof *t->logprob));
    DR_TRY(dr_grow(&t->logprob_kept, "trajectory kept log-probabilities", t->capacity, n,
                   sizeof *t->logprob_kept));
    DR_TRY(dr_grow(&t->kept_end, "trajectory kept sets", t->capacity, n, sizeof *t->kept_end));
    t->capacity = n;
    return DR_OK;
}

static int64_t kept_count(const dr_trajectory *t) {
    return t->n_tokens > 0 ? t->kept_end[t->n_tokens - 1] : 0;
}

dr_status dr_trajectory_append(dr_trajectory *t, const int32_t *ids, int32_t n, dr_provenance from,
                               uint16_t turn, const float *logprob, const float *logprob_kept) {
    DR_CHECK(n >= 0 && n <= MAX_TOKENS - t->n_tokens, DR_ERR_RANGE, "%d more tokens on a trajectory of %d", n,
             t->n_tokens);
    int32_t need = t->n_tokens + n;
    if (need > t->capacity) {
        int32_t doubled = t->capacity < MAX_TOKENS / 2 ? 2 * t->capacity : MAX_TOKENS;
        if (doubled < 64) doubled = 64;
        DR_TRY(dr_trajectory_reserve(t, need > doubled ? need : doubled));
    }
    int64_t kept_end = kept_count(t);
    for (int32_t i = 0; i < n; i++) {
        int32_t at = t->n_tokens + i;
        t->kept_end[at] = kept_end;
        t->ids[at] = ids[i];
        t->provenance[at] = (uint8_t)from;
        t->turn_of[at] = turn;
        t->logprob[at] = logprob ? logprob[i] : 0.0f;
        t->logprob_kept[at] = logprob_kept ? logprob_kept[i] : 0.0f;
    }
    t->n_tokens = need;
    return DR_OK;
}

dr_status dr_trajectory_append_sampled(dr_trajectory *t, const dr_sampled *token, uint16_t turn) {
    int64_t before = kept_count(t), need = before + token->kept.n;
    DR_CHECK(need <= MAX_KEPT, DR_ERR_RANGE,
             "kept sets of a trajectory of %d tokens have more than %d ids: a lower "
             "top-p keeps fewer",
             t->n_tokens, MAX_KEPT);
    if (need > t->kept_capacity) {
        int64_t doubled = need > 2 * t->kept_capacity ? need : 2 * t->kept_capacity;
        DR_TRY(dr_grow(&t->kept_ids, "trajectory kept sets", t->kept_capacity, doubled, sizeof *t->kept_ids));
        t->kept_capacity = doubled;
    }
    DR_TRY(
        dr_trajectory_append(t, &token->id, 1, DR_FROM_POLICY, turn, &token->logprob, &token->logprob_kept));
    if (token->kept.n > 0)
        memcpy(t->kept_ids + before, token->kept.ids, (size_t)token->kept.n * sizeof(int32_t));
    t->kept_end[t->n_tokens - 1] = need;
    return DR_OK;
}

dr_kept dr_trajectory_kept(const dr_trajectory *t, int32_t i) {
    int64_t begin = i > 0 ? t->kept_end[i - 1] : 0;
    return (dr_kept){t->kept_ids + begin, (int32_t)(t->kept_end[i] - begin)};
}

dr_status dr_trajectory_add_turn(dr_trajectory *t, int32_t query_begin, int32_t query_end,
                                 const char *preference, const float *embedding, int32_t text_dim,
                                 const int32_t *items, int32_t n_items) {
    DR_CHECK(query_begin >= 0 && query_begin <= query_end && query_end <= t->n_tokens, DR_ERR_RANGE,
             "query tokens [%d, %d) of a trajectory of %d", query_begin, query_end, t->n_tokens);
    DR_CHECK(t->n_turns < MAX_TURNS - 1, DR_ERR_RANGE, "more than %d retrievals", MAX_TURNS - 1);
    DR_CHECK(t->n_turns == 0 || text_dim == t->text_dim, DR_ERR_ARGUMENT,
             "embedding of %d values, the turns before have %d", text_dim, t->text_dim);
    dr_status status = DR_OK;
    dr_turn turn = {.query_begin = query_begin, .query_end = query_end, .n_items = n_items};
    DR_TRY_GOTO(status, dr_strdup(&turn.preference, preference), free_turn);
    DR_TRY_GOTO(status, dr_alloc(&turn.embedding, "preference embedding", text_dim, sizeof(float)),
                free_turn);
    if (embedding) memcpy(turn.embedding, embedding, (size_t)text_dim * sizeof(float));
    DR_TRY_GOTO(status, dr_alloc(&turn.items, "retrieved items", n_items, sizeof(int32_t)), free_turn);
    if (n_items > 0) memcpy(turn.items, items, (size_t)n_items * sizeof(int32_t));
    DR_TRY_GOTO(status, dr_grow(&t->turns, "turns", t->n_turns, t->n_turns + 1, sizeof *t->turns), free_turn);
    t->turns[t->n_turns++] = turn;
    t->text_dim = text_dim;
    return DR_OK;
free_turn:
    dr_free(turn.preference);
    dr_free(turn.embedding);
    dr_free(turn.items);
    return status;
}

int32_t dr_trajectory_prompt_count(const dr_trajectory *t) {
    int32_t n = 0;
    while (n < t->n_tokens && t->provenance[n] == DR_FROM_PROMPT) n++;
    return n;
}

int32_t dr_trajectory_sampled_count(const dr_trajectory *t) {
    int32_t n = 0;
    for (int32_t i = 0; i < t->n_tokens; i++) n += t->provenance[i] == DR_FROM_POLICY;
    return n;
}

bool dr_trajectory_trains(const dr_trajectory *t) {
    return t->stop != DR_STOP_TOTAL_CAP && dr_trajectory_sampled_count(t) > 0;
}

// ---- wire ----

// The fixed part, field by field in this order; both directions walk the same list.
#define FIXED_FIELDS(X)                                                                                      \
    X(seed) X(step) X(prompt) X(sample) X(user) X(target) X(policy_version) X(parts) X(reward) X(advantage)

static dr_status put_i32(dr_buf *out, int32_t value) {
    return dr_buf_append(out, &value, sizeof value);
}

static dr_status put_turn(dr_buf *out, const dr_turn *turn, int32_t text_dim) {
    size_t length = strlen(turn->preference);
    DR_TRY(put_i32(out, turn->query_begin));
    DR_TRY(put_i32(out, turn->query_end));
    DR_TRY(put_i32(out, (int32_t)length));
    DR_TRY(put_i32(out, turn->n_items));
    DR_TRY(dr_buf_append(out, turn->preference, length));
    DR_TRY(dr_buf_append(out, turn->embedding, (size_t)text_dim * sizeof(float)));
    return dr_buf_append(out, turn->items, (size_t)turn->n_items * sizeof(int32_t));
}

static dr_status put_all(dr_buf *out, const dr_trajectory *t) {
    DR_TRY(put_i32(out, WIRE_MAGIC));
    DR_TRY(put_i32(out, WIRE_VERSION));
#define PUT_FIELD(field) DR_TRY(dr_buf_append(out, &t->field, sizeof t->field));
    FIXED_FIELDS(PUT_FIELD)
#undef PUT_FIELD
    DR_TRY(put_i32(out, (int32_t)t->stop));
    DR_TRY(put_i32(out, t->has_answer ? 1 : 0));
    DR_TRY(put_i32(out, t->text_dim));
    DR_TRY(put_i32(out, t->n_tokens));
    DR_TRY(put_i32(out, t->n_turns));
    size_t n = (size_t)t->n_tokens;
    DR_TRY(dr_buf_append(out, t->ids, n * sizeof *t->ids));
    DR_TRY(dr_buf_append(out, t->provenance, n * sizeof *t->provenance));
    DR_TRY(dr_buf_append(out, t->turn_of, n * sizeof *t->turn_of));
    DR_TRY(dr_buf_append(out, t->logprob, n * sizeof *t->logprob));
    DR_TRY(dr_buf_append(out, t->logprob_kept, n * sizeof *t->logprob_kept));
    for (int32_t i = 0; i < t->n_turns; i++) DR_TRY(put_turn(out, &t->turns[i], t->text_dim));
    return DR_OK;
}

dr_status dr_trajectory_encode(const dr_trajectory *t, dr_buf *out) {
    size_t before = out->length;
    dr_status status = put_all(out, t);
    if (status != DR_OK) out->length = before;
    return status;
}

typedef struct reader {
    const char *bytes;
    size_t length, at;
} reader;

static dr_status take(reader *r, void *out, size_t n, const char *what) {
    DR_CHECK(n <= r->length - r->at, DR_ERR_FORMAT,
             "trajectory bytes: %s at offset %zu needs %zu bytes, %zu are left", what, r->at, n,
             r->length - r->at);
    if (n > 0) memcpy(out, r->bytes + r->at, n);
    r->at += n;
    return DR_OK;
}

static dr_status take_i32(reader *r, int32_t low, int32_t high, const char *what, int32_t *out) {
    size_t at = r->at;
    int32_t value = 0;
    DR_TRY(take(r, &value, sizeof value, what));
    DR_CHECK(value >= low && value <= high, DR_ERR_FORMAT,
             "trajectory bytes: %s at offset %zu: expected %d to %d, found %d", what, at, low, high, value);
    *out = value;
    return DR_OK;
}

// count elements of `size` bytes; checked against what is left before the allocation.
static dr_status take_array(reader *r, void *out_pointer, int32_t count, size_t size, const char *what) {
    DR_CHECK((size_t)count <= (r->length - r->at) / size, DR_ERR_FORMAT,
             "trajectory bytes: %s at offset %zu: %d values of %zu bytes, %zu bytes are left", what, r->at,
             count, size, r->length - r->at);
    void *block = NULL;
    DR_TRY(dr_alloc(&block, what, count, size));
    memcpy(out_pointer, &block, sizeof block);
    return take(r, block, (size_t)count * size, what);
}

static dr_status take_turn(reader *r, int32_t n_tokens, int32_t text_dim, dr_turn *turn) {
    int32_t length = 0, n_items = 0;
    DR_TRY(take_i32(r, 0, n_tokens, "query begin", &turn->query_begin));
    DR_TRY(take_i32(r, turn->query_begin, n_tokens, "query end", &turn->query_end));
    DR_TRY(take_i32(r, 0, INT32_MAX - 1, "preference length", &length));
    DR_TRY(take_i32(r, 0, MAX_ITEMS, "number of retrieved items", &n_items));
    DR_CHECK((size_t)length <= r->length - r->at, DR_ERR_FORMAT,
             "trajectory bytes: preference of %d bytes at offset %zu, %zu are left", length, r->at,
             r->length - r->at);
    DR_CHECK(memchr(r->bytes + r->at, 0, (size_t)length) == NULL, DR_ERR_FORMAT,
             "trajectory bytes: a NUL inside the preference at offset %zu", r->at);
    DR_TRY(dr_strndup(&turn->preference, r->bytes + r->at, (size_t)length));
    r->at += (size_t)length;
    DR_TRY(take_array(r, &turn->embedding, text_dim, sizeof(float), "preference embedding"));
    DR_TRY(take_array(r, &turn->items, n_items, sizeof(int32_t), "retrieved items"));
    turn->n_items = n_items;
    for (int32_t i = 0; i < n_items; i++)
        DR_CHECK(turn->items[i] > 0, DR_ERR_FORMAT, "trajectory bytes: retrieved item %d is no item",
                 turn->items[i]);
    return DR_OK;
}

static dr_status take_tokens(reader *r, int32_t n_tokens, int32_t n_turns, dr_trajectory *t) {
    t->n_tokens = t->capacity = n_tokens;
    DR_TRY(take_array(r, &t->ids, n_tokens, sizeof *t->ids, "token ids"));
    DR_TRY(take_array(r, &t->provenance, n_tokens, sizeof *t->provenance, "provenance"));
    DR_TRY(take_array(r, &t->turn_of, n_tokens, sizeof *t->turn_of, "turns of tokens"));
    DR_TRY(take_array(r, &t->logprob, n_tokens, sizeof *t->logprob, "log-probabilities"));
    DR_TRY(take_array(r, &t->logprob_kept, n_tokens, sizeof *t->logprob_kept, "kept log-probabilities"));
    DR_TRY(dr_alloc(&t->kept_end, "ends of kept sets", n_tokens, sizeof *t->kept_end)); // all empty
    for (int32_t i = 0; i < n_tokens; i++) {
        DR_CHECK(t->ids[i] >= 0, DR_ERR_FORMAT, "trajectory bytes: token %d has the id %d", i, t->ids[i]);
        DR_CHECK(t->provenance[i] <= DR_FROM_TOOL, DR_ERR_FORMAT,
                 "trajectory bytes: token %d has the provenance %d", i, t->provenance[i]);
        DR_CHECK(t->turn_of[i] <= n_turns, DR_ERR_FORMAT,
                 "trajectory bytes: token %d is of turn %d, of %d retrievals", i, t->turn_of[i], n_turns);
    }
    return DR_OK;
}

static dr_status take_all(reader *r, dr_trajectory *t) {
    int32_t value = 0, n_tokens = 0, n_turns = 0;
    DR_TRY(take_i32(r, WIRE_MAGIC, WIRE_MAGIC, "magic number", &value));
    DR_TRY(take_i32(r, WIRE_VERSION, WIRE_VERSION, "version", &value));
#define TAKE_FIELD(field) DR_TRY(take(r, &t->field, sizeof t->field, #field));
    FIXED_FIELDS(TAKE_FIELD)
#undef TAKE_FIELD
    DR_TRY(take_i32(r, DR_STOP_NONE, DR_STOP_TOTAL_CAP, "stop", &value));
    t->stop = (dr_stop)value;
    DR_TRY(take_i32(r, 0, 1, "answer flag", &value));
    t->has_answer = value == 1;
    DR_TRY(take_i32(r, 0, MAX_TEXT_DIM, "embedding length", &t->text_dim));
    DR_TRY(take_i32(r, 0, MAX_TOKENS, "number of tokens", &n_tokens));
    DR_TRY(take_i32(r, 0, MAX_TURNS - 1, "number of retrievals", &n_turns));
    DR_TRY(take_tokens(r, n_tokens, n_turns, t));
    enum { TURN_BYTES = 16 }; // the least a turn takes: refuses a huge count before it is allocated
    DR_CHECK((size_t)n_turns <= (r->length - r->at) / TURN_BYTES, DR_ERR_FORMAT,
             "trajectory bytes: %d retrievals, %zu bytes are left", n_turns, r->length - r->at);
    DR_TRY(dr_alloc(&t->turns, "turns", n_turns, sizeof *t->turns));
    t->n_turns = n_turns;
    for (int32_t i = 0; i < n_turns; i++) DR_TRY(take_turn(r, n_tokens, t->text_dim, &t->turns[i]));
    DR_CHECK(r->at == r->length, DR_ERR_FORMAT, "trajectory bytes: %zu bytes too many after offset %zu",
             r->length - r->at, r->at);
    return DR_OK;
}

dr_status dr_trajectory_decode(const void *bytes, size_t length, dr_trajectory *out) {
    reader r = {.bytes = bytes, .length = length};
    dr_trajectory t = {0};
    dr_status status = take_all(&r, &t);
    if (status != DR_OK) {
        dr_trajectory_reset(&t);
        return status;
    }
    *out = t;
    return DR_OK;
}
