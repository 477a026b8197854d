// Messages byte by byte, cut off and damaged; the in-process channel; the collective of one.
// labels: cpu
#include "tests/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/rng.h"
#include "core/comm/channel.h"
#include "core/comm/collective.h"
#include "core/comm/message.h"

enum { HEADER = 40 };

static void quiet(void) {
    dr_log_set_level(DR_LOG_ERROR + 1);
}

static int loud(void **state) {
    (void)state;
    dr_log_set_level(DR_LOG_INFO);
    return 0;
}

static uint64_t little_endian(const char *bytes, int n) {
    uint64_t value = 0;
    for (int i = n - 1; i >= 0; i--) value = value << 8 | (unsigned char)bytes[i];
    return value;
}

// ---- the bytes ----

static void test_header(void **state) {
    (void)state;
    dr_buf out = {0};
    check_ok(dr_buf_text(&out, "left over from before"));
    check_ok(dr_message_begin(&out, DR_MSG_TRAJECTORY, 0x01020304));
    check_ok(dr_put_u32(&out, 0xA1B2C3D4));
    check_ok(dr_put_u64(&out, 0x1122334455667788));
    dr_message_finish(&out, 0x0102030405060708, 0x99AABBCCDDEEFF00);
    assert_int_equal(out.length, HEADER + 12);
    assert_memory_equal(out.data, "DRM1", 4);
    assert_int_equal(little_endian(out.data + 4, 2), DR_MESSAGE_VERSION);
    assert_int_equal(little_endian(out.data + 6, 2), DR_MSG_TRAJECTORY);
    assert_int_equal(little_endian(out.data + 8, 8), 12);
    assert_int_equal(little_endian(out.data + 16, 8), 0x0102030405060708);
    assert_int_equal(little_endian(out.data + 24, 4), 0x01020304);
    assert_int_equal(little_endian(out.data + 28, 4), 0);
    assert_int_equal(little_endian(out.data + 32, 8), 0x99AABBCCDDEEFF00);
    assert_int_equal(little_endian(out.data + 40, 4), 0xA1B2C3D4);
    assert_int_equal(little_endian(out.data + 44, 8), 0x1122334455667788);

    dr_message_header header;
    dr_reader reader;
    check_ok(dr_message_open(out.data, out.length, &header, &reader));
    assert_int_equal(header.type, DR_MSG_TRAJECTORY);
    assert_int_equal(header.bytes, 12);
    assert_int_equal(header.sequence, 0x0102030405060708);
    assert_int_equal(header.step, 0x01020304);
    assert_int_equal(header.policy_version, 0x99AABBCCDDEEFF00);
    assert_int_equal(reader.at, HEADER);
    dr_buf_reset(&out);
}

static void test_every_put_and_get(void **state) {
    (void)state;
    const uint32_t words[] = {0, 1, 0x7FFFFFFF, UINT32_MAX};
    const uint64_t longs[] = {0, 1, (uint64_t)1 << 63, UINT64_MAX};
    const float reals[] = {0.0f, -0.0f, 1e-42f, -3.5f, INFINITY, -INFINITY, NAN};
    const double doubles[] = {0.0, -0.0, 5e-324, -1e300, INFINITY, NAN};
    const char *texts[] = {"", "x", "Café Noir — 七人の侍", "a\nb\t\"c\""};
    enum { WORDS = 4, LONGS = 4, REALS = 7, DOUBLES = 6, TEXTS = 4 };
    dr_buf out = {0}, text = {0};
    check_ok(dr_message_begin(&out, DR_MSG_SCORED, 3));
    for (int i = 0; i < WORDS; i++) check_ok(dr_put_u32(&out, words[i]));
    for (int i = 0; i < LONGS; i++) check_ok(dr_put_u64(&out, longs[i]));
    for (int i = 0; i < REALS; i++) check_ok(dr_put_f32(&out, reals[i]));
    for (int i = 0; i < DOUBLES; i++) check_ok(dr_put_f64(&out, doubles[i]));
    for (int i = 0; i < TEXTS; i++) check_ok(dr_put_text(&out, texts[i]));
    dr_message_finish(&out, 1, 2);

    dr_message_header header;
    dr_reader reader;
    uint32_t word = 0;
    uint64_t wide = 0;
    float real = 0;
    double twice = 0;
    check_ok(dr_message_open(out.data, out.length, &header, &reader));
    for (int i = 0; i < WORDS; i++) {
        check_ok(dr_get_u32(&reader, &word));
        assert_int_equal(word, words[i]);
    }
    for (int i = 0; i < LONGS; i++) {
        check_ok(dr_get_u64(&reader, &wide));
        assert_true(wide == longs[i]);
    }
    for (int i = 0; i < REALS; i++) { // bits, so that -0 and NaN count too
        check_ok(dr_get_f32(&reader, &real));
        assert_memory_equal(&real, &reals[i], sizeof real);
    }
    for (int i = 0; i < DOUBLES; i++) {
        check_ok(dr_get_f64(&reader, &twice));
        assert_memory_equal(&twice, &doubles[i], sizeof twice);
    }
    check_ok(dr_buf_text(&text, "left over"));
    for (int i = 0; i < TEXTS; i++) {
        check_ok(dr_get_text(&reader, &text));
        assert_int_equal(text.length, strlen(texts[i]));
        assert_string_equal(text.data, texts[i]);
    }
    check_ok(dr_reader_end(&reader));
    dr_buf_reset(&out);
    dr_buf_reset(&text);
}

