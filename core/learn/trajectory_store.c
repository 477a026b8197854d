// Flattens trajectories into columns and writes them.
#include "core/learn/trajectory_store.h"

#include <string.h>

#include "core/base/alloc.h"
#include "core/store/h5.h"

typedef struct columns {
    int64_t n, tokens, turns, items;
    int32_t dim;
    int64_t *offset, *turn_offset, *item_offset, *seed;
    int32_t *prompt, *sample, *user, *target, *stop, *ids, *turn_begin, *turn_end, *retrieved;
    uint8_t *provenance;
    uint16_t *turn_of;
    float *logprob, *kept, *parts, *reward, *advantage, *embedding;
    uint8_t *valid;
    uint64_t *version;
    const char **preference;
} columns;

static void columns_reset(columns *c) {
    void *owned[] = {
        c->offset,    c->turn_offset, c->item_offset, c->seed,    c->prompt,     c->sample,
        c->user,      c->target,      c->stop,        c->ids,     c->turn_begin, c->turn_end,
        c->retrieved, c->provenance,  c->turn_of,     c->logprob, c->kept,       c->parts,
        c->reward,    c->advantage,   c->embedding,   c->valid,   c->version,    (void *)c->preference};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) dr_free(owned[i]);
}

static dr_status columns_allocate(columns *c) {
    struct {
        void *pointer;
        int64_t count;
        size_t size;
    } plan[] = {{&c->offset, c->n + 1, 8},
                {&c->turn_offset, c->n + 1, 8},
                {&c->item_offset, c->turns + 1, 8},
                {&c->seed, c->n, 8},
                {&c->prompt, c->n, 4},
                {&c->sample, c->n, 4},
                {&c->user, c->n, 4},
                {&c->target, c->n, 4},
                {&c->stop, c->n, 4},
                {&c->ids, c->tokens, 4},
                {&c->turn_begin, c->turns, 4},
                {&c->turn_end, c->turns, 4},
                {&c->retrieved, c->items, 4},
                {&c->provenance, c->tokens, 1},
                {&c->turn_of, c->tokens, 2},
                {&c->logprob, c->tokens, 4},
                {&c->kept, c->tokens, 4},
                {&c->parts, c->n * DR_REWARD_PARTS, 4},
                {&c->reward, c->n, 4},
                {&c->advantage, c->n, 4},
                {&c->embedding, c->turns * c->dim, 4},
                {&c->valid, c->n, 1},
                {&c->version, c->n, 8},
                {&c->preference, c->turns, sizeof(char *)}};
    for (size_t i = 0; i < sizeof plan / sizeof *plan; i++)
        DR_TRY(dr_alloc(plan[i].pointer, "trajectory columns", plan[i].count, plan[i].size));
    return DR_OK;
}

static void fill_one(columns *c, const dr_trajectory *t, int64_t i, int64_t *token, int64_t *turn,
                     int64_t *item) {
    c->offset[i] = *token;
    c->turn_offset[i] = *turn;
    c->seed[i] = (int64_t)t->seed;
    c->prompt[i] = (int32_t)t->prompt;
    c->sample[i] = (int32_t)t->sample;
    c->user[i] = t->user;
    c->target[i] = t->target;
    c->stop[i] = (int32_t)t->stop;
    c->valid[i] = t->has_answer;
    c->version[i] = t->policy_version;
    c->reward[i] = t->reward;
    c->advantage[i] = t->advantage;
    memcpy(c->parts + i * DR_REWARD_PARTS, t->parts, sizeof t->parts);
    size_t n = (size_t)t->n_tokens;
    memcpy(c->ids + *token, t->ids, n * 4);
    memcpy(c->provenance + *token, t->provenance, n);
    memcpy(c->turn_of + *token, t->turn_of, n * 2);
    memcpy(c->logprob + *token, t->logprob, n * 4);
    memcpy(c->kept + *token, t->logprob_kept, n * 4);
    *token += t->n_tokens;
    for (int32_t k = 0; k < t->n_turns; k++, (*turn)++) {
        const dr_turn *from = &t->turns[k];
        c->item_offset[*turn] = *item;
        c->turn_begin[*turn] = from->query_begin;
        c->turn_end[*turn] = from->query_end;
        c->preference[*turn] = from->preference;
        if (from->embedding) memcpy(c->embedding + *turn * c->dim, from->embedding, (size_t)c->dim * 4);
        memcpy(c->retrieved + *item, from->items, (size_t)from->n_items * 4);
        *item += from->n_items;
    }
}

