// The emulated backend's table: memory by mmap, streams that run at once, and the ops of native/cuda.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "cuda/common.h"
#include "cuda/entries.h"
#include "cuda/fault.h"
#include "cuda/launch.h"

namespace {

thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

namespace emul {
void set_last_error(cudaError_t error) {
  if (last_error == cudaSuccess) last_error = error;
}
}  // namespace emul

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char *cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    default:
      return "cudaErrorLaunchFailure";
  }
}
const char *cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

namespace longseq::cuda {

cudaStream_t stream_of(const ls_exec *exec) { return static_cast<cudaStream_t>(exec->stream); }

// Few, so that grids which stride do so here.
int multiprocessors(const ls_exec *) { return 3; }

// Little, so that rows which do not fit are met here.
int64_t most_shared(const ls_exec *) { return 20 << 10; }

ls_status launch_status(const ls_exec *exec, cudaError_t error, const char *what) {
  if (error == cudaSuccess) return fault_status(exec->device, exec->error, exec->error_size);
  return fail(exec, LS_DEVICE_FAILURE, "%s: %s", what, cudaGetErrorName(error));
}

ls_status copy_bytes(const ls_exec *exec, void *to, const void *from, int64_t bytes) {
  return launch_status(exec, cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_of(exec)),
                       "copy");
}

}  // namespace longseq::cuda

namespace {

struct Device {
  int thread_order;
};

// Threads of the device tell in which order the threads of a block are started: the tests of ops compare the bits of
// 1, 2, 3 and 8, so whatever depends on that order is found.
ls_status device_open(int32_t index, int32_t threads, void **device, ls_device_info *info, char *error,
                      size_t error_size) {
  if (index != 0) {
    std::snprintf(error, error_size, "there is one emulated device, cuda_emul:%d does not exist", index);
    return LS_INVALID_ARGUMENT;
  }
  *device = new Device{threads % 2 == 0 ? 1 : 0};
  std::snprintf(info->name, sizeof info->name, "cuda_emul (CUDA's execution model on a CPU, for tests)");
  info->memory_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  info->memory_free_bytes = info->memory_bytes;
  info->page_bytes = 64 << 10;
  info->peak_bf16_flops = 0;
  return LS_OK;
}
void device_close(void *device) {
  longseq::cuda::forget_faults(device);
  delete static_cast<Device *>(device);
}
ls_status reserve(void *, int32_t, int64_t bytes, void **address) {
  void *const p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return LS_OUT_OF_MEMORY;
  *address = p;
  return LS_OK;
}
void unreserve(void *, int32_t, void *address, int64_t bytes) { munmap(address, static_cast<size_t>(bytes)); }
ls_status commit(void *, int32_t, void *, int64_t) { return LS_OK; }
void decommit(void *, int32_t, void *address, int64_t bytes) {
  madvise(address, static_cast<size_t>(bytes), MADV_DONTNEED);
}
ls_status upload(const ls_exec *, void *to, const void *from, int64_t bytes) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return LS_OK;
}
ls_status download(const ls_exec *exec, void *to, const void *from, int64_t bytes) {
  LS_TRY(longseq::cuda::launch_status(exec, cudaSuccess, "download"));
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return LS_OK;
}

// Each op with the device's thread order.
template <typename Args, ls_status (*Entry)(const ls_exec *, const Args *)>
ls_status ordered(const ls_exec *exec, const Args *args) {
  emul::thread_order = static_cast<Device *>(exec->device)->thread_order;
  return Entry(exec, args);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const ls_backend *ls_backend_open(int32_t api_version, char *error,
                                                                                    size_t error_size) {
  if (api_version != LS_BACKEND_API_VERSION) {
    std::snprintf(error, error_size, "built for backend api version %d, asked for %d: build it again",
                  LS_BACKEND_API_VERSION, api_version);
    return nullptr;
  }
  static ls_backend table{};
  table.api_version = LS_BACKEND_API_VERSION;
  table.struct_bytes = sizeof(ls_backend);
  table.name = "cuda_emul";
  table.device_open = device_open;
  table.device_close = device_close;
  table.reserve = reserve;
  table.unreserve = unreserve;
  table.commit = commit;
  table.decommit = decommit;
  table.upload = upload;
  table.download = download;
#define EMUL_SET(op) \
  if (longseq::cuda::op) table.op = ordered<ls_##op##_args, longseq::cuda::op>;
  LS_CUDA_OPS(EMUL_SET)
#undef EMUL_SET
  return &table;
}
