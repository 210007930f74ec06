// SIGINT and SIGTERM for the command line: a native thread cancels the queues at once, whatever JavaScript is doing.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "binding/common.h"

namespace longseq::binding {

namespace {

int pipe_ends[2] = {-1, -1};
std::mutex mutex;
AddonState *listener = nullptr;
std::shared_ptr<Napi::FunctionReference> callback;
std::atomic<bool> installed{false};

void on_signal(int number) {
  const char byte = static_cast<char>(number);
  const ssize_t written = write(pipe_ends[1], &byte, 1);
  (void)written;
}

void watch() {
  bool first = true;
  for (;;) {
    char byte;
    const ssize_t got = read(pipe_ends[0], &byte, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return;
    if (!first) _exit(128 + byte);  // a second signal aborts
    first = false;
    std::lock_guard<std::mutex> lock(mutex);
    if (!listener) _exit(128 + byte);
    for (auto &device : listener->devices()) device->cancel();
    auto function = callback;
    const int number = byte;
    listener->post_unowned([function, number](Napi::Env env) { function->Call({Napi::Number::New(env, number)}); });
  }
}

// installSignals(callback(number)): once, by the command line only.
Napi::Value install_signals(const Napi::CallbackInfo &info) {
  if (!info[0].IsFunction()) throw Error(LS_INVALID_ARGUMENT, "installSignals: expected a function");
  if (installed.exchange(true))
    throw Error(LS_INVALID_ARGUMENT, "installSignals: signal handlers are installed already");
  {
    std::lock_guard<std::mutex> lock(mutex);
    listener = &AddonState::of(info.Env());
    callback = std::make_shared<Napi::FunctionReference>(Napi::Persistent(info[0].As<Napi::Function>()));
  }
  if (pipe2(pipe_ends, O_CLOEXEC) != 0) throw Error(LS_IO, "installSignals: no pipe");
  std::thread(watch).detach();
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  return info.Env().Undefined();
}

}  // namespace

void forget_signals(AddonState *state) {
  std::lock_guard<std::mutex> lock(mutex);
  if (listener == state) {
    listener = nullptr;
    callback.reset();
  }
}

void init_signals(Napi::Object exports) { method<install_signals>(exports, "installSignals"); }

}  // namespace longseq::binding
