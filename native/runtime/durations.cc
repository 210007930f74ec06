// Between two points time goes as a power of the work; beyond the last one in proportion, below the first not at all.
#include "runtime/durations.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace longseq {

void Durations::set(const std::string &name, std::vector<Point> points) { curves_[name] = std::move(points); }

double Durations::seconds(const std::vector<std::string> &names, double work) const {
  for (const std::string &name : names) {
    const auto found = curves_.find(name);
    if (found == curves_.end()) continue;
    const std::vector<Point> &points = found->second;
    const auto above =
        std::lower_bound(points.begin(), points.end(), work, [](const Point &a, double b) { return a.work < b; });
    if (above == points.begin()) return points.front().seconds;
    const Point &low = *(above - 1);
    if (above == points.end()) return low.seconds * work / low.work;
    const double share = std::log(work / low.work) / std::log(above->work / low.work);
    return low.seconds * std::pow(above->seconds / low.seconds, share);
  }
  return 0;
}

}  // namespace longseq
