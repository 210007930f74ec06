// Ranks that exchange memory of their GPUs: the table of communicators over NCCL. A collective is given to the comm
// queue's stream and runs behind the host's back, so a thread of the communicator watches over it.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>

#include "entries.h"
#include "launch.h"
#include "longseq/comm.h"
#include "nccl_library.h"
#include "state.h"

namespace longseq::cuda {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kWatchEvery = std::chrono::milliseconds(100);
// What a communicator that ends in good order waits for the others.
constexpr auto kFarewell = std::chrono::seconds(5);

// Ours alone: NCCL was not done in time.
constexpr auto kLate = static_cast<ncclResult_t>(1000);

static_assert(sizeof(ncclUniqueId) <= LS_COMM_ADDRESS_BYTES);

ncclDataType_t type_of(int32_t dtype) {
  switch (dtype) {
    case LS_F32:
      return ncclFloat32;
    case LS_BF16:
      return ncclBfloat16;
    case LS_F64:
      return ncclFloat64;
    default:
      return ncclInt64;
  }
}

char *at(const void *data, int64_t bytes) { return const_cast<char *>(static_cast<const char *>(data)) + bytes; }

// A contiguous tensor [rows, columns] of bfloat16.
ls_tensor matrix(void *data, int64_t rows, int64_t columns) {
  ls_tensor x{};
  x.data = data;
  x.ndim = 2;
  x.sizes[0] = rows;
  x.sizes[1] = columns;
  x.strides[0] = columns;
  x.strides[1] = 1;
  x.dtype = LS_BF16;
  x.present = 1;
  return x;
}

// y = the sum of the rows of parts [ranks, count], in float64 or float32, rounded once.
ls_status sum_parts(const ls_exec *exec, void *parts, int64_t ranks, void *y, int64_t count) {
  ls_sum_args args{};
  args.x = matrix(parts, ranks, count);
  args.y = matrix(y, 1, count);
  args.alpha = 1;
  return sum(exec, &args);
}

class Group {
 public:
  explicit Group(const ls_comm_options &options)
      : options_(options), timeout_ms_(options.timeout_ms), device_(static_cast<DeviceState *>(options.device)) {
    options_.host = nullptr;  // lives for the call alone
  }
  ~Group();
  Group(const Group &) = delete;
  Group &operator=(const Group &) = delete;

  int32_t rank() const { return options_.rank; }
  int32_t size() const { return options_.size; }

  ls_status address(char out[LS_COMM_ADDRESS_BYTES], char *error, size_t error_size);
  ls_status connect(const char *addresses, char *error, size_t error_size);
  // Gives `call(communicator, stream)` to the stream of the queue.
  template <class Call>
  ls_status issue(const ls_exec *exec, const char *name, const Call &call);
  void abort();
  void set_timeout(int64_t timeout_ms) { timeout_ms_ = timeout_ms; }

 private:
  using Lock = std::unique_lock<std::mutex>;
  // What was given to the stream and may not have ended.
  struct Pending {
    cudaEvent_t event;
    Clock::time_point since;
    const char *name;
  };

  std::chrono::milliseconds timeout() const { return std::chrono::milliseconds(timeout_ms_.load()); }
  Clock::time_point deadline() const { return Clock::now() + timeout(); }
  // NCCL works on calls behind our back as well: waits until it is done with the last one on `comm`.
  ncclResult_t settle(Lock &lock, ncclComm_t comm, ncclResult_t result, Clock::time_point deadline);
  std::string text_of(ncclResult_t result) const;
  // Ends all that waits on a stream. The first reason stays. Not under the lock.
  void give_up(ls_status status, const std::string &reason);
  ls_status gone(char *error, size_t error_size) const;
  void watch();
  void forget_ended();
  // Looks at what NCCL and the stream say; the status of a failure, with its reason.
  ls_status look(std::string *reason);

