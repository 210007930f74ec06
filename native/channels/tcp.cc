// Channels over TCP, for ranks on several machines: a connection for each pair of ranks.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>

#include "channels/channels.h"
#include "runtime/error.h"
#include "runtime/recorder.h"

namespace longseq::channels {

namespace {

constexpr uint64_t kGreeting = 0x6c6f6e6773657132ULL;
// How long a rank may take to be reached, once all have said where they are. Milliseconds.
constexpr int kConnectMs = 60'000;
// One call of the system moves at most so much.
constexpr int64_t kPieceBytes = int64_t{4} << 20;

[[noreturn]] void tcp_fail(const std::string &what) {
  throw Error(LS_DEVICE_FAILURE, format("%s: %s", what.c_str(), std::strerror(errno)));
}

// What a rank that connects says: that it knows the other's number, which only ranks of the job do.
struct Greeting {
  uint64_t magic, nonce;
  int32_t rank, size;
};

class Tcp final : public Channels {
 public:
  explicit Tcp(const ls_comm_options &options)
      : Channels(options),
        host_(options.host && *options.host ? options.host : "127.0.0.1"),
        sockets_(static_cast<size_t>(options.size), -1) {
    if (host_.size() > 150 || host_.find_first_of(" \n") != std::string::npos)
      throw Error(LS_INVALID_ARGUMENT, format("'%s' is no address of a machine", host_.c_str()));
    const bool six = host_.find(':') != std::string::npos;
    listener_ = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener_ < 0) tcp_fail("cannot open a socket");
    sockaddr_storage any{};
    any.ss_family = six ? AF_INET6 : AF_INET;
    socklen_t length = six ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
    if (bind(listener_, reinterpret_cast<sockaddr *>(&any), length) != 0 || listen(listener_, size_) != 0 ||
        getsockname(listener_, reinterpret_cast<sockaddr *>(&any), &length) != 0)
      tcp_fail("cannot listen for the other ranks");
    port_ = ntohs(six ? reinterpret_cast<sockaddr_in6 *>(&any)->sin6_port
                      : reinterpret_cast<sockaddr_in *>(&any)->sin_port);
    if (getrandom(&nonce_, sizeof nonce_, 0) != static_cast<ssize_t>(sizeof nonce_)) tcp_fail("no random numbers");
  }

  ~Tcp() override {
    for (int socket : sockets_)
      if (socket >= 0) ::close(socket);
    if (listener_ >= 0) ::close(listener_);
  }

  void address(char out[LS_COMM_ADDRESS_BYTES]) const override {
    std::snprintf(out, LS_COMM_ADDRESS_BYTES, "%s %d %" PRIu64, host_.c_str(), port_, nonce_);
  }

  // Each rank connects to those below it and is found by those above.
  void connect(const char *addresses) override {
    for (int32_t r = 0; r < rank_; ++r) reach(r, addresses + static_cast<size_t>(r) * LS_COMM_ADDRESS_BYTES);
    const int64_t until = now_ns() + int64_t{kConnectMs} * 1'000'000;
    for (int32_t missing = size_ - 1 - rank_; missing > 0;)
      if (admit(until)) --missing;
    ::close(listener_);
    listener_ = -1;
    for (int32_t r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      const int socket = sockets_[static_cast<size_t>(r)], on = 1;
      setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      if (fcntl(socket, F_SETFL, O_NONBLOCK) != 0) tcp_fail("cannot set up a connection");
    }
  }

  void exchange(std::vector<Transfer> sends, std::vector<Transfer> receives) override {
    int64_t last = now_ns();
    std::vector<pollfd> waiting;
    for (;;) {
      if (aborted_.load()) throw Error(LS_CANCELLED, "the communicator was aborted");
      bool moved = false;
      waiting.clear();
      for (auto *list : {&sends, &receives})
        for (Transfer &transfer : *list) {
          if (transfer.bytes == 0) continue;
          moved |= progress(transfer, list == &sends);
          if (transfer.bytes > 0)
            waiting.push_back({sockets_[static_cast<size_t>(transfer.rank)],
                               static_cast<short>(list == &sends ? POLLOUT : POLLIN), 0});
        }
      if (waiting.empty()) return;
      const int64_t now = now_ns();
      if (moved) {
        last = now;
        continue;
      }
      if (now - last > timeout_ms_ * 1'000'000) {
        for (const auto *list : {&receives, &sends})
          for (const Transfer &transfer : *list)
            if (transfer.bytes > 0)
              throw Error(LS_DEVICE_FAILURE, format("nothing came from or went to rank %d within %.0f s", transfer.rank,
                                                    static_cast<double>(timeout_ms_) / 1000));
      }
      poll(waiting.data(), waiting.size(), 100);
    }
  }

