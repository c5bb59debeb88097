// A gradient of a weight: a sum over positions, which if it is long is cut into parts.
#pragma once

#include "cuda/primitives/columns.cuh"
#include "cuda/primitives/product.cuh"

namespace metafast {
namespace METAFAST_ISA {

constexpr uint32_t kProductSlice = 16;

// What a gradient of the weight is a sum of: x dy, or for the tangent x dy' + x' dy. And where it goes: the argument is
// the number of parts that positions are cut into; if that is 1 it is the gradient itself, else each part goes to
// scratch, and WeightFold adds them.
template <class T>
struct WeightGradient {
  const T *x, *x_dot, *dy, *dy_dot;
  T* to;
  int32_t terms, parts;
  uint32_t size;
  bool accumulate;

  __device__ WeightGradient(const Frame<T>& f, const Node& node, const Block& block)
      : x(f.activation(node.input[0])),
        x_dot(f.activation_dot(node.input[0])),
        dy(f.cotangent(node.output)),
        dy_dot(f.tangent_tape ? f.cotangent_dot(node.output) : dy),
        terms(x_dot ? 2 : 1),
        parts(block.argument),
        size(uint32_t(f.parameter_plan(node.parameter[0]).size)),
        accumulate(parts == 1 && node.parameter_mode[0] == GradientMode::kAccumulate) {
    to = parts > 1        ? f.scratch
         : f.tangent_tape ? f.parameter_gradient_dot(node.parameter[0])
                          : f.parameter_gradient(node.parameter[0]);
  }
  __device__ const T* left(int term) const { return term == 0 ? x : x_dot; }
  __device__ const T* right(int term) const { return term == 0 ? dy_dot : dy; }
};

// Parts begin at whole slices of staged.cuh.
struct PartOfPositions {
  uint32_t begin, end;
  MF_HD PartOfPositions(uint32_t positions, uint32_t part, int32_t parts) {
    const uint32_t slices = (positions + kProductSlice - 1) / kProductSlice;
    const uint32_t each = (slices + uint32_t(parts) - 1) / uint32_t(parts) * kProductSlice;
    begin = part * each;  // the last parts may be empty
    end = begin + each;
    if (begin > positions) begin = positions;
    if (end > positions) end = positions;
  }
};

template <class T>
struct WeightFold : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const uint32_t size = uint32_t(f.parameter_plan(node.parameter[0]).size);
    T* dw = f.tangent_tape ? f.parameter_gradient_dot(node.parameter[0]) : f.parameter_gradient(node.parameter[0]);
    block.for_each(size, [&](uint32_t i) {
      T total = T(0);
      for (int32_t part = 0; part < block.argument; ++part) total += f.scratch[uint32_t(part) * size + i];
      put(dw + i, total, node.parameter_mode[0]);
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
