// Learning byte-level BPE (Sennrich et al., arXiv 1508.07909): the most frequent pair of neighbouring symbols
// becomes a token, again and again. Words are counted once; pair counts are kept up to date merge by merge.
#include <string.h>

#include "core/text/tokenizer_internal.h"

typedef struct word {
    char *bytes;
    int32_t length;
    int64_t count;
    int32_t *symbols;
    int32_t n_symbols;
} word;

typedef struct word_table {
    word *words;
    int64_t n, capacity;
    int32_t *slots;
    int64_t size;
} word_table;

typedef struct pair_entry {
    int32_t left, right;
    int64_t count; // 0 with left -1: free
} pair_entry;

typedef struct pair_table {
    pair_entry *entries;
    int64_t size, used;
} pair_table;

static uint64_t hash_word(const char *bytes, size_t n) {
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)bytes[i]) * 0x100000001B3u;
    return h ^ h >> 31;
}

static dr_status words_rehash(word_table *t, int64_t size) {
    int32_t *slots = NULL;
    DR_TRY(dr_alloc(&slots, "word index", size, sizeof *slots));
    memset(slots, 0xFF, (size_t)size * sizeof *slots);
    for (int64_t w = 0; w < t->n; w++) {
        uint64_t i = hash_word(t->words[w].bytes, (size_t)t->words[w].length);
        while (slots[i & (uint64_t)(size - 1)] >= 0) i++;
        slots[i & (uint64_t)(size - 1)] = (int32_t)w;
    }
    dr_free(t->slots);
    t->slots = slots;
    t->size = size;
    return DR_OK;
}

static dr_status count_word(void *context, const char *piece, size_t length) {
    word_table *t = context;
    if (length < 2 || length > 256) return DR_OK; // nothing to merge, or no word
    uint64_t i = hash_word(piece, length);
    for (;; i++) {
        int32_t w = t->slots[i & (uint64_t)(t->size - 1)];
        if (w < 0) break;
        if (t->words[w].length == (int32_t)length && memcmp(t->words[w].bytes, piece, length) == 0) {
            t->words[w].count++;
            return DR_OK;
        }
    }
    if (t->n == t->capacity) {
        DR_TRY(dr_grow(&t->words, "words", t->capacity, 2 * t->capacity + 1024, sizeof *t->words));
        t->capacity = 2 * t->capacity + 1024;
    }
    word *fresh = &t->words[t->n];
    DR_TRY(dr_strndup(&fresh->bytes, piece, length));
    fresh->length = (int32_t)length;
    fresh->count = 1;
    t->slots[i & (uint64_t)(t->size - 1)] = (int32_t)t->n++;
    return 2 * t->n > t->size ? words_rehash(t, 2 * t->size) : DR_OK;
}

static uint64_t hash_pair(int32_t left, int32_t right) {
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 31;
}

static dr_status pairs_create(pair_table *t, int64_t size) {
    DR_TRY(dr_alloc(&t->entries, "pair counts", size, sizeof *t->entries));
    for (int64_t i = 0; i < size; i++) t->entries[i].left = -1;
    t->size = size;
    t->used = 0;
    return DR_OK;
}

static dr_status pairs_add(pair_table *t, int32_t left, int32_t right, int64_t count) {
    uint64_t i = hash_pair(left, right);
    for (;; i++) {
        pair_entry *entry = &t->entries[i & (uint64_t)(t->size - 1)];
        if (entry->left < 0) break;
        if (entry->left == left && entry->right == right) {
            entry->count += count;
            return DR_OK;
        }
    }
    t->entries[i & (uint64_t)(t->size - 1)] = (pair_entry){left, right, count};
    if (2 * ++t->used <= t->size) return DR_OK;
    pair_table bigger;
    DR_TRY(pairs_create(&bigger, 2 * t->size));
    for (int64_t k = 0; k < t->size; k++) { // dead pairs are left behind
        pair_entry e = t->entries[k];
        if (e.left < 0 || e.count == 0) continue;
        uint64_t slot = hash_pair(e.left, e.right);
        while (bigger.entries[slot & (uint64_t)(bigger.size - 1)].left >= 0) slot++;
        bigger.entries[slot & (uint64_t)(bigger.size - 1)] = e;
        bigger.used++;
    }
    dr_free(t->entries);
    *t = bigger;
    return DR_OK;
}

static dr_status pairs_of_word(pair_table *t, const word *w, int64_t sign) {
    for (int32_t i = 0; i + 1 < w->n_symbols; i++)
        DR_TRY(pairs_add(t, w->symbols[i], w->symbols[i + 1], sign * w->count));
    return DR_OK;
}

// Most frequent pair; among equals the one whose bytes sort first (left part, then right part).
static int bytes_before(const dr_tokenizer *t, int32_t a, int32_t b) {
    const bpe_token *x = &t->tokens[a], *y = &t->tokens[b];
    int32_t n = x->length < y->length ? x->length : y->length;
    int order = memcmp(x->bytes, y->bytes, (size_t)n);
    return order ? order : x->length - y->length;
}

static const pair_entry *best_pair(const dr_tokenizer *t, const pair_table *pairs) {
    const pair_entry *best = NULL;
    for (int64_t i = 0; i < pairs->size; i++) {
        const pair_entry *e = &pairs->entries[i];
        if (e->left < 0 || e->count < 2 || (best && e->count < best->count)) continue;
        if (best && e->count == best->count) {
            int order = bytes_before(t, e->left, best->left);
            if (order > 0 || (order == 0 && bytes_before(t, e->right, best->right) >= 0)) continue;
        }
        best = e;
    }
    return best;
}

