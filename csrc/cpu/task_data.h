// A run's data: where the passes find inputs and targets, and what their gradients are added to.
//
// A task by itself reads inputs where the user has them if it can, and copies them otherwise. Packs interleave every set once,
// 16 rows of a task each into rows of 16 tasks, unless the inner steps see different data.
#pragma once

#include "cpu/kernels/layout.h"
#include "cpu/passes.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct TaskData {
  using E = Element<T>;
  static constexpr int kWidth = kTasks<T>;

  const Job<E>& job;
  const int64_t task;  // the first of this run
  const int count;     // how many there are; the lanes that are left repeat the last one
  T* const base;       // its place in the workspace

  // Calls body(task, lane): for every lane, to fill it; for every task, to write what it came to.
  template <class Body>
  void each_lane(Body body) const {
    for (int lane = 0; lane < kWidth; ++lane) body(at(lane), lane);
  }
  template <class Body>
  void each_task(Body body) const {
    for (int lane = 0; lane < count; ++lane) body(task + lane, lane);
  }
  int64_t at(int64_t lane) const { return task + (lane < count ? lane : count - 1); }

  static E* in_lane(T* p, int lane) { return reinterpret_cast<E*>(p) + lane; }
  static const E* in_lane(const T* p, int lane) { return reinterpret_cast<const E*>(p) + lane; }

  // Readies a frame to read a set's inputs at step k.
  METAFAST_OUTLINED void bind_set(Frame<T>& f, const Examples<E>& set, int32_t k) const {
    if constexpr (kIsPack<T>) {
      const Packs to = packs(f, set);
      f.x = to.x;
      if (k > 0 && !set.x_step_stride) return;
      const int64_t n = f.examples();
      interleave(set.x + k * set.x_step_stride, set.x_task_stride, n * f.value(0).channels, to.x);
      if (!set.y_is_class && set.y)
        interleave(static_cast<const E*>(set.y) + k * set.y_step_stride, set.y_task_stride,
                   n * f.value(f.plan->output).channels, to.y);
      if (set.w) interleave(set.w + k * set.w_step_stride, set.w_task_stride, n, to.w);
    } else {
      f.x = set.x + task * set.x_task_stride + k * set.x_step_stride;
    }
  }

  // Where inputs are not read as they stand.
  METAFAST_OUTLINED void load_input(const Frame<T>& f) const {
    if constexpr (!kIsPack<T>)
      if (!f.plan->input_in_place) value_in(f.value(0), f.examples(), f.value(0).ld, f.x, f.activation_out(0));
  }

  METAFAST_OUTLINED TaskTargets<T> load_targets(const Frame<T>& f, const Examples<E>& set, int32_t k) const {
    const Value& z = f.value(f.plan->output);
    const int64_t n = f.examples();
    TaskTargets<T> targets;
    each_lane([&](int64_t t, int lane) {
      const int64_t at = t * set.y_task_stride + k * set.y_step_stride;
      Targets<E>& own = targets.lane[lane];
      own = {};
      if (set.w) own.weights = set.w + t * set.w_task_stride + k * set.w_step_stride;
      if (set.y_is_class) {
        own.labels = static_cast<const int64_t*>(set.y) + at;
        return;
      }
      own.real = static_cast<const E*>(set.y) + at;
      own.real_stride = z.rows * z.channels, own.real_ld = z.channels;
      if constexpr (!kIsPack<T>) {  // whole registers
        T* real = base + job.layout.targets;
        value_in(z, n, z.ld_cotangent, own.real, real);
        own = {nullptr, real, z.rows * z.ld_cotangent, z.ld_cotangent, own.weights};
      }
    });
    if constexpr (kIsPack<T>) {
      const Packs from = packs(f, set);
      targets.all = {nullptr, from.y, z.channels, z.channels, set.w ? from.w : nullptr};
    }
    return targets;
  }

  // Where the loss leaves gradients for targets and weights, as far as somebody wants them.
  TargetGradients<T> target_gradients(const Examples<E>& set) const {
    return {set.dy ? base + job.layout.target_gradient : nullptr, set.dw ? base + job.layout.weight_gradient : nullptr};
  }

  // Adds sign times the gradients of a set's data, which stand in `dx` and `from`, to the user's tensors.
  METAFAST_OUTLINED void add_data_gradients(const Frame<T>& f, const Examples<E>& set, int32_t k, const T* dx,
                                            const TargetGradients<T>& from, T sign) const {
    const Value &x = f.value(0), &z = f.value(f.plan->output);
    const int64_t n = f.examples();
    each_task([&](int64_t t, int lane) {
      const auto add = [&](const Value& v, const T* in, E* user) {
        value_add<E, kWidth>(v, n, v.ld_cotangent, in_lane(in, lane), lane_of(sign, lane), user);
      };
      if (set.dx) add(x, dx, set.dx + t * set.x_task_stride + k * set.x_step_stride);
      if (from.dy) add(z, from.dy, set.dy + t * set.y_task_stride + k * set.y_step_stride);
      if (!from.dw) return;
      E* dw = set.dw + t * set.w_task_stride + k * set.w_step_stride;
      for (int64_t i = 0; i < n; ++i) dw[i] += lane_of(sign, lane) * in_lane(from.dw, lane)[i * kWidth];
    });
  }

 private:
  // A set's inputs, real targets and weights, as packs.
  struct Packs {
    T *x, *y, *w;
  };
  Packs packs(const Frame<T>& f, const Examples<E>& set) const {
    T* x = base + (&set == &job.query ? job.layout.query_packs : job.layout.support_packs);
    T* y = x + f.examples() * f.value(0).channels;
    return {x, y, y + f.examples() * f.value(f.plan->output).channels};
  }
  // from: [tasks][size]
  void interleave(const E* from, int64_t stride, int64_t size, T* to) const {
    const auto row = [&](int64_t lane) { return from + at(lane) * stride; };
    transpose_rows<E>(row, kWidth, size, Rows<E>{reinterpret_cast<E*>(to), kWidth}, kWidth);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
