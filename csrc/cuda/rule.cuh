// The rule's phases: its hyper-parameters, a step, and the adjoint of a step (engine/rule_loops.h).
#pragma once

#include "cuda/task.cuh"
#include "engine/rule_loops.h"

namespace metafast {
namespace METAFAST_ISA {

// Parameters as the user has them, laid out. `out` is where the first of them would stand.
template <class T>
static __device__ void parameter_in(const Block& block, const ParameterPlan& p, const T* user, T* out) {
  block.for_each(p.size, [&](uint32_t i) {
    const uint32_t from = user_index(p, i);
    out[i] = from != kPad ? user[from] : T(0);
  });
}
template <class T>
static __device__ void parameter_out(const Block& block, const ParameterPlan& p, const T* in, T* user) {
  block.for_each(p.size, [&](uint32_t i) {
    const uint32_t to = user_index(p, i);
    if (to != kPad) user[to] = in[i];
  });
}

// Calls body(plan of parameter a, place inside, place with the user) for every array of values per element.
template <class T, class Body>
static __device__ void for_hyper_arrays(const DeviceJob<T>& job, int32_t h, int32_t a, Body body) {
  const ParameterPlan& p = job.parameters[a];
  const int32_t steps = job.hypers[h].each_stride[a] ? job.steps : 1;
  for (int32_t k = 0; k < steps; ++k) body(p, k * p.size, k * user_size(p));
}

template <class T>
struct GatherHypers : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction&, const Block& block) {
    const DeviceJob<T>& job = task.job;
    for (int32_t h = 0; h < job.hyper_count; ++h)
      for (int32_t a = 0; a < job.adapted_count; ++a) {
        const HyperTensor<T>& tensor = job.hyper_tensors[h * job.adapted_count + a];
        if (!tensor.data) continue;
        for_hyper_arrays(job, h, a, [&](const ParameterPlan& p, int64_t inside, int64_t outside) {
          parameter_in(block, p, tensor.data + outside, tensor.values + inside);
        });
      }
  }
};

// How the threads of a task walk over elements: all of them over all parameters; a block over the parameter that is its tile,
// where sums over a parameter are wanted; or one block over everything, where sums over all are.
template <class T>
struct DeviceWalk {
  using Number = T;
  using Scalar = T;
  using Shared = T;
  const Block& block;
  const WalkedBy by;

  static __device__ T get(const T* p) { return *p; }
  static __device__ void put(T* p, T value) { *p = value; }
  static __device__ T get_shared(const T* p) { return *p; }
  __device__ bool is_first() const { return block.thread == 0; }
  static __device__ T one(T value) { return value; }
  template <class Body>
  __device__ void each_parameter(int32_t count, Body body) const {
    if (by == WalkedBy::kTilesOfParameters) return body(block.tile);
    for (int32_t a = 0; a < count; ++a) body(a);
  }
  template <class Body>
  __device__ void each_element(int64_t size, Body body) const {
    if (by != WalkedBy::kAll)
      for (int64_t i = block.thread; i < size; i += block.threads) body(i);
    else
      block.for_each(size, [&](uint32_t i) { body(int64_t(i)); });
  }
  template <int kCount>
  struct Sums {
    T part[kCount] = {};
    __device__ void add(int h, int64_t, int64_t, T value) { part[h] += value; }
    // All threads have it.
    __device__ T total(const DeviceWalk& walk, int h) const {
      const T sum = block_sum(walk.block, part[h]);
      T* shared = walk.block.template shared<T>();
      walk.block.sync();
      if (walk.block.thread == 0) shared[0] = sum;
      walk.block.sync();
      return shared[0];
    }
  };
};

template <class T>
static __device__ RuleLoops<DeviceWalk<T>> rule_of(const Task<T>& task, const DeviceWalk<T>& walk) {
  const DeviceJob<T>& job = task.job;
  return {job.links,
          job.link_count,
          job.adapted_count,
          job.adapted_size,
          -1,
          job.parameters,
          job.hypers,
          walk,
          task.at(job.layout.link),
          job.want_hyper_gradient ? task.hyper_bars() : nullptr};
}

template <class T>
static __device__ RulePoint<T> rule_point(const Task<T>& task, int32_t k) {
  return {task.theta_at(k), k == 0 ? nullptr : task.state_after(k - 1), task.gradient(k), task.initial(),
          task.state_after(k)};
}

// Argument: WalkedBy.
template <class T>
struct RuleStep : PhaseDefaults {
  static constexpr int kShared = kThreads;
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const DeviceWalk<T> walk{block, WalkedBy(i.argument)};
    rule_of(task, walk).step(i.k, rule_point(task, i.k), task.theta_after(i.k), task.state_after(i.k));
  }
};

// Argument: WalkedBy.
template <class T>
struct RuleAdjoint : PhaseDefaults {
  static constexpr int kShared = kThreads;
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const TaskLayout& l = task.job.layout;
    const DeviceWalk<T> walk{block, WalkedBy(i.argument)};
    rule_of(task, walk)
        .adjoint(i.k, rule_point(task, i.k),
                 {task.lambda(), task.at(l.state_bar), task.at(l.vector), task.at(l.start_bar), nullptr});
  }
};

// lambda += H v; argument 1: lambda += the bar of theta_0 that links have left.
template <class T>
struct AddToLambda : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const DeviceJob<T>& job = task.job;
    T* lambda = task.lambda();
    const T* from = task.at(i.argument ? job.layout.start_bar : job.layout.gradient_dot);
    block.for_each(i.argument ? job.adapted_size : job.learnt_size, [&](uint32_t e) { lambda[e] += from[e]; });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
