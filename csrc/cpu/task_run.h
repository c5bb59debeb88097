// One task, from its initial parameters to its meta-gradient: unroll, query, reverse sweep (docs/maths.md, section 2).
//
//   theta_{k+1} = theta_k - a_k g_k,   g_k = d L(theta_k; S) / d theta,   L_t = L(theta_K; Q)
//   lambda_K = c d L_t / d theta;      v = a_k lambda_{k+1},   lambda_k = lambda_{k+1} - H_k v
//
// lambda runs over all learnt parameters, v only over the adapted ones; the rest of v is zero, so the rows of H_k that
// belong to parameters which are learnt but not adapted come out of the same product.
//
// With T = Pack the same text runs as many tasks at once as T has lanes; the user's tensors are then read and written a
// lane at a time.
#pragma once

#include "cpu/first_layer.h"
#include "cpu/task_data.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct TaskRun : TaskData<T> {
  using Data = TaskData<T>;
  using E = Element<T>;
  using Data::bring, Data::load_input, Data::load_targets, Data::target_gradients, Data::add_data_gradients;
  using Data::each_lane, Data::each_task, Data::in_lane;
  using Data::job, Data::task, Data::count, Data::base, Data::kWidth;

  T* const lambda;  // the meta-gradient of this task, then that of its rates
  E* const row;     // where it is to stand for the sum over tasks; the sums of a pack's groups, row by row
  const T* initial;
  const Sharing<T> share;

  TaskRun(const Job<E>& j, const Turn& turn)
      : Data{j, turn.run * kWidth, int(j.tasks - turn.run * kWidth < kWidth ? j.tasks - turn.run * kWidth : kWidth),
             reinterpret_cast<T*>(j.places) + turn.place * j.layout.total},
        lambda(j.gradients && !kIsPack<T> ? reinterpret_cast<T*>(j.gradients) + turn.row * j.gradient_stride
                                          : base + j.layout.meta_gradient),
        row(j.gradients + turn.row * j.gradient_stride),
        initial(kIsPack<T> ? nullptr : reinterpret_cast<const T*>(j.shared_initial)),
        share{j.helpers, turn.thread, reinterpret_cast<T*>(j.scratch), j.scratch_stride} {}

  // Stages [begin, end) of inner steps, query, reverse steps; all but the first find what others left in this task's place.
  void run(int32_t begin, int32_t end) {
    gather_initial(begin == 0);
    const T* result = lambda;
    if (job.hessian_vector) {
      result = hessian_vector();
    } else {
      if (begin == 0 && has_first()) first().begin(initial + plan(job.first.parameter).offset);
      const int32_t steps = job.steps, all = 2 * steps + 1;
      for (int32_t stage = begin; stage < end; ++stage) {
        if (stage < steps)
          inner_step(stage);
        else if (stage == steps)
          turn_round();
        else if (job.sweep)
          reverse_step(all - 1 - stage);
      }
      if (end < all || !job.sweep) return;
      if (has_first() && !job.first_order) first().finish(lambda + plan(job.first.parameter).offset);
    }
    for (int32_t p = 0; p < job.learnt_count; ++p)
      if (job.own_gradient[p] && !direct(p)) to_user(plan(p), result + plan(p).offset, job.own_gradient[p]);
    if constexpr (kIsPack<T>)
      if (job.gradients) sum_lanes(lambda, count, job.learnt_size + job.rate_size, job.gradient_stride, row);
  }

 private:
  const ParameterPlan& plan(int32_t p) const { return job.parameters[p]; }
  bool left(int32_t p) const { return job.hessian_vector && job.support_plan->parameters[p].left; }
  bool direct(int32_t p) const { return job.hessian_vector && job.support_plan->parameters[p].direct; }

  METAFAST_OUTLINED void from_user(const ParameterPlan& p, const ParameterSource<E>& source, T* out) const {
    each_lane([&](int64_t t, int lane) {
      parameter_in<E, kWidth>(p, source.data + t * source.task_stride, in_lane(out, lane));
    });
  }
  // user: [tasks, shape]
  METAFAST_OUTLINED void to_user(const ParameterPlan& p, const T* in, E* user) const {
    each_task([&](int64_t t, int lane) { parameter_out<E, kWidth>(p, in_lane(in, lane), user + t * p.numel()); });
  }

  T* rate_gradient() const { return lambda + job.learnt_size; }
  T* theta_after(int32_t k) const { return base + job.layout.trajectory + k * job.adapted_size; }
  const T* theta_at(int32_t k) const { return k == 0 ? initial : theta_after(k - 1); }

  bool has_first() const { return kWidth == 1 && job.first.parameter >= 0; }
  FirstLayer<T> first() const {
    const auto rows = [&](const Examples<E>& set) {  // packs never take this way
      return reinterpret_cast<const T*>(set.x + task * set.x_task_stride);
    };
    return {job.first, base, rows(job.support), rows(job.query), share};
  }

  void gather_initial(bool begins) {
    if (!job.own_initial && !kIsPack<T>) return;
    T* mine = base + job.layout.initial;
    initial = mine;
    if (!begins) return;
    for (int32_t p = 0; p < job.parameter_count; ++p) {
      if (left(p)) continue;
      const int64_t begin = plan(p).offset, end = begin + plan(p).size;
      if (job.sources[p].task_stride)
        from_user(plan(p), job.sources[p], mine + begin);
      else
        for (int64_t i = begin; i < end; ++i) mine[i] = T(job.shared_initial[i]);
    }
  }

  Frame<T> frame(const BatchPlan* batch, T* tape, const T* theta) const {
    Frame<T> f{};
    f.plan = batch;
    f.job = &job;
    f.task = task;
    f.tape = tape;
    f.initial = initial;
    f.theta = theta;
    f.scratch = share.scratch_of(share.thread);
    f.share = share;
    return f;
  }

  Frame<T> support_frame(int32_t k) const {
    const int64_t tape = job.keep ? k * job.layout.tape_stride : 0;
    Frame<T> f = frame(job.support_plan, base + job.layout.tapes + tape, theta_at(k));
    f.passing = base + job.layout.passing + k * job.layout.passing_stride;
    bring(f, job.support, k);
    f.gradient = base + job.layout.gradient + k * job.layout.gradient_stride;
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
  Ahead ahead(int32_t k) const {
    Ahead found;
    if (kIsPack<T> || !job.keep || job.first_order || k < 0 || k >= job.steps) return found;
    const int64_t unread = job.first.parameter == 0 ? plan(0).size : 0, tape = job.layout.tape_stride;
    const int64_t size = tape + job.adapted_size - unread;
    if (size > kAheadAtMost<T> || job.steps * size < kAheadFrom<T>) return found;
    found.add(base + job.layout.tapes + k * tape, tape * int64_t(sizeof(T)));
    found.add(theta_at(k) + unread, (size - tape) * int64_t(sizeof(T)));
    found.spread(2 * job.support_plan->step_count);
    return found;
  }

  void inner_step(int32_t k) const {
    Frame<T> f = support_frame(k);
    Ahead next_tape = ahead(k + 1);
    f.ahead = &next_tape;
    if (!job.want_rate_gradient) f.descent = descent(f.theta, theta_after(k), k);
    const T loss = support_pass(f, k);
    if (job.support_loss)
      each_task([&](int64_t t, int lane) { job.support_loss[t * job.steps + k] = lane_of(loss, lane); });
    T* next = theta_after(k);
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      if (a == job.first.parameter) {
        first().step(k, job.rate_table[k * job.adapted_count + a], f.cotangent(job.first.output));
        continue;
      }
      if (f.descends(a)) continue;
      const int64_t at = plan(a).offset, n = plan(a).size;
      const T* __restrict theta = f.theta + at, * __restrict g = f.gradient + at;
      T* __restrict out = next + at;
      if (const E* __restrict rates = elementwise(a, k)) {
        for (int64_t i = 0; i < n; ++i) out[i] = theta[i] - T(rates[i]) * g[i];
      } else {
        const T rate = job.rate_table[k * job.adapted_count + a];
        for (int64_t i = 0; i < n; ++i) out[i] = theta[i] - rate * g[i];
      }
    }
  }

  // Step k for primitives to take, which know rates of whole parameters only.
  Descent<T> descent(const T* from, T* to, int32_t k) const {
    for (int32_t a = 0; a < job.adapted_count; ++a)
      if (job.elementwise[a]) return {};
    return {from, to, job.rate_table + k * job.adapted_count, job.adapted_count};
  }

  const E* elementwise(int32_t a, int32_t k) const {
    return job.elementwise[a] ? job.elementwise[a] + k * job.elementwise_stride[a] : nullptr;
  }

  void write_adapted() const {
    if (!job.adapted) return;
    for (int32_t a = 0; a < job.adapted_count; ++a)
      to_user(plan(a), theta_at(job.steps) + plan(a).offset, job.adapted[a]);
  }

  // Between the inner steps and the reverse sweep.
  void turn_round() const {
    write_adapted();
    if (job.has_query)
      query();
    else if (job.sweep)
      memset(lambda, 0, size_t(job.learnt_size) * sizeof(T));
    if (!job.sweep) return;
    add_adapted_cotangent();
    if (job.want_rate_gradient) memset(rate_gradient(), 0, size_t(job.rate_size) * sizeof(T));
  }

  void query() const {
    Frame<T> f = frame(job.query_plan, base + job.layout.query_tape, theta_at(job.steps));
    bring(f, job.query, 0);
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
        memset(dz, 0, size_t(f.examples() * z.rows * z.cold) * sizeof(T));
      if (const E* given = job.logits_cotangent)
        each_lane([&](int64_t t, int lane) {
          E* mine = in_lane(dz, lane);
          const auto add = [&](int64_t from, int64_t to) { mine[to * kWidth] += given[t * outputs + from]; };
          for_elements(z, f.examples(), z.cold, add);
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
      if (!job.adapted_cotangent[a].data) continue;
      from_user(plan(a), {job.adapted_cotangent[a].data, plan(a).numel()}, internal);
      T* out = lambda + plan(a).offset;
      for (int64_t i = 0; i < plan(a).size; ++i) out[i] += internal[i];
    }
  }

  void reverse_step(int32_t k) const {
    Frame<T> f = support_frame(k);
    Ahead next_tape = ahead(k - 1);
    f.ahead = &next_tape;
    if (!job.want_rate_gradient) f.gradient = nullptr;
    if (!job.first_order && !job.keep && k + 1 < job.steps) support_pass(f, k);  // the last step's tape is still there
    if (job.want_rate_gradient) add_rate_gradient(f, k);
    if (job.first_order) return;
    const TargetGradients<T> out = target_gradients(job.support);
    if (one_rate(k)) {  // H is linear: the product is scaled instead of the vector
      const T rate = job.rate_table[k * job.adapted_count];
      f.vector = lambda;
      if (has_first()) f.first_dot = first().mu(T(1));
      f.descent = descent(lambda, lambda, k);
      support_tangent_pass(f, k, out);
      for (int32_t p = 0; p < job.learnt_count; ++p) {
        if (f.descends(p)) continue;
        if (p == job.first.parameter) {
          first().reverse(k, rate, f.cotangent_dot(job.first.output));
          continue;
        }
        const T* __restrict h = f.gradient_dot + plan(p).offset;
        T* __restrict l = lambda + plan(p).offset;
        for (int64_t i = 0; i < plan(p).size; ++i) l[i] -= rate * h[i];
      }
      return add_data_gradients(f, job.support, k, job.support.dx ? f.cotangent_dot(0) : nullptr, out, -rate);
    }
    T* v = base + job.layout.vector;
    for (int32_t a = 0; a < job.adapted_count; ++a) {
      if (a == job.first.parameter) {
        f.first_dot = first().mu(job.rate_table[k * job.adapted_count + a]);
        continue;
      }
      const int64_t at = plan(a).offset, n = plan(a).size;
      const T* __restrict from = lambda + at;
      T* __restrict out = v + at;
      if (const E* __restrict rates = elementwise(a, k)) {
        for (int64_t i = 0; i < n; ++i) out[i] = T(rates[i]) * from[i];
      } else {
        const T rate = job.rate_table[k * job.adapted_count + a];
        for (int64_t i = 0; i < n; ++i) out[i] = rate * from[i];
      }
    }
    f.vector = v;
    support_tangent_pass(f, k, out);
    for (int32_t p = 0; p < job.learnt_count; ++p) {
      if (p == job.first.parameter) {
        first().reverse(k, T(1), f.cotangent_dot(job.first.output));
        continue;
      }
      const T* __restrict h = f.gradient_dot + plan(p).offset;
      T* __restrict l = lambda + plan(p).offset;
      for (int64_t i = 0; i < plan(p).size; ++i) l[i] -= h[i];
    }
    add_data_gradients(f, job.support, k, job.support.dx ? f.cotangent_dot(0) : nullptr, out, T(-1));
  }

  // Does one number move all that is learnt at step k?
  bool one_rate(int32_t k) const {
    if (job.learnt_count != job.adapted_count) return false;
    const E* rates = job.rate_table + k * job.adapted_count;
    for (int32_t a = 0; a < job.adapted_count; ++a)
      if (job.elementwise[a] || rates[a] != rates[0]) return false;
    return true;
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
        rate_gradient()[k * job.adapted_count + a] = -inner_product(plan(a), l, g);
      }
    }
  }

  // Partial sums by the place in a register, whether a register is what the elements stand in or not.
  static T inner_product(const ParameterPlan& p, const T* __restrict a, const T* __restrict b) {
    if constexpr (kIsPack<T>) {
      constexpr int L = kLanes<E>;
      T parts[L] = {};
      for (int64_t i = 0; i < p.size; i += p.ld)
        for (int64_t o = 0; o < p.ld; ++o) parts[o % L] += a[i + o] * b[i + o];
      T total = T(0);
      for (const T& part : parts) total += part;
      return total;
    } else {
      Vector<T> parts{};
      for (int64_t i = 0; i < p.size; i += kLanes<T>) parts += load(a + i) * load(b + i);
      return sum_of<T>(parts);
    }
  }

  // H v + c grad L, with the mixed derivatives of the data, c being the cotangent of the loss. Where it stands.
  const T* hessian_vector() const {
    Frame<T> f = support_frame(0);
    const bool only_product = !job.loss_cotangent && job.loss_cotangent_all == E(0);
    const T c = only_product ? T(0) : loss_cotangent();
    if (only_product) f.gradient = nullptr;
    T* v = base + job.layout.vector;
    for (int32_t p = 0; p < job.learnt_count; ++p)
      if (!left(p)) from_user(plan(p), job.vectors[p], v + plan(p).offset);
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
    if (only_product && !job.gradients) return f.gradient_dot;
    for (int64_t i = 0; i < job.learnt_size; ++i)
      lambda[i] = f.gradient_dot[i] + (only_product ? T(0) : c * f.gradient[i]);
    return lambda;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
