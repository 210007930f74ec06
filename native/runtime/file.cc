// POSIX implementation of the durable file IO in file.h, and the XXH64 hash.
#include "file.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <new>

namespace longseq {
namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87u;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Fu;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9u;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63u;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5u;

inline uint64_t rotate(uint64_t x, int r) { return (x << r) | (x >> (64 - r)); }
inline uint64_t load64(const unsigned char* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return v;  // the package is built for little-endian machines only
}
inline uint32_t load32(const unsigned char* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
inline uint64_t mix(uint64_t lane, uint64_t input) { return rotate(lane + input * kPrime2, 31) * kPrime1; }
inline uint64_t merge(uint64_t hash, uint64_t lane) { return (hash ^ mix(0, lane)) * kPrime1 + kPrime4; }

// A file larger than a quarter of memory would push everything else out of the page cache; a smaller one stays, so
// that other ranks of the node, or the next start, read it from memory.
bool too_large_to_cache(int64_t bytes) {
  struct sysinfo info;
  if (sysinfo(&info) != 0) return false;
  return static_cast<uint64_t>(bytes) > static_cast<uint64_t>(info.totalram) * info.mem_unit / 4;
}

std::string describe_errno(int error_number) {
  char buffer[128];
  const char* text = strerror_r(error_number, buffer, sizeof buffer);
  return std::string(text) + " (" + errno_name(error_number) + ")";
}

}  // namespace

std::string errno_name(int error_number) {
  const char* name = strerrorname_np(error_number);
  return name ? name : std::to_string(error_number);
}

FileStatus FileStatus::io(const std::string& what, int error_number) {
  return {FileFault::kIo, error_number, "cannot " + what + ": " + describe_errno(error_number)};
}

void Xxh64::update(const void* data, int64_t bytes) {
  const unsigned char* p = static_cast<const unsigned char*>(data);
  total_ += static_cast<uint64_t>(bytes);
  if (tail_bytes_ > 0) {
    const int64_t want = 32 - tail_bytes_;
    const int64_t take = bytes < want ? bytes : want;
    std::memcpy(tail_ + tail_bytes_, p, static_cast<size_t>(take));
    tail_bytes_ += static_cast<int>(take);
    p += take;
    bytes -= take;
    if (tail_bytes_ < 32) return;
    for (int i = 0; i < 4; ++i) lanes_[i] = mix(lanes_[i], load64(tail_ + 8 * i));
    tail_bytes_ = 0;
  }
  uint64_t a = lanes_[0], b = lanes_[1], c = lanes_[2], d = lanes_[3];
  for (; bytes >= 32; bytes -= 32, p += 32) {
    a = mix(a, load64(p));
    b = mix(b, load64(p + 8));
    c = mix(c, load64(p + 16));
    d = mix(d, load64(p + 24));
  }
  lanes_[0] = a, lanes_[1] = b, lanes_[2] = c, lanes_[3] = d;
  if (bytes > 0) {
    std::memcpy(tail_, p, static_cast<size_t>(bytes));
    tail_bytes_ = static_cast<int>(bytes);
  }
}

uint64_t Xxh64::digest() const {
  uint64_t hash;
  if (total_ >= 32) {
    hash = rotate(lanes_[0], 1) + rotate(lanes_[1], 7) + rotate(lanes_[2], 12) + rotate(lanes_[3], 18);
    for (uint64_t lane : lanes_) hash = merge(hash, lane);
  } else {
    hash = kPrime5;  // seed 0
  }
  hash += total_;
  const unsigned char* p = tail_;
  int left = tail_bytes_;
  for (; left >= 8; left -= 8, p += 8) hash = rotate(hash ^ mix(0, load64(p)), 27) * kPrime1 + kPrime4;
  if (left >= 4) {
    hash = rotate(hash ^ (load32(p) * kPrime1), 23) * kPrime2 + kPrime3;
    left -= 4, p += 4;
  }
  for (; left > 0; --left, ++p) hash = rotate(hash ^ (*p * kPrime5), 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

std::string Xxh64::hex() const {
  char text[17];
  snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(digest()));
  return text;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File::File(File&& other) noexcept { *this = std::move(other); }

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = other.descriptor_;
    size_ = other.size_;
    drop_behind_ = other.drop_behind_;
    path_ = std::move(other.path_);
    other.descriptor_ = -1;
  }
  return *this;
}

FileStatus File::open_read(const std::string& path, File* file) {
  if (path.find('\0') != std::string::npos) return FileStatus::argument("a file name holds a NUL character");
  int descriptor;
  // O_NONBLOCK: opening a pipe by mistake must not wait for a writer.
  do descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) return FileStatus::io("open " + path, errno);
  File opened;
  opened.descriptor_ = descriptor;
  opened.path_ = path;
  struct stat info;
  if (::fstat(descriptor, &info) != 0) return FileStatus::io("look at " + path, errno);
  if (S_ISDIR(info.st_mode)) return FileStatus::io("read " + path, EISDIR);
  if (!S_ISREG(info.st_mode)) return FileStatus::argument(path + " is not a regular file");
  opened.size_ = info.st_size;
  opened.drop_behind_ = too_large_to_cache(info.st_size);
  ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);
  *file = std::move(opened);
  return FileStatus::success();
}

