// The caching allocator: best fit in reserved address space, pages committed on demand, everything decided on the
// JavaScript timeline, so that peaks are the same in every run, for every thread count, and on the meta backend.
#ifndef LONGSEQ_RUNTIME_ALLOCATOR_H
#define LONGSEQ_RUNTIME_ALLOCATOR_H

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "longseq/backend.h"

namespace longseq {

struct MemoryStats {
  int64_t live = 0;      // bytes handed out (rounded sizes)
  int64_t reserved = 0;  // bytes with pages behind them: live + cached
  int64_t peak_live = 0;
  int64_t peak_reserved = 0;  // what limits and peaks count
  int64_t limit = 0;          // of reserved; 0: none
  int64_t allocations = 0;    // since the start
  int64_t category_live[LS_CATEGORY_COUNT] = {};
  int64_t category_peak[LS_CATEGORY_COUNT] = {};     // each category's own highest
  int64_t category_at_peak[LS_CATEGORY_COUNT] = {};  // live by category when reserved was highest
};

// One tier of one device. Reserved bytes grow only when no cached page is left: a request that fits no cached block
// takes fresh addresses and gives as many cached pages back, so the reserved peak is the peak of live bytes.
class Allocator {
 public:
  struct Hooks {
    std::function<void *(int64_t bytes)> reserve;                // address space; null on failure
    std::function<bool(void *address, int64_t bytes)> commit;    // now
    std::function<void(void *address, int64_t bytes)> decommit;  // after what was enqueued before
    std::function<std::string()> reason;  // why the last commit failed, or ""; may be empty itself
  };

  Allocator(std::string device, int32_t tier, int64_t page_bytes, Hooks hooks);

  // Bytes > 0. Throws Error(LS_OUT_OF_MEMORY) with the breakdown. *rounded is what is accounted.
  void *allocate(int64_t bytes, int32_t category, int64_t *rounded);
  void release(void *address, int32_t category);
  // Accounted bytes that were of one category are of another from now on; peaks that were stay as they were.
  void recategorize(int64_t rounded, int32_t from, int32_t to);
  // Gives every cached page back.
  void trim();
  // Where a block lies among the logical offsets: on the disk, its place in the file.
  int64_t offset_of(const void *address) const;
  void set_limit(int64_t bytes);
  void reset_peaks();
  const MemoryStats &stats() const { return stats_; }
  // Equal where live bytes and the pool of small blocks are: the same calls then reserve the same bytes again.
  uint64_t arrangement() const;
  // "params 1.00 GiB, ..." of what is live.
  std::string breakdown() const;

 private:
  struct Block {
    int64_t size;
    bool free;
    bool committed;
  };
  struct Region {
    int64_t offset;  // logical start; logical offsets, not addresses, decide every tie
    int64_t size;
    char *address;
  };
  // Blocks of one granularity: the large pool over regions, the small pool over chunks of the large one.
  using FreeSet = std::set<std::pair<int64_t, int64_t>>;  // (size, offset)

  int64_t allocate_large(int64_t size);
  void release_large(int64_t offset);
  int64_t allocate_small(int64_t size);
  void release_small(int64_t offset);
  void give_back(int64_t bytes);
  void decommit_block(int64_t offset);
  bool same_region(int64_t a, int64_t b) const;
  const Region &region_of(int64_t offset) const;
  char *address_of(int64_t offset) const;
  void grow(int64_t bytes);
  [[noreturn]] void out_of_memory(int64_t size, const std::string &reason = "") const;

  std::string device_;
  int32_t tier_;
  int64_t page_;
  Hooks hooks_;
  MemoryStats stats_;
  std::vector<Region> regions_;
  int64_t cached_ = 0;  // committed and free, large pool
  std::map<int64_t, Block> large_;
  FreeSet cached_blocks_, fresh_blocks_;
  std::map<int64_t, Block> small_;
  FreeSet small_free_;
  std::map<int64_t, int64_t> chunks_;  // offset -> size of the small pool's chunks
};

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_ALLOCATOR_H
