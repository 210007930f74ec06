// Fibers, barriers, collectives and the threads that run blocks: see include/emul_model.h.
#include "emul_model.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define EMUL_ASAN 1
#else
#define EMUL_ASAN 0
#endif

// void emul_switch(void **save, void *load): leaves the callee-saved registers on the stack it came from.
extern "C" void emul_switch(void **save, void *load);
asm(R"(
.text
.local emul_switch
.type emul_switch, @function
emul_switch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emul_switch, .-emul_switch
)");

namespace emul {

constinit thread_local Lane *lane = nullptr;
constinit thread_local uint3 block_idx = {0, 0, 0};
constinit thread_local dim3 block_dim;
constinit thread_local dim3 grid_dim;

int thread_order = 0;

namespace {

constexpr size_t kStackBytes = EMUL_ASAN ? 256 << 10 : 64 << 10;
constexpr size_t kGuardBytes = 4096;
void fiber_main();

struct Fiber {
  char *memory = nullptr;
  void *stack_pointer = nullptr;
  void *fake_stack = nullptr;

  explicit Fiber(size_t number) {
    memory = static_cast<char *>(mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED) die("no memory for the stack of a thread");
    mprotect(memory, kGuardBytes, PROT_NONE);
    // Stacks that began at equal places of their pages would share a few lines of the cache.
    const size_t shift = number % 64 * 64;
    // Six registers, then the address that the first switch returns to; 16-byte alignment as after a call.
    auto **top = reinterpret_cast<void **>(memory + kGuardBytes + kStackBytes - shift) - 2;
    *top = reinterpret_cast<void *>(&fiber_main);
    stack_pointer = top - 6;
    std::memset(stack_pointer, 0, 6 * sizeof(void *));
  }
  ~Fiber() { munmap(memory, kStackBytes + kGuardBytes); }
  char *bottom() const { return memory + kGuardBytes; }
};

// Threads that can go on, first come first; each is in it at most once, and a block has at most kMost.
class Queue {
 public:
  static constexpr unsigned kMost = 1024;
  bool empty() const { return first_ == last_; }
  void push(Lane *lane) { lanes_[last_++ % kMost] = lane; }
  Lane *pop() { return lanes_[first_++ % kMost]; }

 private:
  Lane *lanes_[kMost];
  unsigned first_ = 0, last_ = 0;
};

// Which threads of a warp wait in a collective, and which have returned.
struct Warp {
  unsigned waiting, done;
};

// Runs the blocks of one OS thread.
struct Runner {
  void *stack_pointer = nullptr;
  void *fake_stack = nullptr;
  const void *stack_bottom = nullptr;
  size_t stack_size = 0;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber *> idle;
  Fiber *running = nullptr;
  std::vector<Lane> lanes;
  std::vector<Warp> warps;
  Queue ready;
  std::vector<char> shared;
  void *shared_aligned = nullptr;
  int started = 0, done = 0, at_barrier = 0;
  BarrierResult barrier_result{};
  void (*body)(void *) = nullptr;
  void *context = nullptr;
  const char *kernel = "";

  int live() const { return static_cast<int>(lanes.size()) - done; }

