// The automaton of Aho & Corasick (CACM 1975) over the bytes of the two tags that end a turn.
#include "core/episode/stops.h"

#include <string.h>

static const char *const patterns[] = {DR_TAG_ANSWER_END, DR_TAG_PREFERENCE_END};
enum {
    N_PATTERNS = sizeof patterns / sizeof *patterns,
    MOST_STATES = sizeof DR_TAG_ANSWER_END + sizeof DR_TAG_PREFERENCE_END,
    BYTES = 256
};
_Static_assert((int)MOST_STATES <= (int)DR_STOP_REACHED,
               "states and the mark of a complete pattern fit in a byte");

typedef uint8_t automaton[MOST_STATES][BYTES];

struct dr_stops {
    dr_backend *backend;
    dr_stop_table table; // in backend memory
    automaton next;      // the same for the host
};

// The trie of the patterns: 0 where it goes nowhere. Returns its number of states, those behind a whole
// pattern left out.
static int build_trie(automaton next) {
    int n_states = 1;
    memset(next, 0, sizeof(automaton));
    for (int p = 0; p < N_PATTERNS; p++) {
        int state = 0;
        for (const char *at = patterns[p]; *at; at++) {
            uint8_t *to = &next[state][(uint8_t)*at];
            if (at[1] == '\0') {
                *to = DR_STOP_REACHED;
            } else {
                if (*to == 0) *to = (uint8_t)n_states++;
                state = *to;
            }
        }
    }
    return n_states;
}

// Where the trie goes nowhere, a state does what the longest other end of what it has seen does; breadth
// first, so that the row of that one is complete. No such end is a whole pattern: each begins with the only
// '<' that it has.
static void fill_in(automaton next, int n_states) {
    uint8_t queue[MOST_STATES], shorter[MOST_STATES] = {0};
    int n_queued = 0;
    for (int byte = 0; byte < BYTES; byte++)
        if (next[0][byte] != 0 && next[0][byte] != DR_STOP_REACHED) queue[n_queued++] = next[0][byte];
    for (int i = 0; i < n_queued; i++) {
        const uint8_t state = queue[i], *fallback = next[shorter[state]];
        for (int byte = 0; byte < BYTES; byte++) {
            uint8_t *to = &next[state][byte];
            if (*to == 0) {
                *to = fallback[byte];
            } else if (*to != DR_STOP_REACHED) {
                DR_ASSERT(fallback[byte] != DR_STOP_REACHED);
                shorter[*to] = fallback[byte];
                queue[n_queued++] = *to;
            }
        }
    }
    DR_ASSERT(n_queued == n_states - 1);
}

// The bytes of all ids, each read alone as an episode reads it.
static dr_status token_bytes(const dr_tokenizer *tokenizer, int32_t vocab, int32_t *first_byte, dr_buf *out) {
    for (int32_t id = 0; id < vocab; id++) {
        first_byte[id] = (int32_t)out->length;
        DR_TRY(dr_protocol_decode(tokenizer, &id, 1, out));
        DR_CHECK(out->length <= INT32_MAX, DR_ERR_RANGE, "tokens of more than 2 GiB in all");
    }
    first_byte[vocab] = (int32_t)out->length;
    return DR_OK;
}

static dr_status send(dr_backend *b, const void *from, size_t bytes, void *out_pointer) {
    DR_TRY(dr_memory_create(b, out_pointer, "stop table", (int64_t)bytes, 1));
    void *memory = NULL;
    memcpy(&memory, out_pointer, sizeof memory);
    b->ops->copy_in(b, memory, from, bytes);
    return DR_OK;
}

static dr_status send_table(dr_stops *stops, const dr_tokenizer *tokenizer, int32_t vocab,
                            int32_t *first_byte, dr_buf *bytes) {
    dr_backend *b = stops->backend;
    DR_TRY(token_bytes(tokenizer, vocab, first_byte, bytes));
    DR_TRY(send(b, stops->next, sizeof stops->next, &stops->table.next));
    DR_TRY(send(b, first_byte, ((size_t)vocab + 1) * sizeof *first_byte, &stops->table.first_byte));
    return send(b, bytes->data, bytes->length, &stops->table.bytes);
}

dr_status dr_stops_create(dr_backend *backend, const dr_episode_rules *rules, int32_t vocab,
                          dr_stops **out_stops) {
    dr_stops *stops = NULL;
    int32_t *first_byte = NULL;
    dr_buf bytes = {0};
    DR_TRY(dr_alloc(&stops, "stops", 1, sizeof *stops));
    stops->backend = backend;
    _Static_assert((int)DR_STOP_IDS == (int)DR_N_EOS, "every end-of-sequence id has its place");
    memcpy(stops->table.ids, rules->eos, sizeof stops->table.ids);
    fill_in(stops->next, build_trie(stops->next));
    dr_status status = dr_alloc(&first_byte, "bytes of tokens", (int64_t)vocab + 1, sizeof *first_byte);
    if (status == DR_OK) status = send_table(stops, rules->tokenizer, vocab, first_byte, &bytes);
    dr_free(first_byte);
    dr_buf_reset(&bytes);
    if (status != DR_OK) {
        dr_stops_destroy(stops);
        return status;
    }
    *out_stops = stops;
    return DR_OK;
}

void dr_stops_destroy(dr_stops *stops) {
    if (!stops) return;
    dr_backend *b = stops->backend;
    b->ops->memory_destroy(b, (void *)stops->table.next);
    b->ops->memory_destroy(b, (void *)stops->table.first_byte);
    b->ops->memory_destroy(b, (void *)stops->table.bytes);
    dr_free(stops);
}

const dr_stop_table *dr_stops_table(const dr_stops *stops) {
    return &stops->table;
}

int64_t dr_stops_memory(int32_t vocab) {
    return (int64_t)sizeof(automaton) + ((int64_t)vocab + 1) * (int64_t)sizeof(int32_t) + 16 * (int64_t)vocab;
}

uint8_t dr_stops_state(const dr_stops *stops, const char *turn_text, size_t length) {
    size_t longest = sizeof DR_TAG_ANSWER_END - 1, from = length > longest ? length - longest : 0;
    uint8_t state = 0; // what stands further back is no part of a tag that is still open
    for (size_t i = from; i < length && state != DR_STOP_REACHED; i++)
        state = stops->next[state][(uint8_t)turn_text[i]];
    return state;
}
