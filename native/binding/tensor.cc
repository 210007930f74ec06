// Tensors for JavaScript: allocation, views, release, and the copies between typed arrays and devices.
#include <algorithm>
#include <cstring>

#include "binding/common.h"
#include "runtime/op.h"

namespace longseq::binding {

namespace {

constexpr int64_t kMostBytes = int64_t{1} << 52;

// Product of sizes and the element's bytes, refused where no address space could hold it.
int64_t checked_bytes(const ls_tensor &tensor) {
  int64_t bytes = dtype_bytes(tensor.dtype);
  for (int32_t i = 0; i < tensor.ndim; ++i) {
    if (__builtin_mul_overflow(bytes, tensor.sizes[i], &bytes) || bytes > kMostBytes)
      throw Error(LS_INVALID_ARGUMENT, format("shape %s of %s is larger than any memory",
                                              shape_text(tensor.sizes, tensor.ndim).c_str(), dtype_name(tensor.dtype)));
  }
  return bytes;
}

bool is_contiguous(const ls_tensor &t) {
  int64_t stride = 1;
  for (int32_t i = t.ndim - 1; i >= 0; --i) {
    if (t.sizes[i] != 1 && t.strides[i] != stride) return false;
    stride *= t.sizes[i];
  }
  return true;
}

void in_memory(const TensorHandle &handle) {
  if (handle.storage->tier == LS_TIER_DISK)
    throw Error(LS_INVALID_ARGUMENT, "the tensor lies on the disk, where its values cannot be reached");
}

// empty(device, sizes, dtype, category, tier)
Napi::Value empty(const Napi::CallbackInfo &info) {
  auto device = device_of(info[0]).device;
  ls_tensor tensor{};
  tensor.ndim = static_cast<int32_t>(integers(info[1], "shape", tensor.sizes, LS_MAX_DIMS));
  tensor.dtype = static_cast<int32_t>(integer(info[2], "dtype", LS_F32, LS_U8));
  const auto category = static_cast<int32_t>(integer(info[3], "category", 0, LS_CATEGORY_COUNT - 1));
  const auto tier = static_cast<int32_t>(integer(info[4], "tier", 0, LS_TIER_COUNT - 1));
  Storage *storage = device->allocate(checked_bytes(tensor), category, tier);
  tensor.data = storage->data;
  tensor.category = category;
  tensor.present = 1;
  int64_t stride = 1;
  for (int32_t i = tensor.ndim - 1; i >= 0; --i) {
    tensor.strides[i] = stride;
    stride *= tensor.sizes[i];
  }
  return make_tensor(info.Env(), device, storage, tensor);
}

// countAs(tensor, category): of its bytes, and so of those of its views.
Napi::Value count_as(const Napi::CallbackInfo &info) {
  TensorHandle &handle = tensor_of(info[0], "tensor");
  const auto category = static_cast<int32_t>(integer(info[1], "category", 0, LS_CATEGORY_COUNT - 1));
  handle.device->recategorize(handle.storage, category);
  handle.native.tensor.category = category;
  return info.Env().Undefined();
}

// view(tensor, sizes, strides, offset): offset in elements from the view's own first element.
Napi::Value view(const Napi::CallbackInfo &info) {
  TensorHandle &base = tensor_of(info[0], "tensor");
  ls_tensor tensor = base.native.tensor;
  std::fill_n(tensor.sizes, LS_MAX_DIMS, 0);
  std::fill_n(tensor.strides, LS_MAX_DIMS, 0);
  tensor.ndim = static_cast<int32_t>(integers(info[1], "shape", tensor.sizes, LS_MAX_DIMS));
  const size_t strides = integers(info[2], "strides", tensor.strides, LS_MAX_DIMS);
  const int64_t safe = (int64_t{1} << 53) - 1;
  const int64_t offset = integer(info[3], "offset", 0, safe);
  if (static_cast<int32_t>(strides) != tensor.ndim)
    throw Error(LS_INVALID_ARGUMENT, "view: strides and shape differ in length");
  checked_bytes(tensor);
  const int64_t item = dtype_bytes(tensor.dtype);
  const int64_t start =
      item == 0 ? 0 : (static_cast<char *>(base.native.tensor.data) - static_cast<char *>(base.storage->data)) / item;
  __int128 last = static_cast<__int128>(start) + offset;
  bool none = false;
  for (int32_t i = 0; i < tensor.ndim; ++i) {
    if (tensor.sizes[i] == 0)
      none = true;
    else
      last += static_cast<__int128>(tensor.sizes[i] - 1) * tensor.strides[i];
  }
  if (!none && last >= base.storage->bytes / item)
    throw Error(LS_INVALID_ARGUMENT,
                format("view: shape %s at offset %lld leaves the tensor's %lld elements",
                       shape_text(tensor.sizes, tensor.ndim).c_str(), static_cast<long long>(start + offset),
                       static_cast<long long>(base.storage->bytes / item)));
  tensor.data = none ? base.native.tensor.data : static_cast<char *>(base.native.tensor.data) + offset * item;
  base.device->retain(base.storage);
  return make_tensor(info.Env(), base.device, base.storage, tensor);
}

Napi::Value release(const Napi::CallbackInfo &info) {
  TensorHandle &handle = tensor_of(info[0], "tensor");
  Storage *storage = handle.storage;
  handle.storage = nullptr;
  --AddonState::of(info.Env()).live_handles;
  handle.device->release(storage);
  return info.Env().Undefined();
}

Napi::Value version(const Napi::CallbackInfo &info) {
  return Napi::Number::New(info.Env(), static_cast<double>(tensor_of(info[0], "tensor").storage->version));
}

// Whether two tensors share their bytes.
Napi::Value same_storage(const Napi::CallbackInfo &info) {
  return Napi::Boolean::New(info.Env(), tensor_of(info[0], "tensor").storage == tensor_of(info[1], "other").storage);
}

// Handles that share the tensor's bytes, this one included.
Napi::Value references(const Napi::CallbackInfo &info) {
  return Napi::Number::New(info.Env(), static_cast<double>(tensor_of(info[0], "tensor").storage->references));
}

// write(tensor, typed array, keep host values)
Napi::Value write(const Napi::CallbackInfo &info) {
  TensorHandle &handle = tensor_of(info[0], "tensor");
  in_memory(handle);
  if (!info[1].IsTypedArray()) throw Error(LS_INVALID_ARGUMENT, "data must be a typed array");
  auto array = info[1].As<Napi::TypedArray>();
  const ls_tensor &tensor = handle.native.tensor;
  const int64_t bytes = elements(tensor) * dtype_bytes(tensor.dtype);
  if (static_cast<int64_t>(array.ByteLength()) != bytes)
    throw Error(LS_INVALID_ARGUMENT, format("data has %zu bytes, a tensor of shape %s and dtype %s has %lld",
                                            array.ByteLength(), shape_text(tensor.sizes, tensor.ndim).c_str(),
                                            dtype_name(tensor.dtype), static_cast<long long>(bytes)));
  if (!is_contiguous(tensor)) throw Error(LS_INVALID_ARGUMENT, "write: the tensor is not contiguous");
  ++handle.storage->version;
  if (bytes == 0) return info.Env().Undefined();
  const auto *source = static_cast<const char *>(array.ArrayBuffer().Data()) + array.ByteOffset();
  handle.storage->host_values.reset();  // no longer what the device holds
  if (info[2].ToBoolean() && tensor.dtype == LS_I64 && bytes == handle.storage->bytes) {
    auto values = std::make_shared<std::vector<int64_t>>(static_cast<size_t>(bytes / 8));
    std::memcpy(values->data(), source, static_cast<size_t>(bytes));
    handle.storage->host_values = std::move(values);
  }
  if (handle.device->meta()) return info.Env().Undefined();
  // JavaScript may change its array before the queue gets here.
  auto staging = std::shared_ptr<char[]>(new char[static_cast<size_t>(bytes)]);
  std::memcpy(staging.get(), source, static_cast<size_t>(bytes));
  handle.device->order(LS_QUEUE_COMPUTE, handle.storage, true);
  void *destination = tensor.data;
  const ls_backend *backend = handle.device->backend();
  handle.device->run_on_queue(LS_QUEUE_COMPUTE, "upload", [backend, destination, staging, bytes](const ls_exec &exec) {
    return backend->upload(&exec, destination, staging.get(), bytes);
  });
  return info.Env().Undefined();
}

// read(tensor) -> Promise<ArrayBuffer>; the tensor is contiguous.
Napi::Value read(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  TensorHandle &handle = tensor_of(info[0], "tensor");
  in_memory(handle);
  const ls_tensor &tensor = handle.native.tensor;
  if (!is_contiguous(tensor)) throw Error(LS_INVALID_ARGUMENT, "read: the tensor is not contiguous");
  const int64_t bytes = elements(tensor) * dtype_bytes(tensor.dtype);
  if (bytes > (int64_t{4} << 30) - 4096)
    throw Error(LS_INVALID_ARGUMENT, format("read: %s do not fit a JavaScript buffer; read a part of the tensor",
                                            bytes_text(bytes).c_str()));
  auto buffer = Napi::ArrayBuffer::New(env, static_cast<size_t>(bytes));
  auto reference = std::make_shared<Napi::Reference<Napi::ArrayBuffer>>(Napi::Persistent(buffer));
  void *destination = buffer.Data();
  const void *source = tensor.data;
  const ls_backend *backend = handle.device->backend();
  handle.device->order(LS_QUEUE_COMPUTE, handle.storage, false);
  return queue_promise(
      env, handle.device, LS_QUEUE_COMPUTE, "download",
      [backend, destination, source, bytes](const ls_exec &exec) {
        return bytes == 0 ? LS_OK : backend->download(&exec, destination, source, bytes);
      },
      [reference](Napi::Env) -> Napi::Value { return reference->Value(); });
}

}  // namespace

void init_tensor(Napi::Object exports) {
  method<empty>(exports, "empty");
  method<count_as>(exports, "countAs");
  method<view>(exports, "view");
  method<release>(exports, "release");
  method<version>(exports, "version");
  method<same_storage>(exports, "sameStorage");
  method<references>(exports, "references");
  method<write>(exports, "write");
  method<read>(exports, "read");
}

}  // namespace longseq::binding
