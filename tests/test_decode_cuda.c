// The decode loop on the CUDA body: passes repeated as graphs give plain ones' logits. No device: skipped.
// labels: gpu
#include "tests/cuda_check.h"

#include "core/model/lm.h"

enum { SEQUENCES = 5, STEPS = 90, VOCAB = 384, PAGES = 160 };

typedef struct decoder {
    dr_backend *b;
    dr_lm *lm;
    dr_kv_cache *kv;
    float *logits; // (SEQUENCES, VOCAB)
    int32_t seqs[SEQUENCES];
} decoder;

static decoder decoder_open(dr_backend *b, const dr_lm_config *config) {
    decoder d = {.b = b};
    check_ok(dr_lm_create(b, config, 7, &d.lm));
    check_ok(dr_kv_create(d.lm, PAGES, SEQUENCES, &d.kv));
    check_ok(dr_memory_create(b, &d.logits, "logits", SEQUENCES * VOCAB, sizeof(float)));
    for (int s = 0; s < SEQUENCES; s++) check_ok(dr_kv_open(d.kv, &d.seqs[s]));
    return d;
}

static void decoder_close(decoder *d) {
    d->b->ops->memory_destroy(d->b, d->logits);
    dr_kv_destroy(d->kv);
    dr_lm_destroy(d->lm);
}

static void decode(decoder *d, const int32_t *ids, const int32_t *n, int32_t n_seqs, float *out) {
    dr_lm_chunk chunks[SEQUENCES];
    for (int32_t s = 0; s < n_seqs; s++) {
        chunks[s] = (dr_lm_chunk){.seq = d->seqs[s], .n = n[s], .ids = ids, .want_logits = true};
        ids += n[s];
    }
    check_ok(dr_lm_decode(d->lm, d->kv, chunks, n_seqs, d->logits));
    d->b->ops->copy_out(d->b, out, d->logits, (size_t)(n_seqs * VOCAB) * sizeof(float));
}

// Prompts of all lengths, two that end just before a border of splits; then single tokens, of fewer and fewer
// sequences, and of all again.
static void check_decoding(dr_backend *plain, dr_backend *recording, int32_t head_size) {
    static const int32_t prompts[SEQUENCES] = {250, 3, 511, 100, 40}, ones[SEQUENCES] = {1, 1, 1, 1, 1};
    dr_lm_config config;
    check_ok(dr_lm_preset("tiny", VOCAB, &config));
    config.head_size = head_size;
    decoder decoders[2] = {decoder_open(plain, &config), decoder_open(recording, &config)};
    int32_t *ids = op_ids(1000, VOCAB);
    float *want = op_poison(SEQUENCES * VOCAB), *got = op_poison(SEQUENCES * VOCAB);
    for (int i = 0; i < 2; i++) decode(&decoders[i], ids, prompts, SEQUENCES, i ? got : want);
    check_same_bits("prompts", got, want, SEQUENCES * VOCAB);
    for (int step = 0; step < STEPS; step++) {
        int32_t n = step < STEPS / 3 || step >= 2 * STEPS / 3 ? SEQUENCES : SEQUENCES - step % 3;
        for (int i = 0; i < 2; i++) decode(&decoders[i], ids + step, ones, n, i ? got : want);
        check_same_bits("a decode step", got, want, n * VOCAB);
    }
    for (int i = 0; i < 2; i++) decoder_close(&decoders[i]);
}

static void check_precision(dr_backend *plain) {
    static const int32_t head_sizes[] = {16, 64};
    dr_backend *recording = NULL;
#if DR_HAVE_CUDA_KERNELS
    dr_cuda_record_passes(true);
    dr_status status = dr_backend_cuda_create(plain->precision, 0, &recording);
    dr_cuda_record_passes(false);
    check_ok(status);
#endif
    for (size_t i = 0; i < sizeof head_sizes / sizeof *head_sizes; i++)
        check_decoding(plain, recording, head_sizes[i]);
    dr_backend_destroy(recording);
    free_all();
}

static void test_fp32(void **state) {
    (void)state;
    if (!cuda) skip();
    check_precision(cuda);
}

static void test_bf16(void **state) {
    (void)state;
    if (!cuda_bf16) skip();
    check_precision(cuda_bf16);
}

int main(void) {
    const struct CMUnitTest tests[] = {cuda_test(test_fp32), cuda_test(test_bf16)};
    cuda_run(tests);
}
