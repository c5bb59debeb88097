// The four passes over all nodes of a Program. To add a primitive: its header here; program/primitives.h lists it.
#pragma once

#include <stdlib.h>

#include "cpu/primitives/activation.h"
#include "cpu/primitives/batch_norm.h"
#include "cpu/primitives/batch_norm_relu_pool.h"
#include "cpu/primitives/conv2d.h"
#include "cpu/primitives/dropout.h"
#include "cpu/primitives/embedding.h"
#include "cpu/primitives/first_linear.h"
#include "cpu/primitives/grouped_conv2d.h"
#include "cpu/primitives/linear.h"
#include "cpu/primitives/loss_passes.h"
#include "cpu/primitives/matmul.h"
#include "cpu/primitives/normalise.h"
#include "cpu/primitives/one_output_linear.h"
#include "cpu/primitives/packed_linear.h"
#include "cpu/primitives/pair.h"
#include "cpu/primitives/pooling.h"
#include "cpu/primitives/shape_and_sum.h"
#include "cpu/primitives/softmax.h"
#include "cpu/primitives/sparse_map.h"
#include "cpu/primitives/user_linear.h"
#include "cpu/primitives/winograd_conv2d.h"

#include "program/primitives.h"

namespace metafast {
namespace METAFAST_ISA {

// A batch's targets, for each of the tasks that T holds.
template <class T>
struct TaskTargets {
  Targets<Element<T>> lane[kTasks<T>];
  Targets<T> all;  // of packs
};

// How the CPU does a primitive on scalars T.
template <class T, Op op>
struct OnCpu;
#define METAFAST_ON_CPU(NAME, ...)         \
  template <class T>                       \
  struct OnCpu<T, Op::k##NAME> {           \
    using Primitive = Activation<T, NAME>; \
  };
METAFAST_POINTWISE(METAFAST_ON_CPU)
#undef METAFAST_ON_CPU
#define METAFAST_ON_CPU(NAME, TEXT, TRAITS)  \
  template <class T>                         \
  struct OnCpu<T, Op::k##NAME> {             \
    using Primitive = Pair<T, NAME, TRAITS>; \
  };
METAFAST_PAIRS(METAFAST_ON_CPU)
#undef METAFAST_ON_CPU
#define METAFAST_ON_CPU(NAME, ...) \
  template <class T>               \
  struct OnCpu<T, Op::k##NAME> {   \
    using Primitive = NAME<T>;     \
  };
METAFAST_STRUCTURED(METAFAST_ON_CPU)
METAFAST_FORMS(METAFAST_ON_CPU)
#undef METAFAST_ON_CPU

// The same on packs of tasks, for those that have the trait kPackable.
template <class T, Op op>
struct OnPacks : OnCpu<T, op> {};
template <class T>
struct OnPacks<T, Op::kLinear> {
  using Primitive = PackedLinear<T>;
};
template <class T>
struct OnPacks<T, Op::kOneOutputLinear> : OnPacks<T, Op::kLinear> {};

