// The retrieval model's ops of the guarded backend: a part of tests/guarded_backend.h, which includes it.
#ifndef DR_TESTS_GUARDED_RETRIEVAL_H
#define DR_TESTS_GUARDED_RETRIEVAL_H

static void g_fusion_forward(dr_backend *b, const dr_fusion *f) {
    (void)b;
    HOSTS(f);
    OURS(f->dft), OURS(f->inverse), OURS(f->filter), OURS(f->positions), OURS(f->out);
    for (int i = 0; i < 2; i++) {
        OURS(f->x[i]), OURS(f->gate[i]), OURS(f->bias[i]);
        OURS(f->spectra[i]), OURS(f->filtered[i]), OURS(f->openness[i]);
    }
    GUARDED(fusion_forward(guard_inner, f));
}

static void g_padded_attention(dr_backend *b, const dr_padded_attention *a) {
    (void)b;
    HOSTS(a);
    OURS(a->qkv), OURS(a->lengths), OURS(a->weights), OURS(a->out);
    GUARDED(padded_attention(guard_inner, a));
}

static void g_mixture_forward(dr_backend *b, float *gate, const float *z, int64_t T, int64_t E, int64_t D,
                              float *y) {
    (void)b;
    OURS(gate), OURS(z), OURS(y);
    GUARDED(mixture_forward(guard_inner, gate, z, T, E, D, y));
}

static dr_status g_pool_rows(dr_backend *b, const float *x, const dr_sequences *sequences, dr_pooling pooling,
                             int64_t D, float *out) {
    (void)b;
    OURS(x), HOSTS(sequences->cu_seqlens), OURS(out);
    GUARDED_STATUS(pool_rows(guard_inner, x, sequences, pooling, D, out));
}

static void g_unit_rows(dr_backend *b, const float *x, int64_t T, int64_t D, float *out) {
    (void)b;
    OURS(x), OURS(out);
    GUARDED(unit_rows(guard_inner, x, T, D, out));
}

static void g_fill_places(dr_backend *b, float *x, const int64_t *places, int64_t n, float value) {
    (void)b;
    OURS(x), OURS(places);
    GUARDED(fill_places(guard_inner, x, places, n, value));
}

static dr_status g_top_k(dr_backend *b, const float *scores, int64_t T, int64_t V, int32_t k, dr_hit *out) {
    (void)b;
    OURS(scores), OURS(out);
    GUARDED_STATUS(top_k(guard_inner, scores, T, V, k, out));
}

// ---- its training ----

static void g_dropout(dr_backend *b, const float *x, int64_t n, float rate, uint32_t key, float *y) {
    (void)b;
    OURS(x), OURS(y);
    GUARDED(dropout(guard_inner, x, n, rate, key, y));
}

static dr_status g_fusion_backward(dr_backend *b, const dr_fusion *f, const dr_fusion_gradient *g) {
    (void)b;
    HOSTS(f), HOSTS(g);
    OURS(f->dft), OURS(f->inverse), OURS(f->filter);
    OURS(g->dout), OURS(g->dfilter), OURS(g->dpositions);
    for (int i = 0; i < 2; i++) {
        OURS(f->gate[i]), OURS(f->spectra[i]), OURS(f->filtered[i]), OURS(f->openness[i]);
        OURS(g->dx[i]), OURS(g->dgate[i]), OURS(g->dbias[i]);
    }
    GUARDED_STATUS(fusion_backward(guard_inner, f, g));
}

static void g_padded_attention_backward(dr_backend *b, const dr_padded_attention *a, const float *dout,
                                        float *dqkv) {
    (void)b;
    HOSTS(a);
    OURS(a->qkv), OURS(a->lengths), OURS(a->weights), OURS(dout), OURS(dqkv);
    GUARDED(padded_attention_backward(guard_inner, a, dout, dqkv));
}

static void g_mixture_backward(dr_backend *b, const float *dy, const float *weights, const float *z,
                               int64_t T, int64_t E, int64_t D, float *dz, float *dgate) {
    (void)b;
    OURS(dy), OURS(weights), OURS(z), OURS(dz), OURS(dgate);
    GUARDED(mixture_backward(guard_inner, dy, weights, z, T, E, D, dz, dgate));
}

static void g_noisy_gate_forward(dr_backend *b, const float *noise, const float *spread, int64_t n,
                                 float *gate) {
    (void)b;
    OURS(noise), OURS(spread), OURS(gate);
    GUARDED(noisy_gate_forward(guard_inner, noise, spread, n, gate));
}

static void g_noisy_gate_backward(dr_backend *b, const float *dgate, const float *noise, const float *spread,
                                  int64_t n, float *dspread) {
    (void)b;
    OURS(dgate), OURS(noise), OURS(spread), OURS(dspread);
    GUARDED(noisy_gate_backward(guard_inner, dgate, noise, spread, n, dspread));
}

static void g_normalize_rows_forward(dr_backend *b, const float *x, int64_t T, int64_t D, float *unit,
                                     float *lengths) {
    (void)b;
    OURS(x), OURS(unit), OURS(lengths);
    GUARDED(normalize_rows_forward(guard_inner, x, T, D, unit, lengths));
}

static void g_normalize_rows_backward(dr_backend *b, const float *dunit, const float *unit,
                                      const float *lengths, int64_t T, int64_t D, float *dx) {
    (void)b;
    OURS(dunit), OURS(unit), OURS(lengths), OURS(dx);
    GUARDED(normalize_rows_backward(guard_inner, dunit, unit, lengths, T, D, dx));
}

static void g_cross_entropy(dr_backend *b, float *logits, const int32_t *targets, int64_t T, int64_t V,
                            float inv_temperature, double *losses) {
    (void)b;
    OURS(logits), OURS(targets), OURS(losses);
    GUARDED(cross_entropy(guard_inner, logits, targets, T, V, inv_temperature, losses));
}

#endif
