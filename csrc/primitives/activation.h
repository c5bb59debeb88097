// Pointwise functions. Each states its value and its slope once; the slope is templated on the scalar and may use the
// output, so that the tangent passes evaluate no exponential that the forward pass already has.
// At a kink the slope is torch's: relu'(0) = 0.
#pragma once

#include "../cpu/frame.h"

namespace metafast {
namespace METAFAST_ISA {

struct Relu {
  explicit Relu(const Step&) {}
  template <class T>
  MF_HD T value(T x) const {
    return x < T(0) ? T(0) : x;
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) > 0, S(1), S(0));
  }
};

struct LeakyRelu {
  double negative;
  explicit LeakyRelu(const Step& s) : negative(s.attribute[0]) {}
  template <class T>
  MF_HD T value(T x) const {
    return x > T(0) ? x : x * T(negative);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) > 0, S(1), S(negative));
  }
};

struct Elu {
  double alpha;
  explicit Elu(const Step& s) : alpha(s.attribute[0]) {}
  template <class T>
  MF_HD T value(T x) const {
    const T negative = T(alpha) * expm1(x < T(0) ? x : T(0));
    return x > T(0) ? x : negative + T(0) * x;  // 0 * x carries NaN through
  }
  template <class S>
  MF_HD S slope(S x, S y) const {
    return select(value_of(x) > 0, S(1), y + S(alpha));
  }
};

struct Tanh {
  explicit Tanh(const Step&) {}
  template <class T>
  MF_HD T value(T x) const {
    return tanh(x);
  }
  template <class S>
  MF_HD S slope(S, S y) const {
    return S(1) - y * y;
  }
};

struct Sigmoid {
  explicit Sigmoid(const Step&) {}
  template <class T>
  MF_HD T value(T x) const {
    return sigmoid(x);
  }
  template <class S>
  MF_HD S slope(S, S y) const {
    return y * (S(1) - y);
  }
};

struct Silu {
  explicit Silu(const Step&) {}
  template <class T>
  MF_HD T value(T x) const {
    return x * sigmoid(x);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    const S p = sigmoid(x);
    return p + x * p * (S(1) - p);
  }
};

// x Phi(x) with the normal distribution function Phi.
struct Gelu {
  explicit Gelu(const Step&) {}
  template <class T>
  MF_HD T value(T x) const {
    return x * T(0.5) * (T(1) + erf(x * T(0.70710678118654752440)));
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    const S phi = exp(S(-0.5) * x * x) * S(0.39894228040143267794);
    return S(0.5) * (S(1) + erf(x * S(0.70710678118654752440))) + x * phi;
  }
};

struct GeluTanh {
  explicit GeluTanh(const Step&) {}
  template <class S>
  MF_HD static S inner(S x) {
    return tanh(S(0.79788456080286535588) * (x + S(0.044715) * x * x * x));
  }
  template <class T>
  MF_HD T value(T x) const {
    return T(0.5) * x * (T(1) + inner(x));
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    const S t = inner(x);
    return S(0.5) * (S(1) + t) +
           S(0.5) * x * (S(1) - t * t) * S(0.79788456080286535588) * (S(1) + S(3 * 0.044715) * x * x);
  }
};

// log(1 + exp(beta x)) / beta, and x itself where beta x exceeds the threshold.
struct Softplus {
  double beta, threshold;
  explicit Softplus(const Step& s) : beta(s.attribute[0]), threshold(s.attribute[1]) {}
  template <class T>
  MF_HD T value(T x) const {
    const T u = x * T(beta), a = magnitude(u);
    const T soft = ((u > T(0) ? u : T(0)) + log1p01(exp(-a))) / T(beta);
    return u > T(threshold) ? x : soft + T(0) * x;
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    const S u = x * S(beta);
    return select(value_of(u) > threshold, S(1), sigmoid(u));
  }
};

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
