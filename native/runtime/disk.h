// The disk tier: a nameless file a store of checkpoints, and its reads and writes on queues of their own.
#ifndef LONGSEQ_RUNTIME_DISK_H
#define LONGSEQ_RUNTIME_DISK_H

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "longseq/backend.h"
#include "runtime/device.h"
#include "runtime/file.h"

namespace longseq {

// A file without a name, so that nothing of it is left when the process ends in whatever way. It bypasses the page
// cache where the file system allows that. Each block that is written has a hash which its read must meet.
class DiskFile {
 public:
  // Makes the folder if there is none, and takes it away again once the file needs it no more. Throws Error(LS_IO).
  explicit DiskFile(std::string folder);
  ~DiskFile();
  DiskFile(const DiskFile &) = delete;
  DiskFile &operator=(const DiskFile &) = delete;

  const std::string &folder() const { return folder_; }
  // Offsets are multiples of 4096, and a block has that much room; pointers and bytes may be anything. A cancelled
  // transfer ends early without an error, and what it leaves is never read. Throw Error(LS_IO); after a failed write
  // the file is empty, so that the disk is not left full.
  void write(int64_t offset, const void *data, int64_t bytes, const CancelCheck &cancelled);
  void read(int64_t offset, void *data, int64_t bytes, const CancelCheck &cancelled);
  // The range holds nothing any more: its space goes back to the file system.
  void forget(int64_t offset, int64_t bytes);

 private:
  struct Block {
    int64_t bytes;
    uint64_t hash;
  };

  void open();
  void make_folders();
  void remove_folders();
  void buffered();
  void transfer(bool writing, int64_t offset, char *data, int64_t bytes);
  [[noreturn]] void fail(const char *what, int64_t bytes, const std::string &why) const;

  std::string folder_;
  std::vector<std::string> made_;  // folders, outermost first
  int descriptor_ = -1;
  bool direct_ = false;
  std::mutex mutex_;  // of blocks_ and direct_: one thread writes, another reads
  std::map<int64_t, Block> blocks_;
};

// The file of a store of checkpoints on this device; on meta none is opened.
std::shared_ptr<DiskFile> open_disk(Device &device, const std::string &folder);

// Enqueues a transfer between contiguous host memory and a block of the disk tier, behind what other queues do with
// either.
void enqueue_disk_write(Device &device, const std::shared_ptr<DiskFile> &file, const ls_tensor &from,
                        Storage *from_storage, Storage *to);
void enqueue_disk_read(Device &device, const std::shared_ptr<DiskFile> &file, Storage *from, const ls_tensor &to,
                       Storage *to_storage);

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_DISK_H
