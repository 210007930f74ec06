// What the CUDA backend asks libcuda.so.1 before it uses a device, for tests of its messages where there is no driver.
// LONGSEQ_FAKE_CUDA: old, none, mismatch or turing; else two devices of compute capability 9.0.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define FAKE extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kSuccess = 0, kNotInitialized = 3, kNoDevice = 100, kInvalidDevice = 101, kMismatch = 803;

bool mode(const char *name) {
  const char *value = std::getenv("LONGSEQ_FAKE_CUDA");
  return value && std::strcmp(value, name) == 0;
}

}  // namespace

FAKE int cuDriverGetVersion(int *version) {
  *version = mode("old") ? 12040 : 13000;
  return kSuccess;
}
FAKE int cuInit(unsigned) { return mode("none") ? kNoDevice : mode("mismatch") ? kMismatch : kSuccess; }
FAKE int cuGetErrorName(int, const char **name) {
  *name = "CUDA_ERROR_FAKE";
  return kSuccess;
}
FAKE int cuGetErrorString(int, const char **text) {
  *text = "of the stand-in";
  return kSuccess;
}
FAKE int cuDeviceGetCount(int *count) {
  *count = 2;
  return kSuccess;
}
FAKE int cuDeviceGet(int *device, int index) {
  *device = index;
  return index < 2 ? kSuccess : kInvalidDevice;
}
FAKE int cuDeviceGetName(char *name, int length, int) {
  std::snprintf(name, static_cast<size_t>(length), "%s", mode("turing") ? "Tesla T4" : "NVIDIA H200");
  return kSuccess;
}
FAKE int cuDeviceGetAttribute(int *value, int attribute, int) {
  // The two halves of the compute capability.
  *value = attribute == 75 ? (mode("turing") ? 7 : 9) : attribute == 76 ? (mode("turing") ? 5 : 0) : 0;
  return kSuccess;
}

// Asked for by name, never called: no device gets that far.
#define FAKE_UNUSED(name) \
  FAKE int name() { return kNotInitialized; }
FAKE_UNUSED(cuDeviceTotalMem_v2)
FAKE_UNUSED(cuMemGetAllocationGranularity)
FAKE_UNUSED(cuMemAddressReserve)
FAKE_UNUSED(cuMemAddressFree)
FAKE_UNUSED(cuMemCreate)
FAKE_UNUSED(cuMemRelease)
FAKE_UNUSED(cuMemMap)
FAKE_UNUSED(cuMemUnmap)
FAKE_UNUSED(cuMemSetAccess)
