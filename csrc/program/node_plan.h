// What a primitive is given to choose its form for a batch and to ask for memory.
#pragma once

#include <algorithm>

#include "program/primitives.h"
#include "program/program.h"

namespace metafast {

struct NodePlan {
  Program::Plan& plan;
  Node& node;
  int lanes;
  bool for_device, in_packs;
  bool row;                            // the first parameter stands as one row
  const NodeDescription* description;  // of a static linear map

  const Value& in(int i = 0) const { return plan.value_list[size_t(node.input[i])]; }
  const Value& out() const { return plan.value_list[size_t(node.output)]; }
  const ParameterPlan& weight() const { return plan.parameter_list[size_t(node.parameter[0])]; }
  int64_t examples() const { return plan.examples; }
  bool second_order() const { return plan.tangent_size != 0; }

  // Elements that last from the forward pass of an inner step to its tangent passes; that last for one pass; those of tangents.
  int64_t tape(int64_t n) const { return take(plan.tape_size, n); }
  int64_t transient(int64_t n) const { return take(plan.transient_size, n); }
  int64_t tangent_tape(int64_t n) const { return take(plan.tangent_size_total, n); }
  void scratch(int64_t n) const { plan.scratch_size = std::max(plan.scratch_size, n); }

  static int64_t take(int64_t& top, int64_t n) {
    const int64_t at = top;
    top += (n + 15) / 16 * 16;
    return at;
  }
};

}  // namespace metafast
