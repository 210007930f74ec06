// Nameless files, aligned transfers, and the tasks that carry them.
#include "runtime/disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "runtime/error.h"
#include "runtime/op.h"

namespace longseq {

namespace {

// What O_DIRECT may ask of addresses, offsets and sizes.
constexpr int64_t kAlign = 4096;
constexpr int64_t kBounceBytes = 1 << 20;
// Where no nameless file can be made, one with a name that starts so is, for a moment.
constexpr char kPrefix[] = ".longseq-offload-";

const char kAdvice[] =
    "free some space or mend the disk, name another folder in memory.checkpoint.directory, or set "
    "memory.checkpoint.offload to host or none";

int retry(int (*call)(const char *, int), const char *path, int flags) {
  int result;
  do result = call(path, flags);
  while (result < 0 && errno == EINTR);
  return result;
}

std::string words(int error_number) {
  char buffer[128];
  return std::string(strerror_r(error_number, buffer, sizeof buffer)) + " (" + errno_name(error_number) + ")";
}

struct Bounce {
  Bounce() : data(static_cast<char *>(std::aligned_alloc(kAlign, kBounceBytes))) {
    if (!data) throw Error(LS_OUT_OF_MEMORY, "no memory for a buffer of the disk tier");
  }
  ~Bounce() { std::free(data); }
  Bounce(const Bounce &) = delete;
  Bounce &operator=(const Bounce &) = delete;
  char *data;
};

}  // namespace

DiskFile::DiskFile(std::string folder) : folder_(std::move(folder)) {
  if (folder_.empty() || folder_.find('\0') != std::string::npos)
    throw Error(LS_INVALID_ARGUMENT, "memory.checkpoint.directory is no name of a folder");
  // Another rank may take the folder away between our making it and our opening a file in it.
  for (int attempt = 0; descriptor_ < 0; ++attempt) {
    make_folders();
    open();
    if (descriptor_ >= 0) break;
    const int error_number = errno;
    remove_folders();
    if (error_number == ENOENT && attempt < 20) continue;
    throw Error(LS_IO,
                format("memory.checkpoint.directory: no file for checkpoints can be made in %s: %s; name a folder that "
                       "can be written, or set memory.checkpoint.offload to host or none",
                       folder_.c_str(), words(error_number).c_str()));
  }
  remove_folders();
}

DiskFile::~DiskFile() {
  ::close(descriptor_);
  // A file system that keeps open files under a name (NFS) did not let go of the folder before.
  remove_folders();
}

void DiskFile::make_folders() {
  std::vector<std::string> missing;
  for (std::string path = folder_;; path = parent_folder(path)) {
    struct stat status;
    if (::stat(path.c_str(), &status) == 0) {
      if (S_ISDIR(status.st_mode)) break;
      throw Error(LS_IO, format("memory.checkpoint.directory: %s cannot be a folder: %s is a file; name another one",
                                folder_.c_str(), path.c_str()));
    }
    if (errno != ENOENT) break;  // mkdir or open will say what it is
    missing.push_back(path);
  }
  for (auto path = missing.rbegin(); path != missing.rend(); ++path) {
    if (::mkdir(path->c_str(), 0777) == 0) {
      made_.push_back(*path);
    } else if (errno != EEXIST) {
      const int error_number = errno;
      remove_folders();
      throw Error(LS_IO,
                  format("memory.checkpoint.directory: %s cannot be made, its part %s is refused: %s; name a folder "
                         "that can be written, or set memory.checkpoint.offload to host or none",
                         folder_.c_str(), path->c_str(), words(error_number).c_str()));
    }
  }
}

void DiskFile::remove_folders() {
  while (!made_.empty() && (::rmdir(made_.back().c_str()) == 0 || errno == ENOENT)) made_.pop_back();
}

void DiskFile::open() {
  const auto plain = [](const char *path, int flags) { return ::open(path, flags | O_RDWR | O_CLOEXEC, 0600); };
  const auto both = [&](const char *path, int flags) {
    direct_ = true;
    descriptor_ = retry(plain, path, flags | O_DIRECT);
    if (descriptor_ < 0 && errno == EINVAL) {
      direct_ = false;
      descriptor_ = retry(plain, path, flags);
    }
  };
  both(folder_.c_str(), O_TMPFILE);
  if (descriptor_ >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return;
  // A process that died at the wrong moment left its name: everyone unlinks before using, so anyone may.
  if (DIR *const found = ::opendir(folder_.c_str())) {
    while (const dirent *const entry = ::readdir(found))
      if (std::strncmp(entry->d_name, kPrefix, sizeof kPrefix - 1) == 0) ::unlinkat(dirfd(found), entry->d_name, 0);
    ::closedir(found);
  }
  static std::atomic<int> files{0};
  const std::string path = folder_ + "/" + kPrefix + std::to_string(::getpid()) + "-" + std::to_string(files++);
  both(path.c_str(), O_CREAT | O_EXCL);
  const int error_number = errno;
  ::unlink(path.c_str());
  errno = error_number;
}

void DiskFile::fail(const char *what, int64_t bytes, const std::string &why) const {
  struct statvfs space;
  const bool known = ::fstatvfs(descriptor_, &space) == 0;
  throw Error(LS_IO, format("%s of a checkpoint cannot be %s the disk tier in %s: %s%s; %s", bytes_text(bytes).c_str(),
                            what, folder_.c_str(), why.c_str(),
                            known ? format(" (%s are free there)",
                                           bytes_text(static_cast<int64_t>(space.f_bavail * space.f_frsize)).c_str())
                                        .c_str()
                                  : "",
                            kAdvice));
}

void DiskFile::buffered() {
  std::lock_guard<std::mutex> lock(mutex_);
  direct_ = false;
  ::fcntl(descriptor_, F_SETFL, ::fcntl(descriptor_, F_GETFL) & ~O_DIRECT);
}

void DiskFile::transfer(bool writing, int64_t offset, char *data, int64_t bytes) {
  const char *const what = writing ? "written to" : "read from";
  int64_t done = 0;
  while (done < bytes) {
    const auto want = static_cast<size_t>(std::min(bytes - done, kIoChunkBytes));
    const ssize_t moved = writing ? ::pwrite(descriptor_, data + done, want, offset + done)
                                  : ::pread(descriptor_, data + done, want, offset + done);
    if (moved < 0) {
      if (errno == EINTR) continue;
      if (errno == EINVAL && direct_) {
        buffered();  // the file system let us open the file so, but asks for more than 4096
        continue;
      }
      fail(what, bytes, words(errno));
    }
    if (moved == 0)
      fail(what, bytes,
           writing ? "nothing more is taken (" + errno_name(ENOSPC) + ")"
                   : format("the file ends %lld bytes early: it was cut off, or its disk is gone",
                            static_cast<long long>(bytes - done)));
    done += moved;
    if (done < bytes && done % kAlign != 0 && direct_) buffered();
  }
}

void DiskFile::write(int64_t offset, const void *data, int64_t bytes, const CancelCheck &cancelled) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    blocks_.erase(offset);
  }
  Xxh64 hash;
  std::unique_ptr<Bounce> bounce;
  const char *const from = static_cast<const char *>(data);
  const bool aligned = reinterpret_cast<uintptr_t>(from) % kAlign == 0;
  try {
    for (int64_t done = 0; done < bytes;) {
      if (cancelled && cancelled()) return;
      const int64_t whole = (bytes - done) / kAlign * kAlign;
      if (aligned && whole > 0) {
        const int64_t piece = std::min(whole, kIoChunkBytes);
        transfer(true, offset + done, const_cast<char *>(from) + done, piece);
        hash.update(from + done, piece);
        done += piece;
        continue;
      }
      if (!bounce) bounce = std::make_unique<Bounce>();
      const int64_t piece = std::min(bytes - done, kBounceBytes);
      const int64_t rounded = (piece + kAlign - 1) / kAlign * kAlign;
      std::memcpy(bounce->data, from + done, static_cast<size_t>(piece));
      std::memset(bounce->data + piece, 0, static_cast<size_t>(rounded - piece));
      transfer(true, offset + done, bounce->data, rounded);
      hash.update(bounce->data, piece);
      done += piece;
    }
  } catch (const Error &) {
    // Nobody will read it: a full disk must not stay full because of it.
    std::lock_guard<std::mutex> lock(mutex_);
    blocks_.clear();
    if (::ftruncate(descriptor_, 0) != 0) errno = 0;
    throw;
  }
  // Without O_DIRECT the pages would push others out of the page cache.
  if (!direct_) ::sync_file_range(descriptor_, offset, bytes, SYNC_FILE_RANGE_WRITE);
  std::lock_guard<std::mutex> lock(mutex_);
  blocks_[offset] = {bytes, hash.digest()};
}

