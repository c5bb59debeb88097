// When the phases of poolings, rearrangements and sums run: linear maps, each with one phase forwards and one backwards.
#pragma once

#include "cuda/emitter.h"

namespace metafast {

template <Phase FORWARD, Phase TANGENT_FORWARD, Phase BACKWARD>
struct LinearMapSchedule {
  static void forward(Emitter& e, const Step& s) { e(FORWARD, s, outputs(e, s)); }
  static void tangent_forward(Emitter& e, const Step& s) { e(TANGENT_FORWARD, s, outputs(e, s)); }
  static void backward(Emitter& e, const Step& s) {
    const Value& in = e.value(s.input[0]);
    if (Emitter::wanted(s.input_mode[0]) || Emitter::wanted(s.input_mode[1]))
      e(BACKWARD, s, pointwise_tiles(e.rows(s.input[0]) * in.ld));
  }
  static void tangent_backward(Emitter& e, const Step& s) { backward(e, s); }

 private:
  static int64_t outputs(const Emitter& e, const Step& s) {
    return pointwise_tiles(e.rows(s.output) * e.value(s.output).ld);
  }
};

template <>
struct DeviceSchedule<Op::kAdd> : LinearMapSchedule<Phase::kAddForward, Phase::kAddForward, Phase::kAddBackward> {};
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