  void enter(Fiber *fiber) {
    running = fiber;
#if EMUL_ASAN
    __sanitizer_start_switch_fiber(&fake_stack, fiber->bottom(), kStackBytes);
#endif
    emul_switch(&stack_pointer, fiber->stack_pointer);
#if EMUL_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // From the running fiber back to run().
  void leave() {
    Fiber *const fiber = running;
#if EMUL_ASAN
    __sanitizer_start_switch_fiber(&fiber->fake_stack, stack_bottom, stack_size);
#endif
    emul_switch(&fiber->stack_pointer, stack_pointer);
#if EMUL_ASAN
    __sanitizer_finish_switch_fiber(fiber->fake_stack, &stack_bottom, &stack_size);
#endif
  }

  // Lets other threads of the block run until this one is ready again.
  void wait() {
    Lane *const self = lane;
    self->fiber = running;
    leave();
    lane = self;
  }

  void release_barrier() {
    if (at_barrier == 0 || at_barrier < live()) return;
    BarrierResult result{0, 0, 1};
    for (Lane &one : lanes)
      if (one.state == Lane::kBarrier) {
        result.count += one.barrier_value != 0;
        result.any |= one.barrier_value != 0;
        result.all &= one.barrier_value != 0;
      }
    barrier_result = result;
    at_barrier = 0;
    for (int i = 0; i < static_cast<int>(lanes.size()); ++i) {
      Lane &one = lanes[static_cast<size_t>(thread_order == 0 ? i : static_cast<int>(lanes.size()) - 1 - i)];
      if (one.state != Lane::kBarrier) continue;
      one.state = Lane::kReady;
      ready.push(&one);
    }
  }

  // The body of every fiber: threads that wait for nothing share one.
  void run_new_lanes() {
    while (started < static_cast<int>(lanes.size())) {
      const int i = started++;
      Lane *const self = &lanes[static_cast<size_t>(thread_order == 0 ? i : static_cast<int>(lanes.size()) - 1 - i)];
      self->state = Lane::kReady;
      lane = self;
      body(context);
      lane = self;
      async_commit();
      async_wait(0);
      self->state = Lane::kDone;
      warps[static_cast<size_t>(self->index / kWarp)].done |= 1u << self->index % kWarp;
      ++done;
      release_barrier();
      // Warps that wait go first: they run ahead of those that have not begun.
      if (!ready.empty()) break;
    }
  }

  void run(uint3 index) {
    const size_t count = lanes.size();
    block_idx = index;
    started = done = at_barrier = 0;
    for (size_t i = 0; i < count; ++i) {
      lanes[i].state = Lane::kNew;
      lanes[i].fiber = nullptr;
    }
    warps.assign((count + kWarp - 1) / kWarp, {0, 0});
    if (shared_aligned) std::memset(shared_aligned, 0xff, shared.size() - 1024);
    while (done < static_cast<int>(count)) {
      if (!ready.empty()) {
        enter(static_cast<Fiber *>(ready.pop()->fiber));
      } else if (started < static_cast<int>(count)) {
        if (idle.empty()) {
          fibers.push_back(std::make_unique<Fiber>(fibers.size()));
          idle.push_back(fibers.back().get());
        }
        Fiber *const fiber = idle.back();
        idle.pop_back();
        enter(fiber);
      } else {
        report_deadlock();
      }
    }
  }

  [[noreturn]] void report_deadlock() {
    int warps = 0, barriers = 0;
    const Lane *first = nullptr;
    for (const Lane &one : lanes) {
      if (one.state == Lane::kWarpWait) {
        ++warps;
        if (!first) first = &one;
      } else if (one.state == Lane::kBarrier) {
        ++barriers;
      }
    }
    die("%s, block (%u, %u, %u): %d threads wait at __syncthreads and %d for their warp (thread %d for mask %08x), and "
        "nobody is left to come",
        kernel, block_idx.x, block_idx.y, block_idx.z, barriers, warps, first ? first->index : -1,
        first ? first->mask : 0);
  }

  void prepare(dim3 grid, dim3 block, size_t shared_bytes, void (*run_body)(void *), void *run_context,
               const char *name) {
    grid_dim = grid;
    block_dim = block;
    body = run_body;
    context = run_context;
    kernel = name;
    const size_t count = static_cast<size_t>(block.x) * block.y * block.z;
    lanes.resize(count);
    for (size_t i = 0; i < count; ++i) {
      const unsigned n = static_cast<unsigned>(i);
      lanes[i].index = static_cast<int>(i);
      lanes[i].thread_idx = {n % block.x, n / block.x % block.y, n / block.x / block.y};
      lanes[i].groups.clear();
      lanes[i].open_group.clear();
    }
    shared_aligned = nullptr;
    // Exactly as large as asked for, so that AddressSanitizer sees what lies beyond.
    std::vector<char>(shared_bytes ? shared_bytes + 1024 : 0).swap(shared);
    if (shared_bytes)
      shared_aligned = reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(shared.data()) + 1023) / 1024 * 1024);
  }
};

// Lives as long as its thread, and threads as long as the process.
constinit thread_local Runner *runner = nullptr;

void fiber_main() {
#if EMUL_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &runner->stack_bottom, &runner->stack_size);
#endif
  for (;;) {
    Runner &self = *runner;
    Fiber *const mine = self.running;
    self.run_new_lanes();
    // This stack is free again; the next switch to it comes back here.
    self.idle.push_back(mine);
    self.leave();
  }
}

// A launch whose blocks are handed out one by one.
struct Job {
  dim3 grid, block;
  size_t shared_bytes;
  void (*body)(void *);
  void *context;
  const char *kernel;
  uint64_t blocks;
  std::atomic<uint64_t> next{0}, finished{0};

