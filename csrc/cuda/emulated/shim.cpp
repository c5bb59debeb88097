// Fibres, threads and barriers behind csrc/cuda/shim.h.
#include "cuda/shim.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace metafast {
namespace shim {

__thread Thread* current = nullptr;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xA5, kNaN = 0xFF;  // as float or double, all ones are NaN

// ---- Switching between stacks ------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void metafast_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.type metafast_switch_stack,@function
metafast_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size metafast_switch_stack,.-metafast_switch_stack
)");

struct Context {
  void* stack_pointer = nullptr;
  void prepare(unsigned char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + kStackBytes) & ~uintptr_t(15));
    *--top = nullptr;                         // where entry would return to; it does not
    *--top = reinterpret_cast<void*>(entry);  // popped by ret
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
  }
  static void change(Context& from, Context& to) { metafast_switch_stack(&from.stack_pointer, to.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;
  void prepare(unsigned char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};
#endif

enum class State { kReady, kAtBarrier, kAtWarpBarrier, kDone };

struct Fibre {
  Context context;
  std::unique_ptr<unsigned char[]> stack;
  Thread thread;
  State state;
  void* fake_stack = nullptr;
};

unsigned seed() {
  const char* text = std::getenv("METAFAST_SHIM_SEED");
  return text ? unsigned(std::atoi(text)) : 0;
}

bool system_threads() {
  const char* text = std::getenv("METAFAST_SHIM");
#if defined(__SANITIZE_THREAD__)
  return !text || std::string(text) != "fibres";
#else
  return text && std::string(text) == "threads";
#endif
}

int block_threads(int asked) {
  const char* text = std::getenv("METAFAST_SHIM_THREADS");
  const int most = text ? std::atoi(text) : 64;
  return std::max(32, std::min(asked, most / 32 * 32));
}

std::vector<int> shuffled(int n, std::mt19937& random) {
  std::vector<int> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

// Shared memory of one block: exact, NaN at entry, guarded at its end.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes), memory_(new unsigned char[bytes + guard()]) {}
  void* enter() {
    memset(memory_.get(), kNaN, bytes_);
    memset(memory_.get() + bytes_, kGuard, guard());
    return memory_.get();
  }
  void leave() const {
    for (size_t i = 0; i < guard(); ++i)
      if (memory_[bytes_ + i] != kGuard)
        throw std::runtime_error("CUDA shim: a kernel wrote past the end of its " + std::to_string(bytes_) +
                                 " bytes of shared memory");
  }

 private:
  static size_t guard() {
#if defined(__SANITIZE_ADDRESS__)
    return 0;  // its red zones do better: they name the line
#else
    return kGuardBytes;
#endif
  }
  size_t bytes_;
  std::unique_ptr<unsigned char[]> memory_;
};

// ---- One block as fibres -----------------------------------------------------------------------------------------------

struct FibreBlock {
  std::vector<Fibre> fibres;
  std::vector<unsigned char> lanes;  // what exchange and gather leave for others
  Context scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  Fibre* running = nullptr;
  const std::function<void()>* kernel = nullptr;

  void resume(Fibre& f) {
    running = &f;
    current = &f.thread;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, f.stack.get(), kStackBytes);
#endif
    Context::change(scheduler, f.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
    current = nullptr;
  }

  void pause(State state) {
    Fibre& f = *running;
    f.state = state;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &f.fake_stack, scheduler_stack,
                                   scheduler_stack_bytes);
#endif
    Context::change(f.context, scheduler);
    entered(f);
  }

  void entered([[maybe_unused]] Fibre& f) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(f.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
  }

  void run(std::mt19937& random);
};

thread_local FibreBlock fibre_block;

void fibre_entry() {
  FibreBlock& block = fibre_block;
  block.entered(*block.running);
  (*block.kernel)();
  block.pause(State::kDone);
  std::abort();
}

void FibreBlock::run(std::mt19937& random) {
  const int n = int(fibres.size());
  for (Fibre& f : fibres) {
    f.state = State::kReady;
    f.fake_stack = nullptr;
    f.context.prepare(f.stack.get(), fibre_entry);
  }
  for (;;) {
    for (int i : shuffled(n, random))
      if (fibres[size_t(i)].state == State::kReady) resume(fibres[size_t(i)]);
    // Release warps first, then the block.
    int ready = 0, done = 0, waiting = 0;
    for (int warp = 0; warp < n; warp += 32) {
      const auto begin = fibres.begin() + warp, end = begin + std::min(32, n - warp);
      if (std::all_of(begin, end, [](const Fibre& f) { return f.state == State::kAtWarpBarrier; }))
        for (auto f = begin; f != end; ++f) f->state = State::kReady;
    }
    for (const Fibre& f : fibres) {
      ready += f.state == State::kReady;
      done += f.state == State::kDone;
      waiting += f.state == State::kAtBarrier;
    }
    if (done == n) return;
    if (ready) continue;
    if (waiting != n)
      throw std::runtime_error("CUDA shim: barrier divergence: of " + std::to_string(n) + " threads " +
                               std::to_string(waiting) + " wait at __syncthreads, " +
                               std::to_string(n - waiting - done) + " at a barrier of their warp, " +
                               std::to_string(done) + " have ended");
    for (Fibre& f : fibres) f.state = State::kReady;
  }
}

// ---- One block as threads of the system --------------------------------------------------------------------------------

struct Barrier {
  std::mutex mutex;
  std::condition_variable released;
  int expected = 0, waiting = 0, ended = 0;
  long generation = 0;

  void reset(int n) { expected = n, waiting = ended = 0; }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    const long mine = generation;
    ++waiting;
    check();
    if (waiting == expected) {
      waiting = 0;
      ++generation;
      released.notify_all();
    } else {
      released.wait(lock, [&] { return generation != mine; });
    }
  }
  void end() {
    std::lock_guard<std::mutex> lock(mutex);
    ++ended;
    check();
  }
  void check() const {
    if (waiting > 0 && ended > 0) {
      std::fprintf(stderr, "CUDA shim: barrier divergence: %d threads wait, %d have ended\n", waiting, ended);
      std::abort();
    }
  }
};

