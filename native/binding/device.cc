// Devices for JavaScript: opening, memory figures, counters, markers, cancelling, the trace.
#include <algorithm>

#include "binding/common.h"
#include "runtime/registry.h"

namespace longseq::cpu {
const char *isa_name();
}

namespace longseq::binding {

namespace {

const napi_type_tag kBackendTag = {LS_BACKEND_TAG_LOWER, LS_BACKEND_TAG_UPPER};

Napi::Number from(Napi::Env env, int64_t value) { return Napi::Number::New(env, static_cast<double>(value)); }

int32_t tier_of(const Napi::Value &value) { return static_cast<int32_t>(integer(value, "tier", 0, LS_TIER_COUNT - 1)); }

// openDevice(name, type, index, threads, {attention?, capability?, pageBytes?, separateMemory?}?): see DeviceOptions.
Napi::Value open_device(const Napi::CallbackInfo &info) {
  const std::string name = string(info[0], "name"), type = string(info[1], "type");
  const auto index = static_cast<int32_t>(integer(info[2], "index", 0, 1023));
  const auto threads = static_cast<int32_t>(integer(info[3], "threads", 1, 1024));
  DeviceOptions options;
  if (info[4].IsObject()) {
    auto given = info[4].As<Napi::Object>();
    if (const Napi::Value value = given.Get("attention"); !value.IsUndefined()) {
      const std::string engine = string(value, "attention");
      if (!parse_attention_engine(engine.c_str(), &options.attention))
        throw Error(LS_INVALID_ARGUMENT, format("attention is '%s', expected auto, cudnn or native", engine.c_str()));
    }
    if (const Napi::Value value = given.Get("capability"); !value.IsUndefined())
      options.capability = static_cast<int32_t>(integer(value, "capability", 0, 1000));
    if (const Napi::Value value = given.Get("pageBytes"); !value.IsUndefined())
      options.page_bytes = integer(value, "pageBytes", 0, int64_t{1} << 30);
    if (const Napi::Value value = given.Get("separateMemory"); !value.IsUndefined())
      options.separate_memory = value.ToBoolean().Value();
  }
  auto device = std::make_shared<Device>(find_backend(type), name, index, threads, options);
  AddonState::of(info.Env()).add_device(device);
  auto external = Napi::External<DeviceHandle>::New(info.Env(), new DeviceHandle{device},
                                                    [](Napi::Env, DeviceHandle *handle) { delete handle; });
  napi_type_tag_object(info.Env(), external, &kDeviceTag);
  return external;
}

Napi::Value device_info(const Napi::CallbackInfo &info) {
  Device &device = *device_of(info[0]).device;
  auto object = Napi::Object::New(info.Env());
  object.Set("name", device.info().name);
  object.Set("backend", device.backend()->name);
  object.Set("threads", device.threads());
  object.Set("memoryBytes", from(info.Env(), device.info().memory_bytes));
  object.Set("memoryFreeBytes", from(info.Env(), device.info().memory_free_bytes));
  object.Set("pageBytes", from(info.Env(), device.info().page_bytes));
  object.Set("pciAddress", device.info().pci_address);
  object.Set("peakBf16Flops", device.info().peak_bf16_flops);
  object.Set("capability", device.profile().cuda ? device.profile().capability : 0);
  object.Set("separateMemory", device.separate_memory());
  return object;
}

Napi::Object stats_object(Napi::Env env, const MemoryStats &stats) {
  auto object = Napi::Object::New(env);
  object.Set("live", from(env, stats.live));
  object.Set("reserved", from(env, stats.reserved));
  object.Set("peakLive", from(env, stats.peak_live));
  object.Set("peak", from(env, stats.peak_reserved));
  object.Set("limit", from(env, stats.limit));
  object.Set("allocations", from(env, stats.allocations));
  auto by_category = [&](const int64_t *values) {
    auto result = Napi::Object::New(env);
    for (int32_t i = 0; i < LS_CATEGORY_COUNT; ++i) result.Set(category_name(i), from(env, values[i]));
    return result;
  };
  object.Set("categoryLive", by_category(stats.category_live));
  object.Set("categoryPeak", by_category(stats.category_peak));
  object.Set("categoryAtPeak", by_category(stats.category_at_peak));
  return object;
}

// memoryStats(device, tier)
Napi::Value memory_stats(const Napi::CallbackInfo &info) {
  return stats_object(info.Env(), device_of(info[0]).device->allocator(tier_of(info[1])).stats());
}

Napi::Value set_limit(const Napi::CallbackInfo &info) {
  device_of(info[0]).device->allocator(tier_of(info[1])).set_limit(integer(info[2], "limit", 0, int64_t{1} << 53));
  return info.Env().Undefined();
}

Napi::Value trim(const Napi::CallbackInfo &info) {
  device_of(info[0]).device->allocator(tier_of(info[1])).trim();
  return info.Env().Undefined();
}

Napi::Value reset_peaks(const Napi::CallbackInfo &info) {
  device_of(info[0]).device->allocator(tier_of(info[1])).reset_peaks();
  return info.Env().Undefined();
}

Napi::Object counts_object(Napi::Env env, const OpCounts &counts) {
  auto object = Napi::Object::New(env);
  for (const auto &[name, count] : counts) {
    auto entry = Napi::Object::New(env);
    entry.Set("calls", from(env, count.calls));
    entry.Set("flops", count.flops);
    entry.Set("bytes", count.bytes);
    entry.Set("seconds", count.seconds);
    object.Set(name, entry);
  }
  return object;
}

// opCounts(device) -> {op: {calls, flops, bytes, seconds}}
Napi::Value op_counts(const Napi::CallbackInfo &info) {
  return counts_object(info.Env(), device_of(info[0]).device->counts());
}

Napi::Value total_flops(const Napi::CallbackInfo &info) {
  double total = 0;
  for (const auto &[name, count] : device_of(info[0]).device->counts()) total += count.flops;
  return Napi::Number::New(info.Env(), total);
}

Napi::Value reset_op_counts(const Napi::CallbackInfo &info) {
  Device &device = *device_of(info[0]).device;
  if (device.log()) device.log()->counts_reset();
  device.counts().clear();
  return info.Env().Undefined();
}

// arrangement(device) -> number: equal where the allocators of all tiers are arranged alike.
Napi::Value arrangement(const Napi::CallbackInfo &info) {
  Device &device = *device_of(info[0]).device;
  uint64_t hash = 0;
  for (int32_t tier = 0; tier < LS_TIER_COUNT; ++tier) hash = hash * 31 + device.allocator(tier).arrangement();
  return from(info.Env(), static_cast<int64_t>(hash >> 11));
}

// markOps(device) -> number: a mark of what is counted so far, for repeatOps and dropOps. Marks are a stack.
Napi::Value mark_ops(const Napi::CallbackInfo &info) {
  auto &marks = device_of(info[0]).device->marks();
  marks.push_back(device_of(info[0]).device->counts());
  if (ProgramLog *log = device_of(info[0]).device->log()) log->marked(marks.size() - 1);
  return from(info.Env(), static_cast<int64_t>(marks.size() - 1));
}

// The mark of a number that markOps() gave; those made after it are gone.
OpCounts &mark_of(Device &device, const Napi::Value &value) {
  auto &marks = device.marks();
  const auto mark = static_cast<size_t>(integer(value, "mark", 0, static_cast<int64_t>(marks.size()) - 1));
  marks.resize(mark + 1);
  return marks.back();
}

// repeatOps(device, mark, times): what was counted since the mark is counted `times` times more.
Napi::Value repeat_ops(const Napi::CallbackInfo &info) {
  Device &device = *device_of(info[0]).device;
  const auto &before = mark_of(device, info[1]);
  const OpCounts now = device.counts();
  const auto times = static_cast<double>(integer(info[2], "times", 0, int64_t{1} << 53));
  add_counts(device.counts(), now, before, times);
  if (ProgramLog *log = device.log()) log->repeated(device.marks().size() - 1, times);
  return info.Env().Undefined();
}

// dropOps(device, mark)
Napi::Value drop_ops(const Napi::CallbackInfo &info) {
  Device &device = *device_of(info[0]).device;
  mark_of(device, info[1]);
  device.marks().pop_back();
  return info.Env().Undefined();
}

// startLog(device, durations, overlap): notes what is asked of its allocators and queues, until stopLog. durations: see
// Durations; {name: [work, seconds, work, seconds, ...]}.
Napi::Value start_log(const Napi::CallbackInfo &info) {
  Durations durations;
  const auto given = info[1].As<Napi::Object>();
  for (const auto &[key, value] : given) {
    const auto name = static_cast<Napi::Value>(key).As<Napi::String>().Utf8Value();
    const auto numbers = static_cast<Napi::Value>(value).As<Napi::Array>();
    std::vector<Durations::Point> points;
    for (uint32_t i = 0; i + 1 < numbers.Length(); i += 2)
      points.push_back({number(numbers.Get(i), "work"), number(numbers.Get(i + 1), "seconds")});
    if (!points.empty()) durations.set(name, std::move(points));
  }
  durations.set_overlap(number(info[2], "overlap"));
  device_of(info[0]).device->start_log(std::move(durations));
  return info.Env().Undefined();
}

ProgramLog &log_of(const Napi::CallbackInfo &info) {
  ProgramLog *log = device_of(info[0]).device->log();
  if (!log) throw Error(LS_INVALID_ARGUMENT, "the device keeps no log; call startLog first");
  return *log;
}

// logLayer(device, layer): what follows is done for that layer; -1: for none.
Napi::Value log_layer(const Napi::CallbackInfo &info) {
  log_of(info).enter(static_cast<int32_t>(integer(info[1], "layer", -1, 1 << 30)));
  return info.Env().Undefined();
}

// logPosition(device) -> number: where the log stands, for logRepeat.
Napi::Value log_position(const Napi::CallbackInfo &info) {
  return from(info.Env(), static_cast<int64_t>(log_of(info).position()));
}

// logRepeat(device, position, times): ops since then, and their time, are counted `times` times more.
Napi::Value log_repeat(const Napi::CallbackInfo &info) {
  const int64_t position = integer(info[1], "position", 0, int64_t{1} << 53);
  log_of(info).repeat(static_cast<size_t>(position), static_cast<double>(integer(info[2], "times", 0, 1 << 30)));
  return info.Env().Undefined();
}

// logCounted(device): the counts of logAccounts end here.
Napi::Value log_counted(const Napi::CallbackInfo &info) {
  log_of(info).counts_end();
  return info.Env().Undefined();
}

Napi::Array times_array(Napi::Env env, const Clock::Times &times) {
  auto array = Napi::Array::New(env, LS_QUEUE_COUNT);
  for (uint32_t queue = 0; queue < LS_QUEUE_COUNT; ++queue) array.Set(queue, times[queue]);
  return array;
}

// logAccounts(device, at, period, copies) -> {memory: [stats by tier], ops, elapsed: {seconds, busy, exposed}}; null
// where the layers differ. See Insertion.
Napi::Value log_accounts(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  Insertion insertion;
  insertion.period = static_cast<int32_t>(integer(info[2], "period", 1, 1 << 20));
  insertion.at = static_cast<int32_t>(integer(info[1], "at", 0, 1 << 20));
  insertion.copies = static_cast<int32_t>(integer(info[3], "copies", 0, 1 << 20));
  const auto accounts = log_of(info).accounts(insertion);
  if (!accounts) return env.Null();
  auto memory = Napi::Array::New(env, LS_TIER_COUNT);
  for (uint32_t tier = 0; tier < LS_TIER_COUNT; ++tier) memory.Set(tier, stats_object(env, accounts->memory[tier]));
  auto object = Napi::Object::New(env);
  object.Set("memory", memory);
  object.Set("ops", counts_object(env, accounts->counts));
  auto elapsed = Napi::Object::New(env);
  elapsed.Set("seconds", accounts->elapsed.seconds);
  elapsed.Set("busy", times_array(env, accounts->elapsed.busy));
  elapsed.Set("exposed", times_array(env, accounts->elapsed.exposed));
  object.Set("elapsed", elapsed);
  return object;
}

Napi::Value stop_log(const Napi::CallbackInfo &info) {
  device_of(info[0]).device->stop_log();
  return info.Env().Undefined();
}

Napi::Value marker(const Napi::CallbackInfo &info) {
  device_of(info[0]).device->marker(integer(info[1], "marker", 0, int64_t{1} << 53));
  return info.Env().Undefined();
}

Napi::Value last_marker(const Napi::CallbackInfo &info) {
  return from(info.Env(), device_of(info[0]).device->last_marker());
}

Napi::Value synchronize(const Napi::CallbackInfo &info) {
  auto device = device_of(info[0]).device;
  for (int32_t other = 1; other < LS_QUEUE_COUNT; ++other) device->wait_for(LS_QUEUE_COMPUTE, other);
  return queue_promise(
      info.Env(), device, LS_QUEUE_COMPUTE, "synchronize",
      [synchronize = device->backend()->queue_synchronize](const ls_exec &exec) {
        return synchronize ? synchronize(exec.device, exec.stream, exec.error, exec.error_size) : LS_OK;
      },
      [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

// waitQueue(device, queue, other): what is enqueued on `queue` from now on starts after all that `other` has now.
Napi::Value wait_queue(const Napi::CallbackInfo &info) {
  const auto queue = static_cast<int32_t>(integer(info[1], "queue", 0, LS_QUEUE_COUNT - 1));
  const auto other = static_cast<int32_t>(integer(info[2], "other", 0, LS_QUEUE_COUNT - 1));
  device_of(info[0]).device->wait_for(queue, other);
  return info.Env().Undefined();
}

Napi::Value begin_update(const Napi::CallbackInfo &info) {
  device_of(info[0]).device->begin_update();
  return info.Env().Undefined();
}

Napi::Value end_update(const Napi::CallbackInfo &info) {
  device_of(info[0]).device->end_update();
  return info.Env().Undefined();
}

Napi::Value steps_finished(const Napi::CallbackInfo &info) {
  return from(info.Env(), static_cast<int64_t>(device_of(info[0]).device->steps_finished()));
}

// Blocks while more than `most` optimizer updates are queued: what keeps a bare loop from running away.
Napi::Value limit_steps(const Napi::CallbackInfo &info) {
  Device &device = *device_of(info[0]).device;
  const auto most = static_cast<uint64_t>(integer(info[1], "most", 0, 1 << 20));
  while (device.steps_enqueued() - device.steps_finished() > most && !device.cancelled() &&
         device.outcome().status == LS_OK &&
         device.queue(LS_QUEUE_COMPUTE).completed() < device.queue(LS_QUEUE_COMPUTE).enqueued())
    device.queue(LS_QUEUE_COMPUTE).wait(device.queue(LS_QUEUE_COMPUTE).completed() + 1);
  return info.Env().Undefined();
}

Napi::Value cancel(const Napi::CallbackInfo &info) {
  device_of(info[0]).device->cancel();
  return info.Env().Undefined();
}

// Resolves when the cancelled queues are empty, then lets work in again.
Napi::Value resume(const Napi::CallbackInfo &info) {
  auto device = device_of(info[0]).device;
  return thread_promise(
      info.Env(),
      [device] {
        device->drain();
        device->resume();
      },
      [device](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

// setPlace(device, step, layer): for messages
Napi::Value set_place(const Napi::CallbackInfo &info) {
  device_of(info[0]).device->set_place(string(info[1], "step"), string(info[2], "layer"));
  return info.Env().Undefined();
}

Napi::Value failure(const Napi::CallbackInfo &info) {
  const Outcome outcome = device_of(info[0]).device->outcome();
  if (outcome.status == LS_OK) return info.Env().Null();
  return Napi::String::New(info.Env(), outcome.message);
}

Napi::Value start_trace(const Napi::CallbackInfo &info) {
  Device &device = *device_of(info[0]).device;
  Recorder::Live live{};
  for (int32_t tier = 0; tier < LS_TIER_COUNT; ++tier)
    std::copy_n(device.allocator(tier).stats().category_live, LS_CATEGORY_COUNT, live[tier].begin());
  device.recorder().start(live);
  return info.Env().Undefined();
}

Napi::Value stop_trace(const Napi::CallbackInfo &info) {
  return Napi::String::New(info.Env(), device_of(info[0]).device->stop_trace());
}

Napi::Value open_backend_library(const Napi::CallbackInfo &info) {
  return Napi::String::New(info.Env(), open_backend(string(info[0], "path")));
}

Napi::Value backends(const Napi::CallbackInfo &info) {
  auto names = backend_names();
  auto array = Napi::Array::New(info.Env(), names.size());
  for (uint32_t i = 0; i < names.size(); ++i) array.Set(i, names[i]);
  return array;
}

// The instruction set that the CPU backend uses here; throws where there is none.
Napi::Value cpu_isa(const Napi::CallbackInfo &info) { return Napi::String::New(info.Env(), cpu::isa_name()); }

// For other addons: the table and a ready ls_exec.
Napi::Value backend_table(const Napi::CallbackInfo &info) {
  auto device = device_of(info[0]).device;
  struct Box {
    ls_native_backend native;
    std::shared_ptr<Device> device;
  };
  auto *box = new Box{{LS_BACKEND_API_VERSION, device->backend(), device->exec_template()}, device};
  auto external = Napi::External<ls_native_backend>::New(
      info.Env(), &box->native, [](Napi::Env, ls_native_backend *native) { delete reinterpret_cast<Box *>(native); });
  napi_type_tag_object(info.Env(), external, &kBackendTag);
  return external;
}

}  // namespace

void init_device(Napi::Object exports) {
  method<open_device>(exports, "openDevice");
  method<device_info>(exports, "deviceInfo");
  method<memory_stats>(exports, "memoryStats");
  method<set_limit>(exports, "setLimit");
  method<trim>(exports, "trim");
  method<reset_peaks>(exports, "resetPeaks");
  method<op_counts>(exports, "opCounts");
  method<total_flops>(exports, "totalFlops");
  method<reset_op_counts>(exports, "resetOpCounts");
  method<arrangement>(exports, "arrangement");
  method<mark_ops>(exports, "markOps");
  method<repeat_ops>(exports, "repeatOps");
  method<drop_ops>(exports, "dropOps");
  method<start_log>(exports, "startLog");
  method<log_layer>(exports, "logLayer");
  method<log_position>(exports, "logPosition");
  method<log_repeat>(exports, "logRepeat");
  method<log_counted>(exports, "logCounted");
  method<log_accounts>(exports, "logAccounts");
  method<stop_log>(exports, "stopLog");
  method<marker>(exports, "marker");
  method<last_marker>(exports, "lastMarker");
  method<synchronize>(exports, "synchronize");
  method<wait_queue>(exports, "waitQueue");
  method<begin_update>(exports, "beginUpdate");
  method<end_update>(exports, "endUpdate");
  method<steps_finished>(exports, "stepsFinished");
  method<limit_steps>(exports, "limitSteps");
  method<cancel>(exports, "cancel");
  method<resume>(exports, "resume");
  method<set_place>(exports, "setPlace");
  method<failure>(exports, "failure");
  method<start_trace>(exports, "startTrace");
  method<stop_trace>(exports, "stopTrace");
  method<open_backend_library>(exports, "openBackend");
  method<backends>(exports, "backends");
  method<cpu_isa>(exports, "cpuIsa");
  method<backend_table>(exports, "backendTable");
}

}  // namespace longseq::binding
