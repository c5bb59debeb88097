// Runs the kernels on the CPU: the words of CUDA that csrc/cuda uses, for a C++ compiler (csrc/cuda/emulated/shim.cpp).
//
// Every CUDA thread is a fibre, switched at barriers only, in an order shuffled by METAFAST_SHIM_SEED; so are the blocks
// of a grid. A barrier that not all threads reach is an error. Shared memory is allocated exactly and holds NaN at
// entry; a write past its end is found by its guard bytes, or by AddressSanitizer. With METAFAST_SHIM=threads every
// CUDA thread is a thread of the system instead, so that ThreadSanitizer sees a missing barrier as the race it is.
// METAFAST_SHIM_THREADS caps the threads of a block (64 if unset).
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)

namespace metafast {

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace shim {

struct Thread {
  dim3 thread, block, threads, blocks;
  void* shared;
};
extern __thread Thread* current;

void sync_threads();
void sync_warp();
// Leaves a value for the other lanes of the warp and takes that of `lane`.
void exchange(void* value, size_t size, int lane);
// Leaves a value of at most kLaneBytes and takes those of all 32 lanes.
constexpr size_t kLaneBytes = 32;
void gather(const void* value, size_t size, void* all);

template <class V>
V shuffle_xor(V value, int mask) {
  static_assert(sizeof(V) <= 8, "a shuffle moves at most 8 bytes");
  exchange(&value, sizeof(V), int(current->thread.x % 32) ^ mask);
  return value;
}

void run(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& kernel);

struct Launch {
  dim3 grid;
  int threads;
  size_t shared_bytes;
  template <class... Parameters>
  auto of(void (*kernel)(Parameters...)) const {
    return [launch = *this, kernel](Parameters... arguments) {
      run(launch.grid, launch.threads, launch.shared_bytes, [&] { kernel(arguments...); });
    };
  }
};

}  // namespace shim
}  // namespace metafast

#define threadIdx (::metafast::shim::current->thread)
#define blockIdx (::metafast::shim::current->block)
#define blockDim (::metafast::shim::current->threads)
#define gridDim (::metafast::shim::current->blocks)
#define __syncthreads() ::metafast::shim::sync_threads()
#define __syncwarp() ::metafast::shim::sync_warp()
#define __shfl_xor_sync(MASK, VALUE, LANES) ::metafast::shim::shuffle_xor(VALUE, LANES)

#define METAFAST_ROLLED
#define METAFAST_OUT_OF_LINE
#define METAFAST_UNPACK(...) __VA_ARGS__
#define METAFAST_LAUNCH(KERNEL, GRID, THREADS, BYTES, STREAM) \
  ((void)(STREAM), ::metafast::shim::Launch{GRID, int(THREADS), size_t(BYTES)}).of(METAFAST_UNPACK KERNEL)
#define METAFAST_ALLOW_SHARED(KERNEL, BYTES) (void)(BYTES)
#define METAFAST_SHARED_MEMORY(NAME) void* const NAME = ::metafast::shim::current->shared
