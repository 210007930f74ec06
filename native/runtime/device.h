// A device of one JavaScript environment: its backend, queues, allocators, counters; and the storages it hands out.
#ifndef LONGSEQ_RUNTIME_DEVICE_H
#define LONGSEQ_RUNTIME_DEVICE_H

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "longseq/backend.h"
#include "runtime/allocator.h"
#include "runtime/attention_engine.h"
#include "runtime/durations.h"
#include "runtime/op_count.h"
#include "runtime/program_log.h"
#include "runtime/queue.h"
#include "runtime/recorder.h"
#include "runtime/thread_pool.h"

namespace longseq {

class Device;
class DiskFile;

// Bytes that views share; reference-counted by hand on the JavaScript thread.
struct Storage {
  Device *device;
  void *data;
  int64_t bytes;    // asked for
  int64_t rounded;  // accounted
  int32_t tier;
  int32_t category;
  int64_t references;
  uint64_t version;  // raised by every write; saved tensors are checked against it
  bool scalar;       // from the scalar slab
  // The values, for small integer tensors that the host must read without waiting (cu_seqlens).
  std::shared_ptr<const std::vector<int64_t>> host_values;
  // The last tasks that used it and that wrote it on each queue but compute; a release waits for the former on the
  // compute queue.
  uint64_t last_use[LS_QUEUE_COUNT];
  uint64_t last_write[LS_QUEUE_COUNT];
  int64_t block = -1;  // in the device's log
};

// What a workspace depends on beside the arguments.
struct Profile {
  bool cuda = false;
  int32_t capability = 90;  // of a cuda device: 80 for sm_80, 90 for sm_90
  AttentionEngine attention = AttentionEngine::automatic;
};

struct DeviceOptions {
  AttentionEngine attention = AttentionEngine::automatic;
  // Of meta: the CUDA device that it accounts for, by its compute capability, pages and whether ops on host memory run
  // on the CPU's table; capability 0: the CPU.
  int32_t capability = 0;
  int64_t page_bytes = 0;
  bool separate_memory = true;
};

class Device {
 public:
  // Throws Error when the backend cannot open it.
  Device(const ls_backend *backend, std::string name, int32_t index, int32_t threads,
         const DeviceOptions &options = {});
  ~Device();
  Device(const Device &) = delete;
  Device &operator=(const Device &) = delete;

  const ls_backend *backend() const { return backend_; }
  const std::string &name() const { return name_; }
  const ls_device_info &info() const { return info_; }
  bool meta() const { return meta_; }
  const Profile &profile() const { return profile_; }
  // Whether ops whose tensors all lie on the host run on the CPU's table.
  bool separate_memory() const { return separate_memory_; }
  int32_t threads() const { return threads_; }
  Allocator &allocator(int32_t tier) { return *allocators_[tier]; }
  Recorder &recorder() { return recorder_; }
  Queue &queue(int32_t kind);
  OpCounts &counts() { return counts_; }
  // What counts() was at points that somebody marked.
  std::vector<OpCounts> &marks() { return marks_; }
  // Notes from now on what is asked of the allocators and queues; what was there before is left out. durations: of what
  // is enqueued.
  void start_log(Durations durations);
  // Null: none was started.
  ProgramLog *log() { return log_.get(); }
  const Durations &durations() const { return durations_; }
  void stop_log();
  ls_exec exec_template() const;

  // Bytes may be 0. Up to 64 bytes come from a slab outside the allocator, so that scalars (a loss, a norm) that only
  // the garbage collector frees never show in live bytes.
  Storage *allocate(int64_t bytes, int32_t category, int32_t tier = LS_TIER_DEVICE);
  // The storage is for something else from now on.
  void recategorize(Storage *storage, int32_t category);
  void retain(Storage *storage) { ++storage->references; }
  void release(Storage *storage);

