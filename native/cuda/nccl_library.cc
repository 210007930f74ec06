// Finding NCCL and its version.
#include "nccl_library.h"

#include <dlfcn.h>
#include <stdio.h>

#include <mutex>

#include "vendor.h"

namespace longseq::cuda {

namespace {

Nccl nccl_functions;
std::string nccl_reason;

// Communicators that do not block, are split and aborted as a whole.
constexpr int kOldestNccl = 22700;

std::string load_nccl(void *handle) {
#define LS_FIND(name)                                                                                 \
  nccl_functions.name = reinterpret_cast<decltype(nccl_functions.name)>(dlsym(handle, "nccl" #name)); \
  if (!nccl_functions.name) return "it lacks nccl" #name;
  LS_NCCL_FUNCTIONS(LS_FIND)
#undef LS_FIND
  if (nccl_functions.GetVersion(&nccl_functions.version) != ncclSuccess) return "it does not tell its version";
  if (nccl_functions.version < kOldestNccl)
    return "it is version " + version_text(nccl_functions.version) + ", at least " + version_text(kOldestNccl) +
           " is needed";
  return "";
}

}  // namespace

std::string version_text(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

const Nccl *open_nccl(char *error, size_t error_size) {
  static std::once_flag once;
  std::call_once(once, [] {
    const VendorLibrary library = open_vendor("libnccl.so.2", "nvidia-nccl-cu13", false, load_nccl);
    nccl_reason = library.error;
    nccl_functions.path = library.path;
  });
  if (!nccl_reason.empty()) snprintf(error, error_size, "%s", nccl_reason.c_str());
  return nccl_reason.empty() ? &nccl_functions : nullptr;
}

const Nccl &nccl() { return nccl_functions; }

}  // namespace longseq::cuda
