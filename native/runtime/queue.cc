// Draining: order, cancelling between kernels, sticky failures.
#include "runtime/queue.h"

#include <algorithm>

#include "runtime/comm.h"
#include "runtime/error.h"
#include "runtime/recorder.h"

namespace longseq {

namespace {
thread_local std::shared_ptr<const std::string> place_here;
}

const std::string &running_place() {
  static const std::string nowhere;
  return place_here ? *place_here : nowhere;
}

void Gate::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_.store(true, std::memory_order_release);
}

void Gate::open() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_.store(false, std::memory_order_release);
  given_up_.store(false, std::memory_order_release);
}

bool Gate::admit(uint64_t update) {
  if (update == 0) return !closed();
  std::lock_guard<std::mutex> lock(mutex_);
  if (update == abandoned_) return false;
  if (update <= begun_) return true;
  if (closed_) return false;
  begun_ = update;
  return true;
}

void Gate::abandon(uint64_t update) {
  std::lock_guard<std::mutex> lock(mutex_);
  abandoned_ = update;
}

Queue::Queue(ls_queue_kind kind, const ls_backend *backend, const ls_exec &exec, Recorder *recorder, Gate *gate,
             std::function<void(const Outcome &)> on_failure)
    : kind_(kind),
      backend_(backend),
      exec_(exec),
      recorder_(recorder),
      gate_(gate),
      on_failure_(std::move(on_failure)) {
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

uint64_t Queue::pass() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (completed() == enqueued()) {
      completed_.fetch_add(1, std::memory_order_acq_rel);
      return enqueued_.fetch_add(1, std::memory_order_acq_rel) + 1;
    }
  }
  return enqueue({});
}

void Queue::wait(uint64_t sequence) {
  if (completed() >= sequence) return;
  std::unique_lock<std::mutex> lock(mutex_);
  finished_.wait(lock, [&] { return completed() >= sequence; });
}

bool Queue::ended(uint64_t sequence) const {
  return has_stream() ? retired_.load(std::memory_order_acquire) >= sequence : completed() >= sequence;
}

void Queue::join(uint64_t sequence, const Queue &waiter) {
  wait(sequence);
  if (!has_stream()) return;
  std::shared_ptr<void> event;
  {
    std::lock_guard<std::mutex> lock(marks_mutex_);
    const Mark &mark = marks_[sequence % kAhead];
    // A mark that serves a later task stands for one that has ended.
    if (mark.sequence != sequence || !mark.event) return;
    event = mark.event;
    if (waiter.has_stream()) {
      // A failure here is one of the device, which the next task meets.
      backend_->event_wait(exec_.device, waiter.exec_.stream, event.get());
      return;
    }
  }
  // The mark may meanwhile serve a later task: this event is ours until the wait is over, and stands for no other.
  char ignored[256];
  backend_->event_synchronize(exec_.device, event.get(), ignored, sizeof ignored);
}

ls_status Queue::retire(Mark &mark, char *error, size_t error_size) {
  if (!mark.event) return LS_OK;
  const ls_status status = backend_->event_synchronize(exec_.device, mark.event.get(), error, error_size);
  std::lock_guard<std::mutex> lock(marks_mutex_);
  if (status == LS_OK) report(mark);
  retired_.store(mark.sequence, std::memory_order_release);
  return status;
}

// The mark's task has ended. It began when the one before it ended, or when it was given to the stream if that is
// later.
void Queue::report(Mark &mark) {
  if (!mark.name) return;
  double milliseconds = 0;
  if (base_event_ &&
      backend_->event_elapsed(exec_.device, base_event_.get(), mark.event.get(), &milliseconds) == LS_OK) {
    const int64_t end = base_ns_ + static_cast<int64_t>(milliseconds * 1e6);
    const int64_t start = std::min(std::max(mark.start_ns, last_end_ns_), end);
    recorder_->op(mark.name, kind_, mark.enqueued_ns, start, end, mark.bytes, mark.flops);
    last_end_ns_ = end;
    // A backend may measure in float32, which tells microseconds apart for seconds, not for minutes.
    base_event_ = mark.event;
    base_ns_ = end;
  }
  mark.name = nullptr;
}

ls_status Queue::mark_end(uint64_t sequence, Task &task, bool record, int64_t start_ns) {
  std::lock_guard<std::mutex> lock(marks_mutex_);
  Mark &mark = marks_[sequence % kAhead];
  // Before the next is recorded, so that it can be the same.
  mark = Mark{};
  void *event = nullptr;
  const ls_status status = backend_->event_record(exec_.device, exec_.stream, &event);
  mark.event = owned(event);
  if (status != LS_OK) return status;
  mark.sequence = sequence;
  if (record) {
    mark.name = task.name;
    mark.enqueued_ns = task.enqueued_ns;
    mark.start_ns = start_ns;
    mark.bytes = task.bytes;
    mark.flops = task.flops;
  }
  return LS_OK;
}

