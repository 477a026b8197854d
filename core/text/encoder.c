// What all text encoders share, and the default body: signed feature hashing of words, word pairs and
// character n-grams (Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009).
// Needs no download.
#include "core/text/encoder.h"

#include <math.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/text/normalize.h"

enum { MAX_WORD = 48, MAX_TEXT_WORDS = 512 };

static uint64_t mix(uint64_t h) {
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

static uint64_t hash_bytes(const char *bytes, size_t n, uint64_t seed) {
    uint64_t h = seed * 0x9E3779B97F4A7C15u + n;
    for (size_t i = 0; i < n; i++) h = mix(h ^ (unsigned char)bytes[i]) + 0x9E3779B97F4A7C15u;
    return mix(h);
}

static void add_feature(float *out, int32_t dim, uint64_t hash, float weight) {
    out[hash % (uint64_t)dim] += hash >> 63 ? weight : -weight;
}

static int is_stop_word(const char *word, size_t n) {
    static const char *const stops[] = {"a",   "an", "and", "the", "of", "or",    "in",   "to",     "with",
                                        "for", "on", "is",  "it",  "by", "movie", "film", "movies", "like"};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++)
        if (strlen(stops[i]) == n && memcmp(stops[i], word, n) == 0) return 1;
    return 0;
}

// Word, its pair with the word before, and its 3- to 5-grams with border marks.
static void add_word(const char *word, size_t n, uint64_t before, float *out, int32_t dim,
                     uint64_t *out_hash) {
    uint64_t hash = hash_bytes(word, n, 1);
    float weight = is_stop_word(word, n) ? 0.15f : 1.0f;
    add_feature(out, dim, hash, weight);
    if (before) add_feature(out, dim, mix(before ^ (hash << 1)), 0.4f * weight);
    char marked[MAX_WORD + 2];
    marked[0] = '<';
    memcpy(marked + 1, word, n);
    marked[n + 1] = '>';
    float share = 0.35f * weight / sqrtf((float)n);
    for (size_t size = 3; size <= 5; size++)
        for (size_t at = 0; at + size <= n + 2; at++)
            add_feature(out, dim, hash_bytes(marked + at, size, 1 + size), share);
    *out_hash = hash;
}

static int is_word_byte(unsigned char c) {
    return c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z');
}

static dr_status encode_one(const char *text, dr_buf *folded, float *out, int32_t dim) {
    dr_buf_clear(folded);
    DR_TRY(dr_title_normalize(text, strlen(text), false, folded));
    memset(out, 0, (size_t)dim * sizeof(float));
    uint64_t before = 0;
    int32_t n_words = 0;
    for (size_t at = 0; at < folded->length && n_words < MAX_TEXT_WORDS;) {
        size_t begin = at;
        while (at < folded->length && at - begin < MAX_WORD && is_word_byte((unsigned char)folded->data[at]))
            at++;
        if (at == begin) {
            at++;
            continue;
        }
        add_word(folded->data + begin, at - begin, before, out, dim, &before);
        n_words++;
    }
    double norm = 0;
    for (int32_t i = 0; i < dim; i++) norm += (double)out[i] * out[i];
    float inv = norm > 0 ? (float)(1.0 / sqrt(norm)) : 0.0f;
    for (int32_t i = 0; i < dim; i++) out[i] *= inv;
    return DR_OK;
}

static dr_status hashed_encode(const dr_text_encoder *encoder, const char *const *texts, int64_t n,
                               float *out) {
    dr_buf folded = {0};
    dr_status status = DR_OK;
    for (int64_t i = 0; i < n && status == DR_OK; i++)
        status = encode_one(texts[i], &folded, out + i * encoder->dim, encoder->dim);
    dr_buf_reset(&folded);
    return status;
}

static void hashed_destroy(dr_text_encoder *encoder) {
    (void)encoder;
}

dr_status dr_hashed_encoder_create(int32_t dim, dr_text_encoder **out_encoder) {
    static const dr_text_encoder_ops body = {
        .name = "hashed-ngram", .encode = hashed_encode, .destroy = hashed_destroy};
    DR_CHECK(dim > 0 && dim <= 65536, DR_ERR_ARGUMENT, "text encoder: %d dimensions, expected 1 to 65536",
             dim);
    dr_text_encoder *encoder = NULL;
    DR_TRY(dr_alloc(&encoder, "text encoder", 1, sizeof *encoder));
    encoder->ops = &body;
    encoder->dim = dim;
    *out_encoder = encoder;
    return DR_OK;
}

// The n texts that stand one behind the other in `joined`, which must not move any more.
static dr_status list_joined(const dr_buf *joined, int64_t n, const char ***out_texts) {
    const char **texts = NULL, *at = joined->data;
    DR_TRY(dr_alloc(&texts, "texts to encode", n, sizeof *texts));
    for (int64_t i = 0; i < n; i++) {
        texts[i] = at;
        at += strlen(at) + 1;
    }
    *out_texts = texts;
    return DR_OK;
}

dr_status dr_text_encode_joined(const dr_text_encoder *encoder, dr_text_encode *encode, const dr_buf *joined,
                                int64_t n, float *out) {
    const char **texts = NULL;
    DR_TRY(list_joined(joined, n, &texts));
    dr_status status = encode(encoder, texts, n, out);
    dr_free(texts);
    return status;
}

// transfer NULL: encoded, else queued.
static dr_status pass_on(const dr_text_encoder *encoder, const char *const *texts, int64_t n,
                         struct dr_transfer *transfer, size_t from, float *out) {
    return transfer ? encoder->ops->queue(encoder, texts, n, transfer, from, out)
                    : encoder->ops->encode(encoder, texts, n, out);
}

static dr_status pass_on_queries(const dr_text_encoder *encoder, const char *const *texts, int64_t n,
                                 struct dr_transfer *transfer, size_t from, float *out) {
    const char *instruction = encoder->query_instruction;
    if (!instruction || instruction[0] == '\0') return pass_on(encoder, texts, n, transfer, from, out);
    dr_buf joined = {0};
    const char **queries = NULL;
    dr_status status = DR_OK;
    for (int64_t i = 0; i < n && status == DR_OK; i++) {
        status = dr_buf_text(&joined, instruction);
        if (status == DR_OK) status = dr_buf_append(&joined, texts[i], strlen(texts[i]) + 1);
    }
    if (status == DR_OK) status = list_joined(&joined, n, &queries);
    if (status == DR_OK) status = pass_on(encoder, queries, n, transfer, from, out);
    dr_free(queries);
    dr_buf_reset(&joined);
    return status;
}

dr_status dr_text_encode_queries(const dr_text_encoder *encoder, const char *const *texts, int64_t n,
                                 float *out) {
    return pass_on_queries(encoder, texts, n, NULL, 0, out);
}

dr_status dr_text_queue_queries(const dr_text_encoder *encoder, const char *const *texts, int64_t n,
                                struct dr_transfer *transfer, size_t from, float *out) {
    return pass_on_queries(encoder, texts, n, transfer, from, out);
}

void dr_text_encoder_destroy(dr_text_encoder *encoder) {
    if (!encoder) return;
    encoder->ops->destroy(encoder);
    dr_free(encoder->query_instruction);
    dr_free(encoder);
}
