// Safetensors and durable file IO for JavaScript: promises around runtime/safetensors.h and runtime/file.h.
#include "runtime/safetensors.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "binding/common.h"
#include "runtime/file.h"
#include "runtime/op.h"

namespace longseq::binding {

namespace {

const napi_type_tag kReaderTag = {0x6c6f6e6773657131ULL, 0x7361666572643031ULL};
const napi_type_tag kWriterTag = {0x6c6f6e6773657131ULL, 0x7361666577723031ULL};

// Node 20's buffers end at 4 GiB.
constexpr int64_t kMostBufferBytes = (int64_t{4} << 30) - 4096;

struct ReaderBox {
  std::shared_ptr<SafetensorsReader> reader;  // null once closed
};

// The calls of one writer come from worker and queue threads; one at a time gets in.
struct WriterBox {
  std::mutex mutex;
  std::shared_ptr<SafetensorsWriter> writer;
};

// A status as the JavaScript error that lib/errors.ts makes of its code, with errno's name as `details.errno`.
Napi::Error file_error(Napi::Env env, const FileStatus &status) {
  const char *code = "IO";
  if (status.fault == FileFault::kFormat) code = "FORMAT";
  if (status.fault == FileFault::kArgument) code = "INVALID_ARGUMENT";
  if (status.fault == FileFault::kCancelled) code = "CANCELLED";
  AddonState &state = AddonState::of(env);
  auto details = Napi::Object::New(env);
  if (status.error_number != 0) {
    const std::string name = errno_name(status.error_number);
    details.Set("errno", name);
  }
  if (!state.error_factory.IsEmpty()) {
    return Napi::Error(
        env, state.error_factory.Call({Napi::String::New(env, code), Napi::String::New(env, status.message), details}));
  }
  Napi::Error error = Napi::Error::New(env, status.message);
  error.Set("code", Napi::String::New(env, code));
  error.Set("details", details);
  return error;
}

FileStatus out_of_memory(const std::string &path) { return FileStatus::io("find host memory for " + path, ENOMEM); }

// Runs `work` off the event loop; a failure is in the status, so that it keeps its kind.
Napi::Promise file_promise(Napi::Env env, std::string path, std::function<FileStatus()> work,
                           std::function<Napi::Value(Napi::Env)> result) {
  auto status = std::make_shared<FileStatus>();
  return thread_promise(
      env,
      [status, path = std::move(path), work = std::move(work)] {
        try {
          *status = work();
        } catch (const std::bad_alloc &) {
          *status = out_of_memory(path);
        }
      },
      [status, result = std::move(result)](Napi::Env env) -> Napi::Value {
        if (!status->ok()) throw file_error(env, *status);
        return result(env);
      });
}

// Runs `work` in order on the device's compute queue: after everything that writes the tensor, before everything that
// is enqueued later. A file's failure rejects this promise alone; the device is none the worse.
Napi::Promise ordered_promise(Napi::Env env, const std::shared_ptr<Device> &device, const char *name, std::string path,
                              std::function<FileStatus(const ls_exec &)> work) {
  auto status = std::make_shared<FileStatus>();
  return queue_promise(
      env, device, LS_QUEUE_COMPUTE, name,
      [status, path = std::move(path), work = std::move(work)](const ls_exec &exec) {
        try {
          *status = work(exec);
        } catch (const std::bad_alloc &) {
          *status = out_of_memory(path);
        }
        return LS_OK;
      },
      [status](Napi::Env env) -> Napi::Value {
        if (!status->ok()) throw file_error(env, *status);
        return env.Undefined();
      });
}

template <typename Box>
Box &box_of(const Napi::Value &value, const napi_type_tag &tag, const char *what) {
  bool matches = false;
  if (value.IsExternal()) napi_check_object_type_tag(value.Env(), value, &tag, &matches);
  if (!matches) throw Error(LS_INVALID_ARGUMENT, format("expected %s of this thread", what));
  void *pointer = nullptr;
  napi_get_value_external(value.Env(), value, &pointer);
  return **static_cast<std::shared_ptr<Box> *>(pointer);
}

template <typename Box>
std::shared_ptr<Box> shared_box_of(const Napi::Value &value, const napi_type_tag &tag, const char *what) {
  box_of<Box>(value, tag, what);
  void *pointer = nullptr;
  napi_get_value_external(value.Env(), value, &pointer);
  return *static_cast<std::shared_ptr<Box> *>(pointer);
}

template <typename Box>
Napi::Value make_box(Napi::Env env, std::shared_ptr<Box> box, const napi_type_tag &tag) {
  auto external = Napi::External<std::shared_ptr<Box>>::New(
      env, new std::shared_ptr<Box>(std::move(box)), [](Napi::Env, std::shared_ptr<Box> *pointer) { delete pointer; });
  napi_type_tag_object(env, external, &tag);
  return external;
}

std::shared_ptr<SafetensorsReader> reader_of(const Napi::Value &value) {
  auto &box = box_of<ReaderBox>(value, kReaderTag, "an open safetensors file");
  if (!box.reader) throw Error(LS_INVALID_ARGUMENT, "the safetensors file is closed");
  return box.reader;
}

const SafeEntry *entry_of(const SafetensorsReader &reader, const std::string &name) {
  const SafeEntry *entry = reader.find(name);
  if (!entry) throw Error(LS_INVALID_ARGUMENT, format("%s has no tensor \"%s\"", reader.path().c_str(), name.c_str()));
  return entry;
}

SafeDtype dtype_argument(const Napi::Value &value) {
  const std::string name = string(value, "dtype");
  SafeDtype dtype;
  if (!safe_dtype_from_name(name, &dtype))
    throw Error(LS_INVALID_ARGUMENT, format("\"%s\" is no dtype of safetensors", name.c_str()));
  return dtype;
}

SafeDtype safe_dtype_of(int32_t dtype) {
  switch (dtype) {
    case LS_F32:
      return SafeDtype::kF32;
    case LS_BF16:
      return SafeDtype::kBF16;
    case LS_F64:
      return SafeDtype::kF64;
    case LS_I32:
      return SafeDtype::kI32;
    case LS_I64:
      return SafeDtype::kI64;
    default:
      return SafeDtype::kU8;
  }
}

bool contiguous(const ls_tensor &tensor) {
  int64_t stride = 1;
  for (int32_t i = tensor.ndim - 1; i >= 0; --i) {
    if (tensor.sizes[i] != 1 && tensor.strides[i] != stride) return false;
    stride *= tensor.sizes[i];
  }
  return true;
}

// Memory that this processor can read and write through its address.
bool host_memory(const TensorHandle &handle) {
  return std::strcmp(handle.device->backend()->name, "cpu") == 0 || handle.storage->tier != LS_TIER_DEVICE;
}

// Copies that a stream was given before may still be at work on what lies on the host.
FileStatus settle(const Device &device, const ls_exec &exec) {
  const auto synchronize = device.backend()->queue_synchronize;
  if (!synchronize || synchronize(exec.device, exec.stream, exec.error, exec.error_size) == LS_OK)
    return FileStatus::success();
  return FileStatus::argument(device.name() + " has failed: " + exec.error);
}

Napi::Value number_value(Napi::Env env, int64_t value) { return Napi::Number::New(env, static_cast<double>(value)); }

// openSafetensors(path) -> Promise<{handle, entries: [{name, dtype, shape, elements, bytes}], metadata, bytes}>
Napi::Value open_safetensors(const Napi::CallbackInfo &info) {
  const std::string path = string(info[0], "path");
  auto reader = std::make_shared<std::shared_ptr<SafetensorsReader>>();
  return file_promise(
      info.Env(), path, [path, reader] { return SafetensorsReader::open(path, reader.get()); },
      [reader](Napi::Env env) -> Napi::Value {
        const SafetensorsReader &file = **reader;
        auto entries = Napi::Array::New(env, file.entries().size());
        for (uint32_t i = 0; i < file.entries().size(); ++i) {
          Napi::HandleScope scope(env);
          const SafeEntry &from = file.entries()[i];
          auto entry = Napi::Object::New(env);
          auto shape = Napi::Array::New(env, from.shape.size());
          for (uint32_t d = 0; d < from.shape.size(); ++d) shape.Set(d, number_value(env, from.shape[d]));
          entry.Set("name", from.name);
          entry.Set("dtype", safe_dtype_name(from.dtype));
          entry.Set("shape", shape);
          entry.Set("elements", number_value(env, from.elements));
          entry.Set("bytes", number_value(env, from.bytes));
          entries.Set(i, entry);
        }
        // Pairs, because "__proto__" is a legal key.
        auto metadata = Napi::Array::New(env, file.metadata().size());
        for (uint32_t i = 0; i < file.metadata().size(); ++i) {
          Napi::HandleScope scope(env);
          auto pair = Napi::Array::New(env, 2);
          pair.Set(0u, file.metadata()[i].first);
          pair.Set(1u, file.metadata()[i].second);
          metadata.Set(i, pair);
        }
        auto result = Napi::Object::New(env);
        result.Set("handle", make_box(env, std::make_shared<ReaderBox>(ReaderBox{*reader}), kReaderTag));
        result.Set("entries", entries);
        result.Set("metadata", metadata);
        result.Set("bytes", number_value(env, file.file_bytes()));
        return result;
      });
}

// closeSafetensors(handle): reads under way keep the file open until they end.
Napi::Value close_safetensors(const Napi::CallbackInfo &info) {
  box_of<ReaderBox>(info[0], kReaderTag, "a safetensors file").reader.reset();
  return info.Env().Undefined();
}

// readSafetensors(handle, name, begin, tensor) -> Promise: fills the tensor from element `begin` on.
Napi::Value read_safetensors(const Napi::CallbackInfo &info) {
  auto reader = reader_of(info[0]);
  const SafeEntry *entry = entry_of(*reader, string(info[1], "name"));
  const int64_t begin = integer(info[2], "begin", 0, int64_t{1} << 53);
  TensorHandle &handle = tensor_of(info[3], "target");
  const ls_tensor tensor = handle.native.tensor;
  if (!contiguous(tensor))
    throw Error(LS_INVALID_ARGUMENT,
                format("tensor \"%s\" cannot be read into a tensor that is not contiguous", entry->name.c_str()));
  const SafeDtype dtype = safe_dtype_of(tensor.dtype);
  const int64_t count = elements(tensor);
  if (FileStatus status = reader->check_range(*entry, begin, count, dtype); !status.ok())
    throw file_error(info.Env(), status);
  ++handle.storage->version;
  handle.storage->host_values.reset();
  const bool nothing = count == 0 || handle.device->meta();
  const bool host = host_memory(handle);
  Device *device = handle.device.get();
  device->order(LS_QUEUE_COMPUTE, handle.storage, true);
  return ordered_promise(
      info.Env(), handle.device, "read_safetensors", reader->path(),
      [reader, entry, begin, count, dtype, tensor, nothing, host, device](const ls_exec &exec) {
        if (nothing) return FileStatus::success();
        const CancelCheck cancelled = [device] { return device->cancelled(); };
        if (host) {
          if (FileStatus status = settle(*device, exec); !status.ok()) return status;
          return reader->read_into(*entry, begin, count, tensor.data, dtype, cancelled);
        }
        return reader->read_through(
            *entry, begin, count, dtype,
            [&](const void *bytes, int64_t at, int64_t size) {
              if (device->backend()->upload(&exec, static_cast<char *>(tensor.data) + at, bytes, size) != LS_OK)
                return FileStatus::argument(reader->path() + ": tensor \"" + entry->name +
                                            "\" could not be copied to " + device->name() + ": " + exec.error);
              return FileStatus::success();
            },
            cancelled);
      });
}

// readSafetensorsBytes(handle, name, begin, count, dtype) -> Promise<ArrayBuffer>
Napi::Value read_safetensors_bytes(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  auto reader = reader_of(info[0]);
  const SafeEntry *entry = entry_of(*reader, string(info[1], "name"));
  const int64_t begin = integer(info[2], "begin", 0, int64_t{1} << 53);
  const int64_t count = integer(info[3], "count", 0, int64_t{1} << 53);
  const SafeDtype dtype = dtype_argument(info[4]);
  if (FileStatus status = reader->check_range(*entry, begin, count, dtype); !status.ok()) throw file_error(env, status);
  int64_t bits = 0;
  if (__builtin_mul_overflow(count, static_cast<int64_t>(safe_dtype_bits(dtype)), &bits) || bits / 8 > kMostBufferBytes)
    throw Error(LS_INVALID_ARGUMENT,
                format("tensor \"%s\": %lld values of %s do not fit a JavaScript buffer; read parts",
                       entry->name.c_str(), static_cast<long long>(count), safe_dtype_name(dtype)));
  auto buffer = Napi::ArrayBuffer::New(env, static_cast<size_t>(bits / 8));
  auto reference = std::make_shared<Napi::Reference<Napi::ArrayBuffer>>(Napi::Persistent(buffer));
  void *destination = buffer.Data();
  return file_promise(
      env, reader->path(),
      [reader, entry, begin, count, dtype, destination] {
        return reader->read_into(*entry, begin, count, destination, dtype);
      },
      [reference](Napi::Env) -> Napi::Value { return reference->Value(); });
}

// createSafetensors(path, [{name, dtype, shape}], [[key, value]]) -> Promise<{handle, bytes}>
Napi::Value create_safetensors(const Napi::CallbackInfo &info) {
  const std::string path = string(info[0], "path");
  if (!info[1].IsArray() || !info[2].IsArray())
    throw Error(LS_INVALID_ARGUMENT, "createSafetensors: expected an array of tensors and an array of metadata");
  auto list = info[1].As<Napi::Array>();
  std::vector<SafeDeclaration> tensors(list.Length());
  for (uint32_t i = 0; i < list.Length(); ++i) {
    Napi::HandleScope scope(info.Env());
    Napi::Value item = list.Get(i);
    if (!item.IsObject()) throw Error(LS_INVALID_ARGUMENT, format("tensors[%u] is no object", i));
    auto object = item.As<Napi::Object>();
    tensors[i].name = string(object.Get("name"), "name");
    tensors[i].dtype = dtype_argument(object.Get("dtype"));
    int64_t sizes[64];
    const size_t dims = integers(object.Get("shape"), ("shape of " + tensors[i].name).c_str(), sizes, 64);
    tensors[i].shape.assign(sizes, sizes + dims);
  }
  auto pairs = info[2].As<Napi::Array>();
  SafeMetadata metadata;
  for (uint32_t i = 0; i < pairs.Length(); ++i) {
    Napi::Value item = pairs.Get(i);
    if (!item.IsArray()) throw Error(LS_INVALID_ARGUMENT, format("metadata[%u] is no pair", i));
    auto pair = item.As<Napi::Array>();
    metadata.emplace_back(string(pair.Get(0u), "a metadata key"), string(pair.Get(1u), "a metadata value"));
  }
  auto box = std::make_shared<WriterBox>();
  return file_promise(
      info.Env(), path,
      [path, tensors = std::move(tensors), metadata = std::move(metadata), box]() mutable {
        return SafetensorsWriter::create(path, std::move(tensors), metadata, &box->writer);
      },
      [box](Napi::Env env) -> Napi::Value {
        auto result = Napi::Object::New(env);
        result.Set("bytes", number_value(env, box->writer->file_bytes()));
        result.Set("handle", make_box(env, box, kWriterTag));
        return result;
      });
}

// writeSafetensors(handle, name, tensor or ArrayBufferView) -> Promise. A view's bytes are in the declared dtype, and
// it must not be changed before the promise is settled.
Napi::Value write_safetensors(const Napi::CallbackInfo &info) {
  auto box = shared_box_of<WriterBox>(info[0], kWriterTag, "a safetensors writer");
  const std::string name = string(info[1], "name");
  const std::string path = box->writer->path();
  if (info[2].IsTypedArray() || info[2].IsDataView()) {
    const SafeDeclaration *declared = nullptr;
    for (const SafeDeclaration &tensor : box->writer->tensors())
      if (tensor.name == name) declared = &tensor;
    if (!declared)
      throw Error(LS_INVALID_ARGUMENT, format("%s: tensor \"%s\" was not declared", path.c_str(), name.c_str()));
    Napi::ArrayBuffer buffer;
    size_t offset, bytes;
    if (info[2].IsTypedArray()) {
      auto array = info[2].As<Napi::TypedArray>();
      buffer = array.ArrayBuffer(), offset = array.ByteOffset(), bytes = array.ByteLength();
    } else {
      auto array = info[2].As<Napi::DataView>();
      buffer = array.ArrayBuffer(), offset = array.ByteOffset(), bytes = array.ByteLength();
    }
    const int64_t bits = safe_dtype_bits(declared->dtype);
    const int64_t total = static_cast<int64_t>(bytes) * 8;
    if (total % bits != 0)
      throw Error(LS_INVALID_ARGUMENT, format("%s: tensor \"%s\": %zu bytes are no whole number of %s values",
                                              path.c_str(), name.c_str(), bytes, safe_dtype_name(declared->dtype)));
    const void *source = static_cast<const char *>(buffer.Data()) + offset;
    const SafeDtype dtype = declared->dtype;
    const int64_t count = total / bits;
    auto reference = std::make_shared<Napi::Reference<Napi::ArrayBuffer>>(Napi::Persistent(buffer));
    return file_promise(
        info.Env(), path,
        [box, name, source, count, dtype] {
          std::lock_guard<std::mutex> lock(box->mutex);
          return box->writer->write(name, source, count, dtype);
        },
        [reference](Napi::Env env) -> Napi::Value { return env.Undefined(); });
  }
  TensorHandle &handle = tensor_of(info[2], "source");
  const ls_tensor tensor = handle.native.tensor;
  if (!contiguous(tensor))
    throw Error(LS_INVALID_ARGUMENT, format("%s: tensor \"%s\" is not contiguous", path.c_str(), name.c_str()));
  if (handle.device->meta())
    throw Error(LS_INVALID_ARGUMENT, format("%s: tensor \"%s\" is on the meta device: it has no values to write",
                                            path.c_str(), name.c_str()));
  const SafeDtype dtype = safe_dtype_of(tensor.dtype);
  const int64_t count = elements(tensor);
  const bool host = host_memory(handle);
  Device *device = handle.device.get();
  device->order(LS_QUEUE_COMPUTE, handle.storage, false);
  return ordered_promise(
      info.Env(), handle.device, "write_safetensors", path,
      [box, name, tensor, dtype, count, host, device, path](const ls_exec &exec) {
        std::lock_guard<std::mutex> lock(box->mutex);
        const CancelCheck cancelled = [device] { return device->cancelled(); };
        if (host || count == 0) {
          if (FileStatus status = settle(*device, exec); !status.ok()) {
            box->writer->abandon();
            return status;
          }
          return box->writer->write(name, tensor.data, count, dtype, cancelled);
        }
        const int64_t item = safe_dtype_bits(dtype) / 8;
        const int64_t piece = std::min(count, kIoChunkBytes / item);
        const std::unique_ptr<char[]> buffer(new char[static_cast<size_t>(piece * item)]);
        for (int64_t done = 0; done < count; done += piece) {
          const int64_t take = std::min(piece, count - done);
          const char *source = static_cast<const char *>(tensor.data) + done * item;
          if (device->backend()->download(&exec, buffer.get(), source, take * item) != LS_OK) {
            box->writer->abandon();
            return FileStatus::argument(path + ": tensor \"" + name + "\" could not be copied from " + device->name() +
                                        ": " + exec.error);
          }
          if (FileStatus status = box->writer->write(name, buffer.get(), take, dtype, cancelled); !status.ok())
            return status;
        }
        return FileStatus::success();
      });
}

Napi::Value digest_value(Napi::Env env, const FileDigest &digest) {
  auto result = Napi::Object::New(env);
  result.Set("bytes", number_value(env, digest.bytes));
  result.Set("hash", digest.hash);
  return result;
}

// finishSafetensors(handle) -> Promise<{bytes, hash}>
Napi::Value finish_safetensors(const Napi::CallbackInfo &info) {
  auto box = shared_box_of<WriterBox>(info[0], kWriterTag, "a safetensors writer");
  auto digest = std::make_shared<FileDigest>();
  return file_promise(
      info.Env(), box->writer->path(),
      [box, digest] {
        std::lock_guard<std::mutex> lock(box->mutex);
        return box->writer->finish(digest.get());
      },
      [digest](Napi::Env env) { return digest_value(env, *digest); });
}

// abandonSafetensors(handle) -> Promise: removes what was written; harmless after finishSafetensors.
Napi::Value abandon_safetensors(const Napi::CallbackInfo &info) {
  auto box = shared_box_of<WriterBox>(info[0], kWriterTag, "a safetensors writer");
  return file_promise(
      info.Env(), box->writer->path(),
      [box] {
        std::lock_guard<std::mutex> lock(box->mutex);
        box->writer->abandon();
        return FileStatus::success();
      },
      [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

// hashFile(path) -> Promise<{bytes, hash}>
Napi::Value hash_file_value(const Napi::CallbackInfo &info) {
  const std::string path = string(info[0], "path");
  auto digest = std::make_shared<FileDigest>();
  return file_promise(
      info.Env(), path, [path, digest] { return hash_file(path, digest.get()); },
      [digest](Napi::Env env) { return digest_value(env, *digest); });
}

// syncPath(path) -> Promise: fsync of a file or folder.
Napi::Value sync_path_value(const Napi::CallbackInfo &info) {
  const std::string path = string(info[0], "path");
  return file_promise(
      info.Env(), path, [path] { return sync_path(path); },
      [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

// exchangeNames(a, b) -> Promise<boolean>: swaps two names in one step; false where the file system cannot.
Napi::Value exchange_names_value(const Napi::CallbackInfo &info) {
  const std::string a = string(info[0], "a"), b = string(info[1], "b");
  auto supported = std::make_shared<bool>(false);
  return file_promise(
      info.Env(), b, [a, b, supported] { return exchange_names(a, b, supported.get()); },
      [supported](Napi::Env env) -> Napi::Value { return Napi::Boolean::New(env, *supported); });
}

// takeLock(descriptor) -> boolean: false where another descriptor has the file or folder.
Napi::Value take_lock_value(const Napi::CallbackInfo &info) {
  return Napi::Boolean::New(info.Env(), take_lock(static_cast<int>(integer(info[0], "descriptor", 0, 1 << 30))));
}

}  // namespace

void init_safetensors(Napi::Object exports) {
  method<open_safetensors>(exports, "openSafetensors");
  method<close_safetensors>(exports, "closeSafetensors");
  method<read_safetensors>(exports, "readSafetensors");
  method<read_safetensors_bytes>(exports, "readSafetensorsBytes");
  method<create_safetensors>(exports, "createSafetensors");
  method<write_safetensors>(exports, "writeSafetensors");
  method<finish_safetensors>(exports, "finishSafetensors");
  method<abandon_safetensors>(exports, "abandonSafetensors");
  method<hash_file_value>(exports, "hashFile");
  method<sync_path_value>(exports, "syncPath");
  method<exchange_names_value>(exports, "exchangeNames");
  method<take_lock_value>(exports, "takeLock");
}

}  // namespace longseq::binding
