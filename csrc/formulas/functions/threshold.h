// x where x > limit, a number elsewhere.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Threshold {
  double limit, otherwise;
  MF_HD explicit Threshold(const Node& node) : limit(node.attribute[0]), otherwise(node.attribute[1]) {}
  template <class T>
  MF_HD T value(T x) const {
    return x <= T(limit) ? T(otherwise) : x;
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) <= limit, S(0), S(1));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