static void test_names(void **state) {
    (void)state;
    for (uint16_t i = 1; i < DR_MSG_TYPES; i++) {
        assert_string_not_equal(dr_message_name(i), "unknown");
        for (uint16_t j = 1; j < i; j++) assert_string_not_equal(dr_message_name(i), dr_message_name(j));
    }
    assert_string_equal(dr_message_name(DR_MSG_HEARTBEAT), "heartbeat");
    assert_string_equal(dr_message_name(DR_MSG_STOP), "stop");
    assert_string_equal(dr_message_name(0), "unknown");
    assert_string_equal(dr_message_name(DR_MSG_TYPES), "unknown");
    assert_string_equal(dr_message_name(UINT16_MAX), "unknown");
}

// ---- damaged messages ----

static void make_plan(dr_buf *out) {
    check_ok(dr_message_begin(out, DR_MSG_PLAN, 7));
    check_ok(dr_put_u32(out, 3)); // records of 16 bytes
    for (uint32_t i = 0; i < 3; i++) {
        check_ok(dr_put_u32(out, i));
        check_ok(dr_put_u64(out, (uint64_t)i << 40));
        check_ok(dr_put_f32(out, 0.5f * (float)i));
    }
    check_ok(dr_put_text(out, "checkpoints/step_000007"));
    check_ok(dr_put_f64(out, 1.25));
    dr_message_finish(out, 11, 12);
}

// Reads what make_plan writes, in memory of exactly that length so that a byte too far is noticed.
static dr_status read_plan(const char *data, size_t length) {
    char *bytes = malloc(length ? length : 1);
    memcpy(bytes, data, length);
    dr_message_header header;
    dr_reader reader;
    dr_buf text = {0};
    uint32_t count = 0, word = 0;
    uint64_t wide = 0;
    float real = 0;
    double twice = 0;
    dr_status status = dr_message_open(bytes, length, &header, &reader);
    if (status == DR_OK) {
        assert_true(header.type > 0 && header.type < DR_MSG_TYPES && header.bytes == length - HEADER);
        status = dr_get_count(&reader, 16, &count);
        if (status == DR_OK) assert_true((size_t)count * 16 <= length - HEADER);
    }
    for (uint32_t i = 0; i < count && status == DR_OK; i++) {
        check_ok(dr_get_u32(&reader, &word)); // the count was checked: these cannot fail
        check_ok(dr_get_u64(&reader, &wide));
        check_ok(dr_get_f32(&reader, &real));
    }
    if (status == DR_OK) status = dr_get_text(&reader, &text);
    if (status == DR_OK) assert_true(text.length <= length);
    if (status == DR_OK) status = dr_get_f64(&reader, &twice);
    if (status == DR_OK) status = dr_reader_end(&reader);
    dr_buf_reset(&text);
    free(bytes);
    if (status != DR_OK) assert_int_equal(status, DR_ERR_FORMAT);
    return status;
}

