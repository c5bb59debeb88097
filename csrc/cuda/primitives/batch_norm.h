// When the phases of BatchNorm run, alone or with ReLU and pooling.
#pragma once

#include "cuda/primitives/columns.h"

namespace metafast {

template <Phase FORWARD, Phase SUMS, Phase INPUT_GRADIENT>
struct NormSchedule {
  static void forward(Emitter& e, const Step& s) {
    statistics(e, s, s.training);
    e(FORWARD, s, pointwise_tiles(e.rows(s.output) * e.value(s.output).ld));
  }
  static void tangent_forward(Emitter& e, const Step& s) {
    statistics(e, s, s.training && e.value(s.input[0]).has_tangent);
    e(FORWARD, s, pointwise_tiles(e.rows(s.output) * e.value(s.output).ld));
  }
  static void backward(Emitter& e, const Step& s) {
    const ColumnChunks chunks(e.rows(s.output), e.value(s.output).ld);
    need(e, chunks);
    e(SUMS, s, chunks.sum_tiles(), chunks.size);
    e(Phase::kNormGradientFold, s, chunks.fold_tiles(), chunks.size);
    if (Emitter::wanted(s.input_mode[0]))
      e(INPUT_GRADIENT, s, pointwise_tiles(e.rows(s.input[0]) * e.value(s.input[0]).ld));
  }
  static void tangent_backward(Emitter& e, const Step& s) {
    if (!e.value(s.output).has_tangent) statistics(e, s, false);  // tangent_forward had nothing to do here
    backward(e, s);
  }

 private:
  static void statistics(Emitter& e, const Step& s, bool of_batch) {
    const ColumnChunks chunks(e.rows(s.input[0]), e.value(s.output).ld);
    need(e, chunks);
    if (of_batch) e(Phase::kNormMoments, s, chunks.sum_tiles(), chunks.size);
    e(Phase::kNormStatistics, s, chunks.fold_tiles(), chunks.size);
  }
  static void need(Emitter& e, const ColumnChunks& chunks) { e.need_scratch(chunks.scratch(2) + 2 * chunks.ld); }
};

template <>
struct DeviceSchedule<Op::kBatchNorm>
    : NormSchedule<Phase::kNormForward, Phase::kNormGradientSums, Phase::kNormInputGradient> {};
template <>
struct DeviceSchedule<Op::kBatchNormReluPool>
    : NormSchedule<Phase::kNormPoolForward, Phase::kNormPoolGradientSums, Phase::kNormPoolInputGradient> {};

}  // namespace metafast
