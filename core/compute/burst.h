// What a draw does to a row of a burst (backend.h): the same code in every body, on the host and on a device.
#ifndef DR_CORE_COMPUTE_BURST_H
#define DR_CORE_COMPUTE_BURST_H

#include "core/base/every_body.h"
#include "core/compute/backend.h"

typedef struct dr_burst_row {
    int32_t id, position; // what the next pass runs
    int32_t n_drawn, limit;
    int32_t room, n_taken; // positions that its pages hold, and how many of these it took in this burst
    uint8_t state;         // of the stop table's automaton
    bool is_finished;
    // For bodies that say so at the end: its draw n_drawn had no numbers to draw from, or its kept set no
    // room.
    bool has_failed, found_no_room;
} dr_burst_row;

static inline dr_burst_row dr_burst_row_at(const dr_burst *burst, int64_t r) {
    dr_burst_row row;
    row.id = burst->ids[r];
    row.position = burst->positions[r];
    row.n_drawn = 0;
    row.limit = burst->limits[r];
    row.room = burst->pages ? burst->pages->counts[r] * burst->pages->page_size : INT32_MAX;
    row.n_taken = 0;
    row.state = burst->stops ? burst->states[r] : (uint8_t)0;
    row.is_finished = row.has_failed = row.found_no_room = false;
    return row;
}

// The automaton's state after the bytes of token `id`, DR_STOP_REACHED when a pattern ended among them.
DR_EVERY_BODY uint8_t dr_stop_after(const dr_stop_table *stops, uint8_t state, int32_t id) {
    const int32_t end = stops->first_byte[id + 1];
    for (int32_t i = stops->first_byte[id]; i < end && state != DR_STOP_REACHED; i++)
        state = stops->next[state * 256 + stops->bytes[i]];
    return state;
}

DR_EVERY_BODY bool dr_stop_ends(const dr_stop_table *stops, int32_t id) {
    for (int i = 0; i < DR_STOP_IDS; i++)
        if (stops->ids[i] == id) return true;
    return false;
}

// The row has drawn `id`: whether that ends it.
DR_EVERY_BODY void dr_burst_count(dr_burst_row *row, const dr_stop_table *stops, int32_t id) {
    row->n_drawn++;
    row->is_finished = row->n_drawn >= row->limit;
    if (stops && dr_stop_ends(stops, id)) {
        row->is_finished = true;
    } else if (stops) {
        row->state = dr_stop_after(stops, row->state, id);
        row->is_finished |= row->state == DR_STOP_REACHED;
    }
}

// Behind dr_burst_count: whether the row goes on to a position that no page of its is there for.
DR_EVERY_BODY bool dr_burst_wants_page(const dr_burst_row *row) {
    return !row->is_finished && row->position + 1 >= row->room;
}

// Such a row takes the page at `place` of the pool, as the last one of its list, or is finished where the
// pool ends before it. Returns whether it took it.
DR_EVERY_BODY bool dr_burst_take_page(dr_burst_row *row, int64_t place, int64_t n_pool, int32_t page_size) {
    row->is_finished = place >= n_pool;
    if (row->is_finished) return false;
    row->room += page_size;
    row->n_taken++;
    return true;
}

// Behind both: what the next pass runs. A finished row keeps the token that it ran last, at its position: run
// again it leaves in the cache what was there.
DR_EVERY_BODY void dr_burst_go_on(dr_burst_row *row, int32_t id) {
    if (row->is_finished) return;
    row->id = id;
    row->position++;
}

#endif
