// Stops, caps and turns of one episode.
#include "core/episode/episode.h"

#include <string.h>

void dr_episode_rules_eos(dr_episode_rules *rules, int32_t model_eos) {
    rules->eos[0] = model_eos;
    rules->eos[1] = dr_tokenizer_special(rules->tokenizer, "<|endoftext|>");
    rules->eos[2] = dr_tokenizer_special(rules->tokenizer, "<|im_end|>");
    rules->eos[3] = dr_tokenizer_special(rules->tokenizer, "<|eot_id|>");
}

void dr_episode_reset(dr_episode *episode) {
    if (!episode) return;
    dr_trajectory_reset(&episode->trajectory);
    dr_buf_reset(&episode->turn_text);
    dr_buf_reset(&episode->preference);
    memset(episode, 0, sizeof *episode);
}

void dr_episode_scratch_reset(dr_episode_scratch *scratch) {
    if (!scratch) return;
    dr_rendering_reset(&scratch->rendering);
    dr_free(scratch->ids);
    memset(scratch, 0, sizeof *scratch);
}

static void begin_turn(dr_episode *e, uint16_t turn) {
    e->turn = turn;
    e->turn_begin = e->trajectory.n_tokens;
    e->state = DR_EPISODE_RUNNING;
    dr_buf_clear(&e->turn_text);
    dr_buf_clear(&e->preference);
}

static void stop(dr_episode *e, dr_stop why) {
    e->trajectory.stop = why;
    e->state = DR_EPISODE_DONE;
}

// Room for a usual turn's text.
static dr_status reserve_text(dr_buf *text) {
    static const char blank[4096];
    if (text->capacity > sizeof blank) return DR_OK;
    dr_buf_clear(text);
    return dr_buf_append(text, blank, sizeof blank);
}

dr_status dr_episode_begin(dr_episode *e, const dr_episode_rules *rules, const int32_t *prompt,
                           int32_t n_prompt) {
    enum { USUAL_TOKENS = 1024 }; // room made now, so that most episodes never grow while they decode
    int32_t room = n_prompt + USUAL_TOKENS, most = rules->protocol.max_total_tokens;
    DR_CHECK(n_prompt >= 1, DR_ERR_ARGUMENT, "an episode needs a prompt of at least one token");
    dr_trajectory_reset(&e->trajectory);
    if (room > most && most > n_prompt) room = most;
    DR_TRY(dr_trajectory_reserve(&e->trajectory, room));
    DR_TRY(reserve_text(&e->turn_text));
    DR_TRY(reserve_text(&e->preference));
    DR_TRY(dr_trajectory_append(&e->trajectory, prompt, n_prompt, DR_FROM_PROMPT, 0, NULL, NULL));
    begin_turn(e, 0);
    if (n_prompt >= rules->protocol.max_total_tokens) stop(e, DR_STOP_TOTAL_CAP);
    return DR_OK;
}

dr_draw_key dr_episode_draw_key(const dr_episode *e) {
    const dr_trajectory *t = &e->trajectory;
    return (dr_draw_key){.seed = t->seed,
                         .step = t->step,
                         .prompt = t->prompt,
                         .sample = t->sample,
                         .turn = e->turn,
                         .position = (uint32_t)(t->n_tokens - e->turn_begin)};
}

int32_t dr_episode_room(const dr_episode *e, const dr_episode_rules *rules) {
    const int32_t n = e->trajectory.n_tokens, total = rules->protocol.max_total_tokens - n,
                  turn = rules->protocol.max_turn_tokens - (n - e->turn_begin);
    return total < turn ? total : turn;
}

// The first stop tag that ends behind `known` bytes; its end goes to *out_end.
static dr_tag stop_tag(const dr_buf *text, size_t known, size_t *out_end) {
    size_t longest = strlen(DR_TAG_ANSWER_END); // the longer one of the two
    size_t at = known > longest ? known - longest : 0;
    for (dr_tag tag; (tag = dr_tag_next(text->data, text->length, &at, NULL)) != DR_TAG_NONE;) {
        if (tag != DR_TAG_AT_PREFERENCE_END && tag != DR_TAG_AT_ANSWER_END) continue;
        *out_end = at;
        return tag;
    }
    return DR_TAG_NONE;
}

// A preference has ended at byte `end` of the turn.
static dr_status ask(dr_episode *e, const dr_episode_rules *rules, size_t end) {
    DR_TRY(dr_preference_extract(e->turn_text.data, end, &e->preference));
    if (e->preference.length == 0)
        stop(e, DR_STOP_EMPTY_QUERY);
    else if (e->trajectory.n_turns >= rules->protocol.max_retrievals)
        stop(e, DR_STOP_RETRIEVAL_CAP);
    else
        e->state = DR_EPISODE_ASKS;
    return DR_OK;
}

dr_status dr_episode_token(dr_episode *e, const dr_episode_rules *rules, const dr_sampled *token) {
    DR_ASSERT(e->state == DR_EPISODE_RUNNING);
    dr_trajectory *t = &e->trajectory;
    size_t known = e->turn_text.length, end = 0;
    DR_TRY(dr_trajectory_append_sampled(t, token, e->turn));
    for (int i = 0; i < DR_N_EOS; i++)
        if (token->id == rules->eos[i]) {
            stop(e, DR_STOP_EOS);
            return DR_OK;
        }
    DR_TRY(dr_protocol_decode(rules->tokenizer, &token->id, 1, &e->turn_text));
    dr_tag tag = stop_tag(&e->turn_text, known, &end);
    if (tag == DR_TAG_AT_ANSWER_END)
        stop(e, DR_STOP_ANSWER);
    else if (tag == DR_TAG_AT_PREFERENCE_END)
        return ask(e, rules, end);
    else if (t->n_tokens >= rules->protocol.max_total_tokens)
        stop(e, DR_STOP_TOTAL_CAP);
    else if (t->n_tokens - e->turn_begin >= rules->protocol.max_turn_tokens)
        stop(e, DR_STOP_TURN_CAP);
    return DR_OK;
}

dr_status dr_episode_items(dr_episode *e, const dr_episode_rules *rules, const float *embedding,
                           int32_t text_dim, const int32_t *items, int32_t n_items,
                           dr_episode_scratch *scratch) {
    DR_ASSERT(e->state == DR_EPISODE_ASKS);
    dr_trajectory *t = &e->trajectory;
    scratch->n_ids = 0;
    DR_TRY(dr_template_item_list_ids(rules->prompt_template, rules->tokenizer, rules->dataset, items, n_items,
                                     &scratch->rendering, &scratch->ids, &scratch->n_ids,
                                     &scratch->capacity));
    // A list that leaves no room for an answer ends the episode before it.
    if (scratch->n_ids >= rules->protocol.max_total_tokens - t->n_tokens) {
        stop(e, DR_STOP_TOTAL_CAP);
        return DR_OK;
    }
    DR_TRY(dr_trajectory_add_turn(t, e->turn_begin, t->n_tokens, e->preference.data, embedding, text_dim,
                                  items, n_items));
    DR_TRY(dr_trajectory_append(t, scratch->ids, (int32_t)scratch->n_ids, DR_FROM_TOOL, e->turn, NULL, NULL));
    begin_turn(e, (uint16_t)(e->turn + 1));
    return DR_OK;
}
