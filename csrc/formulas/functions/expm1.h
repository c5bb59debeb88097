// exp(x) - 1.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Expm1 {
  MF_HD explicit Expm1(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return expm1(x);
  }
  template <class S>
  MF_HD S slope(S, S y) const {
    return y + S(1);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
