// The two arenas: device memory by CUDA's virtual memory management, pinned host memory by registered chunks.
//
// Device. Addresses are reserved without memory behind them; pages of the device's granularity (2 MiB) are created,
// mapped and unmapped one by one, so any run of pages can be given back and nothing ever fragments. Pages that are
// given back are kept for the next commit up to a sixteenth of the device's memory, since creating one clears it.
// Handles are exportable and marked for RDMA where the device can, as a later registration with NCCL wants them.
//
// Host. A chunk of 64 MiB is touched by several threads and registered when its first page is committed, and given back
// with its last: cudaHostRegister costs about as much for 2 MiB as for 64, and fails for hundreds of GiB at once.
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <thread>

#include "driver.h"
#include "state.h"

namespace longseq::cuda {

namespace {

constexpr int64_t kHostChunk = int64_t{64} << 20;
constexpr int kTouchThreads = 8;

// Why the last commit of this thread failed.
thread_local std::string commit_reason;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

class DeviceArena {
 public:
  ls_status open(DeviceState *device, int64_t *page_bytes, char *error, size_t error_size) {
    device_ = device;
    const Driver &d = driver();
    CUdevice handle = 0;
    int managed = 0, exportable = 0, rdma = 0;
    CUresult result = d.p_cuDeviceGet(&handle, device->index);
    const auto attribute = [&](CUdevice_attribute name, int *value) {
      if (result == CUDA_SUCCESS) result = d.p_cuDeviceGetAttribute(value, name, handle);
    };
    attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, &managed);
    attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, &exportable);
    attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED, &rdma);
    if (result == CUDA_SUCCESS && !managed) {
      snprintf(error, error_size, "the device has no virtual memory management, which longseq needs");
      return LS_UNSUPPORTED;
    }
    properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties_.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties_.location.id = device->index;
    if (exportable) properties_.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties_.allocFlags.gpuDirectRDMACapable = rdma ? 1 : 0;
    size_t granularity = 0;
    if (result == CUDA_SUCCESS)
      result = d.p_cuMemGetAllocationGranularity(&granularity, &properties_, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (result != CUDA_SUCCESS) {
      snprintf(error, error_size, "its memory cannot be managed: %s", driver_error(result));
      return LS_DEVICE_FAILURE;
    }
    access_.location = properties_.location;
    access_.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    page_ = static_cast<int64_t>(granularity);
    most_free_ = static_cast<size_t>(static_cast<int64_t>(device->properties.totalGlobalMem) / 16 / page_);
    *page_bytes = page_;
    return LS_OK;
  }

  ~DeviceArena() {
    for (CUmemGenericAllocationHandle page : free_) driver().p_cuMemRelease(page);
  }

  ls_status reserve(int64_t bytes, void **address) {
    CUdeviceptr pointer = 0;
    bytes = round_up(bytes, page_);
    if (driver().p_cuMemAddressReserve(&pointer, static_cast<size_t>(bytes), static_cast<size_t>(page_), 0, 0) !=
        CUDA_SUCCESS)
      return LS_OUT_OF_MEMORY;
    std::lock_guard<std::mutex> lock(mutex_);
    regions_[pointer] = Region{bytes, std::vector<CUmemGenericAllocationHandle>(static_cast<size_t>(bytes / page_), 0)};
    *address = reinterpret_cast<void *>(pointer);
    return LS_OK;
  }

  void unreserve(void *address) {
    const auto pointer = reinterpret_cast<CUdeviceptr>(address);
    std::lock_guard<std::mutex> lock(mutex_);
    const auto region = regions_.find(pointer);
    if (region == regions_.end()) return;
    unmap(pointer, region->second, 0, region->second.pages.size());
    driver().p_cuMemAddressFree(pointer, static_cast<size_t>(region->second.bytes));
    regions_.erase(region);
  }

  ls_status commit(void *address, int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto pointer = reinterpret_cast<CUdeviceptr>(address);
    auto [base, region] = region_of(pointer);
    const size_t first = static_cast<size_t>(static_cast<int64_t>(pointer - base) / page_);
    const size_t count = static_cast<size_t>(round_up(bytes, page_) / page_);
    const Driver &d = driver();
    CUresult result = CUDA_SUCCESS;
    size_t done = 0;
    for (; done < count; ++done) {
      CUmemGenericAllocationHandle page = 0;
      if (!free_.empty()) {
        page = free_.back();
        free_.pop_back();
      } else {
        result = d.p_cuMemCreate(&page, static_cast<size_t>(page_), &properties_, 0);
        if (result != CUDA_SUCCESS) break;
      }
      const CUdeviceptr at = base + (first + done) * static_cast<CUdeviceptr>(page_);
      result = d.p_cuMemMap(at, static_cast<size_t>(page_), 0, page, 0);
      if (result != CUDA_SUCCESS) {
        d.p_cuMemRelease(page);
        break;
      }
      region->pages[first + done] = page;
    }
    if (result == CUDA_SUCCESS)
      result = d.p_cuMemSetAccess(base + first * static_cast<CUdeviceptr>(page_), count * static_cast<size_t>(page_),
                                  &access_, 1);
    if (result == CUDA_SUCCESS) return LS_OK;
    unmap(base, *region, first, first + done);
    commit_reason = "the driver gives no more: " + std::string(driver_error(result));
    return LS_OUT_OF_MEMORY;
  }

