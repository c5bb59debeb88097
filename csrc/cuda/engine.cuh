// The engine's own phases: data in and out, the inner step, the reverse sweep, sums over tasks. What they are for is in
// csrc/cpu/machine.h; in which order they run, in schedule.cpp.
#pragma once

#include "cuda/loss.cuh"
#include "cuda/rule.cuh"
#include "cuda/task.cuh"

namespace metafast {
namespace METAFAST_ISA {

// Argument 1: into the copy that all tasks share.
template <class T>
struct GatherInitial : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const DeviceJob<T>& job = task.job;
    T* out = i.argument ? job.shared_initial : task.at(job.layout.initial);
    for (int32_t p = 0; p < job.parameter_count; ++p)
      parameter_in(block, job.parameters[p], job.sources[p].data + task.task * job.sources[p].task_stride,
                   out + job.parameters[p].offset);
  }
};

template <class T>
struct LoadInput : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const Frame<T> f = task.frame(i);
    const Value& v = f.value(0);
    T* out = f.activation_out(0);
    block.for_each(f.examples() * v.rows * v.ld, [&](uint32_t inside) {
      const uint32_t from = user_index(v, v.ld, inside);
      out[inside] = from != kPad ? f.x[from] : T(0);
    });
  }
};

template <class T>
struct LoadTargets : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const BatchPlan& plan = *task.plan(i.which);
    const Examples<T>& data = task.set(i.which);
    const Value& z = plan.values[plan.output];
    const T* y = static_cast<const T*>(data.y) + task.task * data.y_task_stride + i.k * data.y_step_stride;
    T* out = task.at(task.job.layout.targets);
    block.for_each(plan.examples * z.rows * z.ld_cotangent, [&](uint32_t inside) {
      const uint32_t from = user_index(z, z.ld_cotangent, inside);
      out[inside] = from != kPad ? y[from] : T(0);
    });
  }
};

// A parameter that no step uses has a zero gradient. Argument 1: the tangents.
template <class T>
struct ClearGradient : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const Frame<T> f = task.frame(i);
    T* out = i.argument ? f.gradient_dot : f.gradient;
    block.for_each(f.plan->gradient_size, [&](uint32_t e) { out[e] = T(0); });
  }
};

template <class T>
struct WriteAdapted : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction&, const Block& block) {
    const DeviceJob<T>& job = task.job;
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      const ParameterPlan& p = job.parameters[a];
      parameter_out(block, p, task.theta_at(job.steps) + p.offset, job.adapted[a] + task.task * user_size(p));
    }
  }
};

template <class T>
struct WriteLogits : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const Frame<T> f = task.frame(i);
    const Value& z = f.value(f.plan->output);
    const int64_t count = f.examples() * z.rows * z.channels;
    const T* in = f.activation(f.plan->output);
    T* out = task.job.logits + task.task * count;
    block.for_each(count, [&](uint32_t user) { out[user] = in[inside_index(z, z.ld, user)]; });
  }
};

// The cotangent that came from outside. Argument 1: there is no loss, so it stands alone.
template <class T>
struct SeedLogits : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const Frame<T> f = task.frame(i);
    const Value& z = f.value(f.plan->output);
    const int64_t count = f.examples() * z.rows * z.channels;
    const T* given = task.job.logits_cotangent;
    T* dz = f.cotangent(f.plan->output);
    block.for_each(f.examples() * z.rows * z.ld_cotangent, [&](uint32_t inside) {
      const uint32_t user = user_index(z, z.ld_cotangent, inside);
      const T value = given && user != kPad ? given[task.task * count + user] : T(0);
      dz[inside] = i.argument ? value : dz[inside] + value;
    });
  }
};

// Argument 1: lambda; 2: what the rule's adjoint adds to.
template <class T>
struct ClearMetaGradient : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const DeviceJob<T>& job = task.job;
    const auto clear = [&](T* out, int64_t n) { block.for_each(n, [&](uint32_t e) { out[e] = T(0); }); };
    if (i.argument & 1) clear(task.lambda(), job.learnt_size);
    if (!(i.argument & 2)) return;
    clear(task.hyper_bars(), job.hyper_size);
    clear(task.at(job.layout.state_bar), job.state_count * job.adapted_size);
    if (job.uses_start) clear(task.at(job.layout.start_bar), job.adapted_size);
  }
};

template <class T>
struct AddAdaptedCotangent : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction&, const Block& block) {
    const DeviceJob<T>& job = task.job;
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      if (!job.adapted_cotangent[a]) continue;
      const ParameterPlan& p = job.parameters[a];
      const T* given = job.adapted_cotangent[a] + task.task * user_size(p);
      T* out = task.lambda() + p.offset;
      block.for_each(p.size, [&](uint32_t e) {
        const uint32_t from = user_index(p, e);
        if (from != kPad) out[e] += given[from];
      });
    }
  }
};

template <class T>
struct LoadVector : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction&, const Block& block) {
    const DeviceJob<T>& job = task.job;
    for (int32_t p = 0; p < job.learnt_count; ++p)
      parameter_in(block, job.parameters[p], job.vectors[p].data + task.task * job.vectors[p].task_stride,
                   task.at(job.layout.vector) + job.parameters[p].offset);
  }
};

template <class T>
struct AddVectorProduct : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const Frame<T> f = task.frame(i);
    const T c = task.loss_cotangent();
    T* lambda = task.lambda();
    block.for_each(task.job.learnt_size, [&](uint32_t e) { lambda[e] = f.gradient_dot[e] + c * f.gradient[e]; });
  }
};

