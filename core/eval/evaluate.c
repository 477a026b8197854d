// Users, baselines, metrics from ranks, and the paired comparison.
#include "core/eval/evaluate.h"

#include <stdio.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/eval/evaluate_internal.h"
#include "core/rec/baselines.h"
#include "core/rec/metrics.h"

enum { TOP = 10, CHUNK = 512, RESAMPLES = 2000 };

dr_status dr_evaluation_begin(const char *name, int32_t n_users, dr_evaluation *out) {
    dr_evaluation e = {.n_users = n_users, .valid_share = 1.0};
    snprintf(e.name, sizeof e.name, "%s", name);
    DR_TRY(dr_alloc(&e.rank, "evaluation ranks", n_users, sizeof *e.rank));
    for (int32_t i = 0; i < n_users; i++) e.rank[i] = -1;
    *out = e;
    return DR_OK;
}

void dr_evaluation_finish(dr_evaluation *e) {
    static const int32_t recall_at[] = {1, 5, 10}, ndcg_at[] = {5, 10};
    double n = e->n_users > 0 ? e->n_users : 1;
    for (int32_t i = 0; i < e->n_users; i++) {
        for (int k = 0; k < 3; k++) e->recall[k] += dr_recall_at(e->rank[i], recall_at[k]) / n;
        for (int k = 0; k < 2; k++) e->ndcg[k] += dr_ndcg_at(e->rank[i], ndcg_at[k]) / n;
        e->mrr += dr_mrr_at(e->rank[i], TOP) / n;
    }
}

void dr_evaluation_reset(dr_evaluation *evaluation) {
    dr_free(evaluation->rank);
    *evaluation = (dr_evaluation){0};
}

dr_status dr_evaluate_users(const dr_dataset *dataset, dr_split split, int32_t stride, int32_t **out_users,
                            int32_t *out_n) {
    int32_t *users = NULL, n = 0;
    dr_example example;
    DR_CHECK(stride >= 1, DR_ERR_ARGUMENT, "evaluation: every %d-th user", stride);
    DR_TRY(dr_alloc(&users, "users", dataset->n_users, sizeof *users));
    for (int32_t u = 0; u < dataset->n_users; u += stride)
        if (dr_dataset_example(dataset, u, split, &example)) users[n++] = u;
    if (n == 0) {
        dr_free(users);
        return DR_FAIL(DR_ERR_ARGUMENT, "evaluation: no user of this data set has a target in this split");
    }
    *out_users = users;
    *out_n = n;
    return DR_OK;
}

// Fills `list` (TOP items) for one user.
typedef dr_status (*rank_user)(void *context, const dr_example *example, int32_t *list);

static dr_status evaluate_lists(const char *name, const dr_dataset *dataset,
                                const dr_evaluate_options *options, rank_user rank, void *context,
                                dr_evaluation *out) {
    dr_evaluation e;
    double start = dr_clock_seconds();
    DR_TRY(dr_evaluation_begin(name, options->n_users, &e));
    for (int32_t i = 0; i < options->n_users; i++) {
        dr_example example;
        int32_t list[TOP];
        dr_status status = DR_OK;
        if (!dr_dataset_example(dataset, options->users[i], options->split, &example))
            status =
                DR_FAIL(DR_ERR_RANGE, "evaluation: user %d has no target in this split", options->users[i]);
        if (status == DR_OK) status = rank(context, &example, list);
        if (status != DR_OK) {
            dr_evaluation_reset(&e);
            return status;
        }
        e.rank[i] = dr_rank_of(list, TOP, TOP, example.target);
    }
    e.seconds = dr_clock_seconds() - start;
    dr_evaluation_finish(&e);
    *out = e;
    return DR_OK;
}

static dr_status rank_popular(void *context, const dr_example *example, int32_t *list) {
    return dr_counts_popular(context, example->history, example->n_history, TOP, list);
}

static dr_status rank_transitions(void *context, const dr_example *example, int32_t *list) {
    return dr_counts_transitions(context, example->history, example->n_history, TOP, list);
}

