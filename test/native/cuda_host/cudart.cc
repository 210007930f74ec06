// The part of the CUDA runtime that the CUDA backend's host files call, on threads: a stream works off what it is given
// behind the host's back, an event is a point of it. For tests without a GPU.
//
// What a job works on may be neither unregistered nor freed before it is done, jobs of two streams that share it must
// be ordered, a copy may touch no range of two registrations: breaking a rule ends the process, or fails as with CUDA.
// LONGSEQ_FAKE_TAKEN: another process has the device. LONGSEQ_FAKE_DEAF: streams do not wait for events, to show that
// this is noticed. LONGSEQ_FAKE_PINNED: bytes that may be registered. LONGSEQ_FAKE_DELAY: microseconds that every job
// takes.
#include "cudart.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

namespace {

using Time = std::chrono::steady_clock;

// How far each stream has come, as far as somebody knows.
using Clock = std::map<const void *, uint64_t>;

void merge(Clock &to, const Clock &from) {
  for (const auto &[stream, time] : from) to[stream] = std::max(to[stream], time);
}

// One recording of an event.
struct Moment {
  std::mutex mutex;
  std::condition_variable changed;
  bool happened = false;
  Time::time_point time;
  Clock clock;  // what has come before it

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return happened; });
  }
  bool over() {
    std::lock_guard<std::mutex> lock(mutex);
    return happened;
  }
  void happen() {
    std::lock_guard<std::mutex> lock(mutex);
    happened = true;
    time = Time::now();
    changed.notify_all();
  }
};

std::atomic<int> failure{cudaSuccess};  // sticky: the context is broken
thread_local cudaError_t last_error = cudaSuccess;

// What an entry returns: its own error, or what broke the context.
cudaError_t give(cudaError_t error = cudaSuccess) {
  if (failure != cudaSuccess) error = static_cast<cudaError_t>(failure.load());
  if (error != cudaSuccess) last_error = error;
  return error;
}

[[noreturn]] void broken(const char *rule) {
  std::fprintf(stderr, "a rule of CUDA is broken: %s\n", rule);
  std::fflush(stderr);
  std::_Exit(99);
}

// What jobs work on that are not over. A lock for all of it: tests are small.
struct Order {
  struct Use {
    FakeAccess access;
    const void *stream;
    uint64_t time;
  };
  std::mutex mutex;
  std::list<Use> uses;
};
Order &order() {
  static Order &all = *new Order;
  return all;
}
thread_local Clock host_clock;  // what this thread has waited for

struct Pinned {
  std::mutex mutex;
  std::map<const char *, size_t> ranges;
  size_t bytes = 0;
};
Pinned &pinned() {
  static Pinned &all = *new Pinned;
  return all;
}

long delay() {
  static const long microseconds = [] {
    const char *text = std::getenv("LONGSEQ_FAKE_DELAY");
    return text ? std::strtol(text, nullptr, 10) : 0;
  }();
  return microseconds;
}

}  // namespace

struct CUevent_st {
  std::mutex mutex;
  std::shared_ptr<Moment> moment;  // of the last recording

  std::shared_ptr<Moment> get() {
    std::lock_guard<std::mutex> lock(mutex);
    return moment;
  }
};

struct CUstream_st {
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<std::function<void()>> jobs;
  bool stop = false;
  Clock clock;  // of the last job
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
  void add(std::function<void()> job) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      jobs.push_back(std::move(job));
    }
    arrived.notify_all();
  }
  std::shared_ptr<Moment> mark() {
    auto moment = std::make_shared<Moment>();
    std::lock_guard<std::mutex> lock(order().mutex);
    moment->clock = clock;
    merge(moment->clock, host_clock);
    add([moment] { moment->happen(); });
    return moment;
  }
};

namespace {

bool share(const FakeAccess &a, const FakeAccess &b) {
  return a.begin < b.begin + b.bytes && b.begin < a.begin + a.bytes;
}

// The host knows what has come before the moment.
void learn(const Moment &moment) {
  std::lock_guard<std::mutex> lock(order().mutex);
  merge(host_clock, moment.clock);
}

// Nobody works on memory that goes.
void check_idle(const void *begin, size_t bytes) {
  std::lock_guard<std::mutex> lock(order().mutex);
  for (const Order::Use &use : order().uses)
    if (share(use.access, {static_cast<const char *>(begin), bytes, true}))
      broken("pinned memory is given back while a job works on it");
}

}  // namespace

void fake_launch(cudaStream_t stream, std::vector<FakeAccess> accesses, std::function<cudaError_t()> kernel) {
  std::lock_guard<std::mutex> lock(order().mutex);
  merge(stream->clock, host_clock);
  const uint64_t now = ++stream->clock[stream];
  auto mine = std::make_shared<std::vector<std::list<Order::Use>::iterator>>();
  for (const FakeAccess &access : accesses)
    for (const Order::Use &use : order().uses)
      if (use.stream != stream && (use.access.writes || access.writes) && share(use.access, access) &&
          stream->clock[use.stream] < use.time)
        broken("jobs of two streams work on the same memory and nothing orders them");
  for (const FakeAccess &access : accesses)
    mine->push_back(order().uses.insert(order().uses.end(), {access, stream, now}));
  stream->add([mine, kernel = std::move(kernel)] {
    if (failure == cudaSuccess) {
      if (delay() > 0) usleep(static_cast<useconds_t>(delay()));
      if (const cudaError_t error = kernel(); error != cudaSuccess) failure = error;
    }
    std::lock_guard<std::mutex> lock(order().mutex);
    for (const auto &use : *mine) order().uses.erase(use);
  });
}

