// The decode loop on the CUDA body: passes repeated as graphs give plain ones' logits, and bursts give what
// draws one by one give, also where pages run out within them. No device: skipped.
// labels: gpu
#include "tests/cuda_check.h"

#include <string.h>

#include "core/model/lm.h"

#ifndef DR_IS_EMULATED
#define DR_IS_EMULATED 0
#endif

enum { SEQUENCES = 5, STEPS = sized(90, 9), VOCAB = 384, PAGES = 110 };

typedef struct decoder {
    dr_backend *b;
    dr_lm *lm;
    dr_kv_cache *kv;
    float *logits; // (SEQUENCES, VOCAB)
    int32_t seqs[SEQUENCES];
    int32_t holders[PAGES], n_holders; // of pages that nobody is to have
} decoder;

static decoder decoder_open(dr_backend *b, const dr_lm_config *config) {
    decoder d = {.b = b};
    check_ok(dr_lm_create(b, config, 7, &d.lm));
    check_ok(dr_kv_create(d.lm, PAGES, SEQUENCES + PAGES, &d.kv));
    check_ok(
        dr_memory_create(b, &d.logits, "logits", dr_lm_burst_rows(d.lm, SEQUENCES) * VOCAB, sizeof(float)));
    for (int s = 0; s < SEQUENCES; s++) check_ok(dr_kv_open(d.kv, &d.seqs[s]));
    return d;
}

static void decoder_close(decoder *d) {
    d->b->ops->memory_destroy(d->b, d->logits);
    dr_kv_destroy(d->kv);
    dr_lm_destroy(d->lm);
}

