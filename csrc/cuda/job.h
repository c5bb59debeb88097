// What a kernel is given: one Job block in the workspace, written anew for every call, and in it the addresses of the
// constants (plans and instructions), which are uploaded once. Plain data, the same on host and device.
#pragma once

#include "cuda/phases.h"
#include "engine/job.h"

namespace metafast {

// Leading dimensions are multiples of this: rows of 16 bytes in float32.
constexpr int kDeviceLanes = 4;

// Gradients of so many tasks are summed one after the other, and then their sums.
constexpr int64_t kSumGroup = 64;

// Which plan and data a phase works on.
enum class Which : int32_t { kSupport, kQuery };

// One phase of one task, cut into tiles. Phases of a task follow one another; tiles of a phase are independent.
struct Instruction {
  Phase phase;
  int32_t node;  // in BatchPlan::nodes, or -1
  Which which;
  int32_t k;  // inner step, 0 for the query
  int32_t tiles;
  int32_t argument;  // the phase knows what it means
  int32_t tangent;   // whether tangents exist yet: 1 in the tangent passes
  int32_t reserved;
};

// A part of a task's memory: hot (shared memory if it fits there) or cold, and how many elements from its beginning.
using Region = int64_t;
constexpr Region kCold = Region(1) << 62;

struct TaskLayout {
  Region initial;  // all parameters at step 0, if the task has its own copy
  // As in ThreadLayout (engine/job.h).
  Region trajectory;
  int64_t trajectory_stride;
  Region state, state_bar, start_bar, link;
  Region gradient;
  int64_t gradient_stride;
  Region gradient_dot, vector;
  Region targets, target_gradient, weight_gradient;
  Region loss;  // loss of the last support pass and of the query, and of each what it is divided by
  Region tapes;
  int64_t tape_stride;
  Region tangent_tape, query_tape, scratch;
  int64_t hot_size, cold_size;  // in elements
};

// Values per element of a hyper-parameter as the user has them, null if there are none; where they are laid out for the call;
// and where the user wants their gradient.
template <class T>
struct HyperTensor {
  const T* data;
  T* values;
  T* gradient;
};

// Which blocks do a phase of the rule (rule.cuh).
enum class WalkedBy : int32_t { kAll, kTilesOfParameters, kOneBlock };

// The parts of a call on a device. `T*` are addresses there; the lists stand behind the block.
template <class T>
struct DeviceJob : CallTensors<T> {
  const BatchPlan* plans[2];  // by Which
  const Instruction* instructions;
  int32_t instruction_count;

  int64_t first_task, chunk_tasks;  // of the chunk at work: a kernel's own to change
  bool query_has_targets;
  Examples<T> sets[2];

  T* shared_initial;  // where tasks do not have their own copy; else null
  const HyperTensor<T>*
      hyper_tensors;  // the user's, of hyper-parameter h and adapted parameter a at h * adapted_count + a

  T* loss;
  T* const* shared_gradient;       // per learnt parameter; null: it is not summed
  T* const* hyper_table_gradient;  // per hyper-parameter; null: unwanted
  T* sums;                         // of `gradients` over tasks
  T *group_sums, *carry;           // of each kSumGroup tasks; of those that the chunk before left unfinished

  TaskLayout layout;
  T *hot, *cold;  // [tasks of a chunk][hot_size], [cold_size]; hot is null if it is shared memory
};

// Groups that a chunk of tasks can touch, wherever it begins.
inline int64_t sum_groups(int64_t tasks) { return (tasks + kSumGroup - 2) / kSumGroup + 1; }

}  // namespace metafast
