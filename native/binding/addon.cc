// The addon's entry, the state of an environment, argument checks and promises.
#include <algorithm>
#include <cmath>
#include <thread>

#include "binding/common.h"
#include "runtime/registry.h"

namespace longseq::binding {

namespace {

constexpr double kSafe = 9007199254740991.0;  // 2^53 - 1
const napi_type_tag kTensorTag = {LS_TENSOR_TAG_LOWER, LS_TENSOR_TAG_UPPER};

const char *code_name(ls_status code) {
  switch (code) {
    case LS_INVALID_ARGUMENT:
      return "INVALID_ARGUMENT";
    case LS_OUT_OF_MEMORY:
      return "OUT_OF_MEMORY";
    case LS_UNSUPPORTED:
      return "UNSUPPORTED";
    case LS_IO:
      return "IO";
    case LS_CANCELLED:
      return "CANCELLED";
    default:
      return "DEVICE_FAILURE";
  }
}

std::string type_name(const Napi::Value &value) {
  if (value.IsNull()) return "null";
  if (value.IsUndefined()) return "undefined";
  if (value.IsArray()) return "an array";
  if (value.IsTypedArray()) return "a typed array";
  if (value.IsNumber()) return "the number " + value.ToString().Utf8Value();
  if (value.IsString()) return "a string";
  if (value.IsBoolean()) return "a boolean";
  if (value.IsBigInt()) return "a bigint";
  if (value.IsFunction()) return "a function";
  return "an object";
}

void call_completion(napi_env env, napi_value, void *, void *data) {
  std::unique_ptr<Completion> completion(static_cast<Completion *>(data));
  if (!env) return;  // the environment is going away
  Napi::HandleScope scope(env);
  try {
    (*completion)(env);
  } catch (const Napi::Error &) {
    // A promise that cannot be settled any more (the environment is terminating) has nobody to tell.
  }
}

Napi::Value set_error_factory(const Napi::CallbackInfo &info) {
  AddonState::of(info.Env()).error_factory = Napi::Persistent(info[0].As<Napi::Function>());
  return info.Env().Undefined();
}

Napi::Value live_handles(const Napi::CallbackInfo &info) {
  AddonState &state = AddonState::of(info.Env());
  auto object = Napi::Object::New(info.Env());
  object.Set("live", Napi::Number::New(info.Env(), static_cast<double>(state.live_handles)));
  object.Set("leaked", Napi::Number::New(info.Env(), static_cast<double>(state.leaked_tensors)));
  object.Set("leakedBytes", Napi::Number::New(info.Env(), static_cast<double>(state.leaked_bytes)));
  return object;
}

}  // namespace

AddonState::AddonState(Napi::Env env) : env_(env) {
  napi_value name;
  napi_create_string_utf8(env, "longseq", NAPI_AUTO_LENGTH, &name);
  napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr, call_completion,
                                  &function_);
  napi_unref_threadsafe_function(env, function_);
  // Runs before the function above is torn down (hooks run in reverse), so that no queue thread outlives it.
  env.AddCleanupHook([](AddonState *state) { state->shut_down(); }, this);
}

AddonState::~AddonState() {
  for (void *memory : free_handles_) ::operator delete(memory);
}

Napi::Error AddonState::to_error(Napi::Env env, ls_status code, const std::string &message,
                                 const std::vector<std::pair<std::string, double>> &details) {
  auto particulars = Napi::Object::New(env);
  for (const auto &[key, value] : details) particulars.Set(key, value);
  if (!error_factory.IsEmpty()) {
    Napi::Value made =
        error_factory.Call({Napi::String::New(env, code_name(code)), Napi::String::New(env, message), particulars});
    return Napi::Error(env, made);
  }
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code_name(code)));
  return error;
}

void AddonState::begin_pending() {
  if (pending_++ == 0) napi_ref_threadsafe_function(env_, function_);
}

void AddonState::post(Completion completion) {
  auto *boxed = new Completion([this, completion = std::move(completion)](Napi::Env env) {
    if (--pending_ == 0) napi_unref_threadsafe_function(env, function_);
    completion(env);
  });
  if (napi_call_threadsafe_function(function_, boxed, napi_tsfn_nonblocking) != napi_ok) delete boxed;
}

void AddonState::post_unowned(Completion completion) {
  auto *boxed = new Completion(std::move(completion));
  if (napi_call_threadsafe_function(function_, boxed, napi_tsfn_nonblocking) != napi_ok) delete boxed;
}

void AddonState::add_device(const std::shared_ptr<Device> &device) {
  std::lock_guard<std::mutex> lock(devices_mutex_);
  devices_.push_back(device);
}

