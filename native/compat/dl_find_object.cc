// The unwinder's look-up of the object that holds an address, for C libraries older than 2.35.
//
// The static unwinder of g++ 12 calls _dl_find_object, which glibc has since 2.35; our floor is 2.34. This definition
// stands in for it inside the addon. It is slower, and only thrown exceptions pass here.
#include <dlfcn.h>
#include <link.h>

#include <cstdint>

#ifdef DLFO_STRUCT_HAS_EH_DBASE

namespace {

struct Search {
  uintptr_t address;
  dl_find_object* result;
};

// Stops the walk (returns 1) at the loaded object one of whose segments holds the address.
int visit(dl_phdr_info* info, size_t, void* context) {
  auto* search = static_cast<Search*>(context);
  uintptr_t low = UINTPTR_MAX, high = 0, frame = 0;
  bool holds = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_GNU_EH_FRAME) frame = begin;
    if (segment.p_type != PT_LOAD) continue;
    const uintptr_t end = begin + segment.p_memsz;
    holds |= search->address >= begin && search->address < end;
    low = begin < low ? begin : low;
    high = end > high ? end : high;
  }
  if (!holds || frame == 0) return 0;
  *search->result = {};
  search->result->dlfo_map_start = reinterpret_cast<void*>(low);
  search->result->dlfo_map_end = reinterpret_cast<void*>(high);
  search->result->dlfo_eh_frame = reinterpret_cast<void*>(frame);
  return 1;
}

}  // namespace

// Returns 0 and fills *result, or -1 where no loaded object holds the address.
extern "C" __attribute__((visibility("hidden"))) int _dl_find_object(void* address, dl_find_object* result) noexcept {
  Search search{reinterpret_cast<uintptr_t>(address), result};
  return dl_iterate_phdr(visit, &search) == 1 ? 0 : -1;
}

#endif
