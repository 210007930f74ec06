// Safetensors: the header parser with its checks, conversions between floating dtypes, range reads and the writer.
#include "safetensors.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <new>
#include <unordered_set>

namespace longseq {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // as in the reference implementation
constexpr size_t kMaxDims = 64;
constexpr int64_t kConvertBytes = int64_t{1} << 20;  // source and result of a conversion stay in the processor's cache

struct DtypeRow {
  const char* name;
  int32_t bits;
};
// In the order of SafeDtype.
constexpr DtypeRow kDtypes[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
};
static_assert(sizeof kDtypes / sizeof kDtypes[0] == static_cast<size_t>(SafeDtype::kCount));

std::string shape_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

// False on overflow of the product or of the bits.
bool count_elements(const std::vector<int64_t>& shape, SafeDtype dtype, int64_t* elements, int64_t* bits) {
  int64_t product = 1;
  for (int64_t size : shape) {
    if (__builtin_mul_overflow(product, size, &product)) return false;
  }
  *elements = product;
  return !__builtin_mul_overflow(product, static_cast<int64_t>(safe_dtype_bits(dtype)), bits);
}

// Length of the UTF-8 sequence at p (1..4), 0 if it is not valid: overlong forms, surrogates and values beyond
// U+10FFFF are not.
int utf8_length(const unsigned char* p, const unsigned char* end) {
  const auto continues = [&](int i) { return p + i < end && (p[i] & 0xC0) == 0x80; };
  if (p[0] < 0x80) return 1;
  if (p[0] >= 0xC2 && p[0] <= 0xDF) return continues(1) ? 2 : 0;
  if (p[0] >= 0xE0 && p[0] <= 0xEF) {
    if (!continues(1) || !continues(2)) return 0;
    if (p[0] == 0xE0 && p[1] < 0xA0) return 0;
    if (p[0] == 0xED && p[1] > 0x9F) return 0;
    return 3;
  }
  if (p[0] >= 0xF0 && p[0] <= 0xF4) {
    if (!continues(1) || !continues(2) || !continues(3)) return 0;
    if (p[0] == 0xF0 && p[1] < 0x90) return 0;
    if (p[0] == 0xF4 && p[1] > 0x8F) return 0;
    return 4;
  }
  return 0;
}

void append_utf8(std::string* out, uint32_t code) {
  if (code < 0x80) {
    *out += static_cast<char>(code);
  } else if (code < 0x800) {
    *out += static_cast<char>(0xC0 | (code >> 6));
    *out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    *out += static_cast<char>(0xE0 | (code >> 12));
    *out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    *out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    *out += static_cast<char>(0xF0 | (code >> 18));
    *out += static_cast<char>(0x80 | ((code >> 12) & 0x3F));
    *out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    *out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

// A name in a message: in quotes, control characters and the bytes of NUL shown, long ones cut.
std::string quoted(std::string_view name) {
  static const char* const kHex = "0123456789abcdef";
  std::string text = "\"";
  for (size_t i = 0; i < name.size(); ++i) {
    if (i == 200) {
      // Not in the middle of a character.
      while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80) text.pop_back();
      if (!text.empty() && static_cast<unsigned char>(text.back()) >= 0xC0) text.pop_back();
      text += "...";
      break;
    }
    const unsigned char c = static_cast<unsigned char>(name[i]);
    if (c < 0x20 || c == 0x7F) {
      text += "\\x";
      text += kHex[c >> 4];
      text += kHex[c & 15];
    } else {
      text += name[i];
    }
  }
  return text + "\"";
}

// Parses exactly the one shape that a header has, so no input can make it recurse. The first failure stays.
class HeaderParser {
 public:
  HeaderParser(const std::string& path, const char* text, size_t bytes)
      : path_(path), begin_(text), at_(text), end_(text + bytes) {}

  struct RawEntry {
    std::string name;
    SafeDtype dtype = SafeDtype::kF32;
    std::vector<int64_t> shape;
    int64_t begin = 0, end = 0;
  };

  FileStatus parse(std::vector<RawEntry>* entries, SafeMetadata* metadata) {
    run(entries, metadata);
    return std::move(status_);
  }

 private:
  bool run(std::vector<RawEntry>* entries, SafeMetadata* metadata) {
    if (at_ == end_ || *at_ != '{') {
      return fail("its header must begin with '{', but begins with " + found() +
                  (at_ != end_ && is_space(*at_) ? " (leading white space is not allowed)" : ""));
    }
    ++at_;
    std::unordered_set<std::string> names;
    bool has_metadata = false;
    skip_space();
    if (!accept('}')) {
      for (;;) {
        skip_space();
        std::string name;
        if (!parse_string(&name, "a tensor name")) return false;
        if (name.find('\0') != std::string::npos)
          return fail("the tensor name " + quoted(name) + " holds a NUL character");
        if (!expect(':', "after the name " + quoted(name))) return false;
        if (name == "__metadata__") {
          if (has_metadata) return fail("__metadata__ occurs twice");
          has_metadata = true;
          if (!parse_metadata(metadata)) return false;
        } else {
          if (!names.insert(name).second) return fail("tensor " + quoted(name) + ": the name occurs twice");
          RawEntry entry;
          entry.name = std::move(name);
          if (!parse_entry(&entry)) return false;
          entries->push_back(std::move(entry));
        }
        skip_space();
        if (accept('}')) break;
        if (!expect(',', "between tensors")) return false;
      }
    }
    // Only spaces may pad the header after the object.
    while (at_ != end_ && *at_ == ' ') ++at_;
    if (at_ != end_) return fail("after the end of the header's object there is " + found());
    return true;
  }

  bool parse_metadata(SafeMetadata* metadata) {
    if (!expect('{', "as the value of __metadata__")) return false;
    std::unordered_set<std::string> keys;
    skip_space();
    if (accept('}')) return true;
    for (;;) {
      skip_space();
      std::string key, value;
      if (!parse_string(&key, "a key of __metadata__")) return false;
      if (key.find('\0') != std::string::npos)
        return fail("the __metadata__ key " + quoted(key) + " holds a NUL character");
      if (!keys.insert(key).second) return fail("the __metadata__ key " + quoted(key) + " occurs twice");
      if (!expect(':', "after the __metadata__ key " + quoted(key))) return false;
      skip_space();
      if (!parse_string(&value, "a string as the value of __metadata__ " + quoted(key))) return false;
      metadata->emplace_back(std::move(key), std::move(value));
      skip_space();
      if (accept('}')) return true;
      if (!expect(',', "in __metadata__")) return false;
    }
  }

  bool parse_entry(RawEntry* entry) {
    const std::string who = "tensor " + quoted(entry->name);
    if (!expect('{', "as the value of " + who)) return false;
    bool has_dtype = false, has_shape = false, has_offsets = false;
    skip_space();
    if (!accept('}')) {
      for (;;) {
        skip_space();
        std::string key;
        if (!parse_string(&key, "a key of " + who)) return false;
        if (!expect(':', "after " + quoted(key) + " of " + who)) return false;
        skip_space();
        if (key == "dtype") {
          if (has_dtype) return fail(who + ": \"dtype\" occurs twice");
          has_dtype = true;
          std::string value;
          if (!parse_string(&value, "a string as the dtype of " + who)) return false;
          if (!safe_dtype_from_name(value, &entry->dtype)) {
            std::string known;
            for (const DtypeRow& row : kDtypes) known += std::string(known.empty() ? "" : ", ") + row.name;
            return fail(who + ": unknown dtype " + quoted(value) + "; known are " + known);
          }
        } else if (key == "shape") {
          if (has_shape) return fail(who + ": \"shape\" occurs twice");
          has_shape = true;
          if (!parse_integers(&entry->shape, kMaxDims, "shape of " + who)) return false;
        } else if (key == "data_offsets") {
          if (has_offsets) return fail(who + ": \"data_offsets\" occurs twice");
          has_offsets = true;
          std::vector<int64_t> offsets;
          if (!parse_integers(&offsets, 2, "data_offsets of " + who)) return false;
          if (offsets.size() != 2) {
            return fail(who + ": data_offsets must be two numbers, but there are " + std::to_string(offsets.size()));
          }
          entry->begin = offsets[0];
          entry->end = offsets[1];
        } else {
          return fail(who + ": unknown key " + quoted(key) + "; an entry has dtype, shape and data_offsets");
        }
        skip_space();
        if (accept('}')) break;
        if (!expect(',', "in the entry of " + who)) return false;
      }
    }
    if (!has_dtype) return fail(who + ": dtype is missing");
    if (!has_shape) return fail(who + ": shape is missing");
    if (!has_offsets) return fail(who + ": data_offsets is missing");
    return true;
  }

  bool parse_integers(std::vector<int64_t>* values, size_t most, const std::string& what) {
    if (!expect('[', "as the " + what)) return false;
    skip_space();
    if (accept(']')) return true;
    for (;;) {
      skip_space();
      int64_t value = 0;
      if (!parse_integer(&value, what)) return false;
      if (values->size() == most) return fail("the " + what + " has more than " + std::to_string(most) + " numbers");
      values->push_back(value);
      skip_space();
      if (accept(']')) return true;
      if (!expect(',', "in the " + what)) return false;
    }
  }

  bool parse_integer(int64_t* value, const std::string& what) {
    const char* start = at_;
    const auto is_number = [](char c) {
      return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E';
    };
    while (at_ != end_ && is_number(*at_)) ++at_;
    const std::string_view text(start, static_cast<size_t>(at_ - start));
    if (text.empty()) return fail("the " + what + " must be integers of zero or more, but there is " + found());
    const bool digits = std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits || (text.size() > 1 && text[0] == '0')) {
      return fail("the " + what + " must be integers of zero or more, but there is " + std::string(text.substr(0, 40)));
    }
    int64_t result = 0;
    for (char c : text) {
      if (__builtin_mul_overflow(result, int64_t{10}, &result) ||
          __builtin_add_overflow(result, static_cast<int64_t>(c - '0'), &result)) {
        return fail("the " + what + " holds " + std::string(text.substr(0, 40)) + ", which is too large");
      }
    }
    // What JavaScript can hold exactly; no file that exists is that large.
    if (result > (int64_t{1} << 53) - 1)
      return fail("the " + what + " holds " + std::string(text) + ", which is too large");
    *value = result;
    return true;
  }

  bool parse_string(std::string* out, const std::string& what) {
    if (at_ == end_ || *at_ != '"') return fail("expected " + what + ", but there is " + found());
    ++at_;
    const auto* end = reinterpret_cast<const unsigned char*>(end_);
    for (;;) {
      if (at_ == end_) return fail("a string is not closed");
      const unsigned char c = static_cast<unsigned char>(*at_);
      if (c == '"') {
        ++at_;
        return true;
      }
      if (c == '\\') {
        if (!parse_escape(out)) return false;
        continue;
      }
      if (c < 0x20) return fail("a string holds the unescaped control character " + found());
      const int length = utf8_length(reinterpret_cast<const unsigned char*>(at_), end);
      if (length == 0) return fail("a string is not valid UTF-8: there is " + found());
      out->append(at_, static_cast<size_t>(length));
      at_ += length;
    }
  }

  bool parse_escape(std::string* out) {
    const char* start = at_++;
    if (at_ == end_) return fail("a string is not closed");
    switch (*at_++) {
      case '"':
        *out += '"';
        return true;
      case '\\':
        *out += '\\';
        return true;
      case '/':
        *out += '/';
        return true;
      case 'b':
        *out += '\b';
        return true;
      case 'f':
        *out += '\f';
        return true;
      case 'n':
        *out += '\n';
        return true;
      case 'r':
        *out += '\r';
        return true;
      case 't':
        *out += '\t';
        return true;
      case 'u': {
        uint32_t code = 0;
        if (!parse_hex4(&code)) return false;
        if (code >= 0xD800 && code <= 0xDBFF) {
          uint32_t low = 0;
          if (end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') return fail("a string holds half a surrogate pair");
          at_ += 2;
          if (!parse_hex4(&low)) return false;
          if (low < 0xDC00 || low > 0xDFFF) return fail("a string holds half a surrogate pair");
          code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        } else if (code >= 0xDC00 && code <= 0xDFFF) {
          return fail("a string holds half a surrogate pair");
        }
        append_utf8(out, code);
        return true;
      }
      default:
        at_ = start;
        return fail("a string holds an unknown escape");
    }
  }

  bool parse_hex4(uint32_t* code) {
    if (end_ - at_ < 4) return fail("a string is not closed");
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = *at_;
      uint32_t digit;
      if (c >= '0' && c <= '9') {
        digit = static_cast<uint32_t>(c - '0');
      } else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) {
        digit = static_cast<uint32_t>((c | 0x20) - 'a') + 10;
      } else {
        return fail("a \\u escape holds " + found());
      }
      *code = *code * 16 + digit;
    }
    return true;
  }

