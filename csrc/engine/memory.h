// What is kept of the steps of a task and what is recomputed; and where hyper-parameters and their gradients stand.
#pragma once

#include "engine/call.h"

namespace metafast {

// `tape_bytes`: of one step of a task, or of a pack of tasks.
KeptSteps keep_steps(const Call& call, int64_t tape_bytes);

// Of one hyper-parameter, in elements. Per adapted parameter: where its values per element begin among all such, or -1; the
// stride from step to step, 0 if every step has the same.
struct HyperLayout {
  std::vector<int64_t> values, stride;
  // Of their gradients, behind those of the learnt parameters.
  int64_t table_gradient;
  std::vector<int64_t> gradient;
  bool wanted, elementwise;
};

struct HypersLayout {
  std::vector<HyperLayout> hypers;
  int64_t values_size, gradient_size;
};

HypersLayout lay_out_hypers(const Call& call, const std::vector<ParameterPlan>& plans, int adapted);

// `plans`: of the parameters. What is kept is not known yet.
CallShape shape_of(const Call& call, const Program& program, const std::vector<ParameterPlan>& plans,
                   const HypersLayout& hypers);

// Calls body(parameter, place inside, place in the user's tensor) for every array of a hyper-parameter's values per element, one
// for each step it differs in. `offsets`: HyperLayout::values or ::gradient.
template <class Body>
void each_hyper_array(const HyperLayout& layout, const std::vector<int64_t>& offsets,
                      const std::vector<ParameterPlan>& plans, int64_t steps, Body body) {
  for (size_t a = 0; a < offsets.size(); ++a) {
    if (offsets[a] < 0) continue;
    for (int64_t k = 0; k < (layout.stride[a] ? steps : 1); ++k)
      body(a, offsets[a] + k * plans[a].size, k * plans[a].numel());
  }
}

}  // namespace metafast
