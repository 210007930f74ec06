// The two arenas: device memory by CUDA's virtual memory management, pinned host memory by registered chunks.
//
// Device. Addresses are reserved without memory behind them; pages of the device's granularity (2 MiB) are created,
// mapped and unmapped one by one, so any run of pages can be given back and nothing ever fragments. Pages that are
// given back are kept for the next commit up to a sixteenth of the device's memory, since creating one clears it.
// Handles are exportable and marked for RDMA where the device can, as a later registration with NCCL wants them.
//
// Host. A chunk of 64 MiB is touched by several threads and registered when its first page is committed, and given back
// with its last: cudaHostRegister costs about as much for 2 MiB as for 64, and fails for hundreds of GiB at once.
//
// Unmapping and unregistering know no streams. A decommit therefore leaves an event on the compute stream and what it
// gives back waits in a list until the event has happened: nothing ever waits for the device but a commit that finds
// no memory. Meanwhile, and while a decommit is still in a queue, the runtime may commit the same pages again; each
// page and chunk counts how often it is committed and goes when none is left.
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <system_error>
#include <thread>

#include "driver.h"
#include "state.h"

namespace longseq::cuda {

namespace {

constexpr int64_t kHostChunk = int64_t{64} << 20;
constexpr int kTouchThreads = 8;
// Left to CUDA for kernels that it loads when they are first launched, while pages are on their way back.
constexpr size_t kHeadroom = size_t{256} << 20;

// Why the last commit of this thread failed.
thread_local std::string commit_reason;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

class DeviceArena {
 public:
  ls_status open(const DeviceState *device, int64_t *page_bytes, char *error, size_t error_size) {
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
    regions_[pointer] = Region{bytes, std::vector<Page>(static_cast<size_t>(bytes / page_))};
    *address = reinterpret_cast<void *>(pointer);
    return LS_OK;
  }

  // The device is idle.
  void unreserve(void *address) {
    const auto pointer = reinterpret_cast<CUdeviceptr>(address);
    std::lock_guard<std::mutex> lock(mutex_);
    const auto region = regions_.find(pointer);
    if (region == regions_.end()) return;
    for (Page &page : region->second.pages) page.uses = 0;
    unmap_unused(pointer, region->second, 0, region->second.pages.size());
    driver().p_cuMemAddressFree(pointer, static_cast<size_t>(region->second.bytes));
    regions_.erase(region);
  }

  // to_the_last: also of what is better left to CUDA.
  ls_status commit(void *address, int64_t bytes, bool to_the_last) {
    std::lock_guard<std::mutex> lock(mutex_);
    const Range range = range_of(address, bytes);
    for (size_t i = range.first; i < range.last; ++i) ++range.region->pages[i].uses;
    const std::string reason = map(range, to_the_last);
    if (reason.empty()) return LS_OK;
    give_back(range);
    commit_reason = reason;
    return LS_OUT_OF_MEMORY;
  }

  // Nothing that was enqueued is at work on these pages.
  void give_back(void *address, int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    give_back(range_of(address, bytes));
  }

 private:
  struct Page {
    CUmemGenericAllocationHandle handle = 0;  // 0 where nothing is mapped
    int32_t uses = 0;                         // commits that have not been given back
  };
  struct Region {
    int64_t bytes;
    std::vector<Page> pages;
  };
  struct Range {
    CUdeviceptr base;
    Region *region;
    size_t first, last;  // pages
  };

  Range range_of(void *address, int64_t bytes) {
    const auto pointer = reinterpret_cast<CUdeviceptr>(address);
    auto found = std::prev(regions_.upper_bound(pointer));
    const size_t first = static_cast<size_t>(static_cast<int64_t>(pointer - found->first) / page_);
    return {found->first, &found->second, first, first + static_cast<size_t>(round_up(bytes, page_) / page_)};
  }

  CUdeviceptr at(CUdeviceptr base, size_t index) const { return base + index * static_cast<CUdeviceptr>(page_); }

