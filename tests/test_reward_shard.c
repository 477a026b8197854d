// The reward shard as a role on its own: trajectories that overtake their step's announcement wait for it.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/log.h"
#include "core/comm/channel.h"
#include "core/comm/message.h"
#include "mpi/run.h"
#include "tests/tiny_catalogue.h"
#include "tests/tiny_policy.h"

enum { COORDINATOR, SHARD, WORKER, ENDPOINTS };

static dr_dataset data;
static dr_tokenizer *tokenizer;
static dr_template *compact;
static dr_channel *channels[ENDPOINTS];
static dr_role *shard;
static dr_run_settings settings;
static dr_run_assets assets;

static int setup(void **state) {
    (void)state;
    const dr_layout layout = {.n_shards = 1, .n_workers = 1};
    data = tiny_catalogue();
    check_ok(tiny_tokenizer(&tokenizer));
    check_ok(dr_template_load("compact", &compact));
    check_ok(dr_loopback_create(ENDPOINTS, channels));
    settings = (dr_run_settings){.dir = "unused", .deadline_s = 60};
    for (int s = 0; s < DR_STAGES; s++) {
        settings.stages[s].samples = 2;
        settings.stages[s].reward = dr_reward_defaults((dr_stage)s);
    }
    assets.rollout = (dr_rollout_parts){.tokenizer = tokenizer, .dataset = &data, .prompt_template = compact};
    check_ok(dr_reward_shard_create(&settings, &assets, &layout, channels[SHARD], &shard));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    shard->ops->destroy(shard);
    for (int i = 0; i < ENDPOINTS; i++) channels[i]->ops->destroy(channels[i]);
    dr_template_destroy(compact);
    dr_tokenizer_destroy(tokenizer);
    tiny_catalogue_reset(&data);
    return 0;
}

static void send(int from, dr_message_type type, uint32_t step, const dr_buf *payload) {
    dr_buf out = {0};
    check_ok(dr_message_begin(&out, type, step));
    if (payload) check_ok(dr_buf_append(&out, payload->data, payload->length));
    dr_message_finish(&out, 1, 1);
    check_ok(channels[from]->ops->send(channels[from], SHARD, out.data, out.length));
    dr_buf_reset(&out);
}

static void send_number(dr_message_type type, uint32_t step, uint32_t number) {
    dr_buf payload = {0};
    check_ok(dr_put_u32(&payload, number));
    send(COORDINATOR, type, step, &payload);
    dr_buf_reset(&payload);
}

static void send_trajectory(uint32_t step, uint32_t prompt, uint32_t sample) {
    static const char text[] = "<think>a</think>";
    dr_trajectory t = {
        .seed = 1, .step = step, .prompt = prompt, .sample = sample, .target = 3, .stop = DR_STOP_EOS};
    int32_t *ids = NULL;
    int64_t n = 0, capacity = 0;
    dr_buf payload = {0};
    check_ok(dr_tokenizer_encode(tokenizer, text, sizeof text - 1, true, &ids, &n, &capacity));
    check_ok(dr_trajectory_append(&t, ids, (int32_t)n, DR_FROM_POLICY, 0, NULL, NULL));
    check_ok(dr_trajectory_encode(&t, &payload));
    send(WORKER, DR_MSG_TRAJECTORY, step, &payload);
    dr_buf_reset(&payload);
    dr_trajectory_reset(&t);
    dr_free(ids);
}

// Until the shard has nothing more to do; the first failure ends it.
static dr_status work(void) {
    for (bool worked = true; worked;) {
        worked = false;
        DR_TRY(shard->ops->poll(shard, &worked));
    }
    return DR_OK;
}

// The next message at the coordinator but heartbeats; false when there is none.
static bool next_message(dr_message_header *out_header, uint32_t *out_first) {
    dr_buf in = {0};
    bool found = false;
    for (int from = 0; !found;) {
        dr_reader reader;
        check_ok(channels[COORDINATOR]->ops->poll(channels[COORDINATOR], &from, &in));
        if (from < 0) break;
        check_ok(dr_message_open(in.data, in.length, out_header, &reader));
        found = out_header->type != DR_MSG_HEARTBEAT;
        if (found && out_header->type == DR_MSG_SCORED) check_ok(dr_get_u32(&reader, out_first));
    }
    dr_buf_reset(&in);
    return found;
}

static void check_scored(uint32_t step, uint32_t n) {
    dr_message_header header;
    uint32_t found = 0;
    assert_true(next_message(&header, &found));
    assert_int_equal(header.type, DR_MSG_SCORED);
    assert_int_equal(header.step, step);
    assert_int_equal(found, n);
}

static void check_silent(void) {
    dr_message_header header;
    uint32_t first;
    assert_false(next_message(&header, &first));
}

static void check_done(uint32_t step) {
    dr_message_header header;
    uint32_t first;
    send_number(DR_MSG_CREDIT, step, 0);
    check_ok(work());
    assert_true(next_message(&header, &first));
    assert_true(header.type == DR_MSG_DONE && header.step == step);
}

static void test_in_order(void **state) {
    (void)state;
    send_number(DR_MSG_EXPECT, 5, 0);
    send_trajectory(5, 2, 1);
    check_ok(work());
    check_silent(); // half a group
    send_trajectory(5, 2, 0);
    check_ok(work());
    check_scored(5, 2);
    check_done(5);
}

static void test_overtaken(void **state) {
    (void)state;
    send_number(DR_MSG_EXPECT, 5, 0);
    send_trajectory(7, 9, 1); // two steps ahead
    send_trajectory(6, 3, 0);
    send_trajectory(6, 4, 0);
    send_trajectory(6, 4, 1);
    check_ok(work());
    check_silent();
    check_done(5);
    send_number(DR_MSG_EXPECT, 6, 1);
    check_ok(work());
    check_scored(6, 2); // prompt 4 was whole
    check_silent();
    send_trajectory(6, 3, 1);
    check_ok(work());
    check_scored(6, 2);
    check_done(6);
    send_number(DR_MSG_EXPECT, 7, 1);
    send_trajectory(7, 9, 0);
    check_ok(work());
    check_scored(7, 2);
    check_done(7);
    send_trajectory(9, 1, 0); // stays, and is freed with the shard
    check_ok(work());
}

static void test_late(void **state) {
    (void)state;
    send_number(DR_MSG_EXPECT, 7, 1);
    send_trajectory(6, 3, 0);
    dr_log_set_level(DR_LOG_ERROR + 1);
    check_error(work(), DR_ERR_PEER, "a trajectory of step 6 in step 7");
    dr_log_set_level(DR_LOG_INFO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_overtaken, setup, teardown),
        cmocka_unit_test_setup_teardown(test_late, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
