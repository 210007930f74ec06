// The pool's workers: they look for a new range for some microseconds before they sleep, since kernels follow closely.
#include "runtime/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace longseq {

namespace {

// Set while a thread executes a piece, so that a nested call runs in place instead of waiting for itself.
thread_local bool inside_piece = false;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

constexpr int kSpins = 2000;

void run_serial(int64_t items, int64_t grain, ls_range_fn body, void *context) {
  for (int64_t begin = 0; begin < items; begin += grain)
    body(context, begin, begin + grain < items ? begin + grain : items);
}

}  // namespace

ThreadPool::ThreadPool(int32_t threads) {
  for (int32_t i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1);
  }
  start_.notify_all();
  for (auto &worker : workers_) worker.join();
}

void ThreadPool::drain() {
  inside_piece = true;
  for (;;) {
    const int64_t piece = next_.fetch_add(1, std::memory_order_relaxed);
    if (piece >= pieces_) break;
    const int64_t begin = piece * grain_;
    body_(context_, begin, begin + grain_ < items_ ? begin + grain_ : items_);
  }
  inside_piece = false;
}

void ThreadPool::work() {
  uint64_t seen = 0;
  for (;;) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen && spins < kSpins) {
      relax();
      ++spins;
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      start_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    }
    seen = generation_.load(std::memory_order_acquire);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (stop_) return;
    }
    drain();
    if (working_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
  }
}

void ThreadPool::run(int64_t items, int64_t grain, ls_range_fn body, void *context) {
  if (items <= 0) return;
  if (grain < 1) grain = 1;
  const int64_t pieces = (items + grain - 1) / grain;
  if (pieces == 1 || workers_.empty() || inside_piece) {
    run_serial(items, grain, body, context);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    items_ = items;
    grain_ = grain;
    pieces_ = pieces;
    body_ = body;
    context_ = context;
    next_.store(0, std::memory_order_relaxed);
    working_.store(static_cast<int32_t>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  start_.notify_all();
  drain();
  for (int spins = 0; working_.load(std::memory_order_acquire) != 0 && spins < kSpins; ++spins) relax();
  if (working_.load(std::memory_order_acquire) != 0) {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return working_.load(std::memory_order_acquire) == 0; });
  }
}

void ThreadPool::parallel(const ls_exec *exec, int64_t items, int64_t grain, ls_range_fn body, void *context) {
  if (exec->pool) {
    static_cast<ThreadPool *>(exec->pool)->run(items, grain, body, context);
  } else {
    run_serial(items, grain < 1 ? 1 : grain, body, context);
  }
}

}  // namespace longseq
