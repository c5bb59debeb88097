// When the phases of poolings, rearrangements and sums run: linear maps, each with one phase forwards and one backwards.
#pragma once

#include "cuda/emitter.h"

namespace metafast {

template <Phase FORWARD, Phase TANGENT_FORWARD, Phase BACKWARD>
struct LinearMapSchedule {
  static void forward(Emitter& e, const Node& node) { e(FORWARD, node, outputs(e, node)); }
  static void tangent_forward(Emitter& e, const Node& node) { e(TANGENT_FORWARD, node, outputs(e, node)); }
  static void backward(Emitter& e, const Node& node) {
    const Value& in = e.value(node.input[0]);
    if (Emitter::wanted(node.input_mode[0]) || Emitter::wanted(node.input_mode[1]))
      e(BACKWARD, node, pointwise_tiles(e.rows(node.input[0]) * in.ld));
  }
  static void tangent_backward(Emitter& e, const Node& node) { backward(e, node); }

 private:
  static int64_t outputs(const Emitter& e, const Node& node) {
    return pointwise_tiles(e.rows(node.output) * e.value(node.output).ld);
  }
};

template <>
struct DeviceSchedule<Op::kFlatten>
    : LinearMapSchedule<Phase::kFlattenForward, Phase::kFlattenForward, Phase::kFlattenBackward> {};
template <>
struct DeviceSchedule<Op::kAvgPool2d>
    : LinearMapSchedule<Phase::kAvgPoolForward, Phase::kAvgPoolForward, Phase::kAvgPoolBackward> {};
template <>
struct DeviceSchedule<Op::kAdaptiveAvgPool2d> : DeviceSchedule<Op::kAvgPool2d> {};
template <>
struct DeviceSchedule<Op::kMaxPool2d>
    : LinearMapSchedule<Phase::kMaxPoolForward, Phase::kMaxPoolTangentForward, Phase::kMaxPoolBackward> {};

}  // namespace metafast
