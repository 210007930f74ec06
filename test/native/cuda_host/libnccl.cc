// NCCL for ranks that are processes of one machine without a GPU: what native/cuda/nccl.h names of it, under NCCL's
// rules. Work is done on the stream that it was given, over memory that the processes share.
//
// As a communicator that does not block: a call only begins, and nothing is on the stream before ncclCommGetAsyncError
// says so. A rank that is gone leaves the others waiting until they abort, as between GPUs of one machine;
// LONGSEQ_FAKE_NCCL_TELLS: its end is an error of the communicator. Calls of two ranks that do not fit, and other
// broken rules, end the process by a line that names both ranks. LONGSEQ_FAKE_NCCL_VERSION: the version that it tells.
#include <dlfcn.h>
#include <nccl.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "channels/channels.h"
#include "cudart.h"
#include "runtime/error.h"

namespace {

using longseq::channels::Channels;
using Transfer = Channels::Transfer;

[[noreturn]] void broken(const std::string &rule) {
  std::fprintf(stderr, "a rule of NCCL is broken: %s\n", rule.c_str());
  std::fflush(stderr);
  std::_Exit(99);
}

void launch(cudaStream_t stream, std::vector<FakeAccess> accesses, std::function<cudaError_t()> kernel) {
  static auto *const entry = reinterpret_cast<decltype(&fake_launch)>(
      reinterpret_cast<void *(*)()>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), "fake_launcher"))());
  entry(stream, std::move(accesses), std::move(kernel));
}

// What a rank tells another before its bytes come.
struct Header {
  char call[112];
  int64_t bytes;
  uint64_t number;
};

// Bytes to and from one rank; NULL: none.
struct Part {
  int rank;
  const char *send = nullptr;
  char *receive = nullptr;
  int64_t send_bytes = 0, receive_bytes = 0;
};

struct Call {
  std::string name;
  std::vector<Part> parts;
  std::function<void()> after;  // when all is there
  std::vector<FakeAccess> accesses;
  cudaStream_t stream = nullptr;
};

int64_t width_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
    case ncclInt8:
      return 1;
    case ncclBfloat16:
      return 2;
    case ncclFloat32:
      return 4;
    case ncclFloat64:
    case ncclInt64:
      return 8;
    default:
      broken("a type that longseq does not use");
  }
}

struct Bfloat16 {
  uint16_t bits;
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  Bfloat16 operator+(Bfloat16) const { broken("a sum that would be rounded at every rank"); }
};

// y = x[P - 1] + ... + x[0]: another order than that of the ranks, as NCCL's is.
template <class T>
void reduce(const char *parts, int64_t ranks, void *y, int64_t count, bool largest) {
  const T *x = reinterpret_cast<const T *>(parts);
  for (int64_t i = 0; i < count; ++i) {
    T value = x[(ranks - 1) * count + i];
    for (int64_t r = ranks - 2; r >= 0; --r) {
      const T other = x[r * count + i];
      value = largest ? (other > value ? other : value) : static_cast<T>(value + other);
    }
    static_cast<T *>(y)[i] = value;
  }
}

void reduce(const char *parts, int64_t ranks, void *y, int64_t count, ncclDataType_t type, ncclRedOp_t kind) {
  if (kind != ncclSum && kind != ncclMax) broken("a reduction that longseq does not use");
  if (type == ncclFloat32) return reduce<float>(parts, ranks, y, count, kind == ncclMax);
  if (type == ncclFloat64) return reduce<double>(parts, ranks, y, count, kind == ncclMax);
  if (type == ncclInt64) return reduce<int64_t>(parts, ranks, y, count, kind == ncclMax);
  if (type == ncclBfloat16 && kind == ncclMax) return reduce<Bfloat16>(parts, ranks, y, count, true);
  broken("a sum that would be rounded at every rank");
}

}  // namespace

struct ncclComm {
  std::string id;
  int rank = 0, size = 0, splits = 0;
  std::unique_ptr<Channels> channels;
  std::atomic<bool> aborted{false}, inside{false};
  std::atomic<int> state{ncclInProgress};
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Call> waiting;  // begun, not yet on their stream
  int polls = 0;
  uint64_t number = 0;  // of calls that were begun
  std::vector<uint64_t> sent, received;

