// When the phases of an embedding run.
#pragma once

#include "cuda/emitter.h"

namespace metafast {

template <>
struct DeviceSchedule<Op::kEmbedding> {
  static void forward(Emitter& e, const Node& node) {
    e(Phase::kEmbeddingForward, node, pointwise_tiles(e.rows(node.output) * e.value(node.output).ld));
  }
  static void tangent_forward(Emitter& e, const Node& node) { forward(e, node); }
  static void backward(Emitter& e, const Node& node) {
    const int v = node.input[0], p = node.parameter[0];
    if (node.input_mode[0] == GradientMode::kOverwrite)
      e(Phase::kEmbeddingClear, node, pointwise_tiles(e.rows(v) * e.value(v).ld_cotangent), 1);
    if (node.parameter_mode[0] == GradientMode::kOverwrite)
      e(Phase::kEmbeddingClear, node, pointwise_tiles(e.plan->parameters[p].size));
    if (!Emitter::wanted(node.parameter_mode[0])) return;
    const int64_t rows = e.rows(node.output);
    e.need_scratch(rows);
    e(Phase::kEmbeddingChains, node, pointwise_tiles(rows));
    e(Phase::kEmbeddingBackward, node, pointwise_tiles(rows * e.value(node.output).ld_cotangent));
  }
  static void tangent_backward(Emitter& e, const Node& node) { backward(e, node); }
};

}  // namespace metafast