namespace {
// The stand-in of NCCL finds it there.
[[maybe_unused]] const bool launcher_is_set = [] {
  void *const driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (driver == nullptr) return false;
  reinterpret_cast<void (*)(void *)>(dlsym(driver, "fake_set_launcher"))(reinterpret_cast<void *>(&fake_launch));
  return true;
}();
}  // namespace

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = failure != cudaSuccess ? static_cast<cudaError_t>(failure.load()) : last_error;
  last_error = cudaSuccess;
  return error;
}
const char *cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorDevicesUnavailable:
      return "cudaErrorDevicesUnavailable";
    default:
      return error == cudaSuccess ? "cudaSuccess" : "cudaErrorUnknown";
  }
}
const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorIllegalAddress ? "an illegal memory access was encountered" : "a failure of the stand-in";
}
cudaError_t cudaSetDevice(int) { return give(); }
cudaError_t cudaInitDevice(int, unsigned, unsigned) {
  return give(std::getenv("LONGSEQ_FAKE_TAKEN") ? cudaErrorDevicesUnavailable : cudaSuccess);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
  *properties = {};
  properties->major = 9;
  properties->multiProcessorCount = 4;
  properties->pciBusID = 0x17;
  properties->sharedMemPerBlockOptin = 227 << 10;
  size_t left = 0;
  return cudaMemGetInfo(&left, &properties->totalGlobalMem);
}
cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
  using Ask = void (*)(size_t *, size_t *);
  static const Ask ask = reinterpret_cast<Ask>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), "fake_memory"));
  ask(left, total);
  return give();
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return give();
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int) {
  *stream = new CUstream_st;
  return give();
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  {
    std::lock_guard<std::mutex> lock(stream->mutex);
    stream->stop = true;
  }
  stream->arrived.notify_all();
  stream->thread.join();
  delete stream;
  return give();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const auto moment = stream->mark();
  moment->wait();
  learn(*moment);
  return give();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return give(stream->mark()->over() ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  static const bool deaf = std::getenv("LONGSEQ_FAKE_DEAF") != nullptr;
  if (auto moment = event->get(); moment && !deaf) {
    std::lock_guard<std::mutex> lock(order().mutex);
    merge(stream->clock, moment->clock);
    stream->add([moment] { moment->wait(); });
  }
  return give();
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  *event = new CUevent_st;
  return give();
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return give();
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  auto moment = stream->mark();
  std::lock_guard<std::mutex> lock(event->mutex);
  event->moment = moment;
  return give();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (auto moment = event->get()) {
    moment->wait();
    learn(*moment);
  }
  return give();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  auto moment = event->get();
  return give(!moment || moment->over() ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
  *milliseconds = std::chrono::duration<float, std::milli>(to->get()->time - from->get()->time).count();
  return give();
}
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) {
  *memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  std::lock_guard<std::mutex> lock(pinned().mutex);
  pinned().ranges[static_cast<char *>(*memory)] = bytes;
  return give();
}
cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned) {
  const char *text = std::getenv("LONGSEQ_FAKE_PINNED");
  std::lock_guard<std::mutex> lock(pinned().mutex);
  if (text && pinned().bytes + bytes > std::strtoull(text, nullptr, 10)) return give(cudaErrorMemoryAllocation);
  char *const begin = static_cast<char *>(memory);
  const auto next = pinned().ranges.lower_bound(begin);
  if (next != pinned().ranges.end() && next->first < begin + bytes) broken("memory is registered twice");
  pinned().ranges[begin] = bytes;
  pinned().bytes += bytes;
  return give();
}
static void leave(void *memory, bool counted) {
  std::lock_guard<std::mutex> lock(pinned().mutex);
  const auto found = pinned().ranges.find(static_cast<char *>(memory));
  if (found == pinned().ranges.end()) broken("memory is unregistered that is not registered");
  check_idle(found->first, found->second);
  if (counted) pinned().bytes -= found->second;
  pinned().ranges.erase(found);
}
cudaError_t cudaHostUnregister(void *memory) {
  leave(memory, true);
  return give();
}
cudaError_t cudaFreeHost(void *memory) {
  leave(memory, false);
  std::free(memory);
  return give();
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
  fake_launch(stream, {{static_cast<char *>(to), bytes, true}}, [=] {
    std::memset(to, value, bytes);
    return cudaSuccess;
  });
  return give();
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  {
    std::lock_guard<std::mutex> lock(pinned().mutex);
    for (const void *const side : {static_cast<const void *>(to), from}) {
      const char *const begin = static_cast<const char *>(side);
      for (const auto &[start, size] : pinned().ranges)
        if (begin < start + size && start < begin + bytes && (begin < start || begin + bytes > start + size))
          return give(cudaErrorInvalidValue);
    }
  }
  fake_launch(stream, {{static_cast<char *>(to), bytes, true}, {static_cast<const char *>(from), bytes, false}}, [=] {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
  });
  return give();
}

}  // extern "C"
