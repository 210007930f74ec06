// Draining: order, cancelling between kernels, sticky failures.
#include "runtime/queue.h"

#include "runtime/error.h"
#include "runtime/recorder.h"

namespace longseq {

void Gate::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_.store(true, std::memory_order_release);
}

void Gate::open() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_.store(false, std::memory_order_release);
}

bool Gate::admit(uint64_t update) {
  if (update == 0) return !closed();
  std::lock_guard<std::mutex> lock(mutex_);
  if (update <= begun_) return true;
  if (closed_) return false;
  begun_ = update;
  return true;
}

Queue::Queue(ls_queue_kind kind, const ls_exec &exec, Recorder *recorder, Gate *gate,
             std::function<void(const Outcome &)> on_failure)
    : kind_(kind), exec_(exec), recorder_(recorder), gate_(gate), on_failure_(std::move(on_failure)) {
  exec_.queue = kind;
  thread_ = std::thread([this] { drain(); });
}

Queue::~Queue() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  arrived_.notify_all();
  thread_.join();
}

uint64_t Queue::enqueue(Task task) {
  if (task.recorded && recorder_->on()) task.enqueued_ns = now_ns();
  uint64_t sequence;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
    sequence = enqueued_.fetch_add(1, std::memory_order_acq_rel) + 1;
  }
  arrived_.notify_one();
  return sequence;
}

void Queue::wait(uint64_t sequence) {
  if (completed() >= sequence) return;
  std::unique_lock<std::mutex> lock(mutex_);
  finished_.wait(lock, [&] { return completed() >= sequence; });
}

void Queue::fail(const Outcome &outcome) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.status == LS_OK) failure_ = outcome;
}

void Queue::recover() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.status == LS_IO) failure_ = {};
}

Outcome Queue::outcome() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

void Queue::drain() {
  char message[4096];  // a folder's name can be long
  for (;;) {
    Task task;
    Outcome outcome;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      arrived_.wait(lock, [&] { return stop_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
      outcome = failure_;
    }
    // A wait, which has nothing to run, begins no update.
    if (outcome.status == LS_OK && !(task.run ? gate_->admit(task.update) : !gate_->closed()))
      outcome = {LS_CANCELLED, "the work was cancelled"};
    if (task.run && outcome.status == LS_OK) {
      message[0] = '\0';
      ls_exec exec = exec_;
      exec.error = message;
      exec.error_size = sizeof message;
      const bool record = task.recorded && recorder_->on();
      const int64_t start = record ? now_ns() : 0;
      ls_status status;
      try {
        status = task.run(exec);
      } catch (const Error &error) {
        status = error.code();
        std::snprintf(message, sizeof message, "%s", error.what());
      } catch (const std::exception &error) {
        status = LS_DEVICE_FAILURE;
        std::snprintf(message, sizeof message, "%s", error.what());
      }
      if (record) recorder_->op(task.name, kind_, task.enqueued_ns, start, now_ns(), task.bytes, task.flops);
      if (status != LS_OK) {
        outcome.status = status == LS_CANCELLED ? LS_DEVICE_FAILURE : status;
        outcome.message = format("%s failed on rank 0%s%s: %s", task.name, task.shapes.empty() ? "" : " with ",
                                 task.shapes.c_str(), message[0] ? message : "no further word from the backend");
        fail(outcome);
        on_failure_(outcome);
      }
    }
    if (task.always) task.always(outcome);
    task = Task();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      completed_.fetch_add(1, std::memory_order_acq_rel);
    }
    finished_.notify_all();
  }
}

}  // namespace longseq
