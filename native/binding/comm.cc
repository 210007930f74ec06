// Communicators for JavaScript: opened, connected to the other ranks, aborted and closed; ops take their numbers.
#include "runtime/comm.h"

#include "binding/common.h"
#include "runtime/registry.h"

namespace longseq::binding {

namespace {

constexpr int64_t kMostRanks = 1 << 20;

// commOpen(transport, rank, size, timeout in ms, this machine's host, the group's name) -> {comm, address}
Napi::Value comm_open(const Napi::CallbackInfo &info) {
  ls_comm_options options{};
  options.size = static_cast<int32_t>(integer(info[2], "size", 1, kMostRanks));
  options.rank = static_cast<int32_t>(integer(info[1], "rank", 0, options.size - 1));
  options.timeout_ms = integer(info[3], "timeout", 1, int64_t{1} << 40);
  const std::string host = string(info[4], "host");
  options.host = host.c_str();
  auto communicator = std::make_shared<Communicator>(string(info[5], "name"), string(info[0], "transport"), options);
  auto result = Napi::Object::New(info.Env());
  result.Set("address",
             Napi::Buffer<char>::Copy(info.Env(), communicator->address().data(), communicator->address().size()));
  result.Set("comm", Napi::Number::New(info.Env(), static_cast<double>(add_communicator(std::move(communicator)))));
  return result;
}

int64_t number_of(const Napi::Value &value) { return integer(value, "comm", 1, int64_t{1} << 52); }

// (comm, addresses): connects one of its ends.
Napi::Value connect_promise(const Napi::CallbackInfo &info, const char *name,
                            void (Communicator::*connect)(const std::string &)) {
  auto communicator = find_communicator(number_of(info[0]), name);
  if (!info[1].IsBuffer()) throw Error(LS_INVALID_ARGUMENT, "addresses is no Buffer");
  const auto bytes = info[1].As<Napi::Buffer<char>>();
  return thread_promise(
      info.Env(),
      [communicator, connect, addresses = std::string(bytes.Data(), bytes.Length())] {
        ((*communicator).*connect)(addresses);
      },
      [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

// commConnect(comm, addresses of all ranks, one behind the other) -> promise
Napi::Value comm_connect(const Napi::CallbackInfo &info) {
  return connect_promise(info, "commConnect", &Communicator::connect);
}

// commOpenDevice(comm, device, larger communicator or 0, color) -> address
Napi::Value comm_open_device(const Napi::CallbackInfo &info) {
  auto communicator = find_communicator(number_of(info[0]), "commOpenDevice");
  const int64_t larger = integer(info[2], "whole", 0, int64_t{1} << 52);
  const auto whole = larger == 0 ? nullptr : find_communicator(larger, "commOpenDevice");
  const std::string address = communicator->open_device(device_of(info[1]).device, whole.get(),
                                                        static_cast<int32_t>(integer(info[3], "color", 0, kMostRanks)));
  return Napi::Buffer<char>::Copy(info.Env(), address.data(), address.size());
}

// commConnectDevice(comm, addresses of all ranks, one behind the other) -> promise
Napi::Value comm_connect_device(const Napi::CallbackInfo &info) {
  return connect_promise(info, "commConnectDevice", &Communicator::connect_device);
}

// commLibrary(device): the name of what would exchange the memory of its ranks; throws where that is missing
Napi::Value comm_library(const Napi::CallbackInfo &info) {
  return Napi::String::New(info.Env(), comm_table_of(device_of(info[0]).device->backend())->name);
}

// commSetTimeout(comm, milliseconds)
Napi::Value comm_set_timeout(const Napi::CallbackInfo &info) {
  find_communicator(number_of(info[0]), "commSetTimeout")
      ->set_timeout(integer(info[1], "timeout", 1, int64_t{1} << 40));
  return info.Env().Undefined();
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

// lastCollectives() -> texts, the newest last
Napi::Value last_noted(const Napi::CallbackInfo &info) {
  const std::vector<std::string> all = last_collectives();
  auto result = Napi::Array::New(info.Env(), all.size());
  for (size_t i = 0; i < all.size(); ++i) result.Set(static_cast<uint32_t>(i), all[i]);
  return result;
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
  method<comm_open_device>(exports, "commOpenDevice");
  method<comm_connect_device>(exports, "commConnectDevice");
  method<comm_library>(exports, "commLibrary");
  method<comm_set_timeout>(exports, "commSetTimeout");
  method<comm_abort>(exports, "commAbort");
  method<comm_close>(exports, "commClose");
  method<comm_compare>(exports, "commCompare");
  method<last_noted>(exports, "lastCollectives");
  method<set_rank>(exports, "setRank");
}

}  // namespace longseq::binding
