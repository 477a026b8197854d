#include "tests/emulated/block.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <deque>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Static __shared__ arrays of all kernels stand in one section (cuda_runtime.h), so that each block finds
// them unwritten.
extern "C" unsigned char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));

namespace emulated {

uint3 thread, block;
dim3 block_size, grid_size;
alignas(1024) unsigned char shared[SHARED_BYTES];

namespace {

struct copy {
    void *to;
    const void *from;
    size_t bytes;
    bool is_there;
};

// What the scheduler looks at of each fiber, side by side.
struct state {
    const uint64_t *counter; // not NULL: waits while it is `value`
    uint64_t value;
    bool is_done;
};

struct fiber {
    void *at; // its stack pointer while another one runs
    state *own;
    uint3 thread;
    const char *why;
    unsigned char *stack;
    size_t stack_bytes;
    std::vector<copy> open;               // copies of no group yet
    std::deque<std::vector<copy>> groups; // oldest first
    const char *owed;
    int n_owed;
    void *fake_stack;
};

struct warp {
    uint32_t arrived, mask, there; // there: lanes that exist
    const char *what;
    uint64_t generation;
    alignas(16) exchanged values[2][WARP];
};

struct barrier {
    int expected, arrived;
    uint64_t generation;
    bool any[2];
};

// Fibers run in turns and touch the tops of their stacks: each begins at another place of its memory, so that
// they are not all in the same lines of a cache.
enum { STACK = 192 * 1024, STAGGER = 13 * 64, STAGGERS = 78, STACK_MEMORY = 256 * 1024 };
static_assert(STACK + STAGGER * STAGGERS <= STACK_MEMORY, "stacks");

const char *kernel_name = "";
const std::function<void()> *body;
std::vector<fiber *> fibers;
state states[MOST_THREADS];
fiber *now, host; // host: who runs the grid
warp warps[MOST_THREADS / WARP];
barrier barriers[NAMED_BARRIERS];
size_t n_threads, dynamic_bytes;
std::vector<std::function<void()>> engine; // what the copy engine has to do

enum { SHARED_AT = 128, BARRIER_BYTES = 8 };
const uint64_t BARRIER_MARK = 0x4241525249455221ull; // what stands where a barrier is

struct memory_barrier {
    int expected, arrivals, bytes; // arrivals and bytes that are still to come
    uint64_t generation;           // phases that are over
};
memory_barrier memory_barriers[SHARED_BYTES / BARRIER_BYTES];

// Whose turn it is. A warp's lanes run in cycles until none of them can go on (in random orders sometimes not
// so long), then those of another warp, in passes over all warps.
struct turns {
    uint64_t order, random;
    int warp[MOST_THREADS / WARP], lane[WARP];
    size_t n_warps, next_warp, next_lane, left; // left: threads that have not ended
    bool any, any_of_warp;                      // ran in this pass, in this cycle
} turns;

} // namespace

// Keeps the registers that a call keeps, and the stack pointer in *keep; goes on with another stack. x86-64.
extern "C" void emulated_change(void **keep, void *next);
__asm__(".text\n"
        ".globl emulated_change\n"
        ".type emulated_change, @function\n"
        "emulated_change:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\n"
        "movq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\n"
        "ret\n"
        ".size emulated_change, .-emulated_change\n");

namespace {

void change_to(fiber *next) {
    fiber *self = now;
    now = next;
    thread = next->thread;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&self->fake_stack, next->stack, next->stack_bytes);
#endif
    emulated_change(&self->at, next->at);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(self->fake_stack, NULL, NULL);
#endif
}

[[noreturn]] void report_stuck() {
    const char *last = NULL;
    for (size_t i = 0; i < n_threads; i++) {
        const fiber *f = fibers[i];
        const char *why = f->own->is_done ? "has ended" : f->why;
        if (why != last) fprintf(stderr, "  from thread %zu on: %s\n", i, why);
        last = why;
    }
    fault("no thread can go on; %zu of %zu have not ended", turns.left, n_threads);
}

bool is_random() {
    return turns.order != FORWARD && turns.order != BACKWARD;
}

void shuffle(int *items, size_t n) {
    for (size_t i = n; i > 1; i--) std::swap(items[i - 1], items[next_random(&turns.random) % i]);
}

void begin_cycle() {
    turns.next_lane = 0;
    turns.any_of_warp = false;
    if (is_random()) shuffle(turns.lane, WARP);
}

void begin_pass() {
    turns.next_warp = 0;
    turns.any = false;
    if (is_random()) shuffle(turns.warp, turns.n_warps);
    begin_cycle();
}

void begin_turns(uint64_t order, uint64_t random) {
    turns.order = order;
    turns.random = random;
    turns.left = n_threads;
    turns.n_warps = (n_threads + WARP - 1) / WARP;
    for (size_t i = 0; i < turns.n_warps; i++)
        turns.warp[i] = (int)(order == BACKWARD ? turns.n_warps - 1 - i : i);
    for (int i = 0; i < WARP; i++) turns.lane[i] = order == BACKWARD ? WARP - 1 - i : i;
    begin_pass();
}

// The next lane of the warp whose turn it is; NULL at the end of a cycle.
fiber *next_of_warp() {
    while (turns.next_lane < WARP) {
        const size_t i = (size_t)(turns.warp[turns.next_warp] * WARP + turns.lane[turns.next_lane++]);
        state *s = &states[i];
        if (i >= n_threads || s->is_done || (s->counter && *s->counter == s->value)) continue;
        s->counter = NULL;
        turns.any = turns.any_of_warp = true;
        return fibers[i];
    }
    return NULL;
}

void run_engine() {
    const size_t i = is_random() ? next_random(&turns.random) % engine.size() : engine.size() - 1;
    std::swap(engine[i], engine.back());
    std::function<void()> what = std::move(engine.back());
    engine.pop_back();
    what();
}

// The next thread that can go on; `host` when all have ended.
fiber *whose_turn() {
    if (turns.left == 0) return &host;
    for (;;) {
        fiber *next = next_of_warp();
        if (next) return next;
        const bool stays = turns.any_of_warp && !(is_random() && next_random(&turns.random) % 4 == 0);
        if (!stays && ++turns.next_warp == turns.n_warps) {
            if (!engine.empty() && (!turns.any || (is_random() && next_random(&turns.random) % 2 == 0)))
                run_engine();
            else if (!turns.any)
                report_stuck();
            begin_pass();
        } else {
            begin_cycle();
        }
    }
}

void yield() {
    fiber *next = whose_turn();
    if (next != now) change_to(next);
}

void check_end() {
    size_t copies = now->open.size();
    for (const std::vector<copy> &group : now->groups) copies += group.size();
    if (copies > 0)
        fault("thread %d ends before %zu asynchronous copies that it began are done", thread_number(),
              copies);
    if (now->n_owed != 0)
        fault("thread %d ends before %d %s that it began are done", thread_number(), now->n_owed, now->owed);
}

// A fiber runs one thread of a block after another, for ever.
void fiber_main() {
#ifdef __SANITIZE_ADDRESS__
    const void *from;
    size_t bytes;
    __sanitizer_finish_switch_fiber(NULL, &from, &bytes);
    if (!host.stack) {
        host.stack = (unsigned char *)const_cast<void *>(from);
        host.stack_bytes = bytes;
    }
#endif
    for (;;) {
        (*body)();
        check_end();
        now->own->is_done = true;
        turns.left--;
        yield();
    }
}

fiber *make_fiber() {
    fiber *f = new fiber();
    const size_t number = fibers.size();
    void *memory =
        mmap(NULL, STACK_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fault("no memory for a fiber");
    f->own = &states[number];
    f->stack = (unsigned char *)memory;
    f->stack_bytes = STACK + number % STAGGERS * STAGGER;
    void **top = (void **)(f->stack + f->stack_bytes);
    top[-1] = NULL; // returns nowhere
    top[-2] = (void *)fiber_main;
    f->at = top - 8; // and six registers
    return f;
}

// Nothing of an earlier block is left in what this one may read.
void clear_shared() {
    if (__start_emulated_shared)
        memset(__start_emulated_shared, 0xFF, (size_t)(__stop_emulated_shared - __start_emulated_shared));
    memset(shared, 0xFF, dynamic_bytes);
}

enum { BORDER = 64, BORDER_BYTE = 0xA5 };

void close_border() {
    size_t left = SHARED_BYTES - dynamic_bytes;
#ifdef __SANITIZE_ADDRESS__
    ASAN_POISON_MEMORY_REGION(shared + dynamic_bytes, left);
#else
    memset(shared + dynamic_bytes, BORDER_BYTE, left < BORDER ? left : (size_t)BORDER);
#endif
}

void check_border() {
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(shared, SHARED_BYTES);
#else
    for (size_t i = dynamic_bytes; i < SHARED_BYTES && i < dynamic_bytes + BORDER; i++)
        if (shared[i] != BORDER_BYTE)
            fault("wrote byte %zu of %zu bytes of dynamic shared memory", i, dynamic_bytes);
#endif
}

void begin_block() {
    for (size_t i = 0; i < n_threads; i++) {
        fiber *f = fibers[i];
        *f->own = state();
        f->thread = {(unsigned int)(i % block_size.x), (unsigned int)(i / block_size.x % block_size.y),
                     (unsigned int)(i / block_size.x / block_size.y)};
        f->open.clear();
        f->groups.clear();
        f->n_owed = 0;
    }
    for (size_t w = 0; w * WARP < n_threads; w++) {
        size_t lanes = n_threads - w * WARP;
        warps[w].arrived = 0;
        warps[w].there = lanes >= WARP ? 0xFFFFFFFFu : (1u << lanes) - 1;
    }
    for (barrier &b : barriers) b = barrier();
    clear_shared();
    close_border();
}

void run_block(uint64_t order, uint64_t random) {
    begin_block();
    begin_turns(order, random);
    now = &host;
    change_to(whose_turn());
    if (!engine.empty()) fault("%zu copies are on their way when the block ends", engine.size());
    check_border();
}

} // namespace

uint64_t next_random(uint64_t *random) { // splitmix64
    uint64_t z = (*random += 0x9E3779B97F4A7C15ull);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

void fault(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "emulated device: kernel %s, block (%u, %u, %u): ", kernel_name, block.x, block.y,
            block.z);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    abort();
}

void run_grid(const char *name, dim3 blocks, dim3 threads, size_t shared_bytes, uint64_t order,
              const std::function<void()> &kernel) {
    const uint64_t n_blocks = (uint64_t)blocks.x * blocks.y * blocks.z;
    uint64_t random = order;
    kernel_name = name;
    body = &kernel;
    block_size = threads;
    grid_size = blocks;
    n_threads = (size_t)threads.x * threads.y * threads.z;
    dynamic_bytes = shared_bytes;
    while (fibers.size() < n_threads) fibers.push_back(make_fiber());
    for (uint64_t i = 0; i < n_blocks; i++) {
        uint64_t b = order == BACKWARD ? n_blocks - 1 - i : i;
        block = {(unsigned int)(b % blocks.x), (unsigned int)(b / blocks.x % blocks.y),
                 (unsigned int)(b / blocks.x / blocks.y)};
        run_block(order, next_random(&random));
    }
}

int thread_number() {
    return (int)(thread.x + block_size.x * (thread.y + block_size.y * thread.z));
}

void wait_while(const uint64_t *counter, uint64_t value, const char *why) {
    while (*counter == value) {
        now->own->counter = counter;
        now->own->value = value;
        now->why = why;
        yield();
    }
}

static barrier *arrive_at(int number, int threads) {
    if (number < 0 || number >= NAMED_BARRIERS || threads <= 0 || threads % WARP != 0)
        if (number != 0 || threads != (int)n_threads) fault("barrier %d of %d threads", number, threads);
    barrier *b = &barriers[number];
    if (b->arrived > 0 && b->expected != threads)
        fault("barrier %d of %d threads, and of %d", number, b->expected, threads);
    b->expected = threads;
    b->arrived++;
    return b;
}

static bool pass(barrier *b) {
    if (b->arrived < b->expected) return false;
    b->arrived = 0;
    b->generation++;
    b->any[b->generation % 2] = false;
    return true;
}

bool barrier_wait(int number, int threads, bool any) {
    barrier *b = arrive_at(number, threads);
    const uint64_t mine = b->generation;
    b->any[mine % 2] |= any;
    if (!pass(b)) wait_while(&b->generation, mine, "waits at a barrier");
    return b->any[mine % 2];
}

void barrier_arrive(int number, int threads) {
    pass(arrive_at(number, threads));
}

static const exchanged *meet(const char *what, uint32_t mask, const void *value, size_t size,
                             together *make) {
    const int number = thread_number(), lane = number % WARP;
    warp *w = &warps[number / WARP];
    mask &= w->there;
    if (!(mask >> lane & 1)) fault("%s: lane %d is not in its own mask %08x", what, lane, mask);
    if (w->arrived == 0) {
        w->what = what;
        w->mask = mask;
    } else if (w->what != what || w->mask != mask) {
        fault("warp %d parts: %s of lanes %08x, and %s of lanes %08x", number / WARP, w->what, w->mask, what,
              mask);
    }
    const uint64_t mine = w->generation;
    if (size > 0) memcpy(w->values[mine % 2][lane], value, size);
    w->arrived |= 1u << lane;
    if (w->arrived == mask) {
        w->arrived = 0;
        w->generation++;
        if (make) make(w->values[mine % 2]);
    } else {
        wait_while(&w->generation, mine, what);
    }
    return w->values[mine % 2];
}

const exchanged *exchange(const char *what, uint32_t mask, const void *value, size_t size) {
    return meet(what, mask, value, size, NULL);
}

const exchanged *exchange_all(const char *what, const void *value, size_t size, together *make) {
    const warp *w = &warps[thread_number() / WARP];
    if (w->there != 0xFFFFFFFFu) fault("%s by a warp of lanes %08x", what, w->there);
    return meet(what, 0xFFFFFFFFu, value, size, make);
}

void copy_later(void *to, const void *from, size_t bytes, bool is_there) {
    if ((uintptr_t)to % bytes != 0 || (is_there && (uintptr_t)from % bytes != 0))
        fault("an asynchronous copy of %zu bytes from %p to %p, not at multiples", bytes, from, to);
    now->open.push_back({to, from, bytes, is_there});
}

void copies_commit() {
    now->groups.push_back(std::move(now->open));
    now->open.clear();
}

void owe(const char *what, int more) {
    now->owed = what;
    now->n_owed += more;
}

static void do_copies(const std::vector<copy> &copies) {
    for (const copy &c : copies)
        if (c.is_there)
            memcpy(c.to, c.from, c.bytes);
        else
            memset(c.to, 0, c.bytes);
}

void copies_wait(int pending) {
    for (; (int)now->groups.size() > pending; now->groups.pop_front()) do_copies(now->groups.front());
}

uint32_t shared_address(const void *at) {
    return (uint32_t)((const unsigned char *)at - shared) + SHARED_AT;
}

unsigned char *shared_pointer(uint32_t address, size_t bytes) {
    if (address < SHARED_AT || address - SHARED_AT + bytes > dynamic_bytes)
        fault("address %u of %zu bytes of shared memory from %d on", address, dynamic_bytes, (int)SHARED_AT);
    return shared + (address - SHARED_AT);
}

static memory_barrier *barrier_at(uint32_t address) {
    uint64_t mark;
    memcpy(&mark, shared_pointer(address, sizeof mark), sizeof mark);
    if (address % BARRIER_BYTES != 0 || mark != BARRIER_MARK)
        fault("address %u: no barrier stands there", address);
    return &memory_barriers[(address - SHARED_AT) / BARRIER_BYTES];
}

void shared_barrier_init(uint32_t barrier, int arrivals) {
    memcpy(shared_pointer(barrier, BARRIER_BYTES), &BARRIER_MARK, BARRIER_BYTES);
    *barrier_at(barrier) = {arrivals, arrivals, 0, 0};
}

void shared_barrier_change(uint32_t barrier, int arrivals, int bytes) {
    memory_barrier *b = barrier_at(barrier);
    b->arrivals -= arrivals;
    b->bytes += bytes;
    if (b->arrivals < 0 || b->bytes < 0)
        fault("barrier %u: %d arrivals and %d bytes too many", barrier, -b->arrivals, -b->bytes);
    if (b->arrivals > 0 || b->bytes > 0) return;
    b->arrivals = b->expected;
    b->generation++;
}

void shared_barrier_wait(uint32_t barrier, uint32_t parity) {
    const memory_barrier *b = barrier_at(barrier);
    while (b->generation % 2 == parity)
        wait_while(&b->generation, b->generation, "waits for a barrier in shared memory");
}

void copies_then_arrive(uint32_t barrier) {
    std::vector<copy> copies;
    for (const std::vector<copy> &group : now->groups)
        copies.insert(copies.end(), group.begin(), group.end());
    copies.insert(copies.end(), now->open.begin(), now->open.end());
    now->groups.clear();
    now->open.clear();
    later([copies, barrier]() {
        do_copies(copies);
        shared_barrier_change(barrier, 1, 0);
    });
}

void later(std::function<void()> what) {
    engine.push_back(std::move(what));
}

} // namespace emulated
