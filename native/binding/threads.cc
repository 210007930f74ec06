// Which cores the threads of this process run on.
#include <dirent.h>
#include <sched.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "binding/common.h"

namespace longseq::binding {

namespace {

// pinThreads(cores) -> how many of them this process may use: all its threads, and those that they start from then on,
// run on these alone. 0: none of them, and nothing was changed.
Napi::Value pin_threads(const Napi::CallbackInfo &info) {
  if (!info[0].IsArray()) throw Error(LS_INVALID_ARGUMENT, "pinThreads: expected a list of cores");
  const auto list = info[0].As<Napi::Array>();
  cpu_set_t allowed, wanted;
  CPU_ZERO(&wanted);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
    throw Error(LS_IO, format("pinThreads: the system does not say which cores may be used: %s", std::strerror(errno)));
  for (uint32_t i = 0; i < list.Length(); i++) {
    const Napi::Value value = list[i];
    const auto core = integer(value, "pinThreads: a core", 0, 1 << 20);
    if (core < CPU_SETSIZE && CPU_ISSET(core, &allowed)) CPU_SET(core, &wanted);
  }
  const int count = CPU_COUNT(&wanted);
  if (count == 0) return Napi::Number::New(info.Env(), 0);
  DIR *tasks = opendir("/proc/self/task");
  if (!tasks) throw Error(LS_IO, format("pinThreads: /proc/self/task: %s", std::strerror(errno)));
  while (const dirent *entry = readdir(tasks)) {
    const int thread = std::atoi(entry->d_name);
    // One that has ended meanwhile needs no core.
    if (thread > 0) sched_setaffinity(thread, sizeof wanted, &wanted);
  }
  closedir(tasks);
  return Napi::Number::New(info.Env(), count);
}

}  // namespace

void init_threads(Napi::Object exports) { method<pin_threads>(exports, "pinThreads"); }

}  // namespace longseq::binding