static dr_status merge_in_words(word_table *words, pair_table *pairs, int32_t left, int32_t right,
                                int32_t merged) {
    for (int64_t k = 0; k < words->n; k++) {
        word *w = &words->words[k];
        bool found = false;
        for (int32_t i = 0; i + 1 < w->n_symbols && !found; i++)
            found = w->symbols[i] == left && w->symbols[i + 1] == right;
        if (!found) continue;
        DR_TRY(pairs_of_word(pairs, w, -1));
        int32_t to = 0;
        for (int32_t i = 0; i < w->n_symbols; i++) {
            bool joins = i + 1 < w->n_symbols && w->symbols[i] == left && w->symbols[i + 1] == right;
            w->symbols[to++] = joins ? merged : w->symbols[i];
            if (joins) i++;
        }
        w->n_symbols = to;
        DR_TRY(pairs_of_word(pairs, w, 1));
    }
    return DR_OK;
}

static dr_status learn_merges(dr_tokenizer *t, word_table *words, pair_table *pairs, int32_t vocab) {
    dr_buf bytes = {0};
    dr_status status = DR_OK;
    for (int64_t k = 0; k < words->n && status == DR_OK; k++) {
        word *w = &words->words[k];
        status = dr_alloc(&w->symbols, "word symbols", w->length, sizeof *w->symbols);
        for (int32_t i = 0; i < w->length && status == DR_OK; i++) w->symbols[i] = (unsigned char)w->bytes[i];
        w->n_symbols = w->length;
        if (status == DR_OK) status = pairs_of_word(pairs, w, 1);
    }
    while (t->n_tokens < vocab && status == DR_OK) {
        const pair_entry *best = best_pair(t, pairs);
        if (!best) break;
        int32_t left = best->left, right = best->right, merged = t->n_tokens;
        dr_buf_clear(&bytes);
        status = dr_buf_append(&bytes, t->tokens[left].bytes, (size_t)t->tokens[left].length);
        if (status == DR_OK)
            status = dr_buf_append(&bytes, t->tokens[right].bytes, (size_t)t->tokens[right].length);
        for (int32_t id = 0; id < t->n_tokens && status == DR_OK;
             id++) // the same bytes by another way: one token
            if (t->tokens[id].length == (int32_t)bytes.length &&
                memcmp(t->tokens[id].bytes, bytes.data, bytes.length) == 0)
                merged = id;
        if (status == DR_OK)
            status = dr_bpe_set_token(t, "new tokenizer", merged, bytes.data, (int32_t)bytes.length, true);
        if (status == DR_OK) status = dr_bpe_add_merge(t, left, right, merged);
        if (status == DR_OK) status = merge_in_words(words, pairs, left, right, merged);
    }
    dr_buf_reset(&bytes);
    return status;
}

static dr_status train_into(dr_tokenizer *t, const char *const *texts, int64_t n_texts, int32_t vocab,
                            const char *const *specials, int32_t n_specials, word_table *words,
                            pair_table *pairs) {
    dr_buf pattern = {0};
    dr_status status = dr_bpe_translate_regex("new tokenizer", dr_bpe_catalogue_pattern, &pattern);
    if (status == DR_OK) status = dr_bpe_add_stage(t, "new tokenizer", pattern.data, BPE_ISOLATED, false);
    dr_buf_reset(&pattern);
    DR_TRY(status);
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        DR_TRY(dr_bpe_set_token(t, "new tokenizer", byte, &c, 1, true));
    }
    DR_TRY(dr_bpe_finish(t, "new tokenizer")); // the indexes are built again below
    DR_TRY(words_rehash(words, 4096));
    bpe_splitter splitter;
    DR_TRY(dr_bpe_splitter_init(&splitter, t, count_word, words));
    for (int64_t i = 0; i < n_texts && status == DR_OK; i++)
        status = dr_bpe_splitter_run(&splitter, texts[i], strlen(texts[i]));
    dr_bpe_splitter_reset(&splitter);
    DR_TRY(status);
    DR_TRY(pairs_create(pairs, 65536));
    DR_TRY(learn_merges(t, words, pairs, vocab - n_specials));
    for (int32_t i = 0; i < n_specials; i++) {
        added_token token = {.text = (char *)(uintptr_t)specials[i],
                             .length = (int32_t)strlen(specials[i]),
                             .id = t->n_tokens,
                             .is_special = true};
        DR_TRY(dr_bpe_add_special(t, "new tokenizer", &token));
    }
    return dr_bpe_finish(t, "new tokenizer");
}

dr_status dr_tokenizer_train(const char *const *texts, int64_t n_texts, int32_t vocab,
                             const char *const *specials, int32_t n_specials, dr_tokenizer **out_tokenizer) {
    DR_CHECK(vocab >= 256 + n_specials, DR_ERR_ARGUMENT,
             "new tokenizer: a vocabulary of %d cannot hold 256 bytes and %d "
             "special tokens",
             vocab, n_specials);
    dr_tokenizer *t = NULL;
    word_table words = {0};
    pair_table pairs = {0};
    DR_TRY(dr_alloc(&t, "tokenizer", 1, sizeof *t));
    dr_status status = train_into(t, texts, n_texts, vocab, specials, n_specials, &words, &pairs);
    for (int64_t i = 0; i < words.n; i++) {
        dr_free(words.words[i].bytes);
        dr_free(words.words[i].symbols);
    }
    dr_free(words.words);
    dr_free(words.slots);
    dr_free(pairs.entries);
    if (status != DR_OK) {
        dr_tokenizer_destroy(t);
        return status;
    }
    *out_tokenizer = t;
    return DR_OK;
}
