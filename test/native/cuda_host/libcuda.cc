// A CUDA driver whose device memory is host memory that nobody may touch unless it is mapped and access was given: what
// the CUDA backend's arena asks for, under the rules of cuda.h, for tests without a GPU.
//
// LONGSEQ_FAKE_MEMORY: bytes of the device, 1 GiB otherwise. A rule that is broken ends the process with one line.
// LONGSEQ_FAKE_STATS: a file that gets the number of calls when the process ends.
#include <cuda.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr size_t kPage = size_t{2} << 20;

struct Mapping {
  size_t bytes;
  CUmemGenericAllocationHandle handle;
  bool access;
};

struct Memory {
  std::mutex mutex;
  std::map<CUdeviceptr, size_t> reservations;
  std::map<CUdeviceptr, Mapping> mappings;
  std::map<CUmemGenericAllocationHandle, int> handles;  // references: the caller's and the mapping's
  CUmemGenericAllocationHandle next = 1;
  long creates = 0, maps = 0, unmaps = 0, accesses = 0;
};
Memory &memory() {
  static Memory &all = *new Memory;
  return all;
}

size_t total_bytes() {
  const char *text = std::getenv("LONGSEQ_FAKE_MEMORY");
  return text ? std::strtoull(text, nullptr, 10) : size_t{1} << 30;
}

[[noreturn]] void broken(const char *rule) {
  std::fprintf(stderr, "a rule of CUDA is broken: %s\n", rule);
  std::fflush(stderr);
  std::_Exit(99);
}

void drop(CUmemGenericAllocationHandle handle) {
  const auto found = memory().handles.find(handle);
  if (found == memory().handles.end()) broken("a handle is released that is not there");
  if (--found->second == 0) memory().handles.erase(found);
}

// The mapping that begins at `address`, or the end.
std::map<CUdeviceptr, Mapping>::iterator mapping_at(CUdeviceptr address) { return memory().mappings.find(address); }

struct Report {
  ~Report() {
    if (const char *path = std::getenv("LONGSEQ_FAKE_STATS"))
      if (FILE *file = std::fopen(path, "a")) {
        const Memory &m = memory();
        std::fprintf(file, "{\"creates\":%ld,\"maps\":%ld,\"unmaps\":%ld,\"accesses\":%ld}\n", m.creates, m.maps,
                     m.unmaps, m.accesses);
        std::fclose(file);
      }
  }
} report;

}  // namespace

#define FAKE extern "C" __attribute__((visibility("default")))

FAKE CUresult cuDriverGetVersion(int *version) {
  *version = 13000;
  return CUDA_SUCCESS;
}
FAKE CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
FAKE CUresult cuGetErrorName(CUresult result, const char **name) {
  *name = result == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_INVALID_VALUE";
  return CUDA_SUCCESS;
}
FAKE CUresult cuGetErrorString(CUresult result, const char **text) {
  *text = result == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "invalid argument";
  return CUDA_SUCCESS;
}
FAKE CUresult cuDeviceGetCount(int *count) {
  *count = 1;
  return CUDA_SUCCESS;
}
FAKE CUresult cuDeviceGet(CUdevice *device, int index) {
  *device = index;
  return CUDA_SUCCESS;
}
FAKE CUresult cuDeviceGetName(char *name, int length, CUdevice) {
  std::snprintf(name, static_cast<size_t>(length), "%s", "Stand-in");
  return CUDA_SUCCESS;
}
FAKE CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = 9;
      break;
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
      *value = 1;
      break;
    default:
      *value = 0;
  }
  return CUDA_SUCCESS;
}
FAKE CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice) {
  *bytes = total_bytes();
  return CUDA_SUCCESS;
}
// For the stand-in of NCCL: how the runtime's stand-in gives work to a stream.
static std::atomic<void *> launcher{nullptr};
FAKE void fake_set_launcher(void *launch) { launcher = launch; }
FAKE void *fake_launcher() { return launcher; }

// Of the runtime's stand-in.
FAKE void fake_memory(size_t *left, size_t *total) {
  std::lock_guard<std::mutex> lock(memory().mutex);
  *total = total_bytes();
  *left = *total - memory().handles.size() * kPage;
}

FAKE CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *,
                                            CUmemAllocationGranularity_flags) {
  *bytes = kPage;
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr,
                                  unsigned long long) {
  if (bytes % kPage != 0 || alignment % kPage != 0) return CUDA_ERROR_INVALID_VALUE;
  void *const mapped = mmap(nullptr, bytes + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *address = (reinterpret_cast<CUdeviceptr>(mapped) + kPage - 1) / kPage * kPage;
  std::lock_guard<std::mutex> lock(memory().mutex);
  memory().reservations[*address] = bytes;
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  std::lock_guard<std::mutex> lock(memory().mutex);
  const auto found = memory().reservations.find(address);
  if (found == memory().reservations.end() || found->second != bytes)
    broken("addresses are freed that are not reserved");
  const auto mapping = memory().mappings.lower_bound(address);
  if (mapping != memory().mappings.end() && mapping->first < address + bytes)
    broken("addresses are freed that have memory");
  memory().reservations.erase(found);
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *properties,
                          unsigned long long flags) {
  if (bytes != kPage || flags != 0 || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
      properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
    return CUDA_ERROR_INVALID_VALUE;
  std::lock_guard<std::mutex> lock(memory().mutex);
  if ((memory().handles.size() + 1) * kPage > total_bytes()) return CUDA_ERROR_OUT_OF_MEMORY;
  ++memory().creates;
  *handle = memory().next++;
  memory().handles[*handle] = 1;
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  std::lock_guard<std::mutex> lock(memory().mutex);
  drop(handle);
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                       unsigned long long flags) {
  std::lock_guard<std::mutex> lock(memory().mutex);
  if (bytes != kPage || offset != 0 || flags != 0 || !memory().handles.count(handle)) return CUDA_ERROR_INVALID_VALUE;
  if (mapping_at(address) != memory().mappings.end()) broken("memory is mapped where there is some");
  if (memory().handles[handle] != 1) broken("memory is mapped twice, or after its handle was released");
  ++memory().maps;
  ++memory().handles[handle];
  memory().mappings[address] = {bytes, handle, false};
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  std::lock_guard<std::mutex> lock(memory().mutex);
  ++memory().unmaps;
  for (CUdeviceptr at = address; at < address + bytes; at += kPage) {
    const auto found = mapping_at(at);
    if (found == memory().mappings.end()) broken("memory is unmapped where there is none");
    drop(found->second.handle);
    memory().mappings.erase(found);
  }
  mmap(reinterpret_cast<void *>(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
       0);
  return CUDA_SUCCESS;
}
FAKE CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t count) {
  std::lock_guard<std::mutex> lock(memory().mutex);
  if (count != 1 || access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE) return CUDA_ERROR_INVALID_VALUE;
  ++memory().accesses;
  for (CUdeviceptr at = address; at < address + bytes; at += kPage) {
    const auto found = mapping_at(at);
    if (found == memory().mappings.end()) return CUDA_ERROR_INVALID_VALUE;
    found->second.access = true;
  }
  mprotect(reinterpret_cast<void *>(address), bytes, PROT_READ | PROT_WRITE);
  return CUDA_SUCCESS;
}
