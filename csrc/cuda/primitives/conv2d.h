// When the phases of a convolution run.
#pragma once

#include "cuda/primitives/staged.h"

namespace metafast {

struct Conv2dSchedule {
  static void forward(Emitter& e, const Node& node) {
    const Value &in = e.value(node.input[0]), &out = e.value(node.output);
    const StagedProduct product{e.rows(node.output), out.ld, taps(node) * in.channels};
    if (product.is_staged(e))
      e(e.tf32.convolution ? Phase::kConvForwardTf32 : Phase::kConvForwardStaged, node, product.tiles());
    else
      e(Phase::kConvForward, node, pointwise_tiles(product.rows * out.ld));
  }
  static void tangent_forward(Emitter& e, const Node& node) { forward(e, node); }
  static void backward(Emitter& e, const Node& node) {
    if (Emitter::wanted(node.parameter_mode[0])) weight_gradient(e, node);
    if (Emitter::wanted(node.parameter_mode[1])) bias_gradient(e, node);
    if (Emitter::wanted(node.input_mode[0])) input_gradient(e, node);
  }
  static void tangent_backward(Emitter& e, const Node& node) { backward(e, node); }

  static void bias_gradient(Emitter& e, const Node& node) {
    const ColumnChunks chunks(e.rows(node.output), e.value(node.output).ld);
    if (!node.bias_cancels) {
      e.need_scratch(chunks.scratch(1));
      e(Phase::kBiasSums, node, chunks.sum_tiles(), chunks.size);
    }
    e(Phase::kBiasFold, node, chunks.fold_tiles(), chunks.size);
  }

  // A gradient of a weight in parts, and their sum.
  static void in_parts(Emitter& e, const Node& node, Phase phase, int64_t tiles, int64_t parts) {
    const int64_t size = e.plan->parameters[node.parameter[0]].size;
    if (parts > 1) e.need_scratch(parts * size);
    e(phase, node, tiles, int32_t(parts));
    if (parts > 1) e(Phase::kWeightFold, node, pointwise_tiles(size), int32_t(parts));
  }

 private:
  static int64_t taps(const Node& node) { return int64_t(node.kernel[0]) * node.kernel[1]; }

  static void input_gradient(Emitter& e, const Node& node) {
    const Value &in = e.value(node.input[0]), &out = e.value(node.output);
    const StagedProduct product{e.rows(node.input[0]), in.ld_cotangent, taps(node) * out.channels};
    if (product.is_staged(e))
      e(e.tf32.convolution ? Phase::kConvInputGradientTf32 : Phase::kConvInputGradientStaged, node, product.tiles());
    else
      e(Phase::kConvInputGradient, node, pointwise_tiles(product.rows * in.ld_cotangent));
  }

  static void weight_gradient(Emitter& e, const Node& node) {
    const Value &in = e.value(node.input[0]), &out = e.value(node.output);
    const StagedProduct product{taps(node) * in.channels, out.ld, e.rows(node.output)};
    if (product.is_staged(e))
      return in_parts(e, node, e.tf32.convolution ? Phase::kConvWeightGradientTf32 : Phase::kConvWeightGradientStaged,
                      product.tiles() * product.parts(), product.parts());
    const int64_t size = e.plan->parameters[node.parameter[0]].size;
    if (product.is_large())
      return in_parts(e, node, Phase::kConvWeightGradient, pointwise_tiles(product.parts() * size), product.parts());
    // Few weights are long sums for few threads: those are cut into parts, of no fewer than kPart positions each.
    constexpr int64_t kItems = 4096, kPart = 64;
    const int64_t most = std::clamp<int64_t>(product.inner / kPart, 1, e.plan->examples * out.height);
    const int64_t parts = std::clamp<int64_t>(kItems / (size / kDeviceLanes), 1, most);
    in_parts(e, node, Phase::kConvWeightGradient, pointwise_tiles(parts * size), parts);
  }
};

template <>
struct DeviceSchedule<Op::kConv2d> : Conv2dSchedule {};

}  // namespace metafast
