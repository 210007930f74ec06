// A CUDA driver library of a machine without GPU, for the deviceless judging of cuDNN graphs in tests and nothing else.
//
// cuDNN finalises plans for a described device without touching one, but wants to find a driver library. This one knows
// no device; the few entries that only load a compiled kernel give an invented handle, since nothing will ever run.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { kSuccess = 0, kNoDevice = 100 };

static char invented;

// Entries that answer "no device", whatever their arguments.
#define NO_DEVICE(name) \
  EXPORT int name(void) { return kNoDevice; }
// Entries that succeed and do nothing.
#define NOTHING(name) \
  EXPORT int name(void) { return kSuccess; }
// Entries that put a handle into their first argument.
#define HANDLE(name)               \
  EXPORT int name(void **handle) { \
    *handle = &invented;           \
    return kSuccess;               \
  }

HANDLE(cuLibraryLoadData)
HANDLE(cuLibraryGetKernel)
HANDLE(cuKernelGetFunction)
HANDLE(cuModuleLoadData)
HANDLE(cuModuleLoadDataEx)
HANDLE(cuModuleGetFunction)
NOTHING(cuLibraryUnload)
NOTHING(cuModuleUnload)
NOTHING(cuKernelSetAttribute)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NO_DEVICE(cuInit)
NO_DEVICE(cuDeviceGet)
NO_DEVICE(cuDeviceGetAttribute)
NO_DEVICE(cuDeviceGetName)
NO_DEVICE(cuDeviceTotalMem_v2)
NO_DEVICE(cuDevicePrimaryCtxRetain)
NO_DEVICE(cuDevicePrimaryCtxRelease_v2)
NO_DEVICE(cuDevicePrimaryCtxGetState)
NO_DEVICE(cuCtxGetCurrent)
NO_DEVICE(cuCtxSetCurrent)
NO_DEVICE(cuCtxGetDevice)
NO_DEVICE(cuCtxPushCurrent_v2)
NO_DEVICE(cuCtxPopCurrent_v2)
NO_DEVICE(cuCtxGetStreamPriorityRange)
NO_DEVICE(cuCtxSynchronize)
NO_DEVICE(cuStreamCreate)
NO_DEVICE(cuStreamSynchronize)
NO_DEVICE(cuStreamIsCapturing)
NO_DEVICE(cuStreamGetCtx)
NO_DEVICE(cuEventCreate)
NO_DEVICE(cuEventRecord)
NO_DEVICE(cuMemAlloc_v2)
NO_DEVICE(cuMemFree_v2)
NO_DEVICE(cuMemcpyAsync)
NO_DEVICE(cuMemcpyHtoDAsync_v2)
NO_DEVICE(cuMemsetD8Async)
NO_DEVICE(cuMemsetD32Async)
NO_DEVICE(cuMemGetInfo_v2)
NO_DEVICE(cuPointerGetAttribute)
NO_DEVICE(cuPointerGetAttributes)
NO_DEVICE(cuLaunchKernel)
NO_DEVICE(cuLaunchKernelEx)
NO_DEVICE(cuLaunchCooperativeKernel)
NO_DEVICE(cuFuncGetAttribute)
NO_DEVICE(cuKernelGetAttribute)
NO_DEVICE(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NO_DEVICE(cuOccupancyMaxActiveClusters)
NO_DEVICE(cuTensorMapEncodeTiled)
NO_DEVICE(cuTensorMapEncodeIm2col)
NO_DEVICE(cuTensorMapReplaceAddress)
NO_DEVICE(cuModuleGetGlobal_v2)
NO_DEVICE(cuLibraryGetGlobal)
NO_DEVICE(cuLibraryGetModule)
NO_DEVICE(cuGetExportTable)
NO_DEVICE(cuDeviceGetUuid_v2)
NO_DEVICE(cuDeviceGetPCIBusId)
NO_DEVICE(cuOccupancyMaxPotentialClusterSize)
NO_DEVICE(cuLibraryLoadFromFile)
NO_DEVICE(cuLinkDestroy)
NO_DEVICE(cuLinkComplete)
NO_DEVICE(cuLinkAddData)
NO_DEVICE(cuLinkCreate)
NO_DEVICE(cuCtxPushCurrent)
NO_DEVICE(cuCtxPopCurrent)
NO_DEVICE(cuCtxGetLimit)

EXPORT int cuDriverGetVersion(int *version) {
  *version = 13000;
  return kSuccess;
}

EXPORT int cuDeviceGetCount(int *count) {
  *count = 0;
  return kNoDevice;
}

EXPORT int cuGetErrorString(int error, const char **text) {
  *text = error == kSuccess ? "no error" : "no CUDA-capable device is detected";
  return kSuccess;
}

EXPORT int cuGetErrorName(int error, const char **text) {
  *text = error == kSuccess ? "CUDA_SUCCESS" : "CUDA_ERROR_NO_DEVICE";
  return kSuccess;
}

static int no_device(void) { return kNoDevice; }

// Names this library does not export get an entry that knows no device.
EXPORT int cuGetProcAddress_v2(const char *name, void **entry, int version, unsigned long long flags, int *status) {
  (void)version;
  (void)flags;
  void *found = dlsym(RTLD_DEFAULT, name);
  Dl_info mine, its;
  if (!found || !dladdr(found, &its) || !dladdr((void *)&no_device, &mine) || its.dli_fbase != mine.dli_fbase)
    found = strcmp(name, "cuGetProcAddress") == 0 ? (void *)&cuGetProcAddress_v2 : (void *)&no_device;
  *entry = found;
  if (status) *status = 0;
  return kSuccess;
}

EXPORT int cuGetProcAddress(const char *name, void **entry, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, entry, version, flags, NULL);
}
