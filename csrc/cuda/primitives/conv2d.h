// When the phases of a convolution run.
#pragma once

#include "cuda/primitives/staged.h"

namespace metafast {

struct Conv2dSchedule {
  static void forward(Emitter& e, const Step& s) {
    const Value &in = e.value(s.input[0]), &out = e.value(s.output);
    const StagedProduct product{e.rows(s.output), out.ld, taps(s) * in.channels};
    if (product.is_staged(e))
      e(e.tf32.convolution ? Phase::kConvForwardTf32 : Phase::kConvForwardStaged, s, product.tiles());
    else
      e(Phase::kConvForward, s, pointwise_tiles(product.rows * out.ld));
  }
  static void tangent_forward(Emitter& e, const Step& s) { forward(e, s); }
  static void backward(Emitter& e, const Step& s) {
    if (Emitter::wanted(s.parameter_mode[0])) weight_gradient(e, s);
    if (Emitter::wanted(s.parameter_mode[1])) bias_gradient(e, s);
    if (Emitter::wanted(s.input_mode[0])) input_gradient(e, s);
  }
  static void tangent_backward(Emitter& e, const Step& s) { backward(e, s); }

  static void bias_gradient(Emitter& e, const Step& s) {
    const ColumnChunks chunks(e.rows(s.output), e.value(s.output).ld);
    if (!s.bias_cancels) {
      e.need_scratch(chunks.scratch(1));
      e(Phase::kBiasSums, s, chunks.sum_tiles(), chunks.size);
    }
    e(Phase::kBiasFold, s, chunks.fold_tiles(), chunks.size);
  }

  // A gradient of a weight in parts, and their sum.
  static void in_parts(Emitter& e, const Step& s, Phase phase, int64_t tiles, int64_t parts) {
    const int64_t size = e.plan->parameters[s.parameter[0]].size;
    if (parts > 1) e.need_scratch(parts * size);
    e(phase, s, tiles, int32_t(parts));
    if (parts > 1) e(Phase::kWeightFold, s, pointwise_tiles(size), int32_t(parts));
  }

 private:
  static int64_t taps(const Step& s) { return int64_t(s.kernel[0]) * s.kernel[1]; }

  static void input_gradient(Emitter& e, const Step& s) {
    const Value &in = e.value(s.input[0]), &out = e.value(s.output);
    const StagedProduct product{e.rows(s.input[0]), in.cold, taps(s) * out.channels};
    if (product.is_staged(e))
      e(e.tf32.convolution ? Phase::kConvInputGradientTf32 : Phase::kConvInputGradientStaged, s, product.tiles());
    else
      e(Phase::kConvInputGradient, s, pointwise_tiles(product.rows * in.cold));
  }

  static void weight_gradient(Emitter& e, const Step& s) {
    const Value &in = e.value(s.input[0]), &out = e.value(s.output);
    const StagedProduct product{taps(s) * in.channels, out.ld, e.rows(s.output)};
    if (product.is_staged(e))
      return in_parts(e, s, e.tf32.convolution ? Phase::kConvWeightGradientTf32 : Phase::kConvWeightGradientStaged,
                      product.tiles() * product.parts(), product.parts());
    const int64_t size = e.plan->parameters[s.parameter[0]].size;
    if (product.is_large())
      return in_parts(e, s, Phase::kConvWeightGradient, pointwise_tiles(product.parts() * size), product.parts());
    // Few weights are long sums for few threads: those are cut into parts, of no fewer than kPart positions each.
    constexpr int64_t kItems = 4096, kPart = 64;
    const int64_t most = std::clamp<int64_t>(product.inner / kPart, 1, e.plan->examples * out.height);
    const int64_t parts = std::clamp<int64_t>(kItems / (size / kDeviceLanes), 1, most);
    in_parts(e, s, Phase::kConvWeightGradient, pointwise_tiles(parts * size), parts);
  }
};

template <>
struct DeviceSchedule<Op::kConv2d> : Conv2dSchedule {};

}  // namespace metafast
