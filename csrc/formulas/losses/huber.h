// Huber's loss: d^2 / 2 where |d| <= delta, delta (|d| - delta / 2) beyond, with d = z - y.
#pragma once

#include "formulas/losses/elementwise.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct HuberLoss {
  T delta;
  METAFAST_HD explicit HuberLoss(const LossPlan& plan) : delta(T(plan.attribute[0])) {}
  METAFAST_HD T value(T z, T y) const {
    const T d = magnitude(z - y);
    return d <= delta ? T(0.5) * d * d : delta * (d - T(0.5) * delta);
  }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    const S d = z - S(y);
    return value_of(d) > delta ? S(delta) : value_of(d) < -delta ? S(-delta) : d;
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T y) const {
    return -slope(z, y);
  }
};

template <class T>
using Huber = Elementwise<T, HuberLoss<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
