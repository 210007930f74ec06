// The CUDA backend's table, and the opening of a device.
#include <stdio.h>

#include "cublaslt.h"
#include "driver.h"
#include "entries.h"
#include "fault.h"
#include "state.h"

namespace longseq::cuda {

namespace {

// Dense bfloat16 rates of NVIDIA's data sheets, by a part of the device's name; more specific names first.
struct Rate {
  const char *name;
  double flops;
};
constexpr Rate kRates[] = {
    {"H100 PCIe", 756e12}, {"H100 NVL", 835e12}, {"H100", 989e12},  {"H200", 989e12},         {"GH200", 989e12},
    {"H800", 989e12},      {"H20", 148e12},      {"B200", 2250e12}, {"B100", 1750e12},        {"A100", 312e12},
    {"A800", 312e12},      {"A40", 150e12},      {"A30", 165e12},   {"A10G", 70e12},          {"A10", 125e12},
    {"L40S", 362e12},      {"L40", 181e12},      {"L4", 121e12},    {"RTX 6000 Ada", 364e12}, {"RTX 4090", 165e12},
    {"RTX 3090", 71e12},
};

double bf16_rate(const char *name) {
  for (const Rate &rate : kRates)
    if (strstr(name, rate.name)) return rate.flops;
  return 0;
}

ls_status device_open(int32_t index, int32_t, void **device, ls_device_info *info, char *error, size_t error_size) {
  const Driver &d = driver();
  if (index < 0 || index >= d.devices) {
    if (d.devices == 1)
      snprintf(error, error_size, "there is one CUDA device, cuda:0; cuda:%d does not exist", index);
    else
      snprintf(error, error_size, "there are %d CUDA devices, cuda:0 to cuda:%d; cuda:%d does not exist", d.devices,
               d.devices - 1, index);
    return LS_INVALID_ARGUMENT;
  }
  if (const std::string reason = lost(index); !reason.empty()) {
    snprintf(error, error_size, "it was lost to this process by an earlier failure (%s): start the process again",
             reason.c_str());
    return LS_DEVICE_FAILURE;
  }
  CUdevice handle = 0;
  int major = 0, minor = 0;
  char name[128] = "";
  CUresult result = d.p_cuDeviceGet(&handle, index);
  if (result == CUDA_SUCCESS) result = d.p_cuDeviceGetName(name, sizeof name, handle);
  if (result == CUDA_SUCCESS)
    result = d.p_cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle);
  if (result == CUDA_SUCCESS)
    result = d.p_cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle);
  if (result != CUDA_SUCCESS) {
    snprintf(error, error_size, "the driver does not tell its properties: %s", driver_error(result));
    return LS_DEVICE_FAILURE;
  }
  if (major < 8) {
    snprintf(error, error_size, "%s has compute capability %d.%d; longseq needs 8.0 (A100) or newer", name, major,
             minor);
    return LS_UNSUPPORTED;
  }
  auto state = std::make_unique<DeviceState>();
  state->index = index;
  // Threads that wait for the device sleep: the host's processors belong to AdamW and the data loader.
  cudaError_t cuda = cudaInitDevice(index, cudaDeviceScheduleBlockingSync, cudaInitDeviceFlagsAreValid);
  if (cuda == cudaSuccess) cuda = cudaSetDevice(index);
  if (cuda == cudaSuccess) cuda = cudaGetDeviceProperties(&state->properties, index);
  size_t free_bytes = 0, total_bytes = 0;
  if (cuda == cudaSuccess) cuda = cudaMemGetInfo(&free_bytes, &total_bytes);
  if (cuda != cudaSuccess) {
    // Nothing ran yet: whatever is wrong is not of this process's making, and may be over at the next attempt.
    cudaGetLastError();
    const bool taken = cuda == cudaErrorMemoryAllocation || cuda == cudaErrorDevicesUnavailable;
    snprintf(error, error_size, "%s: %s (%s)%s", name, cudaGetErrorName(cuda), cudaGetErrorString(cuda),
             taken ? "; nvidia-smi shows the processes that hold it or its memory" : "");
    return LS_DEVICE_FAILURE;
  }
  const ls_status arenas = open_arenas(state.get(), &info->page_bytes, error, error_size);
  if (arenas != LS_OK) return arenas;
  snprintf(info->name, sizeof info->name, "%.100s (sm_%d%d)", name, major, minor);
  info->memory_bytes = static_cast<int64_t>(total_bytes);
  info->memory_free_bytes = static_cast<int64_t>(free_bytes);
  info->peak_bf16_flops = bf16_rate(name);
  const cudaDeviceProp &properties = state->properties;
  snprintf(info->pci_address, sizeof info->pci_address, "%04x:%02x:%02x.0", properties.pciDomainID, properties.pciBusID,
           properties.pciDeviceID);
  *device = state.release();
  return LS_OK;
}

void device_close(void *device) {
  std::unique_ptr<DeviceState> state(static_cast<DeviceState *>(device));
  make_current(state.get());
  forget_faults(device);
  for (cudaEvent_t event : state->events) cudaEventDestroy(event);
  if (state->cublaslt) cublaslt().Destroy(static_cast<cublasLtHandle_t>(state->cublaslt));
}

}  // namespace

}  // namespace longseq::cuda

extern "C" __attribute__((visibility("default"))) const ls_backend *ls_backend_open(int32_t api_version, char *error,
                                                                                    size_t error_size) {
  using namespace longseq::cuda;
  // The caller compares versions: it names both. A driver is the first thing to be missed, a library the second.
  static ls_backend table{};
  table.api_version = LS_BACKEND_API_VERSION;
  if (api_version != LS_BACKEND_API_VERSION) return &table;
  if (!open_driver(error, error_size) || !open_cublaslt(error, error_size)) return nullptr;
  table.struct_bytes = sizeof(ls_backend);
  table.name = "cuda";
  table.separate_memory = 1;
  table.device_open = device_open;
  table.device_close = device_close;
  table.reserve = reserve;
  table.unreserve = unreserve;
  table.commit = commit;
  table.decommit = decommit;
  table.commit_error = commit_error;
  table.upload = upload;
  table.download = download;
  table.queue_open = queue_open;
  table.queue_close = queue_close;
  table.queue_synchronize = queue_synchronize;
  table.event_record = event_record;
  table.event_wait = event_wait;
  table.event_free = event_free;
  table.event_synchronize = event_synchronize;
  table.event_elapsed = event_elapsed;
  fill_table(&table);
  return &table;
}