static void test_truncations(void **state) {
    (void)state;
    dr_buf out = {0};
    make_plan(&out);
    quiet();
    check_ok(read_plan(out.data, out.length));
    for (size_t n = 0; n < out.length; n++)
        if (read_plan(out.data, n) == DR_OK)
            fail_msg("%zu of %zu bytes are taken for the message", n, out.length);
    // the same with a header that fits: now the getters must notice
    for (size_t n = HEADER; n < out.length; n++) {
        uint64_t payload = n - HEADER;
        memcpy(out.data + 8, &payload, sizeof payload);
        if (read_plan(out.data, n) == DR_OK)
            fail_msg("%zu payload bytes are taken for the message", n - HEADER);
    }
    check_ok(dr_buf_append(&out, "x", 1)); // and one byte too many
    dr_message_finish(&out, 1, 1);
    assert_int_equal(read_plan(out.data, out.length), DR_ERR_FORMAT);
    check_error(DR_ERR_FORMAT, DR_ERR_FORMAT, "1 bytes too many");
    dr_buf_reset(&out);
}

static void test_mutations(void **state) {
    (void)state;
    dr_buf good = {0};
    dr_rng rng = dr_rng_make(31, 1);
    int read = 0, refused = 0;
    make_plan(&good);
    char *bytes = malloc(good.length + 8);
    quiet();
    for (int i = 0; i < 20000; i++) {
        size_t length = good.length;
        memcpy(bytes, good.data, length);
        for (uint32_t k = 1 + dr_rng_below(&rng, 4); k > 0; k--) {
            // half of the time behind the header, or the magic would hide everything else
            uint32_t from = dr_rng_bits(&rng) & 1 ? HEADER : 0;
            uint32_t at = from + dr_rng_below(&rng, (uint32_t)length - from);
            bytes[at] = (char)dr_rng_bits(&rng);
        }
        if (read_plan(bytes, length) == DR_OK)
            read++;
        else
            refused++;
    }
    assert_true(read > 500 && refused > 5000); // both ways were taken
    free(bytes);
    dr_buf_reset(&good);
}

static void test_random_bytes(void **state) {
    (void)state;
    dr_rng rng = dr_rng_make(31, 2);
    char bytes[256];
    quiet();
    for (int i = 0; i < 20000; i++) {
        size_t length = dr_rng_below(&rng, sizeof bytes + 1);
        for (size_t k = 0; k < length; k++) bytes[k] = (char)dr_rng_bits(&rng);
        if (i % 2 && length >= HEADER) { // with a header that is right
            dr_message_header header = {.magic = DR_MESSAGE_MAGIC,
                                        .version = DR_MESSAGE_VERSION,
                                        .type = DR_MSG_PLAN,
                                        .bytes = length - HEADER};
            memcpy(bytes, &header, sizeof header);
            if (length >= HEADER + 4) bytes[HEADER + 2] = bytes[HEADER + 3] = 0; // and a count that may be
        }
        read_plan(bytes, length);
    }
    assert_int_equal(read_plan("", 0), DR_ERR_FORMAT);
}

static void check_bad_header(size_t at, const void *bytes, size_t n, const char *text) {
    dr_buf out = {0};
    dr_message_header header = {.sequence = 77};
    dr_reader reader = {.at = 5};
    make_plan(&out);
    memcpy(out.data + at, bytes, n);
    check_error(dr_message_open(out.data, out.length, &header, &reader), DR_ERR_FORMAT, text);
    assert_true(header.sequence == 77 && reader.at == 5); // outputs only on success
    dr_buf_reset(&out);
}

static void test_bad_headers(void **state) {
    (void)state;
    const uint16_t two = 2, none = 0, next = DR_MSG_TYPES;
    const uint32_t one = 1;
    const uint64_t huge = UINT64_MAX;
    quiet();
    check_bad_header(0, "X", 1, "magic");
    check_bad_header(4, &two, 2, "version 2");
    check_bad_header(6, &none, 2, "unknown type 0");
    check_bad_header(6, &next, 2, "unknown type 15");
    check_bad_header(8, &huge, 8, "its header says 18446744073709551615");
    check_bad_header(28, &one, 4, NULL); // reserved
}