  static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
  void skip_space() {
    while (at_ != end_ && is_space(*at_)) ++at_;
  }
  bool accept(char c) {
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }
  bool expect(char c, const std::string& where) {
    skip_space();
    if (accept(c)) return true;
    return fail(std::string("expected '") + c + "' " + where + ", but there is " + found());
  }
  // What stands at the cursor, for messages.
  std::string found() const {
    if (at_ == end_) return "the end of the header";
    const unsigned char c = static_cast<unsigned char>(*at_);
    const std::string where = " at byte " + std::to_string(8 + (at_ - begin_));
    if (c > 0x20 && c < 0x7F) return std::string("'") + *at_ + "'" + where;
    static const char* const kHex = "0123456789abcdef";
    return std::string("byte 0x") + kHex[c >> 4] + kHex[c & 15] + where;
  }
  bool fail(const std::string& what) {
    if (status_.ok()) status_ = FileStatus::format(path_ + ": " + what);
    return false;
  }

  const std::string& path_;
  const char* begin_;
  const char* at_;
  const char* end_;
  FileStatus status_;
};

// ---- conversions; plain loops that the compiler turns into vector code ----

inline float f32_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t bits_of_f32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// Subnormals go through an integer-to-float conversion, so a thread that flushes denormals gives the same bits.
inline uint32_t f32_bits_of_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t subnormal = bits_of_f32(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t special = (magnitude << 13) | 0x7F800000u;
  const uint32_t bits = magnitude < 0x0400u ? subnormal : (magnitude >= 0x7C00u ? special : normal);
  return bits | sign;
}
inline uint16_t bf16_of_f32_bits(uint32_t bits) {
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet_nan : rounded);
}
// To the nearest, of two equally near ones the even one; beyond the largest infinity.
inline uint16_t f16_of_f32_bits(uint32_t bits) {
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x38800000u) {
    // Below the normal ones: adding a half shifts the value to where float32 rounds as float16 does.
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    return static_cast<uint16_t>(sign | (bits_of_f32(value + 0.5f) - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13));
}
// Rounding to odd on the way keeps the second rounding (to bfloat16) equal to a single one.
inline uint32_t f32_bits_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  uint32_t bits = bits_of_f32(nearest);
  const double back = static_cast<double>(nearest);
  if (back == value || value != value) return bits;
  const double magnitude = value < 0 ? -value : value;
  const double back_magnitude = back < 0 ? -back : back;
  if (back_magnitude > magnitude) --bits;  // toward zero
  return bits | 1u;
}

