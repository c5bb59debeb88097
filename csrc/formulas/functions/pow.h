// x ** exponent. As in torch the slope of x ** 0 is 0, wherever x is.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Pow {
  double exponent;
  MF_HD explicit Pow(const Node& node) : exponent(node.attribute[0]) {}
  template <class T>
  MF_HD T value(T x) const {
    return power(x, exponent);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return exponent == 0 ? S(0) : S(exponent) * power(x, exponent - 1);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
