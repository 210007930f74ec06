// Channels between the processes of one machine, through memory that both have mapped: windows, slots and the waiting
// for them.
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string>

#include "channels/channels.h"
#include "runtime/error.h"
#include "runtime/recorder.h"

namespace longseq::channels {

namespace {

constexpr int64_t kSlotBytes = 256 << 10;
constexpr uint64_t kSlots = 4;
constexpr uint64_t kMagic = 0x6c6f6e6773657131ULL;
// How often a rank that waits looks whether the others are still there.
constexpr int64_t kLookMs = 100;
// Looks at the counters before a rank goes to sleep. Few: there may be more ranks than cores.
constexpr int kSpins = 200;

// How far the bytes to one rank are: slots filled and slots emptied, since the beginning.
struct alignas(128) Counters {
  std::atomic<uint64_t> filled;
  char apart[56];
  std::atomic<uint64_t> emptied;
};

// What lies at the head of a rank's window; the counters for each receiver and then their slots follow.
struct Window {
  uint64_t magic, nonce;
  std::atomic<uint32_t> bell;      // rung for this window's rank; a futex
  std::atomic<uint32_t> sleeping;  // whether that rank waits for the bell
  std::atomic<uint32_t> left;      // whether that rank gave up
  char apart[128 - 28];

  Counters &counters(int32_t receiver) { return reinterpret_cast<Counters *>(this + 1)[receiver]; }
  char *slot(int32_t size, int32_t receiver, uint64_t index) {
    char *slots = reinterpret_cast<char *>(this + 1) + sizeof(Counters) * static_cast<size_t>(size);
    return slots +
           (static_cast<int64_t>(receiver) * static_cast<int64_t>(kSlots) + static_cast<int64_t>(index % kSlots)) *
               kSlotBytes;
  }
};
static_assert(sizeof(Window) == 128 && sizeof(Counters) == 128);

// A rank's address in text.
struct Address {
  long process;
  int file;
  unsigned long long nonce;
};

long futex(std::atomic<uint32_t> *word, int operation, uint32_t value, const timespec *timeout) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t *>(word), operation, value, timeout, nullptr, 0);
}

Window *map_window(int file, int64_t bytes) {
  void *address = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return address == MAP_FAILED ? nullptr : static_cast<Window *>(address);
}

[[noreturn]] void fail(const char *what) {
  throw Error(LS_DEVICE_FAILURE, format("%s: %s", what, std::strerror(errno)));
}

// Each rank has one window: a file without a name, which all map and which is gone with the last of them. The bytes
// that rank s sends to rank r wait in s's window, in a few slots that are used in turn.
class SharedMemory final : public Channels {
 public:
  explicit SharedMemory(const ls_comm_options &options);
  ~SharedMemory() override;
  void address(char out[LS_COMM_ADDRESS_BYTES]) const override;
  void connect(const char *addresses) override;
  void exchange(std::vector<Transfer> sends, std::vector<Transfer> receives) override;
  void abort() override;

 private:
  bool progress(Transfer &transfer, bool sending);
  void wake(int32_t rank);
  void check_others(const std::vector<Transfer> &sends, const std::vector<Transfer> &receives);

  int64_t window_bytes_;
  int file_ = -1;
  uint64_t nonce_ = 0;
  std::vector<Window *> windows_;  // null where not connected
  std::vector<int> processes_;     // pidfds, -1 for this one
  std::atomic<bool> aborted_{false};
};

SharedMemory::SharedMemory(const ls_comm_options &options)
    : Channels(options),
      window_bytes_(static_cast<int64_t>(sizeof(Window)) +
                    size_ * (static_cast<int64_t>(sizeof(Counters)) + static_cast<int64_t>(kSlots) * kSlotBytes)),
      windows_(static_cast<size_t>(size_)),
      processes_(static_cast<size_t>(size_), -1) {
  file_ = memfd_create("longseq", MFD_CLOEXEC);
  // Pages come when they are first touched: those of the slots to this rank itself never do.
  if (file_ < 0 || ftruncate(file_, window_bytes_) != 0) fail("cannot make memory to share");
  Window *own = map_window(file_, window_bytes_);
  if (!own) fail("cannot map memory to share");
  if (getrandom(&nonce_, sizeof nonce_, 0) != static_cast<ssize_t>(sizeof nonce_)) fail("no random numbers");
  own->magic = kMagic;
  own->nonce = nonce_;
  windows_[static_cast<size_t>(rank_)] = own;
}

SharedMemory::~SharedMemory() {
  for (Window *window : windows_)
    if (window) munmap(window, static_cast<size_t>(window_bytes_));
  for (int process : processes_)
    if (process >= 0) ::close(process);
  if (file_ >= 0) ::close(file_);
}

void SharedMemory::address(char out[LS_COMM_ADDRESS_BYTES]) const {
  std::snprintf(out, LS_COMM_ADDRESS_BYTES, "%ld %d %llu", static_cast<long>(getpid()), file_,
                static_cast<unsigned long long>(nonce_));
}

