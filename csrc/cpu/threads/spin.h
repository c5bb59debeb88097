// Waiting for another thread: at first without giving up the core, then so that others may have it.
#pragma once

#include <thread>

namespace metafast {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Spin {
 public:
  void once() { ++spins_ < 4096 ? relax() : std::this_thread::yield(); }

 private:
  int spins_ = 0;
};

}  // namespace metafast