  ls_comm_options options_;
  std::atomic<int64_t> timeout_ms_;
  DeviceState *const device_;
  // A communicator of NCCL's serves one thread at a time.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  ncclComm_t comm_ = nullptr;
  ls_status status_ = LS_OK;  // of giving up
  std::string reason_;
  bool told_ = false;  // the runtime knows that it was given up: NCCL may let go of the streams
  bool stop_ = false;
  std::deque<Pending> pending_;
  std::thread watchdog_;
};

Group::~Group() {
  {
    Lock lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (watchdog_.joinable()) watchdog_.join();
  make_current(device_);
  Lock lock(mutex_);
  if (comm_ != nullptr) {
    // In good order nothing is under way; where the others do not come, nobody waits for them.
    ncclResult_t result = status_ == LS_OK ? nccl().CommFinalize(comm_) : ncclSystemError;
    result = settle(lock, comm_, result, Clock::now() + kFarewell);
    if (result == ncclSuccess)
      nccl().CommDestroy(comm_);
    else
      nccl().CommAbort(comm_);
  }
  for (const Pending &pending : pending_) recycle_event(device_, pending.event);
}

ls_status Group::address(char out[LS_COMM_ADDRESS_BYTES], char *error, size_t error_size) {
  // A part of a communicator needs no meeting place.
  if (options_.rank != 0 || options_.parent != nullptr) return LS_OK;
  ncclUniqueId id;
  const ncclResult_t result = nccl().GetUniqueId(&id);
  if (result != ncclSuccess) {
    snprintf(error, error_size, "ncclGetUniqueId: %s", text_of(result).c_str());
    return LS_DEVICE_FAILURE;
  }
  memcpy(out, &id, sizeof id);
  return LS_OK;
}

ls_status Group::connect(const char *addresses, char *error, size_t error_size) {
  make_current(device_);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclResult_t result = ncclSuccess;
  ncclComm_t part = nullptr;
  if (auto *const parent = static_cast<Group *>(options_.parent)) {
    // Channels and buffers of the whole serve its parts.
    config.splitShare = 1;
    Lock outer(parent->mutex_);
    if (parent->comm_ == nullptr) return parent->gone(error, error_size);
    result = nccl().CommSplit(parent->comm_, options_.color, options_.rank, &part, &config);
    // The part is not there before the whole is done with it.
    result = parent->settle(outer, parent->comm_, result, deadline());
    if (result == ncclSuccess && part == nullptr) result = ncclInternalError;
  }
  Lock lock(mutex_);
  comm_ = part;
  if (status_ != LS_OK) return gone(error, error_size);
  if (options_.parent == nullptr) {
    ncclUniqueId id;
    memcpy(&id, addresses, sizeof id);
    result = nccl().CommInitRankConfig(&comm_, options_.size, id, options_.rank, &config);
  } else if (result == ncclSuccess) {
    result = nccl().CommGetAsyncError(comm_, &result) == ncclSuccess ? result : ncclInternalError;
  }
  result = settle(lock, comm_, result, deadline());
  if (result != ncclSuccess) {
    if (status_ != LS_OK) return gone(error, error_size);
    snprintf(error, error_size, "%s", text_of(result).c_str());
    if (comm_ != nullptr) nccl().CommAbort(comm_);
    comm_ = nullptr;
    return LS_DEVICE_FAILURE;
  }
  watchdog_ = std::thread([this] { watch(); });
  return LS_OK;
}

ncclResult_t Group::settle(Lock &lock, ncclComm_t comm, ncclResult_t result, Clock::time_point until) {
  for (int turn = 0; result == ncclInProgress; ++turn) {
    lock.unlock();
    // Most are done within microseconds; the first between two ranks opens their connection.
    if (turn < 100)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(turn < 1000 ? 20 : 1000));
    lock.lock();
    if (status_ != LS_OK) return ncclSystemError;
    if (Clock::now() > until) return kLate;
    if (const ncclResult_t asked = nccl().CommGetAsyncError(comm, &result); asked != ncclSuccess) return asked;
  }
  return result;
}

std::string Group::text_of(ncclResult_t result) const {
  if (result == kLate) return "the other ranks did not come within " + std::to_string(timeout_ms_ / 1000) + " s";
  std::string text = nccl().GetErrorString(result);
  if (const char *last = comm_ != nullptr ? nccl().GetLastError(comm_) : nullptr; last && *last) {
    text += std::string(" (") + last + ")";
    std::replace(text.begin(), text.end(), '\n', ' ');
  }
  return text;
}

ls_status Group::gone(char *error, size_t error_size) const {
  snprintf(error, error_size, "%s", reason_.empty() ? "the communicator is not connected" : reason_.c_str());
  return status_ == LS_OK ? LS_DEVICE_FAILURE : status_;
}

void Group::give_up(ls_status status, const std::string &reason) {
  bool waits = false;
  {
    Lock lock(mutex_);
    if (status_ != LS_OK) return;
    status_ = status;
    reason_ = reason;
    forget_ended();
    waits = !pending_.empty();
  }
  // First the runtime, which believes nothing that comes from a stream afterwards; then the streams go on. Where no
  // stream waits nothing is lost.
  if (waits) options_.on_failure(options_.context, status, reason.c_str());
  {
    Lock lock(mutex_);
    told_ = true;
  }
  wake_.notify_all();
}

void Group::abort() { give_up(LS_CANCELLED, "the exchange was given up"); }

void Group::forget_ended() {
  make_current(device_);
  while (!pending_.empty()) {
    const cudaError_t state = cudaEventQuery(pending_.front().event);
    cudaGetLastError();
    if (state == cudaErrorNotReady) break;
    recycle_event(device_, pending_.front().event);
    pending_.pop_front();
  }
}

ls_status Group::look(std::string *reason) {
  forget_ended();
  ncclResult_t result = ncclSuccess;
  const ncclResult_t asked = nccl().CommGetAsyncError(comm_, &result);
  if (asked != ncclSuccess) result = asked;
  if (result != ncclSuccess && result != ncclInProgress) {
    *reason = text_of(result);
    return LS_DEVICE_FAILURE;
  }
  if (!pending_.empty() && Clock::now() - pending_.front().since > timeout()) {
    *reason = std::string(pending_.front().name) + " has not ended within " + std::to_string(timeout_ms_ / 1000) +
              " s: another rank takes no part in it";
    return LS_DEVICE_FAILURE;
  }
  return LS_OK;
}

void Group::watch() {
  make_current(device_);
  Lock lock(mutex_);
  for (;;) {
    wake_.wait_for(lock, kWatchEvery, [this] { return stop_ || told_; });
    if (told_) {
      // Kernels that wait for other ranks end now, on whatever they have.
      nccl().CommAbort(comm_);
      comm_ = nullptr;
      return;
    }
    if (stop_) return;
    if (status_ != LS_OK) continue;
    std::string reason;
    if (const ls_status status = look(&reason); status != LS_OK) {
      lock.unlock();
      give_up(status, reason);
      lock.lock();
    }
  }
}

template <class Call>
ls_status Group::issue(const ls_exec *exec, const char *name, const Call &call) {
  cudaStream_t stream = stream_of(exec);
  ncclResult_t result;
  std::string reason;
  {
    Lock lock(mutex_);
    if (status_ != LS_OK || comm_ == nullptr) return gone(exec->error, exec->error_size);
    // Before it settles nothing may be given to the stream behind it.
    result = settle(lock, comm_, call(comm_, stream), deadline());
    if (status_ != LS_OK) return gone(exec->error, exec->error_size);
    if (result == ncclSuccess) {
      cudaEvent_t event = nullptr;
      LS_TRY_CUDA(exec, record_event(device_, stream, &event), name);
      pending_.push_back({event, Clock::now(), name});
      return LS_OK;
    }
    reason = text_of(result);
  }
  give_up(LS_DEVICE_FAILURE, reason);
  return library_failure(exec, LS_DEVICE_FAILURE, "NCCL", reason.c_str());
}

Group &group_of(void *comm) { return *static_cast<Group *>(comm); }

// Transfers that are under way at once.
class Together {
 public:
  Together() : result_(nccl().GroupStart()) {}
  void send(const void *x, int64_t bytes, int32_t to, ncclComm_t comm, cudaStream_t stream) {
    if (bytes > 0) note(nccl().Send(x, static_cast<size_t>(bytes), ncclUint8, to, comm, stream));
  }
  void receive(void *y, int64_t bytes, int32_t from, ncclComm_t comm, cudaStream_t stream) {
    if (bytes > 0) note(nccl().Recv(y, static_cast<size_t>(bytes), ncclUint8, from, comm, stream));
  }
  ncclResult_t end() {
    const ncclResult_t ended = nccl().GroupEnd();
    return result_ == ncclSuccess ? ended : result_;
  }

