// 1 / x.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Reciprocal {
  MF_HD explicit Reciprocal(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return T(1) / x;
  }
  template <class S>
  MF_HD S slope(S, S y) const {
    return -(y * y);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