std::vector<std::shared_ptr<Device>> AddonState::devices() {
  std::lock_guard<std::mutex> lock(devices_mutex_);
  std::vector<std::shared_ptr<Device>> alive;
  for (auto &weak : devices_)
    if (auto device = weak.lock()) alive.push_back(device);
  return alive;
}

void AddonState::shut_down() {
  forget_signals(this);
  for (auto &device : devices()) {
    device->cancel();
    device->drain();
  }
}

TensorHandle *AddonState::new_handle(const ls_native_tensor &native, Storage *storage,
                                     const std::shared_ptr<Device> &device) {
  void *memory;
  if (free_handles_.empty()) {
    memory = ::operator new(sizeof(TensorHandle));
  } else {
    memory = free_handles_.back();
    free_handles_.pop_back();
  }
  return new (memory) TensorHandle{native, storage, device};
}

void AddonState::delete_handle(TensorHandle *handle) {
  handle->~TensorHandle();
  free_handles_.push_back(handle);
}

Name Name::entry(uint32_t index) const {
  Name name = *this;
  name.index_ = index;
  return name;
}

std::string Name::text() const {
  std::string text = op_ ? std::string(op_) + ": " + what_ : what_;
  if (index_ >= 0) text += format("[%lld]", static_cast<long long>(index_));
  return text;
}

int64_t integer(const Napi::Value &value, const Name &name, int64_t low, int64_t high) {
  double number = 0;
  if (napi_get_value_double(value.Env(), value, &number) != napi_ok) {
    if (value.IsBoolean()) return value.As<Napi::Boolean>().Value() ? 1 : 0;
    throw Error(LS_INVALID_ARGUMENT,
                format("%s is %s, expected an integer", name.text().c_str(), type_name(value).c_str()));
  }
  if (!(std::fabs(number) <= kSafe) || number != std::floor(number))
    throw Error(LS_INVALID_ARGUMENT, format("%s is %.17g, expected a safe integer", name.text().c_str(), number));
  const int64_t result = static_cast<int64_t>(number);
  if (result < low || result > high)
    throw Error(LS_INVALID_ARGUMENT,
                format("%s is %lld, expected %lld to %lld", name.text().c_str(), static_cast<long long>(result),
                       static_cast<long long>(low), static_cast<long long>(high)));
  return result;
}

double number(const Napi::Value &value, const Name &name) {
  double number = 0;
  if (napi_get_value_double(value.Env(), value, &number) != napi_ok)
    throw Error(LS_INVALID_ARGUMENT,
                format("%s is %s, expected a number", name.text().c_str(), type_name(value).c_str()));
  return number;
}

std::string string(const Napi::Value &value, const Name &name) {
  if (!value.IsString())
    throw Error(LS_INVALID_ARGUMENT,
                format("%s is %s, expected a string", name.text().c_str(), type_name(value).c_str()));
  return value.As<Napi::String>().Utf8Value();
}

size_t integers(const Napi::Value &value, const Name &name, int64_t *into, size_t most) {
  if (!value.IsArray())
    throw Error(LS_INVALID_ARGUMENT,
                format("%s is %s, expected an array of integers", name.text().c_str(), type_name(value).c_str()));
  auto array = value.As<Napi::Array>();
  const uint32_t count = array.Length();
  if (count > most)
    throw Error(LS_INVALID_ARGUMENT,
                format("%s has %u entries, at most %zu are possible", name.text().c_str(), count, most));
  for (uint32_t i = 0; i < count; ++i) into[i] = integer(array.Get(i), name.entry(i), 0, static_cast<int64_t>(kSafe));
  return count;
}

DeviceHandle &device_of(const Napi::Value &value) {
  bool matches = false;
  if (value.IsExternal()) napi_check_object_type_tag(value.Env(), value, &kDeviceTag, &matches);
  if (!matches)
    throw Error(LS_INVALID_ARGUMENT, "device is " + type_name(value) + ", expected a longseq device of this thread");
  void *pointer = nullptr;
  napi_get_value_external(value.Env(), value, &pointer);
  return *static_cast<DeviceHandle *>(pointer);
}

TensorHandle &tensor_of(const Napi::Value &value, const Name &name) {
  bool matches = false;
  if (value.IsExternal()) napi_check_object_type_tag(value.Env(), value, &kTensorTag, &matches);
  if (!matches)
    throw Error(LS_INVALID_ARGUMENT, format("%s is %s, expected a longseq tensor of this thread", name.text().c_str(),
                                            type_name(value).c_str()));
  void *pointer = nullptr;
  napi_get_value_external(value.Env(), value, &pointer);
  auto &handle = *static_cast<TensorHandle *>(pointer);
  if (!handle.storage)
    throw Error(LS_INVALID_ARGUMENT,
                format("%s was disposed: its memory went back when its scope ended, when backward() walked "
                       "it, or by dispose()",
                       name.text().c_str()));
  return handle;
}

