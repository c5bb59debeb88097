// Problem: a task is one thread's work, so where tasks are fewer than threads, cores are idle, and at the end of many tasks
//   all threads wait for the slowest.
// Solution: each thread has tasks of its own, the same ones in every call, because cores may have caches of their own. One that
//   is through with them takes what others have not begun; one that finds no task left helps. Long loops of a task (share.h)
//   are offered in parts, and whoever is idle takes the next one. Parts depend on nothing that is done beside them, so the
//   result does not depend on who did what.
// Usage: one WorkStealing for each round of tasks; every thread calls work(). Kernels offer loops through helpers().
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "engine/job.h"

namespace metafast {

class WorkStealing {
 public:
  // When loops are offered: never (where they are short, others come too late); while a thread is idle; whether or not one
  // is, and however short they are, as tests want it.
  enum class Offers { kNever, kToIdle, kAll };
  // `backward`: each thread's tasks in reverse.
  WorkStealing(int threads, int64_t tasks, Offers offers, bool backward);

  // Calls run(task) for this thread's tasks, then for those that others have not begun, then helps until all are done. Must
  // not throw.
  template <class Run>
  void work(int thread, const Run& run) {
    for (int64_t i = 0; i < threads_; ++i) {
      Share& share = shares_[(thread + i) % threads_];
      for (int64_t at; (at = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
        run(backward_ ? share.begin + share.end - 1 - at : at);
        unfinished_.fetch_sub(1, std::memory_order_release);
      }
    }
    if (loops_) help(thread);
  }

  Helpers helpers();

 private:
  // A loop that its thread offers. The gate, from high bits to low: number of the loop, parts, parts taken. In one word, so
  // that whoever takes a part knows that the loop is still that one: it cannot end before the part is done.
  struct alignas(64) Loop {
    std::atomic<uint64_t> gate{0};
    std::atomic<int64_t> undone{0};
    Part part;
    const void* context;
  };
  // The tasks that a thread begins with: in the next call the same, whose data its caches may still hold.
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t begin, end;
  };
  static constexpr int kNumberShift = 32, kPartsShift = 16;
  static int64_t parts(uint64_t gate) { return int64_t(gate >> kPartsShift & 0xffff); }
  static int64_t taken(uint64_t gate) { return int64_t(gate & 0xffff); }

  void share(int64_t thread, int64_t parts, Part part, const void* context);
  bool take_parts(Loop& loop, int64_t thread);
  void help(int64_t thread);
  int64_t likely() const;  // how many would help one task, of the idle

  const int64_t threads_;
  const Offers offers_;
  const bool backward_;
  std::atomic<int64_t> unfinished_, idle_{0};
  std::unique_ptr<Share[]> shares_;  // of each thread
  std::unique_ptr<Loop[]> loops_;
};

}  // namespace metafast
