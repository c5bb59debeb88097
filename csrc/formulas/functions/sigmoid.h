// 1 / (1 + exp(-x)).
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

struct Sigmoid {
  MF_HD explicit Sigmoid(const Node&) {}
  template <class T>
  MF_HD T value(T x) const {
    return sigmoid(x);
  }
  template <class S>
  MF_HD S slope(S, S y) const {
    return y * (S(1) - y);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
