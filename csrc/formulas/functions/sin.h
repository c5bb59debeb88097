// sin(x).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Sin {
  MF_HD explicit Sin(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return sin(x);
  }
  template <class S>
  MF_HD S slope(S x, S) const {
    return cos(x);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
