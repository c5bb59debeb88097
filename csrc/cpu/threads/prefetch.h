// Problem: the tapes of many inner steps do not stay in the second-level cache, and both sweeps wait for one step's after
//   the other's.
// Solution: while a step is computed, what the next one works on is prefetched, some of it before each primitive: a core
//   waits for few lines at a time.
// Usage: prefetcher.add(from, bytes) at most twice, prefetcher.spread(times), then prefetcher.fetch() as many times.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace metafast {
namespace METAFAST_ISA {

// Fewer elements of all steps stay in the cache anyway; more of a step would drive out what the present one works on.
template <class T>
constexpr int64_t kPrefetchFrom = 512 * 1024 / int64_t(sizeof(T));
template <class T>
constexpr int64_t kPrefetchAtMost = 128 * 1024 / int64_t(sizeof(T));

class Prefetcher {
 public:
  void add(const void* from, int64_t bytes) { ranges_[count_++] = {static_cast<const char*>(from), bytes}; }

  void spread(int64_t times) {
    int64_t bytes = 0;
    for (const Range& range : ranges_) bytes += range.left;
    at_once_ = times > 0 ? bytes / times / kLine + 1 : 0;
  }

  void fetch() {
    int64_t lines = at_once_;
    for (Range& range : ranges_)
      for (; range.left > 0 && lines > 0; --lines, range.next += kLine, range.left -= kLine)
        __builtin_prefetch(range.next, 0, 2);
  }

 private:
  static constexpr int64_t kLine = 64;
  struct Range {
    const char* next = nullptr;
    int64_t left = 0;
  };
  Range ranges_[2];
  int count_ = 0;
  int64_t at_once_ = 0;
};

}  // namespace METAFAST_ISA
}  // namespace metafast