  void abort() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      aborted = true;
      if (channels) channels->abort();
    }
    changed.notify_all();
  }
  // A rank is gone.
  void lose() {
    if (std::getenv("LONGSEQ_FAKE_NCCL_TELLS")) state = ncclRemoteError;
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return aborted.load(); });
  }
};

namespace {

std::mutex live_mutex;
std::set<ncclComm *> &live() {
  static auto &all = *new std::set<ncclComm *>;
  return all;
}
// What streams and threads still hold.
std::set<std::shared_ptr<ncclComm>> &kept() {
  static auto &all = *new std::set<std::shared_ptr<ncclComm>>;
  return all;
}

std::shared_ptr<ncclComm> find(ncclComm_t comm) {
  std::lock_guard<std::mutex> lock(live_mutex);
  if (!live().count(comm)) broken("a communicator is used that is not there any more");
  for (const auto &one : kept())
    if (one.get() == comm) return one;
  broken("a communicator that nobody made");
}

// One thread at a time.
class Turn {
 public:
  explicit Turn(ncclComm_t comm) : comm_(find(comm)) {
    if (comm_->inside.exchange(true)) broken("two threads call NCCL for one communicator at once");
  }
  ~Turn() { comm_->inside = false; }
  ncclComm &operator*() const { return *comm_; }
  ncclComm *operator->() const { return comm_.get(); }
  const std::shared_ptr<ncclComm> &shared() const { return comm_; }

