// Bad values that only the device sees (a token id outside the table): kernels note the first in a record of the device
// that the host reads when it next looks, without waiting for it.
#ifndef LONGSEQ_CUDA_FAULT_H
#define LONGSEQ_CUDA_FAULT_H

#include "common.h"

namespace longseq::cuda {

enum FaultKind { kEmbeddingFault, kEmbeddingBackwardFault, kCrossEntropyFault, kAdamwFault, kFaultKinds };

// In pinned memory that the device writes through.
struct Fault {
  unsigned long long first[kFaultKinds];  // index in the high half, value in the low one; all ones where there is none
  long long limit[kFaultKinds];           // what the value should have stayed below
};

// The record of the device of `exec`; NULL where no pinned memory is to be had.
Fault *fault_of(const ls_exec *exec);

// LS_OK, or LS_INVALID_ARGUMENT with what a kernel noted since the device was opened. The record stays: as any failure
// of a queue it is there until the device is closed.
ls_status fault_status(void *device, char *error, size_t error_size);

// For device_close.
void forget_faults(void *device);

#if defined(__CUDACC__) || defined(LS_CUDA_EMUL)
// The lowest index wins, whichever thread comes first. index < 2^32.
LS_DEVICE void note_fault(Fault *fault, FaultKind kind, int64_t index, int32_t value, int64_t limit) {
  if (fault == nullptr) return;
  fault->limit[kind] = limit;
  __threadfence_system();  // the host reads it after the record
  atomicMin(&fault->first[kind], static_cast<unsigned long long>(index) << 32 |
                                     static_cast<unsigned long long>(static_cast<uint32_t>(value)));
}
#endif

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_FAULT_H