  // Maps what is not mapped yet. The reason why not, or "".
  std::string map(const Range &range, bool to_the_last) {
    const Driver &d = driver();
    const auto page_bytes = static_cast<size_t>(page_);
    std::vector<Page> &pages = range.region->pages;
    size_t missing = 0;
    for (size_t i = range.first; i < range.last; ++i) missing += pages[i].handle == 0;
    if (missing > free_.size() && !to_the_last) {
      size_t left = 0, total = 0;
      if (cudaMemGetInfo(&left, &total) == cudaSuccess && left < (missing - free_.size()) * page_bytes + kHeadroom)
        return "the device has " + std::to_string(left >> 20) + " MiB left";
    }
    for (size_t i = range.first; i < range.last;) {
      if (pages[i].handle != 0) {
        ++i;
        continue;
      }
      const size_t begin = i;
      for (; i < range.last && pages[i].handle == 0; ++i) {
        CUmemGenericAllocationHandle handle = 0;
        CUresult result = CUDA_SUCCESS;
        if (!free_.empty()) {
          handle = free_.back();
          free_.pop_back();
        } else {
          result = d.p_cuMemCreate(&handle, page_bytes, &properties_, 0);
        }
        if (result == CUDA_SUCCESS) {
          result = d.p_cuMemMap(at(range.base, i), page_bytes, 0, handle, 0);
          if (result != CUDA_SUCCESS) d.p_cuMemRelease(handle);
        }
        if (result != CUDA_SUCCESS) return "the driver gives no more: " + std::string(driver_error(result));
        pages[i].handle = handle;
      }
      const CUresult result = d.p_cuMemSetAccess(at(range.base, begin), (i - begin) * page_bytes, &access_, 1);
      if (result != CUDA_SUCCESS) return "the driver gives no access: " + std::string(driver_error(result));
    }
    return "";
  }

  void give_back(const Range &range) {
    for (size_t i = range.first; i < range.last; ++i) --range.region->pages[i].uses;
    unmap_unused(range.base, *range.region, range.first, range.last);
  }

  void unmap_unused(CUdeviceptr base, Region &region, size_t first, size_t last) {
    std::vector<Page> &pages = region.pages;
    const auto page_bytes = static_cast<size_t>(page_);
    const auto goes = [&](size_t i) { return pages[i].handle != 0 && pages[i].uses == 0; };
    for (size_t i = first; i < last; ++i) {
      if (!goes(i)) continue;
      const size_t begin = i;
      while (i < last && goes(i)) ++i;
      // One call for neighbours, which costs less; a driver that wants them one by one gets them so.
      if (driver().p_cuMemUnmap(at(base, begin), (i - begin) * page_bytes) != CUDA_SUCCESS)
        for (size_t k = begin; k < i; ++k) driver().p_cuMemUnmap(at(base, k), page_bytes);
      for (size_t k = begin; k < i; ++k) {
        if (free_.size() < most_free_)
          free_.push_back(pages[k].handle);
        else
          driver().p_cuMemRelease(pages[k].handle);
        pages[k].handle = 0;
      }
    }
  }

  CUmemAllocationProp properties_{};
  CUmemAccessDesc access_{};
  int64_t page_ = 0;
  size_t most_free_ = 0;
  std::mutex mutex_;  // commits come from the JavaScript thread, what is given back also from the compute queue's
  std::map<CUdeviceptr, Region> regions_;
  std::vector<CUmemGenericAllocationHandle> free_;
};

class HostArena {
 public:
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

