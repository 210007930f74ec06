// The registry of ops and the one way they are enqueued.
#include "runtime/op.h"

#include <cmath>
#include <cstring>
#include <memory>

#include "runtime/comm.h"
#include "runtime/registry.h"

namespace longseq {

namespace {

std::vector<const OpDesc *> &registry() {
  static std::vector<const OpDesc *> ops;
  return ops;
}

}  // namespace

RegisterOp::RegisterOp(OpDesc desc) { registry().push_back(new OpDesc(std::move(desc))); }

const std::vector<const OpDesc *> &all_ops() { return registry(); }

const OpDesc *find_op(const std::string &name) {
  for (const OpDesc *op : registry())
    if (name == op->name) return op;
  return nullptr;
}

namespace {

// Kernels of a device do not work on host memory: copies alone cross from one tier to another.
void check_tiers(const OpDesc &desc, Storage *const *storages) {
  if (std::strcmp(desc.name, "copy") == 0) return;
  const Storage *first = nullptr;
  const char *first_name = nullptr;
  size_t index = 0;
  for (const Field &field : desc.fields) {
    if (!field.is_tensor()) continue;
    const Storage *storage = storages[index++];
    if (!storage || storage->bytes == 0) continue;
    if (!first) {
      first = storage;
      first_name = field.name;
    } else if (storage->tier != first->tier) {
      throw Error(LS_INVALID_ARGUMENT,
                  format("%s: %s lies in %s memory, %s in %s memory; copy one of them first (a parameter that lives on "
                         "the host is copied by the model that it belongs to)",
                         desc.name, first_name, tier_name(first->tier), field.name, tier_name(storage->tier)));
    }
  }
}

// Whether all of an op's tensors lie on the host.
bool all_on_host(const OpDesc &desc, Storage *const *storages) {
  bool any = false;
  size_t index = 0;
  for (const Field &field : desc.fields) {
    if (!field.is_tensor()) continue;
    const Storage *storage = storages[index++];
    if (!storage || storage->bytes == 0) continue;
    if (storage->tier != LS_TIER_HOST) return false;
    any = true;
  }
  return any;
}

// The tensors that an op was given, for messages.
std::string shapes_of(const OpDesc &desc, const char *args) {
  std::string shapes;
  for (const Field &field : desc.fields) {
    if (!field.is_tensor()) continue;
    const auto &tensor = *reinterpret_cast<const ls_tensor *>(args + field.offset);
    if (!tensor.present) continue;
    if (!shapes.empty()) shapes += ", ";
    shapes += std::string(field.name) + " " + text(tensor);
  }
  return shapes;
}

// What an op has beside its arguments.
struct Surroundings {
  const Storage *workspace;  // may be null
  bool on_cpu;
  std::vector<std::shared_ptr<const std::vector<int64_t>>> keep;
  Cost cost;
};

Task task_of(const Device &device, const OpDesc &desc, const std::shared_ptr<char[]> &args, Surroundings with) {
  Task task;
  task.name = desc.name;
  task.bytes = static_cast<int64_t>(with.cost.bytes);
  task.flops = with.cost.flops;
  task.recorded = true;
  task.shapes = [op = &desc, args] { return shapes_of(*op, args.get()); };
  void *workspace = with.workspace ? with.workspace->data : nullptr;
  const int64_t workspace_bytes = with.workspace ? with.workspace->bytes : 0;
  // meta only accounts for what the CPU would do: nothing is behind its addresses.
  const bool runs_on_cpu = with.on_cpu && !device.meta();
  task.run = [backend = device.backend(), op = &desc, runs_on_cpu, args, workspace, workspace_bytes,
              keep = std::move(with.keep)](const ls_exec &base) {
    ls_exec exec = base;
    exec.workspace = workspace;
    exec.workspace_bytes = workspace_bytes;
    if (!runs_on_cpu) return op->call(backend, &exec, args.get());
    // What the stream was given before may still write what is read here.
    if (backend->queue_synchronize) {
      const ls_status status = backend->queue_synchronize(exec.device, exec.stream, exec.error, exec.error_size);
      if (status != LS_OK) return status;
    }
    exec.device = exec.stream = nullptr;
    return op->call(cpu::backend(), &exec, args.get());
  };
  return task;
}

// Bytes that leave this rank in an exchange of a group, and what its ranks are joined by.
struct Exchange {
  double bytes;
  std::string link;
};

Exchange exchange_of(const OpDesc &desc, const char *args, double bytes) {
  for (const Field &field : desc.fields) {
    if (field.kind != FieldKind::integer || std::strcmp(field.name, "comm") != 0) continue;
    const auto comm = find_communicator(*reinterpret_cast<const int64_t *>(args + field.offset), desc.name);
    const auto ranks = static_cast<double>(comm->size());
    const std::string name = desc.name;
    // The cost counts what is read and what is written, but of a broadcast one of them.
    double share = name == "broadcast" ? 1 : 0.5;
    if (name == "all_to_all") share = 0.5 * (ranks - 1) / ranks;
    if (name == "all_gather" || name == "reduce_scatter") share = (ranks - 1) / (ranks + 1);
    if (name == "all_reduce") share = (ranks - 1) / ranks;
    return {share * bytes, comm->name()};
  }
  // Sums beside an exchange.
  return {bytes, "stream"};
}

// Tells the log how long an op takes that was given to a queue, and counts it.
void log_time(Device &device, const OpDesc &desc, const char *args, const Cost &cost, int32_t queue, bool on_cpu) {
  ProgramLog *const log = device.log();
  if (!log || device.durations().empty()) return;
  if (queue == LS_QUEUE_COMM) {
    const Exchange exchange = exchange_of(desc, args, cost.bytes);
    log->worked(queue, device.durations().seconds({desc.name + (":" + exchange.link), exchange.link}, exchange.bytes));
  } else if (queue != LS_QUEUE_COMPUTE) {
    log->worked(queue, device.durations().seconds({queue_name(queue)}, cost.bytes));
  } else {
    const char *const kind = cost.flops > 0 ? "products" : "stream";
    const double work = cost.flops > 0 ? cost.flops : cost.bytes;
    std::vector<std::string> names = {desc.name, kind};
    if (on_cpu) names = {"host", kind};
    // Products of small matrices read much for what they compute: they have rates of their own.
    if (cost.flops > 0 && cost.bytes > 0 && !on_cpu) {
      const std::string intensity = format("/%d", static_cast<int>(std::lround(std::log2(cost.flops / cost.bytes))));
      names = {desc.name + intensity, desc.name, kind + intensity, kind};
    }
    const double seconds = device.durations().seconds(names, work);
    log->worked(queue, seconds);
    device.counts()[desc.name].seconds += seconds;
  }
}

}  // namespace

void enqueue_op(Device &device, const OpDesc &desc, const void *args, Storage *const *storages, int32_t queue) {
  desc.check(args);
  // An output that is broadcast would hold whatever thread came last.
  for (const Field &field : desc.fields) {
    if (!field.is_tensor() || !field.writes()) continue;
    const auto &tensor = *reinterpret_cast<const ls_tensor *>(static_cast<const char *>(args) + field.offset);
    if (!tensor.present || elements(tensor) == 0) continue;
    for (int32_t i = 0; i < tensor.ndim; ++i)
      if (tensor.sizes[i] > 1 && tensor.strides[i] == 0)
        throw Error(LS_INVALID_ARGUMENT, format("%s: %s is written, but broadcast in dim %d: make it contiguous first",
                                                desc.name, field.name, i));
  }
  check_tiers(desc, storages);
  size_t tensors = 0;
  for (const Field &field : desc.fields)
    if (field.is_tensor())
      if (const Storage *storage = storages[tensors++]; storage && storage->tier == LS_TIER_DISK)
        throw Error(LS_INVALID_ARGUMENT,
                    format("%s: %s lies on the disk, where no op reaches it", desc.name, field.name));
  auto copy = std::shared_ptr<char[]>(new char[desc.args_bytes]);
  std::memcpy(copy.get(), args, desc.args_bytes);
  if (desc.prepare) desc.prepare(copy.get(), storages);

  const Cost cost = desc.cost(copy.get());
  // What lies on the host is worked on by the CPU, where the device has a memory of its own.
  const bool on_cpu = device.separate_memory() && all_on_host(desc, storages);
  Storage *workspace = nullptr;
  if (desc.workspace) {
    const Profile profile = on_cpu ? Profile{} : device.profile();
    if (const int64_t bytes = desc.workspace(copy.get(), profile); bytes > 0)
      workspace = device.allocate(bytes, LS_WORKSPACE, on_cpu ? LS_TIER_HOST : LS_TIER_DEVICE);
  }
  // Host values outlive the task even when their tensor is disposed first.
  std::vector<std::shared_ptr<const std::vector<int64_t>>> keep;
  size_t index = 0;
  for (const Field &field : desc.fields) {
    if (!field.is_tensor()) continue;
    Storage *storage = storages[index++];
    if (!storage) continue;
    if (storage->host_values) keep.push_back(storage->host_values);
    if (field.writes()) {
      ++storage->version;
      storage->host_values.reset();  // no longer what the device holds
    }
  }
  if (queue != LS_QUEUE_COMPUTE) device.wait_for(queue, LS_QUEUE_COMPUTE);
  index = 0;
  for (const Field &field : desc.fields)
    if (field.is_tensor())
      if (const Storage *storage = storages[index++]) device.order(queue, storage, field.writes());
  const uint64_t sequence =
      device.only_accounts()
          ? device.queue(queue).pass()
          : device.enqueue(queue, task_of(device, desc, copy, {workspace, on_cpu, std::move(keep), cost}));
  log_time(device, desc, copy.get(), cost, queue, on_cpu);
  index = 0;
  for (const Field &field : desc.fields)
    if (field.is_tensor())
      if (Storage *storage = storages[index++]) device.used(storage, queue, sequence, field.writes());
  if (workspace) {
    device.used(workspace, queue, sequence, true);
    device.release(workspace);
  }
  OpCount &count = device.counts()[desc.name];
  ++count.calls;
  count.flops += cost.flops;
  count.bytes += cost.bytes;
}

}  // namespace longseq
