#include "cpu/threads/work_stealing.h"

#include "cpu/threads/spin.h"

namespace metafast {

namespace {

// To hand a part over and to wait for it takes about a microsecond.
constexpr int64_t kWorth = 65536;

}  // namespace

WorkStealing::WorkStealing(int threads, int64_t tasks, Offers offers, bool backward)
    : threads_(threads),
      offers_(offers),
      backward_(backward),
      unfinished_(tasks),
      shares_(new Share[size_t(threads)]),
      loops_(offers != Offers::kNever && threads > 1 ? new Loop[size_t(threads)] : nullptr) {
  for (int64_t i = 0; i < threads; ++i) {
    Share& share = shares_[i];
    share.begin = tasks * i / threads, share.end = tasks * (i + 1) / threads;
    share.next.store(share.begin, std::memory_order_relaxed);
  }
}

int64_t WorkStealing::likely() const {
  if (offers_ == Offers::kAll) return threads_ - 1;
  const int64_t idle = idle_.load(std::memory_order_relaxed), busy = threads_ - idle;
  return busy > 1 ? (idle + busy - 1) / busy : idle;
}

Helpers WorkStealing::helpers() {
  if (!loops_) return {};
  return {this, offers_ == Offers::kAll ? 1 : kWorth,
          [](const void* owner) { return static_cast<const WorkStealing*>(owner)->likely(); },
          [](void* owner, int64_t thread, int64_t parts, Part part, const void* context) {
            static_cast<WorkStealing*>(owner)->share(thread, parts, part, context);
          }};
}

void WorkStealing::share(int64_t thread, int64_t parts, Part part, const void* context) {
  Loop& loop = loops_[thread];
  const uint64_t number = (loop.gate.load(std::memory_order_relaxed) >> kNumberShift) + 1;
  loop.part = part, loop.context = context;
  loop.undone.store(parts, std::memory_order_relaxed);
  loop.gate.store(number << kNumberShift | uint64_t(parts) << kPartsShift, std::memory_order_release);
  take_parts(loop, thread);
  for (Spin spin; loop.undone.load(std::memory_order_acquire) > 0;) spin.once();
}

bool WorkStealing::take_parts(Loop& loop, int64_t thread) {
  bool took = false;
  for (uint64_t gate = loop.gate.load(std::memory_order_acquire); taken(gate) < parts(gate);) {
    if (!loop.gate.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    loop.part(loop.context, taken(gate), thread);
    loop.undone.fetch_sub(1, std::memory_order_release);
    gate = loop.gate.load(std::memory_order_acquire);
    took = true;
  }
  return took;
}

void WorkStealing::help(int64_t thread) {
  idle_.fetch_add(1, std::memory_order_relaxed);
  for (Spin spin; unfinished_.load(std::memory_order_acquire) > 0;) {
    bool took = false;
    for (int64_t other = 1; other < threads_; ++other) took |= take_parts(loops_[(thread + other) % threads_], thread);
    if (took)
      spin = Spin();
    else
      spin.once();
  }
  idle_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace metafast