  bool work() {
    if (next.load() >= blocks) return false;
    if (!runner) runner = new Runner;
    bool prepared = false;
    for (;;) {
      const uint64_t i = next.fetch_add(1);
      if (i >= blocks) return prepared;
      if (!prepared) runner->prepare(grid, block, shared_bytes, body, context, kernel);
      prepared = true;
      const uint64_t at = thread_order == 0 ? i : blocks - 1 - i;
      runner->run({static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                   static_cast<unsigned>(at / grid.x / grid.y)});
      finished.fetch_add(1);
    }
  }
};

// OS threads that help with blocks. Never joined: they sleep for the life of the process.
struct Pool {
  std::mutex mutex;
  std::condition_variable arrived, over;
  std::deque<std::shared_ptr<Job>> jobs;

  Pool() {
    const unsigned helpers = std::min(8u, std::max(1u, std::thread::hardware_concurrency())) - 1;
    for (unsigned i = 0; i < helpers; ++i) std::thread([this] { help(); }).detach();
  }
  void help() {
    for (;;) {
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex);
        arrived.wait(lock, [&] { return !jobs.empty(); });
        job = jobs.front();
        if (job->next.load() >= job->blocks) {
          jobs.pop_front();
          continue;
        }
      }
      if (job->work()) {
        std::lock_guard<std::mutex> lock(mutex);
        over.notify_all();
      }
    }
  }
  void run(const std::shared_ptr<Job> &job) {
    const uint64_t threads = job->blocks * job->block.x * job->block.y * job->block.z;
    const bool shared = job->blocks > 1 && threads > 2048;
    if (shared) {
      std::lock_guard<std::mutex> lock(mutex);
      jobs.push_back(job);
      arrived.notify_all();
    }
    job->work();
    if (!shared) return;
    std::unique_lock<std::mutex> lock(mutex);
    over.wait(lock, [&] { return job->finished.load() == job->blocks; });
    const auto found = std::find(jobs.begin(), jobs.end(), job);
    if (found != jobs.end()) jobs.erase(found);
  }
};

Pool &pool() {
  static Pool *const made = new Pool;
  return *made;
}

}  // namespace

void die(const char *format, ...) {
  std::fputs("cuda_emul: ", stderr);
  va_list values;
  va_start(values, format);
  std::vfprintf(stderr, format, values);
  va_end(values);
  std::fputc('\n', stderr);
  std::abort();
}

size_t most_shared() {
  static const char *const given = std::getenv("LONGSEQ_EMUL_SHARED_KIB");
  return static_cast<size_t>(given ? std::atoi(given) : 227) << 10;
}

void *dynamic_shared() { return runner->shared_aligned; }

