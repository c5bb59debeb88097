// When the phases of a pointwise function run.
#pragma once

#include "cuda/emitter.h"

namespace metafast {

struct ActivationSchedule {
  static void forward(Emitter& e, const Step& s) { e(Phase::kActivationForward, s, tiles(e, s)); }
  static void backward(Emitter& e, const Step& s) {
    if (Emitter::wanted(s.input_mode[0])) e(Phase::kActivationBackward, s, tiles(e, s));
  }
  static void tangent_forward(Emitter& e, const Step& s) { e(Phase::kActivationTangentForward, s, tiles(e, s)); }
  static void tangent_backward(Emitter& e, const Step& s) {
    if (Emitter::wanted(s.input_mode[0])) e(Phase::kActivationTangentBackward, s, tiles(e, s));
  }

 private:
  static int64_t tiles(const Emitter& e, const Step& s) {
    return pointwise_tiles(e.rows(s.output) * e.value(s.output).ld);
  }
};

#define METAFAST_SCHEDULE(NAME, ...) \
  template <>                        \
  struct DeviceSchedule<Op::k##NAME> : ActivationSchedule {};
METAFAST_POINTWISE(METAFAST_SCHEDULE)
#undef METAFAST_SCHEDULE

}  // namespace metafast
