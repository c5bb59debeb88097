// When the phases of a linear layer run.
#pragma once

#include "cuda/primitives/conv2d.h"

namespace metafast {

struct LinearSchedule {
  static void forward(Emitter& e, const Step& s) { product(e, s, Phase::kLinearForward); }
  static void tangent_forward(Emitter& e, const Step& s) { product(e, s, Phase::kLinearTangentForward); }
  static void backward(Emitter& e, const Step& s) {
    gradients(e, s, Phase::kLinearBiasGradient, Phase::kLinearInputGradient);
  }
  static void tangent_backward(Emitter& e, const Step& s) {
    gradients(e, s, Phase::kLinearTangentBiasGradient, Phase::kLinearTangentInputGradient);
  }

 private:
  static void product(Emitter& e, const Step& s, Phase phase) {
    const Value &in = e.value(s.input[0]), &out = e.value(s.output);
    const StagedProduct product{e.rows(s.output), out.ld, in.channels};
    if (product.is_staged(e))
      e(e.tf32.linear ? Phase::kLinearForwardTf32 : Phase::kLinearForwardStaged, s, product.tiles());
    else
      e(phase, s, pointwise_tiles(product.rows * out.ld));
  }
  static void gradients(Emitter& e, const Step& s, Phase bias, Phase input) {
    const Value &in = e.value(s.input[0]), &out = e.value(s.output);
    if (Emitter::wanted(s.parameter_mode[0])) {
      const StagedProduct product{in.channels, out.ld, e.rows(s.output)};
      if (product.is_staged(e))
        Conv2dSchedule::in_parts(e, s,
                                 e.tf32.linear ? Phase::kLinearWeightGradientTf32 : Phase::kLinearWeightGradientStaged,
                                 product.tiles() * product.parts(), product.parts());
      else
        Conv2dSchedule::in_parts(e, s, Phase::kLinearWeightGradient, pointwise_tiles(product.rows * out.ld),
                                 product.is_large() ? product.parts() : 1);
    }
    if (Emitter::wanted(s.parameter_mode[1])) {
      if (e.rows(s.output) > kFewRows)
        Conv2dSchedule::bias_gradient(e, s);
      else
        e(bias, s, (out.ld + kThreads - 1) / kThreads);
    }
    if (Emitter::wanted(s.input_mode[0])) {
      const StagedProduct product{e.rows(s.output), in.cold, out.channels};
      if (product.is_staged(e))
        e(e.tf32.linear ? Phase::kLinearInputGradientTf32 : Phase::kLinearInputGradientStaged, s, product.tiles());
      else
        e(input, s, pointwise_tiles(product.rows * in.cold));
    }
  }
  static constexpr int64_t kFewRows = 128;  // that one thread may as well add up
};

template <>
struct DeviceSchedule<Op::kLinear> : LinearSchedule {};

}  // namespace metafast
