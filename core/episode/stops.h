// Where a turn's tokens stop, for those that draw several of them in turn (dr_burst): end-of-sequence ids,
// and the tags that end a turn in the bytes of its tokens, wherever tokens begin and end. dr_episode_token
// decides what a stop means; this only says after which token it will, so that nothing is drawn behind it in
// vain.
#ifndef DR_CORE_EPISODE_STOPS_H
#define DR_CORE_EPISODE_STOPS_H

#include "core/compute/backend.h"
#include "core/episode/episode.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_stops dr_stops;

// backend: borrowed; the table's arrays are its memory. vocab: ids of the policy; those that the tokenizer
// does not have are read as dr_protocol_decode reads them.
dr_status dr_stops_create(dr_backend *backend, const dr_episode_rules *rules, int32_t vocab,
                          dr_stops **out_stops);
void dr_stops_destroy(dr_stops *stops); // NULL is fine
const dr_stop_table *dr_stops_table(const dr_stops *stops);
// Bytes of backend memory that a table takes, with 16 bytes a token: no usual vocabulary has as many.
int64_t dr_stops_memory(int32_t vocab);
// The automaton's state behind a running turn's text.
uint8_t dr_stops_state(const dr_stops *stops, const char *turn_text, size_t length);

#ifdef __cplusplus
}
#endif
#endif
