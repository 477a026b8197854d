// Encoding: added tokens, normalisation, pre-tokens, the model; what stands around a text.
#include <string.h>

#include "core/text/normalize.h"
#include "core/text/tokenizer_internal.h"

// Long texts repeat their words: a table of the short pieces met in this call and their ids. Its size goes
// with the text's, so that making it costs little.
enum { CACHE_FROM = 2048, CACHE_LEAST = 256, CACHE_MOST = 8192, CACHED_IDS = 4 };
typedef struct cached_piece {
    piece_key key; // high 0: empty
    int32_t n, ids[CACHED_IDS];
} cached_piece;

typedef struct encoder {
    const dr_tokenizer *t;
    int32_t **ids;
    int64_t *n, *capacity;
    bpe_merger merger;
    bpe_splitter splitter;
    dr_buf normal[2];    // the normalised text is in one of them
    dr_buf word;         // room of WordPiece
    cached_piece *cache; // [cache_size] or NULL
    int64_t cache_size;
    const char *text, *end; // the text of the call
    const size_t *foreign;  // [2 * n_foreign] where no added token may be
    int64_t n_foreign;
} encoder;

static dr_status reserve_ids(int32_t **ids, int64_t n, int64_t *capacity, int64_t more) {
    if (n + more <= *capacity) return DR_OK;
    int64_t larger = 2 * *capacity + more + 256;
    DR_TRY(dr_grow(ids, "token ids", *capacity, larger, sizeof **ids));
    *capacity = larger;
    return DR_OK;
}

static dr_status reserve(encoder *e, int64_t more) {
    return reserve_ids(e->ids, *e->n, e->capacity, more);
}

static dr_status append_ids(int32_t **ids, int64_t *n_ids, int64_t *capacity, const int32_t *more,
                            int64_t n) {
    DR_TRY(reserve_ids(ids, *n_ids, capacity, n));
    for (int64_t i = 0; i < n; i++) (*ids)[*n_ids + i] = more[i];
    *n_ids += n;
    return DR_OK;
}

static dr_status push(encoder *e, int32_t id) {
    DR_TRY(reserve(e, 1));
    (*e->ids)[(*e->n)++] = id;
    return DR_OK;
}

static dr_status put_ids(encoder *e, const int32_t *ids, int64_t n) {
    return append_ids(e->ids, e->n, e->capacity, ids, n);
}

// Of BPE most pieces are tokens as they are: whether merging gives that token is asked once and kept for all.
static dr_status make_ids(encoder *e, piece_key key, const char *piece, size_t length) {
    const dr_tokenizer *t = e->t;
    int64_t n = 0;
    if (t->is_wordpiece) {
        DR_TRY(reserve(e, (int64_t)length));
        DR_TRY(dr_wordpiece_encode(t, &e->word, piece, length, *e->ids + *e->n, &n));
        *e->n += n;
        return DR_OK;
    }
    int32_t id = dr_bpe_find_key(t, key, piece, length);
    if (id >= 0) {
        if (t->ignore_merges && !t->tokens[id].is_special) return push(e, id);
        if (atomic_load_explicit(&t->whole[id], memory_order_relaxed) == 1) return push(e, id);
    }
    DR_TRY(dr_bpe_merge_bytes(t, &e->merger, piece, length, &n));
    if (n == 1 && e->merger.symbols[0] == id) atomic_store_explicit(&t->whole[id], 1, memory_order_relaxed);
    return put_ids(e, e->merger.symbols, n);
}

static dr_status encode_piece(void *context, const char *piece, size_t length) {
    encoder *e = context;
    if (length == 1 && !e->t->is_wordpiece) return push(e, e->t->byte_ids[(unsigned char)piece[0]]);
    piece_key key = dr_bpe_key(piece, length);
    if (!e->cache || !dr_bpe_key_is_exact(key)) return make_ids(e, key, piece, length);
    cached_piece *c = &e->cache[dr_bpe_key_hash(key) & (e->cache_size - 1)];
    if (c->key.low == key.low && c->key.high == key.high) return put_ids(e, c->ids, c->n);
    int64_t before = *e->n;
    DR_TRY(make_ids(e, key, piece, length));
    int64_t n = *e->n - before;
    if (n > CACHED_IDS) return DR_OK;
    c->key = key;
    c->n = (int32_t)n;
    memcpy(c->ids, *e->ids + before, (size_t)n * sizeof *c->ids);
    return DR_OK;
}

// Is the piece part of the call's text, and not of a buffer?
static bool is_in_call(const encoder *e, const char *piece, size_t length) {
    uintptr_t at = (uintptr_t)piece;
    return at >= (uintptr_t)e->text && at + length <= (uintptr_t)e->end;
}

