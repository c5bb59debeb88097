// x where x > 0, a x elsewhere.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct LeakyRelu {
  double negative;
  MF_HD explicit LeakyRelu(const Node& node) : negative(node.attribute[0]) {}
  template <class T>
  MF_HD T value(T x) const {
    return x > T(0) ? x : x * T(negative);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) > 0, S(1), S(negative));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
