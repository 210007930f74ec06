// How long what is enqueued takes, by rates that were measured elsewhere: lib/train/rates.ts.
#ifndef LONGSEQ_RUNTIME_DURATIONS_H
#define LONGSEQ_RUNTIME_DURATIONS_H

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace longseq {

class Durations {
 public:
  // What one call takes by how much it does: FLOPs where it counts any, else bytes.
  struct Point {
    double work;
    double seconds;
  };

  // points: by ascending work, both above 0. name: of an op; or what stands for those without rates of their own:
  // "products" (ops that count FLOPs) and "stream" (the others), on the CPU behind a device "host"; or a queue's. "/"
  // and the logarithm (base 2) of FLOPs a byte may follow.
  void set(const std::string &name, std::vector<Point> points);
  // How much of what the other queues do is hidden behind compute where that has something to do: 1 where they share
  // nothing with it.
  void set_overlap(double overlap) { overlap_ = overlap; }
  double overlap() const { return overlap_; }
  bool empty() const { return curves_.empty(); }

  // The first of these that has rates; 0 where none has.
  double seconds(const std::vector<std::string> &names, double work) const;

 private:
  std::map<std::string, std::vector<Point>> curves_;
  double overlap_ = 1;
};

}  // namespace longseq

#endif  // LONGSEQ_RUNTIME_DURATIONS_H
