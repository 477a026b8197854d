// Retrieval: requests per second of dr_trm_top_k, checked against a full sort of dr_trm_score.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench/engine_parts.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"

enum { MOST_QUERIES = 64, TOP = 20, MOST_LAYERS = 8 };

typedef struct retriever {
    dr_trm *trm;
    dr_trm_query queries[MOST_QUERIES];
    float *texts;  // [MOST_QUERIES, text_dim]
    float *scores; // [MOST_QUERIES, n_items + 1], of the check
    dr_hit hits[MOST_QUERIES * TOP];
    int64_t n; // queries of a call
} retriever;

static dr_status fill_queries(const bench_world *world, retriever *r) {
    const dr_dataset *d = world->dataset;
    const dr_text_encoder *encoder = dr_trm_text_encoder(world->trm);
    const char *texts[MOST_QUERIES];
    DR_TRY(dr_alloc(&r->texts, "preference vectors", (int64_t)MOST_QUERIES * encoder->dim, sizeof(float)));
    for (int32_t q = 0; q < MOST_QUERIES; q++) {
        dr_example e;
        DR_CHECK(dr_dataset_example(d, q % d->n_users, DR_SPLIT_TEST, &e), DR_ERR_INTERNAL,
                 "user %d has no example", q % d->n_users);
        texts[q] = d->categories[e.target];
        r->queries[q] = (dr_trm_query){e.history, e.n_history, r->texts + (int64_t)q * encoder->dim};
    }
    return dr_text_encode_queries(encoder, texts, MOST_QUERIES, r->texts);
}

// ---- the check ----

static int by_rank(const void *a, const void *b) {
    const dr_hit *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return (x->item > y->item) - (x->item < y->item);
}

// In fp32 a request's scores do not depend on the batch; in bf16 the order of sums may, so one batch is
// asked.
static dr_status check_retrieval(retriever *r) {
    int32_t n_items = dr_trm_config_of(r->trm)->n_items;
    int64_t N = (int64_t)n_items + 1;
    dr_hit *sorted = NULL;
    dr_status status;
    DR_TRY(dr_alloc(&r->scores, "all scores", MOST_QUERIES * N, sizeof(float)));
    DR_TRY(dr_alloc(&sorted, "sorted scores", n_items, sizeof *sorted));
    DR_TRY_GOTO(status, dr_trm_score(r->trm, r->queries, MOST_QUERIES, r->scores), release);
    DR_TRY_GOTO(status, dr_trm_top_k(r->trm, r->queries, MOST_QUERIES, TOP, true, r->hits), release);
    for (int32_t q = 0; q < MOST_QUERIES; q++) {
        float *scores = r->scores + q * N;
        for (int32_t i = 0; i < r->queries[q].n_history; i++) scores[r->queries[q].history[i]] = -INFINITY;
        for (int32_t i = 0; i < n_items; i++) sorted[i] = (dr_hit){i + 1, scores[i + 1]};
        qsort(sorted, (size_t)n_items, sizeof *sorted, by_rank);
        for (int32_t i = 0; i < TOP; i++) {
            const dr_hit *hit = &r->hits[q * TOP + i];
            DR_CHECK_GOTO(hit->item == sorted[i].item && hit->score == sorted[i].score, status,
                          DR_ERR_INTERNAL, release,
                          "check: request %d, place %d: item %d with %g, a full sort has %d with %g", q, i,
                          hit->item, (double)hit->score, sorted[i].item, (double)sorted[i].score);
        }
    }
release:
    dr_free(sorted);
    return status;
}

// ---- figures ----

static dr_status retrieve_run(void *context, double *out_seconds) {
    retriever *r = context;
    double begun = dr_clock_seconds();
    DR_TRY(dr_trm_top_k(r->trm, r->queries, r->n, TOP, true, r->hits));
    *out_seconds = dr_clock_seconds() - begun;
    return DR_OK;
}

