// exp(x).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Exp {
  MF_HD explicit Exp(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return exp(x);
  }
  template <class S>
  MF_HD S slope(S, S y) const {
    return y;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