  void abort() override {
    aborted_.store(true);
    // The others see the end of the connection, and this rank's own wait ends.
    for (int socket : sockets_)
      if (socket >= 0) shutdown(socket, SHUT_RDWR);
  }

 private:
  void reach(int32_t r, const char *text) {
    char host[LS_COMM_ADDRESS_BYTES];
    int port = 0;
    uint64_t nonce = 0;
    if (std::sscanf(text, "%199s %d %" SCNu64, host, &port, &nonce) != 3)
      throw Error(LS_INVALID_ARGUMENT, format("the address of rank %d is garbled", r));
    const std::string name = format("rank %d at %s:%d cannot be reached", r, host, port);
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    const int code = getaddrinfo(host, std::to_string(port).c_str(), &hints, &found);
    if (code != 0) throw Error(LS_DEVICE_FAILURE, name + ": " + gai_strerror(code));
    int made = -1;
    for (const addrinfo *at = found; at && made < 0; at = at->ai_next) {
      made = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (made >= 0 && ::connect(made, at->ai_addr, at->ai_addrlen) != 0) {
        const int failure = errno;
        ::close(made);
        errno = failure;
        made = -1;
      }
    }
    freeaddrinfo(found);
    if (made < 0) tcp_fail(name);
    sockets_[static_cast<size_t>(r)] = made;
    const Greeting greeting{kGreeting, nonce, rank_, size_};
    if (send(made, &greeting, sizeof greeting, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof greeting)) tcp_fail(name);
  }

  // Whether a rank above this one has come; a stranger is sent away.
  bool admit(int64_t until) {
    pollfd ready{listener_, POLLIN, 0};
    const int64_t left = (until - now_ns()) / 1'000'000;
    if (left <= 0 || aborted_.load()) {
      for (int32_t r = rank_ + 1; r < size_; ++r)
        if (sockets_[static_cast<size_t>(r)] < 0)
          throw Error(LS_DEVICE_FAILURE,
                      format("rank %d has not connected to rank %d within %d s", r, rank_, kConnectMs / 1000));
    }
    if (poll(&ready, 1, static_cast<int>(left < 100 ? left : 100)) != 1) return false;
    const int came = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (came < 0) return false;
    // It has nothing to think about.
    const timeval patience{5, 0};
    setsockopt(came, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    Greeting greeting{};
    const bool whole = recv(came, &greeting, sizeof greeting, MSG_WAITALL) == static_cast<ssize_t>(sizeof greeting);
    if (!whole || greeting.magic != kGreeting || greeting.nonce != nonce_ || greeting.size != size_ ||
        greeting.rank <= rank_ || greeting.rank >= size_ || sockets_[static_cast<size_t>(greeting.rank)] >= 0) {
      ::close(came);
      return false;
    }
    sockets_[static_cast<size_t>(greeting.rank)] = came;
    return true;
  }

  // Moves what can be moved now; whether that was anything.
  bool progress(Transfer &transfer, bool sending) {
    const int socket = sockets_[static_cast<size_t>(transfer.rank)];
    bool moved = false;
    while (transfer.bytes > 0) {
      const auto bytes = static_cast<size_t>(transfer.bytes < kPieceBytes ? transfer.bytes : kPieceBytes);
      const ssize_t count =
          sending ? send(socket, transfer.data, bytes, MSG_NOSIGNAL) : recv(socket, transfer.data, bytes, 0);
      if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        if (aborted_.load()) throw Error(LS_CANCELLED, "the communicator was aborted");
        // A rank that gave up and one whose process is gone look alike; the meeting place knows.
        throw Error(LS_CANCELLED, format("rank %d has stopped or ended (its connection is closed)", transfer.rank));
      }
      transfer.data += count;
      transfer.bytes -= count;
      moved = true;
    }
    return moved;
  }

  const std::string host_;
  int listener_ = -1;
  int port_ = 0;
  uint64_t nonce_ = 0;
  std::vector<int> sockets_;  // -1 where not connected
  std::atomic<bool> aborted_{false};
};

}  // namespace

std::unique_ptr<Channels> open_tcp(const ls_comm_options &options) { return std::make_unique<Tcp>(options); }

}  // namespace longseq::channels
