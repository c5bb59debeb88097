#include "cuda/schedule.h"

#include <stdexcept>
#include <type_traits>

#include "cuda/loss_flags.h"
#include "cuda/primitives/activation.h"
#include "cuda/primitives/batch_norm.h"
#include "cuda/primitives/conv2d.h"
#include "cuda/primitives/dropout.h"
#include "cuda/primitives/embedding.h"
#include "cuda/primitives/grouped_conv2d.h"
#include "cuda/primitives/linear.h"
#include "cuda/primitives/matmul.h"
#include "cuda/primitives/normalise.h"
#include "cuda/primitives/pair.h"
#include "cuda/primitives/pooling.h"
#include "cuda/primitives/softmax.h"
#include "cuda/primitives/sparse_map.h"

#include "program/primitives.h"

namespace metafast {
namespace {

// Calls call(schedule of the primitive), if it has device code.
template <class Call>
bool with_schedule(Op op, Call call) {
  switch (op) {
#define METAFAST_CASE(NAME, ...)                                                        \
  case Op::k##NAME:                                                                     \
    if constexpr (!std::is_base_of<NoDeviceCode, DeviceSchedule<Op::k##NAME>>::value) { \
      call(DeviceSchedule<Op::k##NAME>());                                              \
      return true;                                                                      \
    }                                                                                   \
    break;
    METAFAST_POINTWISE(METAFAST_CASE)
    METAFAST_PAIRS(METAFAST_CASE) METAFAST_STRUCTURED(METAFAST_CASE) METAFAST_FORMS(METAFAST_CASE)
#undef METAFAST_CASE
  }
  return false;
}

// The machine of csrc/estimators/list.h that writes down what a GPU is to do.
class Scheduler {
 public:
  explicit Scheduler(const DeviceShape& shape) : n(shape) {}

  Schedule make() {
    e.which = Which::kSupport;
    e.persistent = n.persistent;
    e.tf32 = n.tf32;
    if (n.shared_initial) e.emit(Phase::kGatherInitial, -1, pointwise_tiles(n.parameter_size), 1);
    if (n.hyper_values > 0) e.emit(Phase::kGatherHypers, -1, pointwise_tiles(n.hyper_values));
    Schedule made{};
    made.tasks_begin = at();
    task();
    made.chunk_begin = at();
    if (n.sums) {
      const int64_t size = n.learnt_size + n.hyper_size, parts = std::clamp<int64_t>(size / kThreads, 1, 256);
      e.emit(Phase::kSumGroups, -1, sum_groups(n.chunk_tasks) * parts, int32_t(parts));
      emit(Phase::kSumTasks, size);
    }
    made.finish_begin = at();
    if (n.sums || n.loss)
      e.emit(Phase::kFinish, -1, n.sums ? pointwise_tiles(n.learnt_size + n.hyper_size) : 1, n.sums);
    made.list = std::move(e.list);
    made.scratch = e.scratch;
    return made;
  }

 private:
  int32_t at() const { return int32_t(e.list.size()); }
  void emit(Phase phase, int64_t elements, int32_t argument = 0) {
    e.emit(phase, -1, pointwise_tiles(elements), argument);
  }

  void enter(Which which, int32_t k) {
    e.plan = n.plans[int(which)];
    e.which = which;
    e.k = k;
    e.tangent = false;
  }

  void task() {
    if (!n.shared_initial) emit(Phase::kGatherInitial, n.parameter_size);
    n.estimator.visit([&](auto estimator) {
      const int32_t stages = n.estimator.stages(n.steps, n.sweep);
      for (int32_t i = 0; i < stages; ++i) decltype(estimator)::stage(*this, i);
    });
    if (n.sweep && n.uses_start) emit(Phase::kAddToLambda, n.adapted_size, 1);
    if (n.own_gradients) emit(Phase::kWriteGradients, n.learnt_size);
  }

 public:
  // ---- What an estimator asks for
  int32_t steps() const { return n.steps; }
  int32_t argument() const { return n.estimator.argument; }

  void linearise(int32_t k) {
    enter(Which::kSupport, k);
    support_pass(kLossReported);
  }
  void step(int32_t k) {
    enter(Which::kSupport, k);
    walk(Phase::kRuleStep, n.scales ? WalkedBy::kOneBlock : WalkedBy::kAll);
  }
  void query() {
    if (n.adapted) emit(Phase::kWriteAdapted, n.adapted_size);
    if (n.plans[1])
      query_pass();
    else if (n.sweep)
      emit(Phase::kClearMetaGradient, n.learnt_size, 1);
    if (!n.sweep) return;
    if (n.adapted_cotangent) emit(Phase::kAddAdaptedCotangent, n.adapted_size);
    if (n.want_hyper_gradient || n.state_count > 0 || n.uses_start)
      emit(Phase::kClearMetaGradient, n.hyper_size + (n.state_count + 1) * n.adapted_size, 2);
  }
  void replay(int32_t k) {
    if (n.kept.ends_segment(k, n.steps))
      for (int32_t j = n.kept.segment_begin(k); j <= k; ++j) {
        linearise(j);
        if (j < k) step(j);
      }
    enter(Which::kSupport, k);
    if (n.estimator.is_second_order() && !n.kept.has_tape(k, n.steps)) support_pass(0);
  }
  void step_adjoint(int32_t k) {
    // Gradient descent leaves lambda alone.
    if (n.descent && !n.want_hyper_gradient && !n.estimator.is_second_order()) return;
    enter(Which::kSupport, k);
    walk(Phase::kRuleAdjoint, n.scales                ? WalkedBy::kOneBlock
                              : n.want_hyper_gradient ? WalkedBy::kTilesOfParameters
                                                      : WalkedBy::kAll);
  }
  void product(int32_t k) {
    enter(Which::kSupport, k);
    tangent_pass();
    e.tangent = true;
    emit(Phase::kAddToLambda, n.learnt_size);
    if (n.data_gradients[0]) data_gradients(2);
  }
  void hessian_vector() {
    enter(Which::kSupport, 0);
    forward();
    load_targets();
    e.emit(Phase::kLoss, -1, 1, kLossBackward | kLossData);
    backward();
    if (n.data_gradients[0]) data_gradients(0);
    emit(Phase::kLoadVector, n.learnt_size);
    tangent_pass();
    e.tangent = true;
    if (n.data_gradients[0]) data_gradients(2);
    emit(Phase::kAddVectorProduct, n.learnt_size);
  }

 private:
  void walk(Phase phase, WalkedBy by) {
    const int64_t tiles = by == WalkedBy::kOneBlock ? 1
                          : by == WalkedBy::kAll    ? pointwise_tiles(n.adapted_size)
                                                    : n.adapted_count;
    e.emit(phase, -1, tiles, int32_t(by));
  }

  // Values and gradients of the support loss; the tape and the gradient hold them afterwards.
  void support_pass(int32_t loss_flags) {
    forward();
    load_targets();
    e.emit(Phase::kLoss, -1, 1, loss_flags | kLossBackward);
    backward();
  }

  void load_targets() {
    const Value& z = e.plan->values[e.plan->output];
    if (n.image_targets[int(e.which)]) emit(Phase::kLoadTargets, e.plan->examples * z.rows * z.ld_cotangent);
  }

  void query_pass() {
    enter(Which::kQuery, 0);
    const Value& z = e.plan->values[e.plan->output];
    const int64_t outputs = e.plan->examples * z.rows * z.ld_cotangent;
    forward();
    if (n.logits) emit(Phase::kWriteLogits, outputs);
    const bool backwards = n.sweep && z.has_cotangent;
    if (n.query_has_targets) {
      load_targets();
      int32_t flags = kLossReported;
      if (n.sweep) flags |= kLossSeeded | kLossData;
      if (backwards) flags |= kLossBackward;
      e.emit(Phase::kLoss, -1, 1, flags);
    }
    if (!n.sweep) return;
    if (backwards && (n.logits_cotangent || !n.query_has_targets))
      emit(Phase::kSeedLogits, outputs, !n.query_has_targets);
    backward();
    if (n.data_gradients[1]) data_gradients(1);
  }

  // Tangents along the vector of all that the support pass computes.
  void tangent_pass() {
    e.tangent = true;
    tangent_forward();
    load_targets();
    e.emit(Phase::kLossTangent, -1, 1, kLossBackward | kLossData);
    tangent_backward();
  }

  void data_gradients(int32_t argument) {
    const Value& x = e.plan->values[0];
    emit(Phase::kAddDataGradients, e.plan->examples * x.rows * x.channels, argument);
  }

  // Calls the schedule of the node's primitive.
  template <class Call>
  void with_primitive(const Node& node, Call call) {
    if (!with_schedule(node.op, call))
      throw std::invalid_argument("CUDA: a node of this Program has no device code yet");
  }

  void forward() {
    const Value& x = e.plan->values[0];
    if (!e.plan->input_in_place) emit(Phase::kLoadInput, e.plan->examples * x.rows * x.ld);
    for (int32_t i = 0; i < e.plan->node_count; ++i) {
      const Node& node = e.plan->nodes[i];
      with_primitive(node, [&](auto primitive) { primitive.forward(e, node); });
    }
  }
  void tangent_forward() {
    for (int32_t i = 0; i < e.plan->node_count; ++i) {
      const Node& node = e.plan->nodes[i];
      if (e.value(node.output).has_tangent)
        with_primitive(node, [&](auto primitive) { primitive.tangent_forward(e, node); });
    }
  }
  void backward() {
    if (e.plan->gradient_has_gaps) emit(Phase::kClearGradient, e.plan->gradient_size, 0);
    for (int32_t i = e.plan->node_count - 1; i >= 0; --i) {
      const Node& node = e.plan->nodes[i];
      if (e.value(node.output).has_cotangent)
        with_primitive(node, [&](auto primitive) { primitive.backward(e, node); });
    }
  }
  void tangent_backward() {
    if (e.plan->gradient_has_gaps) emit(Phase::kClearGradient, e.plan->gradient_size, 1);
    for (int32_t i = e.plan->node_count - 1; i >= 0; --i) {
      const Node& node = e.plan->nodes[i];
      if (e.value(node.output).has_cotangent)
        with_primitive(node, [&](auto primitive) { primitive.tangent_backward(e, node); });
    }
  }

  const DeviceShape& n;
  Emitter e;
};

}  // namespace

Schedule make_schedule(const DeviceShape& shape) { return Scheduler(shape).make(); }

bool device_supports(const BatchPlan& plan) {
  for (int32_t i = 0; i < plan.node_count; ++i)
    if (!with_schedule(plan.nodes[i].op, [](auto) {})) return false;
  return true;
}

}  // namespace metafast
