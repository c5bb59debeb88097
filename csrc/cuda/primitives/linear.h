// When the phases of a linear layer run.
#pragma once

#include "../emitter.h"

namespace metafast {

struct LinearSchedule {
  static void forward(Emitter& e, const Step& s) { e(Phase::kLinearForward, s, outputs(e, s)); }
  static void tangent_forward(Emitter& e, const Step& s) { e(Phase::kLinearTangentForward, s, outputs(e, s)); }
  static void backward(Emitter& e, const Step& s) {
    gradients(e, s, Phase::kLinearWeightGradient, Phase::kLinearBiasGradient, Phase::kLinearInputGradient);
  }
  static void tangent_backward(Emitter& e, const Step& s) {
    gradients(e, s, Phase::kLinearTangentWeightGradient, Phase::kLinearTangentBiasGradient,
              Phase::kLinearTangentInputGradient);
  }

 private:
  static int64_t outputs(const Emitter& e, const Step& s) {
    return pointwise_tiles(e.rows(s.output) * e.value(s.output).ld);
  }
  static void gradients(Emitter& e, const Step& s, Phase weight, Phase bias, Phase input) {
    const Value &in = e.value(s.input[0]), &out = e.value(s.output);
    if (Emitter::wanted(s.parameter_mode[0])) e(weight, s, pointwise_tiles(int64_t(in.channels) * out.ld));
    if (Emitter::wanted(s.parameter_mode[1])) e(bias, s, (out.ld + kThreads - 1) / kThreads);
    if (Emitter::wanted(s.input_mode[0])) e(input, s, pointwise_tiles(e.rows(s.output) * in.cold));
  }
};

}  // namespace metafast
