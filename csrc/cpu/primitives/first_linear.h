// y = Z + b, where Z = X W is kept by the engine (cpu/first_layer.h). Neither X nor W appears: the gradient of Z is the
// cotangent of y itself, where the engine reads it.
#pragma once

#include "cpu/frame.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct FirstLinear {
  static void add_bias(const Frame<T>& f, const Step& s, const FirstProduct<T>& z, const T* bias, T* out) {
    const int64_t ld = f.value(s.output).ld, rows = f.rows(s.output);
    for (int64_t r = 0; r < rows; ++r) {
      const T* __restrict start = z.start + r * ld, * __restrict change = z.change + r * ld;
      T* __restrict y = out + r * ld;
      for (int64_t c = 0; c < ld; ++c) y[c] = z.factor * (z.weight * start[c] + change[c]) + (bias ? bias[c] : T(0));
    }
  }
  static void bias_gradient(const Frame<T>& f, const Step& s, const T* dy, T* gradient) {
    const int64_t ld = f.value(s.output).ld;
    if (gradient && wanted(s.parameter_mode[1]))
      column_sums(dy, ld, f.rows(s.output), ld, gradient + f.parameter_plan(s.parameter[1]).offset,
                  s.parameter_mode[1] == GradientMode::kAccumulate);
  }

  static void forward(const Frame<T>& f, const Step& s) {
    add_bias(f, s, f.first, f.parameter(s.parameter[1]), f.activation_out(s.output));
  }
  static void backward(const Frame<T>& f, const Step& s) { bias_gradient(f, s, f.cotangent(s.output), f.gradient); }
  static void tangent_forward(const Frame<T>& f, const Step& s) {
    add_bias(f, s, f.first_dot, f.parameter_dot(s.parameter[1]), f.activation_dot(s.output));
  }
  static void tangent_backward(const Frame<T>& f, const Step& s) {
    bias_gradient(f, s, f.cotangent_dot(s.output), f.gradient_dot);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