 private:
  void note(ncclResult_t result) {
    if (result_ == ncclSuccess && result != ncclInProgress) result_ = result;
  }
  ncclResult_t result_;
};

ls_status open(const ls_comm_options *options, void **comm, char *address, char *error, size_t error_size) {
  auto group = std::make_unique<Group>(*options);
  const ls_status status = group->address(address, error, error_size);
  if (status == LS_OK) *comm = group.release();
  return status;
}

ls_status connect(void *comm, const char *addresses, char *error, size_t error_size) {
  return group_of(comm).connect(addresses, error, error_size);
}

ls_status all_to_all(const ls_exec *exec, void *comm, const void *x, void *y, int64_t bytes) {
  if (bytes == 0) return LS_OK;
  Group &group = group_of(comm);
  return group.issue(exec, "all_to_all", [&](ncclComm_t c, cudaStream_t stream) {
    Together together;
    for (int32_t i = 0; i < group.size(); ++i) {
      const int32_t to = (group.rank() + i) % group.size(), from = (group.rank() + group.size() - i) % group.size();
      together.send(at(x, to * bytes), bytes, to, c, stream);
      together.receive(at(y, from * bytes), bytes, from, c, stream);
    }
    return together.end();
  });
}

ls_status all_gather(const ls_exec *exec, void *comm, const void *x, void *y, int64_t bytes) {
  if (bytes == 0) return LS_OK;
  return group_of(comm).issue(exec, "all_gather", [&](ncclComm_t c, cudaStream_t stream) {
    return nccl().AllGather(x, y, static_cast<size_t>(bytes), ncclUint8, c, stream);
  });
}

ls_status reduce_scatter(const ls_exec *exec, void *comm, const void *x, void *y, int64_t count, int32_t dtype,
                         int32_t kind) {
  if (count == 0) return LS_OK;
  // NCCL would round a sum of bfloat16 at every rank that it passes.
  if (dtype == LS_BF16 && kind == LS_REDUCE_SUM) {
    LS_TRY(all_to_all(exec, comm, x, exec->workspace, count * element_bytes(dtype)));
    return sum_parts(exec, exec->workspace, group_of(comm).size(), y, count);
  }
  return group_of(comm).issue(exec, "reduce_scatter", [&](ncclComm_t c, cudaStream_t stream) {
    return nccl().ReduceScatter(x, y, static_cast<size_t>(count), type_of(dtype),
                                kind == LS_REDUCE_SUM ? ncclSum : ncclMax, c, stream);
  });
}

// Every rank adds its share of x, then all get the shares of all.
ls_status all_reduce_bf16(const ls_exec *exec, void *comm, void *x, int64_t count) {
  Group &group = group_of(comm);
  const int32_t own = group.rank(), ranks = group.size();
  const int64_t width = element_bytes(LS_BF16), most = ceil_div(count, ranks);
  const auto begin = [&](int32_t r) { return std::min(count, r * most); };
  const auto share = [&](int32_t r) { return begin(r + 1) - begin(r); };
  LS_TRY(group.issue(exec, "all_reduce", [&](ncclComm_t c, cudaStream_t stream) {
    Together together;
    for (int32_t r = 0; r < ranks; ++r) {
      together.send(at(x, begin(r) * width), share(r) * width, r, c, stream);
      together.receive(at(exec->workspace, r * share(own) * width), share(own) * width, r, c, stream);
    }
    return together.end();
  }));
  void *const mine = at(x, begin(own) * width);
  if (share(own) > 0) LS_TRY(sum_parts(exec, exec->workspace, ranks, mine, share(own)));
  return group.issue(exec, "all_reduce", [&](ncclComm_t c, cudaStream_t stream) {
    Together together;
    for (int32_t r = 0; r < ranks; ++r) {
      if (r == own) continue;
      together.send(mine, share(own) * width, r, c, stream);
      together.receive(at(x, begin(r) * width), share(r) * width, r, c, stream);
    }
    return together.end();
  });
}

ls_status all_reduce(const ls_exec *exec, void *comm, void *x, int64_t count, int32_t dtype, int32_t kind) {
  if (count == 0) return LS_OK;
  if (dtype == LS_BF16 && kind == LS_REDUCE_SUM) return all_reduce_bf16(exec, comm, x, count);
  return group_of(comm).issue(exec, "all_reduce", [&](ncclComm_t c, cudaStream_t stream) {
    return nccl().AllReduce(x, x, static_cast<size_t>(count), type_of(dtype), kind == LS_REDUCE_SUM ? ncclSum : ncclMax,
                            c, stream);
  });
}

ls_status broadcast(const ls_exec *exec, void *comm, void *x, int64_t bytes, int32_t root) {
  if (bytes == 0) return LS_OK;
  return group_of(comm).issue(exec, "broadcast", [&](ncclComm_t c, cudaStream_t stream) {
    return nccl().Broadcast(x, x, static_cast<size_t>(bytes), ncclUint8, root, c, stream);
  });
}

ls_status send_receive(const ls_exec *exec, void *comm, const void *x, int64_t x_bytes, int32_t to, void *y,
                       int64_t y_bytes, int32_t from) {
  if (x_bytes == 0 && y_bytes == 0) return LS_OK;
  return group_of(comm).issue(exec, "send_receive", [&](ncclComm_t c, cudaStream_t stream) {
    Together together;
    together.send(x, x_bytes, to, c, stream);
    together.receive(y, y_bytes, from, c, stream);
    return together.end();
  });
}

void set_timeout(void *comm, int64_t timeout_ms) { group_of(comm).set_timeout(timeout_ms); }
void abort(void *comm) { group_of(comm).abort(); }
void close(void *comm) { delete &group_of(comm); }

}  // namespace

}  // namespace longseq::cuda

extern "C" __attribute__((visibility("default"))) const ls_comm_table *ls_comm_open(int32_t api_version, char *error,
                                                                                    size_t error_size) {
  using namespace longseq::cuda;
  static std::string name = "NCCL";
  static ls_comm_table table = {
      LS_COMM_API_VERSION,
      sizeof(ls_comm_table),
      name.c_str(),
      open,
      connect,
      all_to_all,
      all_gather,
      reduce_scatter,
      all_reduce,
      broadcast,
      send_receive,
      set_timeout,
      abort,
      close,
  };
  // The caller compares versions: it names both.
  if (api_version != LS_COMM_API_VERSION) return &table;
  const Nccl *const library = open_nccl(error, error_size);
  if (!library) return nullptr;
  static std::once_flag once;
  std::call_once(once, [library] {
    name = "NCCL " + version_text(library->version);
    table.name = name.c_str();
  });
  return &table;
}
