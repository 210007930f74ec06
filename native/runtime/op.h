// Op descriptions: for each op of the backend table its arguments, checks, cost and workspace, once for all backends.
#ifndef LONGSEQ_RUNTIME_OP_H
#define LONGSEQ_RUNTIME_OP_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "longseq/backend.h"
#include "runtime/device.h"
#include "runtime/error.h"

namespace longseq {

enum class FieldKind { input, optional_input, output, inout, optional_inout, integer, number, optional_number };

// One argument from JavaScript, in the order of the op's struct.
struct Field {
  const char *name;
  FieldKind kind;
  size_t offset;
  bool is_tensor() const {
    return kind != FieldKind::integer && kind != FieldKind::number && kind != FieldKind::optional_number;
  }
  bool writes() const {
    return kind == FieldKind::output || kind == FieldKind::inout || kind == FieldKind::optional_inout;
  }
  bool optional() const { return kind == FieldKind::optional_input || kind == FieldKind::optional_inout; }
};

struct Cost {
  double flops = 0;  // of matrix products; the rest of the arithmetic is not counted anywhere
  double bytes = 0;  // read and written in device memory
};

struct OpDesc {
  const char *name;  // snake_case; camelCase in JavaScript
  size_t args_bytes;
  std::vector<Field> fields;
  // Throws Error(LS_INVALID_ARGUMENT) or Error(LS_UNSUPPORTED), naming op, argument and shapes.
  void (*check)(const void *args);
  Cost (*cost)(const void *args);
  int64_t (*workspace)(const void *args, const Profile &profile);  // null: none
  // Fills fields that come from a tensor's host values (cu_seqlens); null: none.
  void (*prepare)(void *args, Storage *const *storages);
  ls_status (*call)(const ls_backend *backend, const ls_exec *exec, const void *args);
};

const std::vector<const OpDesc *> &all_ops();
const OpDesc *find_op(const std::string &name);

// Called by the static registrars in ops/*.cc.
struct RegisterOp {
  explicit RegisterOp(OpDesc desc);
};

// Enqueues the op: takes workspace, counts cost, bumps versions of what it writes.
// args: the op's struct, filled; storages: one a tensor field, null where absent.
void enqueue_op(Device &device, const OpDesc &desc, const void *args, Storage *const *storages, int32_t queue);

// ---- helpers for checks and costs ----

inline int64_t elements(const ls_tensor &t) {
  int64_t count = 1;
  for (int32_t i = 0; i < t.ndim; ++i) count *= t.sizes[i];
  return count;
}
inline double tensor_bytes(const ls_tensor &t) {
  return t.present ? static_cast<double>(elements(t)) * static_cast<double>(dtype_bytes(t.dtype)) : 0.0;
}
inline std::string text(const ls_tensor &t) { return std::string(dtype_name(t.dtype)) + shape_text(t.sizes, t.ndim); }
inline bool is_float(const ls_tensor &t) { return t.dtype == LS_F32 || t.dtype == LS_BF16; }

// Collects the checks of one op; every message opens with its name.
class Check {
 public:
  explicit Check(const char *op) : op_(op) {}
  [[noreturn]] void fail(const std::string &message) const {
    throw Error(LS_INVALID_ARGUMENT, op_ + std::string(": ") + message);
  }
  [[noreturn]] void unsupported(const std::string &message) const {
    throw Error(LS_UNSUPPORTED, op_ + std::string(": ") + message);
  }
  void that(bool condition, const std::string &message) const {
    if (!condition) fail(message);
  }
  void ndim(const char *name, const ls_tensor &t, int32_t ndim) const {
    if (t.ndim != ndim)
      fail(format("%s has shape %s, expected %d dims", name, shape_text(t.sizes, t.ndim).c_str(), ndim));
  }
  void dtype(const char *name, const ls_tensor &t, int32_t dtype) const {
    if (t.dtype != dtype) fail(format("%s is %s, expected %s", name, dtype_name(t.dtype), dtype_name(dtype)));
  }
  void floating(const char *name, const ls_tensor &t) const {
    if (!is_float(t)) fail(format("%s is %s, expected float32 or bfloat16", name, dtype_name(t.dtype)));
  }
  void size(const char *name, const ls_tensor &t, int32_t dim, int64_t expected, const char *of) const {
    if (t.sizes[dim] != expected)
      fail(format("%s has shape %s, expected size %lld in dim %d (%s)", name, shape_text(t.sizes, t.ndim).c_str(),
                  static_cast<long long>(expected), dim, of));
  }
  void same_shape(const char *name, const ls_tensor &t, const char *other_name, const ls_tensor &other) const {
    bool same = t.ndim == other.ndim;
    for (int32_t i = 0; same && i < t.ndim; ++i) same = t.sizes[i] == other.sizes[i];
    if (!same)
      fail(format("%s has shape %s, expected that of %s, %s", name, shape_text(t.sizes, t.ndim).c_str(), other_name,
                  shape_text(other.sizes, other.ndim).c_str()));
  }
  void scalar(const char *name, const ls_tensor &t, int32_t dtype) const {
    if (elements(t) != 1)
      fail(format("%s has shape %s, expected one element", name, shape_text(t.sizes, t.ndim).c_str()));
    this->dtype(name, t, dtype);
  }
  void contiguous_last(const char *name, const ls_tensor &t) const {
    if (t.ndim > 0 && t.sizes[t.ndim - 1] > 1 && t.strides[t.ndim - 1] != 1)
      fail(format("%s must be contiguous in its last dim, its stride there is %lld", name,
                  static_cast<long long>(t.strides[t.ndim - 1])));
  }
  void contiguous(const char *name, const ls_tensor &t) const {
    int64_t stride = 1;
    for (int32_t i = t.ndim - 1; i >= 0; --i) {
      if (t.sizes[i] > 1 && t.strides[i] != stride) fail(format("%s must be contiguous", name));
      stride *= t.sizes[i];
    }
  }
  void positive_eps(double eps) const {
    if (!(eps >= 0) || eps > 1) fail(format("eps is %g, expected 0 <= eps <= 1", eps));
  }

 private:
  std::string op_;
};

template <class Args>
using EntryOf = ls_status (*)(const ls_exec *, const Args *);

// Binds a description to its entry of the table: Member is &ls_backend::name.
template <class Args, EntryOf<Args> ls_backend::*Member>
ls_status call_entry(const ls_backend *backend, const ls_exec *exec, const void *args) {
  if (!(backend->*Member)) {
    std::snprintf(exec->error, exec->error_size, "the %s backend lacks this op", backend->name);
    return LS_UNSUPPORTED;
  }
  return (backend->*Member)(exec, static_cast<const Args *>(args));
}

// A field of Args by its member, e.g. LS_FIELD(ls_rms_norm_args, input, x).
#define LS_FIELD(Args, kind, member) \
  ::longseq::Field { #member, ::longseq::FieldKind::kind, offsetof(Args, member) }

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_OP_H