struct ThreadBlock {
  Barrier block;
  std::vector<Barrier> warps;
  std::vector<unsigned char> lanes;
};
ThreadBlock* thread_block = nullptr;  // launches are serialised

}  // namespace

void sync_threads() {
  if (thread_block)
    thread_block->block.wait();
  else
    fibre_block.pause(State::kAtBarrier);
}

void sync_warp() {
  if (thread_block)
    thread_block->warps[current->thread.x / 32].wait();
  else
    fibre_block.pause(State::kAtWarpBarrier);
}

void gather(const void* value, size_t size, void* all) {
  std::vector<unsigned char>& lanes = thread_block ? thread_block->lanes : fibre_block.lanes;
  const size_t me = current->thread.x, warp = me / 32 * 32;
  memcpy(&lanes[me * kLaneBytes], value, size);
  sync_warp();
  for (size_t lane = 0; lane < 32; ++lane)
    memcpy(static_cast<unsigned char*>(all) + lane * size, &lanes[(warp + lane) * kLaneBytes], size);
  sync_warp();
}

void exchange(void* value, size_t size, int lane) {
  unsigned char all[32 * kLaneBytes];
  gather(value, size, all);
  memcpy(value, all + size_t(lane) * size, size);
}

void run(dim3 grid, int asked, size_t shared_bytes, const std::function<void()>& kernel) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  static unsigned launches = 0;
  std::mt19937 random(seed() * 7919u + launches++);
  const int threads = block_threads(asked), blocks = int(grid.x * grid.y * grid.z);
  SharedMemory memory(shared_bytes);

  for (int b : shuffled(blocks, random)) {
    const unsigned x = unsigned(b) % grid.x, y = unsigned(b) / grid.x % grid.y, z = unsigned(b) / grid.x / grid.y;
    void* shared = memory.enter();
    const auto thread = [&](int t) {
      return Thread{dim3(unsigned(t), 0, 0), dim3(x, y, z), dim3(unsigned(threads)), grid, shared};
    };
    if (system_threads()) {
      ThreadBlock now;
      now.block.reset(threads);
      now.warps = std::vector<Barrier>(size_t(threads) / 32);
      for (Barrier& warp : now.warps) warp.reset(32);
      now.lanes.resize(size_t(threads) * kLaneBytes);
      thread_block = &now;
      std::vector<std::thread> all;
      for (int t : shuffled(threads, random))
        all.emplace_back([&, t] {
          Thread mine = thread(t);
          current = &mine;
          kernel();
          now.block.end();
          now.warps[size_t(t) / 32].end();
          current = nullptr;
        });
      for (std::thread& t : all) t.join();
      thread_block = nullptr;
    } else {
      FibreBlock& now = fibre_block;
      now.kernel = &kernel;
      now.lanes.resize(size_t(threads) * kLaneBytes);
      if (int(now.fibres.size()) != threads) {
        now.fibres = std::vector<Fibre>(size_t(threads));
        for (Fibre& f : now.fibres) f.stack.reset(new unsigned char[kStackBytes]);
      }
      for (int t = 0; t < threads; ++t) now.fibres[size_t(t)].thread = thread(t);
      now.run(random);
    }
    memory.leave();
  }
}

}  // namespace shim
}  // namespace metafast