void DiskFile::read(int64_t offset, void *data, int64_t bytes, const CancelCheck &cancelled) {
  Block block{};
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = blocks_.find(offset); found != blocks_.end()) block = found->second;
  }
  if (block.bytes != bytes) fail("read from", bytes, "it was not written, because its write failed or was cancelled");
  Xxh64 hash;
  std::unique_ptr<Bounce> bounce;
  char *const to = static_cast<char *>(data);
  const bool aligned = reinterpret_cast<uintptr_t>(to) % kAlign == 0;
  for (int64_t done = 0; done < bytes;) {
    if (cancelled && cancelled()) return;
    const int64_t whole = (bytes - done) / kAlign * kAlign;
    int64_t piece;
    if (aligned && whole > 0) {
      piece = std::min(whole, kIoChunkBytes);
      transfer(false, offset + done, to + done, piece);
    } else {
      if (!bounce) bounce = std::make_unique<Bounce>();
      piece = std::min(bytes - done, kBounceBytes);
      transfer(false, offset + done, bounce->data, (piece + kAlign - 1) / kAlign * kAlign);
      std::memcpy(to + done, bounce->data, static_cast<size_t>(piece));
    }
    hash.update(to + done, piece);
    done += piece;
  }
  if (!direct_) ::posix_fadvise(descriptor_, offset, bytes, POSIX_FADV_DONTNEED);
  if (hash.digest() != block.hash)
    fail("read from", bytes, "other bytes come back than were written: the disk or its file system is failing");
}

