#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace metafast {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  void run(int threads, const std::function<void(int)>& body) {
    std::unique_lock<std::mutex> only(in_use_, std::try_to_lock);
    if (threads <= 1 || !only.owns_lock()) return body(0);
    while (workers_ < threads - 1) {
      std::thread([this, worker = workers_ + 1, round = round_.load()] { work(worker, round); }).detach();
      ++workers_;
    }
    body_ = &body;
    wanted_ = threads;
    running_.store(workers_, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    if (sleeping_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    body(0);
    for (int spins = 0; running_.load(std::memory_order_acquire) > 0; ++spins)
      spins < 4096 ? relax() : std::this_thread::yield();
  }

 private:
  // A worker between two rounds first spins; then it spins but lets other threads (torch's own) have the core, for about
  // as long as the rest of a training step takes; then it sleeps, and waking it costs as much as a small meta-step.
  static constexpr std::chrono::microseconds kSpin{100}, kYield{2000};

  void work(int me, uint64_t seen) {
    for (;;) {
      seen = next_round(seen);
      if (me < wanted_) (*body_)(me);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Waits for a round after `seen`. The counter only moves once every worker has finished the round before, so a
  // worker never misses one.
  uint64_t next_round(uint64_t seen) {
    const auto start = std::chrono::steady_clock::now();
    bool polite = false;
    for (int spins = 1;; ++spins) {
      const uint64_t round = round_.load(std::memory_order_acquire);
      if (round != seen) return round;
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
    wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
    sleeping_.fetch_sub(1, std::memory_order_release);
    return round_.load(std::memory_order_acquire);
  }

  std::mutex in_use_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> running_{0}, sleeping_{0};
  const std::function<void(int)>* body_ = nullptr;
  int wanted_ = 0, workers_ = 0;
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
