// Communicators for JavaScript: opened, connected to the other ranks, aborted and closed; ops take their numbers.
#include "runtime/comm.h"

#include "binding/common.h"

namespace longseq::binding {

namespace {

constexpr int64_t kMostRanks = 1 << 20;

// commOpen(transport, rank, size, timeout in ms, this machine's host) -> {comm, address}
Napi::Value comm_open(const Napi::CallbackInfo &info) {
  ls_comm_options options{};
  options.size = static_cast<int32_t>(integer(info[2], "size", 1, kMostRanks));
  options.rank = static_cast<int32_t>(integer(info[1], "rank", 0, options.size - 1));
  options.timeout_ms = integer(info[3], "timeout", 1, int64_t{1} << 40);
  const std::string host = string(info[4], "host");
  options.host = host.c_str();
  auto communicator = std::make_shared<Communicator>(string(info[0], "transport"), options);
  auto result = Napi::Object::New(info.Env());
  result.Set("address",
             Napi::Buffer<char>::Copy(info.Env(), communicator->address().data(), communicator->address().size()));
  result.Set("comm", Napi::Number::New(info.Env(), static_cast<double>(add_communicator(std::move(communicator)))));
  return result;
}

int64_t number_of(const Napi::Value &value) { return integer(value, "comm", 1, int64_t{1} << 52); }

// commConnect(comm, addresses of all ranks, one behind the other) -> promise
Napi::Value comm_connect(const Napi::CallbackInfo &info) {
  auto communicator = find_communicator(number_of(info[0]), "commConnect");
  if (!info[1].IsBuffer()) throw Error(LS_INVALID_ARGUMENT, "addresses is no Buffer");
  const auto bytes = info[1].As<Napi::Buffer<char>>();
  return thread_promise(
      info.Env(),
      [communicator, addresses = std::string(bytes.Data(), bytes.Length())] { communicator->connect(addresses); },
      [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

// commAbort(comm)
Napi::Value comm_abort(const Napi::CallbackInfo &info) {
  find_communicator(number_of(info[0]), "commAbort")->abort();
  return info.Env().Undefined();
}

// commClose(comm); what runs holds on to it.
Napi::Value comm_close(const Napi::CallbackInfo &info) {
  remove_communicator(number_of(info[0]));
  return info.Env().Undefined();
}

// commCompare(device, comm, whether): from this place of the comm queue on
Napi::Value comm_compare(const Napi::CallbackInfo &info) {
  auto communicator = find_communicator(number_of(info[1]), "commCompare");
  const bool on = info[2].ToBoolean();
  device_of(info[0]).device->run_on_queue(LS_QUEUE_COMM, "compare", [communicator, on](const ls_exec &) {
    communicator->compare(on);
    return LS_OK;
  });
  return info.Env().Undefined();
}

// setRank(rank): for messages
Napi::Value set_rank(const Napi::CallbackInfo &info) {
  set_process_rank(static_cast<int32_t>(integer(info[0], "rank", 0, kMostRanks)));
  return info.Env().Undefined();
}

}  // namespace

void init_comm(Napi::Object exports) {
  method<comm_open>(exports, "commOpen");
  method<comm_connect>(exports, "commConnect");
  method<comm_abort>(exports, "commAbort");
  method<comm_close>(exports, "commClose");
  method<comm_compare>(exports, "commCompare");
  method<set_rank>(exports, "setRank");
}

}  // namespace longseq::binding
