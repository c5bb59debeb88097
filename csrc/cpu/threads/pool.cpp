#include "cpu/threads/pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/threads/spin.h"

namespace metafast {
namespace {

// A round is open from the call of run() until the caller has done all it can by itself. Workers enter an open round and
// only those that did are waited for: a worker that sleeps, or whose core another program has, delays nobody.
class Pool {
 public:
  void run(int threads, const std::function<void(int)>& body) {
    std::unique_lock<std::mutex> only(in_use_, std::try_to_lock);
    if (threads <= 1 || !only.owns_lock()) return body(0);
    for (; workers_ + 1 < uint64_t(threads); ++workers_)
      std::thread([this, number = workers_ + 1, last = round_] { work(number, last); }).detach();
    body_ = &body;
    left_.store(0, std::memory_order_relaxed);
    ++round_;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      gate_.store(uint64_t(round_) << kRoundShift | uint64_t(threads - 1) << kPlacesShift | kOpen,
                  std::memory_order_release);
    }
    if (sleeping_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    body(0);
    const uint64_t entered = gate_.fetch_and(~kOpen, std::memory_order_acq_rel) & kEntered;
    for (Spin spin; left_.load(std::memory_order_acquire) < entered;) spin.once();
  }

 private:
  // The gate, from high bits to low: number of the round, how many workers it takes, whether it is open, how many have
  // entered. In one word, so that a worker decides by what belongs together.
  static constexpr int kRoundShift = 32, kPlacesShift = 16;
  static constexpr uint64_t kOpen = 1 << 15, kEntered = kOpen - 1;
  static uint64_t places(uint64_t gate) { return gate >> kPlacesShift & 0xffff; }

  // Between two rounds a worker first spins; then it spins but lets other threads (torch's own) have the core, for about
  // as long as the rest of a training step takes; then it sleeps, and waking it takes as long as a small meta-step.
  static constexpr std::chrono::microseconds kSpin{50}, kYield{2000};

  // The same worker is always the same thread of a round, because its caches hold what it had the round before.
  void work(uint64_t number, uint64_t seen) {
    for (;;) {
      uint64_t gate = next_round(seen);
      seen = gate >> kRoundShift;
      bool entered = false;
      while ((gate >> kRoundShift) == seen && (gate & kOpen) && !entered && number <= places(gate))
        entered = gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel, std::memory_order_acquire);
      if (!entered) continue;
      (*body_)(int(number));
      left_.fetch_add(1, std::memory_order_release);
    }
  }

  // The gate of a round after `seen`.
  uint64_t next_round(uint64_t seen) {
    const auto start = std::chrono::steady_clock::now();
    bool polite = false;
    for (int spins = 1;; ++spins) {
      const uint64_t gate = gate_.load(std::memory_order_acquire);
      if (gate >> kRoundShift != seen) return gate;
      if (polite)
        std::this_thread::yield();
      else
        relax();
      if (spins % (polite ? 16 : 256) != 0) continue;
      const auto waited = std::chrono::steady_clock::now() - start;
      polite = waited > kSpin;
      if (waited > kYield) break;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleeping_.fetch_add(1, std::memory_order_release);
    wake_.wait(lock, [&] { return gate_.load(std::memory_order_acquire) >> kRoundShift != seen; });
    sleeping_.fetch_sub(1, std::memory_order_release);
    return gate_.load(std::memory_order_acquire);
  }

  std::mutex in_use_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> gate_{0}, left_{0};
  std::atomic<int> sleeping_{0};
  const std::function<void(int)>* body_ = nullptr;
  uint32_t round_ = 0;
  uint64_t workers_ = 0;
};

std::atomic<Pool*> pool{nullptr};  // never destroyed: its threads may outlive static destruction

Pool& instance() {
  Pool* current = pool.load(std::memory_order_acquire);
  if (current) return *current;
  static const int forks_handled = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  (void)forks_handled;
  Pool* fresh = new Pool;
  if (pool.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;  // another thread was first; ours has started nothing yet
  return *current;
}

}  // namespace

void parallel(int threads, const std::function<void(int)>& body) { instance().run(threads, body); }

}  // namespace metafast
