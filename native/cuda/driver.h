// The CUDA driver, opened at run time: the backend loads where there is none, and says so.
#ifndef LONGSEQ_CUDA_DRIVER_H
#define LONGSEQ_CUDA_DRIVER_H

#include <cuda.h>
#include <stddef.h>

namespace longseq::cuda {

// Entry points of libcuda.so.1 under the names of cuda.h.
#define LS_DRIVER_FUNCTIONS(X)     \
  X(cuDriverGetVersion)            \
  X(cuInit)                        \
  X(cuGetErrorName)                \
  X(cuGetErrorString)              \
  X(cuDeviceGetCount)              \
  X(cuDeviceGet)                   \
  X(cuDeviceGetName)               \
  X(cuDeviceGetAttribute)          \
  X(cuDeviceTotalMem)              \
  X(cuMemGetAllocationGranularity) \
  X(cuMemAddressReserve)           \
  X(cuMemAddressFree)              \
  X(cuMemCreate)                   \
  X(cuMemRelease)                  \
  X(cuMemMap)                      \
  X(cuMemUnmap)                    \
  X(cuMemSetAccess)

// cuda.h gives some functions a versioned name by macro: the member has the plain name, its type that of the macro.
struct Driver {
#define LS_MEMBER(name) decltype(&::name) p_##name;
  LS_DRIVER_FUNCTIONS(LS_MEMBER)
#undef LS_MEMBER
  int version;  // CUDA's, e.g. 13000
  int devices;
};

// Opens and initialises the driver, once a process. NULL with one line in `error`: none, too old, or no device.
const Driver *open_driver(char *error, size_t error_size);

// The driver that open_driver gave.
const Driver &driver();

// "CUDA_ERROR_OUT_OF_MEMORY (out of memory)"; in a buffer of the thread.
const char *driver_error(CUresult result);

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_DRIVER_H
