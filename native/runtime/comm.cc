// The registry of communicators.
#include "runtime/comm.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "runtime/device.h"
#include "runtime/registry.h"

namespace longseq {

namespace {

std::mutex mutex;
int64_t last_number = 0;
std::atomic<int32_t> own_rank{0};

std::map<int64_t, std::shared_ptr<Communicator>> &communicators() {
  static std::map<int64_t, std::shared_ptr<Communicator>> all;
  return all;
}

const ls_comm_table *find_table(const std::string &transport) {
  for (const ls_comm_table *table : {channels::shared_memory_table(), channels::tcp_table(), meta::comm_table()})
    if (transport == table->name) return table;
  throw Error(LS_UNSUPPORTED,
              format("there is no transport '%s'; this build has shm, tcp and meta", transport.c_str()));
}

}  // namespace

Communicator::Communicator(std::string name, const std::string &transport, const ls_comm_options &options)
    : options_(options),
      name_(std::move(name)),
      rank_(options.rank),
      size_(options.size),
      address_(LS_COMM_ADDRESS_BYTES, '\0') {
  host_.table = find_table(transport);
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size)
    throw Error(LS_INVALID_ARGUMENT, format("a communicator of %d ranks has no rank %d", options.size, options.rank));
  char message[512] = "";
  const ls_status status = host_.table->open(&options, &host_.handle, address_.data(), message, sizeof message);
  if (status != LS_OK) throw Error(status, format("the %s transport cannot be opened: %s", host_.table->name, message));
}

Communicator::~Communicator() {
  if (device_end_.handle) device_end_.table->close(device_end_.handle);
  host_.table->close(host_.handle);
  // The last task may let go of it: a device joins the threads of its queues, of which this can be one.
  if (device_ && device_.use_count() == 1) std::thread([last = std::move(device_)] {}).detach();
}

void Communicator::connect(const std::string &addresses) { connect_end(host_, addresses); }

std::string Communicator::open_device(std::shared_ptr<Device> device, const Communicator *whole, int32_t color) {
  if (device_end_.handle) device_end_.table->close(device_end_.handle);
  device_end_ = End{};
  device_ = std::move(device);
  ls_comm_options options = options_;
  options.host = nullptr;
  options.device = device_->exec_template().device;
  options.color = color;
  if (whole) {
    if (whole->device_ != device_)
      throw Error(LS_INVALID_ARGUMENT,
                  format("the larger communicator was not opened for %s", device_->name().c_str()));
    options.parent = whole->device_end_.handle;
  }
  // Whoever closes the end waits for its thread, so the device is there when this is called.
  options.context = device_.get();
  options.on_failure = [](void *context, ls_status status, const char *message) {
    static_cast<Device *>(context)->give_up({status, message});
  };
  device_end_.table = comm_table_of(device_->backend());
  char message[512] = "";
  std::string address(LS_COMM_ADDRESS_BYTES, '\0');
  const ls_status status =
      device_end_.table->open(&options, &device_end_.handle, address.data(), message, sizeof message);
  if (status != LS_OK)
    throw Error(status, format("the %s transport cannot be opened: %s", device_end_.table->name, message));
  return address;
}

void Communicator::connect_device(const std::string &addresses) {
  if (!device_end_.handle)
    throw Error(LS_INVALID_ARGUMENT, "the communicator was opened for no device: open_device comes first");
  connect_end(device_end_, addresses);
}

void Communicator::set_timeout(int64_t timeout_ms) {
  host_.table->set_timeout(host_.handle, timeout_ms);
  if (device_end_.handle) device_end_.table->set_timeout(device_end_.handle, timeout_ms);
}

void Communicator::abort() {
  host_.table->abort(host_.handle);
  if (device_end_.handle) device_end_.table->abort(device_end_.handle);
}

const Communicator::End &Communicator::end(const ls_exec *exec) const {
  if (!exec->stream) return host_;
  if (!device_end_.handle)
    throw Error(LS_UNSUPPORTED, "this communicator reaches host memory alone: open it for the device");
  return device_end_;
}

bool Communicator::sums_itself(const Profile &profile, int32_t dtype, int64_t kind) const {
  const bool reaches = device_end_.handle || std::strcmp(host_.table->name, "meta") == 0;
  return profile.cuda && reaches && !(dtype == LS_BF16 && kind == LS_REDUCE_SUM);
}

void Communicator::connect_end(const End &end, const std::string &addresses) {
  if (addresses.size() != static_cast<size_t>(size_) * LS_COMM_ADDRESS_BYTES)
    throw Error(LS_INVALID_ARGUMENT, format("%zu bytes of addresses for %d ranks", addresses.size(), size_));
  char message[512] = "";
  const ls_status status = end.table->connect(end.handle, addresses.data(), message, sizeof message);
  if (status != LS_OK)
    throw Error(status, format("rank %d of %d cannot be connected by the %s transport: %s", rank_, size_,
                               end.table->name, message));
}

