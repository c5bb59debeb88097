// Smooth L1: d^2 / (2 beta) where |d| < beta, |d| - beta / 2 beyond, with d = z - y.
#pragma once

#include "formulas/losses/elementwise.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct SmoothL1Loss {
  T beta;
  METAFAST_HD explicit SmoothL1Loss(const LossPlan& plan) : beta(T(plan.attribute[0])) {}
  METAFAST_HD T value(T z, T y) const {
    const T d = magnitude(z - y);
    return d < beta ? T(0.5) * d * d / beta : d - T(0.5) * beta;
  }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    const S d = z - S(y);
    if (magnitude(value_of(d)) < beta) return d / S(beta);
    return value_of(d) > 0 ? S(1) : value_of(d) < 0 ? S(-1) : S(0) * d;
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T y) const {
    return -slope(z, y);
  }
};

template <class T>
using SmoothL1 = Elementwise<T, SmoothL1Loss<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
