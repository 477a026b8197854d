// The driving loop and the mailbox.
#include "mpi/run.h"

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/comm/message.h"

static dr_status poll_role(dr_role *role, bool *out_worked) {
    const dr_alive_listener *before = dr_alive_listen(&role->alive);
    dr_status status = role->ops->poll(role, out_worked);
    dr_alive_listen(before);
    return status;
}

dr_status dr_run_roles(dr_role **roles, int n) {
    for (int idle = 0;;) {
        bool worked = false, all_done = true;
        for (int i = 0; i < n; i++) {
            if (roles[i]->is_done) continue;
            DR_TRY(poll_role(roles[i], &worked));
            all_done &= roles[i]->is_done;
        }
        if (all_done) return DR_OK;
        idle = worked ? 0 : idle + 1;
        if (idle > 1) dr_clock_sleep(idle > 50 ? 0.001 : 0.0001);
    }
}

dr_status dr_mailbox_init(dr_mailbox *box, dr_channel *channel, const char *role, double deadline_s) {
    *box = (dr_mailbox){.channel = channel, .role = role, .deadline_s = deadline_s};
    return dr_alloc(&box->heard, "heartbeats", channel->size, sizeof *box->heard);
}

void dr_mailbox_reset(dr_mailbox *box) {
    dr_free(box->heard);
    dr_buf_reset(&box->out);
    dr_buf_reset(&box->in);
    dr_buf_reset(&box->heartbeat);
    *box = (dr_mailbox){0};
}

static dr_status send_finished(dr_mailbox *box, dr_buf *message, int to, uint64_t policy_version) {
    dr_message_finish(message, ++box->sent, policy_version);
    return box->channel->ops->send(box->channel, to, message->data, message->length);
}

dr_status dr_mailbox_send(dr_mailbox *box, int to, uint64_t policy_version) {
    return send_finished(box, &box->out, to, policy_version);
}

dr_status dr_mailbox_beat(dr_mailbox *box, int first, int last) {
    double now = dr_clock_seconds();
    if (now - box->beat < dr_alive_every(box->deadline_s)) return DR_OK;
    for (int e = 0; e < box->channel->size && box->beat == 0; e++) box->heard[e] = now;
    box->beat = now;
    for (int e = first; e <= last; e++) {
        DR_TRY(dr_message_begin(&box->heartbeat, DR_MSG_HEARTBEAT, 0));
        DR_TRY(send_finished(box, &box->heartbeat, e, 0));
    }
    return DR_OK;
}

void dr_mailbox_excuse(dr_mailbox *box, double begun) {
    double now = dr_clock_seconds();
    for (int e = 0; e < box->channel->size; e++) {
        double heard = box->heard[e] + (now - begun);
        box->heard[e] = heard < now ? heard : now;
    }
}

dr_status dr_mailbox_watch(const dr_mailbox *box, int first, int last, const char *phase) {
    double now = dr_clock_seconds();
    for (int e = first; e <= last; e++)
        DR_CHECK(now - box->heard[e] < box->deadline_s, DR_ERR_TIMEOUT,
                 "%s (endpoint %d), phase %s: endpoint %d has been silent for %.0f s", box->role,
                 box->channel->rank, phase, e, now - box->heard[e]);
    return DR_OK;
}
