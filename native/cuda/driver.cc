// Finding libcuda.so.1, its entry points and its version.
#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include <mutex>
#include <string>

namespace longseq::cuda {

namespace {

// What the statically linked CUDA runtime asks for, and the first driver that has it.
constexpr int kNeededVersion = CUDA_VERSION / 1000 * 1000;
constexpr const char *kNeededDriver = "580";

Driver opened;
bool usable = false;
std::string reason;

std::string text_of(CUresult result) {
  const char *name = nullptr, *text = nullptr;
  if (opened.p_cuGetErrorName) opened.p_cuGetErrorName(result, &name);
  if (opened.p_cuGetErrorString) opened.p_cuGetErrorString(result, &text);
  char line[256];
  snprintf(line, sizeof line, "%s (%s)", name ? name : "CUDA error", text ? text : std::to_string(result).c_str());
  return line;
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Empty where all is well.
std::string try_open() {
  std::string why;
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    why = dlerror();
    // In the Windows Subsystem for Linux.
    library = dlopen("/usr/lib/wsl/lib/libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  }
  if (!library)
    return "there is no NVIDIA driver: libcuda.so.1 is not found" +
           (why.find("No such file") == std::string::npos ? " or cannot be opened (" + why + ")" : "") +
           "; install driver " + kNeededDriver + " or newer, or use device: cpu";
#define LS_STRING_OF(name) #name
#define LS_STRING(name) LS_STRING_OF(name)
#define LS_FIND(name)                                                                                                 \
  opened.p_##name = reinterpret_cast<decltype(opened.p_##name)>(dlsym(library, LS_STRING(name)));                     \
  if (!opened.p_##name)                                                                                               \
    return std::string("the NVIDIA driver is too old: its libcuda.so.1 lacks " LS_STRING(name) "; install driver ") + \
           kNeededDriver + " or newer";
  LS_FIND(cuDriverGetVersion)
  CUresult result = opened.p_cuDriverGetVersion(&opened.version);
  if (result == CUDA_SUCCESS && opened.version < kNeededVersion)
    return "the NVIDIA driver is too old: it supports CUDA " + version_text(opened.version) + ", longseq needs " +
           version_text(kNeededVersion) + "; install driver " + kNeededDriver + " or newer";
  LS_DRIVER_FUNCTIONS(LS_FIND)
#undef LS_FIND
  result = opened.p_cuInit(0);
  if (result == CUDA_SUCCESS) result = opened.p_cuDeviceGetCount(&opened.devices);
  if (result == CUDA_ERROR_NO_DEVICE || (result == CUDA_SUCCESS && opened.devices == 0)) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return "the NVIDIA driver is here, but it finds no device" +
           (visible ? std::string("; CUDA_VISIBLE_DEVICES is '") + visible + "'"
                    : std::string("; in a container, pass the devices through (--gpus all)"));
  }
  if (result == CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)
    return "the NVIDIA driver's kernel module and its libcuda.so.1 are of different versions: restart the machine";
  if (result != CUDA_SUCCESS) return "the NVIDIA driver cannot be started: " + text_of(result);
  return "";
}

}  // namespace

const Driver *open_driver(char *error, size_t error_size) {
  static std::once_flag once;
  std::call_once(once, [] {
    reason = try_open();
    usable = reason.empty();
  });
  if (!usable) snprintf(error, error_size, "%s", reason.c_str());
  return usable ? &opened : nullptr;
}

const Driver &driver() { return opened; }

const char *driver_error(CUresult result) {
  thread_local std::string text;
  text = text_of(result);
  return text.c_str();
}

}  // namespace longseq::cuda
