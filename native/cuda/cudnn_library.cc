// Opens cuDNN and resolves the functions of cudnn_library.h.
#include "cudnn_library.h"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>

namespace longseq::cuda::cudnn {
namespace {

template <class Function>
bool resolve(void *library, const char *name, Function *function, std::string *error) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (!*function && error->empty()) *error = std::string("it lacks ") + name;
  return *function != nullptr;
}

// "9.24.0" of 92400.
std::string version_text(size_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

}  // namespace

std::string unfit(void *file) {
  std::string missing;
  size_t (*version)() = nullptr, (*cuda)() = nullptr;
  if (!resolve(file, "cudnnGetVersion", &version, &missing) || !resolve(file, "cudnnGetCudartVersion", &cuda, &missing))
    return missing;
  if (version() < kOldestVersion)
    return "its version is " + version_text(version()) + ", at least " + version_text(kOldestVersion) + " is needed";
  if (cuda() / 1000 != kCuda)
    return "it is built for CUDA " + std::to_string(cuda() / 1000) + ", one for CUDA " + std::to_string(kCuda) +
           " is needed";
  return "";
}

const Library *open_library(const std::string &path, std::string *error) {
  static std::mutex mutex;
  // Never destroyed, as all that stands for an open library: threads and cuDNN's own exit handlers may come later.
  static auto &opened = *new std::map<std::string, std::unique_ptr<Library>>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = opened.find(path); found != opened.end()) return found->second.get();
  void *file = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!file) {
    *error = std::string("cuDNN could not be opened: ") + dlerror();
    return nullptr;
  }
  auto library = std::make_unique<Library>();
  library->path = path;
  std::string missing = unfit(file);
  const bool complete = missing.empty() && resolve(file, "cudnnGetVersion", &library->get_version, &missing) &&
                        resolve(file, "cudnnGetErrorString", &library->get_error_string, &missing) &&
                        resolve(file, "cudnnGetLastErrorString", &library->get_last_error_string, &missing) &&
                        resolve(file, "cudnnCreate", &library->create, &missing) &&
                        resolve(file, "cudnnDestroy", &library->destroy, &missing) &&
                        resolve(file, "cudnnSetStream", &library->set_stream, &missing) &&
                        resolve(file, "cudnnBackendCreateDescriptor", &library->create_descriptor, &missing) &&
                        resolve(file, "cudnnBackendDestroyDescriptor", &library->destroy_descriptor, &missing) &&
                        resolve(file, "cudnnBackendFinalize", &library->finalize, &missing) &&
                        resolve(file, "cudnnBackendSetAttribute", &library->set_attribute, &missing) &&
                        resolve(file, "cudnnBackendGetAttribute", &library->get_attribute, &missing) &&
                        resolve(file, "cudnnBackendExecute", &library->execute, &missing);
  if (!complete) {
    dlclose(file);
    *error = "cuDNN at " + path + " cannot be used: " + missing;
    return nullptr;
  }
  library->version = library->get_version();
  return (opened[path] = std::move(library)).get();
}

}  // namespace longseq::cuda::cudnn
