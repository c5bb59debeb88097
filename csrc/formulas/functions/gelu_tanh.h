// x Phi(x) with a tanh in the place of Phi: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct GeluTanh {
  MF_HD explicit GeluTanh(const Node&) {}
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

}  // namespace METAFAST_ISA
}  // namespace metafast
