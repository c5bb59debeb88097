// One task as a kernel sees it: where its arrays stand, and the frames of its passes. (csrc/engine.h is the same for the
// CPU, and says what is computed.)
#pragma once

#include "frame.cuh"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Task {
  const DeviceJob<T>& job;
  const int64_t task, slot;  // among all tasks, and within the chunk
  T *const hot, *const cold;

  __device__ Task(const DeviceJob<T>& j, int64_t place, T* shared)
      : job(j),
        task(j.first_task + place),
        slot(place),
        hot(shared ? shared : j.hot + place * j.layout.hot_size),
        cold(j.cold + place * j.layout.cold_size) {}

  __device__ T* at(Region region) const { return region & kCold ? cold + (region & ~kCold) : hot + region; }
  __device__ T* lambda() const { return job.gradients + slot * job.gradient_stride; }
  __device__ T* rate_gradient() const { return lambda() + job.learnt_size; }
  __device__ const T* initial() const { return job.shared_initial ? job.shared_initial : at(job.layout.initial); }
  __device__ T* theta_after(int32_t k) const { return at(job.layout.trajectory) + k * job.adapted_size; }
  __device__ const T* theta_at(int32_t k) const { return k == 0 ? initial() : theta_after(k - 1); }

  __device__ const BatchPlan* plan(Which which) const { return job.plans[int(which)]; }
  __device__ const Examples<T>& set(Which which) const { return job.sets[int(which)]; }
  __device__ T loss_cotangent() const { return job.loss_cotangent ? job.loss_cotangent[task] : job.loss_cotangent_all; }

  // Loss and sum of weights of a pass; a third number for the tangent of the loss.
  __device__ T* loss(const Instruction& i) const {
    return at(job.layout.loss) + 4 * (i.which == Which::kQuery ? job.steps : i.k);
  }

  __device__ Frame<T> frame(const Instruction& i) const {
    const TaskLayout& l = job.layout;
    const Examples<T>& data = set(i.which);
    Frame<T> f;
    f.plan = plan(i.which);
    f.x = data.x + task * data.x_task_stride + i.k * data.x_step_stride;
    f.initial = initial();
    f.scratch = at(l.scratch);
    f.tangent_tape = i.tangent ? at(l.tangent_tape) : nullptr;
    f.vector = at(l.vector);
    f.gradient_dot = at(l.gradient_dot);
    if (i.which == Which::kQuery) {
      f.tape = at(l.query_tape);
      f.theta = theta_at(job.steps);
      f.gradient = lambda();
    } else {
      f.tape = at(l.tapes) + (job.keep ? i.k * l.tape_stride : 0);
      f.theta = theta_at(i.k);
      f.gradient = at(l.gradient) + i.k * l.gradient_stride;
    }
    return f;
  }
};

// Indices of the user's layouts (csrc/cpu/layout.h). Element `inside` of a parameter; -1 for a pad.
MF_HD int64_t user_index(const ParameterPlan& p, int64_t inside) {
  const int64_t output = inside % p.ld, rest = inside / p.ld;
  return output < p.outputs ? (output * p.inputs + rest % p.inputs) * p.taps + rest / p.inputs : -1;
}

MF_HD int64_t user_size(const ParameterPlan& p) { return int64_t(p.outputs) * p.inputs * p.taps; }

// Where element `user` of a value's examples stands inside.
MF_HD int64_t inside_index(const Value& v, int64_t ld, int64_t user) {
  const int64_t size = v.rows * v.channels, n = user / size, rest = user % size;
  const int64_t row = v.height > 0 ? rest % v.rows : rest / v.channels;
  const int64_t channel = v.height > 0 ? rest / v.rows : rest % v.channels;
  return (n * v.rows + row) * ld + channel;
}

// The other way round; -1 for a pad.
MF_HD int64_t user_index(const Value& v, int64_t ld, int64_t inside) {
  const int64_t channel = inside % ld, row = inside / ld % v.rows, n = inside / ld / v.rows;
  if (channel >= v.channels) return -1;
  return n * v.rows * v.channels + (v.height > 0 ? channel * v.rows + row : row * v.channels + channel);
}

// The sum over threads of `value`, in a fixed order; the first thread has it. `shared`: one T per thread.
template <class T>
static __device__ T block_sum(const Block& block, T value) {
  T* shared = block.shared<T>();
  block.sync();  // whoever used the memory before has done
  shared[block.thread] = value;
  block.sync();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (block.thread < width && block.thread + width < block.threads)
      shared[block.thread] += shared[block.thread + width];
    block.sync();
  }
  return shared[0];
}

}  // namespace METAFAST_ISA
}  // namespace metafast
