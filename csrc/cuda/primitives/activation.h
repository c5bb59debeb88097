// When the phases of a pointwise function run.
#pragma once

#include "cuda/emitter.h"

namespace metafast {

struct ActivationSchedule {
  static void forward(Emitter& e, const Node& node) { e(Phase::kActivationForward, node, tiles(e, node)); }
  static void backward(Emitter& e, const Node& node) {
    if (Emitter::wanted(node.input_mode[0])) e(Phase::kActivationBackward, node, tiles(e, node));
  }
  static void tangent_forward(Emitter& e, const Node& node) {
    e(Phase::kActivationTangentForward, node, tiles(e, node));
  }
  static void tangent_backward(Emitter& e, const Node& node) {
    if (Emitter::wanted(node.input_mode[0])) e(Phase::kActivationTangentBackward, node, tiles(e, node));
  }

 private:
  static int64_t tiles(const Emitter& e, const Node& node) {
    return pointwise_tiles(e.rows(node.output) * e.value(node.output).ld);
  }
};

#define METAFAST_SCHEDULE(NAME, ...) \
  template <>                        \
  struct DeviceSchedule<Op::k##NAME> : ActivationSchedule {};
METAFAST_POINTWISE(METAFAST_SCHEDULE)
#undef METAFAST_SCHEDULE

}  // namespace metafast
