// The kernels: one per phase, and the persistent one, which runs all phases of a task in one block.
#pragma once

#include "cuda/kernels.h"
#include "cuda/phases.cuh"

namespace metafast {
namespace METAFAST_ISA {

// How the two kinds of phase are called alike.
template <class P>
struct NodePhase : P {
  template <class T>
  static __device__ void run_on(const Task<T>& task, const Instruction& i, const Block& block) {
    const Frame<T> f = task.frame(i);
    P::run(f, f.plan->nodes[i.node], block);
  }
};
template <class P>
struct EnginePhase : P {
  template <class T>
  static __device__ void run_on(const Task<T>& task, const Instruction& i, const Block& block) {
    P::run(task, i, block);
  }
};

// Of float64, which takes twice the registers, one block is enough.
template <class T, class P>
constexpr int kLeastBlocks = sizeof(T) == 8 ? 1 : P::kBlocks;

template <class T, class P>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T, P>) phase_kernel(const DeviceJob<T>* job, int32_t index) {
  METAFAST_SHARED_MEMORY(shared);
  const Instruction& i = job->instructions[index];
  const Task<T> task(*job, blockIdx.y, nullptr);
  const Block block{int32_t(threadIdx.x), int32_t(blockDim.x), int32_t(blockIdx.x), i.tiles, i.argument, shared};
  P::run_on(task, i, block);
}

template <class T>
struct Persistent {
  // Shared memory for the phases themselves: as much as the most demanding of them wants.
  static constexpr int shared_elements() {
    int most = 0;
#define METAFAST_SHARED(PHASE, STRUCT) \
  if (STRUCT<T>::kPersistent && STRUCT<T>::kShared > most) most = STRUCT<T>::kShared;
    METAFAST_PRIMITIVE_PHASES(METAFAST_SHARED)
    METAFAST_ENGINE_PHASES(METAFAST_SHARED)
#undef METAFAST_SHARED
    return (most + 15) / 16 * 16;
  }

  // Out of line: one function of them all would take minutes to compile, and its registers would be those of the worst.
  template <class P>
  static METAFAST_OUT_OF_LINE __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    if constexpr (P::kPersistent) P::run_on(task, i, block);
  }

  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    switch (i.phase) {
#define METAFAST_STEP(PHASE, STRUCT) \
  case Phase::PHASE: run<NodePhase<STRUCT<T>>>(task, i, block); break;
#define METAFAST_ENGINE(PHASE, STRUCT) \
  case Phase::PHASE: run<EnginePhase<STRUCT<T>>>(task, i, block); break;
      METAFAST_PRIMITIVE_PHASES(METAFAST_STEP)
      METAFAST_ENGINE_PHASES(METAFAST_ENGINE)
#undef METAFAST_STEP
#undef METAFAST_ENGINE
      case Phase::kCount: break;
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) persistent_kernel(const DeviceJob<T>* job, int32_t begin, int32_t end) {
  METAFAST_SHARED_MEMORY(memory);
  T* const shared = static_cast<T*>(memory);
  constexpr int own = Persistent<T>::shared_elements();
  const Task<T> task(*job, blockIdx.x, job->hot ? nullptr : shared + own);
  for (int32_t index = begin; index < end; ++index) {
    const Instruction& i = job->instructions[index];
    for (int32_t tile = 0; tile < i.tiles; ++tile) {
      Persistent<T>::run(task, i, {int32_t(threadIdx.x), int32_t(blockDim.x), tile, i.tiles, i.argument, shared});
      __syncthreads();
    }
  }
}

static __global__ void upload_kernel(UploadWords words, int32_t count, uint64_t* to) {
  for (int32_t i = int32_t(threadIdx.x); i < count; i += int32_t(blockDim.x)) to[i] = words.word[i];
}

template <class T>
__global__ void chunk_kernel(DeviceJob<T>* job, int64_t first_task, int64_t tasks) {
  if (threadIdx.x == 0) {
    job->first_task = first_task;
    job->chunk_tasks = tasks;
  }
}

// The most shared memory a phase may ask for, so that no device need be asked to grant more, nor keeps but one block.
constexpr size_t kSharedBudget = 36 * 1024;

template <class T, class P>
static void launch_phase(const DeviceJob<T>* job, int32_t index, int64_t tiles, int64_t tasks, void* stream) {
  constexpr size_t bytes = P::kShared * sizeof(T);
  static_assert(bytes <= kSharedBudget, "a phase needs more shared memory than its budget");
  METAFAST_ALLOW_SHARED((phase_kernel<T, P>), bytes);
  METAFAST_LAUNCH((phase_kernel<T, P>), dim3(unsigned(tiles), unsigned(tasks)), kThreads, bytes, stream)(job, index);
}

template <class T>
static void launch_phase(Phase phase, const DeviceJob<T>* job, int32_t index, int64_t tiles, int64_t tasks,
                         void* stream) {
  switch (phase) {
#define METAFAST_STEP(PHASE, STRUCT) \
  case Phase::PHASE: return launch_phase<T, NodePhase<STRUCT<T>>>(job, index, tiles, tasks, stream);
#define METAFAST_ENGINE(PHASE, STRUCT) \
  case Phase::PHASE: return launch_phase<T, EnginePhase<STRUCT<T>>>(job, index, tiles, tasks, stream);
    METAFAST_PRIMITIVE_PHASES(METAFAST_STEP)
    METAFAST_ENGINE_PHASES(METAFAST_ENGINE)
#undef METAFAST_STEP
#undef METAFAST_ENGINE
    case Phase::kCount: break;
  }
}

template <class T>
static void launch_persistent(const DeviceJob<T>* job, int32_t begin, int32_t end, int64_t tasks, int64_t hot,
                              void* stream) {
  const size_t bytes = size_t(Persistent<T>::shared_elements() + hot) * sizeof(T);
  METAFAST_ALLOW_SHARED((persistent_kernel<T>), bytes);
  METAFAST_LAUNCH((persistent_kernel<T>), dim3(unsigned(tasks)), kThreads, bytes, stream)(job, begin, end);
}

static void launch_upload(const UploadWords& words, int32_t count, uint64_t* to, void* stream) {
  METAFAST_LAUNCH((upload_kernel), dim3(1), 128, 0, stream)(words, count, to);
}

template <class T>
static void launch_chunk(DeviceJob<T>* job, int64_t first_task, int64_t tasks, void* stream) {
  METAFAST_LAUNCH((chunk_kernel<T>), dim3(1), 32, 0, stream)(job, first_task, tasks);
}

template <class T>
static DeviceKernels<T> kernel_table() {
  return {launch_phase<T>, launch_persistent<T>, Persistent<T>::shared_elements(), launch_upload, launch_chunk<T>};
}

}  // namespace METAFAST_ISA
}  // namespace metafast
