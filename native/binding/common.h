// What every binding file shares: the state of an environment, handles, argument checks, typed errors, promises.
#ifndef LONGSEQ_BINDING_COMMON_H
#define LONGSEQ_BINDING_COMMON_H

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "longseq/backend.h"
#include "runtime/device.h"
#include "runtime/error.h"

namespace longseq::binding {

// What marks an external as a Device of ours.
inline constexpr napi_type_tag kDeviceTag = {0x6c6f6e6773657131ULL, 0x6465766963653031ULL};

// A device as JavaScript holds it.
struct DeviceHandle {
  std::shared_ptr<Device> device;
};

// A tensor as JavaScript holds it. Opens with what tensor.native() promises to other addons.
struct TensorHandle {
  ls_native_tensor native;
  Storage *storage;  // null once released
  std::shared_ptr<Device> device;
};

// Work to be done on the JavaScript thread, posted from a queue or a worker thread.
using Completion = std::function<void(Napi::Env env)>;

// One JavaScript environment (the main thread or a worker).
class AddonState {
 public:
  explicit AddonState(Napi::Env env);
  ~AddonState();

  static AddonState &of(Napi::Env env) { return *env.GetInstanceData<AddonState>(); }

  // Throws the JavaScript error for a native one.
  Napi::Error to_error(Napi::Env env, ls_status code, const std::string &message,
                       const std::vector<std::pair<std::string, double>> &details = {});

  // A promise that some other thread settles through post(). Keeps the process alive until then.
  void begin_pending();
  // From any thread. Every begin_pending() is answered by exactly one post().
  void post(Completion completion);
  // From any thread, for news that nothing waits for.
  void post_unowned(Completion completion);

  void add_device(const std::shared_ptr<Device> &device);
  std::vector<std::shared_ptr<Device>> devices();
  // Cancels and empties all queues: nothing of this environment runs afterwards.
  void shut_down();

  // Memory of tensor handles, of which a step makes thousands.
  TensorHandle *new_handle(const ls_native_tensor &native, Storage *storage, const std::shared_ptr<Device> &device);
  void delete_handle(TensorHandle *handle);

  Napi::FunctionReference error_factory;
  int64_t live_handles = 0;
  int64_t leaked_tensors = 0;  // found by the garbage collector instead of being disposed
  int64_t leaked_bytes = 0;

 private:
  Napi::Env env_;
  napi_threadsafe_function function_ = nullptr;
  int64_t pending_ = 0;
  std::vector<void *> free_handles_;
  std::mutex devices_mutex_;  // the signal thread looks too
  std::vector<std::weak_ptr<Device>> devices_;
};

// Runs a function body, turning native errors into typed JavaScript ones: no exception leaves a callback.
template <Napi::Value (*Body)(const Napi::CallbackInfo &)>
Napi::Value guarded(const Napi::CallbackInfo &info) {
  try {
    return Body(info);
  } catch (const Error &error) {
    throw AddonState::of(info.Env()).to_error(info.Env(), error.code(), error.message(), error.details);
  } catch (const Napi::Error &) {
    throw;
  } catch (const std::bad_alloc &) {
    throw AddonState::of(info.Env()).to_error(info.Env(), LS_OUT_OF_MEMORY, "the process is out of host memory");
  } catch (const std::exception &error) {
    throw AddonState::of(info.Env()).to_error(info.Env(), LS_DEVICE_FAILURE, error.what());
  }
}

template <Napi::Value (*Body)(const Napi::CallbackInfo &)>
void method(Napi::Object exports, const char *name) {
  exports.Set(name, Napi::Function::New<guarded<Body>>(exports.Env(), name));
}

// ---- arguments ----

// What a message calls an argument. Its text is made only where there is a message: these checks run for every op.
class Name {
 public:
  Name(const char *what) : what_(what) {}  // NOLINT: a text is a name
  Name(const char *op, const char *what) : op_(op), what_(what) {}
  Name entry(uint32_t index) const;
  std::string text() const;

 private:
  const char *op_ = nullptr, *what_;
  int64_t index_ = -1;
};

// A safe integer in low..high.
int64_t integer(const Napi::Value &value, const Name &name, int64_t low, int64_t high);
double number(const Napi::Value &value, const Name &name);
std::string string(const Napi::Value &value, const Name &name);
// Non-negative sizes, at most `most`, into `into`; returns how many.
size_t integers(const Napi::Value &value, const Name &name, int64_t *into, size_t most);
DeviceHandle &device_of(const Napi::Value &value);
// Refuses what is no tensor of this environment and what was disposed.
TensorHandle &tensor_of(const Napi::Value &value, const Name &name);

// A new tensor handle; takes over one reference of the storage.
Napi::Value make_tensor(Napi::Env env, const std::shared_ptr<Device> &device, Storage *storage,
                        const ls_tensor &tensor);

// ---- promises ----

// Runs `work` on a queue of the device, in order; resolves with result(env), which may throw, on the JavaScript thread.
// The device lives until then: `work` holds it by address, since its last owner must not be its own queue.
Napi::Promise queue_promise(Napi::Env env, const std::shared_ptr<Device> &device, int32_t queue, const char *name,
                            std::function<ls_status(const ls_exec &)> work,
                            std::function<Napi::Value(Napi::Env)> result);
// Runs `work` (which may throw Error) on a thread of its own, off the event loop; resolves with result(env).
Napi::Promise thread_promise(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> result);

// The signal thread must not use an environment that is gone.
void forget_signals(AddonState *state);

// Each file of the binding adds its functions.
void init_device(Napi::Object exports);
void init_comm(Napi::Object exports);
void init_disk(Napi::Object exports);
void init_tensor(Napi::Object exports);
void init_ops(Napi::Object exports);
void init_signals(Napi::Object exports);
void init_threads(Napi::Object exports);
void init_safetensors(Napi::Object exports);

}  // namespace longseq::binding

#endif  // LONGSEQ_BINDING_COMMON_H