// Graphs that a backend made so far.
static int64_t recordings_of(const dr_backend *b) {
#if DR_HAVE_CUDA_KERNELS
    return dr_cuda_recordings_made(b);
#else
    (void)b;
    return 0;
#endif
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
    static const int32_t prompts[SEQUENCES] = {250, 3, sized(511, 37), sized(100, 20), 40},
                         ones[SEQUENCES] = {1, 1, 1, 1, 1};
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

// ---- bursts ----

enum { BURST = 7, DRAWS = sized(42, 16) };

typedef struct tokens {
    int32_t ids[SEQUENCES][DRAWS], n_kept[SEQUENCES][DRAWS];
    float logprob[SEQUENCES][DRAWS], logprob_kept[SEQUENCES][DRAWS];
} tokens;

static void keep_token(tokens *out, int s, int32_t at, const dr_sampled *token) {
    out->ids[s][at] = token->id;
    out->n_kept[s][at] = token->kept.n;
    out->logprob[s][at] = token->logprob;
    out->logprob_kept[s][at] = token->logprob_kept;
}

// Sequences of one token that hold all free pages but n.
static void hold_pages(decoder *d, int32_t n) {
    static const int32_t zero = 0;
    dr_lm_chunk chunks[PAGES];
    int32_t n_chunks = 0;
    for (int32_t left = dr_kv_free_pages(d->kv) - n; left > 0; left--) {
        check_ok(dr_kv_open(d->kv, &d->holders[d->n_holders]));
        chunks[n_chunks++] = (dr_lm_chunk){d->holders[d->n_holders++], 1, &zero, false};
    }
    if (n_chunks > 0) check_ok(dr_lm_decode(d->lm, d->kv, chunks, n_chunks, NULL));
    assert_int_equal(dr_kv_free_pages(d->kv), n);
}

static void give_back(decoder *d) {
    while (d->n_holders > 0) dr_kv_close(d->kv, d->holders[--d->n_holders]);
}

// Pages of the first pass of a burst, whose rows go on with these chunks.
static int32_t first_pages(const decoder *d, const dr_lm_chunk *chunks, int32_t n) {
    int32_t pages = 0;
    for (int32_t c = 0; c < n; c++) {
        const int32_t length = dr_kv_length(d->kv, chunks[c].seq);
        pages +=
            (length + chunks[c].n + DR_KV_PAGE - 1) / DR_KV_PAGE - (length + DR_KV_PAGE - 1) / DR_KV_PAGE;
    }
    return pages;
}

// Draws of all sequences, n in turn; each begins with its prompt, and two of them draw less at a time.
// few_pages: from burst to burst 0, 1, 2, 3, 0 … pages are free behind the first pass. Returns how many rows
// were finished before their limits.
static int draw_tokens(dr_backend *b, const dr_lm_config *config, int32_t n, bool few_pages, tokens *out) {
    static const int32_t prompts[SEQUENCES] = {250, 3, sized(511, 37), sized(100, 20), 40};
    static const dr_sampling how[SEQUENCES] = {{1, 0.9f}, {1, 1}, {0, 1}, {0.7f, 0.5f}, {1.5f, 0.99f}};
    decoder d = decoder_open(b, config);
    int32_t *ids = op_ids(1000, VOCAB), n_drawn[SEQUENCES] = {0}, n_bursts = 0;
    int n_short = 0;
    for (bool goes_on = true; goes_on;) {
        dr_lm_chunk chunks[SEQUENCES];
        dr_sampling settings[SEQUENCES];
        dr_sampled drawn[BURST * SEQUENCES];
        dr_draw_key keys[SEQUENCES];
        int32_t rows[SEQUENCES], limits[SEQUENCES], counts[SEQUENCES], n_rows = 0, most = 0;
        for (int s = 0; s < SEQUENCES; s++) {
            int32_t left = DRAWS - n_drawn[s], own = n > 2 && s % 3 == 1 ? n - 2 : n;
            if (left == 0) continue;
            chunks[n_rows] = n_drawn[s] == 0
                                 ? (dr_lm_chunk){d.seqs[s], prompts[s], ids + s, true}
                                 : (dr_lm_chunk){d.seqs[s], 1, &out->ids[s][n_drawn[s] - 1], true};
            limits[n_rows] = own < left ? own : left;
            if (limits[n_rows] > most) most = limits[n_rows];
            settings[n_rows] = how[s];
            rows[n_rows++] = s;
        }
        goes_on = n_rows > 0;
        if (!goes_on) break;
        for (int32_t r = 0; r < n_rows; r++)
            keys[r] = (dr_draw_key){.sample = (uint32_t)rows[r], .position = (uint32_t)n_drawn[rows[r]]};
        const dr_lm_burst burst = {.chunks = chunks,
                                   .n_chunks = n_rows,
                                   .n_steps = most,
                                   .sampling = settings,
                                   .keys = keys,
                                   .limits = limits,
                                   .logits = d.logits};
        dr_lm_drawn result = {.tokens = drawn, .counts = counts};
        if (few_pages) hold_pages(&d, first_pages(&d, chunks, n_rows) + n_bursts++ % 4);
        check_ok(dr_lm_decode_burst(d.lm, d.kv, &burst, &result));
        give_back(&d);
        int n_short_here = 0;
        for (int32_t r = 0; r < n_rows; r++) {
            int s = rows[r];
            assert_true(counts[r] >= 1 &&
                        counts[r] <= limits[r]); // less when kept sets or pages find no room
            n_short += counts[r] < limits[r];
            n_short_here += counts[r] < limits[r];
            for (int32_t step = 0; step < counts[r]; step++)
                keep_token(out, s, n_drawn[s]++, &drawn[step * n_rows + r]);
        }
        if (!few_pages) assert_int_equal(n_short_here > 0, result.room.n_fitted < most);
    }
    for (int s = 0; s < SEQUENCES; s++) dr_kv_close(d.kv, d.seqs[s]);
    assert_int_equal(dr_kv_free_pages(d.kv), PAGES);
    decoder_close(&d);
    return n_short;
}

// The same bits one by one and in bursts, plainly and as graphs, with pages for all and with few.
static void check_bursts(dr_backend *plain, dr_backend *recording, int32_t head_size) {
    dr_lm_config config;
    static tokens want, got;
    check_ok(dr_lm_preset("tiny", VOCAB, &config));
    config.head_size = head_size;
    const uint64_t stream = op_stream;
    draw_tokens(plain, &config, 1, false, &want);
    for (int i = 0; i < 4; i++) {
        memset(&got, 0, sizeof got);
        op_stream = stream;
        const int n_short = draw_tokens(i % 2 ? recording : plain, &config, BURST, i >= 2, &got);
        // the emulated device's list of kept ids has room for little more than a step
        if (i >= 2)
            assert_true(n_short > 0);
        else
            assert_int_equal(n_short > 0, DR_IS_EMULATED);
        assert_memory_equal(got.ids, want.ids, sizeof want.ids);
        assert_memory_equal(got.n_kept, want.n_kept, sizeof want.n_kept);
        check_same_bits("logprob", got.logprob[0], want.logprob[0], SEQUENCES * DRAWS);
        check_same_bits("logprob_kept", got.logprob_kept[0], want.logprob_kept[0], SEQUENCES * DRAWS);
    }
}

// ---- a batch that drains ----

// Sequence s draws DRAIN_BURST · (s + 1) tokens: in each burst one row fewer.
enum { DRAIN = 19, DRAIN_BURST = 3, DRAIN_MOST = DRAIN * DRAIN_BURST, DRAIN_PAGES = DRAIN * 4 };
static const int32_t drain_buckets = 6; // 1, 2, 4, 8, 16, 24 rows

typedef struct drained {
    int32_t ids[DRAIN][DRAIN_MOST + 1];
    float logprob[DRAIN][DRAIN_MOST];
} drained;

static void drain_burst(dr_lm *lm, dr_kv_cache *kv, float *logits, const int32_t *seqs, int32_t done,
                        drained *out) {
    const int32_t gone = done / DRAIN_BURST, n_rows = DRAIN - gone;
    dr_lm_chunk chunks[DRAIN];
    dr_sampling how[DRAIN];
    dr_sampled drawn[DRAIN * DRAIN_BURST];
    dr_draw_key keys[DRAIN];
    int32_t limits[DRAIN], counts[DRAIN];
    for (int32_t r = 0; r < n_rows; r++) {
        const int32_t s = gone + r;
        chunks[r] = (dr_lm_chunk){seqs[s], 1, &out->ids[s][done], true};
        how[r] = (dr_sampling){1, 1};
        limits[r] = DRAIN_BURST;
        keys[r] = (dr_draw_key){.sample = (uint32_t)s, .position = (uint32_t)done};
    }
    const dr_lm_burst burst = {.chunks = chunks,
                               .n_chunks = n_rows,
                               .n_steps = DRAIN_BURST,
                               .sampling = how,
                               .keys = keys,
                               .limits = limits,
                               .logits = logits};
    dr_lm_drawn result = {.tokens = drawn, .counts = counts};
    check_ok(dr_lm_decode_burst(lm, kv, &burst, &result));
    for (int32_t r = 0; r < n_rows; r++) {
        assert_int_equal(counts[r], DRAIN_BURST);
        for (int32_t step = 0; step < DRAIN_BURST; step++) {
            out->ids[gone + r][done + step + 1] = drawn[step * n_rows + r].id;
            out->logprob[gone + r][done + step] = drawn[step * n_rows + r].logprob;
        }
    }
}

static void drain(dr_backend *b, const dr_lm_config *config, drained *out) {
    dr_lm *lm = NULL;
    dr_kv_cache *kv = NULL;
    float *logits = NULL;
    int32_t seqs[DRAIN];
    memset(out, 0, sizeof *out);
    check_ok(dr_lm_create(b, config, 7, &lm));
    check_ok(dr_kv_create(lm, DRAIN_PAGES, DRAIN, &kv));
    check_ok(dr_memory_create(b, &logits, "logits", dr_lm_burst_rows(lm, DRAIN) * VOCAB, sizeof(float)));
    for (int32_t s = 0; s < DRAIN; s++) {
        check_ok(dr_kv_open(kv, &seqs[s]));
        out->ids[s][0] = s + 3;
    }
    for (int32_t done = 0; done < DRAIN_MOST; done += DRAIN_BURST)
        drain_burst(lm, kv, logits, seqs, done, out);
    b->ops->memory_destroy(b, logits);
    dr_kv_destroy(kv);
    dr_lm_destroy(lm);
}

// As few graphs as there are sizes of passes, not one for each number of rows, and idle rows change no bit.
static void check_draining(dr_backend *plain, dr_backend *recording, int32_t head_size) {
    static drained want, got;
    dr_lm_config config;
    check_ok(dr_lm_preset("tiny", VOCAB, &config));
    config.head_size = head_size;
    const int64_t before = recordings_of(recording);
    drain(plain, &config, &want);
    drain(recording, &config, &got);
    assert_memory_equal(got.ids, want.ids, sizeof want.ids);
    check_same_bits("logprob", got.logprob[0], want.logprob[0], DRAIN * DRAIN_MOST);
    const int64_t n = recordings_of(recording) - before;
    print_message("%d rows drain: %d graphs\n", DRAIN, (int)n);
    assert_in_range(n, 1, drain_buckets);
}

// ---- passes whose plans grow ----

// Rows of their own pages, enough that one split more of each takes more tiles than one split of all was
// given room for.
enum { GROWN = 33, GROWN_H = 2, GROWN_D = 64, GROWN_PAGES = 24, GROWN_PAGE = 16 };

typedef struct grown_pass {
    dr_attention_chunk chunks[GROWN];
    int32_t pages[GROWN][GROWN_PAGES];
    float *q, *out;
    void *keys, *values;
} grown_pass;

static dr_status attend(void *context, dr_backend *b, int32_t first, int32_t n) {
    const grown_pass *p = context;
    const int64_t width = GROWN_H * GROWN_D;
    return b->ops->attention_cached(b, p->q + first * width, width, p->keys, p->values, p->chunks + first, n,
                                    GROWN_PAGE, GROWN_H, 1, GROWN_D, p->out + first * width);
}

// All rows see `seen` keys. Returns the result [GROWN, H, d], on the host.
static float *run_grown(dr_backend *b, grown_pass *p, int32_t seen) {
    const dr_cached_pass pass = {.chunks = p->chunks,
                                 .n_chunks = GROWN,
                                 .group = GROWN_H,
                                 .head_size = GROWN_D,
                                 .row_macs = 1,
                                 .places = {p->q, p->out, p->keys}};
    for (int32_t r = 0; r < GROWN; r++) p->chunks[r] = (dr_attention_chunk){r, 1, seen - 1, p->pages[r]};
    check_ok(b->ops->cached_pass(b, &pass, attend, p));
    return get(b, p->out, GROWN * GROWN_H * GROWN_D);
}

static grown_pass grown_on(dr_backend *b, const float *q, const float *cache) {
    enum { Q = GROWN * GROWN_H * GROWN_D, CACHE = GROWN_PAGES * GROWN_PAGE * GROWN_D };
    grown_pass p = {.q = put(b, q, Q), .out = put_poison(b, Q)};
    void **memory[] = {&p.keys, &p.values};
    const int32_t pages[GROWN_PAGES] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11,
                                        12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23};
    const dr_attention_chunk whole = {0, GROWN_PAGES * GROWN_PAGE, 0, pages};
    for (int i = 0; i < 2; i++) {
        float *rows = put(b, cache + i * CACHE, CACHE);
        b->ops->kv_round(b, rows, rows, GROWN_D, GROWN_PAGES * GROWN_PAGE, 1, GROWN_D);
        *memory[i] = put_bytes(b, op_zeros(CACHE), (size_t)CACHE * dr_kv_bytes(b));
        b->ops->kv_store(b, rows, rows, GROWN_D, &whole, 1, GROWN_PAGE, 1, GROWN_D, *memory[i], *memory[i]);
    }
    for (int32_t r = 0; r < GROWN; r++) // no two rows have the same pages at the same places
        for (int32_t i = 0; i < GROWN_PAGES; i++) p.pages[r][i] = (i * 5 + r) % GROWN_PAGES ^ (r >= 24);
    return p;
}

