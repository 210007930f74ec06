// The registry of communicators.
#include "runtime/comm.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

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

Communicator::Communicator(const std::string &transport, const ls_comm_options &options)
    : table_(find_table(transport)), rank_(options.rank), size_(options.size), address_(LS_COMM_ADDRESS_BYTES, '\0') {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size)
    throw Error(LS_INVALID_ARGUMENT, format("a communicator of %d ranks has no rank %d", options.size, options.rank));
  char message[512] = "";
  const ls_status status = table_->open(&options, &handle_, address_.data(), message, sizeof message);
  if (status != LS_OK) throw Error(status, format("the %s transport cannot be opened: %s", table_->name, message));
}

Communicator::~Communicator() { table_->close(handle_); }

void Communicator::connect(const std::string &addresses) {
  if (addresses.size() != static_cast<size_t>(size_) * LS_COMM_ADDRESS_BYTES)
    throw Error(LS_INVALID_ARGUMENT, format("%zu bytes of addresses for %d ranks", addresses.size(), size_));
  char message[512] = "";
  const ls_status status = table_->connect(handle_, addresses.data(), message, sizeof message);
  if (status != LS_OK)
    throw Error(status, format("rank %d of %d cannot be connected by the %s transport: %s", rank_, size_, table_->name,
                               message));
}

ls_status Communicator::announce(const ls_exec *exec, const char *op, const ls_tensor &x, int64_t detail) {
  ++announced_;
  if (!compares_.load(std::memory_order_relaxed)) return LS_OK;
  constexpr size_t kBytes = 128;
  char own[kBytes] = "";
  std::snprintf(own, sizeof own, "%s of %s%s, %lld", op, dtype_name(x.dtype), shape_text(x.sizes, x.ndim).c_str(),
                static_cast<long long>(detail));
  std::string all(kBytes * static_cast<size_t>(size_), '\0');
  const ls_status status = table_->all_gather(exec, handle_, own, all.data(), kBytes);
  if (status != LS_OK) return status;
  for (int32_t other = 0; other < size_; ++other) {
    const char *theirs = all.data() + kBytes * static_cast<size_t>(other);
    if (std::memcmp(theirs, own, kBytes) == 0) continue;
    std::snprintf(exec->error, exec->error_size,
                  "the ranks do not do the same: number %llu of this group is %s on rank %d of it, %s on rank %d",
                  static_cast<unsigned long long>(announced_), own, rank_, theirs, other);
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