 private:
  std::shared_ptr<ncclComm> comm_;
};

std::string place(const std::string &id, int rank) { return "/dev/shm/" + id + "-" + std::to_string(rank); }

// Opens the channels between the ranks: they meet by files.
void meet(const std::shared_ptr<ncclComm> &comm) {
  try {
    ls_comm_options options{};
    options.rank = comm->rank;
    options.size = comm->size;
    options.timeout_ms = 600'000;
    auto channels = longseq::channels::open_shared_memory(options);
    char own[LS_COMM_ADDRESS_BYTES] = "";
    channels->address(own);
    const std::string path = place(comm->id, comm->rank);
    {
      std::ofstream(path + ".new", std::ios::binary).write(own, sizeof own);
      std::rename((path + ".new").c_str(), path.c_str());
    }
    std::string all(static_cast<size_t>(comm->size) * LS_COMM_ADDRESS_BYTES, '\0');
    for (int rank = 0; rank < comm->size && !comm->aborted; ++rank) {
      char *const to = all.data() + static_cast<size_t>(rank) * LS_COMM_ADDRESS_BYTES;
      while (!comm->aborted) {
        if (std::ifstream file(place(comm->id, rank), std::ios::binary); file.read(to, LS_COMM_ADDRESS_BYTES)) break;
        usleep(1000);
      }
    }
    if (!comm->aborted) {
      {
        std::lock_guard<std::mutex> lock(comm->mutex);
        comm->channels = std::move(channels);
      }
      comm->channels->connect(all.data());
      // Each has read the files of all.
      std::vector<char> bytes(static_cast<size_t>(2 * comm->size));
      std::vector<Transfer> sends, receives;
      for (int rank = 0; rank < comm->size; ++rank)
        if (rank != comm->rank) {
          sends.push_back({rank, &bytes[static_cast<size_t>(rank)], 1});
          receives.push_back({rank, &bytes[static_cast<size_t>(comm->size + rank)], 1});
        }
      comm->channels->exchange(std::move(sends), std::move(receives));
    }
    unlink(path.c_str());
    comm->state = ncclSuccess;
  } catch (const std::exception &) {
    unlink(place(comm->id, comm->rank).c_str());
    comm->lose();
  }
}

ncclComm_t make(const std::string &id, int rank, int size) {
  auto comm = std::make_shared<ncclComm>();
  comm->id = id;
  comm->rank = rank;
  comm->size = size;
  comm->sent.resize(static_cast<size_t>(size));
  comm->received.resize(static_cast<size_t>(size));
  {
    std::lock_guard<std::mutex> lock(live_mutex);
    live().insert(comm.get());
    kept().insert(comm);
  }
  std::thread(meet, comm).detach();
  return comm.get();
}

void let_go(ncclComm_t comm, bool abort) {
  const std::shared_ptr<ncclComm> found = find(comm);
  {
    std::lock_guard<std::mutex> lock(live_mutex);
    live().erase(comm);
    kept().erase(found);
  }
  if (abort) found->abort();
}

// On the stream's thread.
void perform(ncclComm &comm, const Call &call) {
  if (comm.aborted) return;
  std::vector<Header> out(call.parts.size()), in(call.parts.size());
  std::vector<Transfer> sends, receives, send_bytes, receive_bytes;
  for (size_t i = 0; i < call.parts.size(); ++i) {
    const Part &part = call.parts[i];
    if (part.rank == comm.rank) {
      if (part.send_bytes != part.receive_bytes) broken("a rank sends itself other bytes than it takes");
      std::memmove(part.receive, part.send, static_cast<size_t>(part.send_bytes));
      continue;
    }
    const auto peer = static_cast<size_t>(part.rank);
    if (part.send) {
      std::snprintf(out[i].call, sizeof out[i].call, "%s", call.name.c_str());
      out[i].bytes = part.send_bytes;
      out[i].number = ++comm.sent[peer];
      sends.push_back({part.rank, reinterpret_cast<char *>(&out[i]), sizeof(Header)});
      send_bytes.push_back({part.rank, const_cast<char *>(part.send), part.send_bytes});
    }
    if (part.receive) {
      receives.push_back({part.rank, reinterpret_cast<char *>(&in[i]), sizeof(Header)});
      receive_bytes.push_back({part.rank, part.receive, part.receive_bytes});
    }
  }
  try {
    comm.channels->exchange(std::move(sends), std::move(receives));
    for (size_t i = 0; i < call.parts.size(); ++i) {
      const Part &part = call.parts[i];
      if (part.rank == comm.rank || !part.receive) continue;
      const uint64_t expected = ++comm.received[static_cast<size_t>(part.rank)];
      if (in[i].bytes != part.receive_bytes || in[i].number != expected || call.name != in[i].call)
        broken("rank " + std::to_string(comm.rank) + " is at " + call.name + ", exchange " + std::to_string(expected) +
               " of " + std::to_string(part.receive_bytes) + " bytes, rank " + std::to_string(part.rank) + " at " +
               in[i].call + ", exchange " + std::to_string(in[i].number) + " of " + std::to_string(in[i].bytes) +
               " bytes");
    }
    comm.channels->exchange(std::move(send_bytes), std::move(receive_bytes));
  } catch (const std::exception &) {
    // NCCL's kernels end without a word when they are aborted.
    if (!comm.aborted) comm.lose();
    return;
  }
  if (call.after) call.after();
}

void give_to_stream(const std::shared_ptr<ncclComm> &comm) {
  for (Call &call : comm->waiting) {
    const cudaStream_t stream = call.stream;
    auto accesses = call.accesses;
    launch(stream, std::move(accesses), [comm, call = std::move(call)] {
      perform(*comm, call);
      return cudaSuccess;
    });
  }
  comm->waiting.clear();
}

ncclResult_t begin(const Turn &comm, Call call) {
  if (comm->state != ncclSuccess) broken("a call before the one before it has settled, or after an error");
  if (comm->aborted) broken("a call on a communicator that was aborted");
  comm->waiting.push_back(std::move(call));
  comm->polls = 0;
  comm->state = ncclInProgress;
  return ncclInProgress;
}

// Of this thread: what was called since ncclGroupStart.
struct Grouped {
  int depth = 0;
  ncclComm_t comm = nullptr;
  Call call;
};
thread_local Grouped group;

Part &part_of(ncclComm_t comm, int peer, cudaStream_t stream) {
  if (group.depth == 0) broken("a send or receive of its own, which only its peer ends");
  if (group.comm != nullptr && (group.comm != comm || group.call.stream != stream))
    broken("two communicators or streams in one group");
  group.comm = comm;
  group.call.stream = stream;
  for (Part &part : group.call.parts)
    if (part.rank == peer) return part;
  group.call.parts.push_back({peer});
  return group.call.parts.back();
}

FakeAccess access(const void *data, int64_t bytes, bool writes) {
  return {static_cast<const char *>(data), static_cast<size_t>(bytes), writes};
}

const char *type_name(ncclDataType_t type) {
  switch (type) {
    case ncclFloat32:
      return "float32";
    case ncclFloat64:
      return "float64";
    case ncclBfloat16:
      return "bfloat16";
    case ncclInt64:
      return "int64";
    default:
      return "bytes";
  }
}

std::string described(const char *name, size_t count, ncclDataType_t type, int detail) {
  return std::string(name) + " of " + std::to_string(count) + " " + type_name(type) + ", " + std::to_string(detail);
}

}  // namespace

