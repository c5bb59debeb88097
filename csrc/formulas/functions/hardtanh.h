// x held to [low, high], of slope 0 at the bounds, as in torch.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Hardtanh {
  double low, high;
  MF_HD explicit Hardtanh(const Node& node) : low(node.attribute[0]), high(node.attribute[1]) {}
  template <class T>
  MF_HD T value(T x) const {
    const T raised = x < T(low) ? T(low) : x;
    return raised > T(high) ? T(high) : raised;
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) <= low || value_of(x) >= high, S(0), S(1));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