template <typename From, typename To, typename Fn>
void convert_loop(const void* source, void* destination, int64_t count, Fn fn) {
  const char* in = static_cast<const char*>(source);
  char* out = static_cast<char*>(destination);
  for (int64_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, in + i * static_cast<int64_t>(sizeof(From)), sizeof(From));  // the file aligns nothing
    const To result = fn(value);
    std::memcpy(out + i * static_cast<int64_t>(sizeof(To)), &result, sizeof(To));
  }
}

}  // namespace

const char* safe_dtype_name(SafeDtype dtype) { return kDtypes[static_cast<int32_t>(dtype)].name; }

bool safe_dtype_from_name(std::string_view name, SafeDtype* dtype) {
  for (int32_t i = 0; i < static_cast<int32_t>(SafeDtype::kCount); ++i) {
    if (name == kDtypes[i].name) {
      *dtype = static_cast<SafeDtype>(i);
      return true;
    }
  }
  return false;
}

int32_t safe_dtype_bits(SafeDtype dtype) { return kDtypes[static_cast<int32_t>(dtype)].bits; }

bool convertible(SafeDtype from, SafeDtype to) {
  if (from == to) return true;
  const bool source =
      from == SafeDtype::kF64 || from == SafeDtype::kF32 || from == SafeDtype::kF16 || from == SafeDtype::kBF16;
  return (source && (to == SafeDtype::kF32 || to == SafeDtype::kBF16)) ||
         (from == SafeDtype::kF32 && (to == SafeDtype::kF16 || to == SafeDtype::kF64));
}

