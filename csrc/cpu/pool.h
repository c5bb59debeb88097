// A small pool of threads, shared by all calls of a process.
//
// Own threads rather than OpenMP: a second OpenMP runtime beside torch's makes the two spin against each other. Workers
// spin briefly after a job, because a training loop comes back within microseconds, and then sleep. A call that finds the pool busy, from
// another Python thread say, runs its work alone instead of waiting; results do not depend on that. After a fork the
// child starts a pool of its own.
#pragma once

#include <functional>

namespace metafast {

// Calls body(thread) for thread = 0 .. threads - 1, one of them on the calling thread; or body(0) alone if the pool is
// busy. The body shares out the work itself and must not throw.
void parallel(int threads, const std::function<void(int)>& body);

}  // namespace metafast
