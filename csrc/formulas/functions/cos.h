// cos(x).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Cos {
  MF_HD explicit Cos(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return cos(x);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return -sin(x);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
