#include "engine/memory.h"

#include <algorithm>
#include <cmath>

namespace metafast {
namespace {

// How many steps lie between two checkpoints; 0: there are none.
int32_t checkpoint_every(const Call& call, int32_t steps) {
  if (call.memory != Memory::kCheckpoint || !call.sweep || call.is_hessian_vector()) return 0;
  const int32_t every =
      call.checkpoint_every > 0 ? call.checkpoint_every : int32_t(std::ceil(std::sqrt(double(steps))));
  return every < steps ? every : 0;
}

// Whether the rule's adjoint, or the gradient of a hyper-parameter, asks for the gradient of a step.
bool reads_gradients(const Call& call) {
  const auto reads = [](const LinkPlan& link) { return link_info(link.kind).reads_gradient; };
  return call.sweep && (call.wants_hyper_gradient() || call.links.size() > 1 ||
                        std::any_of(call.links.begin(), call.links.end(), reads));
}

// The same of what the states were before a step.
bool reads_states(const Call& call) {
  const auto reads = [](const LinkPlan& link) { return link_info(link.kind).reads_state; };
  const bool has_states = std::any_of(call.links.begin(), call.links.end(),
                                      [](const LinkPlan& link) { return link_info(link.kind).states > 0; });
  return call.sweep && has_states &&
         (call.wants_hyper_gradient() || call.links.size() > 1 ||
          std::any_of(call.links.begin(), call.links.end(), reads));
}

}  // namespace

KeptSteps keep_steps(const Call& call, int64_t tape_bytes) {
  const int32_t steps = std::max<int32_t>(int32_t(call.steps), 1),
                reverse_steps = call.estimator.reverse_steps(int32_t(call.steps));
  KeptSteps kept{};
  kept.every = checkpoint_every(call, steps);
  const int32_t segment = kept.every ? kept.every : call.sweep ? std::max(reverse_steps, 1) : 1;
  // Of theta, the one that a step begins with and the one that it ends with.
  kept.thetas = kept.every ? kept.every : std::min(steps, segment + 1);
  const bool fits = segment * tape_bytes <= kKeepBytes;
  const bool keeps = call.memory == Memory::kKeep ||
                     (call.memory != Memory::kRecompute && call.sweep && call.is_second_order() && fits);
  kept.tapes = keeps ? segment : 1;
  kept.gradients = reads_gradients(call) ? segment : 0;
  kept.states = kept.every > 0 || reads_states(call);
  return kept;
}

HypersLayout lay_out_hypers(const Call& call, const std::vector<ParameterPlan>& plans, int adapted) {
  HypersLayout all{};
  for (const HyperTensors& tensors : call.hypers) {
    HyperLayout h{};
    h.values.assign(size_t(adapted), -1);
    h.gradient = h.values;
    h.stride.assign(size_t(adapted), 0);
    h.wanted = call.sweep && tensors.is_wanted();
    h.table_gradient = all.gradient_size;
    if (h.wanted) all.gradient_size += call.steps * adapted;
    for (size_t a = 0; a < tensors.elementwise.size(); ++a) {
      if (!tensors.elementwise[a].data) continue;
      const bool per_step = tensors.elementwise[a].own;
      const int64_t size = plans[a].size * (per_step ? call.steps : 1);
      h.elementwise = true;
      h.stride[a] = per_step ? plans[a].size : 0;
      h.values[a] = all.values_size;
      all.values_size += size;
      if (!h.wanted) continue;
      h.gradient[a] = all.gradient_size;
      all.gradient_size += size;
    }
    all.hypers.push_back(std::move(h));
  }
  return all;
}

CallShape shape_of(const Call& call, const Program& program, const std::vector<ParameterPlan>& plans,
                   const HypersLayout& hypers) {
  CallShape n{};
  n.steps = int32_t(call.steps);
  n.estimator = call.estimator;
  n.sweep = call.sweep;
  n.parameter_count = program.parameter_count();
  n.learnt_count = program.learnt_count();
  n.adapted_count = program.adapted_count();
  n.link_count = int32_t(call.links.size());
  n.hyper_count = int32_t(call.hypers.size());
  n.state_count = call.state_count();
  n.parameter_size = size_of(plans, n.parameter_count);
  n.learnt_size = size_of(plans, n.learnt_count);
  n.adapted_size = size_of(plans, n.adapted_count);
  n.hyper_size = hypers.gradient_size;
  n.want_hyper_gradient = call.wants_hyper_gradient();
  n.own_initial = std::any_of(call.parameters.begin(), call.parameters.end(), [](const Tensor& p) { return p.own; });
  n.descent = call.is_descent();
  n.uses_start = call.uses_start();
  return n;
}

}  // namespace metafast
