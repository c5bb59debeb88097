// When the phases of softmax run: a warp for each row.
#pragma once

#include "cuda/emitter.h"

namespace metafast {

struct SoftmaxSchedule {
  static void forward(Emitter& e, const Node& node) { e(Phase::kSoftmaxForward, node, tiles(e, node)); }
  static void tangent_forward(Emitter& e, const Node& node) { forward(e, node); }
  static void backward(Emitter& e, const Node& node) {
    if (Emitter::wanted(node.input_mode[0])) e(Phase::kSoftmaxBackward, node, tiles(e, node));
  }
  static void tangent_backward(Emitter& e, const Node& node) { backward(e, node); }

 private:
  static int64_t tiles(const Emitter& e, const Node& node) {
    return std::clamp<int64_t>((e.rows(node.output) * 32 + kThreads - 1) / kThreads, 1, 256);
  }
};

template <>
struct DeviceSchedule<Op::kSoftmax> : SoftmaxSchedule {};
template <>
struct DeviceSchedule<Op::kLogSoftmax> : SoftmaxSchedule {};

}  // namespace metafast
