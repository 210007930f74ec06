// Sections, sweeps and the player; see program_log.h.
#include "runtime/program_log.h"

#include <algorithm>
#include <memory>
#include <set>
#include <tuple>
#include <utility>

namespace longseq {

ProgramLog::ProgramLog(std::string device, int64_t page_bytes, const OpCounts *counts, int64_t first_block,
                       double overlap)
    : device_(std::move(device)),
      page_bytes_(page_bytes),
      overlap_(overlap),
      counts_(counts),
      counts_before_(*counts),
      first_block_(first_block) {
  sections_.push_back({-1, 0, 0, 0, {}});
}

int64_t ProgramLog::allocated(int32_t tier, int32_t category, int64_t bytes) {
  entries_.push_back({Kind::allocate, static_cast<int8_t>(tier), static_cast<int8_t>(category), bytes, blocks_});
  section_of_.push_back(sections_.size() - 1);
  return first_block_ + blocks_++;
}

void ProgramLog::recategorized(int64_t block, int32_t category) {
  if (block >= first_block_)
    entries_.push_back({Kind::recategorize, 0, static_cast<int8_t>(category), 0, block - first_block_});
}

void ProgramLog::released(int64_t block) {
  if (block >= first_block_) entries_.push_back({Kind::release, 0, 0, 0, block - first_block_});
}

void ProgramLog::flush(int32_t queue) {
  int64_t &work = pending_[static_cast<size_t>(queue)];
  if (work > 0) entries_.push_back({Kind::work, static_cast<int8_t>(queue), 0, work, -1});
  work = 0;
}

void ProgramLog::waited(int32_t queue, int32_t other) {
  flush(queue);
  flush(other);
  entries_.push_back({Kind::wait, static_cast<int8_t>(queue), static_cast<int8_t>(other), 0, -1});
}

void ProgramLog::given(int32_t queue, uint64_t sequence) {
  Tasks &tasks = tasks_[static_cast<size_t>(queue)];
  if (!tasks.sequences.empty() && tasks.sequences.back() >= sequence) return;
  flush(queue);
  entries_.push_back({Kind::task, static_cast<int8_t>(queue), 0, 0, -1});
  tasks.sequences.push_back(sequence);
  tasks.sections.push_back(sections_.size() - 1);
}

void ProgramLog::ordered(int32_t queue, int32_t other, uint64_t sequence) {
  uint64_t &joined = joined_[static_cast<size_t>(queue)][static_cast<size_t>(other)];
  // A queue's tasks end in order.
  if (sequence <= joined) return;
  joined = sequence;
  const std::vector<uint64_t> &all = tasks_[static_cast<size_t>(other)].sequences;
  const auto task = std::lower_bound(all.begin(), all.end(), sequence);
  if (task == all.end() || *task != sequence) return;
  flush(queue);
  entries_.push_back({Kind::order, static_cast<int8_t>(queue), static_cast<int8_t>(other), task - all.begin(), -1});
}

void ProgramLog::marked(size_t number) {
  for (int32_t queue = 0; queue < LS_QUEUE_COUNT; ++queue) flush(queue);
  entries_.push_back({Kind::mark, 0, 0, static_cast<int64_t>(number), -1});
}

void ProgramLog::repeated(size_t number, double times) {
  for (int32_t queue = 0; queue < LS_QUEUE_COUNT; ++queue) flush(queue);
  entries_.push_back({Kind::repeat, 0, 0, static_cast<int64_t>(number), static_cast<int64_t>(times)});
}

// Ends the last section, and begins another of the layer that is at work.
void ProgramLog::close() {
  for (int32_t queue = 0; queue < LS_QUEUE_COUNT; ++queue) flush(queue);
  Section &last = sections_.back();
  last.end = entries_.size();
  add_counts(last.counts, *counts_, counts_before_, 1);
  counts_before_ = *counts_;
  sections_.push_back({layer_, entries_.size(), entries_.size(), blocks_, {}});
  for (size_t queue = 0; queue < LS_QUEUE_COUNT; ++queue)
    sections_.back().first_task[queue] = static_cast<int64_t>(tasks_[queue].sequences.size());
}

// Whether the last section has anything in it.
bool ProgramLog::pending() const {
  const Section &last = sections_.back();
  if (last.fixed || last.begin < entries_.size() || !last.counts.empty()) return true;
  if (counts_->size() != counts_before_.size()) return true;
  for (auto now = counts_->begin(), before = counts_before_.begin(); now != counts_->end(); ++now, ++before)
    if (now->second.calls != before->second.calls) return true;
  return false;
}

void ProgramLog::enter(int32_t layer) {
  if (layer == layer_) return;
  layer_ = layer;
  if (pending()) return close();
  // Nothing was done for the layer before; what this one is for may be what was interrupted.
  if (sections_.size() > 1 && sections_[sections_.size() - 2].layer == layer && !sections_.back().fixed)
    sections_.pop_back();
  else
    sections_.back().layer = layer;
}

size_t ProgramLog::position() {
  close();
  sections_.back().fixed = true;
  return sections_.size() - 1;
}

void ProgramLog::repeat(size_t from, double times) {
  close();
  for (size_t i = from; i + 1 < sections_.size(); ++i) sections_[i].times *= 1 + times;
}

void ProgramLog::counts_reset() {
  counts_from_ = position();
  counts_before_.clear();
}

void ProgramLog::counts_end() { counts_to_ = position(); }

const ProgramLog::Section &ProgramLog::section_of_block(int64_t block) const {
  return sections_[section_of_[static_cast<size_t>(block)]];
}

// Sections without anything in them are no part of a sweep: between two layers there often is such a one.
void ProgramLog::find_sweeps() {
  for (size_t i = 0; i < sections_.size(); ++i) {
    Section &section = sections_[i];
    if (section.begin == section.end && section.counts.empty()) continue;
    const bool layered = section.layer >= 0;
    Sweep *last = sweeps_.empty() ? nullptr : &sweeps_.back();
    if (layered && last && last->layered) {
      const int32_t before = sections_[last->sections.back()].layer;
      const bool down = section.layer < before;
      if (section.layer != before && (last->sections.size() == 1 || last->down == down)) {
        last->down = down;
        last->sections.push_back(i);
        section.sweep = static_cast<int32_t>(sweeps_.size()) - 1;
        continue;
      }
    }
    sweeps_.push_back({layered, false, {i}});
    section.sweep = static_cast<int32_t>(sweeps_.size()) - 1;
  }
}

ProgramLog::Reference ProgramLog::reference(const Section &from, int64_t block) const {
  const Section &made = section_of_block(block);
  const int32_t distance = made.layer < 0 ? 0 : made.layer - from.layer;
  return {made.sweep, distance, block - made.first_block};
}

const ProgramLog::Section *ProgramLog::section_at(const Sweep &sweep, int32_t layer) const {
  for (const size_t i : sweep.sections)
    if (sections_[i].layer == layer) return &sections_[i];
  return nullptr;
}

bool ProgramLog::alike(const Section *one, const Section *other) const {
  if (!one || !other) return one == other;
  if (one->times != other->times) return false;
  if (one->counts.size() != other->counts.size()) return false;
  for (auto a = one->counts.begin(), b = other->counts.begin(); a != one->counts.end(); ++a, ++b)
    if (a->first != b->first || a->second.calls != b->second.calls || a->second.flops != b->second.flops ||
        a->second.bytes != b->second.bytes)
      return false;
  // When queues wait for each other may differ where layers begin and end.
  const auto next = [this](size_t i, const Section *section) {
    while (i < section->end && entries_[i].timed()) ++i;
    return i;
  };
  size_t i = next(one->begin, one), j = next(other->begin, other);
  for (; i < one->end && j < other->end; i = next(i + 1, one), j = next(j + 1, other)) {
    const Entry &a = entries_[i], &b = entries_[j];
    if (a.kind != b.kind || a.tier != b.tier || a.category != b.category || a.bytes != b.bytes) return false;
    if (!(reference(*one, a.block) == reference(*other, b.block))) return false;
  }
  return i == one->end && j == other->end;
}

bool ProgramLog::periodic(const Insertion &insertion) const {
  for (const Sweep &sweep : sweeps_) {
    if (!sweep.layered) continue;
    for (int32_t layer = insertion.at - insertion.period; layer < insertion.at; ++layer)
      if (!alike(section_at(sweep, layer), section_at(sweep, layer + insertion.period))) return false;
  }
  return true;
}

// Plays a log, with the layers put in, through allocators of its own.
class ProgramLog::Player {
 public:
  Player(const ProgramLog &log, const Insertion &insertion) : log_(log), insertion_(insertion), clock_(log.overlap_) {
    for (int32_t tier = 0; tier < LS_TIER_COUNT; ++tier) {
      Allocator::Hooks hooks;
      // Addresses that nothing touches, far from those of other tiers.
      hooks.reserve = [next = (uintptr_t{1} + static_cast<uintptr_t>(tier)) << 52](int64_t bytes) mutable {
        const uintptr_t address = next;
        next += static_cast<uintptr_t>(bytes) + (1 << 20);
        return reinterpret_cast<void *>(address);
      };
      hooks.commit = [](void *, int64_t) { return true; };
      hooks.decommit = [](void *, int64_t) {};
      allocators_[static_cast<size_t>(tier)] =
          std::make_unique<Allocator>(log.device_, tier, log.page_bytes_, std::move(hooks));
    }
    bases_.resize(log.sweeps_.size());
    for (auto &bases : task_bases_) bases.resize(log.sweeps_.size());
    find_near();
  }

