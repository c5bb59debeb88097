// Binary cross-entropy of sigmoid(z): max(z, 0) - z y + log(1 + exp(-|z|)).
#pragma once

#include "formulas/losses/elementwise.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct LogisticLoss {
  METAFAST_HD explicit LogisticLoss(const LossPlan&) {}
  METAFAST_HD T value(T z, T y) const { return (z < T(0) ? T(0) : z) - z * y + log1p01(exp(-magnitude(z))); }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    return sigmoid(z) - S(y);
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T) const {
    return -z;
  }
};

template <class T>
using BceWithLogits = Elementwise<T, LogisticLoss<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
