// See clock.h.
#include "runtime/clock.h"

namespace longseq {

void Clock::work(int32_t queue, double seconds) {
  now_[index(queue)] += seconds;
  busy_[index(queue)] += seconds;
  if (queue == LS_QUEUE_COMPUTE) return;
  // Both want the same cores, or the same memory.
  const double shared = (1 - overlap_) * seconds;
  now_[LS_QUEUE_COMPUTE] += shared;
  exposed_[index(queue)] += shared;
}

void Clock::wait(int32_t queue, int32_t other, double time) {
  const double late = time - now_[index(queue)];
  if (late <= 0) return;
  now_[index(queue)] = time;
  if (queue == LS_QUEUE_COMPUTE) exposed_[index(other)] += late;
}

void Clock::mark(size_t number) {
  if (marks_.size() <= number) marks_.resize(number + 1);
  marks_[number] = {now_, busy_, exposed_};
}

void Clock::repeat(size_t number, double times) {
  if (number >= marks_.size()) return;
  const Mark before = marks_[number];
  // One of them is done as fast as the slowest queue: compute waits for it.
  const double period = now_[LS_QUEUE_COMPUTE] - before.now[LS_QUEUE_COMPUTE];
  for (size_t queue = 0; queue < LS_QUEUE_COUNT; ++queue) {
    if (now_[queue] > before.now[queue]) now_[queue] += times * period;
    busy_[queue] += times * (busy_[queue] - before.busy[queue]);
    exposed_[queue] += times * (exposed_[queue] - before.exposed[queue]);
  }
}

Clock::Elapsed Clock::elapsed() const { return {now_[LS_QUEUE_COMPUTE], busy_, exposed_}; }

}  // namespace longseq
