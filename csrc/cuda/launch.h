// The one way to launch a kernel. Compiled by nvcc it is a launch; by any other compiler shim.h runs the kernel on the CPU.
//
//   METAFAST_LAUNCH((kernel<T, Phase>), grid, threads, bytes of shared memory, stream)(arguments...);
//
// A kernel takes plain data by value and finds its shared memory by METAFAST_SHARED_MEMORY.
#pragma once

namespace metafast {
// Threads of a block, where nothing asks for fewer: enough to hide latency, few enough for 128 registers each.
constexpr int kThreads = 256;
}  // namespace metafast

#if defined(__CUDACC__)

// A loop that the compiler should leave a loop: where unrolling gains nothing but code.
#define METAFAST_ROLLED _Pragma("unroll 1")
// A device function that is compiled once for all kernels that call it, instead of into each.
#define METAFAST_OUT_OF_LINE __noinline__
#define METAFAST_UNPACK(...) __VA_ARGS__
#define METAFAST_LAUNCH(KERNEL, GRID, THREADS, BYTES, STREAM) \
  METAFAST_UNPACK KERNEL<<<GRID, THREADS, BYTES, static_cast<cudaStream_t>(STREAM)>>>
// Before a launch with more shared memory than every device grants unasked.
#define METAFAST_ALLOW_SHARED(KERNEL, BYTES) \
  if ((BYTES) > 48 * 1024)                   \
  cudaFuncSetAttribute(METAFAST_UNPACK KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, int(BYTES))
#define METAFAST_SHARED_MEMORY(NAME)                                      \
  extern __shared__ __align__(16) unsigned char metafast_shared_memory[]; \
  void* const NAME = metafast_shared_memory

#else

#include "cuda/shim.h"

#endif
