// When the phases of convolutions in groups and of transposed convolutions run.
#pragma once

#include "cuda/primitives/conv2d.h"

namespace metafast {

struct GroupedConvSchedule {
  static void forward(Emitter& e, const Node& node) {
    e(Phase::kGroupedConvForward, node, pointwise_tiles(e.rows(node.output) * e.value(node.output).ld));
  }
  static void tangent_forward(Emitter& e, const Node& node) { forward(e, node); }
  static void backward(Emitter& e, const Node& node) {
    const Value& in = e.value(node.input[0]);
    if (Emitter::wanted(node.parameter_mode[0])) weight_gradient(e, node);
    if (Emitter::wanted(node.parameter_mode[1])) Conv2dSchedule::bias_gradient(e, node);
    if (Emitter::wanted(node.input_mode[0]))
      e(Phase::kGroupedConvInputGradient, node, pointwise_tiles(e.rows(node.input[0]) * in.ld_cotangent));
  }
  static void tangent_backward(Emitter& e, const Node& node) { backward(e, node); }

 private:
  // Few weights are long sums for few threads: those are cut into parts, of no fewer than kPart positions each.
  static void weight_gradient(Emitter& e, const Node& node) {
    constexpr int64_t kItems = 4096, kPart = 64;
    const int64_t size = e.plan->parameters[node.parameter[0]].size;
    const int64_t positions = std::min(e.rows(node.input[0]), e.rows(node.output));
    const int64_t parts = std::clamp<int64_t>(std::min(kItems / size, positions / kPart), 1, 32);
    Conv2dSchedule::in_parts(e, node, Phase::kGroupedConvWeightGradient, pointwise_tiles(parts * size), parts);
  }
};

template <>
struct DeviceSchedule<Op::kGroupedConv2d> : GroupedConvSchedule {};
template <>
struct DeviceSchedule<Op::kConvTranspose2d> : GroupedConvSchedule {};
template <>
struct DeviceSchedule<Op::kGroupedConvTranspose2d> : GroupedConvSchedule {};

}  // namespace metafast