void SharedMemory::connect(const char *addresses) {
  for (int32_t r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    const char *text = addresses + static_cast<size_t>(r) * LS_COMM_ADDRESS_BYTES;
    Address at{};
    if (std::sscanf(text, "%ld %d %llu", &at.process, &at.file, &at.nonce) != 3)
      throw Error(LS_INVALID_ARGUMENT, format("the address of rank %d is garbled", r));
    const std::string path = format("/proc/%ld/fd/%d", at.process, at.file);
    const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (file < 0)
      fail(format("rank %d, process %ld, cannot be reached (are all ranks on one machine and one user's?)", r,
                  at.process)
               .c_str());
    struct stat status {};
    const bool fits = fstat(file, &status) == 0 && status.st_size == window_bytes_;
    Window *window = fits ? map_window(file, window_bytes_) : nullptr;
    ::close(file);
    if (!window || window->magic != kMagic || window->nonce != at.nonce) {
      if (window) munmap(window, static_cast<size_t>(window_bytes_));
      throw Error(LS_DEVICE_FAILURE, format("process %ld is not rank %d of this job any more", at.process, r));
    }
    windows_[static_cast<size_t>(r)] = window;
    processes_[static_cast<size_t>(r)] = static_cast<int>(syscall(SYS_pidfd_open, at.process, 0));
    if (processes_[static_cast<size_t>(r)] < 0) fail(format("rank %d, process %ld", r, at.process).c_str());
  }
}

void SharedMemory::wake(int32_t rank) {
  Window &window = *windows_[static_cast<size_t>(rank)];
  window.bell.fetch_add(1);
  if (window.sleeping.load()) futex(&window.bell, FUTEX_WAKE, INT_MAX, nullptr);
}

// Moves what can be moved now; whether that was anything.
bool SharedMemory::progress(Transfer &transfer, bool sending) {
  const int32_t from = sending ? rank_ : transfer.rank, to = sending ? transfer.rank : rank_;
  Window &window = *windows_[static_cast<size_t>(from)];
  Counters &counters = window.counters(to);
  bool moved = false;
  while (transfer.bytes > 0) {
    const uint64_t filled = counters.filled.load(std::memory_order_acquire);
    const uint64_t emptied = counters.emptied.load(std::memory_order_acquire);
    if (sending ? filled - emptied == kSlots : filled == emptied) break;
    const auto bytes = static_cast<size_t>(std::min(transfer.bytes, kSlotBytes));
    char *slot = window.slot(size_, to, sending ? filled : emptied);
    if (sending)
      std::memcpy(slot, transfer.data, bytes);
    else
      std::memcpy(transfer.data, slot, bytes);
    transfer.data += bytes;
    transfer.bytes -= static_cast<int64_t>(bytes);
    (sending ? counters.filled : counters.emptied).fetch_add(1);
    wake(transfer.rank);
    moved = true;
  }
  return moved;
}

void SharedMemory::check_others(const std::vector<Transfer> &sends, const std::vector<Transfer> &receives) {
  if (aborted_.load()) throw Error(LS_CANCELLED, "the communicator was aborted");
  for (const auto *list : {&receives, &sends})
    for (const Transfer &transfer : *list) {
      if (transfer.bytes == 0) continue;
      const auto r = static_cast<size_t>(transfer.rank);
      // What it sent before it left still counts.
      const Counters &from = windows_[r]->counters(rank_);
      if (list == &receives && from.filled.load() != from.emptied.load()) continue;
      pollfd ended{processes_[r], POLLIN, 0};
      if (windows_[r]->left.load()) throw Error(LS_CANCELLED, format("rank %d has stopped", transfer.rank));
      if (poll(&ended, 1, 0) == 1)
        throw Error(LS_DEVICE_FAILURE, format("rank %d has ended (its process is gone)", transfer.rank));
    }
}

void SharedMemory::exchange(std::vector<Transfer> sends, std::vector<Transfer> receives) {
  Window &own = *windows_[static_cast<size_t>(rank_)];
  int64_t last = now_ns(), looked = last;
  int idle = 0;
  for (;;) {
    const uint32_t bell = own.bell.load();
    bool moved = false, open = false;
    for (Transfer &send : sends) {
      moved |= progress(send, true);
      open |= send.bytes > 0;
    }
    for (Transfer &receive : receives) {
      moved |= progress(receive, false);
      open |= receive.bytes > 0;
    }
    if (!open) return;
    if (moved) {
      last = now_ns();
      idle = 0;
      continue;
    }
    if (++idle < kSpins) {
      __builtin_ia32_pause();
      continue;
    }
    own.sleeping.store(1);
    const timespec timeout{0, kLookMs * 1000000};
    if (own.bell.load() == bell) futex(&own.bell, FUTEX_WAIT, bell, &timeout);
    own.sleeping.store(0);
    const int64_t now = now_ns();
    if (aborted_.load() || now - looked >= kLookMs * 1000000) {
      check_others(sends, receives);
      looked = now;
    }
    if (now - last > timeout_ms_ * 1000000) {
      std::string waits;
      for (const auto *list : {&receives, &sends})
        for (const Transfer &transfer : *list)
          if (transfer.bytes > 0 && waits.empty()) waits = format("rank %d", transfer.rank);
      throw Error(LS_DEVICE_FAILURE, format("nothing came from or went to %s within %.0f s", waits.c_str(),
                                            static_cast<double>(timeout_ms_) / 1000));
    }
  }
}

void SharedMemory::abort() {
  aborted_.store(true);
  windows_[static_cast<size_t>(rank_)]->left.store(1);
  for (int32_t r = 0; r < size_; ++r)
    if (windows_[static_cast<size_t>(r)]) wake(r);
}

}  // namespace

std::unique_ptr<Channels> open_shared_memory(const ls_comm_options &options) {
  return std::make_unique<SharedMemory>(options);
}

}  // namespace longseq::channels