static dr_status evaluate_counts(const char *name, const dr_dataset *dataset,
                                 const dr_evaluate_options *options, rank_user rank, dr_evaluation *out) {
    dr_counts *counts = NULL;
    DR_TRY(dr_counts_create(dataset, 2, &counts)); // both held-out items stay unseen, whichever is asked for
    dr_status status = evaluate_lists(name, dataset, options, rank, counts, out);
    dr_counts_destroy(counts);
    return status;
}

dr_status dr_evaluate_popularity(const dr_dataset *dataset, const dr_evaluate_options *options,
                                 dr_evaluation *out) {
    return evaluate_counts("popularity", dataset, options, rank_popular, out);
}

dr_status dr_evaluate_transitions(const dr_dataset *dataset, const dr_evaluate_options *options,
                                  dr_evaluation *out) {
    return evaluate_counts("transitions", dataset, options, rank_transitions, out);
}

dr_status dr_evaluate_trm(dr_trm *trm, const dr_dataset *dataset, const dr_evaluate_options *options,
                          dr_evaluation *out) {
    dr_evaluation e;
    dr_trm_query queries[CHUNK];
    int32_t targets[CHUNK];
    dr_hit *hits = NULL;
    double start = dr_clock_seconds();
    DR_TRY(dr_evaluation_begin("TRM alone", options->n_users, &e));
    dr_status status = dr_alloc(&hits, "hits", CHUNK * TOP, sizeof *hits);
    for (int32_t at = 0; at < options->n_users && status == DR_OK; at += CHUNK) {
        int32_t n = options->n_users - at < CHUNK ? options->n_users - at : CHUNK;
        for (int32_t i = 0; i < n && status == DR_OK; i++) {
            dr_example example;
            if (!dr_dataset_example(dataset, options->users[at + i], options->split, &example))
                status = DR_FAIL(DR_ERR_RANGE, "evaluation: user %d has no target in this split",
                                 options->users[at + i]);
            queries[i] = (dr_trm_query){example.history, example.n_history, NULL};
            targets[i] = example.target;
        }
        if (status == DR_OK) status = dr_trm_top_k(trm, queries, n, TOP, true, hits);
        for (int32_t i = 0; i < n && status == DR_OK; i++)
            for (int32_t k = 0; k < TOP; k++)
                if (hits[i * TOP + k].item == targets[i]) e.rank[at + i] = k;
    }
    dr_free(hits);
    if (status != DR_OK) {
        dr_evaluation_reset(&e);
        return status;
    }
    e.seconds = dr_clock_seconds() - start;
    dr_evaluation_finish(&e);
    *out = e;
    return DR_OK;
}

dr_status dr_evaluate_compare(const dr_evaluation *a, const dr_evaluation *b, uint64_t seed,
                              dr_paired_difference *out) {
    DR_CHECK(a->n_users == b->n_users && a->n_users > 0, DR_ERR_ARGUMENT,
             "comparison of %s over %d users with %s over %d", a->name, a->n_users, b->name, b->n_users);
    int32_t n = a->n_users;
    double *values = NULL;
    dr_interval recall, ndcg;
    DR_TRY(dr_alloc(&values, "paired values", 4 * (int64_t)n, sizeof *values));
    for (int32_t i = 0; i < n; i++) {
        values[i] = dr_recall_at(a->rank[i], TOP);
        values[n + i] = dr_recall_at(b->rank[i], TOP);
        values[2 * n + i] = dr_ndcg_at(a->rank[i], TOP);
        values[3 * n + i] = dr_ndcg_at(b->rank[i], TOP);
    }
    dr_status status = dr_bootstrap_paired(values, values + n, n, RESAMPLES, seed, &recall);
    if (status == DR_OK)
        status = dr_bootstrap_paired(values + 2 * n, values + 3 * n, n, RESAMPLES, seed, &ndcg);
    dr_free(values);
    DR_TRY(status);
    *out = (dr_paired_difference){recall.mean, recall.low, recall.high, ndcg.mean, ndcg.low, ndcg.high};
    return DR_OK;
}
