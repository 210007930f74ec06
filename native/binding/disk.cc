// The disk tier for JavaScript: opening it in a folder, and transfers between host memory and blocks of it.
#include "runtime/disk.h"

#include "binding/common.h"

namespace longseq::binding {

namespace {

const napi_type_tag kDiskTag = {0x6c6f6e6773657131ULL, 0x6469736b74696572ULL};

struct DiskHandle {
  std::shared_ptr<Device> device;  // outlives the transfers
  std::shared_ptr<DiskFile> file;  // null on meta
};

DiskHandle &disk_of(const Napi::Value &value) {
  bool matches = false;
  if (value.IsExternal()) napi_check_object_type_tag(value.Env(), value, &kDiskTag, &matches);
  if (!matches) throw Error(LS_INVALID_ARGUMENT, "disk is no disk tier of this thread");
  void *pointer = nullptr;
  napi_get_value_external(value.Env(), value, &pointer);
  return *static_cast<DiskHandle *>(pointer);
}

void same_device(const DiskHandle &disk, const TensorHandle &tensor) {
  if (tensor.device != disk.device)
    throw Error(LS_INVALID_ARGUMENT,
                "a tensor on " + tensor.device->name() + " for the disk tier of " + disk.device->name());
}

// openDisk(device, folder)
Napi::Value open_disk_tier(const Napi::CallbackInfo &info) {
  auto device = device_of(info[0]).device;
  auto *handle = new DiskHandle{device, nullptr};
  try {
    handle->file = open_disk(*device, string(info[1], "folder"));
  } catch (...) {
    delete handle;
    throw;
  }
  auto external = Napi::External<DiskHandle>::New(info.Env(), handle, [](Napi::Env, DiskHandle *own) { delete own; });
  napi_type_tag_object(info.Env(), external, &kDiskTag);
  return external;
}

// diskWrite(disk, host tensor, disk tensor)
Napi::Value disk_write(const Napi::CallbackInfo &info) {
  DiskHandle &disk = disk_of(info[0]);
  TensorHandle &from = tensor_of(info[1], "diskWrite: from"), &to = tensor_of(info[2], "diskWrite: to");
  same_device(disk, from);
  same_device(disk, to);
  enqueue_disk_write(*disk.device, disk.file, from.native.tensor, from.storage, to.storage);
  return info.Env().Undefined();
}

// diskRead(disk, disk tensor, host tensor)
Napi::Value disk_read(const Napi::CallbackInfo &info) {
  DiskHandle &disk = disk_of(info[0]);
  TensorHandle &from = tensor_of(info[1], "diskRead: from"), &to = tensor_of(info[2], "diskRead: to");
  same_device(disk, from);
  same_device(disk, to);
  enqueue_disk_read(*disk.device, disk.file, from.storage, to.native.tensor, to.storage);
  return info.Env().Undefined();
}

}  // namespace

void init_disk(Napi::Object exports) {
  method<open_disk_tier>(exports, "openDisk");
  method<disk_write>(exports, "diskWrite");
  method<disk_read>(exports, "diskRead");
}

}  // namespace longseq::binding
