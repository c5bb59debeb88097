#include "cpu/threads/wrap_around.h"

#include <algorithm>
#include <numeric>

namespace metafast {
namespace {

// Before which stage a run is cut, so that those before it take about this time.
int32_t cut(const std::vector<double>& stages, double time) {
  int32_t stage = 0;
  for (; stage < int32_t(stages.size()) && time >= stages[size_t(stage)] / 2; ++stage) time -= stages[size_t(stage)];
  return stage;
}

}  // namespace

Slices wrap_around(int threads, int64_t runs, const std::vector<double>& stages, double rest) {
  const double length = std::accumulate(stages.begin(), stages.end(), 0.0), little = 1e-6 * length;
  const double share = std::max(length, (double(runs) + rest) * length / threads);
  const auto count = int32_t(stages.size());
  Slices result;
  std::vector<Slice>& all = result.all;
  int64_t next = 0;   // the first run that nobody has
  int32_t begun = 0;  // its stages that this thread does, where the one before does the others
  for (int thread = 0; thread < threads; ++thread) {
    result.first.push_back(int64_t(all.size()));
    if (begun > 0) all.push_back({next++, 0, begun, -1, result.migrated++});
    begun = 0;
    const bool last = thread + 1 == threads;
    const double end = share * (thread + 1);
    for (; next < runs && (last || double(next + 1) * length < end + little); ++next)
      all.push_back({next, 0, count, -1, -1});
    if (last || next == runs || double(next) * length > end - little) continue;
    const int32_t stage = cut(stages, double(next + 1) * length - end);
    if (stage == 0) {
      all.push_back({next++, 0, count, -1, -1});
    } else if (stage < count) {
      all.push_back({next, stage, count, int64_t(all.size()) + 1, result.migrated});
      begun = stage;
    }
  }
  result.first.push_back(int64_t(all.size()));
  return result;
}

}  // namespace metafast