#define FAKE extern "C" __attribute__((visibility("default")))

FAKE ncclResult_t ncclGetVersion(int *version) {
  const char *text = std::getenv("LONGSEQ_FAKE_NCCL_VERSION");
  *version = text ? std::atoi(text) : 22809;
  return ncclSuccess;
}
FAKE ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  std::random_device random;
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->internal, sizeof id->internal, "longseq-fake-nccl-%08x%08x", random(), random());
  return ncclSuccess;
}
FAKE const char *ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited or there was a network error" : "an error of the stand-in";
}
FAKE const char *ncclGetLastError(ncclComm_t) { return ""; }

FAKE ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank, ncclConfig_t *config) {
  if (config == nullptr || config->blocking != 0) broken("a communicator that blocks");
  if (std::strncmp(id.internal, "longseq-fake-nccl-", 18) != 0) return ncclInvalidArgument;
  *comm = make(id.internal, rank, size);
  return ncclInProgress;
}
FAKE ncclResult_t ncclCommSplit(ncclComm_t whole, int color, int key, ncclComm_t *comm, ncclConfig_t *config) {
  if (config == nullptr || config->blocking != 0) broken("a communicator that blocks");
  const Turn turn(whole);
  if (turn->state != ncclSuccess) broken("a split before the call before it has settled");
  // All ranks tell their colours and keys: who has the same is in.
  const int split = ++turn->splits;
  Call call;
  call.name = "split " + std::to_string(split);
  struct Place {
    int color, key;
  };
  auto places = std::make_shared<std::vector<Place>>(static_cast<size_t>(turn->size));
  auto own = std::make_shared<Place>(Place{color, key});
  for (int rank = 0; rank < turn->size; ++rank)
    call.parts.push_back({rank, reinterpret_cast<char *>(own.get()),
                          reinterpret_cast<char *>(&(*places)[static_cast<size_t>(rank)]), sizeof(Place),
                          sizeof(Place)});
  turn->state = ncclInProgress;
  turn->polls = -1;  // the thread settles it
  std::thread([whole = turn.shared(), call = std::move(call), places, own, split, comm] {
    perform(*whole, call);
    if (whole->aborted) return;
    int size = 0, rank = 0;
    for (const Place &one : *places)
      if (one.color == own->color) {
        ++size;
        if (one.key < own->key) ++rank;
      }
    if (rank != own->key) broken("keys of a split that are not 0, 1, 2, ...");
    *comm = make(whole->id + "-" + std::to_string(split) + "-" + std::to_string(own->color), rank, size);
    whole->state = ncclSuccess;
  }).detach();
  return ncclInProgress;
}
FAKE ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state) {
  const Turn turn(comm);
  // Some polls later it is done.
  if (turn->state == ncclInProgress && !turn->waiting.empty() && ++turn->polls > 2) {
    give_to_stream(turn.shared());
    turn->state = ncclSuccess;
  }
  *state = static_cast<ncclResult_t>(turn->state.load());
  return ncclSuccess;
}
FAKE ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const Turn turn(comm);
  if (turn->state != ncclSuccess) broken("a communicator ends before its last call has settled");
  return ncclSuccess;
}
FAKE ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  let_go(comm, false);
  return ncclSuccess;
}
FAKE ncclResult_t ncclCommAbort(ncclComm_t comm) {
  let_go(comm, true);
  return ncclSuccess;
}

