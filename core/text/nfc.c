// NFC and NFD: characters are decomposed into clusters (a starter and what may join or reorder behind it); a
// cluster is put into canonical order, composed for NFC, and written.
#include "core/text/nfc.h"

#include <string.h>

#include "core/text/nfc_tables.h"
#include "core/text/normalize.h"

enum {
    HANGUL = 0xAC00,
    HANGUL_L = 0x1100,
    HANGUL_V = 0x1161,
    HANGUL_T = 0x11A7,
    N_L = 19,
    N_V = 21,
    N_T = 28,
    N_SYLLABLES = N_L * N_V * N_T
};

typedef struct mark {
    uint32_t code;
    uint8_t class;
} mark;

typedef struct cluster {
    mark *marks;
    mark *sorted; // [capacity], room for the reordering
    int64_t n, capacity;
    bool composes;     // NFC
    mark fixed[2][32]; // where marks and sorted are until a cluster is longer
} cluster;

bool dr_nfc_is_plain(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] >= 0xCC) return false;
    return true;
}

static uint8_t class_of(uint32_t code) {
    int32_t low = 0, high = dr_nfc_n_classes;
    if (code < 0x300) return 0;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (dr_nfc_classes[middle][1] < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < dr_nfc_n_classes && dr_nfc_classes[low][0] <= code ? (uint8_t)dr_nfc_classes[low][2] : 0;
}

static const uint32_t *decomposition(uint32_t code) {
    int32_t low = 0, high = dr_nfc_n_decompositions;
    if (code < 0xC0 || (code >= 0x3400 && code < 0xF900)) return NULL;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (dr_nfc_decompositions[middle][0] < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < dr_nfc_n_decompositions && dr_nfc_decompositions[low][0] == code ? dr_nfc_decompositions[low]
                                                                                  : NULL;
}

// The composition of a Hangul pair, or 0.
static uint32_t compose_hangul(uint32_t first, uint32_t second) {
    if (first >= HANGUL_L && first < HANGUL_L + N_L && second >= HANGUL_V && second < HANGUL_V + N_V)
        return HANGUL + ((first - HANGUL_L) * N_V + second - HANGUL_V) * N_T;
    if (first >= HANGUL && first < HANGUL + N_SYLLABLES && (first - HANGUL) % N_T == 0 && second > HANGUL_T &&
        second < HANGUL_T + N_T)
        return first + second - HANGUL_T;
    return 0;
}

// The primary composite of two characters, or 0.
static uint32_t compose(uint32_t first, uint32_t second) {
    int32_t low = 0, high = dr_nfc_n_compositions;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        const uint32_t *row = dr_nfc_decompositions[dr_nfc_compositions[middle]];
        if (row[1] < first || (row[1] == first && row[2] < second))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == dr_nfc_n_compositions) return compose_hangul(first, second);
    const uint32_t *row = dr_nfc_decompositions[dr_nfc_compositions[low]];
    return row[1] == first && row[2] == second ? row[0] : compose_hangul(first, second);
}

// May this starter join the starter before it? Few do: Hangul vowels and finals, and Indic vowel signs, which
// the table has as seconds; a range that holds them all is enough, for it only makes clusters longer.
static bool may_join(uint32_t code) {
    return code >= 0x300 && (code < 0x1200 || (code >= 0x1B00 && code < 0x1C00) || code >= 0x10000);
}

static dr_status cluster_push(cluster *c, uint32_t code, uint8_t class) {
    if (c->n == c->capacity) {
        int64_t capacity = 2 * c->capacity;
        bool is_fixed = c->marks == c->fixed[0];
        mark *marks = is_fixed ? NULL : c->marks, *sorted = is_fixed ? NULL : c->sorted;
        DR_TRY(dr_grow(&marks, "characters", is_fixed ? 0 : c->capacity, capacity, sizeof *marks));
        if (is_fixed) memcpy(marks, c->fixed[0], sizeof c->fixed[0]);
        c->marks = marks;
        dr_status status =
            dr_grow(&sorted, "characters", is_fixed ? 0 : c->capacity, capacity, sizeof *sorted);
        if (status != DR_OK) {
            if (is_fixed) {
                dr_free(marks);
                c->marks = c->fixed[0];
            }
            return status;
        }
        c->sorted = sorted;
        c->capacity = capacity;
    }
    c->marks[c->n++] = (mark){code, class};
    return DR_OK;
}

// Stable order by class of marks[0..n): all classes are above 0.
static void reorder(mark *marks, int64_t n, mark *sorted) {
    int64_t counts[257] = {0};
    bool is_ordered = true;
    for (int64_t i = 1; i < n && is_ordered; i++) is_ordered = marks[i - 1].class <= marks[i].class;
    if (is_ordered) return;
    for (int64_t i = 0; i < n; i++) counts[marks[i].class + 1]++;
    for (int k = 0; k < 256; k++) counts[k + 1] += counts[k];
    for (int64_t i = 0; i < n; i++) sorted[counts[marks[i].class]++] = marks[i];
    memcpy(marks, sorted, (size_t)n * sizeof *marks);
}

static void order_cluster(cluster *c) {
    for (int64_t begin = 0; begin < c->n;) {
        int64_t end = begin;
        while (end < c->n && c->marks[end].class > 0) end++;
        if (end - begin > 1) reorder(c->marks + begin, end - begin, c->sorted);
        begin = end + 1;
    }
}

// Joins each mark to the last starter unless something between them blocks it.
static void compose_cluster(cluster *c) {
    int64_t starter = -1, to = 0;
    int last_class = -1; // of what stands behind the starter; -1: nothing
    for (int64_t i = 0; i < c->n; i++) {
        mark m = c->marks[i];
        uint32_t joined = 0;
        if (starter >= 0 && last_class < m.class) joined = compose(c->marks[starter].code, m.code);
        if (joined) {
            c->marks[starter].code = joined;
            continue;
        }
        if (m.class == 0) {
            starter = to;
            last_class = -1;
        } else {
            last_class = m.class;
        }
        c->marks[to++] = m;
    }
    c->n = to;
}

static dr_status cluster_flush(cluster *c, dr_buf *out) {
    if (c->n > 1) {
        order_cluster(c);
        if (c->composes) compose_cluster(c);
    }
    for (int64_t i = 0; i < c->n; i++) DR_TRY(dr_utf8_append(out, c->marks[i].code));
    c->n = 0;
    return DR_OK;
}

static dr_status add_part(cluster *c, uint32_t code, dr_buf *out) {
    uint8_t class = class_of(code);
    if (class == 0 && !may_join(code)) DR_TRY(cluster_flush(c, out));
    return cluster_push(c, code, class);
}

static dr_status add_character(cluster *c, uint32_t code, dr_buf *out) {
    if (code >= HANGUL && code < HANGUL + N_SYLLABLES) {
        uint32_t index = code - HANGUL, last = index % N_T;
        DR_TRY(cluster_flush(c, out));
        DR_TRY(add_part(c, HANGUL_L + index / (N_V * N_T), out));
        DR_TRY(add_part(c, HANGUL_V + index % (N_V * N_T) / N_T, out));
        return last ? add_part(c, HANGUL_T + last, out) : DR_OK;
    }
    uint32_t seconds[8];
    int n = 0;
    for (const uint32_t *row; n < 8 && (row = decomposition(code)); code = row[1])
        if (row[2]) seconds[n++] = row[2];
    DR_TRY(add_part(c, code, out));
    while (n > 0) DR_TRY(add_part(c, seconds[--n], out));
    return DR_OK;
}

static dr_status append_form(const char *text, size_t length, bool composes, dr_buf *out) {
    cluster c;
    c.composes = composes;
    c.marks = c.fixed[0];
    c.sorted = c.fixed[1];
    c.n = 0;
    c.capacity = 32;
    dr_status status = DR_OK;
    for (size_t at = 0; at < length && status == DR_OK;) {
        size_t here = at;
        uint32_t code = dr_utf8_next(text, length, &at);
        if (code == 0xFFFD && at - here == 1) { // no UTF-8: the byte stays
            status = cluster_flush(&c, out);
            if (status == DR_OK) status = dr_buf_append(out, text + here, 1);
        } else {
            status = add_character(&c, code, out);
        }
    }
    if (status == DR_OK) status = cluster_flush(&c, out);
    if (c.marks != c.fixed[0]) {
        dr_free(c.marks);
        dr_free(c.sorted);
    }
    return status == DR_OK ? dr_buf_append(out, "", 0) : status;
}

dr_status dr_nfc_append(const char *text, size_t length, dr_buf *out) {
    return append_form(text, length, true, out);
}

dr_status dr_nfd_append(const char *text, size_t length, dr_buf *out) {
    return append_form(text, length, false, out);
}
