// Which worker takes which device, over tables of nodes and devices as launchers make them.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/comm/device_binding.h"

enum { MOST = 8, A = 0x1000, B = 0x2000, C = 0x3000 };

// One worker a row: its node, and the devices that it sees; 0 ends them.
typedef struct row {
    int32_t node;
    int64_t devices[4];
} row;

static dr_device_binding bound[MOST];

static void bind(const row *rows, int n) {
    dr_seen_devices seen[MOST];
    memset(seen, 0, sizeof seen);
    for (int w = 0; w < n; w++) {
        seen[w].node = rows[w].node;
        for (; seen[w].n < 4 && rows[w].devices[seen[w].n] != 0; seen[w].n++)
            seen[w].bus_id[seen[w].n] = rows[w].devices[seen[w].n];
    }
    dr_devices_bind(seen, n, bound);
}

#define BIND(...)                                                                                            \
    do {                                                                                                     \
        static const row rows_[] = {__VA_ARGS__};                                                            \
        bind(rows_, (int)(sizeof rows_ / sizeof *rows_));                                                    \
    } while (0)

static void check_worker(int w, int device, int n_sharing, int n_here, int n_devices_here) {
    const dr_device_binding *b = &bound[w];
    if (b->device != device || b->n_sharing != n_sharing || b->n_here != n_here ||
        b->n_devices_here != n_devices_here)
        fail_msg("worker %d: device %d shared by %d, %d workers and %d devices here; expected %d, %d, %d, %d",
                 w, b->device, b->n_sharing, b->n_here, b->n_devices_here, device, n_sharing, n_here,
                 n_devices_here);
}

static void check_run(int n_without, int n_shared) {
    assert_int_equal(bound[0].n_without, n_without);
    assert_int_equal(bound[0].n_shared, n_shared);
}

static void test_block(void **state) {
    (void)state;
    BIND({0, {A, B}}, {0, {A, B}}, {2, {A, B}}, {2, {A, B}}); // two nodes have the same bus ids
    for (int w = 0; w < 4; w++) check_worker(w, w % 2, 1, 2, 2);
    check_run(0, 0);
}

static void test_cyclic(void **state) {
    (void)state;
    BIND({0, {A, B}}, {1, {A, B}}, {0, {A, B}}, {1, {A, B}});
    for (int w = 0; w < 4; w++) check_worker(w, w / 2, 1, 2, 2);
    check_run(0, 0);
}

// As Slurm's --gpus-per-task=1 or a launcher's CUDA_VISIBLE_DEVICES do it: all call theirs device 0.
static void test_one_visible_each(void **state) {
    (void)state;
    BIND({0, {B}}, {0, {A}}, {0, {C}});
    for (int w = 0; w < 3; w++) check_worker(w, 0, 1, 3, 3);
    check_run(0, 0);
}

static void test_overlapping_sets(void **state) {
    (void)state;
    BIND({0, {A, B}}, {0, {A}}); // who has no choice goes first
    check_worker(0, 1, 1, 2, 2);
    check_worker(1, 0, 1, 2, 2);
    BIND({0, {A, B}}, {0, {B, A}}); // the same devices under other numbers
    check_worker(0, 0, 1, 2, 2);
    check_worker(1, 0, 1, 2, 2);
    BIND({0, {B, A}}, {0, {B, A}}, {0, {C, B, A}});
    check_worker(0, 0, 1, 3, 3);
    check_worker(1, 1, 1, 3, 3);
    check_worker(2, 0, 1, 3, 3);
    check_run(0, 0);
}

static void test_shared(void **state) {
    (void)state;
    BIND({0, {A, B}}, {0, {A, B}}, {0, {A, B}}, {1, {A}});
    check_worker(0, 0, 2, 3, 2);
    check_worker(1, 1, 1, 3, 2);
    check_worker(2, 0, 2, 3, 2);
    check_worker(3, 0, 1, 1, 1);
    check_run(0, 2);
    BIND({0, {A}}, {0, {A}}); // each sees one, and it is the same
    check_worker(0, 0, 2, 2, 1);
    check_worker(1, 0, 2, 2, 1);
    check_run(0, 2);
}

static void test_without(void **state) {
    (void)state;
    BIND({0, {0}}, {0, {A}}, {1, {0}});
    check_worker(0, -1, 0, 2, 1);
    check_worker(1, 0, 1, 2, 1);
    check_worker(2, -1, 0, 1, 0);
    check_run(2, 0);
}

// What NCCL takes for one device: a bus id of a machine, which may be told another name.
static int32_t clashing(int n, const int32_t *nodes, const int64_t *told, const int64_t *ids) {
    dr_seen_devices seen[MOST];
    memset(seen, 0, sizeof seen);
    for (int w = 0; w < n; w++)
        seen[w] = (dr_seen_devices){
            .node = nodes[w], .n = ids[w] != 0, .told_machine = told[w], .bus_id = {ids[w]}};
    dr_devices_bind(seen, n, bound);
    for (int w = 1; w < n; w++) assert_int_equal(bound[w].n_clashing, bound[0].n_clashing);
    return bound[0].n_clashing;
}

static void test_told_machines(void **state) {
    (void)state;
#define I32(...) ((const int32_t[]){__VA_ARGS__})
#define I64(...) ((const int64_t[]){__VA_ARGS__})
    assert_int_equal(clashing(3, I32(0, 0, 0), I64(0, 0, 0), I64(A, A, B)), 2);
    assert_int_equal(clashing(3, I32(0, 0, 0), I64(1, 2, 3), I64(A, A, A)), 0); // a machine of its own each
    assert_int_equal(clashing(3, I32(0, 0, 0), I64(1, 2, 1), I64(A, A, A)), 2);
    assert_int_equal(clashing(3, I32(0, 0, 0), I64(0, 1, 0), I64(A, A, B)), 0); // one alone is told
    assert_int_equal(clashing(2, I32(0, 0), I64(7, 7), I64(A, A)), 2);          // told alike: as if not told
    assert_int_equal(clashing(2, I32(0, 0), I64(7, 7), I64(A, B)), 0);
    assert_int_equal(clashing(2, I32(0, 1), I64(0, 0), I64(A, A)), 0);
    assert_int_equal(clashing(2, I32(0, 1), I64(7, 7), I64(A, A)), 2);          // two nodes under one name
    assert_int_equal(clashing(3, I32(0, 0, 0), I64(7, 7, 7), I64(0, 0, A)), 0); // without devices
}

// What doubles carry comes back exactly; over ranks the emulated job exchanges them.
static void test_exchange(void **state) {
    (void)state;
    dr_collective *alone = NULL;
    dr_seen_devices all[1] = {{.node = 70000,
                               .n = 2,
                               .told_machine = ((int64_t)1 << 48) - 1,
                               .bus_id = {(int64_t)0x7FFFFFFF << 16 | 0xFFFF, -1}}};
    const dr_seen_devices want = all[0];
    check_ok(dr_collective_alone_create(&alone));
    check_ok(dr_devices_exchange(alone, all));
    assert_memory_equal(&all[0], &want, sizeof want);
    alone->ops->destroy(alone);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block),
        cmocka_unit_test(test_cyclic),
        cmocka_unit_test(test_one_visible_each),
        cmocka_unit_test(test_overlapping_sets),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_without),
        cmocka_unit_test(test_told_machines),
        cmocka_unit_test(test_exchange),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
