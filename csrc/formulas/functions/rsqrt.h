// 1 / sqrt(x).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Rsqrt {
  MF_HD explicit Rsqrt(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return T(1) / sqrt(x);
  }
  template <class S>
  MF_HD S slope(S, S y) const {
    return S(-0.5) * (y * y * y);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