// Calls body(what does the node's primitive), unless others do its work.
template <class T, class Body>
static void with_primitive(const Node& node, Body body) {
  if (node.fused) return;
  switch (node.op) {
#define METAFAST_CASE(NAME, ...)                    \
  case Op::k##NAME:                                 \
    if constexpr (!kIsPack<T>)                      \
      return body(OnCpu<T, Op::k##NAME>());         \
    else if constexpr (has(Op::k##NAME, kPackable)) \
      return body(OnPacks<T, Op::k##NAME>());       \
    break;
    METAFAST_POINTWISE(METAFAST_CASE)
    METAFAST_PAIRS(METAFAST_CASE) METAFAST_STRUCTURED(METAFAST_CASE) METAFAST_FORMS(METAFAST_CASE)
#undef METAFAST_CASE
  }
  abort();  // Program::packable has refused it: nothing is ever skipped
}

template <class T>
METAFAST_OUTLINED static void forward(const Frame<T>& f, const Node& node) {
  with_primitive<T>(node, [&](auto is) { decltype(is)::Primitive::forward(f, node); });
}

template <class T>
static void forward(const Frame<T>& f) {
  for (int i = 0; i < f.plan->node_count; ++i) f.prefetch(), forward(f, f.plan->nodes[i]);
}

template <class T>
METAFAST_OUTLINED static void tangent_forward(const Frame<T>& f, const Node& node) {
  if (!f.value(node.output).has_tangent) return;
  with_primitive<T>(node, [&](auto is) { decltype(is)::Primitive::tangent_forward(f, node); });
}

template <class T>
static void tangent_forward(const Frame<T>& f) {
  for (int i = 0; i < f.plan->node_count; ++i) f.prefetch(), tangent_forward(f, f.plan->nodes[i]);
}

// Both at once where a primitive can. Tangents come as late as they may: some are wanted only where a ReLU behind is open.
template <class T>
static void forward_with_tangent(const Frame<T>& f) {
  const Node* const nodes = f.plan->nodes;
  int next = 0;
  for (int i = 0; i < f.plan->node_count; ++i) {
    if constexpr (!kIsPack<T>)
      if (nodes[i].op == Op::kUserHiddenLinear) {
        for (; next < i; ++next) tangent_forward(f, nodes[next]);
        UserHiddenLinear<T>::forward_with_tangent(f, nodes[next++]);
        continue;
      }
    forward(f, nodes[i]);
  }
  for (; next < f.plan->node_count; ++next) tangent_forward(f, nodes[next]);
}

template <class T>
METAFAST_OUTLINED static void backward(const Frame<T>& f, const Node& node) {
  with_primitive<T>(node, [&](auto is) { decltype(is)::Primitive::backward(f, node); });
}

template <class T>
static void backward(const Frame<T>& f) {
  if (f.gradient && f.plan->gradient_has_gaps) memset(f.gradient, 0, size_t(f.plan->gradient_size) * sizeof(T));
  for (int i = f.plan->node_count - 1; i >= 0; --i) {
    const Node& node = f.plan->nodes[i];
    f.prefetch();
    if (f.value(node.output).has_cotangent && !f.cotangent_unread(node.output)) backward(f, node);
  }
}

template <class T>
METAFAST_OUTLINED static void tangent_backward(const Frame<T>& f) {
  if (f.plan->gradient_has_gaps) memset(f.gradient_dot, 0, size_t(f.plan->gradient_size) * sizeof(T));
  Frame<T> values = f;
  values.gradient = nullptr;
  for (int i = f.plan->node_count - 1; i >= 0; --i) {
    const Node& node = f.plan->nodes[i];
    f.prefetch();
    if (!f.value(node.output).has_cotangent) continue;
    if (node.recomputes_cotangent) backward(values, node);
    with_primitive<T>(node, [&](auto is) { decltype(is)::Primitive::tangent_backward(f, node); });
  }
}

// Calls body(passes of the plan's loss) on scalars.
template <class T, class Body>
static void with_loss(const BatchPlan& plan, const Value& z, const LossArrays<T>& arrays, const Targets<T>& targets,
                      Body body) {
  switch (plan.loss.kind) {
#define METAFAST_CASE(NAME, ...) \
  case LossKind::k##NAME:        \
    return body(LossPasses<T, NAME<T>>{NAME<T>(plan.loss), plan.loss.reduction, z, plan.examples, arrays, targets});
    METAFAST_LOSSES(METAFAST_CASE)
#undef METAFAST_CASE
    case LossKind::kNone: break;
  }
}

// The same on packs, for the losses that are nothing but arithmetic.
template <class T, class Body>
static void with_arithmetic_loss(const BatchPlan& plan, const Value& z, const LossArrays<T>& arrays,
                                 const Targets<T>& targets, Body body) {
  switch (plan.loss.kind) {
#define METAFAST_CASE(NAME, ...)                                                                                \
  case LossKind::k##NAME:                                                                                       \
    if constexpr (has(LossKind::k##NAME, kArithmetic))                                                          \
      body(LossPasses<T, NAME<T>>{NAME<T>(plan.loss), plan.loss.reduction, z, plan.examples, arrays, targets}); \
    break;
    METAFAST_LOSSES(METAFAST_CASE)
#undef METAFAST_CASE
    case LossKind::kNone: break;
  }
}

// Which of a pack's tasks a loss is about: one, whose numbers are scalars, or all.
template <class T>
struct OneLane {
  using Scalar = Element<T>;
  int lane;
  Scalar get(T x) const { return lane_of(x, lane); }
  void set(T& x, Scalar value) const { set_lane(x, lane, value); }
};
template <class T>
struct AllLanes {
  using Scalar = T;
  T get(T x) const { return x; }
  void set(T& x, T value) const { x = value; }
};

// The loss of a task is scalar code for packs too, on copies of each lane that are padded as they are where tasks run one
// by one: so it comes to the same bits, and is a small part of all. But the smallest networks have so little arithmetic that
// the copies would show where a loss needs none.
template <class T>
struct LossOnLanes {
  using E = Element<T>;
  static constexpr int kWidth = kTasks<T>;

  const Frame<T>& f;
  const BatchPlan& plan = *f.plan;
  const Value& own = f.value(plan.output);
  const int64_t n = plan.examples;
  T* const each = f.tape + plan.loss.saved;
  T* const kept = f.tape + plan.loss.kept;
  const T* const z_dot = f.tangent_tape ? f.activation_dot(plan.output) : nullptr;

  // Calls body(passes, lanes, cotangent, gradients of targets and weights) until every task has been served; copies come
  // from and go to the lanes.
  template <class Body>
  void each_task(const TaskTargets<T>& targets, T* dz, const TargetGradients<T>& out, Body body) const {
    if constexpr (kWidth == 1) {
      with_loss<E>(plan, own, {f.activation(plan.output), z_dot, each, kept}, targets.lane[0],
                   [&](const auto& passes) { body(passes, OneLane<T>{0}, dz, out); });
    } else if (has(plan.loss.kind, kArithmetic) && !out.dy && !out.dw) {
      with_arithmetic_loss<T>(plan, own, {f.activation(plan.output), z_dot, each, kept}, targets.all,
                              [&](const auto& passes) { body(passes, AllLanes<T>(), dz, out); });
    } else {
      Value z = own;
      z.ld = z.ld_cotangent = int32_t((own.channels + kLanes<E> - 1) / kLanes<E> * kLanes<E>);
      const int64_t rows = n * z.rows, size = rows * z.ld;
      E* const room = reinterpret_cast<E*>(f.scratch);
      E *const y = room, *const y_dot = y + size, *const p = y_dot + size, *const dy = p + size;
      E *const dt = dy + size, *const l = dt + size, *const dw = l + n;
      const bool keeps = has(plan.loss.kind, kKeepsProbabilities);
      memset(room, 0, size_t(3 * size) * sizeof(E));
      const TargetGradients<E> lane_out{out.dy ? dt : nullptr, out.dw ? dw : nullptr};
      for (int lane = 0; lane < kWidth; ++lane) {
        const auto in = [&](const T* from, E* to) { copy_lane(from, own.ld, lane, to, z.ld); };
        const auto back = [&](const E* from, T* to) { copy_to_lane(from, z.ld, to, own.ld, lane); };
        in(f.activation(plan.output), y);
        if (keeps) in(kept, p);
        if (z_dot) in(z_dot, y_dot);
        with_loss<E>(plan, z, {y, z_dot ? y_dot : nullptr, l, p}, targets.lane[lane],
                     [&](const auto& passes) { body(passes, OneLane<T>{lane}, dy, lane_out); });
        if (keeps) back(p, kept);
        if (dz) back(dy, dz);
        if (out.dy) back(dt, out.dy);
        if (out.dw)
          for (int64_t i = 0; i < n; ++i) reinterpret_cast<E*>(out.dw)[i * kWidth + lane] = dw[i];
      }
    }
  }

 private:
  void copy_lane(const T* from, int64_t ld_from, int lane, E* to, int64_t ld) const {
    const E* in = reinterpret_cast<const E*>(from) + lane;
    for (int64_t i = 0; i < n * own.rows; ++i)
      for (int64_t c = 0; c < own.channels; ++c) to[i * ld + c] = in[(i * ld_from + c) * kWidth];
  }
  void copy_to_lane(const E* from, int64_t ld, T* to, int64_t ld_to, int lane) const {
    E* out = reinterpret_cast<E*>(to) + lane;
    for (int64_t i = 0; i < n * own.rows; ++i)
      for (int64_t c = 0; c < own.channels; ++c) out[(i * ld_to + c) * kWidth] = from[i * ld + c];
  }
};

template <class T>
METAFAST_OUTLINED static T loss_forward(const Frame<T>& f, const TaskTargets<T>& targets) {
  T loss = T(0);
  LossOnLanes<T>{f}.each_task(targets, nullptr, {}, [&](const auto& passes, auto lanes, auto*, const auto&) {
    lanes.set(loss, passes.forward());
  });
  return loss;
}

// Cotangents of the outputs, targets and weights for a cotangent `seed` of the loss, whose value is `loss`.
template <class T>
METAFAST_OUTLINED static void loss_backward(const Frame<T>& f, const TaskTargets<T>& targets,
                                            const TargetGradients<T>& out, T seed, T loss) {
  LossOnLanes<T>{f}.each_task(targets, f.cotangent(f.plan->output), out,
                              [&](const auto& passes, auto lanes, auto* dz, const auto& to) {
                                using S = typename decltype(lanes)::Scalar;
                                passes.template reverse<S>(lanes.get(seed), dz, to, lanes.get(loss));
                              });
}

// The tangents of loss_backward's results, for seed 1.
template <class T>
METAFAST_OUTLINED static void loss_tangent_backward(const Frame<T>& f, const TaskTargets<T>& targets,
                                                    const TargetGradients<T>& out, T loss) {
  LossOnLanes<T>{f}.each_task(targets, f.cotangent_dot(f.plan->output), out,
                              [&](const auto& passes, auto lanes, auto* dz, const auto& to) {
                                using S = typename decltype(lanes)::Scalar;
                                const Dual<S> value(lanes.get(loss), to.dw ? passes.value_tangent() : S(0));
                                passes.template reverse<Dual<S>>(S(1), dz, to, value);
                              });
}

}  // namespace METAFAST_ISA
}  // namespace metafast
