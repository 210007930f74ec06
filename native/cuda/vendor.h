// NVIDIA's libraries (cuBLASLt, cuDNN, NCCL), found at run time and opened by full path.
#ifndef LONGSEQ_CUDA_VENDOR_H
#define LONGSEQ_CUDA_VENDOR_H

#include <functional>
#include <string>

namespace longseq::cuda {

struct VendorLibrary {
  void *handle = nullptr;  // for dlsym; never closed
  std::string path;        // full, of what was opened
  std::string error;       // one line where handle is NULL: what is missing or wrong, and what to do
};

// Opens `soname` (e.g. "libcudnn.so.9") from the first folder that holds one which `check` accepts. Folders:
// LONGSEQ_CUDA_LIBS (and nvidia/*/lib below each) where it is set; else, in order, LD_LIBRARY_PATH, the toolkit
// (CUDA_HOME, CUDA_PATH, /usr/local/cuda), Python's site-packages and the clone's .cache/cuda (nvidia/*/lib below
// them), the system's. `package` is the wheel that brings it. `check` looks
// at an opened handle and gives "" or what is wrong with it (a version, say). global: opens it so that libraries opened
// later find its symbols.
VendorLibrary open_vendor(const char *soname, const char *package, bool global,
                          const std::function<std::string(void *handle)> &check = {});

}  // namespace longseq::cuda

#endif  // LONGSEQ_CUDA_VENDOR_H
