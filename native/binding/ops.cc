// One JavaScript function an op, made from its description: arguments in the order of the op's struct, then the queue.
#include <cctype>
#include <cmath>
#include <cstring>

#include "binding/common.h"
#include "runtime/op.h"

namespace longseq::binding {

namespace {

// rms_norm -> rmsNorm
std::string camel(const char *snake) {
  std::string text;
  for (const char *c = snake; *c; ++c) {
    if (*c == '_' && c[1])
      text += static_cast<char>(std::toupper(static_cast<unsigned char>(*++c)));
    else
      text += *c;
  }
  return text;
}

constexpr size_t kMostArgs = 32;

Napi::Value call_op(const Napi::CallbackInfo &info, const OpDesc &op) {
  alignas(16) char args[sizeof(ls_attention_backward_args)] = {};
  static_assert(sizeof(ls_attention_backward_args) >= sizeof(ls_adamw_args));
  Storage *storages[kMostArgs] = {};
  std::shared_ptr<Device> device;
  size_t index = 0, tensors = 0;
  for (const Field &field : op.fields) {
    const Napi::Value value = info[index++];
    const Name name(op.name, field.name);
    if (field.is_tensor()) {
      auto *slot = reinterpret_cast<ls_tensor *>(args + field.offset);
      if (field.optional() && (value.IsNull() || value.IsUndefined())) {
        storages[tensors++] = nullptr;
        continue;
      }
      TensorHandle &handle = tensor_of(value, name);
      if (!device) device = handle.device;
      if (handle.device != device)
        throw Error(LS_INVALID_ARGUMENT,
                    name.text() + " lies on " + handle.device->name() + ", an argument before it on " + device->name());
      *slot = handle.native.tensor;
      storages[tensors++] = handle.storage;
    } else if (field.kind == FieldKind::integer) {
      *reinterpret_cast<int64_t *>(args + field.offset) =
          integer(value, name, -((int64_t{1} << 53) - 1), (int64_t{1} << 53) - 1);
    } else if (field.kind != FieldKind::optional_number || !value.IsUndefined()) {
      // An absent one is 0.
      *reinterpret_cast<double *>(args + field.offset) = number(value, name);
    }
  }
  int32_t queue = LS_QUEUE_COMPUTE;
  if (!info[index].IsUndefined()) queue = static_cast<int32_t>(integer(info[index], "queue", 0, LS_QUEUE_COUNT - 1));
  if (!device) throw Error(LS_INVALID_ARGUMENT, std::string(op.name) + ": no tensor given");
  enqueue_op(*device, op, args, storages, queue);
  return info.Env().Undefined();
}

Napi::Value trampoline(const Napi::CallbackInfo &info) {
  const auto *op = static_cast<const OpDesc *>(info.Data());
  try {
    return call_op(info, *op);
  } catch (const Error &error) {
    throw AddonState::of(info.Env()).to_error(info.Env(), error.code(), error.message(), error.details);
  }
}

}  // namespace

void init_ops(Napi::Object exports) {
  Napi::Env env = exports.Env();
  auto ops = Napi::Object::New(env);
  for (const OpDesc *op : all_ops()) {
    const std::string name = camel(op->name);
    ops.Set(name, Napi::Function::New(env, trampoline, name, const_cast<OpDesc *>(op)));
  }
  exports.Set("ops", ops);
}

}  // namespace longseq::binding
