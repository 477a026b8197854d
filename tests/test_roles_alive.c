// Worker and coordinator as roles on their own: heartbeats go out from within their long work, piece by
// piece; a new frozen policy comes when the one before has gone.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/log.h"
#include "core/comm/message.h"
#include "core/learn/checkpoint.h"
#include "mpi/run.h"
#include "tests/tiny_rollout.h"

enum { COORDINATOR, SHARD, WORKER, ENDPOINTS, SAMPLES = 3, MOST = TINY_USERS * SAMPLES, MOST_LIVE = 64 };
static const dr_layout layout = {.n_shards = 1, .n_workers = 1};
static const double EVERY_TIME_S = 1e-6; // a deadline of which each piece of work is worth a heartbeat

static dr_channel *channels[ENDPOINTS];
static dr_backend *plain, counting; // of the policy
static dr_backend_ops counting_ops;
static void *flat[MOST_LIVE]; // flat fp32 parameters that are there
static int n_flat, most_flat;
static int n_told; // learners that this one would have told
static dr_collective *alone, learners;
static dr_collective_ops learner_ops;
static dr_run_settings settings;
static dr_run_assets assets;
static dr_trajectory rolled[MOST];
static const char *run_dir;

// ---- what the roles stand on ----

static dr_status count_create(dr_backend *b, const char *label, size_t bytes, void **out_memory) {
    (void)b;
    DR_TRY(plain->ops->memory_create(plain, label, bytes, out_memory));
    if (strcmp(label, "parameters") != 0) return DR_OK;
    assert_true(n_flat < MOST_LIVE);
    flat[n_flat++] = *out_memory;
    if (n_flat > most_flat) most_flat = n_flat;
    return DR_OK;
}

static void count_destroy(dr_backend *b, void *memory) {
    (void)b;
    for (int i = 0; memory && i < n_flat; i++)
        if (flat[i] == memory) flat[i] = flat[--n_flat];
    plain->ops->memory_destroy(plain, memory);
}

static dr_status count_alive(dr_collective *c) {
    (void)c;
    n_told++;
    return DR_OK;
}

static void open_parts(dr_precision precision) {
    check_ok(dr_loopback_create(ENDPOINTS, channels));
    check_ok(dr_backend_cpu_create(precision, 1, &plain));
    counting = *plain;
    counting_ops = *plain->ops;
    counting_ops.memory_create = count_create;
    counting_ops.memory_destroy = count_destroy;
    counting.ops = &counting_ops;
    check_ok(dr_collective_alone_create(&alone));
    learners = *alone;
    learner_ops = *alone->ops;
    learner_ops.alive = count_alive;
    learners.ops = &learner_ops;
    run_dir = check_scratch_dir();
    settings = (dr_run_settings){.dir = run_dir,
                                 .config_hash = "hash",
                                 .seed = 5,
                                 .deadline_s = EVERY_TIME_S,
                                 .sampling = {1.0f, 0.95f},
                                 .loss = {.temperature = 1.0f,
                                          .clip_low = 0.2f,
                                          .clip_high = 0.28f,
                                          .kl = DR_KL_K3,
                                          .kl_weight = 0.1f},
                                 .optimizer = {0.9f, 0.95f, 1e-8f, 0, 1},
                                 .pack_tokens = 64,
                                 .policy_dir = run_dir};
    settings.stages[0] = (dr_stage_settings){.name = "first", .steps = 9, .prompts = 2, .samples = SAMPLES};
    n_told = 0;
}

static void close_parts(void) {
    for (int e = 0; e < ENDPOINTS; e++) channels[e]->ops->destroy(channels[e]);
    alone->ops->destroy(alone);
    dr_backend_cpu_destroy(plain);
}

// One look of a role for messages, as the loop that drives it does it.
static void poll(dr_role *role) {
    bool worked = false;
    dr_alive_listen(&role->alive);
    check_ok(role->ops->poll(role, &worked));
    dr_alive_listen(NULL);
}

static void send(int from, int to, dr_message_type type, uint32_t step, const dr_buf *payload) {
    dr_buf out = {0};
    check_ok(dr_message_begin(&out, type, step));
    if (payload) check_ok(dr_buf_append(&out, payload->data, payload->length));
    dr_message_finish(&out, 1, 1);
    check_ok(channels[from]->ops->send(channels[from], to, out.data, out.length));
    dr_buf_reset(&out);
}

// Takes what has come to endpoint `at`, up to a message that is no heartbeat: its type, 0 for none, and its
// bytes in *in; *out_beats of heartbeats.
static uint16_t next_message(int at, int *out_beats, dr_buf *in) {
    *out_beats = 0;
    for (int from = 0;; ++*out_beats) {
        dr_message_header header;
        dr_reader reader;
        check_ok(channels[at]->ops->poll(channels[at], &from, in));
        if (from < 0) return 0;
        check_ok(dr_message_open(in->data, in->length, &header, &reader));
        if (header.type != DR_MSG_HEARTBEAT) return header.type;
    }
}

