// Per-thread scratch memory of the CPU kernels: one aligned block a thread, grown on demand, never above 8 MiB.
#ifndef LONGSEQ_CPU_SCRATCH_H
#define LONGSEQ_CPU_SCRATCH_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

namespace longseq::cpu::LS_ISA {

// The design's bound for memory that a thread keeps outside the allocator.
inline constexpr int64_t kScratchLimit = int64_t{8} << 20;

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  ~Scratch() {
    if (base_ != nullptr) munmap(base_, static_cast<size_t>(bytes_));
  }

  // Returns at least `bytes` bytes, aligned to a huge page, or NULL where the system gives none. What an earlier call
  // returned is gone: an op asks once and carves.
  void *take(int64_t bytes) {
    if (bytes <= bytes_) return base_;
    if (base_ != nullptr) munmap(base_, static_cast<size_t>(bytes_));
    base_ = nullptr;
    bytes_ = 0;
    const int64_t huge = int64_t{2} << 20;
    const int64_t rounded = (bytes + huge - 1) / huge * huge;
    // One huge page more than needed, cut off again, so that what stays starts at one.
    char *p = static_cast<char *>(
        mmap(nullptr, static_cast<size_t>(rounded + huge), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (p == MAP_FAILED) return nullptr;
    const int64_t head = (huge - reinterpret_cast<intptr_t>(p) % huge) % huge;
    if (head > 0) munmap(p, static_cast<size_t>(head));
    if (head < huge) munmap(p + head + rounded, static_cast<size_t>(huge - head));
    p += head;
    // Packed panels are walked with large strides: huge pages, where the system has them, spare TLB misses.
    madvise(p, static_cast<size_t>(rounded), MADV_HUGEPAGE);
    base_ = p;
    bytes_ = rounded;
    return p;
  }

 private:
  void *base_ = nullptr;
  int64_t bytes_ = 0;
};

// `shared` is filled by the calling queue thread for everybody (packed operands), `local` belongs to one piece of work;
// together they stay below kScratchLimit.
struct ThreadScratch {
  Scratch shared, local;
};

inline ThreadScratch &thread_scratch() {
  thread_local ThreadScratch scratch;
  return scratch;
}

}  // namespace longseq::cpu::LS_ISA

#endif  // LONGSEQ_CPU_SCRATCH_H
