// How the warps of the attention kernels with wgmma hand tiles on: what each does in order, run in many
// random orders. Nobody waits for ever, no tile is read before it is there or written while it is read.
// labels: cpu
#include "tests/check.h"

#include <string.h>

#include "core/base/rng.h"
#include "cuda/wgmma_index.h"

enum {
    WARPS = DR_WGMMA_CONSUMERS * DR_WGMMA_THREADS / 32,
    ACTORS = WARPS + 1,
    MOST_OPS = 160,
    MOST_STEPS = 9
};
// Tiles: two kinds in stages, and what is there once. A barrier "full" a tile, then one "empty" a tile.
enum { TILES = 2 * DR_WGMMA_STAGES + 1, ONCE = 2 * DR_WGMMA_STAGES, BARRIERS = 2 * TILES, TURNS = 2 };

typedef enum op_kind { WAIT, ARRIVE, COPY, BEGIN_READ, END_READ, TURN_WAIT, TURN_ARRIVE } op_kind;
// at: barrier, tile or turn; value: parity, or the step whose tile it is; arrivals: of a copy at its barrier.
typedef struct op {
    op_kind kind;
    int at, value, barrier, arrivals;
} op;

typedef struct actor {
    op ops[MOST_OPS];
    int n, next, turn; // turn: what the turn's count was when it began to wait, or -1
} actor;

typedef struct block {
    actor actors[ACTORS]; // 0 copies
    struct {
        int arrivals, pending, under_way, parity;
    } barriers[BARRIERS];
    struct {
        int step, readers, copying; // copying: the step, or -1
        int barrier, arrivals;
    } tiles[TILES];
    struct {
        int arrived, generation;
    } turns[TURNS];
} block;

static int tile_of(int kind, int stage) {
    return kind * DR_WGMMA_STAGES + stage;
}

static int full_of(int tile) {
    return tile;
}

static int empty_of(int tile) {
    return TILES + tile;
}

static void add(actor *a, op_kind kind, int at, int value) {
    assert_true(a->n < MOST_OPS);
    a->ops[a->n++] = (op){kind, at, value, 0, 0};
}

// Waits until the tile is empty, then has it filled; the barrier gets `arrivals` behind the copy.
static void add_copy(actor *a, int tile, int barrier, int step, int arrivals) {
    assert_true(a->n < MOST_OPS);
    a->ops[a->n++] = (op){COPY, tile, step, barrier, arrivals};
}

// ---- a block's state ----

static void settle(block *b, int barrier) {
    if (b->barriers[barrier].pending > 0 || b->barriers[barrier].under_way > 0) return;
    b->barriers[barrier].pending = b->barriers[barrier].arrivals;
    b->barriers[barrier].parity ^= 1;
}

static void arrive(block *b, int barrier) {
    assert_true(b->barriers[barrier].pending > 0);
    b->barriers[barrier].pending--;
    settle(b, barrier);
}

// Whether the actor's next op could be done now; if so it is done.
static bool do_next(block *b, actor *a) {
    const op *o = &a->ops[a->next];
    if (o->kind == WAIT) {
        if (b->barriers[o->at].parity == o->value) return false; // that phase is not over
    } else if (o->kind == ARRIVE) {
        arrive(b, o->at);
    } else if (o->kind == COPY) {
        assert_int_equal(b->tiles[o->at].readers, 0);
        assert_int_equal(b->tiles[o->at].copying, -1);
        b->tiles[o->at].step = -1;
        b->tiles[o->at].copying = o->value;
        b->tiles[o->at].barrier = o->barrier;
        b->tiles[o->at].arrivals = o->arrivals;
        b->barriers[o->barrier].under_way++;
        if (o->arrivals == 0) arrive(b, o->barrier); // a tensor copy: one arrival that expects its bytes
    } else if (o->kind == BEGIN_READ || o->kind == END_READ) {
        assert_int_equal(b->tiles[o->at].step, o->value);
        b->tiles[o->at].readers += o->kind == BEGIN_READ ? 1 : -1;
    } else {
        if (o->kind == TURN_WAIT && a->turn >= 0) {
            if (b->turns[o->at].generation == a->turn) return false;
            a->turn = -1;
            a->next++;
            return true;
        }
        if (o->kind == TURN_WAIT) a->turn = b->turns[o->at].generation;
        if (++b->turns[o->at].arrived == WARPS) {
            b->turns[o->at].arrived = 0;
            b->turns[o->at].generation++;
        }
        if (o->kind == TURN_WAIT) return true; // it has come, and now waits
    }
    a->next++;
    return true;
}

