// The driving loop and the mailbox.
#include "mpi/run.h"

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/comm/message.h"

dr_status dr_run_roles(dr_role **roles, int n) {
    for (int idle = 0;;) {
        bool worked = false, all_done = true;
        for (int i = 0; i < n; i++) {
            if (roles[i]->is_done) continue;
            DR_TRY(roles[i]->ops->poll(roles[i], &worked));
            all_done &= roles[i]->is_done;
        }
        if (all_done) return DR_OK;
        idle = worked ? 0 : idle + 1;
        if (idle > 1) dr_clock_sleep(idle > 50 ? 0.001 : 0.0001);
    }
}

dr_status dr_mailbox_init(dr_mailbox *box, dr_channel *channel, const char *role, double deadline_s) {
    *box = (dr_mailbox){.channel = channel, .role = role, .deadline_s = deadline_s};
    DR_TRY(dr_alloc(&box->heard, "heartbeats", channel->size, sizeof *box->heard));
    for (int e = 0; e < channel->size; e++) box->heard[e] = dr_clock_seconds();
    return DR_OK;
}

void dr_mailbox_reset(dr_mailbox *box) {
    dr_free(box->heard);
    dr_buf_reset(&box->out);
    dr_buf_reset(&box->in);
    *box = (dr_mailbox){0};
}

dr_status dr_mailbox_send(dr_mailbox *box, int to, uint64_t policy_version) {
    dr_message_finish(&box->out, ++box->sent, policy_version);
    return box->channel->ops->send(box->channel, to, box->out.data, box->out.length);
}

dr_status dr_mailbox_beat(dr_mailbox *box, int first, int last) {
    double now = dr_clock_seconds();
    if (now - box->beat < 1.0) return DR_OK;
    box->beat = now;
    for (int e = first; e <= last; e++) {
        DR_TRY(dr_message_begin(&box->out, DR_MSG_HEARTBEAT, 0));
        DR_TRY(dr_mailbox_send(box, e, 0));
    }
    return DR_OK;
}

dr_status dr_mailbox_watch(const dr_mailbox *box, int first, int last, const char *phase) {
    double now = dr_clock_seconds();
    for (int e = first; e <= last; e++)
        DR_CHECK(now - box->heard[e] < box->deadline_s, DR_ERR_TIMEOUT,
                 "%s (endpoint %d), phase %s: endpoint %d has been silent for %.0f s", box->role,
                 box->channel->rank, phase, e, now - box->heard[e]);
    return DR_OK;
}
