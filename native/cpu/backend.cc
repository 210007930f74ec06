// The CPU backend's table: memory by mmap, copies by memcpy, and the op entries of the best instruction set at hand.
// Compiled for any x86-64, since it runs before the instruction set is known.
#include "longseq/backend.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace longseq::cpu {

namespace avx2 {
void fill_table(ls_backend *table);
}
namespace avx512 {
void fill_table(ls_backend *table);
}

namespace {

// The allocator's grain; the same as the meta backend's, whose numbers must be the CPU's to the byte.
constexpr int64_t kPageBytes = 64 << 10;
constexpr int64_t kHugePageBytes = 2 << 20;

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Decided once a process: the set in use, or why there is none.
struct Choice {
  const char *isa = "avx2";
  std::string error;

  Choice() {
    __builtin_cpu_init();
    const char *const asked = std::getenv("LONGSEQ_CPU_ISA");
    if (asked == nullptr || *asked == '\0') {
      if (has_avx512()) {
        isa = "avx512";
      } else if (!has_avx2()) {
        error = "this CPU lacks AVX2, FMA or F16C, which the cpu backend needs; use a machine from 2013 or later";
      }
    } else if (std::strcmp(asked, "avx512") == 0) {
      isa = "avx512";
      if (!has_avx512())
        error = std::string("LONGSEQ_CPU_ISA=avx512, but this CPU lacks AVX-512 (F, BW, DQ, VL); ") +
                (has_avx2() ? "unset it or set it to avx2" : "it lacks AVX2, FMA or F16C as well");
    } else if (std::strcmp(asked, "avx2") == 0) {
      if (!has_avx2())
        error = "LONGSEQ_CPU_ISA=avx2, but this CPU lacks AVX2, FMA or F16C, which the cpu backend needs";
    } else {
      error = "LONGSEQ_CPU_ISA is \"" + std::string(asked).substr(0, 64) + "\", expected avx2 or avx512 (or unset it)";
    }
  }
};

const Choice &choice() {
  static const Choice made;
  return made;
}

// The first number of a file, or -1 where the file or the number is missing ("max").
int64_t number_in(const char *path) {
  std::FILE *const file = std::fopen(path, "re");
  if (file == nullptr) return -1;
  long long value = -1;
  if (std::fscanf(file, "%lld", &value) != 1) value = -1;
  std::fclose(file);
  return value;
}

// A line of /proc/meminfo in bytes, or -1.
int64_t meminfo(const char *key) {
  std::FILE *const file = std::fopen("/proc/meminfo", "re");
  if (file == nullptr) return -1;
  char line[256];
  int64_t result = -1;
  const size_t length = std::strlen(key);
  while (std::fgets(line, sizeof line, file) != nullptr) {
    long long kilobytes = 0;
    if (std::strncmp(line, key, length) == 0 && std::sscanf(line + length, ": %lld", &kilobytes) == 1) {
      result = kilobytes * 1024;
      break;
    }
  }
  std::fclose(file);
  return result;
}

// RAM of the machine, or of the container where that is less.
void memory(int64_t &total, int64_t &available) {
  total = meminfo("MemTotal");
  if (total < 0) total = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  available = meminfo("MemAvailable");
  if (available < 0) available = total;
  int64_t limit = number_in("/sys/fs/cgroup/memory.max");
  int64_t used = number_in("/sys/fs/cgroup/memory.current");
  if (limit < 0) {
    limit = number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    used = number_in("/sys/fs/cgroup/memory/memory.usage_in_bytes");
  }
  if (limit > 0 && limit < total) {
    total = limit;
    if (used >= 0 && limit - used < available) available = limit > used ? limit - used : 0;
  }
}

ls_status device_open(int32_t index, int32_t threads, void **device, ls_device_info *info, char *error,
                      size_t error_size) {
  if (!choice().error.empty()) {
    std::snprintf(error, error_size, "%s", choice().error.c_str());
    return LS_UNSUPPORTED;
  }
  if (index != 0) {
    std::snprintf(error, error_size, "there is one cpu device, cpu:%d does not exist", index);
    return LS_INVALID_ARGUMENT;
  }
  *device = nullptr;
  std::snprintf(info->name, sizeof info->name, "cpu (%s, %d thread%s)", choice().isa, threads, threads == 1 ? "" : "s");
  memory(info->memory_bytes, info->memory_free_bytes);
  info->page_bytes = kPageBytes;
  info->peak_bf16_flops = 0;
  return LS_OK;
}

void device_close(void *) {}

ls_status reserve(void *, int32_t, int64_t bytes, void **address) {
  // MAP_NORESERVE: nothing is promised, and nothing is used until it is touched.
  void *const p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return LS_OUT_OF_MEMORY;
  *address = p;
  return LS_OK;
}

void unreserve(void *, int32_t, void *address, int64_t bytes) { munmap(address, static_cast<size_t>(bytes)); }

ls_status commit(void *, int32_t, void *address, int64_t bytes) {
  // Pages come with their first touch. Large blocks ask for huge pages: fewer faults, fewer TLB misses. Advice only.
  if (bytes >= 2 * kHugePageBytes) madvise(address, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return LS_OK;
}

void decommit(void *, int32_t, void *address, int64_t bytes) {
  madvise(address, static_cast<size_t>(bytes), MADV_DONTNEED);
}

ls_status upload(const ls_exec *, void *device_address, const void *host, int64_t bytes) {
  std::memcpy(device_address, host, static_cast<size_t>(bytes));
  return LS_OK;
}

ls_status download(const ls_exec *, void *host, const void *device_address, int64_t bytes) {
  std::memcpy(host, device_address, static_cast<size_t>(bytes));
  return LS_OK;
}

ls_backend make() {
  ls_backend table{};
  table.api_version = LS_BACKEND_API_VERSION;
  table.struct_bytes = sizeof(ls_backend);
  table.name = "cpu";
  table.device_open = device_open;
  table.device_close = device_close;
  table.reserve = reserve;
  table.unreserve = unreserve;
  table.commit = commit;
  table.decommit = decommit;
  table.upload = upload;
  table.download = download;
  // Filling the table already takes the set's instructions. Where it cannot be used, device_open says why.
  if (!choice().error.empty()) return table;
  if (std::strcmp(choice().isa, "avx512") == 0) {
    avx512::fill_table(&table);
  } else {
    avx2::fill_table(&table);
  }
  return table;
}

}  // namespace

// "avx2" or "avx512": the instruction set whose kernels the table holds.
const char *isa_name() { return choice().isa; }

const ls_backend *backend() {
  static const ls_backend table = make();
  return &table;
}

}  // namespace longseq::cpu
