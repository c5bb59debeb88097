// log(1 + exp(beta x)) / beta, and x itself where beta x exceeds the threshold.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Softplus {
  double beta, threshold;
  MF_HD explicit Softplus(const Node& node) : beta(node.attribute[0]), threshold(node.attribute[1]) {}
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