  void decommit(void *address, int64_t bytes) {
    // Kernels enqueued before may still be at work on these pages.
    if (device_->compute) cudaStreamSynchronize(device_->compute);
    std::lock_guard<std::mutex> lock(mutex_);
    const auto pointer = reinterpret_cast<CUdeviceptr>(address);
    auto [base, region] = region_of(pointer);
    const size_t first = static_cast<size_t>(static_cast<int64_t>(pointer - base) / page_);
    unmap(base, *region, first, first + static_cast<size_t>(round_up(bytes, page_) / page_));
  }

 private:
  struct Region {
    int64_t bytes;
    std::vector<CUmemGenericAllocationHandle> pages;  // 0 where nothing is mapped
  };

  std::pair<CUdeviceptr, Region *> region_of(CUdeviceptr pointer) {
    auto found = std::prev(regions_.upper_bound(pointer));
    return {found->first, &found->second};
  }

  void unmap(CUdeviceptr base, Region &region, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      if (!region.pages[i]) continue;
      driver().p_cuMemUnmap(base + i * static_cast<CUdeviceptr>(page_), static_cast<size_t>(page_));
      if (free_.size() < most_free_)
        free_.push_back(region.pages[i]);
      else
        driver().p_cuMemRelease(region.pages[i]);
      region.pages[i] = 0;
    }
  }

  DeviceState *device_ = nullptr;
  CUmemAllocationProp properties_{};
  CUmemAccessDesc access_{};
  int64_t page_ = 0;
  size_t most_free_ = 0;
  std::mutex mutex_;  // commits come from the JavaScript thread, decommits from the compute queue
  std::map<CUdeviceptr, Region> regions_;
  std::vector<CUmemGenericAllocationHandle> free_;
};

class HostArena {
 public:
  explicit HostArena(int64_t page_bytes) : page_(page_bytes) {}

  ls_status reserve(int64_t bytes, void **address) {
    const int64_t size = round_up(bytes, kHostChunk);
    // MAP_NORESERVE: nothing is promised, and nothing is used until it is touched. Aligned to chunks.
    void *const mapped = mmap(nullptr, static_cast<size_t>(size + kHostChunk), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return LS_OUT_OF_MEMORY;
    char *const start = static_cast<char *>(mapped);
    char *const base = start + (kHostChunk - reinterpret_cast<intptr_t>(start) % kHostChunk) % kHostChunk;
    std::lock_guard<std::mutex> lock(mutex_);
    regions_[base] = Region{start, size, std::vector<int64_t>(static_cast<size_t>(size / kHostChunk), 0)};
    *address = base;
    return LS_OK;
  }

  void unreserve(void *address) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto region = regions_.find(static_cast<char *>(address));
    if (region == regions_.end()) return;
    for (size_t i = 0; i < region->second.used.size(); ++i)
      if (region->second.used[i] > 0) cudaHostUnregister(region->first + static_cast<int64_t>(i) * kHostChunk);
    munmap(region->second.mapped, static_cast<size_t>(region->second.bytes + kHostChunk));
    regions_.erase(region);
  }

  ls_status commit(void *address, int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    char *const begin = static_cast<char *>(address), *const end = begin + bytes;
    auto [base, region] = region_of(begin);
    for (char *at = begin; at < end;) {
      const int64_t chunk = (at - base) / kHostChunk;
      char *const chunk_start = base + chunk * kHostChunk;
      char *const next = std::min(end, chunk_start + kHostChunk);
      if (region->used[static_cast<size_t>(chunk)] == 0 && !pin(chunk_start)) {
        give_back(base, *region, begin, at);
        return LS_OUT_OF_MEMORY;
      }
      region->used[static_cast<size_t>(chunk)] += next - at;
      at = next;
    }
    return LS_OK;
  }

