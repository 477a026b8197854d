// One block of an emulated device at a time: its threads are fibers of one thread of the host that run in an
// order of the test's choice and change at barriers and at what a warp does together. A kernel that waits for
// ever, or whose lanes part where all must meet, ends the process and says which threads stood where.
#ifndef DR_TESTS_EMULATED_BLOCK_H
#define DR_TESTS_EMULATED_BLOCK_H

#include <stddef.h>
#include <stdint.h>

#include <functional>

struct uint3 {
    unsigned int x, y, z;
};

struct dim3 {
    unsigned int x, y, z;
    dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulated {

enum { WARP = 32, MOST_THREADS = 1024, NAMED_BARRIERS = 16, EXCHANGED = 64, SHARED_BYTES = 227 * 1024 };

// The thread that runs, and its block.
extern uint3 thread, block;
extern dim3 block_size, grid_size;
extern unsigned char shared[SHARED_BYTES]; // dynamic; in each block not a number until it is written

// FORWARD, BACKWARD: threads in the order of their numbers, or against it. Others: a seed for random orders.
enum { FORWARD = 0, BACKWARD = 1 };

uint64_t next_random(uint64_t *random); // of a state that it moves on

// Runs a grid, block by block. kernel: what each thread runs.
void run_grid(const char *name, dim3 blocks, dim3 threads, size_t shared_bytes, uint64_t order,
              const std::function<void()> &kernel);

[[noreturn]] void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

int thread_number();

// Waits until *counter is not `value`. why: for the report when that never comes.
void wait_while(const uint64_t *counter, uint64_t value, const char *why);

// Waits at a named barrier for `threads` threads of the block, or arrives without waiting. The result:
// whether any that came had `any` set.
bool barrier_wait(int number, int threads, bool any);
void barrier_arrive(int number, int threads);

// What all lanes of `mask` do at the same time: gives `size` bytes and gets what each lane gave, until the
// thread's next exchange. what: the operation, which must be the same in all lanes (compared as a pointer).
typedef unsigned char exchanged[EXCHANGED];
const exchanged *exchange(const char *what, uint32_t mask, const void *value, size_t size);
// The same by the whole warp; what each lane gets, `all` after `together` has made results of it for all
// lanes at once.
typedef void together(exchanged *all);
const exchanged *exchange_all(const char *what, const void *value, size_t size, together *make);

// Copies behind the thread's back, done as late as they may be: when the thread waits for their group.
void copy_later(void *to, const void *from, size_t bytes, bool is_there);
void copies_commit();
void copies_wait(int pending);

// So many more (or fewer) of what is done behind this thread's back and has to be waited for. A thread that
// ends before it has waited for them, or for its copies, is a fault.
void owe(const char *what, int more);

// Addresses of shared memory as the kernels see them; `shared` does not begin at 0. The bytes must be inside.
uint32_t shared_address(const void *at);
unsigned char *shared_pointer(uint32_t address, size_t bytes);

// Barriers in shared memory (mbarrier): a phase is over when all have arrived and all bytes that were
// expected are there.
void shared_barrier_init(uint32_t barrier, int arrivals);
void shared_barrier_change(uint32_t barrier, int arrivals, int bytes); // fewer to come, more to expect
void shared_barrier_wait(uint32_t barrier, uint32_t parity);
void copies_then_arrive(uint32_t barrier); // when this thread's copies so far are there

// Done by the copy engine: when no thread can go on (in random orders also before), the last one first.
void later(std::function<void()> what);

} // namespace emulated

#endif