void convert_copy(SafeDtype from, const void* source, SafeDtype to, void* destination, int64_t count) {
  if (from == to) {
    std::memcpy(destination, source, static_cast<size_t>(count * safe_dtype_bits(from) / 8));
    return;
  }
  const bool wide = to == SafeDtype::kF32;
  switch (from) {
    case SafeDtype::kF16:
      if (wide) {
        convert_loop<uint16_t, uint32_t>(source, destination, count, [](uint16_t v) { return f32_bits_of_f16(v); });
      } else {
        convert_loop<uint16_t, uint16_t>(source, destination, count,
                                         [](uint16_t v) { return bf16_of_f32_bits(f32_bits_of_f16(v)); });
      }
      break;
    case SafeDtype::kBF16:
      convert_loop<uint16_t, uint32_t>(source, destination, count,
                                       [](uint16_t v) { return static_cast<uint32_t>(v) << 16; });
      break;
    case SafeDtype::kF32:
      if (to == SafeDtype::kF64) {
        convert_loop<float, double>(source, destination, count, [](float v) { return static_cast<double>(v); });
      } else if (to == SafeDtype::kF16) {
        convert_loop<uint32_t, uint16_t>(source, destination, count, [](uint32_t v) { return f16_of_f32_bits(v); });
      } else {
        convert_loop<uint32_t, uint16_t>(source, destination, count, [](uint32_t v) { return bf16_of_f32_bits(v); });
      }
      break;
    case SafeDtype::kF64:
      if (wide) {
        convert_loop<double, float>(source, destination, count, [](double v) { return static_cast<float>(v); });
      } else {
        convert_loop<double, uint16_t>(source, destination, count,
                                       [](double v) { return bf16_of_f32_bits(f32_bits_to_odd(v)); });
      }
      break;
    default:
      break;  // `convertible` said no
  }
}

// ---- reader ----

