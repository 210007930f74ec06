// Communicators of this process, by number, and what their ops share.
#ifndef LONGSEQ_RUNTIME_COMM_H
#define LONGSEQ_RUNTIME_COMM_H

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "longseq/comm.h"
#include "runtime/op.h"

namespace longseq {

class Device;

// One group of ranks that this process belongs to. It has an end for host memory, and one for the memory of a device
// with streams where that was opened too.
class Communicator {
 public:
  // name: of the group, for messages. transport: "shm" (ranks of one machine), "tcp" (of several) or "meta" (no other
  // rank is there). Throws Error.
  Communicator(std::string name, const std::string &transport, const ls_comm_options &options);
  ~Communicator();
  Communicator(const Communicator &) = delete;
  Communicator &operator=(const Communicator &) = delete;

  // What the other ranks need to reach this one: LS_COMM_ADDRESS_BYTES.
  const std::string &address() const { return address_; }
  // addresses: of all ranks, in their order. Blocks; throws Error.
  void connect(const std::string &addresses);
  // Opens the end for a device's own memory, in place of one that there is; its address, as `address`. whole: has all
  // these ranks among its own, and such an end; null where there is none. color: as in ls_comm_options. Throws Error.
  std::string open_device(std::shared_ptr<Device> device, const Communicator *whole, int32_t color);
  void connect_device(const std::string &addresses);
  void set_timeout(int64_t timeout_ms);
  void abort();

  // What this rank is about to do, which all of them must do: noted, and compared where that is asked for. On a comm
  // queue.
  ls_status announce(const ls_exec *exec, const char *op, const ls_tensor &x, int64_t detail = 0);
  // Notes it alone; its description.
  std::string note(const char *op, const ls_tensor &x, int64_t detail = 0);
  // Whether announcements are compared; from the next one on.
  void compare(bool on) { compares_.store(on, std::memory_order_relaxed); }

  const std::string &name() const { return name_; }
  int32_t rank() const { return rank_; }
  int32_t size() const { return size_; }
  struct End {
    const ls_comm_table *table = nullptr;
    void *handle = nullptr;
  };
  // The end that reaches the tensors of a task. Throws Error where it was not opened.
  const End &end(const ls_exec *exec) const;
  // Whether a device of this profile leaves sums to its library, which takes no workspace for them.
  bool sums_itself(const Profile &profile, int32_t dtype, int64_t kind) const;

 private:
  void connect_end(const End &end, const std::string &addresses);

  const ls_comm_options options_;
  const std::string name_;
  End host_, device_end_;
  std::shared_ptr<Device> device_;  // of device_end_
  int32_t rank_, size_;
  std::string address_;
  uint64_t announced_ = 0;
  std::atomic<bool> compares_{false};
};

// Gives it a number, which ops take.
int64_t add_communicator(std::shared_ptr<Communicator> communicator);
// Throws Error(LS_INVALID_ARGUMENT) that names `op`.
std::shared_ptr<Communicator> find_communicator(int64_t number, const char *op);
void remove_communicator(int64_t number);

// The last collectives of this process on all communicators, the newest last: what, group, number in it, place.
std::vector<std::string> last_collectives();
// Notes one; the oldest goes.
void note_collective(std::string text);

// The rank of this process in its job, for messages; 0 where it is alone.
int32_t process_rank();
void set_process_rank(int32_t rank);

// ---- for the ops ----

inline int64_t bytes_of(const ls_tensor &t) { return elements(t) * dtype_bytes(t.dtype); }

// The communicator, after checking that the first dim of `parts` has a part for each of its ranks.
std::shared_ptr<Communicator> check_parts(const Check &check, const char *op, int64_t comm, const char *name,
                                          const ls_tensor &parts);
// `whole` [P, ...] has the sizes of `part` [...] behind its first dim, and its dtype.
void check_part_of(const Check &check, const char *name, const ls_tensor &part, const char *whole_name,
                   const ls_tensor &whole);
void check_reduction(const Check &check, const ls_tensor &x, int64_t kind);

namespace channels {
const ls_comm_table *shared_memory_table();
const ls_comm_table *tcp_table();
}  // namespace channels
namespace meta {
const ls_comm_table *comm_table();
}

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_COMM_H
