// An ordered queue of a device, drained by one native thread: JavaScript enqueues and goes on.
#ifndef LONGSEQ_RUNTIME_QUEUE_H
#define LONGSEQ_RUNTIME_QUEUE_H

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
  std::string shapes;  // for the message of a failure
  int64_t bytes = 0;
  double flops = 0;
  bool recorded = false;
  int64_t enqueued_ns = 0;  // set while the recorder is on
};

class Recorder;

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

 private:
  std::mutex mutex_;
  std::atomic<bool> closed_{false};
  uint64_t begun_ = 0;
};

class Queue {
 public:
  Queue(ls_queue_kind kind, const ls_exec &exec, Recorder *recorder, Gate *gate,
        std::function<void(const Outcome &)> on_failure);
  ~Queue();
  Queue(const Queue &) = delete;
  Queue &operator=(const Queue &) = delete;

  // Returns the task's sequence number.
  uint64_t enqueue(Task task);
  uint64_t enqueued() const { return enqueued_.load(std::memory_order_acquire); }
  uint64_t completed() const { return completed_.load(std::memory_order_acquire); }
  // Blocks until the task with this number, and so all before it, is over.
  void wait(uint64_t sequence);

  // Makes every later ordinary task be passed over; the first failure stays.
  void fail(const Outcome &outcome);
  // Forgets a failure of a file, which leaves the device itself sound; others stay.
  void recover();
  Outcome outcome() const;

 private:
  void drain();

  const ls_queue_kind kind_;
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
  std::thread thread_;
};

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_QUEUE_H
