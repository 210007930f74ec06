// The meta backend: every shape, allocation and counter of a run, with no memory and no arithmetic behind it.
#include <atomic>
#include <cstdio>
#include <cstring>

#include "runtime/registry.h"

namespace longseq::meta {

namespace {

// Addresses that nothing may touch: distinct, so that the allocator can tell regions apart.
std::atomic<uintptr_t> next_address{uintptr_t{1} << 50};

ls_status device_open(int32_t, int32_t, void **device, ls_device_info *info, char *, size_t) {
  *device = nullptr;
  std::snprintf(info->name, sizeof info->name, "meta (no memory, no arithmetic)");
  info->memory_bytes = 0;
  info->memory_free_bytes = 0;
  info->page_bytes = 64 << 10;
  info->peak_bf16_flops = 0;
  return LS_OK;
}
void device_close(void *) {}
ls_status reserve(void *, int32_t, int64_t bytes, void **address) {
  *address = reinterpret_cast<void *>(next_address.fetch_add(static_cast<uintptr_t>(bytes) + (1 << 20)));
  return LS_OK;
}
void unreserve(void *, int32_t, void *, int64_t) {}
ls_status commit(void *, int32_t, void *, int64_t) { return LS_OK; }
void decommit(void *, int32_t, void *, int64_t) {}
ls_status upload(const ls_exec *, void *, const void *, int64_t) { return LS_OK; }
ls_status download(const ls_exec *, void *host, const void *, int64_t bytes) {
  std::memset(host, 0, static_cast<size_t>(bytes));
  return LS_OK;
}

template <class Args>
ls_status nothing(const ls_exec *, const Args *) {
  return LS_OK;
}

template <class Args>
void set(ls_status (*&entry)(const ls_exec *, const Args *)) {
  entry = &nothing<Args>;
}

ls_backend make() {
  ls_backend table{};
  table.api_version = LS_BACKEND_API_VERSION;
  table.struct_bytes = sizeof(ls_backend);
  table.name = "meta";
  table.device_open = device_open;
  table.device_close = device_close;
  table.reserve = reserve;
  table.unreserve = unreserve;
  table.commit = commit;
  table.decommit = decommit;
  table.upload = upload;
  table.download = download;
  set(table.matmul);
  set(table.rms_norm);
  set(table.rms_norm_backward);
  set(table.layer_norm);
  set(table.layer_norm_backward);
  set(table.rope);
  set(table.swiglu);
  set(table.swiglu_backward);
  set(table.unary);
  set(table.unary_backward);
  set(table.binary);
  set(table.axpby);
  set(table.embedding);
  set(table.embedding_backward);
  set(table.route);
  set(table.route_backward);
  set(table.grouped_matmul);
  set(table.combine);
  set(table.row_dot);
  set(table.dropout);
  set(table.attention);
  set(table.attention_backward);
  set(table.attention_merge);
  set(table.cross_entropy);
  set(table.copy);
  set(table.fill);
  set(table.sum);
  set(table.norm_squared);
  set(table.argmax);
  set(table.clip_factor);
  set(table.adamw_advance);
  set(table.adamw);
  set(table.random);
  set(table.quantize);
  set(table.dequantize);
  return table;
}

}  // namespace

const ls_backend *backend() {
  static const ls_backend table = make();
  return &table;
}

}  // namespace longseq::meta
