// Problem: three equal runs on two threads take as long as four, and small networks come in few runs, each a pack of tasks.
// Solution: McNaughton's rule (1959). Laid end to end, the runs are cut into equal shares, one for each thread. The run on a
//   cut is begun by the next thread, first of all, and finished by this one, last of all: an inner loop can migrate
//   between any two of its stages, and there is time between its slices. Short runs that fill up are taken as they come.
// Usage: wrap_around() once; a WrapAround for each round; every thread calls work(). Threads that are late or missing stop
//   nobody: others take what they have not begun. Every other round is `backward`, the last thread's share being the first's: then
//   a thread begins runs where it finished some the round before. To read what another core has used takes little
//   longer, but a slice that wrote it took up to three times as long, on cores that seemed to have no cache in common.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/threads/spin.h"

namespace metafast {

// Stages [begin, end) of a run, which may only begin when another slice is done.
struct Slice {
  int64_t run;
  int32_t begin, end;
  int64_t after;     // -1: none
  int64_t migrated;  // number of the run among those that migrate; -1: this one is not
};

// The slices of all runs, those of thread i from first[i] to first[i + 1].
struct Slices {
  std::vector<Slice> all;
  std::vector<int64_t> first;
  int64_t migrated = 0;
};

// `stages`: how long each stage of a run takes. `rest`: as long as so many runs all short ones take.
Slices wrap_around(int threads, int64_t runs, const std::vector<double>& stages, double rest);

class WrapAround {
 public:
  WrapAround(const Slices& slices, int64_t rest, bool backward)
      : slices_(slices),
        backward_(backward),
        rest_(rest),
        taken_(new std::atomic<bool>[slices.all.size()] {}),
        done_(new std::atomic<bool>[slices.all.size()] {}) {}

  // Calls run(slice) for slices that no other thread has taken, and run_short(i) for short runs. Must not throw.
  template <class Run, class RunShort>
  void work(int thread, const Run& run, const RunShort& run_short) {
    const int64_t threads = int64_t(slices_.first.size()) - 1;
    for (int64_t i = 0; i < threads; ++i) {
      const int64_t whose = backward_ ? (2 * threads - 1 - thread - i) % threads : (thread + i) % threads;
      for (int64_t slice = slices_.first[size_t(whose)]; slice < slices_.first[size_t(whose) + 1]; ++slice)
        take(slice, run, run_short);
    }
    while (take_short(run_short)) continue;
  }

 private:
  template <class Run, class RunShort>
  void take(int64_t slice, const Run& run, const RunShort& run_short) {
    if (taken_[size_t(slice)].exchange(true, std::memory_order_relaxed)) return;
    const int64_t after = slices_.all[size_t(slice)].after;
    if (after >= 0) {
      take(after, run, run_short);
      for (Spin spin; !done_[size_t(after)].load(std::memory_order_acquire);)
        if (!take_short(run_short)) spin.once();
    }
    run(slices_.all[size_t(slice)]);
    done_[size_t(slice)].store(true, std::memory_order_release);
  }

  template <class RunShort>
  bool take_short(const RunShort& run_short) {
    if (next_.load(std::memory_order_relaxed) >= rest_) return false;
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i < rest_) run_short(i);
    return i < rest_;
  }

  const Slices& slices_;
  const bool backward_;
  const int64_t rest_;
  const std::unique_ptr<std::atomic<bool>[]> taken_, done_;
  std::atomic<int64_t> next_{0};
};

}  // namespace metafast
