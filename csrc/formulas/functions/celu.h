// x where x > 0, a (exp(x / a) - 1) elsewhere.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Celu {
  double alpha;
  MF_HD explicit Celu(const Node& node) : alpha(node.attribute[0]) {}
  template <class T>
  MF_HD T value(T x) const {
    const T negative = T(alpha) * expm1((x < T(0) ? x : T(0)) / T(alpha));
    return x > T(0) ? x : negative + T(0) * x;  // 0 * x carries NaN through
  }
  template <class S>
  MF_HD S slope(S x, S y) const {
    return select(value_of(x) > 0, S(1), y / S(alpha) + S(1));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
