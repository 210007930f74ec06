// Streams, events, blocking copies, and what becomes of CUDA's errors.
#include <algorithm>
#include <map>

#include "entries.h"
#include "fault.h"
#include "state.h"

namespace longseq::cuda {

namespace {

// Half of a queue's staging memory: large enough for the full rate of PCIe, small enough to pin without a wait.
constexpr int64_t kStagingBytes = int64_t{8} << 20;
// A slot for numbers of an op: lengths and offsets of some hundred documents. As many slots as tasks run ahead.
constexpr int64_t kNoteBytes = 64 << 10;

std::mutex lost_mutex;
std::map<int, std::string> &lost_devices() {
  static auto &devices = *new std::map<int, std::string>;  // threads may look while the process ends
  return devices;
}

// Errors after which the call may be repeated and other work goes on; all others break the context.
bool is_survivable(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue:
    case cudaErrorMemoryAllocation:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorHostMemoryNotRegistered:
    case cudaErrorNotSupported:
    case cudaErrorNotReady:
      return true;
    default:
      return false;
  }
}

QueueState *queue_state(void *stream) { return static_cast<QueueState *>(stream); }

ls_status staging_of(const ls_exec *exec) {
  QueueState *queue = queue_of(exec);
  if (queue->staging) return LS_OK;
  cudaError_t error = cudaSuccess;
  for (cudaEvent_t &event : queue->staged)
    if (error == cudaSuccess && !event)
      error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync);
  void *memory = nullptr;
  if (error == cudaSuccess) error = cudaHostAlloc(&memory, 2 * kStagingBytes, cudaHostAllocDefault);
  queue->staging = static_cast<char *>(memory);
  return launch_status(exec, error, "16 MiB of pinned memory for copies");
}

}  // namespace

void make_current(const DeviceState *device) {
  // A thread serves one device nearly always: asking CUDA each time would cost more than the comparison.
  thread_local int current = -1;
  if (current == device->index) return;
  if (cudaSetDevice(device->index) == cudaSuccess) current = device->index;
}

std::string lost(int index) {
  std::lock_guard<std::mutex> lock(lost_mutex);
  const auto found = lost_devices().find(index);
  return found == lost_devices().end() ? "" : found->second;
}

ls_status failure(int index, cudaError_t error, const char *what, char *text, size_t text_size) {
  if (error == cudaSuccess) return LS_OK;
  cudaGetLastError();  // what is not sticky must not meet the next check
  char line[384];
  snprintf(line, sizeof line, "%s: %s (%s)", what, cudaGetErrorName(error), cudaGetErrorString(error));
  const bool survivable = is_survivable(error);
  if (text && text_size > 0)
    snprintf(text, text_size, "%s%s", line,
             error == cudaErrorMemoryAllocation
                 ? "; what CUDA and its libraries load when it is first used found no memory: lower memory.device_limit"
             : survivable ? ""
                          : "; cuda reports a failure when it next looks, so an op before this one may be the cause "
                            "(CUDA_LAUNCH_BLOCKING=1 tells); the device is lost to this process: start it again");
  if (!survivable) {
    std::lock_guard<std::mutex> lock(lost_mutex);
    lost_devices().emplace(index, line);
  }
  return error == cudaErrorMemoryAllocation ? LS_OUT_OF_MEMORY : LS_DEVICE_FAILURE;
}

cudaStream_t stream_of(const ls_exec *exec) {
  make_current(device_of(exec));
  return queue_of(exec)->stream;
}

int multiprocessors(const ls_exec *exec) { return device_of(exec)->properties.multiProcessorCount; }

int64_t most_shared(const ls_exec *exec) {
  return static_cast<int64_t>(device_of(exec)->properties.sharedMemPerBlockOptin);
}

ls_status launch_status(const ls_exec *exec, cudaError_t error, const char *what) {
  if (error == cudaSuccess) return fault_status(exec->device, exec->error, exec->error_size);
  return failure(device_of(exec)->index, error, what, exec->error, exec->error_size);
}

ls_status queue_open(void *device, int32_t kind, void **stream) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  // Copies and communication go first: they are short of work and others wait for them.
  int least = 0, greatest = 0;
  cudaDeviceGetStreamPriorityRange(&least, &greatest);
  auto queue = std::make_unique<QueueState>();
  queue->device = state;
  const int priority = kind == LS_QUEUE_COMPUTE ? least : greatest;
  if (failure(state->index, cudaStreamCreateWithPriority(&queue->stream, cudaStreamNonBlocking, priority),
              "cudaStreamCreateWithPriority", nullptr, 0) != LS_OK)
    return LS_DEVICE_FAILURE;
  if (kind == LS_QUEUE_COMPUTE) state->compute = queue->stream;
  *stream = queue.release();
  return LS_OK;
}