// A count is believed only when the payload can hold that many.
static void test_counts(void **state) {
    (void)state;
    dr_buf out = {0}, text = {0};
    const uint32_t bad[] = {5, 6, 1000, 0x80000000, UINT32_MAX};
    quiet();
    for (size_t i = 0; i <= sizeof bad / sizeof *bad; i++) {
        dr_message_header header;
        dr_reader reader;
        uint32_t count = 99;
        check_ok(dr_message_begin(&out, DR_MSG_CREDIT, 0));
        check_ok(dr_put_u32(&out, i == 0 ? 4 : bad[i - 1]));
        for (int k = 0; k < 17; k++) check_ok(dr_buf_append(&out, "y", 1)); // four of 4 bytes and one byte
        dr_message_finish(&out, 0, 0);
        check_ok(dr_message_open(out.data, out.length, &header, &reader));
        if (i == 0) {
            check_ok(dr_get_count(&reader, 4, &count));
            assert_int_equal(count, 4);
            continue;
        }
        check_error(dr_get_count(&reader, 4, &count), DR_ERR_FORMAT, "message credit: a count of");
        assert_int_equal(count, 99);
        check_ok(dr_message_open(out.data, out.length, &header, &reader));
        if (bad[i - 1] <= 17) continue;
        check_ok(dr_buf_text(&text, ""));
        check_error(dr_get_text(&reader, &text), DR_ERR_FORMAT, "a count of"); // lengths of texts too
        assert_int_equal(text.length, 0);
    }
    dr_buf_reset(&out);
    dr_buf_reset(&text);
}

static void test_short_payloads(void **state) {
    (void)state;
    dr_buf out = {0}, text = {0};
    dr_message_header header;
    dr_reader reader;
    uint32_t word = 1;
    uint64_t wide = 2;
    float real = 3;
    double twice = 4;
    quiet();
    check_ok(dr_message_begin(&out, DR_MSG_DONE, 0));
    check_ok(dr_buf_append(&out, "abc", 3));
    dr_message_finish(&out, 0, 0);
    check_ok(dr_message_open(out.data, out.length, &header, &reader));
    check_error(dr_get_u32(&reader, &word), DR_ERR_FORMAT, "message done: ends at byte 43, 1 more");
    check_error(dr_get_u64(&reader, &wide), DR_ERR_FORMAT, "5 more");
    check_error(dr_get_f32(&reader, &real), DR_ERR_FORMAT, "1 more");
    check_error(dr_get_f64(&reader, &twice), DR_ERR_FORMAT, "5 more");
    check_error(dr_get_text(&reader, &text), DR_ERR_FORMAT, "1 more");
    assert_true(word == 1 && wide == 2 && real == 3 && twice == 4 && text.length == 0);
    check_error(dr_reader_end(&reader), DR_ERR_FORMAT, "3 bytes too many");
    dr_buf_reset(&out);
}

// ---- the in-process channel ----

static void send_number(dr_channel *from, int to, uint32_t number) {
    check_ok(from->ops->send(from, to, &number, sizeof number));
}

// Every pair, itself included, many messages, taken in an order that mixes everything.
static void test_loopback_order(void **state) {
    (void)state;
    enum { N = 9, EACH = 40 };
    dr_channel *ends[N];
    uint32_t sent[N][N] = {{0}}, seen[N][N] = {{0}};
    dr_rng rng = dr_rng_make(32, 1);
    dr_buf in = {0};
    int64_t waiting = 0, taken = 0;
    check_ok(dr_loopback_create(N, ends));
    for (int r = 0; r < N; r++) assert_true(ends[r]->rank == r && ends[r]->size == N);
    while (taken < N * N * EACH) {
        int from = (int)dr_rng_below(&rng, N), to = (int)dr_rng_below(&rng, N), sender = -7;
        if (sent[from][to] < EACH) {
            send_number(ends[from], to, sent[from][to]++);
            waiting++;
        }
        check_ok(ends[to]->ops->poll(ends[to], &sender, &in));
        if (sender < 0) {
            assert_int_equal(sender, -1);
            continue;
        }
        uint32_t number = 0;
        assert_true(sender < N);
        assert_int_equal(in.length, sizeof number);
        memcpy(&number, in.data, sizeof number);
        assert_int_equal(number, seen[sender][to]);
        seen[sender][to]++;
        taken++;
        assert_true(--waiting >= 0);
        assert_int_equal(ends[to]->ops->pending_sends(ends[to]), 0);
    }
    for (int r = 0; r < N; r++) {
        int sender = 0;
        check_ok(ends[r]->ops->poll(ends[r], &sender, &in));
        assert_int_equal(sender, -1); // nobody got anything twice
    }
    for (int r = 0; r < N; r++) ends[r]->ops->destroy(ends[r]);
    dr_buf_reset(&in);
}

