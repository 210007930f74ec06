// Best fit with splitting and coalescing over logical offsets; see allocator.h for the rule on cached pages.
#include "runtime/allocator.h"

#include <algorithm>

#include "runtime/error.h"

namespace longseq {

namespace {

constexpr int64_t kSmallRound = 256;
constexpr int64_t kSmallLimit = 256 << 10;  // requests up to this share chunks
constexpr int64_t kChunk = 1 << 20;
constexpr int64_t kRegion = int64_t{64} << 30;
constexpr int64_t kRegionGap = int64_t{1} << 40;  // logical distance between regions, so blocks never merge across

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

Allocator::Allocator(std::string device, int32_t tier, int64_t page_bytes, Hooks hooks)
    : device_(std::move(device)), tier_(tier), page_(page_bytes), hooks_(std::move(hooks)) {}

const Allocator::Region &Allocator::region_of(int64_t offset) const {
  for (const Region &region : regions_)
    if (offset >= region.offset && offset < region.offset + region.size) return region;
  return regions_.front();
}

bool Allocator::same_region(int64_t a, int64_t b) const { return &region_of(a) == &region_of(b); }

char *Allocator::address_of(int64_t offset) const {
  const Region &region = region_of(offset);
  return region.address + (offset - region.offset);
}

int64_t Allocator::offset_of(const void *address) const {
  const char *pointer = static_cast<const char *>(address);
  for (const Region &region : regions_)
    if (pointer >= region.address && pointer < region.address + region.size)
      return region.offset + (pointer - region.address);
  return -1;
}

void Allocator::grow(int64_t bytes) {
  // Halving serves machines whose address space is limited (ulimit -v).
  for (int64_t size = std::max(kRegion, round_up(bytes, page_));; size = std::max(size / 2, round_up(bytes, page_))) {
    if (void *address = hooks_.reserve(size)) {
      const int64_t offset =
          regions_.empty() ? 0 : round_up(regions_.back().offset + regions_.back().size + 1, kRegionGap);
      regions_.push_back({offset, size, static_cast<char *>(address)});
      large_[offset] = {size, true, false};
      fresh_blocks_.insert({size, offset});
      return;
    }
    if (size <= round_up(bytes, page_)) out_of_memory(bytes);
  }
}

void Allocator::decommit_block(int64_t offset) {
  Block &block = large_.at(offset);
  hooks_.decommit(address_of(offset), block.size);
  cached_blocks_.erase({block.size, offset});
  cached_ -= block.size;
  stats_.reserved -= block.size;
  block.committed = false;
  // Merge with fresh neighbours, so that address space is found again.
  auto it = large_.find(offset);
  if (auto next = std::next(it);
      next != large_.end() && next->second.free && !next->second.committed && same_region(offset, next->first)) {
    fresh_blocks_.erase({next->second.size, next->first});
    it->second.size += next->second.size;
    large_.erase(next);
  }
  if (it != large_.begin()) {
    auto previous = std::prev(it);
    if (previous->second.free && !previous->second.committed && same_region(offset, previous->first)) {
      fresh_blocks_.erase({previous->second.size, previous->first});
      previous->second.size += it->second.size;
      large_.erase(it);
      it = previous;
    }
  }
  fresh_blocks_.insert({it->second.size, it->first});
}

void Allocator::give_back(int64_t bytes) {
  // Largest first: fewest calls. Every cached block is smaller than the request that asks for this, or the limit is
  // near.
  while (bytes > 0 && !cached_blocks_.empty()) {
    const auto [size, offset] = *cached_blocks_.rbegin();
    decommit_block(offset);
    bytes -= size;
  }
}

int64_t Allocator::allocate_large(int64_t size) {
  auto take = [&](FreeSet &from, FreeSet::iterator found, bool committed) {
    const auto [block_size, offset] = *found;
    from.erase(found);
    if (block_size > size) {
      large_[offset + size] = {block_size - size, true, committed};
      from.insert({block_size - size, offset + size});
    }
    large_[offset] = {size, false, true};
    return offset;
  };
  if (auto found = cached_blocks_.lower_bound({size, -1}); found != cached_blocks_.end()) {
    cached_ -= size;
    return take(cached_blocks_, found, true);
  }
  give_back(size);
  if (stats_.limit > 0 && stats_.reserved + size > stats_.limit) {
    give_back(stats_.reserved + size - stats_.limit);
    if (stats_.reserved + size > stats_.limit) out_of_memory(size);
  }
  auto found = fresh_blocks_.lower_bound({size, -1});
  if (found == fresh_blocks_.end()) {
    grow(size);
    found = fresh_blocks_.lower_bound({size, -1});
  }
  const int64_t offset = take(fresh_blocks_, found, false);
  stats_.reserved += size;
  if (!hooks_.commit(address_of(offset), size)) {
    // The block stays cached in the books of addresses only.
    stats_.reserved -= size;
    large_[offset] = {size, true, false};
    fresh_blocks_.insert({size, offset});
    out_of_memory(size, hooks_.reason ? hooks_.reason() : "");
  }
  return offset;
}

void Allocator::release_large(int64_t offset) {
  auto it = large_.find(offset);
  it->second.free = true;
  cached_ += it->second.size;
  auto mergeable = [&](std::map<int64_t, Block>::iterator other) {
    return other->second.free && other->second.committed && same_region(offset, other->first);
  };
  if (auto next = std::next(it); next != large_.end() && mergeable(next)) {
    cached_blocks_.erase({next->second.size, next->first});
    it->second.size += next->second.size;
    large_.erase(next);
  }
  if (it != large_.begin()) {
    auto previous = std::prev(it);
    if (mergeable(previous)) {
      cached_blocks_.erase({previous->second.size, previous->first});
      previous->second.size += it->second.size;
      large_.erase(it);
      it = previous;
    }
  }
  cached_blocks_.insert({it->second.size, it->first});
}

int64_t Allocator::allocate_small(int64_t size) {
  auto found = small_free_.lower_bound({size, -1});
  if (found == small_free_.end()) {
    const int64_t bytes = round_up(kChunk, page_);
    const int64_t offset = allocate_large(bytes);
    chunks_[offset] = bytes;
    small_[offset] = {bytes, true, true};
    small_free_.insert({bytes, offset});
    found = small_free_.lower_bound({size, -1});
  }
  const auto [block_size, offset] = *found;
  small_free_.erase(found);
  if (block_size > size) {
    small_[offset + size] = {block_size - size, true, true};
    small_free_.insert({block_size - size, offset + size});
  }
  small_[offset] = {size, false, true};
  return offset;
}

void Allocator::release_small(int64_t offset) {
  auto it = small_.find(offset);
  it->second.free = true;
  if (auto next = std::next(it); next != small_.end() && next->second.free && !chunks_.count(next->first)) {
    small_free_.erase({next->second.size, next->first});
    it->second.size += next->second.size;
    small_.erase(next);
  }
  if (!chunks_.count(it->first) && it != small_.begin()) {
    auto previous = std::prev(it);
    if (previous->second.free) {
      small_free_.erase({previous->second.size, previous->first});
      previous->second.size += it->second.size;
      small_.erase(it);
      it = previous;
    }
  }
  auto chunk = chunks_.find(it->first);
  if (chunk != chunks_.end() && chunk->second == it->second.size) {
    const int64_t start = chunk->first;
    small_.erase(it);
    chunks_.erase(chunk);
    release_large(start);
    return;
  }
  small_free_.insert({it->second.size, it->first});
}

void *Allocator::allocate(int64_t bytes, int32_t category, int64_t *rounded) {
  // Blocks on the disk start at pages: direct transfers ask for that.
  const bool small = tier_ != LS_TIER_DISK && bytes <= kSmallLimit;
  const int64_t size = round_up(bytes, small ? kSmallRound : page_);
  const int64_t offset = small ? allocate_small(size) : allocate_large(size);
  *rounded = size;
  ++stats_.allocations;
  stats_.live += size;
  stats_.category_live[category] += size;
  stats_.category_peak[category] = std::max(stats_.category_peak[category], stats_.category_live[category]);
  stats_.peak_live = std::max(stats_.peak_live, stats_.live);
  if (stats_.reserved > stats_.peak_reserved) {
    stats_.peak_reserved = stats_.reserved;
    std::copy(std::begin(stats_.category_live), std::end(stats_.category_live), std::begin(stats_.category_at_peak));
  }
  return address_of(offset);
}

void Allocator::release(void *address, int32_t category) {
  const int64_t offset = offset_of(address);
  int64_t size;
  if (auto small = small_.find(offset); small != small_.end() && !small->second.free) {
    size = small->second.size;
    release_small(offset);
  } else {
    size = large_.at(offset).size;
    release_large(offset);
  }
  stats_.live -= size;
  stats_.category_live[category] -= size;
}

void Allocator::recategorize(int64_t rounded, int32_t from, int32_t to) {
  stats_.category_live[from] -= rounded;
  stats_.category_live[to] += rounded;
  stats_.category_peak[to] = std::max(stats_.category_peak[to], stats_.category_live[to]);
}

void Allocator::trim() { give_back(cached_); }

void Allocator::set_limit(int64_t bytes) {
  stats_.limit = bytes;
  if (bytes > 0 && stats_.reserved > bytes) give_back(stats_.reserved - bytes);
}

void Allocator::reset_peaks() {
  stats_.peak_live = stats_.live;
  stats_.peak_reserved = stats_.reserved;
  std::copy(std::begin(stats_.category_live), std::end(stats_.category_live), std::begin(stats_.category_peak));
  std::copy(std::begin(stats_.category_live), std::end(stats_.category_live), std::begin(stats_.category_at_peak));
}

uint64_t Allocator::arrangement() const {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a, by words
  auto mix = [&](uint64_t word) { hash = (hash ^ word) * 0x100000001b3 ^ (hash >> 29); };
  // Where free pages lie does not matter: reserved bytes peak where live ones do, whatever the gaps between blocks.
  mix(static_cast<uint64_t>(stats_.live));
  for (const auto &[offset, block] : small_) {
    mix(static_cast<uint64_t>(offset));
    mix(static_cast<uint64_t>(block.size) << 1 | (block.free ? 1 : 0));
  }
  return hash;
}

std::string Allocator::breakdown() const {
  std::string text;
  for (int32_t i = 0; i < LS_CATEGORY_COUNT; ++i) {
    if (stats_.category_live[i] == 0) continue;
    if (!text.empty()) text += ", ";
    text += std::string(category_name(i)) + " " + bytes_text(stats_.category_live[i]);
  }
  return text.empty() ? "nothing" : text;
}

void Allocator::out_of_memory(int64_t size, const std::string &reason) const {
  Error error(
      LS_OUT_OF_MEMORY,
      format("out of %s memory on %s: %s more were asked for, %s are in use (%s)%s%s%s; %s, or raise memory.%s_limit",
             tier_name(tier_), device_.c_str(), bytes_text(size).c_str(), bytes_text(stats_.live).c_str(),
             breakdown().c_str(),
             stats_.limit > 0 ? format(", the limit is %s", bytes_text(stats_.limit).c_str()).c_str() : "",
             reason.empty() ? "" : "; ", reason.c_str(),
             tier_ == LS_TIER_DEVICE
                 ? "use a shorter sequence, smaller memory.tile_mlp and memory.tile_loss"
                 : "leave more on the device (memory.checkpoint.offload, memory.checkpoint.device_bytes, "
                   "memory.offload.optimizer, memory.offload.params, memory.offload.gradients)",
             tier_name(tier_)));
  error.details.emplace_back("requested", static_cast<double>(size));
  error.details.emplace_back("limit", static_cast<double>(stats_.limit));
  error.details.emplace_back("live", static_cast<double>(stats_.live));
  for (int32_t i = 0; i < LS_CATEGORY_COUNT; ++i)
    error.details.emplace_back(category_name(i), static_cast<double>(stats_.category_live[i]));
  throw error;
}

}  // namespace longseq
