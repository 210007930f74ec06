// What ran, by op.
#ifndef LONGSEQ_RUNTIME_OP_COUNT_H
#define LONGSEQ_RUNTIME_OP_COUNT_H

#include <cstdint>
#include <map>
#include <string>

namespace longseq {

// Counted when enqueued, so equal on every backend.
struct OpCount {
  int64_t calls = 0;
  double flops = 0;    // matrix products only
  double bytes = 0;    // read and written
  double seconds = 0;  // on the compute queue, where it is known how long ops take
};

using OpCounts = std::map<std::string, OpCount>;

// Adds `times` times what `later` has beyond `earlier`.
inline void add_counts(OpCounts &to, const OpCounts &later, const OpCounts &earlier, double times) {
  for (const auto &[name, count] : later) {
    const auto found = earlier.find(name);
    const OpCount before = found == earlier.end() ? OpCount{} : found->second;
    if (count.calls == before.calls) continue;
    OpCount &sum = to[name];
    sum.calls += static_cast<int64_t>(times) * (count.calls - before.calls);
    sum.flops += times * (count.flops - before.flops);
    sum.bytes += times * (count.bytes - before.bytes);
    sum.seconds += times * (count.seconds - before.seconds);
  }
}

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_OP_COUNT_H
