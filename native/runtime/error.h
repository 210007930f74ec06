// The one exception type of the native runtime; the binding turns it into a typed JavaScript error.
#ifndef LONGSEQ_RUNTIME_ERROR_H
#define LONGSEQ_RUNTIME_ERROR_H

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "longseq/backend.h"

namespace longseq {

// A failure with the code that lib/errors.ts maps to a class, one clear line, and numbers for `details`.
class Error : public std::exception {
 public:
  Error(ls_status code, std::string message) : code_(code), message_(std::move(message)) {}
  ls_status code() const { return code_; }
  const char *what() const noexcept override { return message_.c_str(); }
  const std::string &message() const { return message_; }

  // Machine-readable particulars, e.g. bytes by category.
  std::vector<std::pair<std::string, double>> details;

 private:
  ls_status code_;
  std::string message_;
};

// printf into a std::string.
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
inline std::string
format(const char *pattern, ...) {
  va_list list;
  va_start(list, pattern);
  va_list again;
  va_copy(again, list);
  const int length = std::vsnprintf(nullptr, 0, pattern, list);
  va_end(list);
  std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  if (length > 0) std::vsnprintf(text.data(), text.size() + 1, pattern, again);
  va_end(again);
  return text;
}

// "[2, 3]" of a shape.
std::string shape_text(const int64_t *sizes, int32_t ndim);
// "1.50 GiB" and the like.
std::string bytes_text(int64_t bytes);
const char *dtype_name(int32_t dtype);
int64_t dtype_bytes(int32_t dtype);
const char *category_name(int32_t category);
const char *queue_name(int32_t queue);
const char *tier_name(int32_t tier);

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_ERROR_H
