// A fixed pool of threads that a compute queue splits its kernels over.
#ifndef LONGSEQ_RUNTIME_THREAD_POOL_H
#define LONGSEQ_RUNTIME_THREAD_POOL_H

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "longseq/backend.h"

namespace longseq {

// Runs ranges in pieces. One range at a time: only the compute queue's thread calls run().
class ThreadPool {
 public:
  explicit ThreadPool(int32_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  int32_t threads() const { return static_cast<int32_t>(workers_.size()) + 1; }

  // Pieces are handed out in ascending order; the caller works too. Returns when every piece is done.
  void run(int64_t items, int64_t grain, ls_range_fn body, void *context);

  // ls_exec.parallel: over the pool, or in one thread where exec->pool is null.
  static void parallel(const ls_exec *exec, int64_t items, int64_t grain, ls_range_fn body, void *context);

 private:
  void work();
  void drain();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  // The range in progress.
  int64_t items_ = 0, grain_ = 1, pieces_ = 0;
  ls_range_fn body_ = nullptr;
  void *context_ = nullptr;
  std::atomic<int64_t> next_{0};
  // Raised once a range; workers wait for it to move.
  std::atomic<uint64_t> generation_{0};
  std::atomic<int32_t> working_{0};
  bool stop_ = false;
};

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_THREAD_POOL_H
