// When the phases of BatchNorm run, alone or with ReLU and pooling.
#pragma once

#include "cuda/primitives/columns.h"

namespace metafast {

template <Phase FORWARD, Phase SUMS, Phase INPUT_GRADIENT>
struct NormSchedule {
  static void forward(Emitter& e, const Node& node) {
    statistics(e, node, node.training);
    e(FORWARD, node, pointwise_tiles(e.rows(node.output) * e.value(node.output).ld));
  }
  static void tangent_forward(Emitter& e, const Node& node) {
    statistics(e, node, node.training && e.value(node.input[0]).has_tangent);
    e(FORWARD, node, pointwise_tiles(e.rows(node.output) * e.value(node.output).ld));
  }
  static void backward(Emitter& e, const Node& node) {
    const ColumnChunks chunks(e.rows(node.output), e.value(node.output).ld);
    need(e, chunks);
    e(SUMS, node, chunks.sum_tiles(), chunks.size);
    e(Phase::kNormGradientFold, node, chunks.fold_tiles(), chunks.size);
    if (Emitter::wanted(node.input_mode[0]))
      e(INPUT_GRADIENT, node, pointwise_tiles(e.rows(node.input[0]) * e.value(node.input[0]).ld));
  }
  static void tangent_backward(Emitter& e, const Node& node) {
    if (!e.value(node.output).has_tangent) statistics(e, node, false);  // tangent_forward had nothing to do here
    backward(e, node);
  }

 private:
  static void statistics(Emitter& e, const Node& node, bool of_batch) {
    const ColumnChunks chunks(e.rows(node.input[0]), e.value(node.output).ld);
    need(e, chunks);
    if (of_batch) e(Phase::kNormMoments, node, chunks.sum_tiles(), chunks.size);
    e(Phase::kNormStatistics, node, chunks.fold_tiles(), chunks.size);
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
