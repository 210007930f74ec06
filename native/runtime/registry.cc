// Finding and opening backends.
#include "runtime/registry.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

#include "runtime/error.h"

namespace longseq {

namespace {

std::mutex mutex;

std::map<std::string, const ls_backend *> &backends() {
  static std::map<std::string, const ls_backend *> table = {{"cpu", cpu::backend()}, {"meta", meta::backend()}};
  return table;
}

std::map<const ls_backend *, AttentionOption> &attention_options() {
  static std::map<const ls_backend *, AttentionOption> table;
  return table;
}

std::map<const ls_backend *, ls_comm_open_fn> &comm_openers() {
  static std::map<const ls_backend *, ls_comm_open_fn> table;
  return table;
}

}  // namespace

const ls_comm_table *comm_table_of(const ls_backend *backend) {
  ls_comm_open_fn open = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = comm_openers().find(backend); found != comm_openers().end()) open = found->second;
  }
  if (!open)
    throw Error(LS_UNSUPPORTED,
                format("the %s backend knows no ranks: it was built without NCCL's headers", backend->name));
  char message[512] = "";
  const ls_comm_table *table = open(LS_COMM_API_VERSION, message, sizeof message);
  if (!table) throw Error(LS_UNSUPPORTED, format("several ranks on %s: %s", backend->name, message));
  if (table->api_version != LS_COMM_API_VERSION || table->struct_bytes != static_cast<int32_t>(sizeof(ls_comm_table)))
    throw Error(LS_UNSUPPORTED, format("the %s backend has comm api version %d, this build needs %d: install matching "
                                       "packages",
                                       backend->name, table->api_version, LS_COMM_API_VERSION));
  return table;
}

AttentionOption attention_option(const ls_backend *backend) {
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = attention_options().find(backend);
  return found == attention_options().end() ? nullptr : found->second;
}

const ls_backend *find_backend(const std::string &name) {
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = backends().find(name);
  if (found != backends().end()) return found->second;
  std::string names;
  for (const auto &[key, value] : backends()) names += (names.empty() ? "" : ", ") + key;
  throw Error(LS_UNSUPPORTED,
              format("device type '%s' is not available; this build has %s", name.c_str(), names.c_str()));
}

std::string open_backend(const std::string &path) {
  // RTLD_LOCAL keeps its symbols from those of other addons; it is never closed, since its threads may live on.
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw Error(LS_UNSUPPORTED, format("backend library cannot be opened: %s", dlerror()));
  auto open = reinterpret_cast<ls_backend_open_fn>(dlsym(library, LS_BACKEND_OPEN_SYMBOL));
  if (!open)
    throw Error(LS_UNSUPPORTED,
                format("%s is no longseq backend: it does not export %s", path.c_str(), LS_BACKEND_OPEN_SYMBOL));
  char message[512] = "";
  const ls_backend *backend = open(LS_BACKEND_API_VERSION, message, sizeof message);
  if (!backend) throw Error(LS_UNSUPPORTED, format("%s cannot be used: %s", path.c_str(), message));
  if (backend->api_version != LS_BACKEND_API_VERSION ||
      backend->struct_bytes != static_cast<int32_t>(sizeof(ls_backend)))
    throw Error(LS_UNSUPPORTED, format("%s has backend api version %d, this build needs %d: install matching packages",
                                       path.c_str(), backend->api_version, LS_BACKEND_API_VERSION));
  std::lock_guard<std::mutex> lock(mutex);
  backends()[backend->name] = backend;
  if (auto option = reinterpret_cast<AttentionOption>(dlsym(library, LS_ATTENTION_OPTION_SYMBOL)))
    attention_options()[backend] = option;
  if (auto comm = reinterpret_cast<ls_comm_open_fn>(dlsym(library, LS_COMM_OPEN_SYMBOL)))
    comm_openers()[backend] = comm;
  return backend->name;
}

std::vector<std::string> backend_names() {
  std::lock_guard<std::mutex> lock(mutex);
  std::vector<std::string> names;
  for (const auto &[key, value] : backends()) names.push_back(key);
  return names;
}

}  // namespace longseq
