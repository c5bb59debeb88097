// scale * x + shift, two plain numbers.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Affine {
  double scale, shift;
  MF_HD explicit Affine(const Node& node) : scale(node.attribute[0]), shift(node.attribute[1]) {}
  template <class T>
  MF_HD T value(T x) const {
    return T(scale) * x + T(shift);
  }
  template <class S>
  MF_HD S slope(S, S) const {
    return S(scale);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