  // Nothing that was enqueued is at work on these bytes.
  void give_back(void *address, int64_t bytes) {
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
    int64_t shared = 1;  // parts that have a thread or are ours
    try {
      for (; shared < kTouchThreads; ++shared) threads.emplace_back(touch, shared);
    } catch (const std::system_error &) {
      // No more threads are to be had: the rest is ours too.
      for (int64_t i = shared; i < kTouchThreads; ++i) touch(i);
    }
    touch(0);
    for (std::thread &thread : threads) thread.join();
    // Mapped: copies that turn or cast are kernels, which read and write it themselves.
    const cudaError_t error = cudaHostRegister(chunk, kHostChunk, cudaHostRegisterPortable | cudaHostRegisterMapped);
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

  mutable std::mutex mutex_;
  std::map<char *, Region> regions_;
};

// Bytes that go back when an event of the compute stream has happened.
struct DeviceState::Return {
  cudaEvent_t event;  // null: at once
  int32_t tier;
  void *address;
  int64_t bytes;
};

DeviceState::DeviceState() = default;
DeviceState::~DeviceState() = default;

ls_status open_arenas(DeviceState *device, int64_t *page_bytes, char *error, size_t error_size) {
  device->arena = std::make_unique<DeviceArena>();
  const ls_status status = device->arena->open(device, page_bytes, error, error_size);
  if (status == LS_OK) device->host = std::make_unique<HostArena>();
  return status;
}

bool is_host(const DeviceState *device, const void *address) { return device->host->holds(address); }

int64_t copy_piece(const DeviceState *device, const void *a, const void *b, int64_t bytes) {
  for (const void *const address : {a, b})
    if (is_host(device, address))
      bytes = std::min(bytes, kHostChunk - static_cast<int64_t>(reinterpret_cast<uintptr_t>(address) % kHostChunk));
  return bytes;
}

bool give_back_finished(DeviceState *device, bool wait) {
  bool any = false;
  for (;;) {
    DeviceState::Return item{};
    {
      std::lock_guard<std::mutex> lock(device->returns_mutex);
      if (device->returns.empty()) return any;
      item = device->returns.front();
      if (item.event && !wait && cudaEventQuery(item.event) == cudaErrorNotReady) {
        cudaGetLastError();  // no failure, and not to be taken for one of the next launch
        return any;
      }
      device->returns.pop_front();
    }
    if (item.event && wait) cudaEventSynchronize(item.event);
    if (item.event) recycle_event(device, item.event);
    if (item.tier == LS_TIER_DEVICE)
      device->arena->give_back(item.address, item.bytes);
    else
      device->host->give_back(item.address, item.bytes);
    any = true;
  }
}

ls_status reserve(void *device, int32_t tier, int64_t bytes, void **address) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  if (tier == LS_TIER_DEVICE) return state->arena->reserve(bytes, address);
  return tier == LS_TIER_HOST ? state->host->reserve(bytes, address) : LS_UNSUPPORTED;
}

void unreserve(void *device, int32_t tier, void *address, int64_t) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  give_back_finished(state, true);
  tier == LS_TIER_DEVICE ? state->arena->unreserve(address) : state->host->unreserve(address);
}

ls_status commit(void *device, int32_t tier, void *address, int64_t bytes) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  // The runtime asks a second time when all decommits have passed the queues: only then is what is left to be had.
  const bool again = state->refused == address;
  const auto attempt = [&](bool to_the_last) {
    return tier == LS_TIER_DEVICE ? state->arena->commit(address, bytes, to_the_last)
                                  : state->host->commit(address, bytes);
  };
  give_back_finished(state, false);
  ls_status status = attempt(false);
  if (status != LS_OK && give_back_finished(state, true)) status = attempt(false);
  if (status != LS_OK && again && tier == LS_TIER_DEVICE) status = attempt(true);
  state->refused = status == LS_OK ? nullptr : address;
  return status;
}

void decommit(void *device, int32_t tier, void *address, int64_t bytes) {
  auto *state = static_cast<DeviceState *>(device);
  make_current(state);
  // Kernels and copies enqueued before may still be at work on these pages; compute waits for what other queues do
  // with them.
  cudaEvent_t event = nullptr;
  if (state->compute && record_event(state, state->compute, &event) != cudaSuccess && event) {
    // Of a lost device: nothing is at work any more.
    recycle_event(state, event);
    event = nullptr;
  }
  {
    std::lock_guard<std::mutex> lock(state->returns_mutex);
    state->returns.push_back({event, tier, address, bytes});
  }
  give_back_finished(state, false);
}

void commit_error(void *, char *error, size_t error_size) { snprintf(error, error_size, "%s", commit_reason.c_str()); }

}  // namespace longseq::cuda