FileStatus File::create(const std::string& path, File* file) {
  if (path.find('\0') != std::string::npos) return FileStatus::argument("a file name holds a NUL character");
  int descriptor;
  do descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) return FileStatus::io("create " + path, errno);
  File created;
  created.descriptor_ = descriptor;
  created.path_ = path;
  *file = std::move(created);
  return FileStatus::success();
}

// pread instead of a mapping: touching a mapped page of a file that someone truncated meanwhile, or whose disk fails,
// is a SIGBUS that kills the process, where pread returns an error that can be named. It also leaves no pages of the
// file in our resident memory, so there is nothing to drop, and it is one call for 16 MiB instead of 4,096 page faults.
FileStatus File::read_at(int64_t offset, void* destination, int64_t bytes, const CancelCheck& cancelled) const {
  char* out = static_cast<char*>(destination);
  int64_t done = 0;
  while (done < bytes) {
    if (cancelled && cancelled()) return FileStatus::cancelled("reading " + path_ + " was cancelled");
    const int64_t want = bytes - done < kIoChunkBytes ? bytes - done : kIoChunkBytes;
    const ssize_t got = ::pread(descriptor_, out + done, static_cast<size_t>(want), offset + done);
    if (got < 0) {
      if (errno == EINTR) continue;
      return FileStatus::io(
          "read " + std::to_string(want) + " bytes at byte " + std::to_string(offset + done) + " of " + path_, errno);
    }
    if (got == 0) {
      return {FileFault::kIo, EIO,
              "cannot read " + path_ + ": it ends at byte " + std::to_string(offset + done) + " where " +
                  std::to_string(offset + bytes) + " were expected; it was cut off while it was being read"};
    }
    if (drop_behind_) forget(offset + done, got);
    done += got;
  }
  return FileStatus::success();
}

FileStatus File::append(const void* source, int64_t bytes, const CancelCheck& cancelled) {
  const char* in = static_cast<const char*>(source);
  int64_t done = 0;
  while (done < bytes) {
    if (cancelled && cancelled()) return FileStatus::cancelled("writing " + path_ + " was cancelled");
    const int64_t want = bytes - done < kIoChunkBytes ? bytes - done : kIoChunkBytes;
    const ssize_t put = ::write(descriptor_, in + done, static_cast<size_t>(want));
    if (put < 0) {
      if (errno == EINTR) continue;
      return FileStatus::io(
          "write " + std::to_string(want) + " bytes at byte " + std::to_string(size_) + " of " + path_, errno);
    }
    // A short write is no failure yet: the next call writes the rest, or says why it cannot.
    if (put == 0) return FileStatus::io("write " + path_, EIO);
    ::sync_file_range(descriptor_, size_, put, SYNC_FILE_RANGE_WRITE);
    size_ += put;
    done += put;
  }
  return FileStatus::success();
}

FileStatus File::reserve(int64_t bytes) {
  if (bytes <= 0) return FileStatus::success();
  const auto refuse = [&](int error_number, uint64_t free_bytes) {
    return FileStatus::io("reserve " + std::to_string(bytes) + " bytes for " + path_ + " (" +
                              std::to_string(free_bytes) + " bytes are free)",
                          error_number);
  };
  // Asked first, because a reservation that fails half-way has taken all of the disk for a moment.
  struct statvfs space;
  const bool known = ::fstatvfs(descriptor_, &space) == 0 && space.f_blocks > 0;
  const uint64_t free_bytes = known ? static_cast<uint64_t>(space.f_bfree) * space.f_frsize : 0;
  if (known && static_cast<uint64_t>(bytes) > free_bytes) return refuse(ENOSPC, free_bytes);
  int result;
  do result = ::fallocate(descriptor_, FALLOC_FL_KEEP_SIZE, 0, bytes) == 0 ? 0 : errno;
  while (result == EINTR);
  if (result == 0 || result == EOPNOTSUPP || result == ENOSYS || result == EINVAL) return FileStatus::success();
  return refuse(result, free_bytes);
}

