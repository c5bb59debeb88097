// The four passes of a pointwise function.
#pragma once

#include "../cpu/frame.h"
#include "functions.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T, class Function>
struct Activation {
  static int64_t count(const Frame<T>& f, const Step& s) { return f.rows(s.output) * f.value(s.output).ld; }

  static void forward(const Frame<T>& f, const Step& s) {
    const Function function(s);
    const T* __restrict x = f.activation(s.input[0]);
    T* __restrict y = f.activation_out(s.output);
    const int64_t n = count(f, s);
    for (int64_t i = 0; i < n; ++i) y[i] = function.value(x[i]);
  }

  static void backward(const Frame<T>& f, const Step& s) {
    if (!wanted(s.input_mode[0])) return;
    const Function function(s);
    const T* __restrict x = f.activation(s.input[0]);
    const T* __restrict y = f.activation(s.output);
    const T* __restrict dy = f.cotangent(s.output);
    T* __restrict dx = f.cotangent(s.input[0]);
    const int64_t n = count(f, s);
    if (s.input_mode[0] == GradientMode::kAccumulate)
      for (int64_t i = 0; i < n; ++i) dx[i] += function.slope(x[i], y[i]) * dy[i];
    else
      for (int64_t i = 0; i < n; ++i) dx[i] = function.slope(x[i], y[i]) * dy[i];
  }

  static void tangent_forward(const Frame<T>& f, const Step& s) {
    const T* __restrict x_dot = f.activation_dot(s.input[0]);
    if (!x_dot) return;
    const Function function(s);
    const T* __restrict x = f.activation(s.input[0]);
    const T* __restrict y = f.activation(s.output);
    T* __restrict y_dot = f.activation_dot(s.output);
    const int64_t n = count(f, s);
    for (int64_t i = 0; i < n; ++i) y_dot[i] = function.slope(x[i], y[i]) * x_dot[i];
  }

  static void tangent_backward(const Frame<T>& f, const Step& s) {
    if (!wanted(s.input_mode[0])) return;
    const Function function(s);
    const T* __restrict x = f.activation(s.input[0]);
    const T* __restrict y = f.activation(s.output);
    const T* __restrict x_dot = f.activation_dot(s.input[0]);
    const T* __restrict y_dot = f.activation_dot(s.output);
    const T* __restrict dy = f.cotangent(s.output);
    const T* __restrict dy_dot = f.cotangent_dot(s.output);
    T* __restrict dx_dot = f.cotangent_dot(s.input[0]);
    const int64_t n = count(f, s);
    const T keep = s.input_mode[0] == GradientMode::kAccumulate ? T(1) : T(0);
    if (!x_dot) {
      for (int64_t i = 0; i < n; ++i)
        dx_dot[i] = (keep != T(0) ? dx_dot[i] : T(0)) + function.slope(x[i], y[i]) * dy_dot[i];
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      const Dual<T> slope = function.slope(Dual<T>(x[i], x_dot[i]), Dual<T>(y[i], y_dot[i]));
      dx_dot[i] = (keep != T(0) ? dx_dot[i] : T(0)) + slope.v * dy_dot[i] + slope.d * dy[i];
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
