// What a program asked of a device's allocators and queues, by the layer of the model that asked, so that a model of
// many equal layers can be accounted for after a walk of a few: the log of one with more of them is made from it and
// played.
#ifndef LONGSEQ_RUNTIME_PROGRAM_LOG_H
#define LONGSEQ_RUNTIME_PROGRAM_LOG_H

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/allocator.h"
#include "runtime/clock.h"
#include "runtime/op_count.h"

namespace longseq {

// The layers `at - period` .. `at - 1` and the `period` behind them are to be alike; `copies` times so many more are
// put between them.
struct Insertion {
  int32_t at = 0;
  int32_t period = 1;
  int32_t copies = 0;
};

// What the program with the inserted layers would have come to.
struct Accounts {
  std::array<MemoryStats, LS_TIER_COUNT> memory;
  OpCounts counts;
  Clock::Elapsed elapsed;
};

class ProgramLog {
 public:
  // counts: what ops are counted in. first_block: the number of the first block; none that is smaller is looked at.
  // overlap: Durations::overlap.
  ProgramLog(std::string device, int64_t page_bytes, const OpCounts *counts, int64_t first_block, double overlap);

  // A block is taken; returns its number.
  int64_t allocated(int32_t tier, int32_t category, int64_t bytes);
  void recategorized(int64_t block, int32_t category);
  void released(int64_t block);

  // A queue was given work of so many seconds.
  void worked(int32_t queue, double seconds) { pending_[static_cast<size_t>(queue)] += ticks(seconds); }
  // What `queue` does next starts after all that `other` was given so far.
  void waited(int32_t queue, int32_t other);
  // The task with this number is the last that was given to a queue; others may wait for it.
  void given(int32_t queue, uint64_t sequence);
  // What `queue` does next starts after that task of `other`.
  void ordered(int32_t queue, int32_t other, uint64_t sequence);
  // See Clock::mark and repeat.
  void marked(size_t number);
  void repeated(size_t number, double times);

  // Behind the numbers of all blocks.
  int64_t end_block() const { return first_block_ + blocks_; }

  // What follows belongs to a layer; -1: to none.
  void enter(int32_t layer);
  // The number of the section that begins here; for repeat().
  size_t position();
  // What ops counted and took since a position is counted `times` times more.
  void repeat(size_t from, double times);
  // The counts are about to be set to zero.
  void counts_reset();
  // The counts and the time of accounts() are those since the last reset until here.
  void counts_end();

  // Nothing where the layers that are to be alike are not, or where what lies around them cannot be told apart.
  std::optional<Accounts> accounts(const Insertion &insertion);

 private:
  // Those from `work` on are about time, and `bytes` is ticks of work, the number of a task of the other queue, or that
  // of a mark; `block` is how often it is repeated.
  enum class Kind : uint8_t { allocate, recategorize, release, work, task, wait, order, mark, repeat };
  struct Entry {
    Kind kind;
    int8_t tier;      // or the queue
    int8_t category;  // or the other queue
    int64_t bytes;
    int64_t block;
    bool timed() const { return kind >= Kind::work; }
  };
  // Tasks of a queue that others may wait for: their sequence numbers, and the sections that they were given in.
  struct Tasks {
    std::vector<uint64_t> sequences;
    std::vector<size_t> sections;
  };
  // Time in whole ticks of 1/16 ns: what is alike is equal.
  static int64_t ticks(double seconds) { return static_cast<int64_t>(seconds * 16e9 + 0.5); }
  static double seconds(int64_t ticks) { return static_cast<double>(ticks) / 16e9; }
  // A stretch of the program that belongs to one layer, or to none.
  struct Section {
    int32_t layer;
    size_t begin, end;  // of entries_
    int64_t first_block;
    OpCounts counts;
    std::array<int64_t, LS_QUEUE_COUNT> first_task{};
    double times = 1;
    bool fixed = false;  // somebody asked for its number
    int32_t sweep = -1;  // set by find_sweeps()
  };
  // Sections of layers one behind the other, upwards or downwards. A section of no layer is a sweep of its own.
  struct Sweep {
    bool layered;
    bool down;
    std::vector<size_t> sections;
  };
  // Where a block was made, from where it is spoken of.
  struct Reference {
    int32_t sweep;
    int32_t distance;  // in layers; of a block of no layer: 0
    int64_t ordinal;   // among the blocks of its section
    bool operator==(const Reference &other) const {
      return sweep == other.sweep && distance == other.distance && ordinal == other.ordinal;
    }
  };
  class Player;

  // Writes down the work that a queue was given since it was written down last.
  void flush(int32_t queue);
  bool pending() const;
  void close();
  void find_sweeps();
  const Section &section_of_block(int64_t block) const;
  Reference reference(const Section &from, int64_t block) const;
  const Section *section_at(const Sweep &sweep, int32_t layer) const;
  bool alike(const Section *one, const Section *other) const;
  bool periodic(const Insertion &insertion) const;

  std::string device_;
  int64_t page_bytes_;
  double overlap_;
  std::array<int64_t, LS_QUEUE_COUNT> pending_{};
  // By queue and the queue that it waits for: up to which task it has waited already.
  std::array<std::array<uint64_t, LS_QUEUE_COUNT>, LS_QUEUE_COUNT> joined_{};
  const OpCounts *counts_;
  OpCounts counts_before_;
  std::vector<Entry> entries_;
  std::vector<Section> sections_;
  std::vector<Sweep> sweeps_;
  std::vector<size_t> section_of_;  // by block
  std::array<Tasks, LS_QUEUE_COUNT> tasks_;
  int64_t first_block_;
  int64_t blocks_ = 0;
  size_t counts_from_ = 0;
  size_t counts_to_ = SIZE_MAX;
  int32_t layer_ = -1;
};

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_PROGRAM_LOG_H