Napi::Value make_tensor(Napi::Env env, const std::shared_ptr<Device> &device, Storage *storage,
                        const ls_tensor &tensor) {
  AddonState &state = AddonState::of(env);
  TensorHandle *handle = state.new_handle({LS_BACKEND_API_VERSION, tensor, device->name().c_str()}, storage, device);
  ++state.live_handles;
  napi_value value;
  napi_create_external(
      env, handle,
      [](napi_env, void *data, void *hint) {
        auto *handle = static_cast<TensorHandle *>(data);
        auto *owner = static_cast<AddonState *>(hint);
        if (Storage *storage = handle->storage) {
          --owner->live_handles;
          // Scalars are the garbage collector's to free; anything larger was forgotten.
          if (!storage->scalar && storage->references == 1) {
            ++owner->leaked_tensors;
            owner->leaked_bytes += storage->rounded;
          }
          handle->device->release(storage);
        }
        owner->delete_handle(handle);
      },
      &state, &value);
  napi_type_tag_object(env, value, &kTensorTag);
  return Napi::Value(env, value);
}

Napi::Promise queue_promise(Napi::Env env, const std::shared_ptr<Device> &device, int32_t queue, const char *name,
                            std::function<ls_status(const ls_exec &)> work,
                            std::function<Napi::Value(Napi::Env)> result) {
  // What belongs to JavaScript is made and deleted on its thread alone: the queue's thread gets the bare pointer, since
  // a copy in its task could be the last one.
  struct Waiting {
    std::shared_ptr<Device> device;
    Napi::Promise::Deferred deferred;
    std::function<Napi::Value(Napi::Env)> result;
  };
  auto *waiting = new Waiting{device, Napi::Promise::Deferred(env), std::move(result)};
  AddonState *state = &AddonState::of(env);
  state->begin_pending();
  Napi::Promise promise = waiting->deferred.Promise();
  device->run_on_queue(queue, name, std::move(work), [state, waiting](const Outcome &outcome) {
    state->post([state, waiting, outcome](Napi::Env env) {
      const std::unique_ptr<Waiting> mine(waiting);
      if (outcome.status != LS_OK) {
        mine->deferred.Reject(state->to_error(env, outcome.status, outcome.message).Value());
        return;
      }
      try {
        mine->deferred.Resolve(mine->result(env));
      } catch (const Napi::Error &error) {
        mine->deferred.Reject(error.Value());
      }
    });
  });
  return promise;
}

Napi::Promise thread_promise(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> result) {
  struct Job {
    std::function<void()> work;
    std::function<Napi::Value(Napi::Env)> result;
    Napi::Promise::Deferred deferred;
    napi_async_work handle = nullptr;
    bool failed = false;
    Error error{LS_OK, ""};
  };
  auto *job = new Job{std::move(work), std::move(result), Napi::Promise::Deferred(env)};
  Napi::Promise promise = job->deferred.Promise();
  napi_create_async_work(
      env, nullptr, Napi::String::New(env, "longseq"),
      [](napi_env, void *data) {
        auto *job = static_cast<Job *>(data);
        try {
          job->work();
        } catch (const Error &error) {
          job->failed = true;
          job->error = error;
        } catch (const std::exception &error) {
          job->failed = true;
          job->error = Error(LS_DEVICE_FAILURE, error.what());
        }
      },
      [](napi_env raw, napi_status status, void *data) {
        std::unique_ptr<Job> job(static_cast<Job *>(data));
        Napi::Env env(raw);
        Napi::HandleScope scope(env);
        napi_delete_async_work(raw, job->handle);
        if (status == napi_cancelled) return;
        try {
          if (job->failed) {
            job->deferred.Reject(
                AddonState::of(env).to_error(env, job->error.code(), job->error.message(), job->error.details).Value());
          } else {
            job->deferred.Resolve(job->result(env));
          }
        } catch (const Error &error) {
          job->deferred.Reject(AddonState::of(env).to_error(env, error.code(), error.message(), error.details).Value());
        } catch (const Napi::Error &error) {
          job->deferred.Reject(error.Value());
        }
      },
      job, &job->handle);
  napi_queue_async_work(env, job->handle);
  return promise;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new AddonState(env));
  exports.Set("apiVersion", LS_BACKEND_API_VERSION);
  method<set_error_factory>(exports, "setErrorFactory");
  method<live_handles>(exports, "liveHandles");
  init_device(exports);
  init_comm(exports);
  init_disk(exports);
  init_tensor(exports);
  init_ops(exports);
  init_signals(exports);
  init_threads(exports);
  init_safetensors(exports);
  return exports;
}

NODE_API_MODULE(longseq, init)

}  // namespace longseq::binding
