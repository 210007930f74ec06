// Finding cuBLASLt and its version.
#include "cublaslt.h"

#include <dlfcn.h>
#include <stdio.h>

#include <mutex>
#include <string>

#include "vendor.h"

namespace longseq::cuda {

namespace {

CublasLt functions;
std::string reason;

#define LS_TEXT_OF(x) #x
#define LS_TEXT(x) LS_TEXT_OF(x)
constexpr const char *kLibrary = "libcublasLt.so." LS_TEXT(CUBLAS_VER_MAJOR);

std::string load(void *handle) {
#define LS_FIND(name)                                                                           \
  functions.name = reinterpret_cast<decltype(functions.name)>(dlsym(handle, "cublasLt" #name)); \
  if (!functions.name) return "it lacks cublasLt" #name;
  LS_CUBLASLT_FUNCTIONS(LS_FIND)
#undef LS_FIND
  const size_t version = functions.GetVersion();
  if (version / 10000 != CUBLAS_VER_MAJOR)
    return "it is version " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) +
           ", longseq needs " + LS_TEXT(CUBLAS_VER_MAJOR);
  return "";
}

}  // namespace

const CublasLt *open_cublaslt(char *error, size_t error_size) {
  static std::once_flag once;
  std::call_once(once, [] { reason = open_vendor(kLibrary, "nvidia-cublas", false, load).error; });
  if (!reason.empty()) snprintf(error, error_size, "%s", reason.c_str());
  return reason.empty() ? &functions : nullptr;
}

const CublasLt &cublaslt() { return functions; }

}  // namespace longseq::cuda