std::string Communicator::note(const char *op, const ls_tensor &x, int64_t detail) {
  ++announced_;
  const std::string text = format("%s of %s%s, %lld", op, dtype_name(x.dtype), shape_text(x.sizes, x.ndim).c_str(),
                                  static_cast<long long>(detail));
  note_collective(format("%s, number %llu of the %s group of %d ranks%s", text.c_str(),
                         static_cast<unsigned long long>(announced_), name_.c_str(), size_, running_place().c_str()));
  return text;
}

ls_status Communicator::announce(const ls_exec *exec, const char *op, const ls_tensor &x, int64_t detail) {
  const std::string text = note(op, x, detail);
  if (!compares_.load(std::memory_order_relaxed)) return LS_OK;
  constexpr size_t kBytes = 128;
  char own[kBytes] = "";
  std::snprintf(own, sizeof own, "%s", text.c_str());
  std::string all(kBytes * static_cast<size_t>(size_), '\0');
  // Texts are host memory, wherever the tensors are.
  const ls_status status = host_.table->all_gather(exec, host_.handle, own, all.data(), kBytes);
  if (status != LS_OK) return status;
  for (int32_t other = 0; other < size_; ++other) {
    const char *theirs = all.data() + kBytes * static_cast<size_t>(other);
    if (std::memcmp(theirs, own, kBytes) == 0) continue;
    std::snprintf(exec->error, exec->error_size,
                  "the ranks do not do the same: number %llu of the %s group is %s on rank %d of it, %s on rank %d",
                  static_cast<unsigned long long>(announced_), name_.c_str(), own, rank_, theirs, other);
    return LS_DEVICE_FAILURE;
  }
  return LS_OK;
}

int64_t add_communicator(std::shared_ptr<Communicator> communicator) {
  std::lock_guard<std::mutex> lock(mutex);
  communicators()[++last_number] = std::move(communicator);
  return last_number;
}

std::shared_ptr<Communicator> find_communicator(int64_t number, const char *op) {
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = communicators().find(number);
  if (found == communicators().end())
    throw Error(LS_INVALID_ARGUMENT,
                format("%s: there is no communicator %lld, or it was closed", op, static_cast<long long>(number)));
  return found->second;
}

void remove_communicator(int64_t number) {
  std::shared_ptr<Communicator> last;  // closed behind the lock
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = communicators().find(number);
  if (found == communicators().end()) return;
  last = std::move(found->second);
  communicators().erase(found);
}

namespace {
constexpr size_t kNoted = 32;
std::mutex noted_mutex;
std::deque<std::string> &noted() {
  static auto &all = *new std::deque<std::string>;
  return all;
}
}  // namespace

void note_collective(std::string text) {
  std::lock_guard<std::mutex> lock(noted_mutex);
  noted().push_back(std::move(text));
  if (noted().size() > kNoted) noted().pop_front();
}

std::vector<std::string> last_collectives() {
  std::lock_guard<std::mutex> lock(noted_mutex);
  return {noted().begin(), noted().end()};
}

int32_t process_rank() { return own_rank.load(std::memory_order_relaxed); }
void set_process_rank(int32_t rank) { own_rank.store(rank, std::memory_order_relaxed); }

std::shared_ptr<Communicator> check_parts(const Check &check, const char *op, int64_t comm, const char *name,
                                          const ls_tensor &parts) {
  auto communicator = find_communicator(comm, op);
  check.contiguous(name, parts);
  if (parts.ndim < 1 || parts.sizes[0] != communicator->size())
    check.fail(format("%s has shape %s, expected a part for each of the %d ranks in its first dim", name,
                      shape_text(parts.sizes, parts.ndim).c_str(), communicator->size()));
  return communicator;
}

void check_part_of(const Check &check, const char *name, const ls_tensor &part, const char *whole_name,
                   const ls_tensor &whole) {
  check.contiguous(name, part);
  check.dtype(name, part, whole.dtype);
  bool same = part.ndim == whole.ndim - 1;
  for (int32_t i = 0; same && i < part.ndim; ++i) same = part.sizes[i] == whole.sizes[i + 1];
  if (!same)
    check.fail(format("%s has shape %s, expected that of a part of %s, %s", name,
                      shape_text(part.sizes, part.ndim).c_str(), whole_name,
                      shape_text(whole.sizes, whole.ndim).c_str()));
}

void check_reduction(const Check &check, const ls_tensor &x, int64_t kind) {
  if (kind < 0 || kind >= LS_REDUCE_COUNT) check.fail(format("kind is %lld", static_cast<long long>(kind)));
  if (!is_float(x) && x.dtype != LS_F64 && x.dtype != LS_I64)
    check.fail(format("x is %s, expected float32, bfloat16, float64 or int64", dtype_name(x.dtype)));
}

}  // namespace longseq