// The coordinator hears an answer of this type after heartbeats; `value` (or NULL): number `place` of its
// doubles.
static int beats_before(uint16_t type, int place, double *value) {
    dr_buf in = {0};
    int beats = 0;
    assert_int_equal(next_message(COORDINATOR, &beats, &in), type);
    if (value)
        memcpy(value, in.data + sizeof(dr_message_header) + (size_t)place * sizeof *value, sizeof *value);
    dr_buf_reset(&in);
    return beats;
}

// ---- a worker ----

static int roll_out(dr_role *worker) {
    dr_buf payload = {0}, in = {0};
    int n = 0, beats = 0;
    check_ok(dr_put_u32(&payload, SAMPLES));
    check_ok(dr_put_u32(&payload, TINY_USERS));
    for (uint32_t u = 0; u < TINY_USERS; u++)
        for (int i = 0; i < 3; i++) check_ok(dr_put_u32(&payload, i < 2 ? u : 3)); // prompt, user, target
    send(COORDINATOR, WORKER, DR_MSG_PLAN, 1, &payload);
    while (n < MOST) {
        poll(worker);
        while (next_message(SHARD, &beats, &in) == DR_MSG_TRAJECTORY)
            check_ok(dr_trajectory_decode(in.data + sizeof(dr_message_header),
                                          in.length - sizeof(dr_message_header), &rolled[n++]));
    }
    next_message(COORDINATOR, &beats, &in);
    dr_buf_reset(&payload);
    dr_buf_reset(&in);
    return n;
}

// One update from all trajectories, with the frozen policy of `dir`; gives heartbeats, and the penalty.
static int train(dr_role *worker, const char *dir, double *out_kl) {
    enum { KL = 6 }; // its place among the sums
    dr_buf payload = {0};
    check_ok(dr_put_text(&payload, dir));
    check_ok(dr_put_u32(&payload, 1));
    check_ok(dr_put_f32(&payload, 1e-3f));
    check_ok(dr_put_u32(&payload, MOST));
    for (int i = 0; i < MOST; i++) {
        check_ok(dr_put_u32(&payload, rolled[i].prompt));
        check_ok(dr_put_u32(&payload, rolled[i].sample));
        check_ok(dr_put_f32(&payload, i % 2 ? 1.0f : -1.0f));
        check_ok(dr_put_f32(&payload, 0.01f));
    }
    send(COORDINATOR, WORKER, DR_MSG_TRAIN, 1, &payload);
    poll(worker);
    dr_buf_reset(&payload);
    return beats_before(DR_MSG_TRAINED, KL, out_kl);
}

// The worker's part of a checkpoint, made a whole one, and loaded; gives heartbeats of both.
static void save_and_load(dr_role *worker, const dr_lm_config *config, int out_beats[2]) {
    dr_checkpoint_file file = {0};
    dr_checkpoint_info info = {.step = 1, .updates = 2, .n_files = 1, .files = &file};
    dr_buf in = {0}, text = {0};
    dr_message_header header;
    dr_reader reader;
    uint32_t part = 9;
    uint64_t bytes = 0;
    char *dir = NULL;
    check_ok(dr_checkpoint_dir(run_dir, 1, &dir));
    send(COORDINATOR, WORKER, DR_MSG_SAVE, 1, NULL);
    poll(worker);
    assert_int_equal(next_message(COORDINATOR, &out_beats[0], &in), DR_MSG_SAVED);
    check_ok(dr_message_open(in.data, in.length, &header, &reader));
    check_ok(dr_get_u32(&reader, &part));
    check_ok(dr_get_text(&reader, &text));
    snprintf(file.name, sizeof file.name, "%s", text.data);
    check_ok(dr_get_u64(&reader, &bytes));
    file.bytes = (int64_t)bytes;
    check_ok(dr_get_text(&reader, &text));
    snprintf(file.digest, sizeof file.digest, "%s", text.data);
    check_ok(dr_checkpoint_commit(config, dir, &info));
    send(COORDINATOR, WORKER, DR_MSG_LOAD, 1, NULL);
    poll(worker);
    out_beats[1] = beats_before(DR_MSG_DONE, 0, NULL);
    dr_buf_reset(&in);
    dr_buf_reset(&text);
    dr_free(dir);
}

