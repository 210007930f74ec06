// When the queues of a device would be where they are, if each task took as long as somebody says: ops run in order on
// their queue, and wait for what they need of other queues.
#ifndef LONGSEQ_RUNTIME_CLOCK_H
#define LONGSEQ_RUNTIME_CLOCK_H

#include <array>
#include <cstdint>
#include <vector>

#include "longseq/backend.h"

namespace longseq {

class Clock {
 public:
  using Times = std::array<double, LS_QUEUE_COUNT>;  // seconds, by queue

  // What a stretch of the program took.
  struct Elapsed {
    double seconds = 0;  // on the compute queue, with what it waited for
    Times busy{};        // work of each queue
    Times exposed{};     // of other queues' work: what compute stood still for
  };

  explicit Clock(double overlap) : overlap_(overlap) {}

  void work(int32_t queue, double seconds);
  // Where the work of a queue has come to.
  double now(int32_t queue) const { return now_[index(queue)]; }
  // `queue` goes on when `other` has come to that time.
  void wait(int32_t queue, int32_t other, double time);

  // What came since the mark of that number comes so many times more.
  void mark(size_t number);
  void repeat(size_t number, double times);

  // Since the clock began.
  Elapsed elapsed() const;

 private:
  struct Mark {
    Times now;
    Times busy, exposed;
  };
  static size_t index(int32_t queue) { return static_cast<size_t>(queue); }

  double overlap_;
  Times now_{}, busy_{}, exposed_{};
  std::vector<Mark> marks_;
};

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_CLOCK_H