// Adds the gradients of a set's data to the user's tensors: those of the values times the call's cotangent (argument 0)
// or times 1 (1), or the tangents (2).
template <class T>
struct AddDataGradients : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const Frame<T> f = task.frame(i);
    const Examples<T>& data = task.set(i.which);
    const Value &x = f.value(0), &z = f.value(f.plan->output);
    const T factor = i.argument == 0 ? task.loss_cotangent() : T(1);
    if (data.dx) {
      const T* from = i.argument >= 2 ? f.cotangent_dot(0) : f.cotangent(0);
      T* dx = data.dx + task.task * data.x_task_stride + i.k * data.x_step_stride;
      block.for_each(f.examples() * x.rows * x.channels,
                     [&](uint32_t user) { dx[user] += factor * from[inside_index(x, x.ld_cotangent, user)]; });
    }
    if (data.dy) {
      const T* from = task.at(task.job.layout.target_gradient);
      T* dy = data.dy + task.task * data.y_task_stride + i.k * data.y_step_stride;
      block.for_each(f.examples() * z.rows * z.channels,
                     [&](uint32_t user) { dy[user] += factor * from[inside_index(z, z.ld_cotangent, user)]; });
    }
    if (data.dw) {
      const T* from = task.at(task.job.layout.weight_gradient);
      T* dw = data.dw + task.task * data.w_task_stride + i.k * data.w_step_stride;
      block.for_each(f.examples(), [&](uint32_t n) { dw[n] += factor * from[n]; });
    }
  }
};

// Gradients that are not summed over tasks.
template <class T>
struct WriteGradients : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction&, const Block& block) {
    const DeviceJob<T>& job = task.job;
    for (int32_t p = 0; p < job.learnt_count; ++p) {
      const ParameterPlan& plan = job.parameters[p];
      if (job.own_gradient[p])
        parameter_out(block, plan, task.lambda() + plan.offset, job.own_gradient[p] + task.task * user_size(plan));
    }
  }
};

// Sums over tasks in two steps, so that thousands of tasks are not one long chain: those of a group of kSumGroup tasks, in
// their order, and then those of the groups. Groups are counted from the first task of all, and one that a chunk leaves
// unfinished is carried into the next: chunks change no bit.
template <class T>
static __device__ int64_t summed_elements(const DeviceJob<T>& job) {
  return job.learnt_size + job.hyper_size;
}

// A tile for each group and each `argument`-th part of the elements.
template <class T>
struct SumGroups : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const DeviceJob<T>& job = task.job;
    const int64_t last = job.first_task + job.chunk_tasks;
    const int64_t local = block.tile / i.argument, group = job.first_task / kSumGroup + local;
    const int64_t begin = group * kSumGroup, end = begin + kSumGroup < last ? begin + kSumGroup : last;
    const bool carried = begin < job.first_task;
    const uint32_t size = uint32_t(summed_elements(job)), step = uint32_t(i.argument * block.threads);
    for (uint32_t e = uint32_t(block.tile % i.argument * block.threads + block.thread); e < size; e += step) {
      T sum = carried ? job.carry[e] : T(0);
      for (int64_t t = carried ? job.first_task : begin; t < end; ++t)
        sum += job.gradients[(t - job.first_task) * job.gradient_stride + e];
      job.group_sums[local * job.gradient_stride + e] = sum;
    }
  }
};

template <class T>
struct SumTasks : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction&, const Block& block) {
    const DeviceJob<T>& job = task.job;
    const int64_t first = job.first_task / kSumGroup, last = job.first_task + job.chunk_tasks;
    block.for_each(summed_elements(job), [&](uint32_t e) {
      T sum = job.first_task > 0 ? job.sums[e] : T(0);
      for (int64_t group = first; group * kSumGroup < last; ++group) {
        const T part = job.group_sums[(group - first) * job.gradient_stride + e];
        if ((group + 1) * kSumGroup <= last || last == job.tasks)
          sum += part;
        else
          job.carry[e] = part;
      }
      job.sums[e] = sum;
    });
  }
};

// After the last chunk: what is shared by all tasks, in the user's layout.
template <class T>
struct Finish : PhaseDefaults {
  static constexpr int kShared = kThreads;
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    const DeviceJob<T>& job = task.job;
    if (job.loss && block.tile == 0) {
      T sum = T(0);
      for (int64_t t = block.thread; t < job.tasks; t += block.threads) sum += job.task_loss[t];
      sum = block_sum(block, sum);
      if (block.thread == 0) *job.loss = sum / T(job.tasks);
    }
    if (!i.argument) return;
    for (int32_t p = 0; p < job.learnt_count; ++p)
      if (job.shared_gradient[p])
        parameter_out(block, job.parameters[p], job.sums + job.parameters[p].offset, job.shared_gradient[p]);
    if (!job.want_hyper_gradient) return;
    const T* bars = job.sums + job.learnt_size;
    for (int32_t h = 0; h < job.hyper_count; ++h) {
      const HyperPlan<T>& plan = job.hypers[h];
      if (T* out = job.hyper_table_gradient[h])
        block.for_each(int64_t(job.steps) * job.adapted_count,
                       [&](uint32_t e) { out[e] = bars[plan.table_offset + e]; });
      for (int32_t a = 0; a < job.adapted_count; ++a)
        if (T* out = job.hyper_tensors[h * job.adapted_count + a].gradient)
          for_hyper_arrays(job, h, a, [&](const ParameterPlan& p, int64_t inside, int64_t outside) {
            parameter_out(block, p, bars + plan.each_offset[a] + inside, out + outside);
          });
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