// A recorded pass is not repeated for a plan that has outgrown it, and serves again when plans are as before.
static void check_growth(dr_backend *plain, dr_backend *recording) {
    static const int32_t seen[] = {250, 251, 252, 256, 257, 258, 259, 300, 256, 257};
    const float *q = op_normal(GROWN * GROWN_H * GROWN_D, 0, 1),
                *cache = op_normal(2 * GROWN_PAGES * GROWN_PAGE * GROWN_D, 0, 1);
    grown_pass at[2] = {grown_on(plain, q, cache), grown_on(recording, q, cache)};
    for (size_t i = 0; i < sizeof seen / sizeof *seen; i++)
        check_same_bits("a pass whose plan has grown", run_grown(recording, &at[1], seen[i]),
                        run_grown(plain, &at[0], seen[i]), GROWN * GROWN_H * GROWN_D);
}

// ---- a burst that breaks off ----

static dr_status failing_ops(void *context, dr_backend *b, int32_t first, int32_t n) {
    (void)context, (void)b, (void)first, (void)n;
    return DR_FAIL(DR_ERR_INTERNAL, "a pass that fails");
}

enum { HEADS = 2, HEAD = 16, CACHED = 2 * DR_KV_PAGE, STRIDE = (HEADS + 2) * HEAD };

