// A small pool of threads, shared by all calls of a process.
//
// Own threads rather than OpenMP: a second OpenMP runtime beside torch's makes the two spin against each other. A call
// that finds the pool busy, from another Python thread say, runs its work alone instead of waiting, and no call waits for
// a worker that has not begun; results do not depend on that. After a fork the child starts a pool of its own.
#pragma once

#include <functional>

namespace metafast {

// Calls body(0) on the calling thread and meanwhile body(1) .. body(threads - 1), or some of them, on others. The body
// takes its share until nothing is left, and must not throw.
void parallel(int threads, const std::function<void(int)>& body);

}  // namespace metafast