void queue_close(void *device, void *stream) {
  auto *state = static_cast<DeviceState *>(device);
  std::unique_ptr<QueueState> queue(queue_state(stream));
  make_current(state);
  cudaStreamSynchronize(queue->stream);
  if (state->compute == queue->stream) state->compute = nullptr;
  for (cudaEvent_t event : queue->staged)
    if (event) cudaEventDestroy(event);
  for (cudaEvent_t event : queue->noted)
    if (event) cudaEventDestroy(event);
  if (queue->staging) cudaFreeHost(queue->staging);
  if (queue->notes) cudaFreeHost(queue->notes);
  cudaStreamDestroy(queue->stream);
}

ls_status queue_synchronize(void *device, void *stream, char *error, size_t error_size) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  const ls_status status = failure(state->index, cudaStreamSynchronize(queue_state(stream)->stream),
                                   "the work of this queue", error, error_size);
  // A program that goes on to something else does not keep what it gave back.
  give_back_finished(state, false);
  return status == LS_OK ? fault_status(device, error, error_size) : status;
}

cudaError_t record_event(DeviceState *device, cudaStream_t stream, cudaEvent_t *event) {
  *event = nullptr;
  {
    std::lock_guard<std::mutex> lock(device->events_mutex);
    if (!device->events.empty()) {
      *event = device->events.back();
      device->events.pop_back();
    }
  }
  // Blocking: a thread that waits for hours of work must not spin.
  if (!*event)
    if (const cudaError_t error = cudaEventCreateWithFlags(event, cudaEventBlockingSync); error != cudaSuccess)
      return error;
  return cudaEventRecord(*event, stream);
}

void recycle_event(DeviceState *device, cudaEvent_t event) {
  std::lock_guard<std::mutex> lock(device->events_mutex);
  device->events.push_back(event);
}

ls_status event_record(void *device, void *stream, void **event) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  cudaEvent_t found = nullptr;
  const cudaError_t error = record_event(state, queue_state(stream)->stream, &found);
  *event = found;
  return failure(state->index, error, "cudaEventRecord", nullptr, 0);
}

ls_status event_wait(void *device, void *stream, void *event) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  return failure(
      state->index,
      cudaStreamWaitEvent(queue_state(stream)->stream, static_cast<cudaEvent_t>(event), cudaEventWaitDefault),
      "cudaStreamWaitEvent", nullptr, 0);
}

void event_free(void *device, void *event) {
  if (event) recycle_event(static_cast<DeviceState *>(device), static_cast<cudaEvent_t>(event));
}

ls_status event_synchronize(void *device, void *event, char *error, size_t error_size) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  const ls_status status = failure(state->index, cudaEventSynchronize(static_cast<cudaEvent_t>(event)),
                                   "the work of this queue", error, error_size);
  return status == LS_OK ? fault_status(device, error, error_size) : status;
}

ls_status event_elapsed(void *device, void *from, void *to, double *milliseconds) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  float time = 0;
  const cudaError_t error = cudaEventElapsedTime(&time, static_cast<cudaEvent_t>(from), static_cast<cudaEvent_t>(to));
  *milliseconds = static_cast<double>(time);
  return failure(state->index, error, "cudaEventElapsedTime", nullptr, 0);
}

ls_status copy_bytes(const ls_exec *exec, void *to, const void *from, int64_t bytes) {
  cudaStream_t stream = stream_of(exec);
  for (int64_t at = 0; at < bytes;) {
    char *const target = static_cast<char *>(to) + at;
    const char *const source = static_cast<const char *>(from) + at;
    const int64_t piece = copy_piece(device_of(exec), target, source, bytes - at);
    LS_TRY_CUDA(exec, cudaMemcpyAsync(target, source, static_cast<size_t>(piece), cudaMemcpyDefault, stream), "copy");
    at += piece;
  }
  return LS_OK;
}

