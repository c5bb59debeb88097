// The machine that a CPU thread is: what an estimator (estimators/list.h) asks for, done for one task (docs/maths.md,
// equations 2 to 9).
//
//   (theta_{k+1}, s_{k+1}) = U(theta_k, s_k, g_k),   g_k = d L(theta_k; S) / d theta,   L_t = L(theta_K; Q)
//   lambda_K = c d L_t / d theta;   the adjoint of U makes v and lambda' of lambda_{k+1};   lambda_k = lambda' + H_k v
//
// lambda runs over all learnt parameters, v only over the adapted ones; the rest of v is zero, so the rows of H_k that
// belong to parameters which are learnt but not adapted come out of the same product.
//
// With T = Pack the same text runs as many tasks at once as T has lanes; the user's tensors are then read and written a
// lane at a time.
#pragma once

#include "cpu/descent_loops.h"
#include "cpu/first_layer.h"
#include "cpu/rule_walk.h"
#include "cpu/task_data.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Machine : TaskData<T> {
  using Data = TaskData<T>;
  using E = Element<T>;
  using Data::bind_set, Data::load_input, Data::load_targets, Data::target_gradients, Data::add_data_gradients;
  using Data::each_lane, Data::each_task, Data::in_lane;
  using Data::job, Data::task, Data::count, Data::base, Data::kWidth;

  T* const lambda;  // the meta-gradient of this task, then that of its hyper-parameters
  E* const row;     // where it is to stand for the sum over tasks; the sums of a pack's groups, row by row
  const T* initial;
  const Sharing<T> share;

  Machine(const Job<E>& j, const WorkItem& item)
      : Data{j, item.run * kWidth, int(j.tasks - item.run * kWidth < kWidth ? j.tasks - item.run * kWidth : kWidth),
             reinterpret_cast<T*>(j.places) + item.place * j.layout.total},
        lambda(j.gradients && !kIsPack<T> ? reinterpret_cast<T*>(j.gradients) + item.row * j.gradient_stride
                                          : base + j.layout.meta_gradient),
        row(j.gradients + item.row * j.gradient_stride),
        initial(kIsPack<T> ? nullptr : reinterpret_cast<const T*>(j.shared_initial)),
        share{j.helpers, item.thread, reinterpret_cast<T*>(j.scratch), j.scratch_stride} {}

  // Stages [begin, end) of inner steps, query, reverse steps; all but the first find what others left in this task's place.
  void run(int32_t begin, int32_t end) {
    gather_initial(begin == 0);
    result_ = lambda;
    if (begin == 0 && has_first()) first().begin(initial + plan(job.first.parameter).offset);
    job.estimator.visit([&](auto estimator) {
      for (int32_t i = begin; i < end; ++i) decltype(estimator)::stage(*this, i);
    });
    for (int32_t a = 0; pending_ && a < job.adapted_count; ++a)
      if (a != job.first.parameter) add(pending_ + plan(a).offset, plan(a).size, lambda + plan(a).offset);
    if (end < job.estimator.stages(job.steps, job.sweep) || !job.sweep) return;
    if (has_first() && job.estimator.is_second_order()) first().finish(lambda + plan(job.first.parameter).offset);
    if (job.uses_start) add(start_bar(), job.adapted_size, lambda);
    for (int32_t p = 0; p < job.learnt_count; ++p)
      if (job.own_gradient[p] && !gradient_in_user_layout(p))
        to_user(plan(p), result_ + plan(p).offset, job.own_gradient[p]);
    if constexpr (kIsPack<T>)
      if (job.gradients) sum_lanes(lambda, count, job.learnt_size + job.hyper_size, job.gradient_stride, row);
  }

  // ---- What an estimator asks for

  int32_t steps() const { return job.steps; }
  int32_t argument() const { return job.estimator.argument; }

  METAFAST_OUTLINED void linearise(int32_t k) {
    f_ = support_frame(k);
    Prefetcher next_tape = prefetcher(k + 1);
    f_.prefetcher = &next_tape;
    if (job.descent && !job.want_hyper_gradient) f_.fused = descent().fused_step(f_.theta, theta_after(k), k);
    const T loss = support_pass(f_, k);
    f_.prefetcher = nullptr;
    if (job.support_loss)
      each_task([&](int64_t t, int lane) { job.support_loss[t * job.steps + k] = lane_of(loss, lane); });
  }

  void step(int32_t k) {
    if (has_first()) first().step(k, f_.cotangent(job.first.output));
    job.descent ? descent().step(f_, k, theta_after(k)) : rule().step(k, point(k), theta_after(k), state_after(k));
  }

  // Between the inner steps and the reverse sweep.
  void query() const {
    write_adapted();
    if (job.has_query)
      query_pass();
    else if (job.sweep)
      memset(lambda, 0, size_t(job.learnt_size) * sizeof(T));
    if (!job.sweep) return;
    add_adapted_cotangent();
    if (job.want_hyper_gradient) memset(hyper_bars(), 0, size_t(job.hyper_size) * sizeof(T));
    memset(base + job.layout.state_bar, 0, size_t(job.state_count * job.adapted_size) * sizeof(T));
    if (job.uses_start) memset(start_bar(), 0, size_t(job.adapted_size) * sizeof(T));
  }

  METAFAST_OUTLINED void replay(int32_t k) {
    if (job.kept.ends_segment(k, job.steps)) {
      if (has_first()) first().restore(job.kept.segment_begin(k));
      for (int32_t j = job.kept.segment_begin(k); j <= k; ++j) {
        linearise(j);
        if (j < k) step(j);
      }
    }
    f_ = support_frame(k);
    if (!job.kept.gradients) f_.gradient = nullptr;
    if (!job.estimator.is_second_order() || job.kept.has_tape(k, job.steps)) return;
    Prefetcher next_tape = prefetcher(k - 1);
    f_.prefetcher = &next_tape;
    support_pass(f_, k);
    f_.prefetcher = nullptr;
  }

  void step_adjoint(int32_t k) {
    if (job.descent) {
      if (job.want_hyper_gradient) add_rate_gradient(k);
    } else {
      if (has_first()) f_.first_dot = first().adjoint(k);
      rule().adjoint(k, point(k),
                     {lambda, base + job.layout.state_bar, base + job.layout.vector, start_bar(), pending_});
      pending_ = nullptr;
    }
  }

  METAFAST_OUTLINED void product(int32_t k) {
    Prefetcher next_tape = prefetcher(k - 1);
    f_.prefetcher = &next_tape;
    if (!job.descent)
      product_with_vector(k);
    else if (descent().one_rate(k))
      product_with_lambda(k);
    else
      find_vector(k), product_with_vector(k);
    f_.prefetcher = nullptr;
  }

  // H v + c grad L, with the mixed derivatives of the data, c being the cotangent of the loss.
  METAFAST_OUTLINED void hessian_vector() {
    Frame<T> f = support_frame(0);
    f.only_adapted = false;
    const bool only_product = !job.loss_cotangent && job.loss_cotangent_all == E(0);
    const T c = only_product ? T(0) : loss_cotangent();
    if (only_product) f.gradient = nullptr;
    T* v = base + job.layout.vector;
    for (int32_t p = 0; p < job.learnt_count; ++p)
      if (!in_user_layout(p)) from_user(plan(p), job.vectors[p], v + plan(p).offset);
    f.vector = v;
    find_tangents(f);
    load_input(f);
    forward_with_tangent(f);
    const TaskTargets<T> targets = load_targets(f, job.support, 0);
    const T loss = loss_forward(f, targets);
    const TargetGradients<T> out = target_gradients(job.support);
    loss_backward(f, targets, out, T(1), loss);
    backward(f);
    if (!only_product) add_data_gradients(f, job.support, 0, job.support.dx ? f.cotangent(0) : nullptr, out, c);

    support_tangent_return(f, 0, out);
    add_data_gradients(f, job.support, 0, job.support.dx ? f.cotangent_dot(0) : nullptr, out, T(1));
    if (only_product && !job.gradients) {
      result_ = f.gradient_dot;
      return;
    }
    for (int64_t i = 0; i < job.learnt_size; ++i)
      lambda[i] = f.gradient_dot[i] + (only_product ? T(0) : c * f.gradient[i]);
  }

 private:
  Frame<T> f_{};           // of the step at work
  const T* pending_ = {};  // what is still to be added to lambda of the adapted parameters: the next adjoint does it
  const T* result_ = {};   // where the gradients stand that the user wants for each task

  const ParameterPlan& plan(int32_t p) const { return job.parameters[p]; }
  bool in_user_layout(int32_t p) const {
    return job.estimator.is_hessian_vector() && job.support_plan->parameters[p].in_user_layout;
  }
  bool gradient_in_user_layout(int32_t p) const {
    return job.estimator.is_hessian_vector() && job.support_plan->parameters[p].gradient_in_user_layout;
  }

  METAFAST_OUTLINED void from_user(const ParameterPlan& p, const ParameterSource<E>& source, T* out) const {
    each_lane([&](int64_t t, int lane) {
      parameter_in<E, kWidth>(p, source.data + t * source.task_stride, in_lane(out, lane));
    });
  }
  // user: [tasks, shape]
  METAFAST_OUTLINED void to_user(const ParameterPlan& p, const T* in, E* user) const {
    each_task([&](int64_t t, int lane) { parameter_out<E, kWidth>(p, in_lane(in, lane), user + t * p.numel()); });
  }

  T* hyper_bars() const { return lambda + job.learnt_size; }
  T* start_bar() const { return base + job.layout.start_bar; }

  // Where theta_{k+1} and the states after step k stand; step 0 finds `initial`, and states of zero.
  T* theta_after(int32_t k) const {
    return base + job.layout.trajectory + job.kept.theta_slot(k) * job.layout.trajectory_stride;
  }
  T* state_after(int32_t k) const {
    return job.kept.states ? theta_after(k) + job.adapted_size : base + job.layout.state;
  }
  const T* theta_at(int32_t k) const { return k == 0 ? initial : theta_after(k - 1); }

  T* gradient_of(int32_t k) const {
    return base + job.layout.gradient + job.kept.gradient_slot(k) * job.layout.gradient_stride;
  }

  RulePoint<T> point(int32_t k) const {
    return {theta_at(k), k == 0 ? nullptr : state_after(k - 1), gradient_of(k), initial, state_after(k)};
  }
  RuleLoops<CpuWalk<T>> rule() const {
    return {job.links,
            job.link_count,
            job.adapted_count,
            job.adapted_size,
            has_first() ? job.first.parameter : -1,
            job.parameters,
            job.hypers,
            kWalk,
            base + job.layout.link,
            job.want_hyper_gradient ? hyper_bars() : nullptr};
  }
  static constexpr CpuWalk<T> kWalk{};
  DescentLoops<T> descent() const { return {job}; }

  bool has_first() const { return kWidth == 1 && job.first.parameter >= 0; }
  FirstLayer<T> first() const {
    const auto rows = [&](const Examples<E>& set) {  // packs never take this way
      return reinterpret_cast<const T*>(set.x + task * set.x_task_stride);
    };
    return {job, job.first, base, rows(job.support), rows(job.query), share};
  }

  void gather_initial(bool begins) {
    if (!job.own_initial && !kIsPack<T>) return;
    T* mine = base + job.layout.initial;
    initial = mine;
    if (!begins) return;
    for (int32_t p = 0; p < job.parameter_count; ++p) {
      if (in_user_layout(p)) continue;
      const int64_t begin = plan(p).offset, end = begin + plan(p).size;
      if (job.sources[p].task_stride)
        from_user(plan(p), job.sources[p], mine + begin);
      else
        for (int64_t i = begin; i < end; ++i) mine[i] = T(job.shared_initial[i]);
    }
  }

  Frame<T> frame(const BatchPlan* batch, T* tape, int32_t step) const {
    Frame<T> f{};
    f.plan = batch;
    f.job = &job;
    f.task = task;
    f.random = {job.seed, uint32_t(task), uint32_t(step)};
    f.tape = tape;
    f.initial = initial;
    f.theta = theta_at(step);
    f.scratch = share.scratch_of(share.thread);
    f.share = share;
    return f;
  }

  Frame<T> support_frame(int32_t k) const {
    const int64_t tape = job.kept.tape_slot(k) * job.layout.tape_stride;
    Frame<T> f = frame(job.support_plan, base + job.layout.tapes + tape, k);
    f.transient = base + job.layout.transient + k * job.layout.transient_stride;
    bind_set(f, job.support, k);
    f.gradient = gradient_of(k);
    f.only_adapted = true;
    if (has_first()) f.first = first().z(k);
    return f;
  }

  // Values and gradients of the support loss at step k; the tape and f.gradient hold them afterwards.
  METAFAST_OUTLINED T support_pass(const Frame<T>& f, int32_t k) const {
    load_input(f);
    forward(f);
    const TaskTargets<T> targets = load_targets(f, job.support, k);
    const T loss = loss_forward(f, targets);
    loss_backward(f, targets, {}, T(1), loss);
    backward(f);
    return loss;
  }

  // Tangents along f.vector of all that support_pass computes.
  METAFAST_OUTLINED void support_tangent_pass(Frame<T>& f, int32_t k, const TargetGradients<T>& out) const {
    find_tangents(f);
    tangent_forward(f);
    support_tangent_return(f, k, out);
  }
  void find_tangents(Frame<T>& f) const {
    f.tangent_tape = base + job.layout.tangent_tape;
    f.gradient_dot = base + job.layout.gradient_dot;
  }
  METAFAST_OUTLINED void support_tangent_return(const Frame<T>& f, int32_t k, const TargetGradients<T>& out) const {
    const TaskTargets<T> targets = load_targets(f, job.support, k);
    // The mean loss is needed again only for the gradient of the weights.
    loss_tangent_backward(f, targets, out, out.dw ? loss_forward(f, targets) : T(0));
    tangent_backward(f);
  }

  // The tape of step k and its parameters, where they will not be in the cache. (Those of packs are slower for it: 1.06.)
  Prefetcher prefetcher(int32_t k) const {
    Prefetcher found;
    const bool kept = job.kept.tapes == job.steps && !job.kept.every;
    if (kIsPack<T> || !kept || !job.estimator.is_second_order() || k < 0 || k >= job.steps) return found;
    const int64_t unread = job.first.parameter == 0 ? plan(0).size : 0, tape = job.layout.tape_stride;
    const int64_t size = tape + job.adapted_size - unread;
    if (size > kPrefetchAtMost<T> || job.steps * size < kPrefetchFrom<T>) return found;
    found.add(base + job.layout.tapes + k * tape, tape * int64_t(sizeof(T)));
    found.add(theta_at(k) + unread, (size - tape) * int64_t(sizeof(T)));
    found.spread(2 * job.support_plan->node_count);
    return found;
  }

  void write_adapted() const {
    if (!job.adapted) return;
    for (int32_t a = 0; a < job.adapted_count; ++a)
      to_user(plan(a), theta_at(job.steps) + plan(a).offset, job.adapted[a]);
  }

  void query_pass() const {
    Frame<T> f = frame(job.query_plan, base + job.layout.query_tape, job.steps);
    bind_set(f, job.query, 0);
    f.gradient = lambda;
    if (has_first()) {
      first().query(initial + plan(job.first.parameter).offset);
      f.first = first().z_query();
    }
    load_input(f);
    forward(f);
    const Value& z = f.value(f.plan->output);
    const int64_t outputs = f.examples() * z.rows * z.channels;
    if (job.logits)
      each_task([&](int64_t t, int lane) {
        const E* in = in_lane(f.activation(f.plan->output), lane);
        value_out<E, kWidth>(z, f.examples(), z.ld, in, job.logits + t * outputs);
      });

    T loss = T(0);
    TaskTargets<T> targets{};
    if (job.query.y) {
      targets = load_targets(f, job.query, 0);
      loss = loss_forward(f, targets);
      each_task([&](int64_t t, int lane) { job.task_loss[t] = lane_of(loss, lane); });
    }
    if (!job.sweep) return;

    const TargetGradients<T> out = target_gradients(job.query);
    T* dz = f.cotangent(f.plan->output);
    if (z.has_cotangent) {
      if (job.query.y)
        loss_backward(f, targets, out, loss_cotangent(), loss);
      else
        memset(dz, 0, size_t(f.examples() * z.rows * z.ld_cotangent) * sizeof(T));
      if (const E* given = job.logits_cotangent)
        each_lane([&](int64_t t, int lane) {
          E* mine = in_lane(dz, lane);
          const auto add = [&](int64_t from, int64_t to) { mine[to * kWidth] += given[t * outputs + from]; };
          for_elements(z, f.examples(), z.ld_cotangent, add);
        });
    }
    backward(f);
    if (has_first()) first().query_adjoint(f.cotangent(job.first.output), lambda + plan(job.first.parameter).offset);
    add_data_gradients(f, job.query, 0, job.query.dx ? f.cotangent(0) : nullptr, out, T(1));
  }

  T loss_cotangent() const {
    T c = T(job.loss_cotangent_all);
    if (job.loss_cotangent) each_lane([&](int64_t t, int lane) { *in_lane(&c, lane) = job.loss_cotangent[t]; });
    return c;
  }

  void add_adapted_cotangent() const {
    if (!job.adapted_cotangent) return;
    T* internal = base + job.layout.gradient_dot;  // free until the reverse sweep
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      if (!job.adapted_cotangent[a]) continue;
      from_user(plan(a), {job.adapted_cotangent[a], plan(a).numel()}, internal);
      T* out = lambda + plan(a).offset;
      for (int64_t i = 0; i < plan(a).size; ++i) out[i] += internal[i];
    }
  }

  // Where one number moves all that is learnt, H is linear: the product is scaled instead of the vector.
  void product_with_lambda(int32_t k) {
    const TargetGradients<T> out = target_gradients(job.support);
    const T rate = descent().rate_of(0, k);
    f_.vector = lambda;
    if (has_first()) f_.first_dot = first().mu(T(1));
    f_.fused = descent().fused_step(lambda, lambda, k);
    support_tangent_pass(f_, k, out);
    for (int32_t p = 0; p < job.learnt_count; ++p) {
      if (f_.takes_step(p)) continue;
      if (p == job.first.parameter) {
        first().reverse(k, -rate, f_.cotangent_dot(job.first.output));
        continue;
      }
      const T* __restrict h = f_.gradient_dot + plan(p).offset;
      T* __restrict l = lambda + plan(p).offset;
      for (int64_t i = 0; i < plan(p).size; ++i) l[i] -= rate * h[i];
    }
    add_data_gradients(f_, job.support, k, job.support.dx ? f_.cotangent_dot(0) : nullptr, out, -rate);
  }

  // v, the bar of the gradient.
  void find_vector(int32_t k) {
    if (has_first()) f_.first_dot = first().mu(-descent().rate_of(job.first.parameter, k));
    descent().vector(k, lambda, base + job.layout.vector);
  }

  void add_rate_gradient(int32_t k) const {
    if (has_first()) {
      T* const bars = hyper_bars() + job.hypers[0].table_offset + k * job.adapted_count;
      bars[job.first.parameter] = first().rate_gradient(f_.cotangent(job.first.output));
    }
    descent().add_rate_gradient(f_, k, lambda, hyper_bars());
  }

  // lambda += H v
  void product_with_vector(int32_t k) {
    const TargetGradients<T> out = target_gradients(job.support);
    f_.vector = base + job.layout.vector;
    support_tangent_pass(f_, k, out);
    if (has_first()) first().reverse(k, T(1), f_.cotangent_dot(job.first.output));
    if (!job.descent) pending_ = f_.gradient_dot;
    for (int32_t p = job.descent ? 0 : job.adapted_count; p < job.learnt_count; ++p) {
      if (p == job.first.parameter) continue;
      add(f_.gradient_dot + plan(p).offset, plan(p).size, lambda + plan(p).offset);
    }
    add_data_gradients(f_, job.support, k, job.support.dx ? f_.cotangent_dot(0) : nullptr, out, T(1));
  }

  static void add(const T* __restrict from, int64_t n, T* __restrict to) {
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