static float *attend_one(dr_backend *b, const float *q, const void *keys, const void *values,
                         const dr_attention_chunk *chunk) {
    float *out = put_poison(b, HEADS * HEAD);
    check_ok(b->ops->attention_cached(b, q, STRIDE, keys, values, chunk, 1, DR_KV_PAGE, HEADS, 1, HEAD, out));
    return get(b, out, HEADS * HEAD);
}

// The row is finished by its first draw, so that the device's plan of the pass behind it is not what the
// chunk says; the pass fails. Whoever then names that chunk must get what the chunk says.
static void check_broken_burst(dr_backend *b) {
    static const int32_t pages[] = {1, 0}, zeros[257] = {0}, id = 3, position = 4, limit = 3;
    static const dr_draw_key key = {0};
    static const uint8_t begin = 0;
    static const float logits[4] = {0, 9, 0, 0};
    const dr_sampling greedy = {0, 1};
    const dr_attention_chunk all = {0, CACHED, 0, pages}, other = {0, 1, 20, pages},
                             later[2] = {{0, 1, 5, pages}, {0, 1, 6, pages}};
    const size_t bytes = CACHED * HEAD * dr_kv_bytes(b);
    float *qkv = put(b, op_normal(CACHED * STRIDE, 0, 1), CACHED * STRIDE);
    void *keys = put_bytes(b, op_array((int64_t)bytes, 1), bytes),
         *values = put_bytes(b, op_array((int64_t)bytes, 1), bytes);
    const float *k = qkv + HEADS * HEAD, *v = k + HEAD;
    b->ops->kv_store(b, k, v, STRIDE, &all, 1, DR_KV_PAGE, 1, HEAD, keys, values);
    const float *want = attend_one(b, qkv, keys, values, &later[0]);
    attend_one(b, qkv, keys, values, &other);
    dr_cached_pass passes[2];
    for (int i = 0; i < 2; i++)
        passes[i] = (dr_cached_pass){.chunks = &later[i],
                                     .n_chunks = 1,
                                     .group = HEADS,
                                     .head_size = HEAD,
                                     .places = {keys, values, qkv}};
    const dr_stop_table stops = {.ids = {1, -1, -1, -1},
                                 .next = put_bytes(b, zeros, 256),
                                 .first_byte = put_ids(b, zeros, 5),
                                 .bytes = put_bytes(b, zeros, 1)};
    const dr_burst burst = {.n_rows = 1,
                            .V = 4,
                            .n_steps = 3,
                            .settings = &greedy,
                            .keys = &key,
                            .limits = &limit,
                            .ids = &id,
                            .positions = &position,
                            .states = &begin,
                            .stops = &stops,
                            .passes = passes};
    check_ok(b->ops->burst_begin(b, &burst));
    check_ok(b->ops->burst_draw(b, put(b, logits, 4), put_ids(b, zeros, 1), put_ids(b, zeros, 1)));
    check_error(b->ops->cached_pass(b, &passes[0], failing_ops, NULL), DR_ERR_INTERNAL, "a pass that fails");
    check_same_bits("behind a broken burst", attend_one(b, qkv, keys, values, &later[0]), want, HEADS * HEAD);
    free_all();
}