FileStatus SafetensorsReader::open(const std::string& path, std::shared_ptr<SafetensorsReader>* reader) {
  auto opened = std::shared_ptr<SafetensorsReader>(new SafetensorsReader());
  if (FileStatus status = File::open_read(path, &opened->file_); !status.ok()) return status;
  const int64_t file_bytes = opened->file_.size();
  const auto refuse = [&](const std::string& what) { return FileStatus::format(path + ": " + what); };

  unsigned char prefix[8] = {};
  static constexpr std::string_view kLfs = "version https://git-lfs";
  if (file_bytes >= static_cast<int64_t>(kLfs.size())) {
    char start[kLfs.size()];
    if (FileStatus status = opened->file_.read_at(0, start, sizeof start); !status.ok()) return status;
    if (std::string_view(start, sizeof start) == kLfs) {
      return refuse("this is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download it");
    }
  }
  if (file_bytes < 8) {
    return refuse("it has " + std::to_string(file_bytes) +
                  " bytes, fewer than the 8 of the header's length; it is cut off");
  }
  if (FileStatus status = opened->file_.read_at(0, prefix, 8); !status.ok()) return status;
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | prefix[i];
  if (header_bytes > static_cast<uint64_t>(kMaxHeaderBytes)) {
    return refuse("its header would have " + std::to_string(header_bytes) + " bytes, more than the " +
                  std::to_string(kMaxHeaderBytes) + " allowed; it is damaged or no safetensors file");
  }
  if (static_cast<int64_t>(header_bytes) > file_bytes - 8) {
    return refuse("its header should have " + std::to_string(header_bytes) + " bytes, but the file has only " +
                  std::to_string(file_bytes) + "; it is cut off");
  }
  std::string header;
  header.resize(header_bytes);
  if (FileStatus status = opened->file_.read_at(8, header.data(), static_cast<int64_t>(header_bytes)); !status.ok()) {
    return status;
  }

  std::vector<HeaderParser::RawEntry> raw;
  if (FileStatus status = HeaderParser(path, header.data(), header.size()).parse(&raw, &opened->metadata_);
      !status.ok()) {
    return status;
  }
  header = std::string();

  const int64_t data_begin = 8 + static_cast<int64_t>(header_bytes);
  const int64_t data_bytes = file_bytes - data_begin;
  std::sort(raw.begin(), raw.end(), [](const auto& a, const auto& b) {
    return a.begin != b.begin ? a.begin < b.begin : (a.end != b.end ? a.end < b.end : a.name < b.name);
  });
  int64_t reached = 0;
  const std::string* previous = nullptr;
  opened->entries_.reserve(raw.size());
  for (HeaderParser::RawEntry& from : raw) {
    const std::string who = "tensor " + quoted(from.name) + ": ";
    const std::string range = "[" + std::to_string(from.begin) + ", " + std::to_string(from.end) + "]";
    if (from.end < from.begin) return refuse(who + "data_offsets " + range + " end before they begin");
    if (from.end > data_bytes) {
      return refuse(who + "data_offsets " + range + " go beyond the " + std::to_string(data_bytes) +
                    " bytes of data that the file has; it is cut off");
    }
    SafeEntry entry;
    int64_t bits = 0;
    if (!count_elements(from.shape, from.dtype, &entry.elements, &bits)) {
      return refuse(who + "shape " + shape_string(from.shape) + " has too many elements");
    }
    if (bits % 8 != 0) {
      return refuse(who + "shape " + shape_string(from.shape) + " of " + safe_dtype_name(from.dtype) +
                    " does not fill whole bytes");
    }
    entry.bytes = bits / 8;
    if (entry.bytes != from.end - from.begin) {
      return refuse(who + "shape " + shape_string(from.shape) + " of " + safe_dtype_name(from.dtype) + " needs " +
                    std::to_string(entry.bytes) + " bytes, but data_offsets " + range + " hold " +
                    std::to_string(from.end - from.begin));
    }
    if (from.begin < reached) {
      return refuse(who + "data_offsets " + range + " overlap those of tensor " + quoted(*previous) +
                    ", which end at " + std::to_string(reached));
    }
    if (from.begin > reached) {
      return refuse(who + "data_offsets " + range + " leave a hole: bytes " + std::to_string(reached) + " to " +
                    std::to_string(from.begin) + " belong to no tensor");
    }
    reached = from.end;
    entry.offset = data_begin + from.begin;
    entry.dtype = from.dtype;
    entry.name = std::move(from.name);
    entry.shape = std::move(from.shape);
    opened->entries_.push_back(std::move(entry));
    previous = &opened->entries_.back().name;
  }
  if (reached != data_bytes) {
    return refuse("the last " + std::to_string(data_bytes - reached) + " bytes of the file belong to no tensor");
  }
  opened->by_name_.reserve(opened->entries_.size());
  for (size_t i = 0; i < opened->entries_.size(); ++i) opened->by_name_.emplace(opened->entries_[i].name, i);
  *reader = std::move(opened);
  return FileStatus::success();
}

