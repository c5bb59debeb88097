// x * x.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Squared {
  MF_HD explicit Squared(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return x * x;
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return S(2) * x;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
