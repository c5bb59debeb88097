// When the phases of a product of two computed values run.
#pragma once

#include "cuda/emitter.h"

namespace metafast {

template <>
struct DeviceSchedule<Op::kMatmul> {
  static void forward(Emitter& e, const Node& node) {
    e(Phase::kMatmulForward, node, pointwise_tiles(e.rows(node.output) * e.value(node.output).ld));
  }
  static void tangent_forward(Emitter& e, const Node& node) { forward(e, node); }
  static void backward(Emitter& e, const Node& node) {
    for (int i = 0; i < 2; ++i)  // one after the other: they may be the same value
      if (Emitter::wanted(node.input_mode[i]))
        e(Phase::kMatmulBackward, node, pointwise_tiles(e.rows(node.input[i]) * e.value(node.input[i]).ld_cotangent),
          i);
  }
  static void tangent_backward(Emitter& e, const Node& node) { backward(e, node); }
};

}  // namespace metafast
