// y = Z + b, where Z = X W is kept by the engine (cpu/first_layer.h). Neither X nor W appears: the gradient of Z is the
// cotangent of y itself, where the engine reads it.
#pragma once

#include "cpu/frame.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct FirstLinear {
  static void add_bias(const Frame<T>& f, const Node& node, const FirstProduct<T>& z, const T* bias, T* out) {
    const int64_t ld = f.value(node.output).ld, rows = f.rows(node.output);
    for (int64_t r = 0; r < rows; ++r) {
      const T* __restrict start = z.start + r * ld, * __restrict change = z.change + r * ld;
      T* __restrict y = out + r * ld;
      for (int64_t c = 0; c < ld; ++c) y[c] = z.factor * (z.weight * start[c] + change[c]) + (bias ? bias[c] : T(0));
    }
  }
  static void bias_gradient(const Frame<T>& f, const Node& node, const T* dy, T* gradient) {
    const int64_t ld = f.value(node.output).ld;
    if (gradient && wanted(node.parameter_mode[1]))
      column_sums(dy, ld, f.rows(node.output), ld, gradient + f.parameter_plan(node.parameter[1]).offset,
                  node.parameter_mode[1] == GradientMode::kAccumulate);
  }

  static void forward(const Frame<T>& f, const Node& node) {
    add_bias(f, node, f.first, f.parameter(node.parameter[1]), f.activation_out(node.output));
  }
  static void backward(const Frame<T>& f, const Node& node) {
    bias_gradient(f, node, f.cotangent(node.output), f.gradient);
  }
  static void tangent_forward(const Frame<T>& f, const Node& node) {
    add_bias(f, node, f.first_dot, f.parameter_dot(node.parameter[1]), f.activation_dot(node.output));
  }
  static void tangent_backward(const Frame<T>& f, const Node& node) {
    bias_gradient(f, node, f.cotangent_dot(node.output), f.gradient_dot);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