static bool finish_copy(block *b, int tile) {
    if (b->tiles[tile].copying < 0) return false;
    int barrier = b->tiles[tile].barrier;
    b->tiles[tile].step = b->tiles[tile].copying;
    b->tiles[tile].copying = -1;
    b->barriers[barrier].under_way--;
    for (int i = 0; i < b->tiles[tile].arrivals; i++) b->barriers[barrier].pending--;
    settle(b, barrier);
    return true;
}

// Actors and copies that are under way go on in a random order until all is done.
static void run_block(block *b, uint64_t stream) {
    dr_rng rng = dr_rng_make(7, stream);
    for (int idle = 0, left = ACTORS; left > 0;) {
        int pick = (int)dr_rng_below(&rng, ACTORS + TILES);
        bool went_on;
        if (pick < ACTORS) {
            actor *a = &b->actors[pick];
            went_on = a->next < a->n && do_next(b, a);
            left -= went_on && a->next == a->n;
        } else {
            went_on = finish_copy(b, pick - ACTORS);
        }
        idle = went_on ? 0 : idle + 1;
        if (idle > 5000) fail_msg("%d of %d warps wait for ever", left, ACTORS);
    }
    for (int tile = 0; tile < TILES; tile++) assert_int_equal(b->tiles[tile].readers, 0);
    for (int turn = 0; turn < TURNS; turn++) assert_int_equal(b->turns[turn].arrived, 0);
}

static void open_block(block *b, int full_arrivals) {
    memset(b, 0, sizeof *b);
    for (int tile = 0; tile < TILES; tile++) {
        b->barriers[full_of(tile)].arrivals = b->barriers[full_of(tile)].pending =
            tile == ONCE ? 1 : full_arrivals;
        b->barriers[empty_of(tile)].arrivals = b->barriers[empty_of(tile)].pending = WARPS;
        b->tiles[tile].step = b->tiles[tile].copying = -1;
    }
    for (int i = 0; i < ACTORS; i++) b->actors[i].turn = -1;
}

// ---- the kernels ----

static void copy_keys(actor *a, int n_steps) {
    for (int j = 0; j < n_steps; j++)
        for (int kind = 0; kind < 2; kind++) {
            int tile = tile_of(kind, dr_stage_of(j));
            add(a, WAIT, empty_of(tile), (int)dr_stage_parity(j) ^ 1);
            add_copy(a, tile, full_of(tile), j, 0);
        }
}

// What attend of attention_wgmma.cu does, a warp of warpgroup `own`.
static void attend(actor *a, int own, int n_steps) {
    int other = 1 - own;
    if (own == 1 && n_steps > 1) add(a, TURN_ARRIVE, other, 0);
    add(a, WAIT, full_of(tile_of(0, 0)), 0);
    add(a, BEGIN_READ, tile_of(0, 0), 0);
    add(a, END_READ, tile_of(0, 0), 0);
    add(a, ARRIVE, empty_of(tile_of(0, 0)), 0);
    for (int j = 1; j < n_steps; j++) {
        int keys = tile_of(0, dr_stage_of(j)), before = tile_of(1, dr_stage_of(j - 1)),
            gone = tile_of(1, dr_stage_of(j < 2 ? 0 : j - 2));
        if (j > 1) add(a, END_READ, gone, j - 2);
        if (j > 1) add(a, ARRIVE, empty_of(gone), 0);
        add(a, WAIT, full_of(keys), (int)dr_stage_parity(j));
        add(a, TURN_WAIT, own, 0);
        add(a, BEGIN_READ, keys, j);
        add(a, WAIT, full_of(before), (int)dr_stage_parity(j - 1));
        add(a, BEGIN_READ, before, j - 1);
        if (own == 0 || j + 1 < n_steps) add(a, TURN_ARRIVE, other, 0);
        add(a, END_READ, keys, j);
        add(a, ARRIVE, empty_of(keys), 0);
    }
    int last = tile_of(1, dr_stage_of(n_steps - 1));
    if (n_steps > 1) add(a, END_READ, tile_of(1, dr_stage_of(n_steps - 2)), n_steps - 2);
    add(a, WAIT, full_of(last), (int)dr_stage_parity(n_steps - 1));
    add(a, BEGIN_READ, last, n_steps - 1);
    add(a, END_READ, last, n_steps - 1);
}