const SafeEntry* SafetensorsReader::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &entries_[found->second];
}

FileStatus SafetensorsReader::check_range(const SafeEntry& entry, int64_t begin, int64_t count, SafeDtype dtype) const {
  const std::string who = path() + ": tensor " + quoted(entry.name) + ": ";
  if (begin < 0 || count < 0 || begin > entry.elements || count > entry.elements - begin) {
    return FileStatus::argument(who + "elements " + std::to_string(begin) + " to " + std::to_string(begin + count) +
                                " were asked for, but it has " + std::to_string(entry.elements));
  }
  if (!convertible(entry.dtype, dtype)) {
    return FileStatus::argument(who + "its dtype " + safe_dtype_name(entry.dtype) + " cannot be read as " +
                                safe_dtype_name(dtype));
  }
  if (safe_dtype_bits(entry.dtype) % 8 != 0 && (begin != 0 || count != entry.elements)) {
    return FileStatus::argument(who + "values of " + safe_dtype_name(entry.dtype) +
                                " are packed: read the whole tensor");
  }
  return FileStatus::success();
}

FileStatus SafetensorsReader::read_into(const SafeEntry& entry, int64_t begin, int64_t count, void* destination,
                                        SafeDtype dtype, const CancelCheck& cancelled) const {
  if (FileStatus status = check_range(entry, begin, count, dtype); !status.ok()) return status;
  if (entry.dtype == dtype) {
    const int64_t bits = safe_dtype_bits(dtype);
    FileStatus status = file_.read_at(entry.offset + begin * bits / 8, destination, count * bits / 8, cancelled);
    if (!status.ok()) status.message += "; while reading tensor " + quoted(entry.name);
    return status;
  }
  const int64_t from_bytes = safe_dtype_bits(entry.dtype) / 8;
  const int64_t to_bytes = safe_dtype_bits(dtype) / 8;
  const int64_t piece = std::min(count, kConvertBytes / from_bytes);
  std::unique_ptr<char[]> buffer(new (std::nothrow) char[static_cast<size_t>(piece * from_bytes)]);
  if (!buffer) return FileStatus::io("read tensor " + quoted(entry.name) + " of " + path(), ENOMEM);
  for (int64_t done = 0; done < count;) {
    const int64_t take = std::min(piece, count - done);
    FileStatus status =
        file_.read_at(entry.offset + (begin + done) * from_bytes, buffer.get(), take * from_bytes, cancelled);
    if (!status.ok()) {
      status.message += "; while reading tensor " + quoted(entry.name);
      return status;
    }
    convert_copy(entry.dtype, buffer.get(), dtype, static_cast<char*>(destination) + done * to_bytes, take);
    done += take;
  }
  return FileStatus::success();
}

FileStatus SafetensorsReader::read_through(const SafeEntry& entry, int64_t begin, int64_t count, SafeDtype dtype,
                                           const Sink& sink, const CancelCheck& cancelled) const {
  if (FileStatus status = check_range(entry, begin, count, dtype); !status.ok()) return status;
  const int64_t from_bits = safe_dtype_bits(entry.dtype);
  const int64_t to_bits = safe_dtype_bits(dtype);
  const bool same = entry.dtype == dtype;
  // Multiples of 8 values, so that a piece of a packed dtype is whole bytes.
  const int64_t most = (same ? kIoChunkBytes : kConvertBytes) / ((from_bits + 7) / 8);
  const int64_t piece = (std::min(std::max<int64_t>(count, 1), most) + 7) & ~int64_t{7};
  const int64_t from_bytes = piece * from_bits / 8;
  std::unique_ptr<char[]> buffer(
      new (std::nothrow) char[static_cast<size_t>(from_bytes + (same ? 0 : piece * to_bits / 8))]);
  if (!buffer) return FileStatus::io("read tensor " + quoted(entry.name) + " of " + path(), ENOMEM);
  for (int64_t done = 0; done < count;) {
    const int64_t take = std::min(piece, count - done);
    FileStatus status =
        file_.read_at(entry.offset + (begin + done) * from_bits / 8, buffer.get(), take * from_bits / 8, cancelled);
    if (!status.ok()) {
      status.message += "; while reading tensor " + quoted(entry.name);
      return status;
    }
    const char* values = buffer.get();
    if (!same) {
      convert_copy(entry.dtype, buffer.get(), dtype, buffer.get() + from_bytes, take);
      values += from_bytes;
    }
    if (status = sink(values, done * to_bits / 8, take * to_bits / 8); !status.ok()) return status;
    done += take;
  }
  return FileStatus::success();
}

// ---- writer ----