  // False: what the log says of the layers that are put in leads nowhere.
  bool play() {
    const int32_t added = insertion_.copies * insertion_.period;
    for (const Sweep &sweep : log_.sweeps_) {
      bool inserted = !sweep.layered;
      for (const size_t i : sweep.sections) {
        const Section &section = log_.sections_[i];
        const bool behind = section.layer >= insertion_.at;
        if (!inserted && behind != sweep.down) {
          inserted = true;
          if (!insert(sweep)) return false;
        }
        if (!run(section, section.layer + (sweep.layered && behind ? added : 0))) return false;
      }
      if (!inserted && !insert(sweep)) return false;
    }
    return true;
  }

  Accounts take() const {
    Accounts accounts;
    for (size_t tier = 0; tier < LS_TIER_COUNT; ++tier) accounts.memory[tier] = allocators_[tier]->stats();
    accounts.counts = counts_;
    accounts.elapsed = elapsed_;
    return accounts;
  }

 private:
  struct Played {
    void *address;
    int64_t rounded;
    int32_t tier;
    int32_t category;
    bool live;
  };

  // What the layers that are copied speak of, by sweep and distance: across the place where layers are put in, the same
  // is that far away too, and nothing else is.
  void find_near() {
    for (const Sweep &sweep : log_.sweeps_) {
      if (!sweep.layered) continue;
      for (int32_t layer = insertion_.at - insertion_.period; layer < insertion_.at + insertion_.period; ++layer)
        if (const Section *section = log_.section_at(sweep, layer))
          for (size_t i = section->begin; i < section->end; ++i) {
            if (log_.entries_[i].timed()) continue;
            const Reference to = log_.reference(*section, log_.entries_[i].block);
            near_.insert({section->sweep, to.sweep, to.distance});
          }
    }
  }

