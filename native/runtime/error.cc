// Names and texts that messages are made of.
#include "runtime/error.h"

namespace longseq {

std::string shape_text(const int64_t *sizes, int32_t ndim) {
  std::string text = "[";
  for (int32_t i = 0; i < ndim; ++i) {
    if (i) text += ", ";
    text += std::to_string(sizes[i]);
  }
  return text + "]";
}

std::string bytes_text(int64_t bytes) {
  const double value = static_cast<double>(bytes);
  if (bytes >= (int64_t{1} << 30)) return format("%.2f GiB", value / (1 << 30));
  if (bytes >= (int64_t{1} << 20)) return format("%.2f MiB", value / (1 << 20));
  if (bytes >= (int64_t{1} << 10)) return format("%.2f KiB", value / (1 << 10));
  return format("%lld bytes", static_cast<long long>(bytes));
}

const char *dtype_name(int32_t dtype) {
  switch (dtype) {
    case LS_F32:
      return "float32";
    case LS_BF16:
      return "bfloat16";
    case LS_F64:
      return "float64";
    case LS_I32:
      return "int32";
    case LS_I64:
      return "int64";
    case LS_U8:
      return "uint8";
  }
  return "unknown";
}

int64_t dtype_bytes(int32_t dtype) {
  switch (dtype) {
    case LS_F32:
    case LS_I32:
      return 4;
    case LS_BF16:
      return 2;
    case LS_F64:
    case LS_I64:
      return 8;
    case LS_U8:
      return 1;
  }
  return 0;
}

const char *category_name(int32_t category) {
  static const char *const names[] = {"params",      "grads",  "optimizer", "checkpoints",
                                      "activations", "logits", "comm",      "workspace"};
  return category >= 0 && category < LS_CATEGORY_COUNT ? names[category] : "unknown";
}

const char *queue_name(int32_t queue) {
  static const char *const names[] = {"compute", "copy_out", "copy_in", "comm", "disk_out", "disk_in"};
  return queue >= 0 && queue < LS_QUEUE_COUNT ? names[queue] : "unknown";
}

const char *tier_name(int32_t tier) {
  static const char *const names[] = {"device", "host", "disk"};
  return tier >= 0 && tier < LS_TIER_COUNT ? names[tier] : "unknown";
}

}  // namespace longseq