BarrierResult barrier(int value) {
  Runner &self = *runner;
  lane->state = Lane::kBarrier;
  lane->barrier_value = value;
  ++self.at_barrier;
  self.release_barrier();
  self.wait();
  return self.barrier_result;
}

void collective(unsigned mask, void *operand, void (*complete)(void *const *operands, unsigned mask)) {
  Runner &self = *runner;
  Lane *const me = lane;
  const int first = me->index / kWarp * kWarp;
  if (!(mask >> (me->index - first) & 1))
    die("%s: thread %d calls a warp collective whose mask %08x leaves it out", self.kernel, me->index, mask);
  me->mask = mask;
  me->operand = operand;
  me->complete = complete;
  me->state = Lane::kWarpWait;
  Warp &warp = self.warps[static_cast<size_t>(first / kWarp)];
  warp.waiting |= 1u << (me->index - first);
  if (const int lanes = static_cast<int>(self.lanes.size()) - first; lanes < kWarp && mask >> lanes != 0) {
    // A block that is no multiple of 32 has lanes that do not exist: CUDA leaves naming them undefined.
    const int missing = lanes + __builtin_ctz(mask >> lanes);
    die("%s: mask %08x names lane %d of warp %d, which does not exist", self.kernel, mask, missing, first / kWarp);
  }
  if ((warp.done & mask) != 0)
    die("%s: thread %d waits for thread %d of its warp, which has returned", self.kernel, me->index,
        first + __builtin_ctz(warp.done & mask));
  if ((warp.waiting & mask) != mask) return self.wait();
  void *operands[kWarp] = {};
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const int i = __builtin_ctz(left);
    const Lane &other = self.lanes[static_cast<size_t>(first + i)];
    if (other.mask != mask || other.complete != complete)
      die("%s: threads %d and %d of a warp meet in different collectives (masks %08x and %08x)", self.kernel, me->index,
          other.index, mask, other.mask);
    operands[i] = other.operand;
  }
  complete(operands, mask);
  warp.waiting &= ~mask;
  for (int k = 0; k < kWarp; ++k) {
    const int i = thread_order == 0 ? k : kWarp - 1 - k;
    if (!(mask >> i & 1)) continue;
    Lane &other = self.lanes[static_cast<size_t>(first + i)];
    other.state = Lane::kReady;
    if (&other != me) self.ready.push(&other);
  }
}

void async_copy(void *to, const void *from, uint32_t bytes, uint32_t valid) {
  if (thread_order != 0) {
    // The other end of what hardware may do: whoever still reads what the copy overwrites sees it.
    std::memcpy(to, from, valid);
    std::memset(static_cast<char *>(to) + valid, 0, bytes - valid);
    return;
  }
  lane->open_group.push_back({to, from, bytes, valid});
}

void async_commit() {
  if (lane->groups.empty() && lane->open_group.empty()) return;
  lane->groups.push_back(std::move(lane->open_group));
  lane->open_group.clear();
}

void async_wait(int remaining) {
  auto &groups = lane->groups;
  while (static_cast<int>(groups.size()) > remaining) {
    for (const AsyncCopy &copy : groups.front()) {
      std::memcpy(copy.to, copy.from, copy.valid);
      std::memset(static_cast<char *>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
    }
    groups.erase(groups.begin());
  }
}

int launch(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void *), void *context, const char *kernel) {
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  const bool fits = grid.x > 0 && grid.x <= 0x7fffffffu && grid.y > 0 && grid.y <= 65535 && grid.z > 0 &&
                    grid.z <= 65535 && threads > 0 && threads <= 1024 && block.z <= 64 && shared_bytes <= most_shared();
  if (!fits) return 9;  // cudaErrorInvalidConfiguration
  auto job = std::make_shared<Job>();
  job->grid = grid;
  job->block = block;
  job->shared_bytes = shared_bytes;
  job->body = body;
  job->context = context;
  job->kernel = kernel;
  job->blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  pool().run(job);
  return 0;
}

}  // namespace emul
