// What the emulated device refuses of kernels that do not wait: threads that end before their products, their
// copies or the block's tensor copies are done, and sums that are touched while products add to them. A
// kernel each, in a process of its own, which a fault ends.
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
#include <cmocka.h>
}

#include <cuda_runtime.h>

#include "cuda/language.cuh"
#include "cuda/wgmma.cuh"

namespace {

enum { WARPGROUP = 128, TILE = 64 * DR_WGMMA_PITCH, BYTES = 2 * TILE + DR_WGMMA_PATTERN + 8 };

// Where two tiles stand in shared memory, of 64 rows of 64 columns, and a barrier behind them.
uint32_t tiles() {
    return (dr_shared_address(emulated::shared) + DR_WGMMA_PATTERN - 1) / DR_WGMMA_PATTERN * DR_WGMMA_PATTERN;
}

uint32_t barrier() {
    return tiles() + 2 * TILE;
}

uint16_t *values_at(uint32_t tile) {
    return (uint16_t *)emulated::shared_pointer(tile, TILE);
}

void fill_tiles() { // with 1
    for (int i = (int)threadIdx.x; i < 2 * TILE / 2; i += WARPGROUP) values_at(tiles())[i] = 0x3F80;
    __syncthreads();
}

void add_columns(float (&sums)[32], int step, bool add) {
    dr_wgmma(sums, dr_wgmma_along_columns(tiles(), 64, 0, step),
             dr_wgmma_along_columns(tiles() + TILE, 64, 0, step), add);
}

// Products of 16 columns each of the two tiles: every sum becomes 16 n.
void begin_products(float (&sums)[32], int n) {
    for (int step = 0; step < n; step++) add_columns(sums, step, step > 0);
}

void check_sums(const float (&sums)[32], float want) {
    for (float sum : sums)
        if (sum != want) emulated::fault("a sum is %g, not %g", (double)sum, (double)want);
}

void waits() {
    float sums[32] = {0}, more[32] = {0};
    fill_tiles();
    begin_products(sums, 1);
    dr_wgmma_commit();
    begin_products(more, 4);
    dr_wgmma_commit();
    dr_wgmma_wait<1>();
    check_sums(sums, 16);
    if (!isnan(more[31])) emulated::fault("a sum is %g before it is done", (double)more[31]);
    dr_wgmma_wait<0>();
    check_sums(more, 64);
}

void adds_in_two_groups() {
    float sums[32] = {0};
    fill_tiles();
    begin_products(sums, 1);
    dr_wgmma_commit();
    add_columns(sums, 1, true);
    dr_wgmma_commit();
    dr_wgmma_wait<1>();
    if (!isnan(sums[0])) emulated::fault("a sum is %g before it is done", (double)sums[0]);
    dr_wgmma_wait<0>();
    check_sums(sums, 32);
}

void never_waits() {
    float sums[32] = {0};
    fill_tiles();
    begin_products(sums, 2);
    dr_wgmma_commit();
}

void never_commits() {
    float sums[32] = {0};
    fill_tiles();
    begin_products(sums, 3);
    dr_wgmma_wait<0>();
}

void waits_for_too_little() {
    float sums[32] = {0}, more[32] = {0};
    fill_tiles();
    begin_products(sums, 1);
    dr_wgmma_commit();
    begin_products(more, 1);
    dr_wgmma_commit();
    dr_wgmma_wait<1>();
}

void reads_early() {
    float sums[32] = {0};
    fill_tiles();
    begin_products(sums, 1);
    dr_wgmma_commit();
    check_sums(sums, 16);
    dr_wgmma_wait<0>();
}

void writes_early() {
    float sums[32] = {0};
    fill_tiles();
    begin_products(sums, 1);
    dr_wgmma_commit();
    for (float &sum : sums) sum = 0.0f;
    dr_wgmma_wait<0>();
}

alignas(16) const uint16_t rows[64 * 64] = {0x3F80};

void copies() {
    dr_copy_async_16(emulated::shared + 16 * threadIdx.x, rows, true);
    dr_copy_async_commit();
    dr_copy_async_commit(); // of nothing: nobody has to wait for it
    dr_copy_async_wait<1>();
}

void copies_and_never_waits() {
    dr_copy_async_16(emulated::shared + 16 * threadIdx.x, rows, true);
    dr_copy_async_commit();
}

void copies_and_never_commits() {
    dr_copy_async_16(emulated::shared + 16 * threadIdx.x, rows, true);
    dr_copy_async_wait<0>();
}

void begin_tensor_copy() {
    const CUtensorMap map = {rows, 64, 1, 64, 1, 64};
    dr_barrier_init(barrier(), 1);
    dr_barrier_expect(barrier(), TILE);
    dr_tensor_copy(tiles(), &map, barrier(), 0, 0, 0);
}

void tensor_copies() {
    if (threadIdx.x == 0) begin_tensor_copy();
    __syncthreads();
    dr_barrier_wait(barrier(), 0);
    if (values_at(tiles())[0] != 0x3F80) emulated::fault("a tile without its first value");
}

void tensor_copies_and_never_waits() {
    if (threadIdx.x == 0) begin_tensor_copy();
}

// What a process that runs the kernel says; *out_signal: what ended it, 0: nothing.
void run_apart(void (*kernel)(), uint64_t order, char *said, size_t capacity, int *out_signal) {
    int ends[2], status = 0;
    size_t n = 0;
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        emulated::run_grid("kernel", dim3(2), dim3(WARPGROUP), BYTES, order, kernel);
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t more; n + 1 < capacity && (more = read(ends[0], said + n, capacity - 1 - n)) > 0;)
        n += (size_t)more;
    said[n] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    *out_signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

// want: what the fault says; NULL: there is none.
void check_kernel(const char *name, void (*kernel)(), const char *want) {
    const uint64_t orders[] = {emulated::FORWARD, emulated::BACKWARD, 7};
    for (uint64_t order : orders) {
        char said[1024];
        int ended_by = 0;
        run_apart(kernel, order, said, sizeof said, &ended_by);
        if (want ? ended_by != SIGABRT || !strstr(said, want) : ended_by != 0 || said[0] != '\0')
            fail_msg("%s in order %d: signal %d, expected \"%s\", it says: %s", name, (int)order, ended_by,
                     want ? want : "", said);
    }
}
#define CHECK_KERNEL(kernel, want) check_kernel(#kernel, kernel, want)

void test_products(void **) {
    CHECK_KERNEL(waits, NULL);
    CHECK_KERNEL(adds_in_two_groups, NULL);
    CHECK_KERNEL(never_waits, "ends before 2 products of wgmma that it began are done");
    CHECK_KERNEL(never_commits, "ends before 3 products of wgmma that it began are done");
    CHECK_KERNEL(waits_for_too_little, "ends before 1 products of wgmma that it began are done");
}

void test_sums(void **) {
    CHECK_KERNEL(reads_early, "a sum is");
    CHECK_KERNEL(writes_early, "wrote sum 0 while products that add to it were pending");
}

void test_copies(void **) {
    CHECK_KERNEL(copies, NULL);
    CHECK_KERNEL(copies_and_never_waits, "ends before 1 asynchronous copies that it began are done");
    CHECK_KERNEL(copies_and_never_commits, "ends before 1 asynchronous copies that it began are done");
    CHECK_KERNEL(tensor_copies, NULL);
    CHECK_KERNEL(tensor_copies_and_never_waits, "1 copies are on their way when the block ends");
}

} // namespace

int main() {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
