// The safetensors format: a strict reader that copies byte ranges straight into memory, and a streaming writer.
//
// A file is 8 bytes of little-endian header length, a JSON object of that length, and the tensors' bytes. We refuse
// whatever the reference implementation refuses and, besides, whatever two readers could understand differently:
// a file that is accepted has exactly one meaning, and every byte of it belongs to exactly one tensor.
#ifndef LONGSEQ_RUNTIME_SAFETENSORS_H
#define LONGSEQ_RUNTIME_SAFETENSORS_H

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "file.h"

namespace longseq {

// Every dtype that the format knows. What a training tensor can be made from is decided by `convertible`.
enum class SafeDtype : int32_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
  kCount
};

// "F32" and so on; and back (false: not a name of the format).
const char* safe_dtype_name(SafeDtype dtype);
bool safe_dtype_from_name(std::string_view name, SafeDtype* dtype);
// Bits of one value (4, 6, 8, ... 64).
int32_t safe_dtype_bits(SafeDtype dtype);

// True where convert_copy can make `to` from `from`: equal dtypes, F64, F32, F16, BF16 to F32 and BF16, F32 to F16 and
// F64.
bool convertible(SafeDtype from, SafeDtype to);
// destination[i] = source[i] in another dtype, rounded once to nearest even; NaN stays NaN, infinities stay.
// Neither pointer needs alignment beyond that of its bytes; they must not overlap unless equal dtypes.
void convert_copy(SafeDtype from, const void* source, SafeDtype to, void* destination, int64_t count);

struct SafeEntry {
  std::string name;
  SafeDtype dtype = SafeDtype::kF32;
  std::vector<int64_t> shape;
  int64_t elements = 0;
  int64_t offset = 0;  // of the first byte, from the start of the file
  int64_t bytes = 0;
};

using SafeMetadata = std::vector<std::pair<std::string, std::string>>;

// An open file whose header was checked in full. Safe to use from several threads at once.
class SafetensorsReader {
 public:
  static FileStatus open(const std::string& path, std::shared_ptr<SafetensorsReader>* reader);

  const std::string& path() const { return file_.path(); }
  int64_t file_bytes() const { return file_.size(); }
  // In the order of their bytes in the file.
  const std::vector<SafeEntry>& entries() const { return entries_; }
  const SafeMetadata& metadata() const { return metadata_; }
  // nullptr where there is none.
  const SafeEntry* find(std::string_view name) const;

  // Whether read_into may be asked for this; kArgument with the reason if not.
  FileStatus check_range(const SafeEntry& entry, int64_t begin, int64_t count, SafeDtype dtype) const;

  // Reads elements begin..begin+count-1 (row-major) of a tensor as `dtype` into host memory of that many values.
  // Without conversion the bytes go straight to the destination.
  FileStatus read_into(const SafeEntry& entry, int64_t begin, int64_t count, void* destination, SafeDtype dtype,
                       const CancelCheck& cancelled = {}) const;

  // The same for memory that the processor cannot write: hands over pieces of at most kIoChunkBytes of the wanted
  // dtype, in order; sink(bytes, at byte of the destination, how many).
  using Sink = std::function<FileStatus(const void* bytes, int64_t at, int64_t size)>;
  FileStatus read_through(const SafeEntry& entry, int64_t begin, int64_t count, SafeDtype dtype, const Sink& sink,
                          const CancelCheck& cancelled = {}) const;

 private:
  File file_;
  std::vector<SafeEntry> entries_;
  SafeMetadata metadata_;
  std::unordered_map<std::string_view, size_t> by_name_;  // views into entries_
};

struct SafeDeclaration {
  std::string name;
  SafeDtype dtype = SafeDtype::kF32;
  std::vector<int64_t> shape;
};

// Writes a file beside its final name and renames it when it is complete and on the disk; an abandoned or failed
// writer removes what it wrote. Use from one thread at a time.
class SafetensorsWriter {
 public:
  // Declares everything first: the header, the layout (in the order given) and the file's size follow from it.
  static FileStatus create(const std::string& path, std::vector<SafeDeclaration> tensors, const SafeMetadata& metadata,
                           std::shared_ptr<SafetensorsWriter>* writer);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // Appends `count` values of tensor `name`, which must be the next one with values missing. A tensor may come in
  // several pieces. `dtype` is that of the values; they are converted to the declared one where the two differ.
  FileStatus write(const std::string& name, const void* values, int64_t count, SafeDtype dtype,
                   const CancelCheck& cancelled = {});
  // fsync, rename, fsync of the folder. digest: size and hash of the whole file, made while it was written.
  FileStatus finish(FileDigest* digest);
  // Removes the temporary file; done by the destructor too.
  void abandon();

  const std::string& path() const { return path_; }
  // Size of the finished file.
  int64_t file_bytes() const { return file_bytes_; }
  const std::vector<SafeDeclaration>& tensors() const { return tensors_; }

 private:
  SafetensorsWriter() = default;
  FileStatus append(const void* data, int64_t bytes, const CancelCheck& cancelled);
  FileStatus fail(FileStatus status);
  void skip_empty();

  std::string path_;
  std::string temporary_;  // empty once renamed or removed
  File file_;
  Xxh64 hash_;
  std::vector<SafeDeclaration> tensors_;
  std::vector<int64_t> elements_;
  size_t next_ = 0;      // tensor being written
  int64_t written_ = 0;  // values of it that are written
  int64_t file_bytes_ = 0;
  std::unique_ptr<char[]> buffer_;  // for conversions
};

}  // namespace longseq
#endif  // LONGSEQ_RUNTIME_SAFETENSORS_H