static void test_loopback_edges(void **state) {
    (void)state;
    dr_channel *ends[2];
    dr_buf in = {0};
    int from = 5;
    quiet();
    check_error(dr_loopback_create(0, ends), DR_ERR_ARGUMENT, "0 endpoints");
    check_ok(dr_loopback_create(2, ends));
    check_ok(ends[0]->ops->poll(ends[0], &from, &in));
    assert_int_equal(from, -1);
    check_error(ends[0]->ops->send(ends[0], 2, "x", 1), DR_ERR_ARGUMENT, "no endpoint 2 of 2");
    check_error(ends[0]->ops->send(ends[0], -1, "x", 1), DR_ERR_ARGUMENT, "no endpoint -1");
    check_ok(ends[0]->ops->send(ends[0], 1, "", 0)); // a message without bytes is a message
    char last[] = "bytes are copied";
    check_ok(ends[0]->ops->send(ends[0], 1, last, sizeof last));
    memset(last, '!', sizeof last);
    check_ok(dr_buf_text(&in, "left over"));
    check_ok(ends[1]->ops->poll(ends[1], &from, &in));
    assert_int_equal(from, 0);
    assert_int_equal(in.length, 0);
    check_ok(ends[1]->ops->poll(ends[1], &from, &in));
    assert_int_equal(from, 0);
    assert_string_equal(in.data, "bytes are copied");
    assert_int_equal(in.length, sizeof last);
    check_ok(ends[1]->ops->poll(ends[1], &from, &in));
    assert_int_equal(from, -1);
    // what nobody takes is freed with the last endpoint, whichever goes first
    check_ok(ends[1]->ops->send(ends[1], 0, last, sizeof last));
    ends[0]->ops->destroy(ends[0]);
    check_ok(ends[1]->ops->send(ends[1], 0, last, sizeof last));
    ends[1]->ops->destroy(ends[1]);
    dr_buf_reset(&in);
}

static void test_loopback_large(void **state) {
    (void)state;
    const size_t length = ((size_t)24 << 20) + 13;
    dr_channel *ends[2];
    dr_buf in = {0};
    int from = -1;
    char *bytes = malloc(length);
    dr_rng rng = dr_rng_make(32, 2);
    uint32_t word = 0;
    for (size_t i = 0; i < length; i++) bytes[i] = (char)((word = word * 1664525u + 1013904223u) >> 24);
    check_ok(dr_loopback_create(2, ends));
    send_number(ends[1], 0, 1);
    check_ok(ends[1]->ops->send(ends[1], 0, bytes, length));
    send_number(ends[1], 0, dr_rng_bits(&rng));
    for (int i = 0; i < 3; i++) {
        check_ok(ends[0]->ops->poll(ends[0], &from, &in));
        assert_int_equal(from, 1);
        assert_int_equal(in.length, i == 1 ? length : 4);
        if (i == 1) assert_int_equal(memcmp(in.data, bytes, length), 0);
    }
    ends[0]->ops->destroy(ends[0]);
    ends[1]->ops->destroy(ends[1]);
    dr_buf_reset(&in);
    free(bytes);
}

// ---- shards ----

