// When the phases of a linear layer run.
#pragma once

#include "cuda/primitives/conv2d.h"

namespace metafast {

struct LinearSchedule {
  static void forward(Emitter& e, const Node& node) { product(e, node, Phase::kLinearForward); }
  static void tangent_forward(Emitter& e, const Node& node) { product(e, node, Phase::kLinearTangentForward); }
  static void backward(Emitter& e, const Node& node) {
    gradients(e, node, Phase::kLinearBiasGradient, Phase::kLinearInputGradient);
  }
  static void tangent_backward(Emitter& e, const Node& node) {
    gradients(e, node, Phase::kLinearTangentBiasGradient, Phase::kLinearTangentInputGradient);
  }

 private:
  static void product(Emitter& e, const Node& node, Phase phase) {
    const Value &in = e.value(node.input[0]), &out = e.value(node.output);
    const StagedProduct product{e.rows(node.output), out.ld, in.channels};
    if (product.is_staged(e))
      e(e.tf32.linear ? Phase::kLinearForwardTf32 : Phase::kLinearForwardStaged, node, product.tiles());
    else
      e(phase, node, pointwise_tiles(product.rows * out.ld));
  }
  static void gradients(Emitter& e, const Node& node, Phase bias, Phase input) {
    const Value &in = e.value(node.input[0]), &out = e.value(node.output);
    if (Emitter::wanted(node.parameter_mode[0])) {
      const StagedProduct product{in.channels, out.ld, e.rows(node.output)};
      if (product.is_staged(e))
        Conv2dSchedule::in_parts(e, node,
                                 e.tf32.linear ? Phase::kLinearWeightGradientTf32 : Phase::kLinearWeightGradientStaged,
                                 product.tiles() * product.parts(), product.parts());
      else
        Conv2dSchedule::in_parts(e, node, Phase::kLinearWeightGradient, pointwise_tiles(product.rows * out.ld),
                                 product.is_large() ? product.parts() : 1);
    }
    if (Emitter::wanted(node.parameter_mode[1])) {
      if (e.rows(node.output) > kFewRows)
        Conv2dSchedule::bias_gradient(e, node);
      else
        e(bias, node, (out.ld + kThreads - 1) / kThreads);
    }
    if (Emitter::wanted(node.input_mode[0])) {
      const StagedProduct product{e.rows(node.output), in.ld_cotangent, out.channels};
      if (product.is_staged(e))
        e(e.tf32.linear ? Phase::kLinearInputGradientTf32 : Phase::kLinearInputGradientStaged, node, product.tiles());
      else
        e(input, node, pointwise_tiles(product.rows * in.ld_cotangent));
    }
  }
  static constexpr int64_t kFewRows = 128;  // that one thread may as well add up
};

template <>
struct DeviceSchedule<Op::kLinear> : LinearSchedule {};

}  // namespace metafast
