// When the phases of a normalisation of each example by itself run.
#pragma once

#include "cuda/primitives/columns.h"

namespace metafast {

template <>
struct DeviceSchedule<Op::kNormalise> {
  static void forward(Emitter& e, const Node& node) {
    e(Phase::kNormaliseStatistics, node, set_tiles(e, node));
    e(Phase::kNormaliseForward, node, element_tiles(e, node));
  }
  static void tangent_forward(Emitter& e, const Node& node) {
    if (e.value(node.input[0]).has_tangent) e(Phase::kNormaliseStatistics, node, set_tiles(e, node));
    e(Phase::kNormaliseForward, node, element_tiles(e, node));
  }
  static void backward(Emitter& e, const Node& node) {
    const ColumnChunks chunks(e.rows(node.output), e.value(node.output).ld);
    e.need_scratch(4 * sets(e, node) + chunks.scratch(2));
    if (Emitter::wanted(node.input_mode[0])) {
      e(Phase::kNormaliseSetSums, node, set_tiles(e, node));
      e(Phase::kNormaliseInputGradient, node, element_tiles(e, node));
    }
    if (!Emitter::wanted(node.parameter_mode[0]) && !Emitter::wanted(node.parameter_mode[1])) return;
    e(Phase::kNormaliseColumnSums, node, chunks.sum_tiles(), chunks.size);
    e(Phase::kNormaliseColumnFold, node, chunks.fold_tiles(), chunks.size);
  }
  static void tangent_backward(Emitter& e, const Node& node) { backward(e, node); }

 private:
  static int64_t sets(const Emitter& e, const Node& node) {
    return (e.value(node.output).height > 0 ? e.plan->examples : e.rows(node.output)) * node.groups;
  }
  static int64_t set_tiles(const Emitter& e, const Node& node) {  // a warp for each
    return std::clamp<int64_t>((sets(e, node) * 32 + kThreads - 1) / kThreads, 1, 256);
  }
  static int64_t element_tiles(const Emitter& e, const Node& node) {
    return pointwise_tiles(e.rows(node.output) * e.value(node.output).ld);
  }
};

}  // namespace metafast