void File::forget(int64_t offset, int64_t bytes) const {
  ::posix_fadvise(descriptor_, offset, bytes, POSIX_FADV_DONTNEED);
}

FileStatus File::sync() {
  int result;
  do result = ::fsync(descriptor_) == 0 ? 0 : errno;
  while (result == EINTR);
  if (result != 0)
    return FileStatus::io("bring " + path_ + " (" + std::to_string(size_) + " bytes) to the disk", result);
  if (too_large_to_cache(size_)) forget(0, 0);
  return FileStatus::success();
}

FileStatus File::close() {
  if (descriptor_ < 0) return FileStatus::success();
  const int descriptor = descriptor_;
  descriptor_ = -1;
  // On Linux the descriptor is gone even after EINTR; other errors are late write failures (network file systems).
  if (::close(descriptor) != 0 && errno != EINTR) return FileStatus::io("close " + path_, errno);
  return FileStatus::success();
}

FileStatus hash_file(const std::string& path, FileDigest* digest, const CancelCheck& cancelled) {
  File file;
  if (FileStatus status = File::open_read(path, &file); !status.ok()) return status;
  // Small enough to be hashed from the processor's cache.
  constexpr int64_t kBufferBytes = int64_t{1} << 20;
  std::unique_ptr<char[]> buffer(new (std::nothrow) char[kBufferBytes]);
  if (!buffer) return FileStatus::io("hash " + path, ENOMEM);
  Xxh64 hash;
  for (int64_t at = 0; at < file.size(); at += kBufferBytes) {
    const int64_t bytes = file.size() - at < kBufferBytes ? file.size() - at : kBufferBytes;
    if (FileStatus status = file.read_at(at, buffer.get(), bytes, cancelled); !status.ok()) return status;
    hash.update(buffer.get(), bytes);
  }
  digest->bytes = file.size();
  digest->hash = hash.hex();
  return FileStatus::success();
}

FileStatus verify_file(const std::string& path, const FileDigest& expected, const CancelCheck& cancelled) {
  File file;
  if (FileStatus status = File::open_read(path, &file); !status.ok()) return status;
  if (file.size() != expected.bytes) {
    return FileStatus::format(path + " has " + std::to_string(file.size()) + " bytes where the manifest says " +
                              std::to_string(expected.bytes));
  }
  FileDigest actual;
  if (FileStatus status = hash_file(path, &actual, cancelled); !status.ok()) return status;
  if (actual.hash != expected.hash) {
    return FileStatus::format(path + " has hash " + actual.hash + " where the manifest says " + expected.hash +
                              ": the file is damaged");
  }
  return FileStatus::success();
}

FileStatus sync_path(const std::string& path) {
  int descriptor;
  do descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) return FileStatus::io("open " + path, errno);
  int result;
  do result = ::fsync(descriptor) == 0 ? 0 : errno;
  while (result == EINTR);
  ::close(descriptor);
  // Some network file systems cannot sync a folder and say EINVAL; their renames are durable by other means.
  if (result != 0 && result != EINVAL) return FileStatus::io("bring " + path + " to the disk", result);
  return FileStatus::success();
}

std::string parent_folder(const std::string& path) {
  size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "." : "/";
  const size_t slash = path.rfind('/', end);
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

FileStatus rename_durably(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) return FileStatus::io("rename " + from + " to " + to, errno);
  return sync_path(parent_folder(to));
}

FileStatus exchange_names(const std::string& a, const std::string& b, bool* supported) {
  *supported = true;
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) != 0) {
    if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) {
      *supported = false;
      return FileStatus::success();
    }
    return FileStatus::io("swap " + a + " and " + b, errno);
  }
  const std::string folder_a = parent_folder(a), folder_b = parent_folder(b);
  if (folder_a != folder_b) {
    if (FileStatus status = sync_path(folder_a); !status.ok()) return status;
  }
  return sync_path(folder_b);
}

bool take_lock(int descriptor) { return ::flock(descriptor, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK; }

}  // namespace longseq