// Does text[begin..end) of the call touch a foreign range?
static bool is_foreign(const encoder *e, size_t begin, size_t end) {
    int64_t low = 0, high = e->n_foreign;
    while (low < high) { // the first range that ends behind `begin`
        int64_t middle = (low + high) / 2;
        if (e->foreign[2 * middle + 1] <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    return low < e->n_foreign && e->foreign[2 * low] < end;
}

typedef dr_status (*gap_visitor)(encoder *e, const char *text, size_t length);

// Finds the tokens of a set from left to right, the longest at each place; `visit` gets what lies between
// them. A token that single_word forbids is still text that is done with, as in the `tokenizers` library.
static dr_status find_added(encoder *e, const added_set *set, const char *text, size_t length,
                            gap_visitor visit) {
    size_t begin = 0, at = 0;
    bool in_call = is_in_call(e, text, length);
    if (set->n == 0) return length ? visit(e, text, length) : DR_OK;
    while (at < length) {
        const added_token *a = dr_bpe_added_at(e->t, set, text, length, at);
        if (!a) {
            at++;
            continue;
        }
        size_t start = at, stop = at + set->texts[a - e->t->added].length, place = (size_t)(text - e->text);
        if (in_call && e->n_foreign && is_foreign(e, place + start, place + stop)) {
            at++;
            continue;
        }
        at = stop;
        if (a->single_word && dr_bpe_touches_word(e->t, text, length, start, stop)) continue;
        if (a->lstrip) {
            size_t blank = dr_bpe_before_blanks(text, start);
            start = blank > begin ? blank : begin;
        }
        if (a->rstrip) stop += dr_bpe_blanks(text + stop, length - stop);
        if (start > begin) DR_TRY(visit(e, text + begin, start - begin));
        DR_TRY(push(e, a->id));
        begin = stop;
    }
    return begin < length ? visit(e, text + begin, length - begin) : DR_OK;
}

static dr_status encode_plain(encoder *e, const char *text, size_t length) {
    return dr_bpe_splitter_run(&e->splitter, text, length);
}

// Text between the added tokens of the first set.
static dr_status encode_gap(encoder *e, const char *text, size_t length) {
    const char *normal = text;
    size_t normal_length = length, place = (size_t)(text - e->text);
    DR_TRY(dr_bpe_normalise(e->t, e->normal, &normal, &normal_length));
    bool has_moved = normal != text; // places are lost: nothing of it can be told from foreign text
    if (has_moved && e->n_foreign && is_foreign(e, place, place + length))
        return encode_plain(e, normal, normal_length);
    return find_added(e, &e->t->sets[1], normal, normal_length, encode_plain);
}

static dr_status encode_without_added(encoder *e, const char *text, size_t length) {
    DR_TRY(dr_bpe_normalise(e->t, e->normal, &text, &length));
    return encode_plain(e, text, length);
}

static dr_status encode_text(const dr_tokenizer *t, const char *text, size_t length, bool parse_added,
                             const size_t *foreign, int64_t n_foreign, int32_t **ids, int64_t *n_ids,
                             int64_t *capacity) {
    encoder e = {.t = t, .ids = ids, .n = n_ids, .capacity = capacity, .text = text, .end = text + length};
    int64_t before = *n_ids;
    if (length == 0) return DR_OK;
    e.foreign = foreign;
    e.n_foreign = n_foreign;
    dr_status status = dr_bpe_splitter_init(&e.splitter, t, encode_piece, &e);
    if (length >= CACHE_FROM)
        for (e.cache_size = CACHE_LEAST; e.cache_size < CACHE_MOST && e.cache_size < (int64_t)length / 8;)
            e.cache_size *= 2;
    if (status == DR_OK && e.cache_size > 0)
        status = dr_alloc(&e.cache, "word cache", e.cache_size, sizeof *e.cache);
    e.splitter.is_valid = dr_utf8_valid(text, length);
    if (status == DR_OK)
        status = parse_added ? find_added(&e, &t->sets[0], text, length, encode_gap)
                             : encode_without_added(&e, text, length);
    dr_bpe_splitter_reset(&e.splitter);
    dr_bpe_merger_reset(&e.merger);
    for (int k = 0; k < 2; k++) dr_buf_reset(&e.normal[k]);
    dr_buf_reset(&e.word);
    dr_free(e.cache);
    if (status != DR_OK) *n_ids = before;
    return status;
}

dr_status dr_tokenizer_encode(const dr_tokenizer *t, const char *text, size_t length, bool parse_special,
                              int32_t **ids, int64_t *n_ids, int64_t *capacity) {
    return encode_text(t, text, length, parse_special, NULL, 0, ids, n_ids, capacity);
}

dr_status dr_tokenizer_encode_guarded(const dr_tokenizer *t, const char *text, size_t length,
                                      const size_t *foreign, int64_t n_foreign, int32_t **ids, int64_t *n_ids,
                                      int64_t *capacity) {
    return encode_text(t, text, length, true, foreign, n_foreign, ids, n_ids, capacity);
}

dr_status dr_tokenizer_encode_framed(const dr_tokenizer *t, const char *text, size_t length,
                                     bool parse_special, int64_t max_ids, int32_t **ids, int64_t *n_ids,
                                     int64_t *capacity) {
    int64_t begin = *n_ids, n_frame = t->n_before + t->n_after;
    DR_CHECK(max_ids >= n_frame, DR_ERR_RANGE,
             "encode: at most %lld ids, and the post-processor puts %lld around a text", (long long)max_ids,
             (long long)n_frame);
    dr_status status = append_ids(ids, n_ids, capacity, t->frame, t->n_before);
    if (status == DR_OK) status = dr_tokenizer_encode(t, text, length, parse_special, ids, n_ids, capacity);
    int64_t n = *n_ids - begin - t->n_before, most = max_ids - n_frame;
    if (n > most) *n_ids -= n - most;
    if (status == DR_OK && t->n_after > 0)
        status = append_ids(ids, n_ids, capacity, t->frame + t->n_before, t->n_after);
    if (status != DR_OK) *n_ids = begin;
    return status;
}
