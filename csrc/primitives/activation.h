// The four passes of a pointwise function.
#pragma once

#include "../cpu/frame.h"
#include "functions.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T, class Function>
struct Activation {
  // What holds for each element does not ask how many tasks they belong to.
  using E = Element<T>;
  static E* elements(T* p) { return reinterpret_cast<E*>(p); }
  static const E* elements(const T* p) { return reinterpret_cast<const E*>(p); }
  static int64_t count(const Frame<T>& f, const Step& s) { return f.rows(s.output) * f.value(s.output).ld * kTasks<T>; }

  static void forward(const Frame<T>& f, const Step& s) {
    const Function function(s);
    const E* __restrict x = elements(f.activation(s.input[0]));
    E* __restrict y = elements(f.activation_out(s.output));
    const int64_t n = count(f, s);
    for (int64_t i = 0; i < n; ++i) y[i] = function.value(x[i]);
  }

  static void backward(const Frame<T>& f, const Step& s) {
    if (!wanted(s.input_mode[0])) return;
    const Function function(s);
    const E* __restrict x = elements(f.activation(s.input[0]));
    const E* __restrict y = elements(f.activation(s.output));
    const E* __restrict dy = elements(f.cotangent(s.output));
    E* __restrict dx = elements(f.cotangent(s.input[0]));
    const int64_t n = count(f, s);
    if (s.input_mode[0] == GradientMode::kAccumulate)
      for (int64_t i = 0; i < n; ++i) dx[i] += function.slope(x[i], y[i]) * dy[i];
    else
      for (int64_t i = 0; i < n; ++i) dx[i] = function.slope(x[i], y[i]) * dy[i];
  }

  static void tangent_forward(const Frame<T>& f, const Step& s) {
    const E* __restrict x_dot = elements(f.activation_dot(s.input[0]));
    if (!x_dot) return;
    const Function function(s);
    const E* __restrict x = elements(f.activation(s.input[0]));
    const E* __restrict y = elements(f.activation(s.output));
    E* __restrict y_dot = elements(f.activation_dot(s.output));
    const int64_t n = count(f, s);
    for (int64_t i = 0; i < n; ++i) y_dot[i] = function.slope(x[i], y[i]) * x_dot[i];
  }

  static void tangent_backward(const Frame<T>& f, const Step& s) {
    if (!wanted(s.input_mode[0])) return;
    const Function function(s);
    const E* __restrict x = elements(f.activation(s.input[0]));
    const E* __restrict y = elements(f.activation(s.output));
    const E* __restrict x_dot = elements(f.activation_dot(s.input[0]));
    const E* __restrict y_dot = elements(f.activation_dot(s.output));
    const E* __restrict dy = elements(f.cotangent(s.output));
    const E* __restrict dy_dot = elements(f.cotangent_dot(s.output));
    E* __restrict dx_dot = elements(f.cotangent_dot(s.input[0]));
    const int64_t n = count(f, s);
    const bool keep = s.input_mode[0] == GradientMode::kAccumulate;
    if (!x_dot) {
      for (int64_t i = 0; i < n; ++i) dx_dot[i] = (keep ? dx_dot[i] : E(0)) + function.slope(x[i], y[i]) * dy_dot[i];
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      const Dual<E> slope = function.slope(Dual<E>(x[i], x_dot[i]), Dual<E>(y[i], y_dot[i]));
      dx_dot[i] = (keep ? dx_dot[i] : E(0)) + slope.v * dy_dot[i] + slope.d * dy[i];
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
