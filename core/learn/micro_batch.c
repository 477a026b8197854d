// Bodies of micro_batch.h.
#include "core/learn/micro_batch.h"

#include <string.h>

#include "core/base/alloc.h"

dr_status dr_micro_batch_create(int64_t max_tokens, dr_micro_batch *out) {
    dr_micro_batch m = {.max_tokens = max_tokens};
    // each sequence has a token of its own or a loss row, and perhaps a prompt's sequence before it
    struct {
        int32_t **array;
        int64_t count;
    } parts[] = {{&m.ids, max_tokens},       {&m.rows, max_tokens},     {&m.targets, max_tokens},
                 {&m.number_of, max_tokens}, {&m.token_of, max_tokens}, {&m.cu_seqlens, 4 * max_tokens + 1},
                 {&m.prefix, 4 * max_tokens}};
    dr_status status = DR_OK;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && status == DR_OK; i++)
        status = dr_alloc(parts[i].array, "micro-batch", parts[i].count, sizeof(int32_t));
    if (status == DR_OK) status = dr_alloc(&m.kept, "micro-batch", max_tokens, sizeof *m.kept);
    if (status != DR_OK) {
        dr_micro_batch_reset(&m);
        return status;
    }
    dr_micro_batch_clear(&m);
    *out = m;
    return DR_OK;
}

int64_t dr_micro_batch_memory(int64_t max_tokens) {
    return (13 * max_tokens + 1) * (int64_t)sizeof(int32_t) + max_tokens * (int64_t)sizeof(dr_kept);
}

void dr_micro_batch_reset(dr_micro_batch *m) {
    int32_t *owned[] = {m->ids, m->cu_seqlens, m->prefix, m->rows, m->targets, m->number_of, m->token_of};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) dr_free(owned[i]);
    dr_free(m->kept);
    *m = (dr_micro_batch){0};
}

void dr_micro_batch_clear(dr_micro_batch *m) {
    m->cu_seqlens[0] = 0;
    m->pack = (dr_pack){.ids = m->ids,
                        .cu_seqlens = m->cu_seqlens,
                        .rows = m->rows,
                        .targets = m->targets,
                        .prefix = m->prefix,
                        .kept = m->kept};
    m->prompt = -1;
    m->n_prompt = 0;
}

static bool shares(const dr_micro_batch *m, const int32_t *ids, int64_t n_prompt) {
    return n_prompt > 0 && m->prompt >= 0 && m->n_prompt == n_prompt &&
           memcmp(m->ids + m->cu_seqlens[m->prompt], ids, (size_t)n_prompt * sizeof *ids) == 0;
}

// Whether a sequence of n tokens (the last one is only a target), the first n_prompt of which are its prompt,
// can be added with n_rows loss rows and leaves the pack within `budget` tokens.
static bool fits(const dr_micro_batch *m, const int32_t *ids, int64_t n, int64_t n_prompt, int64_t n_rows,
                 int64_t budget) {
    int64_t new_tokens = n - 1 - (shares(m, ids, n_prompt) ? n_prompt : 0);
    return m->pack.n_tokens + new_tokens <= budget && m->pack.n_rows + n_rows <= m->max_tokens &&
           m->pack.n_seqs + 2 <= 4 * m->max_tokens;
}

static void append(dr_micro_batch *m, const int32_t *ids, int64_t n, int32_t prefix) {
    memcpy(m->ids + m->pack.n_tokens, ids, (size_t)n * sizeof *ids);
    m->pack.n_tokens += n;
    m->prefix[m->pack.n_seqs++] = prefix;
    m->cu_seqlens[m->pack.n_seqs] = (int32_t)m->pack.n_tokens;
}

// n >= 2 and n_prompt < n. n_prompt 0: nothing is shared.
static void add_sequence(dr_micro_batch *m, const int32_t *ids, int64_t n, int64_t n_prompt) {
    DR_ASSERT(n >= 2 && n_prompt >= 0 && n_prompt < n);
    if (!shares(m, ids, n_prompt)) {
        m->prompt = n_prompt > 0 ? m->pack.n_seqs : -1;
        m->n_prompt = n_prompt;
        if (n_prompt > 0) append(m, ids, n_prompt, -1);
    }
    m->sequence = ids;
    m->begin = m->pack.n_tokens;
    append(m, ids + n_prompt, n - 1 - n_prompt, m->prompt);
}

// The loss row that predicts token i of the sequence added last.
static void add_row(dr_micro_batch *m, int32_t number, int32_t i, dr_kept kept) {
    int64_t r = m->pack.n_rows++;
    bool in_prompt = i - 1 < m->n_prompt;
    m->rows[r] = (int32_t)(in_prompt ? m->cu_seqlens[m->prompt] + i - 1 : m->begin + i - 1 - m->n_prompt);
    m->targets[r] = m->sequence[i];
    m->kept[r] = kept;
    m->number_of[r] = number;
    m->token_of[r] = i;
}

bool dr_micro_batch_add(dr_micro_batch *m, const dr_trajectory *t, int32_t number, const dr_loss_rows *rows,
                        int64_t budget) {
    int64_t n_rows = 0, n_prompt = rows->shares_prompt ? dr_trajectory_prompt_count(t) : 0;
    for (int32_t i = 1; i < t->n_tokens; i++) n_rows += rows->has_row(rows->context, t, i);
    if (n_rows == 0) return true;
    if (!fits(m, t->ids, t->n_tokens, n_prompt, n_rows, budget)) return false;
    add_sequence(m, t->ids, t->n_tokens, n_prompt);
    for (int32_t i = 1; i < t->n_tokens; i++)
        if (rows->has_row(rows->context, t, i))
            add_row(m, number, i, rows->over_kept ? dr_trajectory_kept(t, i) : (dr_kept){NULL, 0});
    return true;
}

float dr_micro_batch_recorded(const dr_micro_batch *m, const dr_trajectory *t, int64_t r) {
    return (m->kept[r].n > 0 ? t->logprob_kept : t->logprob)[m->token_of[r]];
}
