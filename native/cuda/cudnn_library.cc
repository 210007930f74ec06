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

}  // namespace

const Library *open_library(const std::string &path, std::string *error) {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<Library>> opened;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = opened.find(path); found != opened.end()) return found->second.get();
  void *file = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!file) {
    *error = std::string("cuDNN could not be opened: ") + dlerror();
    return nullptr;
  }
  auto library = std::make_unique<Library>();
  library->path = path;
  std::string missing;
  const bool complete = resolve(file, "cudnnGetVersion", &library->get_version, &missing) &&
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
  if (complete) {
    library->version = library->get_version();
    if (library->version < kOldestVersion)
      missing = "its version is " + std::to_string(library->version) + ", at least " + std::to_string(kOldestVersion) +
                " is needed";
  }
  if (!missing.empty()) {
    dlclose(file);
    *error = "cuDNN at " + path + " cannot be used: " + missing;
    return nullptr;
  }
  return (opened[path] = std::move(library)).get();
}

}  // namespace longseq::cuda::cudnn