  bool insert(const Sweep &sweep) {
    const int32_t added = insertion_.copies * insertion_.period;
    for (int32_t i = 0; i < added; ++i) {
      const int32_t offset = sweep.down ? added - 1 - i : i;
      const int32_t like = insertion_.at - insertion_.period + offset % insertion_.period;
      if (const Section *section = log_.section_at(sweep, like))
        if (!run(*section, insertion_.at + offset)) return false;
    }
    return true;
  }

  // The layer in the longer model that a reference means; -2: nothing is known of it.
  int32_t target(const Section &section, int32_t layer, const Section &made) const {
    const int32_t added = insertion_.copies * insertion_.period;
    const bool in_the_middle =
        made.layer >= insertion_.at - insertion_.period && made.layer < insertion_.at + insertion_.period;
    if (section.layer < 0) {
      if (in_the_middle) return -2;
      return made.layer < insertion_.at ? made.layer : made.layer + added;
    }
    const int32_t distance = made.layer - section.layer;
    const bool across = (section.layer < insertion_.at) != (made.layer < insertion_.at);
    if (across && !near_.count({section.sweep, made.sweep, distance})) return -2;
    return layer + distance;
  }

  Played *find(const Section &section, int32_t layer, int64_t block) {
    const Section &made = log_.section_of_block(block);
    const int32_t where = made.layer < 0 ? 0 : target(section, layer, made);
    const auto &bases = bases_[static_cast<size_t>(made.sweep)];
    if (where < 0 || static_cast<size_t>(where) >= bases.size() || bases[static_cast<size_t>(where)] < 0)
      return nullptr;
    const int64_t at = bases[static_cast<size_t>(where)] + block - made.first_block;
    if (at >= static_cast<int64_t>(played_.size())) return nullptr;
    Played &played = played_[static_cast<size_t>(at)];
    return played.live ? &played : nullptr;
  }

