// One task, from its initial parameters to its meta-gradient: unroll, query, reverse sweep (docs/maths.md, section 2).
//
//   theta_{k+1} = theta_k - a_k g_k,   g_k = d L(theta_k; S) / d theta,   L_t = L(theta_K; Q)
//   lambda_K = c d L_t / d theta;      v = a_k lambda_{k+1},   lambda_k = lambda_{k+1} - H_k v
//
// lambda runs over all learnt parameters, v only over the adapted ones; the rest of v is zero, so the rows of H_k that
// belong to parameters which are learnt but not adapted come out of the same product.
#pragma once

#include "cpu/layout.h"
#include "cpu/passes.h"
#include "first_layer.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct TaskRun {
  const Job<T>& job;
  const int64_t task;
  T* const base;    // this thread's part of the workspace
  T* const lambda;  // the meta-gradient of this task, then that of its rates
  const T* initial;

  TaskRun(const Job<T>& j, int64_t t, int64_t slot, int64_t thread)
      : job(j),
        task(t),
        base(j.workspace + thread * j.layout.total),
        lambda(j.gradients ? j.gradients + slot * j.gradient_stride : base + j.layout.meta_gradient),
        initial(j.shared_initial) {}

  void run() {
    gather_initial();
    const T* result = lambda;
    if (job.hessian_vector) {
      result = hessian_vector();
    } else {
      if (has_first()) first().begin(initial + plan(job.first.parameter).offset);
      for (int32_t k = 0; k < job.steps; ++k) inner_step(k);
      write_adapted();
      if (job.has_query)
        query();
      else if (job.sweep)
        memset(lambda, 0, size_t(job.learnt_size) * sizeof(T));
      if (!job.sweep) return;
      add_adapted_cotangent();
      if (job.want_rate_gradient) memset(rate_gradient(), 0, size_t(job.rate_size) * sizeof(T));
      for (int32_t k = job.steps - 1; k >= 0; --k) reverse_step(k);
      if (has_first() && !job.first_order) first().finish(lambda + plan(job.first.parameter).offset);
    }
    for (int32_t p = 0; p < job.learnt_count; ++p)
      if (job.own_gradient[p]) parameter_out(plan(p), result + plan(p).offset, own(job.own_gradient[p], p));
  }

 private:
  const ParameterPlan& plan(int32_t p) const { return job.parameters[p]; }
  template <class P>
  P own(P user, int32_t p) const {
    return user + task * int64_t(plan(p).outputs) * plan(p).inputs * plan(p).taps;
  }
  T* rate_gradient() const { return lambda + job.learnt_size; }
  T* theta_after(int32_t k) const { return base + job.layout.trajectory + k * job.adapted_size; }
  const T* theta_at(int32_t k) const { return k == 0 ? initial : theta_after(k - 1); }

  bool has_first() const { return job.first.parameter >= 0; }
  FirstLayer<T> first() const {
    return {job.first, base, job.support.x + task * job.support.x_task_stride,
            job.query.x + task * job.query.x_task_stride};
  }

  void gather_initial() {
    if (!job.own_initial) return;
    T* mine = base + job.layout.initial;
    memcpy(mine, job.shared_initial, size_t(job.parameter_size) * sizeof(T));
    for (int32_t p = 0; p < job.parameter_count; ++p)
      if (job.sources[p].task_stride)
        parameter_in(plan(p), job.sources[p].data + task * job.sources[p].task_stride, mine + plan(p).offset);
    initial = mine;
  }

  Frame<T> frame(const BatchPlan* batch, T* tape, const T* theta) const {
    Frame<T> f{};
    f.plan = batch;
    f.tape = tape;
    f.initial = initial;
    f.theta = theta;
    f.scratch = base + job.layout.scratch;
    return f;
  }

  Frame<T> support_frame(int32_t k) const {
    const int64_t tape = job.keep ? k * job.layout.tape_stride : 0;
    Frame<T> f = frame(job.support_plan, base + job.layout.tapes + tape, theta_at(k));
    f.x = job.support.x + task * job.support.x_task_stride + k * job.support.x_step_stride;
    f.gradient = base + job.layout.gradient + k * job.layout.gradient_stride;
    if (has_first()) f.first = first().z(k);
    return f;
  }

  void load_input(const Frame<T>& f) const {
    if (!f.plan->input_is_direct) value_in(f.value(0), f.examples(), f.value(0).ld, f.x, f.activation_out(0));
  }

  Targets<T> load_targets(const Frame<T>& f, const Examples<T>& set, int32_t k) const {
    Targets<T> targets{};
    if (set.w) targets.weights = set.w + task * set.w_task_stride + k * set.w_step_stride;
    const int64_t at = task * set.y_task_stride + k * set.y_step_stride;
    if (set.y_is_class) {
      targets.labels = static_cast<const int64_t*>(set.y) + at;
      return targets;
    }
    const Value& z = f.value(f.plan->output);
    T* real = base + job.layout.targets;
    value_in(z, f.examples(), z.cold, static_cast<const T*>(set.y) + at, real);
    targets.real = real;
    targets.real_stride = z.rows * z.cold;
    return targets;
  }

  // Where the loss leaves gradients for targets and weights, as far as somebody wants them.
  TargetGradients<T> target_gradients(const Examples<T>& set) const {
    return {set.dy ? base + job.layout.target_gradient : nullptr, set.dw ? base + job.layout.weight_gradient : nullptr};
  }

  // Adds sign times the gradients of a set's data, which stand in `dx` and `from`, to the user's tensors.
  void add_data_gradients(const Frame<T>& f, const Examples<T>& set, int32_t k, const T* dx,
                          const TargetGradients<T>& from, T sign) const {
    const Value &x = f.value(0), &z = f.value(f.plan->output);
    if (set.dx) value_add(x, f.examples(), x.cold, dx, sign, set.dx + task * set.x_task_stride + k * set.x_step_stride);
    if (from.dy)
      value_add(z, f.examples(), z.cold, from.dy, sign, set.dy + task * set.y_task_stride + k * set.y_step_stride);
    if (from.dw) {
      T* dw = set.dw + task * set.w_task_stride + k * set.w_step_stride;
      for (int64_t i = 0; i < f.examples(); ++i) dw[i] += sign * from.dw[i];
    }
  }

  // Values and gradients of the support loss at step k; the tape and f.gradient hold them afterwards.
  T support_pass(const Frame<T>& f, int32_t k) const {
    load_input(f);
    forward(f);
    const Targets<T> targets = load_targets(f, job.support, k);
    const T loss = loss_forward(f, targets);
    loss_backward(f, targets, {}, T(1), loss);
    backward(f);
    return loss;
  }

  // Tangents along f.vector of all that support_pass computes.
  void support_tangent_pass(Frame<T>& f, int32_t k, const TargetGradients<T>& out) const {
    f.tangent_tape = base + job.layout.tangent_tape;
    f.gradient_dot = base + job.layout.gradient_dot;
    tangent_forward(f);
    const Targets<T> targets = load_targets(f, job.support, k);
    // The mean loss is needed again only for the gradient of the weights.
    loss_tangent_backward(f, targets, out, out.dw ? loss_forward(f, targets) : T(0));
    tangent_backward(f);
  }

  void inner_step(int32_t k) const {
    const Frame<T> f = support_frame(k);
    const T loss = support_pass(f, k);
    if (job.support_loss) job.support_loss[task * job.steps + k] = loss;
    T* next = theta_after(k);
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      if (a == job.first.parameter) {
        first().step(k, job.rate_table[k * job.adapted_count + a], f.cotangent(job.first.output));
        continue;
      }
      const int64_t at = plan(a).offset, n = plan(a).size;
      const T* __restrict theta = f.theta + at, * __restrict g = f.gradient + at;
      T* __restrict out = next + at;
      if (const T* __restrict rates = elementwise(a, k)) {
        for (int64_t i = 0; i < n; ++i) out[i] = theta[i] - rates[i] * g[i];
      } else {
        const T rate = job.rate_table[k * job.adapted_count + a];
        for (int64_t i = 0; i < n; ++i) out[i] = theta[i] - rate * g[i];
      }
    }
  }

  const T* elementwise(int32_t a, int32_t k) const {
    return job.elementwise[a] ? job.elementwise[a] + k * job.elementwise_stride[a] : nullptr;
  }

  void write_adapted() const {
    if (!job.adapted) return;
    for (int32_t a = 0; a < job.adapted_count; ++a)
      parameter_out(plan(a), theta_at(job.steps) + plan(a).offset, own(job.adapted[a], a));
  }

  void query() const {
    Frame<T> f = frame(job.query_plan, base + job.layout.query_tape, theta_at(job.steps));
    f.x = job.query.x + task * job.query.x_task_stride;
    f.gradient = lambda;
    if (has_first()) {
      first().query(initial + plan(job.first.parameter).offset);
      f.first = first().z_query();
    }
    load_input(f);
    forward(f);
    const Value& z = f.value(f.plan->output);
    const int64_t logits = task * f.examples() * z.rows * z.channels;
    if (job.logits) value_out(z, f.examples(), z.ld, f.activation(f.plan->output), job.logits + logits);

    T loss = T(0);
    Targets<T> targets{};
    if (job.query.y) {
      targets = load_targets(f, job.query, 0);
      loss = loss_forward(f, targets);
      job.task_loss[task] = loss;
    }
    if (!job.sweep) return;

    const TargetGradients<T> out = target_gradients(job.query);
    T* dz = f.cotangent(f.plan->output);
    if (z.has_cotangent) {
      if (job.query.y)
        loss_backward(f, targets, out, loss_cotangent(), loss);
      else
        memset(dz, 0, size_t(f.examples() * z.rows * z.cold) * sizeof(T));
      if (const T* given = job.logits_cotangent)
        for_elements(z, f.examples(), z.cold, [&](int64_t from, int64_t to) { dz[to] += given[logits + from]; });
    }
    backward(f);
    if (has_first()) first().query_adjoint(f.cotangent(job.first.output), lambda + plan(job.first.parameter).offset);
    add_data_gradients(f, job.query, 0, job.query.dx ? f.cotangent(0) : nullptr, out, T(1));
  }

  T loss_cotangent() const { return job.loss_cotangent ? job.loss_cotangent[task] : job.loss_cotangent_all; }

  void add_adapted_cotangent() const {
    if (!job.adapted_cotangent) return;
    T* internal = base + job.layout.gradient_dot;  // free until the reverse sweep
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      if (!job.adapted_cotangent[a].data) continue;
      parameter_in(plan(a), own(job.adapted_cotangent[a].data, a), internal);
      T* out = lambda + plan(a).offset;
      for (int64_t i = 0; i < plan(a).size; ++i) out[i] += internal[i];
    }
  }

  void reverse_step(int32_t k) const {
    Frame<T> f = support_frame(k);
    if (!job.want_rate_gradient) f.gradient = nullptr;
    if (!job.first_order && !job.keep && k + 1 < job.steps) support_pass(f, k);  // the last step's tape is still there
    if (job.want_rate_gradient) add_rate_gradient(f, k);
    if (job.first_order) return;
    T* v = base + job.layout.vector;
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      if (a == job.first.parameter) {
        first().make_tangent(job.rate_table[k * job.adapted_count + a]);
        f.first_dot = first().tangent();
        continue;
      }
      const int64_t at = plan(a).offset, n = plan(a).size;
      const T* __restrict from = lambda + at;
      T* __restrict out = v + at;
      if (const T* __restrict rates = elementwise(a, k)) {
        for (int64_t i = 0; i < n; ++i) out[i] = rates[i] * from[i];
      } else {
        const T rate = job.rate_table[k * job.adapted_count + a];
        for (int64_t i = 0; i < n; ++i) out[i] = rate * from[i];
      }
    }
    f.vector = v;
    const TargetGradients<T> out = target_gradients(job.support);
    support_tangent_pass(f, k, out);
    for (int32_t p = 0; p < job.learnt_count; ++p) {
      if (p == job.first.parameter) {
        first().reverse(f.cotangent_dot(job.first.output));
        continue;
      }
      const T* __restrict h = f.gradient_dot + plan(p).offset;
      T* __restrict l = lambda + plan(p).offset;
      for (int64_t i = 0; i < plan(p).size; ++i) l[i] -= h[i];
    }
    add_data_gradients(f, job.support, k, job.support.dx ? f.cotangent_dot(0) : nullptr, out, T(-1));
  }

  // d loss / d a_k = - lambda_{k+1} g_k, summed to the shape of a_k.
  void add_rate_gradient(const Frame<T>& f, int32_t k) const {
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      const int64_t n = plan(a).size;
      const T* __restrict g = f.gradient + plan(a).offset, * __restrict l = lambda + plan(a).offset;
      if (a == job.first.parameter) {
        rate_gradient()[k * job.adapted_count + a] = first().rate_gradient(f.cotangent(job.first.output));
      } else if (job.elementwise[a]) {
        T* __restrict out = rate_gradient() + job.rate_offset[a] + k * job.elementwise_stride[a];
        for (int64_t i = 0; i < n; ++i) out[i] -= l[i] * g[i];
      } else {
        Vector<T> sum{};
        for (int64_t i = 0; i < n; i += kLanes<T>) sum += load(l + i) * load(g + i);
        T total = T(0);
        for (int lane = 0; lane < kLanes<T>; ++lane) total += sum[lane];
        rate_gradient()[k * job.adapted_count + a] = -total;
      }
    }
  }

  // H v + c grad L, with the mixed derivatives of the data, c being the cotangent of the loss. Where it stands.
  const T* hessian_vector() const {
    Frame<T> f = support_frame(0);
    const bool only_product = !job.loss_cotangent && job.loss_cotangent_all == T(0);
    const T c = only_product ? T(0) : loss_cotangent();
    if (only_product) f.gradient = nullptr;
    load_input(f);
    forward(f);
    const Targets<T> targets = load_targets(f, job.support, 0);
    const T loss = loss_forward(f, targets);
    const TargetGradients<T> out = target_gradients(job.support);
    loss_backward(f, targets, out, T(1), loss);
    backward(f);
    if (!only_product) add_data_gradients(f, job.support, 0, job.support.dx ? f.cotangent(0) : nullptr, out, c);

    T* v = base + job.layout.vector;
    for (int32_t p = 0; p < job.learnt_count; ++p)
      parameter_in(plan(p), job.vectors[p].data + task * job.vectors[p].task_stride, v + plan(p).offset);
    f.vector = v;
    support_tangent_pass(f, 0, out);
    add_data_gradients(f, job.support, 0, job.support.dx ? f.cotangent_dot(0) : nullptr, out, T(1));
    if (only_product && !job.gradients) return f.gradient_dot;
    for (int64_t i = 0; i < job.learnt_size; ++i)
      lambda[i] = f.gradient_dot[i] + (only_product ? T(0) : c * f.gradient[i]);
    return lambda;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
