// x Phi(x) with the normal distribution function Phi.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Gelu {
  MF_HD explicit Gelu(const Node&) {}
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

}  // namespace METAFAST_ISA
}  // namespace metafast