// What dq's kernel does.
static void sum_dq(actor *a, int n_steps) {
    add(a, WAIT, full_of(ONCE), 0);
    add(a, BEGIN_READ, ONCE, 0);
    for (int j = 0; j < n_steps; j++) {
        int keys = tile_of(0, dr_stage_of(j)), values = tile_of(1, dr_stage_of(j));
        add(a, WAIT, full_of(keys), (int)dr_stage_parity(j));
        add(a, BEGIN_READ, keys, j);
        add(a, WAIT, full_of(values), (int)dr_stage_parity(j));
        add(a, BEGIN_READ, values, j);
        add(a, END_READ, values, j);
        add(a, ARRIVE, empty_of(values), 0);
        add(a, END_READ, keys, j);
        add(a, ARRIVE, empty_of(keys), 0);
    }
    add(a, END_READ, ONCE, 0);
}

// What dk and dv's kernel does: a stage's rows (kind 0, by tensor copies) and their numbers (kind 1, by 32
// threads' copies) have one barrier.
static void copy_views(actor *a, int n_steps) {
    for (int j = 0; j < n_steps; j++) {
        int rows = tile_of(0, dr_stage_of(j)), numbers = tile_of(1, dr_stage_of(j));
        add(a, WAIT, empty_of(rows), (int)dr_stage_parity(j) ^ 1);
        add_copy(a, rows, full_of(rows), j, 0);
        add_copy(a, numbers, full_of(rows), j, 32);
    }
}

static void sum_dkv(actor *a, int n_steps) {
    add(a, WAIT, full_of(ONCE), 0);
    add(a, BEGIN_READ, ONCE, 0);
    for (int j = 0; j < n_steps; j++) {
        int rows = tile_of(0, dr_stage_of(j)), numbers = tile_of(1, dr_stage_of(j));
        add(a, WAIT, full_of(rows), (int)dr_stage_parity(j));
        add(a, BEGIN_READ, rows, j);
        add(a, BEGIN_READ, numbers, j);
        add(a, END_READ, numbers, j);
        add(a, END_READ, rows, j);
        add(a, ARRIVE, empty_of(rows), 0);
    }
    add(a, END_READ, ONCE, 0);
}

enum { ORDERS = 60 };

static void test_forward(void **state) {
    (void)state;
    static block b;
    for (int n_steps = 1; n_steps <= MOST_STEPS; n_steps++)
        for (uint64_t order = 0; order < ORDERS; order++) {
            open_block(&b, 1);
            copy_keys(&b.actors[0], n_steps);
            for (int warp = 0; warp < WARPS; warp++)
                attend(&b.actors[1 + warp], warp / (WARPS / DR_WGMMA_CONSUMERS), n_steps);
            run_block(&b, order);
        }
}

static void test_dq(void **state) {
    (void)state;
    static block b;
    for (int n_steps = 1; n_steps <= MOST_STEPS; n_steps++)
        for (uint64_t order = 0; order < ORDERS; order++) {
            open_block(&b, 1);
            add_copy(&b.actors[0], ONCE, full_of(ONCE), 0, 0);
            copy_keys(&b.actors[0], n_steps);
            for (int warp = 0; warp < WARPS; warp++) sum_dq(&b.actors[1 + warp], n_steps);
            run_block(&b, order);
        }
}

static void test_dkv(void **state) {
    (void)state;
    static block b;
    for (int n_steps = 1; n_steps <= MOST_STEPS; n_steps++)
        for (uint64_t order = 0; order < ORDERS; order++) {
            open_block(&b, 32 + 1);
            add_copy(&b.actors[0], ONCE, full_of(ONCE), 0, 0);
            copy_views(&b.actors[0], n_steps);
            for (int warp = 0; warp < WARPS; warp++) sum_dkv(&b.actors[1 + warp], n_steps);
            run_block(&b, order);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward),
        cmocka_unit_test(test_dq),
        cmocka_unit_test(test_dkv),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
