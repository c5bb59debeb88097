// When the phases of dropout run.
#pragma once

#include "cuda/emitter.h"

namespace metafast {

template <>
struct DeviceSchedule<Op::kDropout> {
  static void forward(Emitter& e, const Node& node) { e(Phase::kDropoutForward, node, tiles(e, node)); }
  static void tangent_forward(Emitter& e, const Node& node) { forward(e, node); }
  static void backward(Emitter& e, const Node& node) {
    if (Emitter::wanted(node.input_mode[0])) e(Phase::kDropoutBackward, node, tiles(e, node));
  }
  static void tangent_backward(Emitter& e, const Node& node) { backward(e, node); }

 private:
  static int64_t tiles(const Emitter& e, const Node& node) {
    return pointwise_tiles(e.rows(node.output) * e.value(node.output).ld);
  }
};

}  // namespace metafast
