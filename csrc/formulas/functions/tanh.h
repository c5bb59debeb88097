// tanh(x).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Tanh {
  MF_HD explicit Tanh(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return tanh(x);
  }
  template <class S>
  MF_HD S slope(S, S y) const {
    return S(1) - y * y;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
