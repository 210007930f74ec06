// The recorder: notes what is live when it is turned on, then every op and every allocation, and writes Chrome trace
// JSON.
#ifndef LONGSEQ_RUNTIME_RECORDER_H
#define LONGSEQ_RUNTIME_RECORDER_H

#include <array>
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
  // live: bytes in use by tier and category, to which the allocations from now on add.
  using Live = std::array<std::array<int64_t, LS_CATEGORY_COUNT>, LS_TIER_COUNT>;
  void start(const Live &live);
  // From a queue thread. enqueued_ns: when JavaScript enqueued it; 0 where that was before start().
  void op(const char *name, int32_t queue, int64_t enqueued_ns, int64_t start_ns, int64_t end_ns, int64_t bytes,
          double flops);
  // From the JavaScript thread; bytes is negative for a release.
  void allocation(int32_t category, int32_t tier, int64_t bytes);
  // Stops recording and hands over {"traceEvents": [...], "otherData": {"live": {tier: {category: bytes}}}}; times in
  // microseconds since start(). An op's args.enqueued and an allocation's ts are on JavaScript's clock, which runs
  // ahead of the queues: an allocation serves the ops that were enqueued after it.
  std::string stop();

 private:
  struct Op {
    const char *name;
    int32_t queue;
    int64_t enqueued_ns, start_ns, end_ns, bytes;
    double flops;
  };
  struct Allocation {
    int32_t category, tier;
    int64_t time_ns, bytes;
  };
  std::atomic<bool> on_{false};
  std::mutex mutex_;
  int64_t start_ns_ = 0;
  Live live_{};
  std::vector<Op> ops_;
  std::vector<Allocation> allocations_;
};

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_RECORDER_H