void DiskFile::forget(int64_t offset, int64_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    blocks_.erase(blocks_.lower_bound(offset), blocks_.lower_bound(offset + bytes));
  }
  // A file system without holes keeps the space until the file is closed.
  if (::fallocate(descriptor_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes) != 0) errno = 0;
}

std::shared_ptr<DiskFile> open_disk(Device &device, const std::string &folder) {
  if (device.meta()) return nullptr;
  auto file = std::make_shared<DiskFile>(folder);
  device.add_disk(file);
  return file;
}

namespace {

void enqueue_transfer(Device &device, const std::shared_ptr<DiskFile> &file, bool writing, const ls_tensor &memory,
                      Storage *memory_storage, Storage *disk) {
  const char *const name = writing ? "disk_write" : "disk_read";
  const Check c(name);
  c.that(memory_storage->tier == LS_TIER_HOST && disk->tier == LS_TIER_DISK, "goes between host and disk tensors");
  c.contiguous("the host tensor", memory);
  const auto bytes = static_cast<int64_t>(tensor_bytes(memory));
  c.that(bytes == disk->bytes, format("the host tensor has %lld bytes, the block on the disk %lld",
                                      static_cast<long long>(bytes), static_cast<long long>(disk->bytes)));
  const int32_t queue = writing ? LS_QUEUE_DISK_OUT : LS_QUEUE_DISK_IN;
  // Memory that no other queue has used yet may have been somebody else's: compute alone knows when that was over.
  const auto &uses = memory_storage->last_use;
  if (std::all_of(std::begin(uses), std::end(uses), [](uint64_t sequence) { return sequence == 0; }))
    device.wait_for(queue, LS_QUEUE_COMPUTE);
  device.order(queue, memory_storage, !writing);
  device.order(queue, disk, writing);
  Task task;
  task.name = name;
  task.bytes = bytes;
  task.recorded = true;
  if (bytes > 0 && !device.meta()) {
    const int64_t offset = device.allocator(LS_TIER_DISK).offset_of(disk->data);
    void *const data = memory.data;
    Device *const owner = &device;
    task.run = [file, writing, offset, data, bytes, owner](const ls_exec &) {
      const CancelCheck cancelled = [owner] { return owner->cancelled(); };
      if (writing)
        file->write(offset, data, bytes, cancelled);
      else
        file->read(offset, data, bytes, cancelled);
      return LS_OK;
    };
  } else {
    task.run = [](const ls_exec &) { return LS_OK; };
  }
  const uint64_t sequence = device.enqueue(queue, std::move(task));
  if (device.log()) device.log()->worked(queue, device.durations().seconds({queue_name(queue)}, bytes));
  if (!writing) ++memory_storage->version;
  device.used(memory_storage, queue, sequence, !writing);
  device.used(disk, queue, sequence, writing);
  OpCount &count = device.counts()[name];
  ++count.calls;
  count.bytes += static_cast<double>(bytes);
}

}  // namespace

void enqueue_disk_write(Device &device, const std::shared_ptr<DiskFile> &file, const ls_tensor &from,
                        Storage *from_storage, Storage *to) {
  enqueue_transfer(device, file, true, from, from_storage, to);
}

void enqueue_disk_read(Device &device, const std::shared_ptr<DiskFile> &file, Storage *from, const ls_tensor &to,
                       Storage *to_storage) {
  enqueue_transfer(device, file, false, to, to_storage, from);
}

}  // namespace longseq