  void decommit(void *address, int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    char *const begin = static_cast<char *>(address);
    auto [base, region] = region_of(begin);
    give_back(base, *region, begin, begin + bytes);
  }

  bool holds(const void *address) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto next = regions_.upper_bound(const_cast<char *>(static_cast<const char *>(address)));
    if (next == regions_.begin()) return false;
    const auto &[base, region] = *std::prev(next);
    return static_cast<const char *>(address) < base + region.bytes;
  }

 private:
  struct Region {
    char *mapped;
    int64_t bytes;
    std::vector<int64_t> used;  // committed bytes of each chunk; registered while there are any
  };

  std::pair<char *, Region *> region_of(char *address) {
    auto found = std::prev(regions_.upper_bound(address));
    return {found->first, &found->second};
  }

  // Backs a chunk with pages and registers it.
  static bool pin(char *chunk) {
    madvise(chunk, kHostChunk, MADV_HUGEPAGE);
    // The kernel clears pages at their first touch, some GB/s a thread.
    std::vector<std::thread> threads;
    const int64_t part = kHostChunk / kTouchThreads, page = sysconf(_SC_PAGE_SIZE);
    const auto touch = [=](int64_t index) {
      for (int64_t at = index * part; at < (index + 1) * part; at += page) static_cast<volatile char *>(chunk)[at] = 0;
    };
    for (int i = 1; i < kTouchThreads; ++i) threads.emplace_back(touch, i);
    touch(0);
    for (std::thread &thread : threads) thread.join();
    const cudaError_t error = cudaHostRegister(chunk, kHostChunk, cudaHostRegisterPortable);
    if (error == cudaSuccess) return true;
    cudaGetLastError();
    rlimit locked{};
    getrlimit(RLIMIT_MEMLOCK, &locked);
    commit_reason = "pinning 64 MiB of host memory was refused: " + std::string(cudaGetErrorName(error)) + " (" +
                    cudaGetErrorString(error) + ")" +
                    (locked.rlim_cur == RLIM_INFINITY ? std::string()
                                                      : ", the limit of locked memory (ulimit -l) is " +
                                                            std::to_string(locked.rlim_cur >> 10) + " KiB") +
                    "; lower memory.host_limit";
    madvise(chunk, kHostChunk, MADV_DONTNEED);
    return false;
  }

  static void give_back(char *base, Region &region, char *begin, char *end) {
    for (char *at = begin; at < end;) {
      const int64_t chunk = (at - base) / kHostChunk;
      char *const chunk_start = base + chunk * kHostChunk;
      char *const next = std::min(end, chunk_start + kHostChunk);
      int64_t &used = region.used[static_cast<size_t>(chunk)];
      used -= next - at;
      if (used == 0) {
        cudaHostUnregister(chunk_start);
        madvise(chunk_start, kHostChunk, MADV_DONTNEED);
      }
      at = next;
    }
  }

  const int64_t page_;
  mutable std::mutex mutex_;
  std::map<char *, Region> regions_;
};

DeviceState::DeviceState() = default;
DeviceState::~DeviceState() = default;

ls_status open_arenas(DeviceState *device, int64_t *page_bytes, char *error, size_t error_size) {
  device->arena = std::make_unique<DeviceArena>();
  const ls_status status = device->arena->open(device, page_bytes, error, error_size);
  if (status == LS_OK) device->host = std::make_unique<HostArena>(*page_bytes);
  return status;
}

bool is_host(const DeviceState *device, const void *address) { return device->host->holds(address); }

ls_status reserve(void *device, int32_t tier, int64_t bytes, void **address) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  if (tier == LS_TIER_DEVICE) return state->arena->reserve(bytes, address);
  return tier == LS_TIER_HOST ? state->host->reserve(bytes, address) : LS_UNSUPPORTED;
}

void unreserve(void *device, int32_t tier, void *address, int64_t) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  tier == LS_TIER_DEVICE ? state->arena->unreserve(address) : state->host->unreserve(address);
}

ls_status commit(void *device, int32_t tier, void *address, int64_t bytes) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  return tier == LS_TIER_DEVICE ? state->arena->commit(address, bytes) : state->host->commit(address, bytes);
}

void decommit(void *device, int32_t tier, void *address, int64_t bytes) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  if (tier == LS_TIER_DEVICE) {
    state->arena->decommit(address, bytes);
  } else {
    // Copies enqueued before may still be at work on these pages.
    if (state->compute) cudaStreamSynchronize(state->compute);
    state->host->decommit(address, bytes);
  }
}

void commit_error(void *, char *error, size_t error_size) { snprintf(error, error_size, "%s", commit_reason.c_str()); }

}  // namespace longseq::cuda
