// A backend in a shared library with memory and one op, for tests of the registry.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "longseq/backend.h"

namespace {

ls_status device_open(int32_t index, int32_t, void **device, ls_device_info *info, char *error, size_t error_size) {
  if (index > 1) {
    std::snprintf(error, error_size, "there are 2 toys, index %d is not one", index);
    return LS_UNSUPPORTED;
  }
  *device = nullptr;
  std::snprintf(info->name, sizeof info->name, "toy %d", index);
  info->page_bytes = 4096;
  return LS_OK;
}
void device_close(void *) {}
// Small regions only: the runtime halves its request until one is granted.
ls_status reserve(void *, int32_t, int64_t bytes, void **address) {
  if (bytes > (int64_t{1} << 26)) return LS_OUT_OF_MEMORY;
  *address = std::aligned_alloc(4096, static_cast<size_t>(bytes));
  return *address ? LS_OK : LS_OUT_OF_MEMORY;
}
void unreserve(void *, int32_t, void *address, int64_t) { std::free(address); }
ls_status commit(void *, int32_t, void *, int64_t) { return LS_OK; }
void decommit(void *, int32_t, void *, int64_t) {}
ls_status upload(const ls_exec *, void *to, const void *from, int64_t bytes) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return LS_OK;
}
ls_status download(const ls_exec *, void *to, const void *from, int64_t bytes) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return LS_OK;
}
ls_status fill(const ls_exec *exec, const ls_fill_args *args) {
  if (args->value < 0) {
    std::snprintf(exec->error, exec->error_size, "toys are not negative");
    return LS_DEVICE_FAILURE;
  }
  for (int64_t i = 0; i < args->y.sizes[0]; ++i)
    static_cast<float *>(args->y.data)[i] = static_cast<float>(args->value);
  return LS_OK;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const ls_backend *ls_backend_open(int32_t api_version, char *error,
                                                                                    size_t error_size) {
  // LONGSEQ_TOY=old answers as a library built against another header would.
  const char *mode = std::getenv("LONGSEQ_TOY");
  if (mode && std::strcmp(mode, "refuse") == 0) {
    std::snprintf(error, error_size, "no toy is plugged in");
    return nullptr;
  }
  static ls_backend table{};
  table.api_version = mode && std::strcmp(mode, "old") == 0 ? api_version - 1 : LS_BACKEND_API_VERSION;
  table.struct_bytes = sizeof(ls_backend);
  table.name = "toy";
  table.device_open = device_open;
  table.device_close = device_close;
  table.reserve = reserve;
  table.unreserve = unreserve;
  table.commit = commit;
  table.decommit = decommit;
  table.upload = upload;
  table.download = download;
  table.fill = fill;
  return &table;
}
