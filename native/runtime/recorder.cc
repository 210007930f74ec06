// Collects events under one lock and prints them as Chrome trace JSON.
#include "runtime/recorder.h"

#include "runtime/error.h"

namespace longseq {

void Recorder::start(const Live &live) {
  std::lock_guard<std::mutex> lock(mutex_);
  live_ = live;
  ops_.clear();
  allocations_.clear();
  start_ns_ = now_ns();
  on_.store(true, std::memory_order_relaxed);
}

void Recorder::op(const char *name, int32_t queue, int64_t enqueued_ns, int64_t start_ns, int64_t end_ns, int64_t bytes,
                  double flops) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (on()) ops_.push_back({name, queue, enqueued_ns, start_ns, end_ns, bytes, flops});
}

void Recorder::allocation(int32_t category, int32_t tier, int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (on()) allocations_.push_back({category, tier, now_ns(), bytes});
}

std::string Recorder::stop() {
  std::lock_guard<std::mutex> lock(mutex_);
  on_.store(false, std::memory_order_relaxed);
  std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
  bool first = true;
  auto add = [&](const std::string &event) {
    if (!first) text += ",\n";
    first = false;
    text += event;
  };
  auto micro = [&](int64_t ns) { return static_cast<double>(ns - start_ns_) / 1e3; };
  for (int32_t queue = 0; queue < LS_QUEUE_COUNT; ++queue)
    add(format(R"({"name":"thread_name","ph":"M","pid":1,"tid":%d,"args":{"name":"%s"}})", queue, queue_name(queue)));
  for (const Op &op : ops_)
    add(format(
        R"({"name":"%s","cat":"op","ph":"X","pid":1,"tid":%d,"ts":%.3f,"dur":%.3f,"args":{"bytes":%lld,"flops":%.17g,"enqueued":%.3f}})",
        op.name, op.queue, micro(op.start_ns), static_cast<double>(op.end_ns - op.start_ns) / 1e3,
        static_cast<long long>(op.bytes), op.flops, op.enqueued_ns > start_ns_ ? micro(op.enqueued_ns) : 0.0));
  for (const Allocation &allocation : allocations_)
    add(format(
        R"({"name":"allocation","cat":"memory","ph":"i","s":"p","pid":1,"tid":100,"ts":%.3f,"args":{"category":"%s","tier":"%s","bytes":%lld}})",
        micro(allocation.time_ns), category_name(allocation.category), tier_name(allocation.tier),
        static_cast<long long>(allocation.bytes)));
  text += "],\n\"otherData\":{\"live\":{";
  for (int32_t tier = 0; tier < LS_TIER_COUNT; ++tier) {
    text += format("%s\"%s\":{", tier > 0 ? "," : "", tier_name(tier));
    for (int32_t category = 0; category < LS_CATEGORY_COUNT; ++category)
      text += format("%s\"%s\":%lld", category > 0 ? "," : "", category_name(category),
                     static_cast<long long>(live_[tier][category]));
    text += "}";
  }
  text += "}}}\n";
  ops_.clear();
  allocations_.clear();
  return text;
}

}  // namespace longseq
