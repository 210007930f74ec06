// Channels between ranks: bytes to and from any of them at once. Collectives are made of that (collectives.cc); a
// transport is a file here.
#ifndef LONGSEQ_CHANNELS_CHANNELS_H
#define LONGSEQ_CHANNELS_CHANNELS_H

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "longseq/comm.h"

namespace longseq::channels {

// A rank's ends of its channels to and from every other.
class Channels {
 public:
  // Bytes to or from another rank.
  struct Transfer {
    int32_t rank;
    char *data;
    int64_t bytes;
  };

  explicit Channels(const ls_comm_options &options)
      : rank_(options.rank), size_(options.size), timeout_ms_(options.timeout_ms) {}
  virtual ~Channels() = default;
  Channels(const Channels &) = delete;
  Channels &operator=(const Channels &) = delete;

  int32_t rank() const { return rank_; }
  int32_t size() const { return size_; }
  // How the others find this rank. Ends with a zero.
  virtual void address(char out[LS_COMM_ADDRESS_BYTES]) const = 0;
  // addresses: of all ranks, LS_COMM_ADDRESS_BYTES each. Blocks. Throws Error.
  virtual void connect(const char *addresses) = 0;
  // Sends and receives at once, at most one transfer each way for a rank. Throws Error: LS_CANCELLED after abort(),
  // here or on another rank; LS_DEVICE_FAILURE where another rank ended, or made no progress within the timeout.
  virtual void exchange(std::vector<Transfer> sends, std::vector<Transfer> receives) = 0;
  // From any thread.
  virtual void abort() = 0;
  void set_timeout(int64_t timeout_ms) { timeout_ms_ = timeout_ms; }

 protected:
  const int32_t rank_, size_;
  std::atomic<int64_t> timeout_ms_;  // without progress
};

// Throw Error.
std::unique_ptr<Channels> open_shared_memory(const ls_comm_options &options);
std::unique_ptr<Channels> open_tcp(const ls_comm_options &options);

}  // namespace longseq::channels

#endif  // LONGSEQ_CHANNELS_CHANNELS_H
