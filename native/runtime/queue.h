// An ordered queue of a device, drained by one native thread: JavaScript enqueues and goes on.
#ifndef LONGSEQ_RUNTIME_QUEUE_H
#define LONGSEQ_RUNTIME_QUEUE_H

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "longseq/backend.h"

namespace longseq {

// What became of the work that a task stood for.
struct Outcome {
  ls_status status = LS_OK;
  std::string message;
};

struct Task {
  // The work; given the outcome of the queue so far. Ordinary tasks are not run once the queue failed or was cancelled.
  std::function<ls_status(const ls_exec &exec)> run;
  // Runs in any case, with the queue's outcome: promises are settled and pages given back here.
  std::function<void(const Outcome &)> always;
  // Non-zero: part of this optimizer update. One that has begun is finished even when the queue is cancelled.
  uint64_t update = 0;
  const char *name = "task";
  std::function<std::string()> shapes;       // of its tensors, for the message of a failure; may be empty
  std::shared_ptr<const std::string> place;  // for it too: where in the program it was enqueued; may be null
  int64_t bytes = 0;
  double flops = 0;
  bool recorded = false;
  int64_t enqueued_ns = 0;  // set while the recorder is on
};

class Recorder;

// The place of the task that this thread is running, or "": " in step 3, forward of layer 2".
const std::string &running_place();

// Decides what a cancellation drops. One serves all queues of a device: an update whose first task has begun on any of
// them is finished on all of them, and one of which a task was dropped never begins.
class Gate {
 public:
  // From here on only updates that have begun get through, until open().
  void close();
  void open();
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  // Whether a task may run that belongs to this update (0: to none). Updates begin in the order of their numbers.
  bool admit(uint64_t update);
  // What is left of an update that has begun is dropped: a part of it was given up.
  void abandon(uint64_t update);
  // What streams leave from here on is no result, until open().
  void give_up() { given_up_.store(true, std::memory_order_release); }
  bool given_up() const { return given_up_.load(std::memory_order_acquire); }

 private:
  std::mutex mutex_;
  std::atomic<bool> closed_{false}, given_up_{false};
  uint64_t begun_ = 0, abandoned_ = UINT64_MAX;
};

class Queue {
 public:
  // backend: whose stream exec has; its events are used where it has any.
  Queue(ls_queue_kind kind, const ls_backend *backend, const ls_exec &exec, Recorder *recorder, Gate *gate,
        std::function<void(const Outcome &)> on_failure);
  ~Queue();
  Queue(const Queue &) = delete;
  Queue &operator=(const Queue &) = delete;

  // Returns the task's sequence number.
  uint64_t enqueue(Task task);
  // The same for a task that has nothing to do: where the queue is empty, it is over at once.
  uint64_t pass();
  uint64_t enqueued() const { return enqueued_.load(std::memory_order_acquire); }
  uint64_t completed() const { return completed_.load(std::memory_order_acquire); }
  // Blocks until the task with this number, and so all before it, is over: where the backend has streams, until it was
  // given to one.
  void wait(uint64_t sequence);
  // From waiter's thread: what waiter does next starts after the task with this number. Waits for it to be given to the
  // stream and lets waiter's stream wait for its end, or waits for that here where waiter has no stream.
  void join(uint64_t sequence, const Queue &waiter);
  // Whether the task with this number has ended, on the device too.
  bool ended(uint64_t sequence) const;
  // Hands what was recorded of tasks that have been given to the stream to the recorder; waits for their end.
  void flush_records();

  // Makes every later ordinary task be passed over; the first failure stays.
  void fail(const Outcome &outcome);
  // Forgets a failure of a file, which leaves the device itself sound; others stay.
  void recover();
  Outcome outcome() const;

 private:
  // The end of a task on the stream, and what the recorder wants to know of it.
  struct Mark {
    uint64_t sequence = 0;
    std::shared_ptr<void> event;  // of the backend; freed when nobody waits for it any more
    const char *name = nullptr;   // null: not recorded
    int64_t enqueued_ns = 0, start_ns = 0, bytes = 0;
    double flops = 0;
  };
  // Tasks that may be given to the stream before the first of them has ended: enough to hide what a launch costs, few
  // enough for cancelling and markers to keep up with the device.
  static constexpr uint64_t kAhead = 32;

  void drain();
  bool has_stream() const { return exec_.stream && backend_->event_record; }
  // Waits for the end of the mark's task, so that the mark can be used again.
  ls_status retire(Mark &mark, char *error, size_t error_size);
  ls_status mark_end(uint64_t sequence, Task &task, bool record, int64_t start_ns);
  // LS_CANCELLED where what a task waited for, or has just given to the stream, was given up.
  ls_status check_given_up(const Task &task, char *error, size_t error_size);
  void report(Mark &mark);
  void report_ended();
  void agree_on_time(char *error, size_t error_size);
  // An event that is freed when nobody holds it any more.
  std::shared_ptr<void> owned(void *event) const;

  const ls_queue_kind kind_;
  const ls_backend *backend_;
  ls_exec exec_;
  Recorder *recorder_;
  Gate *gate_;
  std::function<void(const Outcome &)> on_failure_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_, finished_;
  std::deque<Task> tasks_;
  std::atomic<uint64_t> enqueued_{0}, completed_{0};
  Outcome failure_;
  bool stop_ = false;
  std::mutex marks_mutex_;
  std::array<Mark, kAhead> marks_;
  std::atomic<uint64_t> retired_{0};  // tasks up to this one have ended on the device
  std::shared_ptr<void> base_event_;  // the last whose time the host knows
  int64_t base_ns_ = 0, last_end_ns_ = 0, agreed_ns_ = 0;
  std::thread thread_;
};

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_QUEUE_H
