// The recorder: notes every op and every allocation while it is on, and writes Chrome trace JSON.
#ifndef LONGSEQ_RUNTIME_RECORDER_H
#define LONGSEQ_RUNTIME_RECORDER_H

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "longseq/backend.h"

namespace longseq {

// Nanoseconds of the steady clock.
inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Off by default: then each hook costs one relaxed load.
class Recorder {
 public:
  bool on() const { return on_.load(std::memory_order_relaxed); }
  void start();
  // From a queue thread.
  void op(const char *name, int32_t queue, int64_t start_ns, int64_t end_ns, int64_t bytes, double flops);
  // From the JavaScript thread; bytes is negative for a release.
  void allocation(int32_t category, int32_t tier, int64_t bytes);
  // Stops recording and hands over {"traceEvents": [...]}; times in microseconds since start().
  std::string stop();

 private:
  struct Op {
    const char *name;
    int32_t queue;
    int64_t start_ns, end_ns, bytes;
    double flops;
  };
  struct Allocation {
    int32_t category, tier;
    int64_t time_ns, bytes;
  };
  std::atomic<bool> on_{false};
  std::mutex mutex_;
  int64_t start_ns_ = 0;
  std::vector<Op> ops_;
  std::vector<Allocation> allocations_;
};

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_RECORDER_H
