// The nearest of [low, high] to x; high itself where the two are the wrong way round. As in torch the slope is 1 at the
// bounds too.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Clamp {
  double low, high;
  MF_HD explicit Clamp(const Node& node) : low(node.attribute[0]), high(node.attribute[1]) {}
  template <class T>
  MF_HD T value(T x) const {
    const T raised = x < T(low) ? T(low) : x;
    return raised > T(high) ? T(high) : raised;
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return select(value_of(x) >= low && value_of(x) <= high, S(1), S(0));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