  // One section, as that of a layer of the longer model.
  bool run(const Section &section, int32_t layer) {
    const auto place = static_cast<size_t>(section.layer < 0 ? 0 : layer);
    auto &bases = bases_[static_cast<size_t>(section.sweep)];
    if (bases.size() <= place) bases.resize(place + 1, -1);
    bases[place] = static_cast<int64_t>(played_.size());
    for (size_t queue = 0; queue < LS_QUEUE_COUNT; ++queue) {
      auto &tasks = task_bases_[queue][static_cast<size_t>(section.sweep)];
      if (tasks.size() <= place) tasks.resize(place + 1, -1);
      tasks[place] = static_cast<int64_t>(ends_[queue].size());
    }
    const Clock::Elapsed before = clock_.elapsed();
    for (size_t i = section.begin; i < section.end; ++i) {
      const Entry &entry = log_.entries_[i];
      if (entry.kind == Kind::allocate) {
        Played made = {nullptr, 0, entry.tier, entry.category, true};
        made.address = allocator(entry.tier).allocate(entry.bytes, entry.category, &made.rounded);
        played_.push_back(made);
        continue;
      }
      if (entry.timed()) {
        tell_clock(entry, section, layer);
        continue;
      }
      Played *found = find(section, layer, entry.block);
      if (!found) return false;
      if (entry.kind == Kind::release) {
        allocator(found->tier).release(found->address, found->category);
        found->live = false;
      } else {
        allocator(found->tier).recategorize(found->rounded, found->category, entry.category);
        found->category = entry.category;
      }
    }
    const auto number = static_cast<size_t>(&section - log_.sections_.data());
    if (number < log_.counts_from_ || number >= log_.counts_to_) return true;
    add_counts(counts_, section.counts, {}, section.times);
    const Clock::Elapsed after = clock_.elapsed();
    elapsed_.seconds += section.times * (after.seconds - before.seconds);
    for (size_t queue = 0; queue < LS_QUEUE_COUNT; ++queue) {
      elapsed_.busy[queue] += section.times * (after.busy[queue] - before.busy[queue]);
      elapsed_.exposed[queue] += section.times * (after.exposed[queue] - before.exposed[queue]);
    }
    return true;
  }

  void tell_clock(const Entry &entry, const Section &section, int32_t layer) {
    const auto number = static_cast<size_t>(entry.bytes);
    switch (entry.kind) {
      case Kind::work:
        return clock_.work(entry.tier, seconds(entry.bytes));
      case Kind::task:
        return ends_[static_cast<size_t>(entry.tier)].push_back(clock_.now(entry.tier));
      case Kind::wait:
        return clock_.wait(entry.tier, entry.category, clock_.now(entry.category));
      case Kind::order:
        return clock_.wait(entry.tier, entry.category, end_of(section, layer, entry.category, entry.bytes));
      case Kind::mark:
        return clock_.mark(number);
      case Kind::repeat:
        return clock_.repeat(number, static_cast<double>(entry.block));
      default:
        return;
    }
  }

  // When a task ended that a section waits for, run as that of a layer of the longer model. What is a few layers away
  // in the log is as far away there; anything else is where it was.
  double end_of(const Section &section, int32_t layer, int32_t queue, int64_t task) const {
    const auto q = static_cast<size_t>(queue);
    const Section &made = log_.sections_[log_.tasks_[q].sections[static_cast<size_t>(task)]];
    int32_t where = 0;
    if (made.layer >= 0) {
      const int32_t distance = made.layer - section.layer;
      const bool near = section.layer >= 0 && distance >= -2 * insertion_.period && distance <= 2 * insertion_.period;
      const int32_t added = made.layer >= insertion_.at ? insertion_.copies * insertion_.period : 0;
      where = near ? layer + distance : made.layer + added;
    }
    const auto &bases = task_bases_[q][static_cast<size_t>(made.sweep)];
    if (where < 0 || static_cast<size_t>(where) >= bases.size() || bases[static_cast<size_t>(where)] < 0) return 0;
    const int64_t at = bases[static_cast<size_t>(where)] + task - made.first_task[q];
    return at < static_cast<int64_t>(ends_[q].size()) ? ends_[q][static_cast<size_t>(at)] : 0;
  }

  Allocator &allocator(int32_t tier) { return *allocators_[static_cast<size_t>(tier)]; }

  const ProgramLog &log_;
  const Insertion insertion_;
  std::array<std::unique_ptr<Allocator>, LS_TIER_COUNT> allocators_;
  std::vector<Played> played_;
  // By sweep and layer: where the blocks of that section begin in played_; -1: there is none.
  std::vector<std::vector<int64_t>> bases_;
  std::set<std::tuple<int32_t, int32_t, int32_t>> near_;
  OpCounts counts_;
  Clock clock_;
  // The same of tasks, by queue, and when they ended.
  std::array<std::vector<std::vector<int64_t>>, LS_QUEUE_COUNT> task_bases_;
  std::array<std::vector<double>, LS_QUEUE_COUNT> ends_;
  Clock::Elapsed elapsed_;
};

std::optional<Accounts> ProgramLog::accounts(const Insertion &insertion) {
  close();
  sweeps_.clear();
  find_sweeps();
  if (insertion.copies > 0 && !periodic(insertion)) return std::nullopt;
  // Where nothing is put in, no layer is near that place.
  Player player(*this, insertion.copies > 0 ? insertion : Insertion{INT32_MAX / 2, 1, 0});
  if (!player.play()) return std::nullopt;
  return player.take();
}

}  // namespace longseq
