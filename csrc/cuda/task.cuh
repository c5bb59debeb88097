// One task as a kernel sees it: where its arrays stand, and the frames of its passes. (csrc/cpu/machine.h is the same for the
// CPU, and says what is computed.)
#pragma once

#include "cuda/frame.cuh"

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
  __device__ T* hyper_bars() const { return lambda() + job.learnt_size; }
  __device__ const T* initial() const { return job.shared_initial ? job.shared_initial : at(job.layout.initial); }
  __device__ T* theta_after(int32_t k) const {
    return at(job.layout.trajectory) + job.kept.theta_slot(k) * job.layout.trajectory_stride;
  }
  __device__ T* state_after(int32_t k) const {
    return job.kept.states ? theta_after(k) + job.adapted_size : at(job.layout.state);
  }
  __device__ const T* theta_at(int32_t k) const { return k == 0 ? initial() : theta_after(k - 1); }

  __device__ T* gradient(int32_t k) const {
    return at(job.layout.gradient) + job.kept.gradient_slot(k) * job.layout.gradient_stride;
  }

  __device__ const BatchPlan* plan(Which which) const { return job.plans[int(which)]; }
  __device__ const Examples<T>& set(Which which) const { return job.sets[int(which)]; }
  __device__ T loss_cotangent() const { return job.loss_cotangent ? job.loss_cotangent[task] : job.loss_cotangent_all; }

  // Loss of a pass and what its sum is divided by; a third number for the tangent of the loss.
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
    f.random = {job.seed, uint32_t(task), uint32_t(i.which == Which::kQuery ? job.steps : i.k)};
    if (i.which == Which::kQuery) {
      f.tape = at(l.query_tape);
      f.theta = theta_at(job.steps);
      f.gradient = lambda();
    } else {
      f.tape = at(l.tapes) + job.kept.tape_slot(i.k) * l.tape_stride;
      f.theta = theta_at(i.k);
      f.gradient = gradient(i.k);
    }
    return f;
  }
};

// Indices of the user's layouts (csrc/cpu/kernels/layout.h), of 32 bits: see Block::for_each. `kPad` is no element.
constexpr uint32_t kPad = ~uint32_t(0);

// Where element `inside` of a parameter stands with the user.
MF_HD uint32_t user_index(const ParameterPlan& p, uint32_t inside) {
  const uint32_t ld = uint32_t(p.ld), inputs = uint32_t(p.inputs);
  const uint32_t output = inside % ld, rest = inside / ld;
  if (p.table) return output < uint32_t(p.outputs) ? rest * uint32_t(p.outputs) + output : kPad;
  return output < uint32_t(p.outputs) ? (output * inputs + rest % inputs) * uint32_t(p.taps) + rest / inputs : kPad;
}

MF_HD int64_t user_size(const ParameterPlan& p) { return int64_t(p.outputs) * p.inputs * p.taps; }

// Where element `user` of a value's examples stands inside.
MF_HD uint32_t inside_index(const Value& v, int32_t ld, uint32_t user) {
  const uint32_t rows = uint32_t(v.rows), channels = uint32_t(v.channels);
  const uint32_t n = user / (rows * channels), rest = user % (rows * channels);
  const uint32_t row = v.height > 0 ? rest % rows : rest / channels;
  const uint32_t channel = v.height > 0 ? rest / rows : rest % channels;
  return (n * rows + row) * uint32_t(ld) + channel;
}

// The other way round.
MF_HD uint32_t user_index(const Value& v, int32_t ld, uint32_t inside) {
  const uint32_t rows = uint32_t(v.rows), channels = uint32_t(v.channels);
  const uint32_t channel = inside % uint32_t(ld), position = inside / uint32_t(ld);
  if (channel >= channels) return kPad;
  const uint32_t row = position % rows, n = position / rows;
  return n * rows * channels + (v.height > 0 ? channel * rows + row : row * channels + channel);
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
