// The logistic loss of a label y of 1 or -1: log(1 + exp(-y z)).
#pragma once

#include "formulas/losses/elementwise.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct LogisticMargin {
  METAFAST_HD explicit LogisticMargin(const LossPlan&) {}
  METAFAST_HD T value(T z, T y) const {
    const T m = -y * z;
    return (m < T(0) ? T(0) : m) + log1p01(exp(-magnitude(m)));
  }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    return S(-y) * sigmoid(S(-y) * z);
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T y) const {
    return -z * sigmoid(S(-y) * z);
  }
};

template <class T>
using SoftMargin = Elementwise<T, LogisticMargin<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