FAKE ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}
FAKE ncclResult_t ncclGroupEnd() {
  if (group.depth == 0) broken("a group ends that did not begin");
  if (--group.depth > 0) return ncclSuccess;
  Grouped ended;
  std::swap(ended, group);
  if (ended.comm == nullptr) return ncclSuccess;
  const Turn turn(ended.comm);
  ended.call.name = "send and receive";
  for (const Part &part : ended.call.parts) {
    ended.call.accesses.push_back(access(part.send, part.send_bytes, false));
    ended.call.accesses.push_back(access(part.receive, part.receive_bytes, true));
  }
  return begin(turn, std::move(ended.call));
}
FAKE ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                           cudaStream_t stream) {
  Part &part = part_of(comm, peer, stream);
  if (part.send) broken("two sends to one rank in a group");
  part.send = static_cast<const char *>(data);
  part.send_bytes = static_cast<int64_t>(count) * width_of(type);
  return ncclInProgress;
}
FAKE ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                           cudaStream_t stream) {
  Part &part = part_of(comm, peer, stream);
  if (part.receive) broken("two receives from one rank in a group");
  part.receive = static_cast<char *>(data);
  part.receive_bytes = static_cast<int64_t>(count) * width_of(type);
  return ncclInProgress;
}
FAKE ncclResult_t ncclAllGather(const void *x, void *y, size_t count, ncclDataType_t type, ncclComm_t comm,
                                cudaStream_t stream) {
  const Turn turn(comm);
  const int64_t bytes = static_cast<int64_t>(count) * width_of(type);
  const char *const from = static_cast<const char *>(x);
  char *const to = static_cast<char *>(y);
  if (from < to + turn->size * bytes && to < from + bytes && from != to + turn->rank * bytes)
    broken("all-gather in place, but not from this rank's part");
  Call call;
  call.name = described("all-gather", count, type, 0);
  call.stream = stream;
  for (int rank = 0; rank < turn->size; ++rank) call.parts.push_back({rank, from, to + rank * bytes, bytes, bytes});
  call.accesses = {access(x, bytes, false), access(y, turn->size * bytes, true)};
  return begin(turn, std::move(call));
}
FAKE ncclResult_t ncclReduceScatter(const void *x, void *y, size_t count, ncclDataType_t type, ncclRedOp_t kind,
                                    ncclComm_t comm, cudaStream_t stream) {
  const Turn turn(comm);
  const int64_t bytes = static_cast<int64_t>(count) * width_of(type);
  auto parts = std::make_shared<std::vector<char>>(static_cast<size_t>(turn->size * bytes));
  Call call;
  call.name = described("reduce-scatter", count, type, kind);
  call.stream = stream;
  for (int rank = 0; rank < turn->size; ++rank)
    call.parts.push_back(
        {rank, static_cast<const char *>(x) + rank * bytes, parts->data() + rank * bytes, bytes, bytes});
  call.after = [=, size = turn->size] { reduce(parts->data(), size, y, static_cast<int64_t>(count), type, kind); };
  call.accesses = {access(x, turn->size * bytes, false), access(y, bytes, true)};
  return begin(turn, std::move(call));
}
FAKE ncclResult_t ncclAllReduce(const void *x, void *y, size_t count, ncclDataType_t type, ncclRedOp_t kind,
                                ncclComm_t comm, cudaStream_t stream) {
  const Turn turn(comm);
  const int64_t bytes = static_cast<int64_t>(count) * width_of(type);
  auto parts = std::make_shared<std::vector<char>>(static_cast<size_t>(turn->size * bytes));
  Call call;
  call.name = described("all-reduce", count, type, kind);
  call.stream = stream;
  for (int rank = 0; rank < turn->size; ++rank)
    call.parts.push_back({rank, static_cast<const char *>(x), parts->data() + rank * bytes, bytes, bytes});
  call.after = [=, size = turn->size] { reduce(parts->data(), size, y, static_cast<int64_t>(count), type, kind); };
  call.accesses = {access(x, bytes, false), access(y, bytes, true)};
  return begin(turn, std::move(call));
}
FAKE ncclResult_t ncclBroadcast(const void *x, void *y, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                                cudaStream_t stream) {
  const Turn turn(comm);
  const int64_t bytes = static_cast<int64_t>(count) * width_of(type);
  Call call;
  call.name = described("broadcast", count, type, root);
  call.stream = stream;
  if (turn->rank == root) {
    for (int rank = 0; rank < turn->size; ++rank)
      if (rank != root) call.parts.push_back({rank, static_cast<const char *>(x), nullptr, bytes, 0});
    if (x != y) broken("a broadcast that is not in place");
  } else {
    call.parts.push_back({root, nullptr, static_cast<char *>(y), 0, bytes});
  }
  call.accesses = {access(y, bytes, turn->rank != root)};
  return begin(turn, std::move(call));
}