  // Enqueues a task; tasks of an update bracket (begin_update), on whatever queues, are finished once one has begun.
  uint64_t enqueue(int32_t queue, Task task);
  // Whether ops need not run: nothing is behind the addresses, and nobody records when they would have.
  bool only_accounts() const { return meta_ && !recorder_.on(); }
  // Runs `work` in order on a queue. `work` and `always` run on the queue's thread.
  void run_on_queue(int32_t queue, const char *name, std::function<ls_status(const ls_exec &)> work,
                    std::function<void(const Outcome &)> always = {});
  // The task just enqueued on `queue` uses the storage: remembers it for the release and for order().
  void used(Storage *storage, int32_t queue, uint64_t sequence, bool writes);
  // A task about to be enqueued on `queue` reads or writes the storage: it will start behind those tasks of other
  // queues (but compute) that wrote it or, where it writes, used it.
  void order(int32_t queue, const Storage *storage, bool writes);
  // Work enqueued later on `queue` starts after everything enqueued so far on `other`.
  void wait_for(int32_t queue, int32_t other);

  // Files behind the disk tier, whose pages go back with the tier's.
  void add_disk(const std::shared_ptr<DiskFile> &file) { disks_.push_back(file); }

  // Brackets may lie in one another: the outermost counts.
  void begin_update() {
    if (update_depth_++ == 0) update_ = ++updates_;
  }
  void end_update();
  // Optimizer updates enqueued and finished.
  uint64_t steps_enqueued() const { return steps_enqueued_.load(std::memory_order_acquire); }
  uint64_t steps_finished() const { return steps_finished_.load(std::memory_order_acquire); }

  // Where in the program what is enqueued from now on belongs, for messages: two parts, of which either may be "".
  void set_place(const std::string &step, const std::string &layer);

  // Progress markers are passed in order on the compute queue.
  void marker(int64_t value);
  int64_t last_marker() const { return last_marker_.load(std::memory_order_acquire); }

  void cancel() { gate_.close(); }
  // From any thread: what streams wait for will not come, and they go on with whatever bytes there are. Nothing that
  // they leave counts from here on, and what would need it is not given to them.
  void give_up(const Outcome &outcome);
  void resume();
  bool cancelled() const { return gate_.closed(); }
  // What was recorded since recorder().start(), with all that has been given to the queues so far.
  std::string stop_trace();
  // Blocks until all queues are empty.
  void drain();
  Outcome outcome();

 private:
  void choose_attention(AttentionEngine engine);
  void *slab_take();
  Allocator::Hooks disk_hooks();

  const ls_backend *backend_;
  std::string name_;
  bool meta_;
  int32_t threads_;
  Profile profile_;
  bool separate_memory_;
  void *state_ = nullptr;
  ls_device_info info_{};
  std::unique_ptr<ThreadPool> pool_;
  Recorder recorder_;
  Gate gate_;
  std::array<std::unique_ptr<Queue>, LS_QUEUE_COUNT> queues_;
  std::array<void *, LS_QUEUE_COUNT> streams_{};
  std::array<std::unique_ptr<Allocator>, LS_TIER_COUNT> allocators_;
  struct Reservation {
    int32_t tier;
    void *address;
    int64_t bytes;
  };
  std::vector<Reservation> reservations_;
  std::vector<void *> slab_free_;
  std::vector<std::weak_ptr<DiskFile>> disks_;
  OpCounts counts_;
  std::vector<OpCounts> marks_;
  std::unique_ptr<ProgramLog> log_;
  Durations durations_;  // while there is a log
  int64_t logged_ = 0;   // blocks of earlier logs
  uint64_t update_ = 0, updates_ = 0;
  int update_depth_ = 0;
  std::shared_ptr<const std::string> place_;
  std::atomic<uint64_t> steps_enqueued_{0};  // resume() writes it on a thread of its own
  std::atomic<uint64_t> steps_finished_{0};
  std::atomic<int64_t> last_marker_{0};
};

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_DEVICE_H
