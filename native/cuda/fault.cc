// The records of bad values by device, and what is said of them.
#include "fault.h"

#include <map>
#include <mutex>

namespace longseq::cuda {

namespace {

std::mutex mutex;
std::map<void *, Fault *> &records() {
  static auto &all = *new std::map<void *, Fault *>;
  return all;
}

constexpr unsigned long long kNone = ~0ull;

}  // namespace

Fault *fault_of(const ls_exec *exec) {
  std::lock_guard<std::mutex> lock(mutex);
  Fault *&found = records()[exec->device];
  if (found == nullptr) {
    stream_of(exec);  // makes the device current
    void *memory = nullptr;
    if (cudaHostAlloc(&memory, sizeof(Fault), cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess)
      return nullptr;
    found = static_cast<Fault *>(memory);
    for (int kind = 0; kind < kFaultKinds; ++kind) {
      found->first[kind] = kNone;
      found->limit[kind] = 0;
    }
  }
  return found;
}

ls_status fault_status(void *device, char *error, size_t error_size) {
  Fault *fault = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = records().find(device);
    if (found == records().end() || found->second == nullptr) return LS_OK;
    fault = found->second;
  }
  for (int kind = 0; kind < kFaultKinds; ++kind) {
    const unsigned long long first = *static_cast<volatile unsigned long long *>(&fault->first[kind]);
    if (first == kNone) continue;
    const long long index = static_cast<long long>(first >> 32);
    const long long limit = *static_cast<volatile long long *>(&fault->limit[kind]);
    const int value = static_cast<int>(static_cast<uint32_t>(first));
    switch (kind) {
      case kEmbeddingFault:
      case kEmbeddingBackwardFault:
        snprintf(error, error_size,
                 "%s: id %d at index %lld is outside the table's %lld rows; check the tokenizer and the data",
                 kind == kEmbeddingFault ? "embedding" : "embedding_backward", value, index, limit);
        break;
      case kCrossEntropyFault:
        snprintf(error, error_size,
                 "cross_entropy: label %d of row %lld is neither below the %lld classes nor -100 (ignored)", value,
                 index, limit);
        break;
      default:
        snprintf(error, error_size, "adamw: step is %d, expected at least 1 (adamw_advance comes first)", value);
    }
    return LS_INVALID_ARGUMENT;
  }
  return LS_OK;
}

void forget_faults(void *device) {
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = records().find(device);
  if (found == records().end()) return;
  if (found->second != nullptr) cudaFreeHost(found->second);
  records().erase(found);
}

}  // namespace longseq::cuda
