// Dropout: every thread draws the factors of its elements, in every pass again.
#pragma once

#include "cuda/primitives/shape_and_sum.cuh"
#include "cuda/task.cuh"
#include "formulas/dropout.h"

namespace metafast {
namespace METAFAST_ISA {

// All planes have one leading dimension.
template <class T>
static __device__ void drop_out(const Frame<T>& f, const Node& node, const T* x, T* y, GradientMode mode,
                                const Block& block) {
  const Value& v = f.value(node.output);
  const DropoutDraws<T> draws(f.random, node);
  block.for_each(f.rows(node.output) * v.ld, [&](uint32_t i) {
    const uint32_t user = user_index(v, v.ld, i);
    put(y + i, user == kPad ? T(0) : x[i] * draws[user / node.random.each], mode);
  });
}

template <class T>
struct DropoutForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    drop_out(f, node, plane_in(f, node.input[0]), plane_out(f, node.output), GradientMode::kOverwrite, block);
  }
};

template <class T>
struct DropoutBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    drop_out<T>(f, node, cotangent_plane(f, node.output), cotangent_plane(f, node.input[0]), node.input_mode[0], block);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
