// Pointwise functions. Each states its value and its slope once; the slope is templated on the scalar and may use the
// output, so that the tangent passes evaluate no exponential that the forward pass already has.
// At a kink the slope is torch's: relu'(0) = 0. To add one: its struct here, and a line of METAFAST_POINTWISE
// (program/primitives.h).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

// Whether the slope is constant between kinks, as the trait kPiecewiseLinear says.
template <class Function>
constexpr bool kStraight = false;

struct Relu {
  MF_HD explicit Relu(const Step&) {}
  template <class T>
  MF_HD T value(T x) const {
    return x < T(0) ? T(0) : x;
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) > 0, S(1), S(0));
  }
};

template <>
constexpr bool kStraight<Relu> = true;

struct LeakyRelu {
  double negative;
  MF_HD explicit LeakyRelu(const Step& s) : negative(s.attribute[0]) {}
  template <class T>
  MF_HD T value(T x) const {
    return x > T(0) ? x : x * T(negative);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) > 0, S(1), S(negative));
  }
};

template <>
constexpr bool kStraight<LeakyRelu> = true;

struct Elu {
  double alpha;
  MF_HD explicit Elu(const Step& s) : alpha(s.attribute[0]) {}
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
  MF_HD explicit Tanh(const Step&) {}
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
  MF_HD explicit Sigmoid(const Step&) {}
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
  MF_HD explicit Silu(const Step&) {}
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
  MF_HD explicit Gelu(const Step&) {}
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
  MF_HD explicit GeluTanh(const Step&) {}
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
  MF_HD explicit Softplus(const Step& s) : beta(s.attribute[0]), threshold(s.attribute[1]) {}
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

}  // namespace METAFAST_ISA
}  // namespace metafast