ls_status upload(const ls_exec *exec, void *device_address, const void *host, int64_t bytes) {
  cudaStream_t stream = stream_of(exec);
  if (is_host(device_of(exec), device_address)) {
    LS_TRY_CUDA(exec, cudaStreamSynchronize(stream), "the work of this queue");
    memcpy(device_address, host, static_cast<size_t>(bytes));
    return LS_OK;
  }
  const ls_status ready = staging_of(exec);
  if (ready != LS_OK) return ready;
  QueueState *queue = queue_of(exec);
  for (int64_t at = 0, piece = 0; at < bytes; at += kStagingBytes, ++piece) {
    const int half = static_cast<int>(piece % 2);
    const size_t size = static_cast<size_t>(std::min(kStagingBytes, bytes - at));
    char *const staging = queue->staging + half * kStagingBytes;
    // An event that was never recorded is over.
    LS_TRY_CUDA(exec, cudaEventSynchronize(queue->staged[half]), "upload");
    memcpy(staging, static_cast<const char *>(host) + at, size);
    LS_TRY_CUDA(
        exec, cudaMemcpyAsync(static_cast<char *>(device_address) + at, staging, size, cudaMemcpyHostToDevice, stream),
        "upload");
    LS_TRY_CUDA(exec, cudaEventRecord(queue->staged[half], stream), "upload");
  }
  // All of `host` has been read: the copy itself may still be on its way, in order with what comes next.
  return LS_OK;
}

ls_status upload_note(const ls_exec *exec, void *device_address, const void *host, int64_t bytes) {
  if (bytes > kNoteBytes) return upload(exec, device_address, host, bytes);
  cudaStream_t stream = stream_of(exec);
  QueueState *queue = queue_of(exec);
  if (!queue->notes) {
    void *memory = nullptr;
    LS_TRY_CUDA(exec, cudaHostAlloc(&memory, QueueState::kNotes * kNoteBytes, cudaHostAllocDefault),
                "2 MiB of pinned memory for an op's numbers");
    queue->notes = static_cast<char *>(memory);
  }
  cudaEvent_t &noted = queue->noted[queue->note];
  char *const slot = queue->notes + queue->note * kNoteBytes;
  queue->note = (queue->note + 1) % QueueState::kNotes;
  if (noted)
    LS_TRY_CUDA(exec, cudaEventSynchronize(noted), "copy of an op's numbers");
  else
    LS_TRY_CUDA(exec, cudaEventCreateWithFlags(&noted, cudaEventDisableTiming | cudaEventBlockingSync),
                "copy of an op's numbers");
  memcpy(slot, host, static_cast<size_t>(bytes));
  LS_TRY_CUDA(exec, cudaMemcpyAsync(device_address, slot, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream),
              "copy of an op's numbers");
  LS_TRY_CUDA(exec, cudaEventRecord(noted, stream), "copy of an op's numbers");
  return LS_OK;
}

ls_status library_failure(const ls_exec *exec, ls_status status, const char *what, const char *why) {
  // The library's CUDA runtime is not ours: only what broke the context is seen by both.
  const cudaError_t error = cudaStreamQuery(stream_of(exec));
  cudaGetLastError();
  if (error != cudaSuccess && error != cudaErrorNotReady) return launch_status(exec, error, what);
  return fail(exec, status, "%s: %s", what, why);
}

ls_status download(const ls_exec *exec, void *host, const void *device_address, int64_t bytes) {
  cudaStream_t stream = stream_of(exec);
  if (is_host(device_of(exec), device_address)) {
    LS_TRY_CUDA(exec, cudaStreamSynchronize(stream), "the work of this queue");
    memcpy(host, device_address, static_cast<size_t>(bytes));
    return LS_OK;
  }
  const ls_status ready = staging_of(exec);
  if (ready != LS_OK) return ready;
  QueueState *queue = queue_of(exec);
  // Piece i comes over while piece i - 1 is taken out of the other half.
  const int64_t pieces = (bytes + kStagingBytes - 1) / kStagingBytes;
  for (int64_t piece = 0; piece <= pieces; ++piece) {
    if (piece < pieces) {
      const int64_t at = piece * kStagingBytes;
      LS_TRY_CUDA(
          exec,
          cudaMemcpyAsync(queue->staging + piece % 2 * kStagingBytes, static_cast<const char *>(device_address) + at,
                          static_cast<size_t>(std::min(kStagingBytes, bytes - at)), cudaMemcpyDeviceToHost, stream),
          "download");
      LS_TRY_CUDA(exec, cudaEventRecord(queue->staged[piece % 2], stream), "download");
    }
    if (piece > 0) {
      const int64_t at = (piece - 1) * kStagingBytes;
      LS_TRY_CUDA(exec, cudaEventSynchronize(queue->staged[(piece - 1) % 2]), "download");
      memcpy(static_cast<char *>(host) + at, queue->staging + (piece - 1) % 2 * kStagingBytes,
             static_cast<size_t>(std::min(kStagingBytes, bytes - at)));
    }
  }
  return LS_OK;
}

}  // namespace longseq::cuda