// Every value has one owner, whatever the sizes; shards follow each other and are equal but for the last.
static void test_shards(void **state) {
    (void)state;
    enum { M = DR_SHARD_MULTIPLE };
    static const int64_t around[] = {0, 1, M, 2 * M, 3 * M, 7 * M, 64 * M, (int64_t)1 << 33};
    for (size_t a = 0; a < sizeof around / sizeof *around; a++)
        for (int64_t n = around[a] > 2 ? around[a] - 2 : 0; n <= around[a] + 2; n++)
            for (int size = 1; size <= 67; size++) {
                int64_t at = 0, each = dr_shard_of(n, 0, size).end;
                for (int rank = 0; rank < size; rank++) {
                    dr_shard s = dr_shard_of(n, rank, size);
                    int64_t want = n - at < each ? n - at : each;
                    if (s.begin != at || s.end != at + want)
                        fail_msg("%lld values: rank %d of %d has %lld to %lld", (long long)n, rank, size,
                                 (long long)s.begin, (long long)s.end);
                    assert_true(s.begin % M == 0 || s.begin == n);
                    if (s.begin < s.end) assert_int_equal(dr_shard_owner(n, s.begin, size), rank);
                    if (s.begin < s.end) assert_int_equal(dr_shard_owner(n, s.end - 1, size), rank);
                    at = s.end;
                }
                assert_true(at == n);
                assert_true(each * size - n < (int64_t)size * M); // rounded up by less than a multiple each
            }
}

// Pieces of a shard follow each other from its end to its beginning; all but the last have the size asked
// for.
static void test_pieces(void **state) {
    (void)state;
    for (int64_t length = 0; length < 40; length++)
        for (int64_t most = 1; most < 45; most++) {
            dr_shard whole = {1000, 1000 + length};
            int64_t at = whole.end, k = 0;
            for (; at > whole.begin; k++) {
                dr_shard piece = dr_shard_piece(whole, k, most);
                assert_true(piece.end == at && piece.begin >= whole.begin);
                assert_true(at - piece.begin == most ||
                            (at - piece.begin < most && piece.begin == whole.begin));
                assert_true(piece.begin < at);
                at = piece.begin;
            }
            for (int64_t behind = k; behind < k + 3; behind++) {
                dr_shard none = dr_shard_piece(whole, behind, most);
                assert_true(none.begin == whole.begin && none.end == whole.begin);
            }
        }
}

// ---- the collective of one ----

static void test_alone(void **state) {
    (void)state;
    dr_collective *alone = NULL;
    float values[5] = {1, -0.0f, 1e-42f, NAN, 3}, kept[5];
    double doubles[3] = {1, 1e300, -2}, kept_doubles[3];
    char bytes[4] = "abc";
    memcpy(kept, values, sizeof kept);
    memcpy(kept_doubles, doubles, sizeof kept_doubles);
    check_ok(dr_collective_alone_create(&alone));
    assert_true(alone->rank == 0 && alone->size == 1 && alone->deadline_s > 0);
    check_ok(alone->ops->reduce_scatter_begin(alone, values, 5, 2));
    check_ok(alone->ops->reduce_scatter_sum(alone, values, 5));
    check_ok(alone->ops->reduce_scatter_sum(alone, values, 0));
    check_ok(alone->ops->all_gather(alone, values, &(dr_shard){0, 20}));
    check_ok(alone->ops->all_gather_host(alone, doubles, &(dr_shard){8, 16}));
    check_ok(alone->ops->allreduce_sum_double(alone, doubles, 3));
    check_ok(alone->ops->broadcast(alone, bytes, 4, 0));
    check_same_bits("sum of one", values, kept, 5);
    assert_memory_equal(doubles, kept_doubles, sizeof doubles);
    assert_string_equal(bytes, "abc");
    alone->ops->destroy(alone);
}

#define quiet_test(function) cmocka_unit_test_teardown(function, loud)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),   cmocka_unit_test(test_every_put_and_get),
        cmocka_unit_test(test_names),    quiet_test(test_truncations),
        quiet_test(test_mutations),      quiet_test(test_random_bytes),
        quiet_test(test_bad_headers),    quiet_test(test_counts),
        quiet_test(test_short_payloads), cmocka_unit_test(test_loopback_order),
        quiet_test(test_loopback_edges), cmocka_unit_test(test_loopback_large),
        cmocka_unit_test(test_shards),   cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
