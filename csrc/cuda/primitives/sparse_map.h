// When the phases of sparse linear maps run: one forwards, and one backwards for each source that wants a gradient.
#pragma once

#include "cuda/emitter.h"

namespace metafast {

struct SparseMapSchedule {
  static void forward(Emitter& e, const Node& node) {
    e(Phase::kSparseMapForward, node, pointwise_tiles(e.rows(node.output) * e.value(node.output).ld));
  }
  static void tangent_forward(Emitter& e, const Node& node) { forward(e, node); }
  static void backward(Emitter& e, const Node& node) {
    for (int i = 0; i < kNodeInputs && node.input[i] >= 0; ++i)
      if (Emitter::wanted(node.input_mode[i]))
        e(Phase::kSparseMapBackward, node, pointwise_tiles(e.rows(node.input[i]) * e.value(node.input[i]).ld_cotangent),
          i);
    if (node.parameter[0] >= 0 && Emitter::wanted(node.parameter_mode[0]))
      e(Phase::kSparseMapBackward, node, pointwise_tiles(e.plan->parameters[node.parameter[0]].size));
  }
  static void tangent_backward(Emitter& e, const Node& node) { backward(e, node); }
};

template <>
struct DeviceSchedule<Op::kSparseMap> : SparseMapSchedule {};
template <>
struct DeviceSchedule<Op::kParameterValue> : SparseMapSchedule {};

}  // namespace metafast
