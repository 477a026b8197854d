// Byte-pair merging of one piece. Short pieces (nearly all) are searched again after each merge, a few
// numbers; long ones keep their pairs in a heap, so a piece of any length takes n log n.
#include <string.h>

#include "core/text/tokenizer_internal.h"

enum { SHORT_PIECE = 48 };

void dr_bpe_merger_reset(bpe_merger *m) {
    dr_free(m->symbols);
    dr_free(m->block);
    *m = (bpe_merger){0};
}

// A pair of neighbours: rank INT32_MAX means that they do not merge.
typedef struct pair {
    int32_t rank, merged;
} pair;

static pair pair_of(const dr_tokenizer *t, int32_t left, int32_t right) {
    const pair_slot *slot = dr_bpe_find_merge(t, left, right);
    return slot ? (pair){slot->rank, slot->merged} : (pair){INT32_MAX, -1};
}

static pair pair_of_bytes(const dr_tokenizer *t, const char *piece) {
    const pair_slot *slot = &t->byte_pairs[(unsigned char)piece[0] << 8 | (unsigned char)piece[1]];
    return slot->rank >= 0 ? (pair){slot->rank, slot->merged} : (pair){INT32_MAX, -1};
}

static int64_t merge_short(const dr_tokenizer *t, const char *piece, int32_t *symbols, int64_t n) {
    pair pairs[SHORT_PIECE];
    for (int64_t i = 0; i + 1 < n; i++) pairs[i] = pair_of_bytes(t, piece + i);
    while (n > 1) {
        int64_t best = 0;
        for (int64_t i = 1; i + 1 < n; i++)
            if (pairs[i].rank < pairs[best].rank) best = i;
        if (pairs[best].rank == INT32_MAX) break;
        symbols[best] = pairs[best].merged;
        n--;
        for (int64_t i = best + 1; i < n; i++) {
            symbols[i] = symbols[i + 1];
            pairs[i - 1] = pairs[i];
        }
        if (best > 0) pairs[best - 1] = pair_of(t, symbols[best - 1], symbols[best]);
        if (best + 1 < n) pairs[best] = pair_of(t, symbols[best], symbols[best + 1]);
    }
    return n;
}

// A symbol of a long piece, in a list; `rank` and `merged` are of the pair with the next one.
typedef struct link {
    int32_t id, previous, next; // next -1: the last; id -1: merged into the one before
    int32_t rank, merged;
} link;

// Pairs by (rank, place); one that is out of date is noticed when it comes up.
typedef struct heap {
    uint64_t *keys;
    int64_t n;
} heap;

static void heap_push(heap *h, uint64_t key) {
    int64_t at = h->n++;
    for (int64_t up; at > 0 && h->keys[up = (at - 1) / 2] > key; at = up) h->keys[at] = h->keys[up];
    h->keys[at] = key;
}

static uint64_t heap_pop(heap *h) {
    uint64_t top = h->keys[0], last = h->keys[--h->n];
    int64_t at = 0;
    for (;;) {
        int64_t down = 2 * at + 1;
        if (down >= h->n) break;
        if (down + 1 < h->n && h->keys[down + 1] < h->keys[down]) down++;
        if (h->keys[down] >= last) break;
        h->keys[at] = h->keys[down];
        at = down;
    }
    h->keys[at] = last;
    return top;
}

static void link_pair(const dr_tokenizer *t, link *links, int64_t at, heap *h) {
    pair p = {INT32_MAX, -1};
    if (links[at].next >= 0) p = pair_of(t, links[at].id, links[links[at].next].id);
    links[at].rank = p.rank;
    links[at].merged = p.merged;
    if (p.rank != INT32_MAX) heap_push(h, (uint64_t)(uint32_t)p.rank << 32 | (uint64_t)at);
}

static int64_t merge_long(const dr_tokenizer *t, bpe_merger *m, int64_t n) {
    link *links = m->block;
    heap h = {(uint64_t *)(void *)(links + m->capacity), 0};
    for (int64_t i = 0; i < n; i++)
        links[i] = (link){m->symbols[i], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1, INT32_MAX, -1};
    for (int64_t i = 0; i + 1 < n; i++) link_pair(t, links, i, &h);
    while (h.n > 0) {
        uint64_t key = heap_pop(&h);
        link *left = &links[key & 0xFFFFFFFFu];
        if (left->id < 0 || left->rank != (int32_t)(key >> 32)) continue;
        link *right = &links[left->next];
        left->id = left->merged;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) links[left->next].previous = (int32_t)(left - links);
        link_pair(t, links, left - links, &h);
        if (left->previous >= 0) link_pair(t, links, left->previous, &h);
    }
    int64_t to = 0;
    for (int64_t i = 0; i >= 0; i = links[i].next) m->symbols[to++] = links[i].id;
    return to;
}

static dr_status reserve(bpe_merger *m, int64_t n) {
    int64_t capacity = (n + n / 2 + 64) & ~(int64_t)1; // even: the heap behind the links stays aligned
    // Each merge makes two new pairs at most, and there are fewer merges than symbols.
    size_t each = sizeof(link) + 3 * sizeof(uint64_t);
    dr_bpe_merger_reset(m);
    DR_TRY(dr_alloc(&m->symbols, "merge buffer", capacity, sizeof *m->symbols));
    DR_TRY(dr_alloc(&m->block, "merge buffer", capacity, each));
    m->capacity = capacity;
    return DR_OK;
}

dr_status dr_bpe_merge_bytes(const dr_tokenizer *t, bpe_merger *m, const char *piece, size_t length,
                             int64_t *out_n) {
    DR_CHECK(length <= INT32_MAX / 2, DR_ERR_RANGE, "tokenizer: a word of %zu bytes", length);
    if ((int64_t)length > m->capacity) DR_TRY(reserve(m, (int64_t)length));
    for (size_t i = 0; i < length; i++) m->symbols[i] = t->byte_ids[(unsigned char)piece[i]];
    *out_n = length <= SHORT_PIECE ? merge_short(t, piece, m->symbols, (int64_t)length)
                                   : merge_long(t, m, (int64_t)length);
    return DR_OK;
}