static void check_worker(dr_precision precision) {
    const char *first = check_scratch_dir(), *second = check_scratch_dir(), *exported = check_scratch_dir();
    dr_lm *lm = NULL;
    dr_role *worker = NULL;
    dr_buf payload = {0};
    double kl = -1;
    open_parts(precision);
    n_flat = most_flat = 0;
    check_ok(tiny_policy(&counting, tokenizer, &lm));
    check_ok(dr_lm_save(lm, first, DR_SAVE_FP32));
    check_ok(dr_lm_save(lm, second, DR_SAVE_FP32));
    assets = (dr_run_assets){.rollout = tiny_rollout_parts(lm), .backend = &counting};
    check_ok(dr_worker_create(&settings, &assets, &layout, channels[WORKER], &learners, &worker));
    const int n_layers = dr_lm_config_of(lm)->n_layers;
    const dr_lm_tensor *tensors;
    int32_t n_tensors = dr_lm_tensors(lm, &tensors);
    assert_int_equal(roll_out(worker), MOST);

    n_told = 0;
    int beats = train(worker, first, &kl);
    assert_true(kl == 0); // the same policy, frozen: the same bits
    assert_true(beats >= MOST / 4 * 3 * n_layers && n_told >= MOST / 4 * 3 * n_layers);
    train(worker, second, &kl);
    assert_true(kl != 0);                       // the policy has learned
    assert_true(most_flat == 2 && n_flat == 2); // it, and what the frozen one keeps, one at a time

    int both[2] = {0};
    save_and_load(worker, dr_lm_config_of(lm), both);
    enum { SHARES = 3 }; // of weights and both moments, which are no longer than a piece here
    assert_true(both[0] >= SHARES && both[1] >= SHARES);
    check_ok(dr_put_text(&payload, exported));
    send(COORDINATOR, WORKER, DR_MSG_EXPORT, 1, &payload);
    poll(worker);
    assert_true(beats_before(DR_MSG_DONE, 0, NULL) >= n_tensors);
    worker->ops->destroy(worker);
    dr_buf_reset(&payload);
    for (int i = 0; i < MOST; i++) dr_trajectory_reset(&rolled[i]);
    dr_lm_destroy(lm);
    assert_int_equal(n_flat, 0);
    close_parts();
}

static void test_worker(void **state) {
    (void)state;
    check_worker(DR_FP32);
    check_worker(DR_BF16);
}

// ---- the coordinator ----

// A checkpoint of some MiB by one learner; gives its pieces of a MiB.
static int make_checkpoint(void) {
    dr_lm_config config;
    dr_lm *lm = NULL;
    dr_optimizer *optimizer = NULL;
    dr_checkpoint_file file;
    char *dir = NULL;
    check_ok(dr_lm_preset("small", 2000, &config));
    check_ok(dr_lm_create(plain, &config, 3, &lm));
    check_ok(dr_optimizer_create(lm, &settings.optimizer, NULL, &optimizer));
    check_ok(dr_checkpoint_dir(run_dir, 4, &dir));
    check_ok(dr_checkpoint_write_part(lm, optimizer, dir, 0, 1, &file));
    dr_checkpoint_info info = {.step = 4, .updates = 8, .n_files = 1, .files = &file};
    check_ok(dr_checkpoint_commit(&config, dir, &info));
    dr_free(dir);
    dr_optimizer_destroy(optimizer);
    dr_lm_destroy(lm);
    return (int)(file.bytes >> 20);
}

// Finding a checkpoint reads it, once, and the others hear of every MiB.
static void test_coordinator(void **state) {
    (void)state;
    dr_role *coordinator = NULL;
    dr_buf in = {0};
    int beats = 0;
    open_parts(DR_FP32);
    int pieces = make_checkpoint();
    assert_true(pieces > 20);
    settings.resume = true;
    assets = (dr_run_assets){.rollout = tiny_rollout_parts(NULL)};
    check_ok(dr_coordinator_create(&settings, &assets, &layout, channels[COORDINATOR], &coordinator));
    poll(coordinator);
    assert_int_equal(next_message(WORKER, &beats, &in), DR_MSG_LOAD);
    if (beats < pieces || beats >= 2 * pieces) fail_msg("%d heartbeats, %d pieces", beats, pieces);
    next_message(SHARD, &beats, &in);
    assert_true(beats >= pieces);
    coordinator->ops->destroy(coordinator);
    dr_buf_reset(&in);
    close_parts();
}

// ---- silence ----

// Own work is no silence of others: nothing of it counts, and what was silent before goes on counting.
static void test_excuse(void **state) {
    (void)state;
    dr_mailbox box;
    check_ok(dr_loopback_create(ENDPOINTS, channels));
    check_ok(dr_mailbox_init(&box, channels[WORKER], "test", 100));
    check_ok(dr_mailbox_beat(&box, 0, 0)); // silence counts from here on
    check_ok(dr_mailbox_watch(&box, 0, 1, "first"));
    double now = box.beat;
    box.heard[0] = now - 300; // 250 of them its own work
    box.heard[1] = now - 150;
    dr_mailbox_excuse(&box, now - 250);
    check_ok(dr_mailbox_watch(&box, 0, 0, "second"));
    check_ok(dr_mailbox_watch(&box, 1, 1, "second"));
    assert_true(box.heard[0] > now - 51 && box.heard[0] < now - 49 && box.heard[1] >= now);
    box.heard[0] -= 60;
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_error(dr_mailbox_watch(&box, 0, 0, "third"), DR_ERR_TIMEOUT,
                "phase third: endpoint 0 has been silent for 110 s");
    dr_log_set_level(DR_LOG_INFO);
    dr_mailbox_reset(&box);
    for (int e = 0; e < ENDPOINTS; e++) channels[e]->ops->destroy(channels[e]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worker),
        cmocka_unit_test(test_coordinator),
        cmocka_unit_test(test_excuse),
    };
    return cmocka_run_group_tests(tests, tiny_rollout_setup, tiny_rollout_teardown);
}