namespace {

void append_json_string(std::string* out, const std::string& text) {
  static const char* const kHex = "0123456789abcdef";
  *out += '"';
  for (char c : text) {
    const unsigned char u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      *out += '\\';
      *out += c;
    } else if (u < 0x20) {
      *out += "\\u00";
      *out += kHex[u >> 4];
      *out += kHex[u & 15];
    } else {
      *out += c;
    }
  }
  *out += '"';
}

bool valid_utf8(const std::string& text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const auto* end = p + text.size();
  while (p < end) {
    const int length = utf8_length(p, end);
    if (length == 0) return false;
    p += length;
  }
  return true;
}

}  // namespace

FileStatus SafetensorsWriter::create(const std::string& path, std::vector<SafeDeclaration> tensors,
                                     const SafeMetadata& metadata, std::shared_ptr<SafetensorsWriter>* writer) {
  auto made = std::shared_ptr<SafetensorsWriter>(new SafetensorsWriter());
  const auto refuse = [&](const std::string& what) { return FileStatus::argument(path + ": " + what); };
  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    std::unordered_set<std::string> keys;
    for (size_t i = 0; i < metadata.size(); ++i) {
      const auto& [key, value] = metadata[i];
      if (!valid_utf8(key) || !valid_utf8(value)) return refuse("metadata " + quoted(key) + " is not valid UTF-8");
      if (key.find('\0') != std::string::npos)
        return refuse("the metadata key " + quoted(key) + " holds a NUL character");
      if (!keys.insert(key).second) return refuse("the metadata key " + quoted(key) + " occurs twice");
      if (i) header += ',';
      append_json_string(&header, key);
      header += ':';
      append_json_string(&header, value);
    }
    header += '}';
  }
  std::unordered_set<std::string> names;
  int64_t at = 0;
  for (const SafeDeclaration& tensor : tensors) {
    const std::string who = "tensor " + quoted(tensor.name) + ": ";
    if (tensor.name.empty() || tensor.name == "__metadata__") return refuse(who + "this name is not allowed");
    if (!valid_utf8(tensor.name)) return refuse(who + "the name is not valid UTF-8");
    if (tensor.name.find('\0') != std::string::npos) return refuse(who + "the name holds a NUL character");
    if (!names.insert(tensor.name).second) return refuse(who + "the name occurs twice");
    if (tensor.shape.size() > kMaxDims)
      return refuse(who + "it has more than " + std::to_string(kMaxDims) + " dimensions");
    for (int64_t size : tensor.shape) {
      if (size < 0) return refuse(who + "shape " + shape_string(tensor.shape) + " holds a negative size");
    }
    int64_t elements = 0, bits = 0, end = 0;
    if (!count_elements(tensor.shape, tensor.dtype, &elements, &bits) || __builtin_add_overflow(at, bits / 8, &end)) {
      return refuse(who + "shape " + shape_string(tensor.shape) + " has too many elements");
    }
    if (bits % 8 != 0) {
      return refuse(who + "shape " + shape_string(tensor.shape) + " of " + safe_dtype_name(tensor.dtype) +
                    " does not fill whole bytes");
    }
    if (header.size() > 1) header += ',';
    append_json_string(&header, tensor.name);
    header += std::string(":{\"dtype\":\"") + safe_dtype_name(tensor.dtype) + "\",\"shape\":[";
    for (size_t i = 0; i < tensor.shape.size(); ++i) header += (i ? "," : "") + std::to_string(tensor.shape[i]);
    header += "],\"data_offsets\":[" + std::to_string(at) + "," + std::to_string(end) + "]}";
    made->elements_.push_back(elements);
    at = end;
  }
  header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');  // the data begins on a multiple of 8 bytes
  if (header.size() > static_cast<size_t>(kMaxHeaderBytes)) {
    return refuse("the header would have " + std::to_string(header.size()) + " bytes, more than the " +
                  std::to_string(kMaxHeaderBytes) + " allowed; write fewer tensors a file");
  }

  static std::atomic<uint64_t> counter{0};
  made->path_ = path;
  made->temporary_ = path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter.fetch_add(1));
  made->tensors_ = std::move(tensors);
  made->file_bytes_ = 8 + static_cast<int64_t>(header.size()) + at;
  if (FileStatus status = File::create(made->temporary_, &made->file_); !status.ok()) {
    made->temporary_.clear();
    return status;
  }
  if (FileStatus status = made->file_.reserve(made->file_bytes_); !status.ok()) return made->fail(std::move(status));
  unsigned char prefix[8];
  for (int i = 0; i < 8; ++i) prefix[i] = static_cast<unsigned char>(header.size() >> (8 * i));
  if (FileStatus status = made->append(prefix, 8, {}); !status.ok()) return status;
  if (FileStatus status = made->append(header.data(), static_cast<int64_t>(header.size()), {}); !status.ok())
    return status;
  made->skip_empty();
  *writer = std::move(made);
  return FileStatus::success();
}

