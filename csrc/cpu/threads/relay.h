// Problem: three equal runs on two threads take as long as four, and small networks come in few runs, each a pack of tasks.
// Solution: McNaughton's rule (1959). Laid end to end, the runs are cut into equal shares, one for each thread. The run on a
//   cut is begun by the next thread, first of all, and finished by this one, last of all: an inner loop can be handed over
//   between any two of its stages, and there is time between its legs. Short runs that fill up are taken as they come.
// Usage: legs() once; a Relay for each round; every thread calls work(). Threads that are late or missing stop nobody:
//   others take what they have not begun. Every other round is `backward`, the last thread's share being the first's: then
//   a thread begins runs where it finished some the round before. To read what another core has used takes little
//   longer, but a leg that wrote it took up to three times as long, on cores that seemed to have no cache in common.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/threads/spin.h"

namespace metafast {

// Stages [begin, end) of a run, which may only begin when another leg is done.
struct Leg {
  int64_t run;
  int32_t begin, end;
  int64_t after;   // -1: none
  int64_t handed;  // number of the run among those that are handed over; -1: this one is not
};

// The legs of all runs, those of thread i from first[i] to first[i + 1].
struct Legs {
  std::vector<Leg> all;
  std::vector<int64_t> first;
  int64_t handed = 0;
};

// `stages`: how long each stage of a run takes. `rest`: as long as so many runs all short ones take.
Legs legs(int threads, int64_t runs, const std::vector<double>& stages, double rest);

class Relay {
 public:
  Relay(const Legs& legs, int64_t rest, bool backward)
      : legs_(legs),
        backward_(backward),
        rest_(rest),
        taken_(new std::atomic<bool>[legs.all.size()] {}),
        done_(new std::atomic<bool>[legs.all.size()] {}) {}

  // Calls run(leg) for legs that no other thread has taken, and run_short(i) for short runs. Must not throw.
  template <class Run, class RunShort>
  void work(int thread, const Run& run, const RunShort& run_short) {
    const int64_t threads = int64_t(legs_.first.size()) - 1;
    for (int64_t i = 0; i < threads; ++i) {
      const int64_t whose = backward_ ? (2 * threads - 1 - thread - i) % threads : (thread + i) % threads;
      for (int64_t leg = legs_.first[size_t(whose)]; leg < legs_.first[size_t(whose) + 1]; ++leg)
        take(leg, run, run_short);
    }
    while (take_short(run_short)) continue;
  }

 private:
  template <class Run, class RunShort>
  void take(int64_t leg, const Run& run, const RunShort& run_short) {
    if (taken_[size_t(leg)].exchange(true, std::memory_order_relaxed)) return;
    const int64_t after = legs_.all[size_t(leg)].after;
    if (after >= 0) {
      take(after, run, run_short);
      for (Spin spin; !done_[size_t(after)].load(std::memory_order_acquire);)
        if (!take_short(run_short)) spin.once();
    }
    run(legs_.all[size_t(leg)]);
    done_[size_t(leg)].store(true, std::memory_order_release);
  }

  template <class RunShort>
  bool take_short(const RunShort& run_short) {
    if (next_.load(std::memory_order_relaxed) >= rest_) return false;
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i < rest_) run_short(i);
    return i < rest_;
  }

  const Legs& legs_;
  const bool backward_;
  const int64_t rest_;
  const std::unique_ptr<std::atomic<bool>[]> taken_, done_;
  std::atomic<int64_t> next_{0};
};

}  // namespace metafast
