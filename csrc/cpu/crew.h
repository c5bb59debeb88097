// Problem: a task is one thread's work, so where tasks are fewer than threads, cores are idle, and at the end of many tasks
//   all threads wait for the slowest.
// Solution: a thread that finds no task left helps. Long loops of a task (share.h) are offered in parts, and whoever is idle
//   takes the next one. Parts depend on nothing that is done beside them, so the result does not depend on who did what.
// Usage: one Crew for each round of tasks; every thread calls work(). Kernels offer loops through helpers().
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "../plan.h"

namespace metafast {

class Crew {
 public:
  // When loops are offered: never (where they are short, others come too late); while a thread is idle; whether or not one
  // is, and however short they are, as tests want it.
  enum class Offers { kNever, kToIdle, kAll };
  Crew(int threads, int64_t tasks, Offers offers);

  // Calls run(task) for tasks that no other thread has taken, then helps until all are done. Must not throw.
  template <class Run>
  void work(int thread, const Run& run) {
    for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) {
      run(task);
      unfinished_.fetch_sub(1, std::memory_order_release);
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
  static constexpr int kNumberShift = 32, kPartsShift = 16;
  static int64_t parts(uint64_t gate) { return int64_t(gate >> kPartsShift & 0xffff); }
  static int64_t taken(uint64_t gate) { return int64_t(gate & 0xffff); }

  void share(int64_t thread, int64_t parts, Part part, const void* context);
  bool take_parts(Loop& loop, int64_t thread);
  void help(int64_t thread);
  int64_t likely() const;  // how many would help one task, of the idle

  const int64_t threads_, tasks_;
  const Offers offers_;
  std::atomic<int64_t> next_{0}, unfinished_, idle_{0};
  std::unique_ptr<Loop[]> loops_;  // of each thread
};

}  // namespace metafast