static dr_status write_columns(dr_h5 *f, const columns *c) {
    int64_t n = c->n, n1 = c->n + 1, turns1 = c->turns + 1, parts[2] = {c->n, DR_REWARD_PARTS},
            embedding[2] = {c->turns, c->dim};
    struct {
        const char *name;
        dr_h5_type type;
        int64_t count;
        const void *data;
        const char *description, *unit;
    } plan[] = {
        {"offset", DR_H5_I64, n1, c->offset, "trajectory i owns tokens offset[i] to offset[i + 1]", "tokens"},
        {"turn_offset", DR_H5_I64, n1, c->turn_offset,
         "trajectory i owns turns turn_offset[i] to turn_offset[i + 1]", "turns"},
        {"prompt", DR_H5_I32, n, c->prompt, "number of the prompt in the run: part of the draw key", ""},
        {"sample", DR_H5_I32, n, c->sample, "sample of the prompt: part of the draw key", ""},
        {"seed", DR_H5_I64, n, c->seed, "seed of the run: part of the draw key", ""},
        {"user", DR_H5_I32, n, c->user, "user row of the data set", "rows"},
        {"target", DR_H5_I32, n, c->target, "item that the user chose next", "item rows"},
        {"stop", DR_H5_I32, n, c->stop,
         "why it ended: 1 answer, 2 end of sequence, 3 empty preference, 4 turn cap, 5 retrieval "
         "cap, 6 total cap",
         ""},
        {"valid", DR_H5_U8, n, c->valid, "1 when every format rule holds", ""},
        {"policy_version", DR_H5_U64, n, c->version, "optimizer updates before it was sampled", "updates"},
        {"reward", DR_H5_F32, n, c->reward, "weighted sum of the parts", ""},
        {"advantage", DR_H5_F32, n, c->advantage, "advantage of each of its sampled tokens", ""},
        {"tokens/id", DR_H5_I32, c->tokens, c->ids, "token ids", ""},
        {"tokens/provenance", DR_H5_U8, c->tokens, c->provenance,
         "0 prompt, 1 policy, 2 forced, 3 tool; only 1 is trained on", ""},
        {"tokens/turn", DR_H5_U16, c->tokens, c->turn_of, "turn of each token", ""},
        {"tokens/logprob", DR_H5_F32, c->tokens, c->logprob,
         "log-probability over the full vocabulary at sampling", "nats"},
        {"tokens/logprob_kept", DR_H5_F32, c->tokens, c->kept, "log-probability over the kept set of top-p",
         "nats"},
        {"turns/query_begin", DR_H5_I32, c->turns, c->turn_begin, "first token of the turn that asked",
         "tokens"},
        {"turns/query_end", DR_H5_I32, c->turns, c->turn_end, "token after the turn that asked", "tokens"},
        {"turns/item_offset", DR_H5_I64, turns1, c->item_offset,
         "turn t owns items item_offset[t] to item_offset[t + 1]", "items"},
        {"turns/item", DR_H5_I32, c->items, c->retrieved, "retrieved items, best first", "item rows"},
    };
    for (size_t i = 0; i < sizeof plan / sizeof *plan; i++)
        DR_TRY(dr_h5_write(f, plan[i].name, plan[i].type, 1, &plan[i].count, plan[i].data,
                           plan[i].description, plan[i].unit));
    DR_TRY(dr_h5_write(f, "reward_parts", DR_H5_F32, 2, parts, c->parts,
                       "format, invocation, diversity, hit, rank, similarity; unweighted", ""));
    DR_TRY(dr_h5_write(f, "turns/embedding", DR_H5_F32, 2, embedding, c->embedding,
                       "preference vectors that were retrieved with", ""));
    return dr_h5_write_strings(f, "turns/preference", c->preference, c->turns, "preference texts");
}

dr_status dr_trajectories_write(const char *path, const dr_trajectory *const *trajectories, int32_t n,
                                uint32_t step, const char *stage) {
    columns c = {.n = n};
    for (int32_t i = 0; i < n; i++) {
        c.tokens += trajectories[i]->n_tokens;
        c.turns += trajectories[i]->n_turns;
        for (int32_t k = 0; k < trajectories[i]->n_turns; k++) c.items += trajectories[i]->turns[k].n_items;
        if (trajectories[i]->n_turns > 0) c.dim = trajectories[i]->text_dim;
    }
    dr_status status = columns_allocate(&c);
    int64_t token = 0, turn = 0, item = 0;
    for (int32_t i = 0; i < n && status == DR_OK; i++) fill_one(&c, trajectories[i], i, &token, &turn, &item);
    if (status == DR_OK) {
        c.offset[n] = token;
        c.turn_offset[n] = turn;
        c.item_offset[c.turns] = item;
    }
    dr_h5 *file = NULL;
    if (status == DR_OK) status = dr_h5_create(path, &file);
    if (status == DR_OK) {
        status = write_columns(file, &c);
        if (status == DR_OK) status = dr_h5_set_string(file, "/", "format", "deeprec-trajectories");
        if (status == DR_OK) status = dr_h5_set_i64(file, "/", "version", 1);
        if (status == DR_OK) status = dr_h5_set_i64(file, "/", "step", step);
        if (status == DR_OK) status = dr_h5_set_string(file, "/", "stage", stage);
        if (status == DR_OK)
            status = dr_h5_commit(file);
        else
            dr_h5_abort(file);
    }
    columns_reset(&c);
    return status;
}
