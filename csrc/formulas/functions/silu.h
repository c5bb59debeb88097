// x sigmoid(x).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Silu {
  MF_HD explicit Silu(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return x * sigmoid(x);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    const S p = sigmoid(x);
    return p + x * p * (S(1) - p);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