SafetensorsWriter::~SafetensorsWriter() { abandon(); }

void SafetensorsWriter::abandon() {
  if (temporary_.empty()) return;
  (void)file_.close();
  ::unlink(temporary_.c_str());
  temporary_.clear();
}

FileStatus SafetensorsWriter::fail(FileStatus status) {
  abandon();
  return status;
}

void SafetensorsWriter::skip_empty() {
  while (next_ < tensors_.size() && written_ == elements_[next_]) {
    ++next_;
    written_ = 0;
  }
}

FileStatus SafetensorsWriter::append(const void* data, int64_t bytes, const CancelCheck& cancelled) {
  // In pieces, so that the bytes which are written are still in the processor's cache when they are hashed.
  const char* in = static_cast<const char*>(data);
  for (int64_t done = 0; done < bytes;) {
    const int64_t take = std::min(bytes - done, kIoChunkBytes / 4);
    if (FileStatus status = file_.append(in + done, take, cancelled); !status.ok()) return fail(std::move(status));
    hash_.update(in + done, take);
    done += take;
  }
  return FileStatus::success();
}

FileStatus SafetensorsWriter::write(const std::string& name, const void* values, int64_t count, SafeDtype dtype,
                                    const CancelCheck& cancelled) {
  if (temporary_.empty()) return FileStatus::argument(path_ + ": the writer is finished or has failed");
  if (count == 0) {
    for (const SafeDeclaration& tensor : tensors_) {
      if (tensor.name == name) return FileStatus::success();
    }
  }
  if (next_ == tensors_.size()) {
    return fail(
        FileStatus::argument(path_ + ": tensor " + quoted(name) + " was given, but all declared tensors are written"));
  }
  const SafeDeclaration& tensor = tensors_[next_];
  if (name != tensor.name) {
    return fail(FileStatus::argument(path_ + ": tensor " + quoted(name) + " was given where " + quoted(tensor.name) +
                                     " is next (tensors are written in the order of their declaration)"));
  }
  const int64_t left = elements_[next_] - written_;
  if (count < 0 || count > left) {
    return fail(FileStatus::argument(path_ + ": tensor " + quoted(name) + ": " + std::to_string(count) +
                                     " values were given where " + std::to_string(left) + " of shape " +
                                     shape_string(tensor.shape) + " are missing"));
  }
  if (!convertible(dtype, tensor.dtype)) {
    return fail(FileStatus::argument(path_ + ": tensor " + quoted(name) + ": values of " + safe_dtype_name(dtype) +
                                     " cannot be written as " + safe_dtype_name(tensor.dtype)));
  }
  const int64_t from_bits = safe_dtype_bits(dtype);
  if (from_bits % 8 != 0 && count != elements_[next_]) {
    return fail(FileStatus::argument(path_ + ": tensor " + quoted(name) + ": packed values come in one piece"));
  }
  if (dtype == tensor.dtype) {
    if (FileStatus status = append(values, count * from_bits / 8, cancelled); !status.ok()) return status;
  } else {
    if (!buffer_) buffer_.reset(new (std::nothrow) char[kConvertBytes]);
    if (!buffer_) return fail(FileStatus::io("write tensor " + quoted(name) + " of " + path_, ENOMEM));
    const int64_t to_bytes = safe_dtype_bits(tensor.dtype) / 8;
    const char* in = static_cast<const char*>(values);
    for (int64_t done = 0; done < count;) {
      const int64_t take = std::min(count - done, kConvertBytes / to_bytes);
      convert_copy(dtype, in + done * (from_bits / 8), tensor.dtype, buffer_.get(), take);
      if (FileStatus status = append(buffer_.get(), take * to_bytes, cancelled); !status.ok()) return status;
      done += take;
    }
  }
  written_ += count;
  skip_empty();
  return FileStatus::success();
}

FileStatus SafetensorsWriter::finish(FileDigest* digest) {
  if (temporary_.empty()) return FileStatus::argument(path_ + ": the writer is finished or has failed");
  if (next_ != tensors_.size()) {
    return fail(FileStatus::argument(path_ + ": tensor " + quoted(tensors_[next_].name) + " is declared, but " +
                                     std::to_string(elements_[next_] - written_) +
                                     " of its values were never written"));
  }
  if (FileStatus status = file_.sync(); !status.ok()) return fail(std::move(status));
  if (FileStatus status = file_.close(); !status.ok()) return fail(std::move(status));
  if (FileStatus status = rename_durably(temporary_, path_); !status.ok()) return fail(std::move(status));
  temporary_.clear();
  if (digest) *digest = {file_bytes_, hash_.hex()};
  return FileStatus::success();
}

}  // namespace longseq