static dr_backend *make_recording(dr_precision precision) {
    dr_backend *recording = NULL;
#if DR_HAVE_CUDA_KERNELS
    dr_cuda_record_passes(true);
    dr_status status = dr_backend_cuda_create(precision, 0, &recording);
    dr_cuda_record_passes(false);
    check_ok(status);
#else
    (void)precision;
#endif
    return recording;
}

// ---- a recording that breaks off ----

enum { PASSES = 3 };

typedef struct not_recorded {
    const float *x;
    float *y;             // += x
    bool waits;           // for the stream, in an op that returns no status; else memory is taken
    void *memory[PASSES]; // backend memory
    int n_memory;
} not_recorded;

static dr_status not_recorded_ops(void *context, dr_backend *b, int32_t first, int32_t n) {
    not_recorded *o = context;
    float value = 0;
    (void)first, (void)n;
    if (o->waits)
        b->ops->copy_out(b, &value, o->x, sizeof value);
    else
        DR_TRY(b->ops->memory_create(b, "taken in a pass", 64, &o->memory[o->n_memory++]));
    b->ops->add(b, o->x, HEAD, o->y);
    return DR_OK;
}

// A pass with an op that cannot be recorded: it runs plainly, each time it is asked for.
static void check_broken_recording(dr_precision precision, bool waits) {
    static const int32_t pages[] = {1, 0};
    const dr_attention_chunk chunk = {0, 1, 5, pages};
    dr_backend *b = make_recording(precision);
    float *qkv = put(b, op_normal(STRIDE, 0, 1), STRIDE);
    const float *ones = op_normal(HEAD, 1, 0);
    not_recorded ops = {.x = put(b, ones, HEAD), .y = put(b, op_normal(HEAD, 0, 0), HEAD), .waits = waits};
    const dr_cached_pass pass = {
        .chunks = &chunk, .n_chunks = 1, .group = HEADS, .head_size = HEAD, .places = {qkv}};
    for (int i = 1; i <= PASSES; i++) {
        check_ok(b->ops->cached_pass(b, &pass, not_recorded_ops, &ops));
        const float *sums = get(b, ops.y, HEAD);
        for (int k = 0; k < HEAD; k++) assert_true(sums[k] == (float)i * ones[k]);
    }
    for (int i = 0; i < PASSES; i++) b->ops->memory_destroy(b, ops.memory[i]);
    free_all();
    dr_backend_destroy(b);
}

static void check_precision(dr_backend *plain) {
    static const int32_t head_sizes[] = {16, 64};
    check_broken_recording(plain->precision, false);
    check_broken_recording(plain->precision, true);
    dr_backend *recording = make_recording(plain->precision);
    check_broken_burst(plain);
    check_broken_burst(recording);
    const size_t first = sized(0, dr_rounds_to_bf16(plain->precision)), n = sized(2, 1);
    for (size_t i = first; i < first + n; i++) {
        check_decoding(plain, recording, head_sizes[i]);
        check_bursts(plain, recording, head_sizes[i]);
        check_draining(plain, recording, head_sizes[i]);
    }
    check_growth(plain, recording);
    free_all();
    dr_backend_destroy(recording);
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
