// Connections between the ranks of an emulated NCCL communicator: a Unix socket for each two of them, without
// a thread of its own. All of it goes on in `progress` alone, which never waits.
#ifndef DR_TESTS_EMULATED_NCCL_MESH_H
#define DR_TESTS_EMULATED_NCCL_MESH_H

#include <stdint.h>

#include <deque>
#include <string>
#include <vector>

namespace emulated {

enum message_kind : uint32_t { GREETING, MEETING, READY, DATA, LEAVING };

struct message_head {
    message_kind kind;
    uint32_t operation; // of READY and DATA: what sender and receiver must agree on
    uint64_t bytes;     // of READY: what is expected
    uint64_t payload;   // bytes that follow
};

struct message {
    message_head head;
    std::string payload;
};

// What each rank tells each other one first.
struct greeting {
    int32_t rank, n_ranks, device;
    uint64_t host;
};

class connection {
  public:
    bool is_gone = false; // by the other side, or by an error
    std::deque<message> arrived;
    uint64_t n_put = 0, n_sent = 0; // bytes

    explicit connection(int socket) : socket_(socket) {}
    connection(const connection &) = delete;
    ~connection();
    void put(message_kind kind, uint32_t operation, uint64_t bytes, const void *payload, size_t n);
    void progress();

  private:
    int socket_;
    std::string out_, in_;
    void send_some();
    void receive_some();
    bool take_message();
};

class mesh {
  public:
    std::vector<connection *> to;    // [n_ranks], by rank; NULL: not greeted yet, or the own one
    std::vector<greeting> greetings; // [n_ranks], where greeted

    mesh(const std::string &name, const greeting &own);
    mesh(const mesh &) = delete;
    ~mesh();
    bool is_listening() const {
        return listener_ >= 0;
    }
    bool is_complete() const {
        return n_greeted_ == own_.n_ranks - 1;
    }
    void progress();

  private:
    std::string name_;
    greeting own_;
    int listener_, n_greeted_ = 0;
    std::vector<bool> is_asked_;             // ranks below the own one, connected to
    std::vector<connection *> all_, unread_; // unread: no greeting has come
    void connect_to(int rank);
    void accept_all();
    void add(int socket);
    void read_greetings();
};

} // namespace emulated

#endif
