// Opening, allocating, enqueuing and closing.
#include "runtime/device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "runtime/comm.h"
#include "runtime/disk.h"
#include "runtime/error.h"
#include "runtime/registry.h"

namespace longseq {

namespace {

constexpr int64_t kScalarBytes = 64;
constexpr int64_t kSlabBytes = 64 << 10;

}  // namespace

Device::Device(const ls_backend *backend, std::string name, int32_t index, int32_t threads,
               const DeviceOptions &options)
    : backend_(backend),
      name_(std::move(name)),
      meta_(std::strcmp(backend->name, "meta") == 0),
      threads_(threads),
      separate_memory_(backend->separate_memory != 0) {
  char message[512] = "";
  const ls_status status = backend_->device_open(index, threads, &state_, &info_, message, sizeof message);
  if (status != LS_OK) throw Error(status, format("device %s cannot be opened: %s", name_.c_str(), message));
  // "cuda" and what stands in for it in tests; a CUDA device's name ends in its compute capability.
  profile_.cuda = std::strncmp(backend_->name, "cuda", 4) == 0;
  if (const char *capability = std::strstr(info_.name, "(sm_"); profile_.cuda && capability)
    profile_.capability = std::atoi(capability + 4);
  if (meta_ && options.capability > 0) {
    profile_.cuda = true;
    profile_.capability = options.capability;
    separate_memory_ = options.separate_memory;
    if (options.page_bytes > 0) info_.page_bytes = options.page_bytes;
  }
  try {
    choose_attention(options.attention);
  } catch (...) {
    backend_->device_close(state_);
    throw;
  }
  pool_ = std::make_unique<ThreadPool>(meta_ ? 1 : threads);
  for (int32_t tier = 0; tier < LS_TIER_COUNT; ++tier) {
    if (tier == LS_TIER_DISK) {
      allocators_[tier] = std::make_unique<Allocator>(name_, tier, info_.page_bytes, disk_hooks());
      continue;
    }
    Allocator::Hooks hooks;
    hooks.reserve = [this, tier](int64_t bytes) -> void * {
      void *address = nullptr;
      if (backend_->reserve(state_, tier, bytes, &address) != LS_OK) return nullptr;
      reservations_.push_back({tier, address, bytes});
      return address;
    };
    hooks.commit = [this, tier](void *address, int64_t bytes) {
      if (backend_->commit(state_, tier, address, bytes) == LS_OK) return true;
      // Pages that were given back are free once the queues have passed that point.
      drain();
      return backend_->commit(state_, tier, address, bytes) == LS_OK;
    };
    hooks.reason = [this] {
      char reason[512] = "";
      if (backend_->commit_error) backend_->commit_error(state_, reason, sizeof reason);
      return std::string(reason);
    };
    hooks.decommit = [this, tier](void *address, int64_t bytes) {
      Task task;
      task.name = "decommit";
      task.always = [this, tier, address, bytes](const Outcome &) { backend_->decommit(state_, tier, address, bytes); };
      enqueue(LS_QUEUE_COMPUTE, std::move(task));
    };
    allocators_[tier] = std::make_unique<Allocator>(name_, tier, info_.page_bytes, std::move(hooks));
  }
  queue(LS_QUEUE_COMPUTE);
}

void Device::choose_attention(AttentionEngine engine) {
  const AttentionOption option = attention_option(backend_);
  // Measurements and scripts name one where the program does not.
  if (const char *name = std::getenv("LONGSEQ_ATTENTION"); engine == AttentionEngine::automatic && name)
    if (option || meta_) parse_attention_engine(name, &engine);
  profile_.attention = engine;
  if (meta_ || engine == AttentionEngine::automatic) return;
  if (!option) {
    // The kernels of a backend without a choice are its own.
    if (engine == AttentionEngine::native) return;
    throw Error(LS_UNSUPPORTED, format("device %s has no cuDNN: use attention: auto or native", name_.c_str()));
  }
  char message[512] = "";
  const ls_status status = option(state_, kAttentionEngineNames[static_cast<int>(engine)], message, sizeof message);
  if (status != LS_OK) throw Error(status, format("device %s: %s", name_.c_str(), message));
}

Device::~Device() {
  cancel();
  // Tasks wait for other queues: all must be empty before one goes.
  drain();
  for (auto &queue : queues_) queue.reset();
  for (void *stream : streams_)
    if (stream) backend_->queue_close(state_, stream);
  for (const Reservation &reservation : reservations_)
    backend_->unreserve(state_, reservation.tier, reservation.address, reservation.bytes);
  backend_->device_close(state_);
}

// Places in files: addresses that nothing can touch stand for them. Space is taken by writing.
Allocator::Hooks Device::disk_hooks() {
  Allocator::Hooks hooks;
  hooks.reserve = [next = uintptr_t{1} << 56](int64_t bytes) mutable {
    const uintptr_t address = next;
    next += static_cast<uintptr_t>(bytes) + (1 << 20);
    return reinterpret_cast<void *>(address);
  };
  hooks.commit = [](void *, int64_t) { return true; };
  hooks.decommit = [this](void *address, int64_t bytes) {
    disks_.erase(std::remove_if(disks_.begin(), disks_.end(), [](const auto &file) { return file.expired(); }),
                 disks_.end());
    if (disks_.empty()) return;
    Task task;
    task.name = "decommit";
    const int64_t offset = allocators_[LS_TIER_DISK]->offset_of(address);
    task.always = [files = disks_, offset, bytes](const Outcome &) {
      for (const auto &weak : files)
        if (const auto file = weak.lock()) file->forget(offset, bytes);
    };
    enqueue(LS_QUEUE_COMPUTE, std::move(task));
  };
  return hooks;
}

ls_exec Device::exec_template() const {
  ls_exec exec{};
  exec.device = state_;
  exec.queue = LS_QUEUE_COMPUTE;
  exec.threads = threads_;
  exec.parallel = &ThreadPool::parallel;
  exec.pool = nullptr;
  return exec;
}

Queue &Device::queue(int32_t kind) {
  auto &queue = queues_[kind];
  if (!queue) {
    ls_exec exec = exec_template();
    // The runtime itself serves the disk's.
    if (backend_->queue_open && kind != LS_QUEUE_DISK_OUT && kind != LS_QUEUE_DISK_IN) {
      if (backend_->queue_open(state_, kind, &streams_[kind]) != LS_OK)
        throw Error(LS_DEVICE_FAILURE,
                    format("device %s: the %s queue cannot be opened", name_.c_str(), queue_name(kind)));
      exec.stream = streams_[kind];
    }
    // The pool belongs to compute: copies run beside it in their own thread.
    if (kind == LS_QUEUE_COMPUTE)
      exec.pool = pool_.get();
    else
      exec.threads = 1;
    queue = std::make_unique<Queue>(static_cast<ls_queue_kind>(kind), backend_, exec, &recorder_, &gate_,
                                    [this](const Outcome &outcome) {
                                      for (auto &other : queues_)
                                        if (other) other->fail(outcome);
                                    });
  }
  return *queue;
}

void *Device::slab_take() {
  if (slab_free_.empty()) {
    void *address = nullptr;
    const int64_t bytes = std::max<int64_t>(kSlabBytes, info_.page_bytes);
    if (backend_->reserve(state_, LS_TIER_DEVICE, bytes, &address) != LS_OK ||
        backend_->commit(state_, LS_TIER_DEVICE, address, bytes) != LS_OK)
      throw Error(LS_OUT_OF_MEMORY, format("out of device memory on %s: no page for scalars", name_.c_str()));
    reservations_.push_back({LS_TIER_DEVICE, address, bytes});
    for (int64_t offset = bytes - kScalarBytes; offset >= 0; offset -= kScalarBytes)
      slab_free_.push_back(static_cast<char *>(address) + offset);
  }
  void *slot = slab_free_.back();
  slab_free_.pop_back();
  return slot;
}

Storage *Device::allocate(int64_t bytes, int32_t category, int32_t tier) {
  auto storage = std::make_unique<Storage>();
  *storage = Storage{this, nullptr, bytes, 0, tier, category, 1, 0, false, nullptr, {}, {}, -1};
  if (bytes > 0 && bytes <= kScalarBytes && tier == LS_TIER_DEVICE) {
    storage->scalar = true;
    storage->data = slab_take();
  } else if (bytes > 0) {
    storage->data = allocator(tier).allocate(bytes, category, &storage->rounded);
    if (recorder_.on()) recorder_.allocation(category, tier, storage->rounded);
    if (log_) storage->block = log_->allocated(tier, category, bytes);
  }
  return storage.release();
}

void Device::recategorize(Storage *storage, int32_t category) {
  const int32_t before = std::exchange(storage->category, category);
  if (before == category || storage->scalar || !storage->data) return;
  allocator(storage->tier).recategorize(storage->rounded, before, category);
  if (log_) log_->recategorized(storage->block, category);
  if (!recorder_.on()) return;
  recorder_.allocation(before, storage->tier, -storage->rounded);
  recorder_.allocation(category, storage->tier, storage->rounded);
}

void Device::release(Storage *storage) {
  if (--storage->references > 0) return;
  for (int32_t kind = 0; kind < LS_QUEUE_COUNT; ++kind) {
    if (kind == LS_QUEUE_COMPUTE || storage->last_use[kind] == 0) continue;
    // A fixed point of the program: whatever compute does next waits, whether or not the copy happens to be over.
    Queue *other = &queue(kind);
    const uint64_t sequence = storage->last_use[kind];
    if (log_) log_->ordered(LS_QUEUE_COMPUTE, kind, sequence);
    if (only_accounts() && other->ended(sequence)) continue;
    Task task;
    task.name = "wait";
    task.always = [other, sequence, compute = &queue(LS_QUEUE_COMPUTE)](const Outcome &) {
      other->join(sequence, *compute);
    };
    enqueue(LS_QUEUE_COMPUTE, std::move(task));
  }
  if (storage->scalar) {
    slab_free_.push_back(storage->data);
  } else if (storage->data) {
    if (recorder_.on()) recorder_.allocation(storage->category, storage->tier, -storage->rounded);
    allocator(storage->tier).release(storage->data, storage->category);
    if (log_) log_->released(storage->block);
  }
  delete storage;
}

void Device::start_log(Durations durations) {
  stop_log();
  durations_ = std::move(durations);
  log_ = std::make_unique<ProgramLog>(name_, info_.page_bytes, &counts_, logged_, durations_.overlap());
}

void Device::stop_log() {
  if (log_) logged_ = log_->end_block();
  log_.reset();
}

uint64_t Device::enqueue(int32_t kind, Task task) {
  task.update = update_;
  task.place = place_;
  return queue(kind).enqueue(std::move(task));
}

void Device::run_on_queue(int32_t kind, const char *name, std::function<ls_status(const ls_exec &)> work,
                          std::function<void(const Outcome &)> always) {
  Task task;
  task.name = name;
  task.run = std::move(work);
  task.always = std::move(always);
  enqueue(kind, std::move(task));
}

void Device::used(Storage *storage, int32_t kind, uint64_t sequence, bool writes) {
  if (kind == LS_QUEUE_COMPUTE) return;
  if (log_) log_->given(kind, sequence);
  storage->last_use[kind] = sequence;
  if (writes) storage->last_write[kind] = sequence;
}

void Device::order(int32_t kind, const Storage *storage, bool writes) {
  for (int32_t other = LS_QUEUE_COMPUTE + 1; other < LS_QUEUE_COUNT; ++other) {
    const uint64_t sequence = writes ? storage->last_use[other] : storage->last_write[other];
    if (other == kind || sequence == 0) continue;
    if (log_) log_->ordered(kind, other, sequence);
    Queue *const source = &queue(other);
    if (source->ended(sequence)) continue;
    Task task;
    task.name = "wait";
    task.always = [source, sequence, waiter = &queue(kind)](const Outcome &) { source->join(sequence, *waiter); };
    enqueue(kind, std::move(task));
  }
}

void Device::wait_for(int32_t kind, int32_t other) {
  if (kind == other || !queues_[other]) return;
  if (log_) log_->waited(kind, other);
  Queue *source = queues_[other].get();
  const uint64_t sequence = source->enqueued();
  if (only_accounts() && source->ended(sequence)) return;
  Task task;
  task.name = "wait";
  task.always = [source, sequence, waiter = &queue(kind)](const Outcome &) { source->join(sequence, *waiter); };
  enqueue(kind, std::move(task));
}

void Device::end_update() {
  if (update_depth_ == 0 || --update_depth_ > 0) return;
  Task task;
  task.name = "step_end";
  task.run = [this](const ls_exec &exec) {
    // A step is finished when the device says so.
    if (backend_->queue_synchronize) {
      const ls_status status = backend_->queue_synchronize(exec.device, exec.stream, exec.error, exec.error_size);
      if (status != LS_OK) return status;
    }
    steps_finished_.fetch_add(1, std::memory_order_acq_rel);
    return LS_OK;
  };
  ++steps_enqueued_;
  enqueue(LS_QUEUE_COMPUTE, std::move(task));
  update_ = 0;
}

void Device::set_place(const std::string &step, const std::string &layer) {
  if (step.empty() && layer.empty())
    place_ = nullptr;
  else
    place_ = std::make_shared<const std::string>(" in " + step + (step.empty() || layer.empty() ? "" : ", ") + layer);
}

void Device::marker(int64_t value) {
  Task task;
  task.name = "marker";
  task.run = [this, value](const ls_exec &) {
    last_marker_.store(value, std::memory_order_release);
    return LS_OK;
  };
  enqueue(LS_QUEUE_COMPUTE, std::move(task));
}

void Device::resume() {
  // Updates that were dropped are nobody's any more: a loop that goes on must not wait for them.
  steps_enqueued_.store(steps_finished_.load());
  for (auto &queue : queues_)
    if (queue) queue->recover();
  gate_.open();
}

void Device::give_up(const Outcome &outcome) {
  // Given up with everything else, it is no failure.
  if (outcome.status == LS_CANCELLED && gate_.closed()) return gate_.give_up();
  const Outcome failed = {outcome.status == LS_CANCELLED ? LS_DEVICE_FAILURE : outcome.status,
                          format("an exchange failed on rank %d: %s", process_rank(), outcome.message.c_str())};
  for (auto &queue : queues_)
    if (queue) queue->fail(failed);
}

std::string Device::stop_trace() {
  for (auto &queue : queues_)
    if (queue) queue->flush_records();
  return recorder_.stop();
}

void Device::drain() {
  for (auto &queue : queues_)
    if (queue) queue->wait(queue->enqueued());
}

Outcome Device::outcome() { return queues_[LS_QUEUE_COMPUTE] ? queues_[LS_QUEUE_COMPUTE]->outcome() : Outcome{}; }

}  // namespace longseq
