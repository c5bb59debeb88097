// When the phases of a convolution run.
#pragma once

#include "columns.h"

namespace metafast {

struct Conv2dSchedule {
  static void forward(Emitter& e, const Step& s) { e(Phase::kConvForward, s, outputs(e, s.output, true)); }
  static void tangent_forward(Emitter& e, const Step& s) { forward(e, s); }
  static void backward(Emitter& e, const Step& s) {
    if (Emitter::wanted(s.parameter_mode[0])) weight_gradient(e, s);
    if (Emitter::wanted(s.parameter_mode[1])) bias_gradient(e, s);
    if (Emitter::wanted(s.input_mode[0])) e(Phase::kConvInputGradient, s, outputs(e, s.input[0], false));
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

 private:
  static int64_t outputs(const Emitter& e, int v, bool activation) {
    const Value& value = e.value(v);
    return pointwise_tiles(e.rows(v) * (activation ? value.ld : value.cold));
  }

  // Few weights are long sums for few threads: those are cut into parts, of no fewer than kPart positions each.
  static void weight_gradient(Emitter& e, const Step& s) {
    constexpr int64_t kItems = 4096, kPart = 64;
    const int64_t size = e.plan->parameters[s.parameter[0]].size, items = size / kDeviceLanes;
    const int64_t image_rows = e.plan->examples * e.value(s.output).height;
    const int64_t most = std::clamp<int64_t>(e.rows(s.output) / kPart, 1, image_rows);
    const int64_t parts = std::clamp<int64_t>(kItems / items, 1, most);
    if (parts > 1) e.need_scratch(parts * size);
    e(Phase::kConvWeightGradient, s, pointwise_tiles(parts * size), int32_t(parts));
    if (parts > 1) e(Phase::kConvWeightFold, s, pointwise_tiles(size), int32_t(parts));
  }
};

}  // namespace metafast
