// x, whose derivative counts as zero.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Detach {
  MF_HD explicit Detach(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return x;
  }
  template <class S>
  MF_HD S slope(S, S) const {
    return S(0);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
