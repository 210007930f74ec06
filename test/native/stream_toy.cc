// A backend whose ops are only given to streams, each a thread that is slow on purpose, and whose memory is not the
// host's: for tests of how queues, events, steps, failures and recordings work where the device runs behind the host.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "longseq/backend.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Event {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::string failure;
  Clock::time_point time;

  void finish(const std::string &why) {
    std::lock_guard<std::mutex> lock(mutex);
    done = true;
    failure = why;
    time = Clock::now();
    changed.notify_all();
  }
  std::string wait() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return done; });
    return failure;
  }
};
using EventHandle = std::shared_ptr<Event>;

struct Stream {
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<std::function<void()>> jobs;
  bool stop = false;
  std::string failure;  // of the stream's thread alone
  std::thread thread{[this] { run(); }};

  void run() {
    for (;;) {
      std::function<void()> job;
      {
        std::unique_lock<std::mutex> lock(mutex);
        arrived.wait(lock, [&] { return stop || !jobs.empty(); });
        if (jobs.empty()) return;
        job = std::move(jobs.front());
        jobs.pop_front();
      }
      job();
    }
  }
  void give(std::function<void()> job) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      jobs.push_back(std::move(job));
    }
    arrived.notify_all();
  }
  EventHandle record() {
    auto event = std::make_shared<Event>();
    give([this, event] { event->finish(failure); });
    return event;
  }
  ~Stream() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stop = true;
    }
    arrived.notify_all();
    thread.join();
  }
};

std::mutex host_mutex;
std::set<std::pair<char *, int64_t>> host_ranges;
bool on_host(const void *address) {
  std::lock_guard<std::mutex> lock(host_mutex);
  for (const auto &[start, bytes] : host_ranges)
    if (address >= start && address < start + bytes) return true;
  return false;
}

Stream *stream_of(const ls_exec *exec) { return static_cast<Stream *>(exec->stream); }
EventHandle &event_of(void *event) { return *static_cast<EventHandle *>(event); }
ls_status outcome(const std::string &failure, char *error, size_t error_size) {
  if (failure.empty()) return LS_OK;
  std::snprintf(error, error_size, "%s", failure.c_str());
  return LS_DEVICE_FAILURE;
}
// What a kernel takes.
void be_slow() { std::this_thread::sleep_for(std::chrono::milliseconds(3)); }

ls_status device_open(int32_t, int32_t, void **device, ls_device_info *info, char *, size_t) {
  *device = nullptr;
  std::snprintf(info->name, sizeof info->name, "streams");
  info->page_bytes = 4096;
  return LS_OK;
}
void device_close(void *) {}
ls_status reserve(void *, int32_t tier, int64_t bytes, void **address) {
  if (bytes > (int64_t{1} << 26)) return LS_OUT_OF_MEMORY;
  *address = std::aligned_alloc(4096, static_cast<size_t>(bytes));
  if (tier == LS_TIER_HOST) {
    std::lock_guard<std::mutex> lock(host_mutex);
    host_ranges.emplace(static_cast<char *>(*address), bytes);
  }
  return LS_OK;
}
void unreserve(void *, int32_t, void *address, int64_t bytes) {
  std::lock_guard<std::mutex> lock(host_mutex);
  host_ranges.erase({static_cast<char *>(address), bytes});
  std::free(address);
}
ls_status commit(void *, int32_t, void *, int64_t bytes) { return bytes > (1 << 24) ? LS_OUT_OF_MEMORY : LS_OK; }
void decommit(void *, int32_t, void *, int64_t) {}
void commit_error(void *, char *error, size_t error_size) { std::snprintf(error, error_size, "the toy box is full"); }
ls_status queue_open(void *, int32_t, void **stream) {
  *stream = new Stream;
  return LS_OK;
}
void queue_close(void *, void *stream) { delete static_cast<Stream *>(stream); }
ls_status queue_synchronize(void *, void *stream, char *error, size_t error_size) {
  return outcome(static_cast<Stream *>(stream)->record()->wait(), error, error_size);
}
ls_status event_record(void *, void *stream, void **event) {
  *event = new EventHandle(static_cast<Stream *>(stream)->record());
  return LS_OK;
}
ls_status event_wait(void *, void *stream, void *event) {
  static_cast<Stream *>(stream)->give([one = event_of(event)] { one->wait(); });
  return LS_OK;
}
void event_free(void *, void *event) { delete static_cast<EventHandle *>(event); }
ls_status event_synchronize(void *, void *event, char *error, size_t error_size) {
  const EventHandle one = event_of(event);
  return outcome(one->wait(), error, error_size);
}
ls_status event_elapsed(void *, void *from, void *to, double *milliseconds) {
  *milliseconds = std::chrono::duration<double, std::milli>(event_of(to)->time - event_of(from)->time).count();
  return LS_OK;
}
ls_status upload(const ls_exec *exec, void *to, const void *from, int64_t bytes) {
  const ls_status status = queue_synchronize(nullptr, exec->stream, exec->error, exec->error_size);
  if (status == LS_OK) std::memcpy(to, from, static_cast<size_t>(bytes));
  return status;
}
ls_status download(const ls_exec *exec, void *to, const void *from, int64_t bytes) {
  return upload(exec, to, from, bytes);
}
int64_t bytes_of(const ls_tensor &x) {
  int64_t count = 4;
  for (int32_t i = 0; i < x.ndim; ++i) count *= x.sizes[i];
  return count;
}
ls_status fill(const ls_exec *exec, const ls_fill_args *args) {
  if (on_host(args->y.data)) {
    std::snprintf(exec->error, exec->error_size, "this is not my memory");
    return LS_DEVICE_FAILURE;
  }
  Stream *stream = stream_of(exec);
  stream->give([stream, y = args->y, value = static_cast<float>(args->value)] {
    be_slow();
    if (value < 0) {
      stream->failure = "toys are not negative";
      return;
    }
    for (int64_t i = 0; i < bytes_of(y) / 4; ++i) static_cast<float *>(y.data)[i] = value;
  });
  return LS_OK;
}
ls_status copy(const ls_exec *exec, const ls_copy_args *args) {
  stream_of(exec)->give([a = *args] {
    be_slow();
    std::memcpy(a.dst.data, a.src.data, static_cast<size_t>(bytes_of(a.src)));
  });
  return LS_OK;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const ls_backend *ls_backend_open(int32_t, char *, size_t) {
  static ls_backend table{};
  table.api_version = LS_BACKEND_API_VERSION;
  table.struct_bytes = sizeof(ls_backend);
  table.name = "stream_toy";
  table.separate_memory = 1;
  table.device_open = device_open;
  table.device_close = device_close;
  table.reserve = reserve;
  table.unreserve = unreserve;
  table.commit = commit;
  table.decommit = decommit;
  table.commit_error = commit_error;
  table.upload = upload;
  table.download = download;
  table.queue_open = queue_open;
  table.queue_close = queue_close;
  table.queue_synchronize = queue_synchronize;
  table.event_record = event_record;
  table.event_wait = event_wait;
  table.event_free = event_free;
  table.event_synchronize = event_synchronize;
  table.event_elapsed = event_elapsed;
  table.fill = fill;
  table.copy = copy;
  return &table;
}
