// What the CUDA backend keeps of a device and of a queue, and what its host files call of each other.
#ifndef LONGSEQ_CUDA_STATE_H
#define LONGSEQ_CUDA_STATE_H

#include <cuda_runtime.h>

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common.h"
#include "longseq/backend.h"
#include "runtime/attention_engine.h"

namespace longseq::cuda {

// An address range of the device or of pinned host memory. (memory.cc)
class DeviceArena;
class HostArena;

struct DeviceState {
  DeviceState();
  ~DeviceState();

  int index = 0;
  cudaDeviceProp properties{};
  std::unique_ptr<DeviceArena> arena;
  std::unique_ptr<HostArena> host;
  cudaStream_t compute = nullptr;  // of the compute queue once it is open: pages are given back behind it

  // What decommit gave back and the device may still use, in order. (memory.cc)
  struct Return;
  std::mutex returns_mutex;
  std::deque<Return> returns;
  void *refused = nullptr;  // what the last commit, which failed, was asked for; of the JavaScript thread

  std::mutex events_mutex;
  std::vector<cudaEvent_t> events;  // free ones

  AttentionEngine attention = AttentionEngine::automatic;

  std::mutex library_mutex;
  void *cublaslt = nullptr;  // cublasLtHandle_t
};

// One queue; ls_exec.stream points to it.
struct QueueState {
  DeviceState *device = nullptr;
  cudaStream_t stream = nullptr;
  // Two halves of pinned memory that uploads and downloads pass through, made at the first.
  char *staging = nullptr;
  cudaEvent_t staged[2] = {};
  // Pinned slots for numbers that an op brings along, taken in turn.
  static constexpr int kNotes = 32;
  char *notes = nullptr;
  cudaEvent_t noted[kNotes] = {};
  int note = 0;  // the next
};

inline DeviceState *device_of(const ls_exec *exec) { return static_cast<DeviceState *>(exec->device); }
inline QueueState *queue_of(const ls_exec *exec) { return static_cast<QueueState *>(exec->stream); }

// Makes the device current for this thread.
void make_current(const DeviceState *device);

// Why device `index` can be used no more, or "". A device is lost for the rest of the process: CUDA's context is
// broken.
std::string lost(int index);
// An event of the device's pool, recorded on the stream; *event is to be recycled in any case where it is not NULL.
cudaError_t record_event(DeviceState *device, cudaStream_t stream, cudaEvent_t *event);
void recycle_event(DeviceState *device, cudaEvent_t event);
// Marks the device lost where CUDA does not get over `error`, and writes "what: error" into text.
ls_status failure(int index, cudaError_t error, const char *what, char *text, size_t text_size);

// Copies a few numbers to the device in order with the stream, as upload does, but waits for nothing in a queue of
// usual length.
ls_status upload_note(const ls_exec *exec, void *device_address, const void *host, int64_t bytes);
// `status` with "what: why" for a call of a vendor's library that failed, or what CUDA says where the device is lost.
ls_status library_failure(const ls_exec *exec, ls_status status, const char *what, const char *why);

// ---- entries of the table, by file ----

// memory.cc
ls_status reserve(void *device, int32_t tier, int64_t bytes, void **address);
void unreserve(void *device, int32_t tier, void *address, int64_t bytes);
ls_status commit(void *device, int32_t tier, void *address, int64_t bytes);
void decommit(void *device, int32_t tier, void *address, int64_t bytes);
void commit_error(void *device, char *error, size_t error_size);
// Opens the arenas of a device; *page_bytes is the grain of both.
ls_status open_arenas(DeviceState *device, int64_t *page_bytes, char *error, size_t error_size);
// True for an address of the pinned arena.
bool is_host(const DeviceState *device, const void *address);
// Of a copy of `bytes` between a and b as many as one call may move: CUDA refuses ranges that lie in two registrations.
int64_t copy_piece(const DeviceState *device, const void *a, const void *b, int64_t bytes);
// Gives back what the device is done with; wait: when it is. True if there was anything.
bool give_back_finished(DeviceState *device, bool wait);

// queue.cc
ls_status queue_open(void *device, int32_t kind, void **stream);
void queue_close(void *device, void *stream);
ls_status queue_synchronize(void *device, void *stream, char *error, size_t error_size);
ls_status event_record(void *device, void *stream, void **event);
ls_status event_wait(void *device, void *stream, void *event);
void event_free(void *device, void *event);
ls_status event_synchronize(void *device, void *event, char *error, size_t error_size);
ls_status event_elapsed(void *device, void *from, void *to, double *milliseconds);
ls_status upload(const ls_exec *exec, void *device_address, const void *host, int64_t bytes);
ls_status download(const ls_exec *exec, void *host, const void *device_address, int64_t bytes);

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_STATE_H
