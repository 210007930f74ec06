// Channels between the processes of one machine: bytes go through memory that both have mapped.
#ifndef LONGSEQ_SHM_CHANNELS_H
#define LONGSEQ_SHM_CHANNELS_H

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "longseq/comm.h"

namespace longseq::shm {

struct Window;

// A rank's ends of its channels to and from every other. Each rank has one window: a file without a name, which all map
// and which is gone with the last of them. The bytes that rank s sends to rank r wait in s's window, in a few slots
// that are used in turn.
class Channels {
 public:
  // Bytes to or from another rank.
  struct Transfer {
    int32_t rank;
    char *data;
    int64_t bytes;
  };

  // Throws Error.
  Channels(int32_t rank, int32_t size, int64_t timeout_ms);
  ~Channels();
  Channels(const Channels &) = delete;
  Channels &operator=(const Channels &) = delete;

  int32_t rank() const { return rank_; }
  int32_t size() const { return size_; }
  // How the others find this rank's window.
  void address(char out[LS_COMM_ADDRESS_BYTES]) const;
  void connect(const char *addresses);

  // Sends and receives at once, at most one transfer each way for a rank. Throws Error: LS_CANCELLED after abort(),
  // LS_DEVICE_FAILURE where another rank left, ended, or made no progress within the timeout.
  void exchange(std::vector<Transfer> sends, std::vector<Transfer> receives);
  void abort();

 private:
  bool progress(Transfer &send, bool sending);
  void wake(int32_t rank);
  void check_others(const std::vector<Transfer> &sends, const std::vector<Transfer> &receives);

  const int32_t rank_, size_;
  const int64_t timeout_ms_;
  int64_t window_bytes_;
  int file_ = -1;
  uint64_t nonce_ = 0;
  std::vector<Window *> windows_;  // null where not connected
  std::vector<int> processes_;     // pidfds, -1 for this one
  std::atomic<bool> aborted_{false};
};

}  // namespace longseq::shm

#endif  // LONGSEQ_SHM_CHANNELS_H
