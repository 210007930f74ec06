// Durable file IO below the event loop: positioned reads, streaming writes with a running hash, fsync, atomic renames.
//
// Nothing here throws, nothing here knows JavaScript; every function may block and is meant for a worker or queue
// thread. Every failure says which file, which operation, how many bytes, and the operating system's own words.
#ifndef LONGSEQ_RUNTIME_FILE_H
#define LONGSEQ_RUNTIME_FILE_H

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

namespace longseq {

enum class FileFault {
  kNone = 0,
  kIo = 1,        // the operating system refused: error_number holds errno
  kFormat = 2,    // the bytes are not what the format allows
  kArgument = 3,  // the caller asked for something that makes no sense
  kCancelled = 4
};

// What came of an operation; message is one line for the user, empty where it went well.
struct [[nodiscard]] FileStatus {
  FileFault fault = FileFault::kNone;
  int error_number = 0;
  std::string message;

  bool ok() const { return fault == FileFault::kNone; }
  static FileStatus success() { return {}; }
  static FileStatus format(std::string message) { return {FileFault::kFormat, 0, std::move(message)}; }
  static FileStatus argument(std::string message) { return {FileFault::kArgument, 0, std::move(message)}; }
  static FileStatus cancelled(std::string message) { return {FileFault::kCancelled, 0, std::move(message)}; }
  // "cannot WHAT: No space left on device (ENOSPC)"
  static FileStatus io(const std::string& what, int error_number);
};

// "ENOSPC" and so on.
std::string errno_name(int error_number);

// Asked now and then by long operations, from their own thread; true ends them with kCancelled. Empty: never.
using CancelCheck = std::function<bool()>;

// Bytes moved by one read or write call: large enough for full disk speed, small enough to notice a cancel soon.
inline constexpr int64_t kIoChunkBytes = int64_t{16} << 20;

// XXH64 (Yann Collet's published specification) with seed 0, fed piece by piece.
//
// A manifest's hash has to notice torn writes, bit rot and truncation, not an adversary: whoever can change a
// checkpoint can change its manifest too. So the choice is for speed at a full 64 bits: a damaged file passes with
// probability 5e-20, one core hashes faster than any disk writes, where SHA-256 without hardware help would make a
// save of 100 GB five minutes longer. And `xxhsum -H64` gives the same digits, so a user can check a file by hand.
class Xxh64 {
 public:
  void update(const void* data, int64_t bytes);
  uint64_t digest() const;
  // 16 lower-case hexadecimal digits.
  std::string hex() const;

 private:
  uint64_t lanes_[4] = {0x60EA27EEADC0B5D6u, 0xC2B2AE3D27D4EB4Fu, 0u, 0x61C8864E7A143579u};
  uint64_t total_ = 0;
  unsigned char tail_[32] = {};
  int tail_bytes_ = 0;
};

// An open file that closes itself. Reads are positioned (no shared cursor), so one File may be read by many threads.
class File {
 public:
  File() = default;
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Opens a regular file for reading; a folder, pipe or device is refused.
  static FileStatus open_read(const std::string& path, File* file);
  // Creates the file, or empties it, for appending with `append`.
  static FileStatus create(const std::string& path, File* file);

  // Reads exactly `bytes` at `offset`; an end of file before that is a kIo failure that says how much was there.
  // `cancelled` is asked between chunks.
  FileStatus read_at(int64_t offset, void* destination, int64_t bytes, const CancelCheck& cancelled = {}) const;
  // Writes all of it at the end and starts its way to the disk, so that the fsync at the end is short.
  FileStatus append(const void* source, int64_t bytes, const CancelCheck& cancelled = {});
  // Reserves disk space for a file of `bytes`, so that a disk that is too small is found before the work is done.
  // A file system that cannot reserve is no failure.
  FileStatus reserve(int64_t bytes);
  // Lets the page cache forget a range that will not be read again soon. A hint: never fails.
  void forget(int64_t offset, int64_t bytes) const;
  FileStatus sync();
  FileStatus close();

  bool is_open() const { return descriptor_ >= 0; }
  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // when opened, or what has been appended

 private:
  int descriptor_ = -1;
  int64_t size_ = 0;
  bool drop_behind_ = false;  // too large a share of memory to leave in the page cache
  std::string path_;
};

struct FileDigest {
  int64_t bytes = 0;
  std::string hash;  // Xxh64::hex
};

// Size and hash of a whole file.
FileStatus hash_file(const std::string& path, FileDigest* digest, const CancelCheck& cancelled = {});
// Reads the file and compares; a difference is kFormat and names both values.
FileStatus verify_file(const std::string& path, const FileDigest& expected, const CancelCheck& cancelled = {});

// fsync of a file or a folder by path (a folder: the names in it become durable).
FileStatus sync_path(const std::string& path);
// The folder part of a path, "." if there is none.
std::string parent_folder(const std::string& path);
// Renames and makes the new name durable. Replaces a file; a non-empty folder in the way is a failure (ENOTEMPTY).
FileStatus rename_durably(const std::string& from, const std::string& to);
// Swaps two names in one step (renameat2 RENAME_EXCHANGE). *supported is false, with success and nothing changed,
// where the file system cannot.
FileStatus exchange_names(const std::string& a, const std::string& b, bool* supported);
// Takes an open file or folder for this descriptor, until it is closed; false where another one has it. Where the file
// system knows no locks nobody has it.
bool take_lock(int descriptor);

}  // namespace longseq
#endif  // LONGSEQ_RUNTIME_FILE_H