// Products of one call: the adaptor's experts, each layer (the last one only for the last item of each
// history, behind its keys and values), the scores. Discrete Fourier transforms and attention are counted as
// other work.
static bench_work retrieve_work(const retriever *r, bool is_bf16, bench_product *products) {
    const dr_trm_config *c = dr_trm_config_of(r->trm);
    int64_t B = r->n, D = c->hidden, I = c->inner, L = c->max_history, P = B * L, K = L / 2 + 1,
            E = c->n_experts, X = c->text_dim, N = (int64_t)c->n_items + 1;
    int32_t n = 0;
    double linear = (double)(E * D * X); // weights, in values
    products[n++] = (bench_product){.m = B, .n = E * D, .k = X, .trans_b = true, .count = 1};
    for (int32_t l = 0; l < c->n_layers && l < MOST_LAYERS; l++) {
        int64_t Q = l + 1 == c->n_layers ? B : P;
        products[n++] = (bench_product){.m = P, .n = 3 * D, .k = D, .trans_b = true, .count = 1};
        products[n++] = (bench_product){.m = Q, .n = D, .k = D, .trans_b = true, .count = 1};
        products[n++] = (bench_product){.m = Q, .n = I, .k = D, .trans_b = true, .count = 1};
        products[n++] = (bench_product){.m = Q, .n = D, .k = I, .trans_b = true, .count = 1};
        linear += (double)(4 * D * D + 2 * D * I);
    }
    products[n++] = (bench_product){.m = B, .n = N, .k = D, .trans_b = true, .is_fp32 = true, .count = 1};
    double fourier = 4.0 * 2 * (double)(2 * K * L * D), attention = 4.0 * (double)(D * L) * (double)(L + 1),
           gate = 2.0 * (double)(X * E);
    return (bench_work){.bytes = linear * (is_bf16 ? 2 : 4) + 4.0 * (double)(N * D),
                        .products = products,
                        .n_products = n,
                        .other_flops = (double)B * (fourier + attention + gate)};
}

static dr_status retrieve_figure(bench_engine *engine, retriever *r) {
    bench_product products[2 + 4 * MOST_LAYERS];
    bench_work work = retrieve_work(r, engine->backend->precision == DR_BF16, products);
    char name[64], note[96];
    double seconds = 0, least = 0;
    bench_figure figure = {.name = name, .unit = "requests/s", .note = note};
    DR_TRY(bench_roofline(engine->ceilings, &work, &least, &figure.bound));
    DR_TRY(bench_median(retrieve_run, r, engine->seconds, &seconds));
    double flops = bench_product_flops(products, work.n_products) + work.other_flops;
    figure.value = (double)r->n / seconds;
    figure.ceiling = (double)r->n / least;
    snprintf(name, sizeof name, "retrieve.b%d", (int)r->n);
    snprintf(note, sizeof note, "%.3g ms a call, %.1f MFLOP a request, %.1f GFLOP/s", seconds * 1e3,
             flops / (double)r->n * 1e-6, flops / seconds * 1e-9);
    return bench_report_add(engine->report, &figure);
}

static dr_status measure(bench_engine *engine, const bench_world *world, retriever *r) {
    static const int64_t batches[] = {1, 16, MOST_QUERIES};
    const dr_trm_config *c = dr_trm_config_of(world->trm);
    char title[128];
    r->trm = world->trm;
    DR_TRY(fill_queries(world, r));
    DR_TRY(check_retrieval(r));
    snprintf(title, sizeof title, "Retrieval: top %d of %d items, hidden %d, text %d, b requests a call", TOP,
             c->n_items, c->hidden, c->text_dim);
    bench_report_section(engine->report, title);
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        r->n = batches[i];
        DR_TRY(retrieve_figure(engine, r));
    }
    return DR_OK;
}

dr_status bench_retrieve_figures(bench_engine *engine) {
    bench_world world = {0};
    retriever *r = NULL;
    dr_status status;
    DR_TRY(bench_world_create(engine->backend->precision, engine->backend->n_threads, &world));
    DR_TRY_GOTO(status, dr_alloc(&r, "retriever", 1, sizeof *r), reset_world);
    status = measure(engine, &world, r);
    dr_free(r->texts);
    dr_free(r->scores);
    dr_free(r);
reset_world:
    bench_world_reset(&world);
    return status;
}
