// Collects the instructions of a task. What a primitive's schedule (primitives/*.h) is given. Plain C++.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/job.h"
#include "cuda/launch.h"
#include "program/primitives.h"

namespace metafast {

enum class Style { kAuto, kPersistent, kBatched };

// Where large products of float may be rounded to TF32.
struct Tf32 {
  bool linear = false, convolution = false;
};

// Tiles of a pointwise phase over n elements: a few elements for every thread, and no more blocks than fill a chip.
inline int64_t pointwise_tiles(int64_t n) {
  return std::clamp<int64_t>((n + 4 * kThreads - 1) / (4 * kThreads), 1, 256);
}

struct Emitter {
  const BatchPlan* plan = nullptr;
  Which which = Which::kSupport;
  int32_t k = 0;
  bool tangent = false;
  bool persistent = false;  // for the persistent kernel: nothing that is not kPersistent
  Tf32 tf32;                // in the batched style
  std::vector<Instruction> list;
  int64_t scratch = 0;

  const Value& value(int v) const { return plan->values[v]; }
  int64_t rows(int v) const { return (value(v).shared ? 1 : plan->examples) * value(v).rows; }
  bool moves(int p) const { return p >= 0 && plan->parameters[p].offset < plan->tangent_size; }
  static bool wanted(GradientMode mode) { return mode != GradientMode::kIgnore; }

  void operator()(Phase phase, const Node& node, int64_t tiles, int32_t argument = 0) {
    emit(phase, int32_t(&node - plan->nodes), tiles, argument);
  }
  void emit(Phase phase, int32_t node, int64_t tiles, int32_t argument = 0) {
    list.push_back({phase, node, which, k, int32_t(tiles), argument, tangent, 0});
  }
  // Elements of T that the phases of this pass of this node share.
  void need_scratch(int64_t elements) { scratch = std::max(scratch, elements); }
};

// When the phases of a primitive run: specialised beside its phases. One that is not has no device code.
struct NoDeviceCode {};
template <Op op>
struct DeviceSchedule : NoDeviceCode {};

}  // namespace metafast
