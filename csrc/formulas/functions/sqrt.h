// sqrt(x).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Sqrt {
  MF_HD explicit Sqrt(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return sqrt(x);
  }
  template <class S>
  MF_HD S slope(S, S y) const {
    return S(1) / (S(2) * y);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
