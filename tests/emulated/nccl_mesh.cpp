// Body of nccl_mesh.h. Addresses are abstract: nothing to remove afterwards, whatever became of a process.
#include "tests/emulated/nccl_mesh.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>

namespace emulated {

namespace {

int open_socket() {
    return socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

socklen_t address_of(const std::string &name, int rank, sockaddr_un *out) {
    const std::string path = name + "-" + std::to_string(rank);
    *out = {};
    out->sun_family = AF_UNIX; // sun_path[0] stays 0
    const size_t n = std::min(path.size(), sizeof out->sun_path - 1);
    memcpy(out->sun_path + 1, path.data(), n);
    return (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + n);
}

} // namespace

// ---- one connection ----

connection::~connection() {
    close(socket_);
}

void connection::put(message_kind kind, uint32_t operation, uint64_t bytes, const void *payload, size_t n) {
    const message_head head = {kind, operation, bytes, n};
    out_.append((const char *)&head, sizeof head);
    if (n > 0) out_.append((const char *)payload, n);
    n_put += sizeof head + n;
    send_some();
}

void connection::send_some() {
    size_t done = 0;
    while (done < out_.size()) {
        const ssize_t n = send(socket_, out_.data() + done, out_.size() - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) is_gone = true;
        if (n <= 0) break;
        done += (size_t)n;
    }
    n_sent += done;
    out_.erase(0, done);
}

bool connection::take_message() {
    message_head head;
    if (in_.size() < sizeof head) return false;
    memcpy(&head, in_.data(), sizeof head);
    if (in_.size() < sizeof head + head.payload) return false;
    arrived.push_back({head, in_.substr(sizeof head, head.payload)});
    in_.erase(0, sizeof head + head.payload);
    return true;
}

void connection::receive_some() {
    char part[64 * 1024];
    for (;;) {
        const ssize_t n = recv(socket_, part, sizeof part, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0 || (n < 0 && errno != EAGAIN)) is_gone = true;
        if (n <= 0) break;
        in_.append(part, (size_t)n);
    }
    while (take_message()) {
    }
}

void connection::progress() {
    if (is_gone) return;
    receive_some(); // first: what came before the other side closed is there
    if (!is_gone) send_some();
}

// ---- all of a rank ----

mesh::mesh(const std::string &name, const greeting &own)
    : to((size_t)own.n_ranks), greetings((size_t)own.n_ranks), name_(name), own_(own),
      listener_(open_socket()), is_asked_((size_t)own.rank) {
    sockaddr_un address;
    const socklen_t length = address_of(name_, own.rank, &address);
    if (listener_ < 0) return;
    if (bind(listener_, (sockaddr *)&address, length) == 0 && listen(listener_, own.n_ranks) == 0) return;
    close(listener_);
    listener_ = -1;
}

mesh::~mesh() {
    for (connection *one : all_) delete one;
    if (listener_ >= 0) close(listener_);
}

void mesh::add(int socket) {
    connection *one = new connection(socket);
    one->put(GREETING, 0, 0, &own_, sizeof own_);
    all_.push_back(one);
    unread_.push_back(one);
}

// Again at the next progress where that rank does not listen yet.
void mesh::connect_to(int rank) {
    sockaddr_un address;
    const socklen_t length = address_of(name_, rank, &address);
    const int one = open_socket();
    if (one < 0) return;
    if (connect(one, (sockaddr *)&address, length) != 0) {
        close(one);
        return;
    }
    is_asked_[(size_t)rank] = true;
    add(one);
}

void mesh::accept_all() {
    for (;;) {
        const int one = accept4(listener_, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (one < 0 && errno == EINTR) continue;
        if (one < 0) return;
        add(one);
    }
}

void mesh::read_greetings() {
    auto is_read = [this](connection *one) {
        greeting theirs;
        if (one->arrived.empty()) return false;
        const message &first = one->arrived.front();
        if (first.head.kind == GREETING && first.payload.size() == sizeof theirs) {
            memcpy(&theirs, first.payload.data(), sizeof theirs);
            if (theirs.rank >= 0 && theirs.rank < own_.n_ranks && !to[(size_t)theirs.rank]) {
                to[(size_t)theirs.rank] = one;
                greetings[(size_t)theirs.rank] = theirs;
                n_greeted_++;
            }
        }
        one->arrived.pop_front();
        return true;
    };
    unread_.erase(std::remove_if(unread_.begin(), unread_.end(), is_read), unread_.end());
}

void mesh::progress() {
    if (!is_complete()) {
        for (int rank = 0; rank < own_.rank; rank++)
            if (!is_asked_[(size_t)rank]) connect_to(rank);
        accept_all();
    }
    for (connection *one : all_) one->progress();
    read_greetings();
}

} // namespace emulated