std::shared_ptr<void> Queue::owned(void *event) const {
  if (!event) return nullptr;
  return {event, [backend = backend_, device = exec_.device](void *done) { backend->event_free(device, done); }};
}

// Device and host must agree on where time begins, and again every second: their clocks part by some microseconds in
// it. The only times that a recording waits.
void Queue::agree_on_time(char *error, size_t error_size) {
  std::lock_guard<std::mutex> lock(marks_mutex_);
  if (base_event_ && now_ns() - agreed_ns_ < 1'000'000'000) return;
  void *event = nullptr;
  const ls_status status = backend_->event_record(exec_.device, exec_.stream, &event);
  const std::shared_ptr<void> base = owned(event);
  if (status == LS_OK) backend_->event_synchronize(exec_.device, event, error, error_size);
  const int64_t now = now_ns();
  // What came before is over, and measured from the base before.
  if (base_event_) report_ended();
  base_event_ = base;
  base_ns_ = agreed_ns_ = now;
}

// All that was given to the stream, in its order; waits for its end.
void Queue::report_ended() {
  const uint64_t last = completed();
  char ignored[256];
  for (uint64_t sequence = last < kAhead ? 1 : last - kAhead + 1; sequence <= last; ++sequence) {
    Mark &mark = marks_[sequence % kAhead];
    if (mark.sequence != sequence || !mark.name) continue;
    if (backend_->event_synchronize(exec_.device, mark.event.get(), ignored, sizeof ignored) == LS_OK) report(mark);
  }
}

ls_status Queue::check_given_up(const Task &task, char *error, size_t error_size) {
  const bool exchange = kind_ == LS_QUEUE_COMM;
  // An update goes on with what the other ranks really sent, or not at all: its exchanges are waited for.
  if (exchange && task.update != 0)
    if (const ls_status status = backend_->queue_synchronize(exec_.device, exec_.stream, error, error_size);
        status != LS_OK)
      return status;
  return gate_->given_up() && (exchange || task.update == 0) ? LS_CANCELLED : LS_OK;
}

void Queue::flush_records() {
  if (!has_stream()) return;
  std::lock_guard<std::mutex> lock(marks_mutex_);
  report_ended();
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
    const uint64_t sequence = completed() + 1;
    place_here = task.place;
    message[0] = '\0';
    ls_status status = LS_OK;
    const auto failed = [&] {
      outcome.status = status == LS_CANCELLED ? LS_DEVICE_FAILURE : status;
      outcome.message = format("%s failed on rank %d%s%s%s: %s", task.name, process_rank(), running_place().c_str(),
                               task.shapes ? " with " : "", task.shapes ? task.shapes().c_str() : "",
                               message[0] ? message : "no further word from the backend");
      fail(outcome);
      on_failure_(outcome);
    };
    if (has_stream()) {
      status = retire(marks_[sequence % kAhead], message, sizeof message);
      if (status != LS_OK && outcome.status == LS_OK) failed();
    }
    const bool record = task.recorded && recorder_->on();
    const int64_t start = record ? now_ns() : 0;
    if (task.run && outcome.status == LS_OK) {
      ls_exec exec = exec_;
      exec.error = message;
      exec.error_size = sizeof message;
      if (record && has_stream()) agree_on_time(message, sizeof message);
      try {
        status = task.run(exec);
      } catch (const Error &error) {
        status = error.code();
        std::snprintf(message, sizeof message, "%s", error.what());
      } catch (const std::exception &error) {
        status = LS_DEVICE_FAILURE;
        std::snprintf(message, sizeof message, "%s", error.what());
      }
      if (status == LS_OK && has_stream()) status = check_given_up(task, message, sizeof message);
      if (record && !has_stream())
        recorder_->op(task.name, kind_, task.enqueued_ns, start, now_ns(), task.bytes, task.flops);
      // An exchange that was given up with everything else is no failure.
      if (status == LS_CANCELLED && gate_->closed()) {
        outcome = {LS_CANCELLED, "the work was cancelled"};
        if (task.update != 0) gate_->abandon(task.update);
      } else if (status != LS_OK)
        failed();
      // What another thread found out meanwhile: what this task waited for on the device may be worth nothing.
      if (outcome.status == LS_OK && has_stream()) outcome = this->outcome();
    }
    if (task.always) task.always(outcome);
    // After `always`, which may let the stream wait for another.
    if (has_stream() && mark_end(sequence, task, record && outcome.status == LS_OK, start) != LS_OK &&
        outcome.status == LS_OK) {
      status = LS_DEVICE_FAILURE;
      failed();
    }
    task = Task();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      completed_.fetch_add(1, std::memory_order_acq_rel);
    }
    finished_.notify_all();
  }
}

}  // namespace longseq
